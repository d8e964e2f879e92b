//! The fuzzer's way into `hostile::scribble`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hostile::scribble(data));

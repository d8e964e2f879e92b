//! The fuzzer's way into `hostile::image`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hostile::image(data));

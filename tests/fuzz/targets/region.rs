//! The fuzzer's way into `hostile::region`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hostile::region(data));

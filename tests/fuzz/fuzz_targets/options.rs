//! The options of a mount, with commas between them.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::runtime::options(bytes));

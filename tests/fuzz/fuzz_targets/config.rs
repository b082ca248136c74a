//! An engine's `config.json`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::runtime::config(bytes));

//! A container's `state.json`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::runtime::state(bytes));

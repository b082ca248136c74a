//! A layer of an image: tar, plain or compressed.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::layer::layer(bytes, fuzz::unpack_layer));

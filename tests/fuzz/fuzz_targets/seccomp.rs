//! `linux.seccomp` of one, to the kernel's program.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::runtime::seccomp(bytes));

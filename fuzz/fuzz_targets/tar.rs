//! See `../bodies/tar.rs`, which the tests run over the seed corpus too.
#![no_main]

#[path = "../bodies/tar.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));

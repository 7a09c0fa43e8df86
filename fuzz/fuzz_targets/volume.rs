//! See `../bodies/volume.rs`, which the tests run over the seed corpus too.
#![no_main]

#[path = "../bodies/volume.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));

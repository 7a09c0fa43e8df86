//! See `../bodies/record.rs`, which the tests run over the seed corpus too.
#![no_main]

#[path = "../bodies/record.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));

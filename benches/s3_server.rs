//! The S3 server of the tests, to be measured against: serves a directory until its standard input ends.
//!
//! `s3_server DIR [MILLISECONDS]`: each request takes that much longer. Prints what bk needs in its environment.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a program for benches"
)]

#[path = "../tests/it/support/s3/own.rs"]
mod own;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let dir = args.next().expect("s3_server DIR [MILLISECONDS]");
    let delay = args.next().map_or(0, |text| text.parse().expect("milliseconds"));
    let delay = std::time::Duration::from_millis(delay);
    let kind = own::Kind { has_conditions: true, delay, reads_at_once: true };
    let (_runtime, endpoint) = own::serve(dir.as_ref(), kind);
    for (name, value) in own::env(&endpoint) {
        println!("{name}={value}");
    }
    println!();
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

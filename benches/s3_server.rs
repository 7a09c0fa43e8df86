//! The S3 server of the tests, to be measured against: serves a directory until its standard input ends.
//!
//! `s3_server DIR [MILLISECONDS]`: each request takes that much longer. Prints what bk needs in its environment.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for benches"
)]

#[allow(dead_code, reason = "shared with the tests, which use all of it")]
#[path = "../tests/it/support/s3.rs"]
mod s3;

/// What the server asks of the tests' tools.
mod tools {
    pub fn skip(test: &str, why: &str) -> bool {
        eprintln!("{test}: {why}");
        false
    }
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let dir = args.next().expect("s3_server DIR [MILLISECONDS]");
    let delay = args.next().map_or(0, |text| text.parse().expect("milliseconds"));
    let server = s3::Server::own_to_measure(dir.as_ref(), std::time::Duration::from_millis(delay));
    for (name, value) in server.env() {
        println!("{name}={value}");
    }
    println!();
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

//! The `bk` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    bk::cli::main()
}

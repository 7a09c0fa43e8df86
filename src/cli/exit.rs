//! How a run ends: the exit code from the kind of error.

use std::process::ExitCode;

use super::{Ended, output::Output};
use crate::{
    error::{Kind, Result},
    plan::health::Status,
};

/// Prints the error, if there is one, and gives the exit code.
pub fn code(out: &Output, result: Result<Ended>) -> ExitCode {
    let number = match result {
        Ok(Ended::Done) => 0,
        Ok(Ended::Incomplete) => 3,
        Ok(Ended::Faults) => 8,
        Ok(Ended::Code(number)) => number,
        Ok(Ended::Health(status)) => match status {
            Status::Ok => 0,
            Status::Warning => 1,
            Status::Critical => 2,
            Status::Unknown => 3,
        },
        // The reader of our output has seen enough.
        Err(e) if e.kind() == Kind::BrokenPipe => 0,
        Err(e) => {
            let number = e.kind().exit_code();
            out.error(&e, number);
            number
        }
    };
    ExitCode::from(number)
}

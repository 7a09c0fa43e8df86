//! How a run ends: the exit code from the kind of error.

use std::process::ExitCode;

use super::{Ended, output::Output};
use crate::{
    error::{Kind, Result},
    plan::health::Status,
};

/// Prints the error, if there is one, and gives the exit code.
pub fn code(out: &Output, result: Result<Ended>) -> ExitCode {
    let number = number(&result);
    if let Err(e) = result
        && e.kind() != Kind::BrokenPipe
    {
        out.error(&e, number);
    }
    ExitCode::from(number)
}

/// The exit code.
pub fn number(result: &Result<Ended>) -> u8 {
    match result {
        Ok(Ended::Done) => 0,
        Ok(Ended::Incomplete) => 3,
        Ok(Ended::Faults) => 8,
        Ok(Ended::But(kind)) => of(*kind),
        Ok(Ended::Health(status)) => match status {
            Status::Ok => 0,
            Status::Warning => 1,
            Status::Critical => 2,
            Status::Unknown => 3,
        },
        // Of a broken pipe, too: the reader of our output has seen enough.
        Err(e) => of(e.kind()),
    }
}

/// Of two failures the one that counts: 8 > 9 > 4 > 7 > 6 > 5 > 3, a signal before all, anything else after.
pub fn worse(a: Kind, b: Kind) -> Kind {
    let rank = |kind: Kind| match kind {
        Kind::Signal(_) | Kind::Aborted => 9,
        Kind::Integrity => 8,
        Kind::NoSpace => 7,
        Kind::Volume => 6,
        Kind::Step => 5,
        Kind::Lost => 4,
        Kind::Incomplete => 2,
        Kind::Other | Kind::Usage => 1,
        Kind::BrokenPipe => 0,
    };
    if rank(b) > rank(a) { b } else { a }
}

fn of(kind: Kind) -> u8 {
    match kind {
        Kind::Other => 1,
        Kind::Usage => 2,
        Kind::Incomplete => 3,
        Kind::Volume => 4,
        Kind::Lost => 6,
        Kind::Step => 7,
        Kind::Integrity => 8,
        Kind::NoSpace => 9,
        Kind::Aborted => 143,
        Kind::Signal(n) => u8::try_from(n).ok().and_then(|n| n.checked_add(128)).unwrap_or(1),
        Kind::BrokenPipe => 0,
    }
}

//! `bk as-user UID GID GROUPS PROGRAM ARGS…`: becomes another user, and then the program. It is how bk itself runs a step's command as its
//! `user`: whatever else does so asks the name service, which may hang when an application is to be opened.

use std::{
    convert::Infallible,
    ffi::OsString,
    io::Write,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use rustix::{
    fs::{Gid, Uid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use crate::{
    error::{Error, Result},
    steps::{self, AS_USER},
};

/// As a shell says that there is no such program: no condition of a step takes it for a no.
const NOT_STARTED: u8 = 127;

/// Does so when that is what the process was started for, before it has any other thread.
pub fn when_asked() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    if words.next()? != AS_USER {
        return None;
    }
    let Err(e) = run(words);
    let _ = writeln!(std::io::stderr(), "bk: error: {e}");
    Some(ExitCode::from(NOT_STARTED))
}

fn run(mut words: impl Iterator<Item = OsString>) -> Result<Infallible> {
    let wanted = || Error::usage("UID GID GROUPS PROGRAM are wanted");
    let mut word = || words.next().and_then(|word| word.into_string().ok()).ok_or_else(wanted);
    let number = |word: &str| steps::number(word).ok_or_else(wanted);
    let (uid, gid) = (Uid::from_raw(number(&word()?)?), Gid::from_raw(number(&word()?)?));
    let groups = word()?.split(',').map(|word| number(word).map(Gid::from_raw)).collect::<Result<Vec<Gid>>>()?;
    set_thread_groups(&groups)
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid))
        .map_err(|e| Error::io(format!("cannot become user {}", uid.as_raw()), e))?;
    let program = words.next().ok_or_else(wanted)?;
    Err(Error::io(format!("cannot start `{}`", program.display()), Command::new(&program).args(words).exec()))
}

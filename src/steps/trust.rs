//! Which programs bk runs: found, and as root only those nobody else can change; and how one is run as another user.

use std::{
    collections::BTreeMap,
    fs::Metadata,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::process::{self, Call, End};
use crate::error::{Error, Kind, Result};

/// A name service that takes longer does not answer.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(30);

/// What bk is asked to do by itself, with numbers for a user: see `cli`.
pub const AS_USER: &str = "as-user";

const STICKY: u32 = 0o1000;
const OTHERS_WRITE: u32 = 0o022;
const EXECUTE: u32 = 0o111;

/// The program of `argv` as a path that may be run.
pub fn program(argv: &[String], user: Option<&str>) -> Result<PathBuf> {
    let name = argv.first().map_or("", String::as_str);
    let found = find(name)?;
    if rustix::process::geteuid().is_root() {
        check(&found, user)?;
    }
    Ok(found)
}

/// Refuses what others can change, before anything is run. What is not there yet may come with a step before it.
pub fn check_ahead(argv: &[String], user: Option<&str>) -> Result<()> {
    let name = argv.first().map_or("", String::as_str);
    match find(name) {
        Ok(found) if rustix::process::geteuid().is_root() => check(&found, user),
        // No step before it can bring that.
        Err(e) if name.contains('/') && !name.starts_with('/') => Err(e),
        _ => Ok(()),
    }
}

fn find(name: &str) -> Result<PathBuf> {
    let is_program = |path: &Path| path.metadata().is_ok_and(|meta| meta.is_file() && meta.mode() & EXECUTE != 0);
    if name.contains('/') {
        let path = PathBuf::from(name);
        return if !path.is_absolute() {
            Err(Error::new(Kind::Step, format!("`{name}` is not an absolute path")))
        } else if !path.exists() {
            Err(Error::new(Kind::Step, format!("`{name}` is not there")))
        } else if is_program(&path) {
            Ok(path)
        } else {
            Err(Error::new(Kind::Step, format!("`{name}` is not executable")))
        };
    }
    let dirs = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let found =
        std::env::split_paths(&dirs).filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(|p| is_program(p));
    found.ok_or_else(|| Error::new(Kind::Step, format!("`{name}` is not found in PATH")))
}

/// Refuses a program, or a directory on its way, that anybody but root (or the user who runs it) can change.
fn check(path: &Path, user: Option<&str>) -> Result<()> {
    let trusted = match user {
        Some(user) => account(user)?.uid,
        None => 0,
    };
    let real = path.canonicalize().map_err(|e| Error::io(format!("cannot find {}", path.display()), e))?;
    for way in [path, &real] {
        for part in way.ancestors() {
            let meta = part.metadata().map_err(|e| Error::io(format!("cannot look at {}", part.display()), e))?;
            if let Some(why) = fault(&meta, trusted) {
                return Err(refused(path, part, &why));
            }
        }
    }
    Ok(())
}

fn refused(path: &Path, part: &Path, why: &str) -> Error {
    let what = format!("`{}` is not run as root: {} {why}", path.display(), part.display());
    Error::usage(what).with_hint(format!("chown root:root {0}; chmod go-w {0}", part.display()))
}

fn fault(meta: &Metadata, trusted: u32) -> Option<String> {
    if meta.uid() != 0 && meta.uid() != trusted {
        return Some(format!("belongs to user {}", meta.uid()));
    }
    if meta.mode() & OTHERS_WRITE == 0 {
        return None;
    }
    // In a directory like /tmp nobody can put away an entry of root's.
    let is_shared = meta.is_dir() && meta.mode() & STICKY != 0;
    (!is_shared).then(|| "can be written by its group or by others".to_owned())
}

/// What the system knows of a user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    uid: u32,
    gid: u32,
    /// All of them.
    groups: String,
    home: String,
}

/// A user as the system knows it, its name service included. Asked once: what was entered is left though that hangs by then.
pub fn account(user: &str) -> Result<Account> {
    if let Some(account) = known().get(user).cloned() {
        return Ok(account);
    }
    let account = look_up(user)?;
    know(user, &account);
    Ok(account)
}

/// From now on `user` is this one: nobody is asked.
pub fn know(user: &str, account: &Account) {
    known().insert(user.to_owned(), account.clone());
}

fn known() -> MutexGuard<'static, BTreeMap<String, Account>> {
    static KNOWN: Mutex<BTreeMap<String, Account>> = Mutex::new(BTreeMap::new());
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of a user or group; none for the one that the kernel takes for "as it is".
pub fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number != u32::MAX)
}

fn look_up(user: &str) -> Result<Account> {
    let bad = || Error::usage(format!("there is no user `{}`", crate::model::show::name(user.as_bytes())));
    let ask = |argv: [&str; 4]| {
        let argv = argv.map(str::to_owned);
        let call = Call { argv: &argv, user: None, values: &[], timeout: LOOK_UP_TIMEOUT, input: None, is_kept: true };
        let ran = process::run(&call, &|| false, &mut |_| {});
        if matches!(ran.end, End::TimedOut | End::NotStarted | End::Signal(_)) {
            return Err(Error::new(Kind::Step, format!("cannot look up the user `{user}`: {}", ran.why)));
        }
        String::from_utf8(ran.output).map_err(|_| bad())
    };
    let line = ask(["getent", "passwd", "--", user])?;
    let fields: Vec<&str> = line.trim_end().split(':').collect();
    let [_, _, uid, gid, _, home, _] = fields[..] else { return Err(bad()) };
    let groups = ask(["id", "-G", "--", user])?;
    let groups: Vec<u32> = groups.split_whitespace().map(number).collect::<Option<_>>().ok_or_else(bad)?;
    if groups.is_empty() {
        return Err(bad());
    }
    Ok(Account {
        uid: number(uid).ok_or_else(bad)?,
        gid: number(gid).ok_or_else(bad)?,
        groups: groups.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
        home: home.to_owned(),
    })
}

/// User and group of `user`.
pub fn ids(user: &str) -> Result<(u32, u32)> {
    account(user).map(|account| (account.uid, account.gid))
}

/// `program` as another user, with that user's groups; this program itself changes them and becomes the other.
pub fn as_user(user: &str, program: &Path) -> Result<Command> {
    let account = account(user)?;
    let own = rustix::process::geteuid();
    if own.as_raw() == account.uid {
        return Ok(Command::new(program));
    }
    if !own.is_root() {
        return Err(Error::usage(format!("only root runs a command as `{user}`")));
    }
    let mut command = Command::new("/proc/self/exe");
    command.args([AS_USER, &account.uid.to_string(), &account.gid.to_string(), &account.groups]).arg(program);
    command.env("HOME", account.home).env("USER", user).env("LOGNAME", user);
    Ok(command)
}

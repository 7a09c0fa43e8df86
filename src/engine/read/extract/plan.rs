//! What a restore would do.

use std::{os::fd::AsFd, path::Path};

use rustix::{fs::FileType, io::Errno};
use serde::Serialize;

use super::{Options, Overwrite, is_absent, is_same, rows};
use crate::{
    engine::read::{
        chain::Chain,
        content,
        target::{self, Target},
        worker::failed,
    },
    error::Result,
    model::{
        entry::{Entry, EntryKind},
        path,
    },
    monitor::Monitor,
};

/// What a restore would do with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Nothing has its name: it would be made.
    Create,
    /// What has its name would be replaced.
    Replace,
    /// It stays; its metadata may be set.
    Keep,
    /// It cannot be, or is not to be, restored.
    Skip,
}

/// Tells what a restore would do, and does nothing.
pub fn plan(
    chain: &Chain,
    to: &Path,
    options: &Options,
    monitor: &dyn Monitor,
    planned: &mut dyn FnMut(&Entry, Action) -> Result<()>,
) -> Result<()> {
    let target = match std::fs::symlink_metadata(to) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        _ => Some(Target::open(to, false)?),
    };
    for row in rows(chain, &options.taken) {
        content::check_interrupted(monitor)?;
        let entry = row?.entry;
        planned(&entry, would(target.as_ref(), options, &entry)?)?;
    }
    Ok(())
}

fn would(target: Option<&Target>, options: &Options, entry: &Entry) -> Result<Action> {
    let device = matches!(entry.kind, EntryKind::CharDevice | EntryKind::BlockDevice);
    if is_absent(entry) || options.safe && device {
        return Ok(Action::Skip);
    }
    let Some(target) = target else { return Ok(Action::Create) };
    if entry.path.is_empty() {
        return Ok(Action::Keep);
    }
    let (dir, name) = path::split(&entry.path);
    let fd = match target.dir(dir) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(Action::Create),
        Err(_) => return Ok(Action::Skip),
    };
    let Some(stat) = target::stat(fd.as_fd(), name).map_err(|e| failed("stat what is there", e))? else {
        return Ok(Action::Create);
    };
    let same = is_same(&fd, name, entry, &stat);
    let link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    Ok(match options.overwrite {
        _ if entry.is_dir() && same => Action::Keep,
        Overwrite::Never if entry.is_dir() => Action::Skip,
        Overwrite::IfChanged if entry.is_dir() && link => Action::Skip,
        Overwrite::Never => Action::Keep,
        Overwrite::IfChanged if same && entry.kind != EntryKind::HardLink => Action::Keep,
        _ => Action::Replace,
    })
}

//! What `stat` shows.

use super::node::Node;
use crate::model::{
    entry::{Entry, EntryKind},
    time::Time,
};

/// The attributes of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Its number.
    pub node: Node,
    /// What it is; never a hard link.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Change time.
    pub ctime: Time,
    /// Length, bytes.
    pub size: u64,
    /// Blocks of 512 bytes that hold data.
    pub blocks: u64,
    /// Link count, never 0.
    pub nlink: u32,
    /// Major and minor of a device.
    pub rdev: (u32, u32),
    /// How long it holds.
    pub keep: Keep,
}

/// How long the kernel may go by what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It can never change.
    Always,
    /// Jobs and snapshots come and go.
    Shortly,
    /// It is to ask at once again.
    Never,
}

/// File systems give space in units of this many bytes.
const UNIT: u64 = 4096;

impl Attr {
    /// Of an entry, as it was.
    pub fn of(node: Node, entry: &Entry) -> Self {
        let size = match entry.kind {
            EntryKind::File => entry.size,
            EntryKind::Symlink => entry.link.len() as u64,
            EntryKind::Dir => UNIT,
            _ => 0,
        };
        let blocks = match (&entry.sparse, entry.kind) {
            (Some(runs), _) => runs.iter().map(|run| run.len.div_ceil(512)).sum(),
            (None, EntryKind::File) => size.div_ceil(UNIT).saturating_mul(UNIT / 512),
            _ => 0,
        };
        Self {
            node,
            kind: entry.kind,
            mode: entry.mode & 0o7777,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            ctime: entry.ctime,
            size,
            blocks,
            nlink: entry.nlink.max(1),
            rdev: entry.rdev,
            keep: Keep::Always,
        }
    }

    /// Of what has a name, but was not looked at or cannot be: open to nobody.
    pub fn unknown(node: Node, kind: EntryKind, time: Time) -> Self {
        Self { keep: Keep::Never, ..Self::made(node, kind, 0, 0, time) }
    }

    /// Of something that is in no tree, owned by whoever mounts.
    pub fn made(node: Node, kind: EntryKind, mode: u32, size: u64, time: Time) -> Self {
        Self {
            node,
            kind,
            mode,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            mtime: time,
            ctime: time,
            size,
            blocks: if kind == EntryKind::File { size.div_ceil(UNIT).saturating_mul(UNIT / 512) } else { 0 },
            nlink: if kind == EntryKind::Dir { 2 } else { 1 },
            rdev: (0, 0),
            keep: Keep::Always,
        }
    }
}

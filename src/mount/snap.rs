//! One snapshot in a mount: its chain, opened when something in it is first asked for.

use std::sync::{Arc, Mutex, PoisonError};

use super::{
    Answer,
    attr::Attr,
    node::{Node, Place},
};
use crate::{
    engine::read::{chain::Chain, index::Numbered, patience::may_wait},
    error::{Error, Result},
    format::record::Snapshot,
    model::{
        entry::{EntryKind, Status},
        time::{Instant, Time},
    },
};

/// The directory of the streams of a snapshot that has a tree, too. As many `~` follow as make it a name the tree has not.
const STREAMS_DIR: &str = ".bk-streams";

/// A snapshot that was shown.
pub struct Snap {
    /// Its part of inode numbers.
    pub slot: u32,
    /// Its record.
    pub snapshot: Snapshot,
    /// Its directory's name.
    pub name: String,
    chain: Mutex<Option<Arc<Opened>>>,
    root: Mutex<Option<Attr>>,
}

/// The root of a tree; its row alone would hold a whole block.
pub struct Root {
    /// Its attributes.
    pub attr: Attr,
    /// Which run of the chain says so.
    pub run: usize,
    /// The row there.
    pub row: u64,
    status: Status,
}

/// A snapshot with its chain.
pub struct Opened {
    /// Its part of inode numbers.
    pub slot: u32,
    /// The indexes.
    pub chain: Chain,
    /// The entry of the tree's root, where there is one.
    pub root: Option<Root>,
    /// The name of the directory of its streams; none when it has no streams, or no tree.
    pub streams_dir: Option<String>,
    /// When it was taken.
    pub taken_at: Time,
    /// One of those that are counted.
    _live: Arc<()>,
}

/// `17-L1-20261121T101112Z`: sorts by number within a width, and needs no quoting anywhere.
pub fn dir_name(snapshot: &Snapshot) -> String {
    let taken_at = snapshot.taken_at.0.strftime("%Y%m%dT%H%M%SZ");
    format!("{}-L{}-{taken_at}", snapshot.seq, snapshot.level)
}

fn time_of(instant: Instant) -> Time {
    Time { sec: instant.as_second(), nsec: 0 }
}

impl Snap {
    /// Not opened yet.
    pub fn new(slot: u32, snapshot: Snapshot) -> Self {
        let name = dir_name(&snapshot);
        Self { slot, snapshot, name, chain: Mutex::default(), root: Mutex::default() }
    }

    /// When it was taken.
    pub fn taken_at(&self) -> Time {
        time_of(self.snapshot.taken_at)
    }

    /// Its chain; opened by `open` when it is not, which also counts as news.
    pub fn opened(&self, live: &Arc<()>, open: impl FnOnce() -> Result<Chain>) -> Result<(Arc<Opened>, bool)> {
        let mut held = match self.chain.try_lock() {
            Ok(held) => held,
            // Another thread is opening it.
            Err(std::sync::TryLockError::WouldBlock) => {
                may_wait()?;
                self.chain.lock().unwrap_or_else(PoisonError::into_inner)
            }
            Err(std::sync::TryLockError::Poisoned(held)) => held.into_inner(),
        };
        if let Some(opened) = &*held {
            return Ok((Arc::clone(opened), false));
        }
        may_wait()?;
        let opened = Arc::new(Opened::new(self, open()?, live)?);
        *held = Some(Arc::clone(&opened));
        Ok((opened, true))
    }

    /// Lets the chain go; what still reads it keeps it that long.
    pub fn close(&self) {
        if let Ok(mut held) = self.chain.try_lock() {
            *held = None;
        }
    }

    /// What its root is, once it was told.
    pub fn known_root(&self) -> Option<Attr> {
        *self.root.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what its root is.
    pub fn know_root(&self, attr: Attr) {
        *self.root.lock().unwrap_or_else(PoisonError::into_inner) = Some(attr);
    }
}

impl Opened {
    fn new(snap: &Snap, chain: Chain, live: &Arc<()>) -> Result<Self> {
        let node = number(Place::Root(snap.slot))?;
        let root = chain.numbered_at(b"", 0)?.filter(|row| row.kind == EntryKind::Dir).map(|row| Root {
            attr: Attr::of(node, &row),
            run: row.run,
            row: row.number,
            status: row.status,
        });
        let streams_dir = match chain.has_tree() && !chain.streams().is_empty() {
            true => Some(free_name(&chain)?),
            false => None,
        };
        let taken_at = snap.taken_at();
        Ok(Self { slot: snap.slot, chain, root, streams_dir, taken_at, _live: Arc::clone(live) })
    }

    /// The attributes of its root.
    pub fn root_attr(&self) -> Answer<Attr> {
        Ok(match &self.root {
            Some(root) => root.attr,
            None => Attr::made(number(Place::Root(self.slot))?, EntryKind::Dir, 0o555, 0, self.taken_at),
        })
    }

    /// How well its root was saved.
    pub fn root_status(&self) -> Status {
        self.root.as_ref().map_or(Status::default(), |root| root.status)
    }

    /// The attributes of the directory of its streams.
    pub fn streams_attr(&self) -> Answer<Attr> {
        Ok(Attr::made(number(Place::Streams(self.slot))?, EntryKind::Dir, 0o500, 0, self.taken_at))
    }

    /// The attributes of a stream: readable by whoever mounts, since nobody said who else may.
    pub fn stream_attr(&self, stream: u32) -> Answer<Attr> {
        let size = self.chain.last().stream_extent(stream)?.len;
        Ok(Attr::made(number(Place::Stream(self.slot, stream))?, EntryKind::File, 0o400, size, self.taken_at))
    }

    /// The number of a row, by the first name of a hard-linked file.
    pub fn node_of(&self, row: &Numbered) -> Answer<Node> {
        if row.path.is_empty() {
            return Ok(number(Place::Root(self.slot))?);
        }
        Ok(number(Place::Row { slot: self.slot, run: row.run, row: row.number })?)
    }

    /// The row that holds metadata and data: of a hard link, that of the first name.
    pub fn first_name(&self, row: Numbered) -> Answer<Numbered> {
        if row.kind != EntryKind::HardLink {
            return Ok(row);
        }
        let oldest = self.chain.oldest_in(crate::model::path::split(&row.link).0)?;
        let first = self.chain.numbered_at(&row.link, oldest)?;
        let first = first.filter(|first| !matches!(first.kind, EntryKind::HardLink | EntryKind::Dir));
        // One that is another file by now is not there either.
        let first = first.filter(|first| row.is_name_of(first));
        Ok(first.ok_or_else(|| self.chain.blame(&row.path, "the first name of this hard link is not there"))?)
    }

    /// The attributes of a row.
    pub fn attr_of(&self, row: Numbered) -> Answer<Attr> {
        let row = self.first_name(row)?;
        Ok(Attr::of(self.node_of(&row)?, &row))
    }
}

/// The number of a place.
pub fn number(place: Place) -> Result<Node> {
    Node::of(place).ok_or_else(|| Error::integrity("a row past the limit of inode numbers"))
}

fn free_name(chain: &Chain) -> Result<String> {
    let mut name = STREAMS_DIR.to_owned();
    while chain.numbered_at(name.as_bytes(), 0)?.is_some() {
        name.push('~');
        // Names end somewhere, and so does what a tree can hold.
        if name.len() > crate::model::path::NAME_LEN_MAX {
            return Err(Error::integrity("no name is left for the directory of streams"));
        }
    }
    Ok(name)
}

//! A directory just listed against the same directory of the base: what is the same, changed, new or gone.
//!
//! Both come sorted, so this is a merge join. Memory: 16 bytes for each name of the directory, and a row for each that changed.

use std::{collections::VecDeque, iter::Peekable};

use rustix::{
    fs::{AtFlags, Stat},
    io::Errno,
};

use crate::{
    engine::read::{
        chain::{Chain, Located, Merged},
        index::Row,
    },
    error::Result,
    model::{
        entry::{Entry, EntryKind},
        path,
    },
    source::{meta, walk::Names},
};

/// What changed this many seconds before a run began, or later, may have changed again without its time showing it.
const RACY_SECONDS: i64 = 2;

/// What an increment is compared with.
pub struct Base<'a> {
    /// The chain of the base.
    pub chain: &'a Chain,
    /// When the run of each snapshot of it began, seconds since 1970.
    pub taken_at: Vec<i64>,
    /// Whether inode numbers say nothing, as on some network file systems.
    pub ignore_inode: bool,
}

/// What has become of a name.
#[derive(Debug)]
pub enum Plan {
    /// It was listed, but there is nothing any more.
    Gone,
    /// The base does not have it.
    New,
    /// It is as the base says.
    Same(EntryKind),
    /// It is as the base says, but has several names, and which was stored first decides.
    Linked(Box<Row>),
    /// It is another than the base says.
    Changed(Box<Row>),
}

/// What a directory came to.
#[derive(Debug, Default)]
pub struct Joined {
    /// Entries that are the same, directories left out, and the files among them and their stored bytes.
    pub same: (u64, u64, u64),
    /// Names came, went or changed their type.
    pub names_changed: bool,
    /// Something directly in it will be told.
    pub inside_changed: bool,
    /// The base has something directly in it.
    pub was_filled: bool,
}

/// The previous version of a file.
pub struct Previous {
    /// Its row.
    pub row: Row,
    /// Its content.
    pub content: Located,
    /// Whether it was at another path, or was a further name.
    pub moved: bool,
}

/// A walk beside the base's entries.
pub struct Increment<'a> {
    /// What it is compared with.
    pub base: Base<'a>,
    rows: Peekable<Merged<'a>>,
    /// For each name of the directory.
    plans: Vec<Plan>,
    /// What it is now, when that is known.
    kinds: Vec<Option<EntryKind>>,
    /// Names of the base that are gone, in order.
    removed: VecDeque<Vec<u8>>,
}

impl<'a> Increment<'a> {
    /// Begins with the first entry of the base.
    pub fn new(base: Base<'a>) -> Self {
        Self {
            rows: base.chain.rows().peekable(),
            base,
            plans: Vec::new(),
            kinds: Vec::new(),
            removed: VecDeque::new(),
        }
    }

    /// What is to be done with the `n`-th name; it is asked once.
    pub fn take_plan(&mut self, n: usize) -> Plan {
        self.plans.get_mut(n).map_or(Plan::New, |plan| std::mem::replace(plan, Plan::Gone))
    }

    /// The next name that is gone, if it comes before `name`; any when that is `None`.
    pub fn take_removed(&mut self, name: Option<&[u8]>) -> Option<Vec<u8>> {
        let first = self.removed.front()?;
        if name.is_some_and(|name| first.as_slice() >= name) {
            return None;
        }
        self.removed.pop_front()
    }

    /// Compares the names of a directory, which comes after all before it, with the base.
    pub fn join(&mut self, names: &mut Names<'_>) -> Result<Joined> {
        let Self { base, rows, plans, kinds, removed } = self;
        plans.clear();
        kinds.clear();
        removed.clear();
        let mut joined = Joined::default();
        let before =
            |row: &Row| row.entry.path.is_empty() || path::cmp_dirs(path::split(&row.entry.path).0, names.path).is_lt();
        // An error is taken below.
        while rows.next_if(|row| row.as_ref().is_ok_and(before)).is_some() {}
        let mut next = |name: Option<&[u8]>| -> Result<Option<Row>> {
            let wanted = |row: &Row| {
                let (dir, own) = path::split(&row.entry.path);
                !row.entry.path.is_empty() && dir == names.path && name.is_none_or(|name| own <= name)
            };
            rows.next_if(|row| row.as_ref().map_or(true, wanted)).transpose()
        };
        for n in 0..names.listing.len() {
            let (name, _) = names.listing.get(n);
            let mut old = None;
            while let Some(row) = next(Some(name))? {
                joined.was_filled = true;
                let own = path::split(&row.entry.path).1;
                if own == name {
                    old = Some(row);
                    break;
                }
                if !names.is_cut {
                    removed.push_back(own.to_vec());
                }
            }
            let stat = match names.dir {
                Some(_) if n < names.stats.len() => names.stats[n],
                Some(dir) => rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW),
                None => Err(Errno::NOENT),
            };
            let kind = stat.as_ref().ok().and_then(|stat| meta::kind(stat.st_mode));
            kinds.push(kind);
            let plan = match (old, stat) {
                (old, Err(Errno::NOENT)) => {
                    removed.extend(old.map(|_| name.to_vec()));
                    Plan::Gone
                }
                (None, _) => Plan::New,
                (Some(old), Ok(stat)) => {
                    let fsid = names.dir.map_or(0, |dir| names.systems.fsid_at(stat.st_dev, dir, name));
                    joined.names_changed |=
                        old.entry.is_dir() != (kind == Some(EntryKind::Dir)) || is_new_socket(&old, kind);
                    let (old_kind, stored_len) = (old.entry.kind, old.entry.stored_len);
                    let plan = base.plan(old, &stat, fsid);
                    if matches!(plan, Plan::Same(EntryKind::File)) && old_kind == EntryKind::File {
                        (joined.same.1, joined.same.2) = (joined.same.1 + 1, joined.same.2 + stored_len);
                    }
                    plan
                }
                (Some(old), Err(_)) => Plan::Changed(Box::new(old)),
            };
            match &plan {
                Plan::Same(EntryKind::Dir) => {}
                Plan::Same(_) => joined.same.0 += 1,
                Plan::Changed(row) if row.entry.is_dir() => {}
                Plan::New => (joined.names_changed, joined.inside_changed) = (true, true),
                Plan::Gone => joined.names_changed = true,
                _ => joined.inside_changed = true,
            }
            plans.push(plan);
        }
        while let Some(row) = next(None)? {
            joined.was_filled = true;
            if !names.is_cut {
                removed.push_back(path::split(&row.entry.path).1.to_vec());
            }
        }
        joined.names_changed |= !removed.is_empty();
        Ok(joined)
    }

    /// The names of the directory joined last as GNU tar's incremental archives list them; `also` is one more.
    pub fn dumpdir(&self, names: &Names<'_>, also: Option<&[u8]>) -> Vec<u8> {
        let mut out = Vec::new();
        let mut also = also;
        let mut put = |letter: u8, name: &[u8]| {
            out.push(letter);
            out.extend_from_slice(name);
            out.push(0);
        };
        for (n, plan) in self.plans.iter().enumerate() {
            let (name, _) = names.listing.get(n);
            if let Some(own) = also.take_if(|own| *own < name) {
                put(b'D', own);
            }
            let letter = match plan {
                Plan::Gone => continue,
                // It has no member to take the old one's place.
                Plan::Changed(old) if is_new_socket(old, self.kinds[n]) => continue,
                _ if self.kinds[n] == Some(EntryKind::Dir) => b'D',
                // It could not be looked at, and stays what it was.
                Plan::Changed(old) if self.kinds[n].is_none() && old.entry.is_dir() => b'D',
                Plan::Same(_) => b'N',
                Plan::New | Plan::Changed(_) | Plan::Linked(_) => b'Y',
            };
            put(letter, name);
        }
        if let Some(own) = also {
            put(b'D', own);
        }
        out.push(0);
        out
    }

    /// The previous version of a file with content whose row in the base, by its path, is `old`.
    pub fn previous(&self, entry: &Entry, old: Option<Box<Row>>) -> Result<Option<Previous>> {
        if entry.kind != EntryKind::File || entry.stored_len == 0 {
            return Ok(None);
        }
        let chain = self.base.chain;
        let is_own = |row: &Row| (row.entry.fsid, row.entry.ino) == (entry.fsid, entry.ino);
        let old = old.map(|row| *row);
        if !self.base.ignore_inode
            && !old.as_ref().is_some_and(is_own)
            && let Some(row) = chain.by_inode(entry.fsid, entry.ino)?
            && (row.entry.size, row.entry.mtime) == (entry.size, entry.mtime)
        {
            return self.previous_at(row, true);
        }
        match old {
            Some(row) if row.entry.kind == EntryKind::File => self.previous_at(row, false),
            Some(row) if row.entry.kind == EntryKind::HardLink => {
                match chain.lookup(&row.entry.link)?.filter(|row| row.entry.kind == EntryKind::File) {
                    Some(first) => self.previous_at(first, true),
                    None => Ok(None),
                }
            }
            _ => Ok(None),
        }
    }

    fn previous_at(&self, row: Row, moved: bool) -> Result<Option<Previous>> {
        let content = self.base.chain.locate(&row)?;
        Ok(content.map(|content| Previous { row, content, moved }))
    }
}

impl Base<'_> {
    fn plan(&self, old: Row, stat: &Stat, fsid: u64) -> Plan {
        if !self.is_same(&old, stat, fsid) {
            return Plan::Changed(Box::new(old));
        }
        match old.entry.kind {
            EntryKind::Dir => Plan::Same(EntryKind::Dir),
            _ if stat.st_nlink > 1 => Plan::Linked(Box::new(old)),
            kind => Plan::Same(kind),
        }
    }

    /// Whether what is there is, without a look inside, what the base says: type, size, times, owner, mode and inode.
    pub fn is_same(&self, old: &Row, stat: &Stat, fsid: u64) -> bool {
        let entry = &old.entry;
        let Some(now) = meta::entry(&entry.path, stat, fsid) else { return false };
        let kind = if entry.kind == EntryKind::HardLink { !now.is_dir() } else { entry.kind == now.kind };
        kind && !entry.status.is_incomplete()
            && (entry.kind != EntryKind::File || entry.size == now.size)
            && entry.rdev == now.rdev
            && is_visibly_same(entry, &now)
            && self.is_same_inode(entry, &now)
            && !self.is_racy(old)
    }

    /// Whether the inode is the one it was, unchanged.
    pub fn is_same_inode(&self, old: &Entry, now: &Entry) -> bool {
        old.ctime == now.ctime
            && (old.is_dir() || old.nlink == now.nlink)
            && (self.ignore_inode || (old.fsid, old.ino) == (now.fsid, now.ino))
    }

    /// Whether it changed so shortly before it was read that it may have changed again at the same time.
    pub fn is_racy(&self, old: &Row) -> bool {
        let from = self.taken_at.get(old.run).map_or(i64::MIN, |at| at - RACY_SECONDS);
        old.entry.mtime.sec >= from || old.entry.ctime.sec >= from
    }
}

/// Whether a socket is where there was something else.
fn is_new_socket(old: &Row, now: Option<EntryKind>) -> bool {
    now == Some(EntryKind::Socket) && old.entry.kind != EntryKind::Socket
}

/// Whether mode, owner and time are the same; what else can be seen is the caller's.
pub fn is_visibly_same(a: &Entry, b: &Entry) -> bool {
    (a.mode, a.uid, a.gid, a.mtime) == (b.mode, b.uid, b.gid, b.mtime)
}

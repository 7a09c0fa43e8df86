//! The file system: what a name leads to, what an inode is, what is in a file. It knows no FUSE.

use std::sync::Arc;

use quick_cache::{Weighter, sync::Cache};
use rustix::io::Errno;

use super::{
    Answer, Failure, Limits,
    attr::{Attr, Keep},
    content::{Content, Piece, Reading, Stored},
    counts::{Counts, add},
    frames::Frames,
    gather::{Data, Gathering, joined},
    give::Give,
    node::{Node, Place},
    pool::{Pool, Promise, Waiting},
    prefetch::Ahead,
    snap::{Opened, Snap, number},
    top::{Job, Top},
};
use crate::{
    engine::read::{
        index::{BlockCache, Numbered},
        patience::without_waiting,
    },
    error::{Error, Result},
    model::{
        entry::{EntryKind, Status, Xattr},
        path,
    },
    monitor::Monitor,
    volume::Volume,
};

pub use super::top::Shown;

/// Decoded blocks of all indexes together, bytes.
const BLOCKS_LEN_MAX: usize = 20 << 20;
/// Where the contents of files lie, kept for this many bytes.
const CONTENTS_LEN_MAX: u64 = 4 << 20;
/// Directories of chains of which it is kept which runs count in them.
const VIEWS_MAX: usize = 4096;

#[derive(Clone)]
struct ByMemory;

impl Weighter<Node, Arc<Content>> for ByMemory {
    fn weight(&self, _: &Node, content: &Arc<Content>) -> u64 {
        content.memory()
    }
}

/// A mounted volume.
pub struct Core {
    pub(super) top: Top,
    pub(super) monitor: Arc<dyn Monitor>,
    pub(super) counts: Arc<Counts>,
    pub(super) frames: Frames,
    ahead: Ahead,
    pub(super) give: Give,
    contents: Cache<Node, Arc<Content>, ByMemory>,
    views: Cache<Node, usize>,
    /// What waits for indexes and logs, and the deadlines of all that waits.
    pub(super) pool: Pool,
}

/// Space as `df` shows it.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// Bytes of content.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
}

/// The attributes of a job's `latest`.
pub(super) fn latest_attr(newest: &Snap) -> Answer<Attr> {
    let node = number(Place::Latest(newest.slot))?;
    let attr = Attr::made(node, EntryKind::Symlink, 0o777, newest.name.len() as u64, newest.taken_at());
    Ok(Attr { keep: Keep::Shortly, ..attr })
}

impl Core {
    /// Reads nothing yet.
    pub fn new(volume: Volume, shown: Shown, limits: Limits, monitor: Arc<dyn Monitor>) -> Result<Arc<Self>> {
        let counts = Arc::new(Counts::default());
        let blocks = BlockCache::new(BLOCKS_LEN_MAX);
        let told = Arc::clone(&monitor);
        let seconds = limits.deadline.as_secs_f32();
        let late = move |count: usize| {
            told.warn(&format!("{count} requests got no answer from the volume for {seconds} s"));
        };
        Ok(Arc::new(Self {
            top: Top::new(volume, shown, blocks, limits.fresh, Arc::clone(&monitor)),
            frames: Frames::new(limits.cache_len, limits.frame_threads, Arc::clone(&counts), Arc::clone(&monitor))?,
            ahead: Ahead::new(limits.ahead_len.min(limits.cache_len / 4)),
            give: Give::default(),
            contents: Cache::with_weighter(16 << 10, CONTENTS_LEN_MAX, ByMemory),
            views: Cache::new(VIEWS_MAX),
            pool: Pool::new(limits.index_threads, limits.deadline, late),
            monitor,
            counts,
        }))
    }

    /// Opens the only snapshot, when there is only one.
    pub fn open(&self) -> Result<()> {
        match self.top.one().map(|slot| self.top.opened(slot)) {
            Some(Err(Failure::Fault(error))) => Err(error),
            Some(Err(Failure::Plain(errno))) => Err(Error::io("cannot open the snapshot", errno)),
            Some(Ok(_)) | None => Ok(()),
        }
    }

    /// What was asked for so far.
    pub fn counts(&self) -> super::counts::Seen {
        self.counts.seen()
    }

    /// Chains that are open.
    pub fn open_chains(&self) -> usize {
        self.top.open_chains()
    }

    /// What a number names; the root is the root of the only snapshot, when there is only one.
    pub(super) fn place(&self, node: Node) -> Answer<Place> {
        match (node.place().ok_or(Errno::STALE)?, self.top.one()) {
            (Place::Top, Some(slot)) => Ok(Place::Root(slot)),
            (place, _) => Ok(place),
        }
    }

    fn row(&self, slot: u32, run: usize, row: u64) -> Answer<(Arc<Opened>, Numbered)> {
        let opened = self.top.opened(slot)?;
        let row = opened.chain.numbered(run, row)?.ok_or(Errno::STALE)?;
        Ok((opened, row))
    }

    /// The row behind a place, where it has one.
    fn row_at(&self, place: Place) -> Answer<Option<(Arc<Opened>, Numbered)>> {
        match place {
            Place::Row { slot, run, row } => self.row(slot, run, row).map(Some),
            Place::Root(slot) => {
                let opened = self.top.opened(slot)?;
                let Some(root) = &opened.root else { return Ok(None) };
                let row = opened.chain.numbered(root.run, root.row)?.ok_or(Errno::STALE)?;
                Ok(Some((opened, row)))
            }
            _ => Ok(None),
        }
    }

    /// The attributes of an inode.
    pub fn attr(&self, node: Node) -> Answer<Attr> {
        self.attr_at(self.place(node)?)
    }

    pub(super) fn attr_at(&self, place: Place) -> Answer<Attr> {
        match place {
            Place::Top => {
                let attr = Attr::made(Node::TOP, EntryKind::Dir, 0o555, 0, self.top.changed_at()?);
                Ok(Attr { keep: Keep::Shortly, ..attr })
            }
            Place::Job(job) => self.job_attr(&self.top.job(job)?),
            Place::Root(slot) => self.root_attr(&*self.top.snap(slot)?),
            Place::Row { slot, run, row } => {
                let (opened, row) = self.row(slot, run, row)?;
                opened.attr_of(row)
            }
            Place::Streams(slot) => self.top.opened(slot)?.streams_attr(),
            Place::Stream(slot, stream) => self.top.opened(slot)?.stream_attr(stream),
            Place::Latest(slot) => latest_attr(&*self.top.snap(slot)?),
        }
    }

    pub(super) fn job_attr(&self, job: &Job) -> Answer<Attr> {
        let attr = Attr::made(number(Place::Job(job.number))?, EntryKind::Dir, 0o555, 0, job.changed_at);
        Ok(Attr { keep: Keep::Shortly, ..attr })
    }

    pub(super) fn root_attr(&self, snap: &Snap) -> Answer<Attr> {
        if let Some(attr) = snap.known_root() {
            return Ok(attr);
        }
        let attr = self.top.opened(snap.slot)?.root_attr()?;
        // The snapshot never changes, but it may go.
        let attr = match self.top.one() {
            Some(_) => Attr { node: Node::TOP, ..attr },
            None => Attr { keep: Keep::Shortly, ..attr },
        };
        snap.know_root(attr);
        Ok(attr)
    }

    /// The attributes of the directory that holds a place.
    pub(super) fn parent_of(&self, place: Place) -> Answer<Attr> {
        match place {
            Place::Top | Place::Job(_) => self.attr(Node::TOP),
            Place::Root(_) if self.top.one().is_some() => self.attr(Node::TOP),
            Place::Root(slot) | Place::Latest(slot) => {
                let name = self.top.snap(slot)?.snapshot.job.clone();
                self.job_attr(&self.top.job_named(&name)?.ok_or(Errno::STALE)?)
            }
            Place::Streams(slot) | Place::Stream(slot, _) => self.attr_at(Place::Root(slot)),
            Place::Row { slot, run, row } => {
                let (opened, row) = self.row(slot, run, row)?;
                let dir = path::split(&row.path).0;
                if dir.is_empty() {
                    return self.attr_at(Place::Root(slot));
                }
                let oldest = opened.chain.oldest_in(path::split(dir).0)?;
                let dir = opened.chain.numbered_at(dir, oldest)?.ok_or(Errno::NOENT)?;
                opened.attr_of(dir)
            }
        }
    }

    /// The oldest run that counts in a directory.
    pub(super) fn oldest_in(&self, node: Node, opened: &Opened, dir: &[u8]) -> Answer<usize> {
        if opened.chain.runs().len() == 1 {
            return Ok(0);
        }
        if let Some(oldest) = self.views.get(&node) {
            return Ok(oldest);
        }
        let oldest = opened.chain.oldest_in(dir)?;
        self.views.insert(node, oldest);
        Ok(oldest)
    }

    /// The entry `name` of the directory `parent`; none when there is none.
    pub fn lookup(&self, parent: Node, name: &[u8]) -> Answer<Option<Attr>> {
        match self.place(parent)? {
            Place::Top => {
                let Some(name) = text(name) else { return Ok(None) };
                Ok(self.top.job_named(&name)?.map(|job| self.job_attr(&job)).transpose()?)
            }
            Place::Job(job) => {
                let job = self.top.job(job)?;
                if name == b"latest" {
                    return job.latest().map(|newest| latest_attr(newest)).transpose();
                }
                let seq = std::str::from_utf8(name).ok().and_then(|name| name.split('-').next()?.parse::<u64>().ok());
                let snap = seq.and_then(|seq| job.snaps.get(&seq)).filter(|snap| snap.name.as_bytes() == name);
                snap.map(|snap| self.root_attr(snap)).transpose()
            }
            Place::Root(slot) => {
                let opened = self.top.opened(slot)?;
                if !opened.chain.has_tree() {
                    return stream_named(&opened, name);
                }
                if opened.streams_dir.as_ref().is_some_and(|own| own.as_bytes() == name) {
                    return opened.streams_attr().map(Some);
                }
                let row = opened.chain.numbered_at(name, 0)?.filter(|_| !name.is_empty());
                found(&opened, row, opened.root_status())
            }
            Place::Streams(slot) => stream_named(&*self.top.opened(slot)?, name),
            Place::Row { slot, run, row } => {
                let (opened, dir) = self.row(slot, run, row)?;
                if dir.kind != EntryKind::Dir {
                    return Err(Errno::NOTDIR.into());
                }
                let oldest = self.oldest_in(parent, &opened, &dir.path)?;
                let row = opened.chain.numbered_at(&path::join(&dir.path, name), oldest)?;
                found(&opened, row, dir.status)
            }
            Place::Stream(..) | Place::Latest(_) => Err(Errno::NOTDIR.into()),
        }
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, node: Node) -> Answer<Vec<u8>> {
        match self.place(node)? {
            Place::Latest(slot) => Ok(self.top.snap(slot)?.name.clone().into_bytes()),
            place => match self.row_at(place)? {
                Some((_, row)) if row.kind == EntryKind::Symlink => Ok(row.link.clone()),
                _ => Err(Errno::INVAL.into()),
            },
        }
    }

    /// The extended attributes of an inode.
    pub fn xattrs<T>(&self, node: Node, look: impl FnOnce(&[Xattr]) -> T) -> Answer<T> {
        Ok(match self.row_at(self.place(node)?)? {
            Some((_, row)) => look(&row.xattrs),
            None => look(&[]),
        })
    }

    /// Space as `df` shows it.
    pub fn space(&self) -> Space {
        let totals = self.top.one().and_then(|slot| self.top.snap(slot).ok()).map(|snap| snap.snapshot.totals);
        totals.map_or(Space { bytes: 0, entries: 0 }, |totals| Space {
            bytes: totals.content_bytes,
            entries: totals.entries,
        })
    }

    fn content(&self, node: Node) -> Answer<Reading> {
        if let Some(content) = self.contents.get(&node)
            && let Some(opened) = content.opened()
        {
            return Ok(Reading { content, opened });
        }
        let (content, opened) = match self.place(node)? {
            Place::Row { slot, run, row } => {
                let (opened, row) = self.row(slot, run, row)?;
                match row.kind {
                    EntryKind::File => (Content::of_row(&opened, &row)?, opened),
                    EntryKind::Dir => return Err(Errno::ISDIR.into()),
                    _ => return Err(Errno::INVAL.into()),
                }
            }
            Place::Stream(slot, stream) => {
                let opened = self.top.opened(slot)?;
                (Content::of_stream(&opened, stream)?, opened)
            }
            Place::Latest(_) => return Err(Errno::INVAL.into()),
            _ => return Err(Errno::ISDIR.into()),
        };
        let content = Arc::new(content);
        self.contents.insert(node, Arc::clone(&content));
        Ok(Reading { content, opened })
    }

    /// The next data or hole of a file.
    pub fn seek(&self, node: Node, offset: u64, to_data: bool) -> Answer<u64> {
        self.content(node)?.content.seek(offset, to_data)
    }

    /// Reads of a file, and gives `reply` what was read: at once when it is in memory, else from another thread.
    pub fn read(
        self: &Arc<Self>,
        node: Node,
        offset: u64,
        len: u64,
        reply: impl FnOnce(Answer<Data>) + Send + 'static,
    ) {
        let planned = without_waiting(|| self.plan(node, offset, len));
        match planned {
            Some(Ok((reading, pieces))) => {
                match self.at_hand(&pieces) {
                    Some(data) => {
                        reply(Ok(data));
                        self.look_ahead(node, &reading, &pieces, (offset, len));
                    }
                    None => self.gather(node, &reading, pieces, (offset, len), self.promise(reply)),
                }
                if offset == 0 {
                    self.give.note(node, reading.content.size);
                }
            }
            Some(Err(e)) => reply(Err(e)),
            None => {
                let (core, promise) = (Arc::clone(self), self.promise(reply));
                self.pool.run(move || {
                    if promise.is_over() {
                        return;
                    }
                    let planned =
                        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| core.plan(node, offset, len)));
                    match planned.unwrap_or(Err(Errno::IO.into())) {
                        Ok((reading, pieces)) => core.gather(node, &reading, pieces, (offset, len), promise),
                        Err(e) => promise.keep(Err(e)),
                    }
                });
            }
        }
    }

    /// Lets `store` give files to the kernel that it will ask for next.
    pub fn give_with(self: &Arc<Self>, store: impl Fn(Node, &[u8]) -> bool + Send + 'static) {
        self.give.begin(self, store);
    }

    /// Notes that files of a frame are given without being asked for: those after it are then fetched like a reader's.
    pub(super) fn pass(&self, stored: &Stored) {
        self.frames.fetch_ahead(&self.ahead.touch(stored));
    }

    fn promise(&self, reply: impl FnOnce(Answer<Data>) + Send + 'static) -> Arc<Promise<Data>> {
        add(&self.counts.waited);
        let promise = Promise::new(reply);
        self.pool.watch(Arc::clone(&promise) as Arc<dyn Waiting>);
        promise
    }

    fn plan(&self, node: Node, offset: u64, len: u64) -> Answer<(Reading, Vec<Piece>)> {
        let reading = self.content(node)?;
        let pieces = reading.content.pieces(&reading.opened, offset, len)?;
        Ok((reading, pieces))
    }

    /// The bytes, when all of their frames are in memory.
    fn at_hand(&self, pieces: &[Piece]) -> Option<Data> {
        if let [Piece::Data { stored, from, len }] = pieces {
            let plain = self.frames.get(stored)?;
            return Some(Data::Run(plain, *from..from + len));
        }
        let plains: Option<Vec<_>> = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Data { stored, .. } => self.frames.get(stored).map(Some),
                Piece::Zeros(_) => Some(None),
            })
            .collect();
        plains.map(|plains| joined(pieces, &plains))
    }

    fn look_ahead(&self, node: Node, reading: &Reading, pieces: &[Piece], range: (u64, u64)) {
        let frames = without_waiting(|| {
            let mut frames = self.ahead.read(node, reading, range);
            for piece in pieces {
                if let Piece::Data { stored, .. } = piece {
                    frames.extend(self.ahead.touch(stored));
                }
            }
            frames
        });
        // What would take an index block that is not at hand is left to the next read.
        self.frames.fetch_ahead(&frames.unwrap_or_default());
    }

    /// Has the frames of `pieces` fetched and keeps the promise when they are there.
    fn gather(
        &self,
        node: Node,
        reading: &Reading,
        pieces: Vec<Piece>,
        range: (u64, u64),
        promise: Arc<Promise<Data>>,
    ) {
        let wanted: Vec<_> = pieces
            .iter()
            .enumerate()
            .filter_map(|(n, piece)| match piece {
                Piece::Data { stored, .. } => Some((n, stored.clone())),
                Piece::Zeros(_) => None,
            })
            .collect();
        let gathering = Gathering::new(pieces, wanted.len(), promise);
        if wanted.is_empty() {
            gathering.finish();
        }
        for (n, stored) in wanted {
            let gathering = Arc::clone(&gathering);
            self.frames.want(&stored, Box::new(move |plain| gathering.take(n, plain)));
        }
        self.look_ahead(node, reading, gathering.pieces(), range);
    }
}

fn text<T: std::str::FromStr>(name: &[u8]) -> Option<T> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

/// What is told of a name in a directory that was saved so well: one that could not be read may have had others.
fn found(opened: &Opened, row: Option<Numbered>, dir: Status) -> Answer<Option<Attr>> {
    match row {
        None if dir.has(Status::UNREADABLE) => Err(Errno::IO.into()),
        row => row.map(|row| opened.attr_of(row)).transpose(),
    }
}

fn stream_named(opened: &Opened, name: &[u8]) -> Answer<Option<Attr>> {
    let at = opened.chain.streams().iter().position(|own| own.as_str().as_bytes() == name);
    let stream = at.and_then(|at| u32::try_from(at + 1).ok());
    stream.map(|stream| opened.stream_attr(stream)).transpose()
}

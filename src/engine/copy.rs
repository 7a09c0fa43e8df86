//! A snapshot's objects, carried to another volume as they are.
//!
//! Every byte is checked on its way: frames and trailers of parts against the index's tables, the blocks of the index against
//! its directory, and that against the record. An object that does not agree is not finished, so nothing of it is ever seen.
//! Objects that lie there already are read and checked in the same way instead of being carried again.
//! Memory: a few ranges read ahead, and what the target's store holds of objects on their way.

use std::{
    collections::{BTreeMap, VecDeque},
    iter::Peekable,
    sync::Arc,
};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::read::{
    check::frames_tile,
    content::check_interrupted,
    index::{Frames, IndexReader},
};
use crate::{
    error::{Error, Kind, Result},
    format::{
        index::{Frame, Part},
        layout::run_dir,
        record::Snapshot,
    },
    model::digest::Digest,
    monitor::Monitor,
    volume::{Item, Pending, Store, Upload, Volume},
};

/// Pieces are read together up to this many bytes.
const RANGE_LEN: u64 = 4 << 20;
/// Ranges read ahead hold about this many bytes at most.
const AHEAD_LEN_MAX: u64 = 32 << 20;
/// A part has at most this many frames, as [`super::read::check`] says.
const PART_FRAME_COUNT_MAX: u32 = 1 << 20;
/// Objects that are being finished at the same time, where that takes time.
const PENDING_COUNT_MAX: usize = 8;

/// What was carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Objects that lay there already.
    pub kept: u64,
}

/// Parts and index of a snapshot, and where they go.
pub struct Load<'a> {
    index: &'a IndexReader,
    parts: Vec<Part>,
    /// Name and length of each part, then of the index.
    names: Vec<(String, u64)>,
    tail_digest: Digest,
}

/// A fault of the index names its object.
fn of_index(error: Error, index: &IndexReader) -> Error {
    if error.kind() == Kind::Integrity { error.context(index.key()) } else { error }
}

impl<'a> Load<'a> {
    /// All objects of `snapshot`, whose index is `index`. That they are there with their lengths is told by one listing.
    pub fn of(volume: &Volume, snapshot: &Snapshot, index: &'a IndexReader) -> Result<Self> {
        let dir = run_dir(&snapshot.job, snapshot.run_id);
        let parts = (0..index.part_count()).map(|n| index.part(n)).collect::<Result<Vec<Part>>>();
        let parts = parts.map_err(|e| of_index(e, index))?;
        let mut names = Vec::with_capacity(parts.len() + 1);
        for part in &parts {
            let key = index.part_key(part)?;
            names.push((key.strip_prefix(&dir).unwrap_or(&key).to_owned(), part.stored_len));
        }
        names.push((snapshot.index.name.clone(), snapshot.index.len));
        let lying = lengths(&volume.store.list(&dir)?, &dir);
        for (name, len) in &names {
            match lying.get(name) {
                Some(found) if found == len => {}
                Some(found) => return Err(Error::integrity(format!("{dir}{name} has {found} bytes, not {len}"))),
                None => return Err(Error::integrity(format!("{dir}{name} is missing"))),
            }
        }
        Ok(Self { index, parts, names, tail_digest: snapshot.index.tail_digest })
    }

    /// Bytes of all its objects.
    pub fn bytes(&self) -> u64 {
        self.names.iter().map(|(_, len)| len).sum()
    }

    /// Names of the parts in order.
    pub fn part_names(&self) -> Vec<String> {
        self.names[..self.parts.len()].iter().map(|(name, _)| name.clone()).collect()
    }

    /// Carries all objects into the directory `dir` of `target`; durable when it returns. `None` when something else lies
    /// there under one of their names.
    pub fn carry(&self, target: &Volume, dir: &str, threads: usize, monitor: &dyn Monitor) -> Result<Option<Carried>> {
        let lying = lengths(&target.store.list(dir)?, dir);
        if self.names.iter().any(|(name, len)| lying.get(name).is_some_and(|found| found != len)) {
            return Ok(None);
        }
        let from = self.index.key().rsplit_once('/').map_or("", |(dir, _)| dir);
        let objects: Vec<Object<'_>> = self
            .names
            .iter()
            .map(|(name, len)| {
                let is_there = lying.contains_key(name);
                let (store, key) = match is_there {
                    true => (&*target.store, format!("{dir}{name}")),
                    false => (self.index.store(), format!("{from}/{name}")),
                };
                Object { store, key: key.into(), to: format!("{dir}{name}"), len: *len, is_there }
            })
            .collect();
        let first = self.index.frames().next().transpose().map_err(|e| of_index(e, self.index))?;
        let longest = first.map_or(0, |frame| u64::from(frame.len)).max(RANGE_LEN);
        let by_memory = usize::try_from(AHEAD_LEN_MAX / longest).unwrap_or(usize::MAX);
        let ahead = threads.max(2).min(by_memory.max(2));
        let (jobs, taken) = bounded::<Job<'_>>(ahead);
        std::thread::scope(|scope| {
            for _ in 0..ahead {
                let taken = taken.clone();
                scope.spawn(move || read(&taken));
            }
            drop(taken);
            let ranges = Ranges { load: self, objects: &objects, frames: self.index.frames().peekable(), next: None };
            let carrier = Carrier { target, jobs, ranges, waiting: VecDeque::new(), ahead, monitor };
            // Without jobs, which the carrier has, the readers end.
            carrier.run(&objects, self)
        })
    }
}

fn lengths(items: &[Item], dir: &str) -> BTreeMap<String, u64> {
    items.iter().filter_map(|item| Some((item.key.strip_prefix(dir)?.to_owned(), item.len))).collect()
}

/// An object: where it is read, and where it goes.
struct Object<'a> {
    store: &'a dyn Store,
    key: Arc<str>,
    to: String,
    len: u64,
    /// It lies there already, and is only checked.
    is_there: bool,
}

/// A run of an object under one digest.
#[derive(Clone, Copy)]
struct Piece {
    len: u64,
    /// What it must have; none where only a digest over several says so.
    digest: Option<Digest>,
}

/// Pieces one after another, read at once.
struct Range {
    object: usize,
    offset: u64,
    pieces: Vec<Piece>,
}

/// What was read of a range: its bytes and the digests of its pieces.
type Bytes = (Vec<u8>, Vec<Digest>);

struct Job<'a> {
    store: &'a dyn Store,
    key: Arc<str>,
    range: Range,
    done: Sender<Result<Bytes>>,
}

fn read(jobs: &Receiver<Job<'_>>) {
    for Job { store, key, range, done } in jobs {
        // Nobody waits for it when the copy ended early.
        let _ = done.send(read_range(store, &key, &range));
    }
}

fn read_range(store: &dyn Store, key: &str, range: &Range) -> Result<Bytes> {
    let len: u64 = range.pieces.iter().map(|piece| piece.len).sum();
    let len = usize::try_from(len).map_err(|_| Error::integrity("a piece is too long"))?;
    let mut bytes = vec![0; len];
    store.read_at(key, range.offset, &mut bytes)?;
    let (mut at, mut digests) = (0, Vec::with_capacity(range.pieces.len()));
    for piece in &range.pieces {
        let end = at + usize::try_from(piece.len).map_err(|_| Error::integrity("a piece is too long"))?;
        let read = Digest::of(&bytes[at..end]);
        if let Some(stored) = piece.digest.filter(|stored| *stored != read) {
            let place = range.offset + at as u64;
            return Err(differs(key, place, &stored, &read));
        }
        digests.push(read);
        at = end;
    }
    Ok((bytes, digests))
}

fn differs(key: &str, at: u64, stored: &Digest, read: &Digest) -> Error {
    let (stored, read) = (stored.short(), read.short());
    Error::integrity(format!("{key} at byte {at}: digest differs (stored {stored}…, read {read}…)"))
}

/// The ranges of all objects in order.
struct Ranges<'a> {
    load: &'a Load<'a>,
    objects: &'a [Object<'a>],
    frames: Peekable<Frames<'a>>,
    /// The object whose ranges come, and those that are left of it.
    next: Option<(usize, VecDeque<Range>)>,
}

impl Ranges<'_> {
    fn next(&mut self) -> Result<Option<Range>> {
        loop {
            let at = match &mut self.next {
                Some((at, ranges)) => match ranges.pop_front() {
                    Some(range) => return Ok(Some(range)),
                    None => *at + 1,
                },
                None => 0,
            };
            let pieces = match self.load.parts.get(at) {
                Some(part) => self.part(at, part)?,
                None if at == self.load.parts.len() => self.index()?,
                None => return Ok(None),
            };
            self.next = Some((at, together(at, pieces)));
        }
    }

    fn part(&mut self, at: usize, part: &Part) -> Result<Vec<Piece>> {
        let mut frames: Vec<Frame> = Vec::new();
        while frames.len() < part.frames.min(PART_FRAME_COUNT_MAX) as usize
            && let Some(frame) =
                self.frames.next_if(|frame| frame.as_ref().is_ok_and(|frame| frame.part as usize == at))
        {
            frames.extend(frame);
        }
        if let Some(Err(_)) = self.frames.peek()
            && let Some(Err(e)) = self.frames.next()
        {
            return Err(of_index(e, self.load.index));
        }
        let plain = frames.first().map_or(0, |frame| frame.offset);
        frames_tile(part, frames.iter(), plain).map_err(|e| e.context(&*self.objects[at].key))?;
        let mut pieces: Vec<Piece> =
            frames.iter().map(|f| Piece { len: u64::from(f.stored_len), digest: Some(f.digest) }).collect();
        if part.trailer_len > 0 {
            pieces.push(Piece { len: u64::from(part.trailer_len), digest: None });
        }
        Ok(pieces)
    }

    /// Blocks, then directory and footer.
    fn index(&self) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut at = 0;
        for block in self.load.index.blocks() {
            if block.offset != at {
                return Err(Error::integrity(format!("{}: a gap at byte {at}", self.load.index.key())));
            }
            at += u64::from(block.stored_len);
            pieces.push(Piece { len: u64::from(block.stored_len), digest: Some(block.digest) });
        }
        let len = self.objects.last().map_or(0, |object| object.len).saturating_sub(at);
        pieces.push(Piece { len, digest: Some(self.load.tail_digest) });
        Ok(pieces)
    }
}

/// Pieces one after another from the start of an object, put together to ranges.
fn together(object: usize, pieces: Vec<Piece>) -> VecDeque<Range> {
    let mut ranges: VecDeque<Range> = VecDeque::new();
    let (mut at, mut len) = (0, 0);
    for piece in pieces {
        match ranges.back_mut().filter(|_| len + piece.len <= RANGE_LEN) {
            Some(range) => {
                range.pieces.push(piece);
                len += piece.len;
            }
            None => {
                ranges.push_back(Range { object, offset: at, pieces: vec![piece] });
                len = piece.len;
            }
        }
        at += piece.len;
    }
    ranges
}

/// A range that is being read: its object, whether its pieces are frames of a part, and where it comes.
type Waiting = (usize, Receiver<Result<Bytes>>);

struct Carrier<'a> {
    target: &'a Volume,
    jobs: Sender<Job<'a>>,
    ranges: Ranges<'a>,
    waiting: VecDeque<Waiting>,
    ahead: usize,
    monitor: &'a dyn Monitor,
}

impl Carrier<'_> {
    fn run(mut self, objects: &[Object<'_>], load: &Load<'_>) -> Result<Option<Carried>> {
        let (mut carried, mut pending) = (Carried::default(), VecDeque::new());
        for (n, object) in objects.iter().enumerate() {
            let upload = match object.is_there {
                true => None,
                false => Some(self.target.store.create(&object.to)?),
            };
            let (upload, joined) = match self.object(n, object, upload) {
                // What lies there is not what it should be: it is left alone.
                Err(e) if object.is_there && e.kind() == Kind::Integrity => return Ok(None),
                read => read?,
            };
            if let Some(part) = load.parts.get(n)
                && joined != part.digest
            {
                let at = part.stored_len.saturating_sub(u64::from(part.trailer_len));
                let error = differs(&object.key, at, &part.digest, &joined);
                return if object.is_there { Ok(None) } else { Err(error) };
            }
            carried.objects += 1;
            carried.bytes += object.len;
            carried.kept += u64::from(object.is_there);
            if let Some(upload) = upload {
                pending.push_back(upload.start()?);
                wait(&mut pending, PENDING_COUNT_MAX)?;
            }
        }
        wait(&mut pending, 0)?;
        Ok(Some(carried))
    }

    /// Reads an object to its end, writes it where it is wanted, and gives the digest over those of its pieces.
    fn object(
        &mut self,
        n: usize,
        object: &Object<'_>,
        mut upload: Option<Box<dyn Upload>>,
    ) -> Result<(Option<Box<dyn Upload>>, Digest)> {
        let (mut hasher, mut left) = (blake3::Hasher::new(), object.len);
        while left > 0 {
            check_interrupted(self.monitor)?;
            self.fill()?;
            let range = self.waiting.pop_front().filter(|(of, _)| *of == n);
            let Some((_, range)) = range else {
                return Err(Error::integrity(format!("{}: its pieces do not add up to it", object.key)));
            };
            let (bytes, digests) = range.recv().unwrap_or_else(|_| Err(Error::new(Kind::Other, "a reader stopped")))?;
            if let Some(upload) = &mut upload {
                upload.write(&bytes)?;
            }
            for digest in &digests {
                hasher.update(&digest.0);
            }
            left = left.saturating_sub(bytes.len() as u64);
            self.monitor.advance(0, bytes.len() as u64, object.key.as_bytes());
        }
        Ok((upload, Digest(*hasher.finalize().as_bytes())))
    }

    fn fill(&mut self) -> Result<()> {
        while self.waiting.len() < self.ahead
            && let Some(range) = self.ranges.next()?
        {
            let (done, result) = bounded(1);
            let object = &self.ranges.objects[range.object];
            self.waiting.push_back((range.object, result));
            let job = Job { store: object.store, key: Arc::clone(&object.key), range, done };
            if self.jobs.send(job).is_err() {
                return Err(Error::new(Kind::Other, "the readers stopped"));
            }
        }
        Ok(())
    }
}

/// Waits until at most `count` objects are pending.
fn wait(pending: &mut VecDeque<Box<dyn Pending>>, count: usize) -> Result<()> {
    while pending.len() > count {
        if let Some(first) = pending.pop_front() {
            first.wait()?;
        }
    }
    Ok(())
}

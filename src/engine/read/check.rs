//! Whether what is stored is good: presence, every stored byte, or all the way to contents and tar headers.
//!
//! A fault is noted and the check goes on. Every byte of a snapshot's objects lies under a digest: the index's tail under the
//! record's, its blocks under the tail's, frames and trailers of parts under theirs, `RESTORE.txt` under the record's.

use std::{
    io::Read,
    sync::atomic::{AtomicBool, Ordering},
};

use crossbeam_channel::bounded;
use serde::Serialize;

use super::{
    ahead,
    chain::{Chain, Located},
    content::{self, Contents, Ordered, check_interrupted},
    frame::FrameReader,
    index::IndexReader,
};
use crate::{
    error::{Error, Kind, Result},
    format::{
        index::{Extent, Frame, Part},
        layout::run_dir,
        record::Snapshot,
        tar::{
            PRIVATE_DIR,
            read::{Member, TarReader},
        },
    },
    model::{
        digest::Digest,
        entry::{Entry, EntryKind, Status},
        path, show,
        text::PathText,
    },
    monitor::Monitor,
    volume::Volume,
};

/// So many affected paths are named; more are only counted.
const PATH_COUNT_MAX: usize = 10;
/// A fault list longer than this ends in one line that says so.
const FAULT_COUNT_MAX: usize = 10_000;
/// A part has at most this many frames; see `PART_LEN_MAX` of a writer and the smallest frame.
const PART_FRAME_COUNT_MAX: usize = 1 << 20;

/// How deep a check goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// All objects are there, with their lengths.
    Quick,
    /// And every stored byte has its digest.
    Stored,
    /// And everything decodes to the contents and tar headers the index says.
    Data,
}

/// Something found wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The object's key.
    pub object: String,
    /// Where in it: `frame at byte 81920`, `block at byte 12`, a path.
    pub r#where: String,
    /// What is wrong.
    pub what: String,
    /// How many entries have content there.
    pub affected: u64,
    /// The first of them.
    pub paths: Vec<PathText>,
}

impl Fault {
    /// A fault that affects no entry that is known.
    pub fn new(object: impl Into<String>, r#where: impl Into<String>, what: impl Into<String>) -> Self {
        Self { object: object.into(), r#where: r#where.into(), what: what.into(), affected: 0, paths: Vec::new() }
    }
}

/// Sums of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Objects.
    pub objects: u64,
    /// Bytes read as stored.
    pub stored_bytes: u64,
    /// Frames.
    pub frames: u64,
    /// Tar members held against the index.
    pub members: u64,
    /// Bytes decoded.
    pub content_bytes: u64,
}

impl Checked {
    /// Adds another check's sums.
    pub fn add(&mut self, other: Self) {
        self.objects += other.objects;
        self.stored_bytes += other.stored_bytes;
        self.frames += other.frames;
        self.members += other.members;
        self.content_bytes += other.content_bytes;
    }
}

/// Checks a snapshot. Faults come back; an error is what kept the check itself from going on.
pub fn check(
    volume: &Volume,
    snapshot: &Snapshot,
    depth: Depth,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<(Checked, Vec<Fault>)> {
    let mut check = Check { depth, threads: threads.max(1), monitor, checked: Checked::default(), faults: Vec::new() };
    check.restore_txt(volume, snapshot)?;
    let key = format!("{}{}", run_dir(&snapshot.job, snapshot.run_id), snapshot.index.name);
    check.checked.objects += 1;
    match IndexReader::open(volume, snapshot) {
        Ok(index) => check.objects(volume, &index, snapshot)?,
        Err(e) => check.fault_or(Fault::new(key, "tail", ""), e)?,
    }
    Ok((check.checked, check.faults))
}

/// Errors of this kind are about what is stored; others are about reaching it.
fn is_fault(error: &Error) -> bool {
    matches!(error.kind(), Kind::Integrity | Kind::Other)
}

/// What ends the check of a part, and of all that are left.
fn ends(faults: &PartFaults) -> bool {
    faults.iter().any(|(.., error)| !is_fault(error))
}

struct Check<'a> {
    depth: Depth,
    threads: usize,
    monitor: &'a dyn Monitor,
    checked: Checked,
    faults: Vec<Fault>,
}

impl Check<'_> {
    fn fault(&mut self, fault: Fault) {
        match self.faults.len() {
            n if n < FAULT_COUNT_MAX => self.faults.push(fault),
            FAULT_COUNT_MAX => self.faults.push(Fault::new("", "", "there are more faults, not listed")),
            _ => {}
        }
    }

    fn fault_or(&mut self, mut fault: Fault, error: Error) -> Result<()> {
        if !is_fault(&error) {
            return Err(error);
        }
        fault.what = error.to_string();
        self.fault(fault);
        Ok(())
    }

    fn restore_txt(&mut self, volume: &Volume, snapshot: &Snapshot) -> Result<()> {
        let object = &snapshot.restore_txt;
        let key = format!("{}{}", run_dir(&snapshot.job, snapshot.run_id), object.name);
        self.checked.objects += 1;
        if let Err(e) = self.whole_object(volume, &key, object.len, &object.digest) {
            self.fault_or(Fault::new(key, "object", ""), e)?;
        }
        Ok(())
    }

    fn whole_object(&mut self, volume: &Volume, key: &str, len: u64, digest: &Digest) -> Result<()> {
        has_len(volume.store.head(key)?, len)?;
        if self.depth == Depth::Quick {
            return Ok(());
        }
        let bytes = volume.store.read(key, len)?;
        self.checked.stored_bytes += len;
        let read = Digest::of(&bytes);
        if read == *digest { Ok(()) } else { Err(differs(digest, &read)) }
    }

    fn objects(&mut self, volume: &Volume, index: &IndexReader, snapshot: &Snapshot) -> Result<()> {
        let blocks_good = self.blocks(index)?;
        self.parts(index)?;
        if self.depth == Depth::Data && blocks_good {
            self.tree(index, snapshot.base.is_some())?;
            match Chain::of(volume, snapshot) {
                Ok(chain) => {
                    self.mapped(&chain)?;
                    self.streams(&chain, snapshot)?;
                }
                Err(e) => self.fault_or(Fault::new(index.key(), "chain", ""), e)?,
            }
        }
        Ok(())
    }

    /// Every block of the index; quickly, only those of parts, through which the objects are found.
    fn blocks(&mut self, index: &IndexReader) -> Result<bool> {
        let mut good = true;
        if self.depth == Depth::Quick {
            return Ok(good);
        }
        self.checked.stored_bytes += index.blocks().iter().map(|info| u64::from(info.stored_len)).sum::<u64>();
        for info in index.blocks() {
            check_interrupted(self.monitor)?;
            if let Err(e) = index.check_block(info) {
                good = false;
                let mut fault = Fault::new(index.key(), format!("block at byte {}", info.offset), "");
                if info.section == crate::format::index::Section::Entries {
                    fault.affected = u64::from(info.rows);
                    fault.paths = vec![PathText(info.first_key.clone())];
                }
                self.fault_or(fault, e)?;
            }
        }
        Ok(good)
    }

    /// Parts in order: numbers, lengths, frames without a gap, digests.
    fn parts(&mut self, index: &IndexReader) -> Result<()> {
        let mut frames = index.frames().peekable();
        let threads = if self.depth == Depth::Quick { 1 } else { self.threads };
        let depth = self.depth;
        let (jobs, taken) = bounded::<(Part, String, Vec<Frame>)>(threads);
        let (results, found) = crossbeam_channel::unbounded();
        let (monitor, ended) = (self.monitor, AtomicBool::new(false));
        let fed = std::thread::scope(|scope| {
            for _ in 0..threads {
                let (taken, results) = (taken.clone(), results.clone());
                let ended = &ended;
                scope.spawn(move || {
                    for (part, key, frames) in taken {
                        if ended.load(Ordering::Relaxed) {
                            continue;
                        }
                        let result = check_part(index, depth, &part, &key, (&frames, threads), monitor);
                        ended.fetch_or(ends(&result.1), Ordering::Relaxed);
                        // Nobody listens when the check ended early.
                        let _ = results.send(result);
                    }
                });
            }
            drop((taken, results));
            let mut last: Option<Part> = None;
            let mut plain = 0;
            for n in 0..index.part_count() {
                check_interrupted(self.monitor)?;
                if ended.load(Ordering::Relaxed) {
                    return Ok(());
                }
                self.checked.objects += 1;
                let place = || Fault::new(index.key(), format!("part row {n}"), "");
                let (part, key) = match index.part(n).and_then(|part| Ok((part, index.part_key(&part)?))) {
                    Ok(found) => found,
                    // Without its row the parts that follow are not known either.
                    Err(e) => {
                        self.fault_or(place(), e)?;
                        break;
                    }
                };
                if last.is_none_or(|last| last.stream != part.stream) {
                    plain = 0;
                }
                let follows = match last {
                    Some(last) if last.stream == part.stream => last.number.checked_add(1) == Some(part.number),
                    Some(last) => last.stream < part.stream && part.number == 0,
                    None => part.number == 0,
                };
                if !follows {
                    self.fault_or(place(), Error::integrity("parts are not in order"))?;
                }
                last = Some(part);
                let mut own = Vec::new();
                if depth != Depth::Quick {
                    while own.len() < PART_FRAME_COUNT_MAX
                        && let Some(frame) =
                            frames.next_if(|frame| frame.as_ref().is_ok_and(|frame| u64::from(frame.part) == n))
                    {
                        own.extend(frame);
                    }
                    if let Err(e) = frames_tile(&part, &own, plain) {
                        self.fault_or(place(), e)?;
                    }
                }
                plain += part.plain_len;
                if jobs.send((part, key, own)).is_err() {
                    break;
                }
            }
            drop(jobs);
            if depth != Depth::Quick
                && let Some(frame) = frames.next()
            {
                let place = Fault::new(index.key(), "frames", "");
                self.fault_or(
                    place,
                    frame.err().unwrap_or_else(|| Error::integrity("frames that belong to no part, or out of order")),
                )?;
            }
            Ok(())
        });
        for (sums, faults) in found {
            self.checked.add(sums);
            for (frame, fault, error) in faults {
                let mut fault = fault;
                if let Some(frame) = frame {
                    affected(index, &frame, &mut fault);
                }
                self.fault_or(fault, error)?;
            }
        }
        fed
    }

    /// The tree stream as a tar, member by member against the index.
    fn tree(&mut self, index: &IndexReader, is_increment: bool) -> Result<()> {
        if index.entry_count() == 0 {
            return Ok(());
        }
        let frames = index.frames_from(0, 0)?.map(|frame| Ok((0, frame?)));
        let threads = self.threads;
        let (members, broken) = content::ordered(std::slice::from_ref(index), frames, threads, |ordered| {
            let mut stream = TreeStream { ordered, plain: Vec::new(), at: 0, offset: 0, broken: false, fatal: None };
            self.members(index, is_increment, &mut stream)
        })?;
        self.checked.members += members;
        let mut expected = 0;
        for row in index.rows() {
            let entry = row?.entry;
            if is_increment {
                // Some entries are only in the index, and some directories only in the tar: what has content must be in both.
                expected += u64::from(entry.owns_extent());
                continue;
            }
            let absent = matches!(entry.kind, EntryKind::Socket | EntryKind::Removed)
                || entry.map.is_some()
                || entry.kind == EntryKind::File && entry.status.has(Status::UNREADABLE);
            expected += u64::from(!absent);
        }
        if !broken && members != expected {
            let what = format!("the tar has {members} members, the index {expected} entries");
            self.fault(Fault::new(index.key(), "entries", what));
        }
        Ok(())
    }

    fn members(
        &mut self,
        index: &IndexReader,
        is_increment: bool,
        stream: &mut TreeStream<'_, '_>,
    ) -> Result<(u64, bool)> {
        let (mut count, mut lost) = (0, false);
        let mut last: Option<Entry> = None;
        let mut buf = vec![0; 256 << 10];
        'resync: loop {
            let start = stream.offset;
            let mut reader = TarReader::new(&mut *stream, start);
            loop {
                check_interrupted(self.monitor)?;
                let step = reader.next_member().and_then(|member| match member {
                    None => Ok(None),
                    Some(member) => Ok(Some((digest_of(&mut reader, &member, &mut buf)?, member))),
                });
                match step {
                    Ok(None) => {
                        return Ok((count, lost || stream.broken));
                    }
                    Ok(Some((digest, member))) => {
                        let private = path::is_within(&member.entry.path, PRIVATE_DIR)
                            && index.lookup(&member.entry.path)?.is_none();
                        if private {
                            continue;
                        }
                        if is_increment && member.entry.is_dir() && index.lookup(&member.entry.path)?.is_none() {
                            continue;
                        }
                        count += u64::from(!is_increment || member.entry.stored_len > 0);
                        self.checked.content_bytes += member.entry.stored_len;
                        if let Err(e) = agrees(index, &member, &digest, last.as_ref()) {
                            let mut fault = Fault::new(index.key(), show::name(&member.entry.path), "");
                            fault.affected = 1;
                            fault.paths = vec![PathText(member.entry.path.clone())];
                            self.fault_or(fault, e)?;
                        }
                        last = Some(member.entry);
                    }
                    Err(e) => {
                        if let Some(fatal) = stream.fatal.take() {
                            return Err(fatal);
                        }
                        // A frame that cannot be read was told with its part; a tar that does not parse is a fault of its own.
                        if !stream.broken {
                            self.fault_or(Fault::new(index.key(), format!("tar near byte {}", stream.offset), ""), e)?;
                        }
                        lost = true;
                        if !stream.resync()? {
                            return Ok((count, true));
                        }
                        continue 'resync;
                    }
                }
            }
        }
    }

    /// Contents of an increment that lie elsewhere, or in several places.
    fn mapped(&mut self, chain: &Chain) -> Result<()> {
        let own = chain.runs().len() - 1;
        let mut contents = Contents::new(chain.runs())?;
        for row in chain.last().rows() {
            let mut row = row?;
            row.run = own;
            if row.entry.map.is_none() {
                continue;
            }
            let checked = chain.locate(&row).and_then(|content| {
                let content = content.ok_or_else(|| Error::integrity("it has no content"))?;
                self.digest_is(&mut contents, &content)
            });
            self.checked.content_bytes += row.entry.stored_len;
            if let Err(e) = checked {
                let mut fault = Fault::new(chain.last().key(), show::name(&row.entry.path), "");
                (fault.affected, fault.paths) = (1, vec![PathText(row.entry.path.clone())]);
                self.fault_or(fault, e)?;
            }
        }
        Ok(())
    }

    /// Reads a content and holds it against its digest.
    fn digest_is(&self, contents: &mut Contents<'_>, content: &Located) -> Result<()> {
        let mut hasher = blake3::Hasher::new();
        contents.each(&content.sources, self.threads, self.monitor, |bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        let read = Digest(*hasher.finalize().as_bytes());
        if read == content.digest { Ok(()) } else { Err(differs(&content.digest, &read)) }
    }

    fn streams(&mut self, chain: &Chain, snapshot: &Snapshot) -> Result<()> {
        let index = chain.last();
        for (n, stream) in snapshot.streams.iter().enumerate() {
            let number = u32::try_from(n + 1).map_err(|_| Error::integrity("too many streams"))?;
            let checked = index.stream_extent(number).and_then(|extent| {
                if extent.len != stream.content_bytes || extent.digest != stream.digest {
                    return Err(Error::integrity("index and record do not agree"));
                }
                self.digest_is(&mut Contents::new(chain.runs())?, &chain.locate_stream(number)?)?;
                if stream.places.is_none() && index.frames_from(number, extent.len)?.next().is_some() {
                    return Err(Error::integrity("more is stored than its length"));
                }
                Ok(())
            });
            self.checked.content_bytes += stream.content_bytes;
            if let Err(e) = checked {
                self.fault_or(Fault::new(index.key(), format!("stream {}", stream.name), ""), e)?;
            }
        }
        Ok(())
    }
}

fn differs(stored: &Digest, read: &Digest) -> Error {
    Error::integrity(format!("digest differs (stored {}…, read {}…)", stored.short(), read.short()))
}

fn has_len(found: Option<u64>, len: u64) -> Result<()> {
    match found {
        None => Err(Error::integrity("it is missing")),
        Some(found) if found != len => Err(Error::integrity(format!("it has {found} bytes, not {len}"))),
        Some(_) => Ok(()),
    }
}

/// Whether a part's frames follow each other from its start to its trailer, and its content the part before.
pub fn frames_tile(part: &Part, frames: &[Frame], plain: u64) -> Result<()> {
    let (mut stored, mut content) = (0u64, plain);
    for frame in frames {
        if frame.stream != part.stream || frame.stored_offset != stored || frame.offset != content {
            return Err(Error::integrity(format!("its frames have a gap at byte {stored}")));
        }
        stored = stored.saturating_add(u64::from(frame.stored_len));
        content = frame.end();
    }
    let whole = stored.saturating_add(u64::from(part.trailer_len)) == part.stored_len;
    if !whole || content - plain != part.plain_len || frames.len() != part.frames as usize {
        return Err(Error::integrity("its frames do not add up to it"));
    }
    Ok(())
}

type PartFaults = Vec<(Option<Frame>, Fault, Error)>;

fn check_part(
    index: &IndexReader,
    depth: Depth,
    part: &Part,
    key: &str,
    (frames, readers): (&[Frame], usize),
    monitor: &dyn Monitor,
) -> (Checked, PartFaults) {
    let (mut checked, mut faults) = (Checked::default(), Vec::new());
    let object = |place: String| Fault::new(key, place, "");
    if let Err(e) = index.store().head(key).and_then(|found| has_len(found, part.stored_len)) {
        faults.push((None, object("object".to_owned()), e));
    }
    if depth == Depth::Quick {
        return (checked, faults);
    }
    let mut reader = match FrameReader::new() {
        Ok(reader) => reader,
        Err(e) => return (checked, vec![(None, object("object".to_owned()), e)]),
    };
    let mut hasher = blake3::Hasher::new();
    for (_, frame) in ahead::told(std::slice::from_ref(index), readers, frames.iter().map(|frame| (0, *frame))) {
        if let Err(e) = check_interrupted(monitor) {
            faults.push((None, object("object".to_owned()), e));
        } else if let Err(e) = reader.fetch(index, &frame) {
            faults.push((Some(frame), object(format!("frame at byte {}", frame.stored_offset)), e));
        }
        if ends(&faults) {
            return (checked, faults);
        }
        hasher.update(&frame.digest.0);
        checked.frames += 1;
        checked.stored_bytes += u64::from(frame.stored_len);
        monitor.advance(0, u64::from(frame.stored_len), b"");
    }
    if part.trailer_len > 0 {
        let at = part.stored_len.saturating_sub(u64::from(part.trailer_len));
        match trailer(index, key, at, part.trailer_len) {
            Ok(digest) => {
                hasher.update(&digest.0);
            }
            Err(e) => faults.push((None, object(format!("trailer at byte {at}")), e)),
        }
        checked.stored_bytes += u64::from(part.trailer_len);
    }
    let read = Digest(*hasher.finalize().as_bytes());
    if read != part.digest {
        let at = part.stored_len.saturating_sub(u64::from(part.trailer_len));
        faults.push((None, object(format!("trailer at byte {at}")), differs(&part.digest, &read)));
    }
    (checked, faults)
}

/// The digest of what follows a part's frames, read in pieces.
fn trailer(index: &IndexReader, key: &str, at: u64, len: u32) -> Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut buf = vec![0; 64 << 10];
    let (mut at, end) = (at, at.saturating_add(u64::from(len)));
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buf.len());
        index.store().read_at(key, at, &mut buf[..want])?;
        hasher.update(&buf[..want]);
        at += want as u64;
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// Which entries have content in a frame. What the index itself cannot tell is left out.
fn affected(index: &IndexReader, frame: &Frame, fault: &mut Fault) {
    if let Some(name) = frame.stream.checked_sub(1).and_then(|n| index.streams().get(n as usize)) {
        fault.affected = 1;
        fault.paths = vec![PathText(name.as_str().as_bytes().to_vec())];
        return;
    }
    let first = index.extents_before(frame.offset).ok();
    let end = index.extents_before(frame.end()).ok();
    let (Some(first), Some(mut end)) = (first, end) else { return };
    // A content that begins in the frame and ends behind it.
    let runs_on = |extent: Result<Extent>| extent.is_ok_and(|extent| extent.offset < frame.end());
    end += u64::from(end < index.tree_extent_count() && runs_on(index.extent(end)));
    fault.affected = end - first;
    fault.paths = index.owners(first, end, PATH_COUNT_MAX).unwrap_or_default().into_iter().map(PathText).collect();
}

/// The tree stream as it is decoded.
struct TreeStream<'a, 'b> {
    ordered: &'a mut Ordered<'b>,
    plain: Vec<u8>,
    at: usize,
    /// Where the next byte lies in the stream.
    offset: u64,
    /// A frame could not be read: the stream ends before it.
    broken: bool,
    /// The index itself could not be read on.
    fatal: Option<Error>,
}

impl TreeStream<'_, '_> {
    /// The next frame; false at the end, or before one that cannot be read.
    fn load(&mut self) -> Result<bool> {
        self.ordered.recycle(std::mem::take(&mut self.plain));
        self.at = 0;
        let Some(((_, frame), plain)) = self.ordered.next_frame()? else { return Ok(false) };
        self.offset = frame.offset;
        match plain {
            Ok(plain) => self.plain = plain,
            Err(_) => self.broken = true,
        }
        Ok(!self.broken)
    }

    /// Goes on at the next frame that begins a member; false when there is none.
    fn resync(&mut self) -> Result<bool> {
        self.broken = false;
        self.ordered.recycle(std::mem::take(&mut self.plain));
        self.at = 0;
        while let Some(((_, frame), plain)) = self.ordered.next_frame()? {
            self.offset = frame.offset;
            if let Ok(plain) = plain
                && frame.starts_member
            {
                self.plain = plain;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Read for TreeStream<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.plain.len() {
            if self.broken {
                return Err(std::io::Error::other("a frame is damaged"));
            }
            match self.load() {
                Ok(true) => {}
                Ok(false) if self.broken => {}
                Ok(false) => return Ok(0),
                Err(e) => {
                    let text = e.to_string();
                    self.fatal = Some(e);
                    return Err(std::io::Error::other(text));
                }
            }
        }
        let take = buf.len().min(self.plain.len() - self.at);
        buf[..take].copy_from_slice(&self.plain[self.at..self.at + take]);
        self.at += take;
        self.offset += take as u64;
        Ok(take)
    }
}

/// Reads a member's content and hashes it.
fn digest_of<R: Read>(reader: &mut TarReader<R>, member: &Member, buf: &mut [u8]) -> Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut left = member.entry.stored_len;
    while left > 0 {
        let len = reader.read_data(buf)?;
        if len == 0 {
            return Err(Error::integrity("the member ends too early"));
        }
        hasher.update(&buf[..len]);
        left = left.saturating_sub(len as u64);
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// Tar's order: a directory, what is in it but directories by name, then each directory in it.
fn in_order(last: &Entry, now: &Entry) -> bool {
    let key = |entry: &Entry| -> (Vec<u8>, bool, Vec<u8>) {
        let (dir, name) = path::split(&entry.path);
        if entry.is_dir() { (entry.path.clone(), false, Vec::new()) } else { (dir.to_vec(), true, name.to_vec()) }
    };
    let (a, b) = (key(last), key(now));
    path::cmp_dirs(&a.0, &b.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))).is_lt()
}

fn agrees(index: &IndexReader, member: &Member, digest: &Digest, last: Option<&Entry>) -> Result<()> {
    let said = &member.entry;
    let row = index.lookup(&said.path)?.ok_or_else(|| Error::integrity("the tar has it, the index has not"))?;
    let entry = &row.entry;
    if last.is_some_and(|last| !in_order(last, said)) {
        return Err(Error::integrity("it is not in order in the tar"));
    }
    let fields = [
        ("type", said.kind == entry.kind),
        ("mode", said.mode == entry.mode),
        ("owner", (said.uid, said.gid) == (entry.uid, entry.gid)),
        ("time", said.mtime == entry.mtime),
        ("link", said.link == entry.link),
        ("device", said.rdev == entry.rdev),
        ("size", said.size == entry.size && said.stored_len == entry.stored_len),
        ("sparse map", said.sparse == entry.sparse),
    ];
    if let Some((name, _)) = fields.iter().find(|(_, same)| !same) {
        return Err(Error::integrity(format!("tar header and index do not agree on its {name}")));
    }
    if !entry.status.has(Status::XATTRS) && entry.kind != EntryKind::HardLink {
        let plain = |e: &Entry| {
            let mut xattrs = e.xattrs.clone();
            xattrs.retain(|(name, _)| !name.starts_with(b"system.posix_acl_"));
            xattrs.sort();
            xattrs
        };
        if plain(said) != plain(entry) {
            return Err(Error::integrity("tar header and index do not agree on its attributes"));
        }
    }
    if let Some(extent) = index.extent_of(&row)? {
        if extent.offset != member.data_offset {
            return Err(Error::integrity("its content is not where the index says"));
        }
        if extent.digest != *digest {
            return Err(differs(&extent.digest, digest));
        }
    }
    Ok(())
}

//! Whether what is stored is good: presence, every stored byte, or all the way to contents and tar headers.
//!
//! A fault is noted and the check goes on. Every byte of a snapshot's objects lies under a digest: the index's tail under the
//! record's, its blocks under the tail's, frames and trailers of parts under theirs, `RESTORE.txt` under the record's.

mod part;
mod tree;

use serde::Serialize;

pub use self::part::frames_tile;
use super::{
    chain::{Chain, Located},
    content::{Contents, check_interrupted},
    index::IndexReader,
};
use crate::{
    error::{Error, Kind, Result},
    format::{index::Frame, layout::run_dir, record::Snapshot},
    model::{digest::Digest, show, text::PathText},
    monitor::Monitor,
    volume::Volume,
};

/// So many affected paths are named; more are only counted.
const PATH_COUNT_MAX: usize = 10;
/// A fault list longer than this ends in one line that says so.
const FAULT_COUNT_MAX: usize = 10_000;

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
    let (checked, faults, fetched) = Default::default();
    let mut check = Check { depth, threads: threads.max(1), monitor, checked, faults, fetched };
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

struct Check<'a> {
    depth: Depth,
    threads: usize,
    monitor: &'a dyn Monitor,
    checked: Checked,
    faults: Vec<Fault>,
    fetched: Fetched,
}

/// Frames that were fetched whole for what they hold: each byte of theirs was under its digest, and they are not fetched again.
#[derive(Debug, Default)]
struct Fetched {
    /// Those of the tree, in order.
    tree: Vec<bool>,
    /// Streams, by number.
    streams: Vec<u32>,
}

impl Fetched {
    /// Whether the `nth` frame of the snapshot is among them.
    fn has(&self, nth: usize, frame: &Frame) -> bool {
        let is_read = match frame.stream {
            // They come first.
            0 => self.tree.get(nth) == Some(&true),
            stream => self.streams.contains(&stream),
        };
        // One without content is needed by nothing that reads contents.
        is_read && frame.len > 0
    }
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
        let of_blocks = self.faults.len();
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
        // What is wrong with an object is told before what that does to contents.
        let of_contents = self.faults.split_off(of_blocks);
        self.parts(index)?;
        of_contents.into_iter().for_each(|fault| self.fault(fault));
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
                if stream.places.is_none() {
                    if index.frames_from(number, extent.len)?.next().is_some() {
                        return Err(Error::integrity("more is stored than its length"));
                    }
                    self.fetched.streams.push(number);
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

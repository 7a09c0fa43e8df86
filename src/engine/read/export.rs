//! A stream of a snapshot as it went in: the tree as one tar, a named stream as its bytes.

use std::{collections::VecDeque, io::Write};

use super::{
    chain::Chain,
    content::{self, Contents},
    index::Row,
};
use crate::{
    error::{Error, Result},
    format::tar::{BLOCK_LEN, END_LEN, padded, write},
    model::{
        entry::{Entry, EntryKind, Status},
        path, show,
    },
    monitor::Monitor,
};

fn output(e: std::io::Error) -> Error {
    Error::io("cannot write the output", e)
}

/// Writes bytes `start..end` of a stream to `out`; `end` must not pass the stream's own. One put together from several places is held
/// against its digest when all of it was written.
pub fn write_stream(
    chain: &Chain,
    stream: u32,
    (start, end): (u64, u64),
    threads: usize,
    monitor: &dyn Monitor,
    out: &mut dyn Write,
) -> Result<u64> {
    let mut done = 0;
    let content = chain.locate_stream(stream)?;
    let sources = content.cut(start, end.saturating_sub(start));
    let mut hasher = (content.sources.len() > 1 && sources == content.sources).then(blake3::Hasher::new);
    content::each_source(chain.runs(), &sources, threads, monitor, |bytes| {
        if let Some(hasher) = &mut hasher {
            hasher.update(bytes);
        }
        out.write_all(bytes).map_err(output)?;
        done += bytes.len() as u64;
        monitor.advance(0, bytes.len() as u64, b"");
        Ok(())
    })?;
    if hasher.is_some_and(|hasher| *hasher.finalize().as_bytes() != content.digest.0) {
        return Err(Error::integrity(format!("stream {stream} of snapshot {}: its digest differs", chain.shown())));
    }
    Ok(done)
}

/// What was written of a tree.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// Bytes of tar.
    pub bytes: u64,
    /// Entries that are not as they were, or left out; `.bk/incomplete` in the tar names them.
    pub incomplete: u64,
}

/// Writes the whole tree as one tar to `out`. `incomplete` is how much the newest snapshot says it lacks.
pub fn write_tree(
    chain: &Chain,
    incomplete: u64,
    threads: usize,
    monitor: &dyn Monitor,
    out: &mut dyn Write,
) -> Result<Written> {
    if chain.runs().len() == 1 {
        return Ok(Written { bytes: write_stored(chain, threads, monitor, out)?, incomplete });
    }
    let lacking = incomplete;
    let contents = Contents::new(chain.runs())?;
    let open = vec![(Vec::new(), VecDeque::new())];
    let (done, incomplete, note) = (0, 0, Vec::new());
    let mut tree = Tree { chain, contents, threads, monitor, out, open, done, incomplete, note };
    for row in chain.rows() {
        content::check_interrupted(monitor)?;
        tree.row(&row?)?;
    }
    tree.close_outside(None)?;
    if let more @ 1.. = lacking.saturating_sub(tree.incomplete) {
        let text = format!("and {more} more: names or directories that could not be read, which have no entry\n");
        tree.note.extend_from_slice(text.as_bytes());
        tree.incomplete = lacking;
    }
    if !tree.note.is_empty() {
        let mut member = Vec::new();
        write::note(b"incomplete", &tree.note, &mut member);
        tree.put(&member)?;
    }
    tree.put(&[0; END_LEN])?;
    Ok(Written { bytes: tree.done, incomplete: tree.incomplete })
}

/// Level 0: the tar lies there as it is.
fn write_stored(chain: &Chain, threads: usize, monitor: &dyn Monitor, out: &mut dyn Write) -> Result<u64> {
    let index = chain.last();
    let mut done = 0;
    let frames = index.frames_from(0, 0)?.map(|frame| Ok((0, frame?)));
    content::ordered(chain.runs(), frames, threads, |ordered| {
        while let Some(((_, frame), plain)) = ordered.next_frame()? {
            content::check_interrupted(monitor)?;
            if frame.offset != done {
                return Err(Error::integrity(format!("the tree of snapshot {} has a gap at {done}", index.shown())));
            }
            let plain = plain?;
            out.write_all(&plain).map_err(output)?;
            done += plain.len() as u64;
            monitor.advance(0, plain.len() as u64, b"");
            ordered.recycle(plain);
        }
        Ok(done)
    })
}

/// A tar made anew from rows in the order of the index: a directory's member comes when it is entered, as in a level 0.
struct Tree<'a> {
    chain: &'a Chain,
    contents: Contents<'a>,
    threads: usize,
    monitor: &'a dyn Monitor,
    out: &'a mut dyn Write,
    /// Directories on the way down, each with those in it whose turn has not come.
    open: Vec<(Vec<u8>, VecDeque<Entry>)>,
    done: u64,
    incomplete: u64,
    /// The text of `.bk/incomplete`.
    note: Vec<u8>,
}

impl Tree<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(output)?;
        self.done += bytes.len() as u64;
        Ok(())
    }

    fn header(&mut self, entry: &Entry) -> Result<()> {
        let mut header = Vec::new();
        write::header(entry, &mut header);
        self.put(&header)
    }

    /// Enters the directory `dir`; the ones left on the way get their members. `None` leaves all.
    fn close_outside(&mut self, dir: Option<&[u8]>) -> Result<()> {
        while let Some((own, waiting)) = self.open.last_mut() {
            let inside = dir.is_some_and(|dir| path::is_within(dir, own));
            if inside && dir == Some(own.as_slice()) {
                return Ok(());
            }
            match waiting.pop_front() {
                Some(next) => {
                    self.header(&next)?;
                    self.open.push((next.path, VecDeque::new()));
                }
                None if inside => return Err(self.chain.blame(dir.unwrap_or_default(), "it is in no directory")),
                None => {
                    self.open.pop();
                }
            }
        }
        Ok(())
    }

    fn row(&mut self, row: &Row) -> Result<()> {
        let entry = &row.entry;
        if entry.status.is_incomplete() {
            self.incomplete += 1;
            self.note.extend_from_slice(format!("{}: {}\n", show::name(&entry.path), entry.status.show()).as_bytes());
        }
        if entry.path.is_empty() {
            return self.header(entry);
        }
        let dir = path::split(&entry.path).0;
        self.close_outside(Some(dir))?;
        if entry.is_dir() {
            if let Some((_, waiting)) = self.open.last_mut() {
                waiting.push_back(entry.clone());
            }
            return Ok(());
        }
        if entry.kind == EntryKind::File && entry.status.has(Status::UNREADABLE) {
            return Ok(());
        }
        self.header(entry)?;
        let Some(content) = self.chain.locate(row)? else { return Ok(()) };
        let (out, monitor) = (&mut *self.out, self.monitor);
        self.contents.each(&content.sources, self.threads, monitor, |bytes| {
            out.write_all(bytes).map_err(output)?;
            monitor.advance(0, bytes.len() as u64, b"");
            Ok(())
        })?;
        self.done += entry.stored_len;
        let padding = padded(entry.stored_len) - entry.stored_len;
        self.put(&[0; BLOCK_LEN][..usize::try_from(padding).unwrap_or(0)])
    }
}

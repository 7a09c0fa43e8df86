//! Stores frames in order: cuts parts, ends each with its seek table, and tells the index where everything lies.

use std::{collections::VecDeque, sync::Arc};

use super::{
    framer::StreamEnd,
    index::IndexWriter,
    profile::{Spent, Stage, Watch},
};
use crate::{
    error::{Error, Result},
    format::{
        codec::Codec,
        index::{ChunkRun, Extent, Frame, Part},
        layout::part_name,
        record::{IndexRef, PlaceRows},
        seek_table,
    },
    model::{
        digest::{Digest, Joiner, Piece},
        entry::Entry,
        ids::Name,
    },
    volume::{Pending, Store, Upload},
};

/// A stored frame as a worker hands it over.
pub struct Sealed {
    /// 0 is the tree, 1… named streams.
    pub stream: u32,
    /// Offset in the plain stream.
    pub offset: u64,
    /// Plain length.
    pub len: u32,
    /// The stored bytes.
    pub stored: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// See [`super::framer::Plain`].
    pub starts_member: bool,
    /// See [`super::framer::Plain`].
    pub runs_on: u64,
    /// Content in it, hashed.
    pub contents: Vec<Content>,
    /// Entries that are complete with it.
    pub rows: Vec<Entry>,
    /// Chunks of long contents that are complete with it.
    pub chunks: Vec<ChunkRun>,
    /// Whether the stream ends with it.
    pub ends_stream: bool,
    /// See [`super::framer::Plain`].
    pub stream_end: Option<StreamEnd>,
}

/// A content, or a piece of one, hashed.
pub enum Content {
    /// All of it: an extent.
    Whole(Extent),
    /// A piece: where it lies in the stream, its length, whether it is the last.
    Piece(u64, u64, Piece, bool),
}

/// What was stored.
#[derive(Debug)]
pub struct Stored {
    /// The index object.
    pub index: IndexRef,
    /// Bytes in parts.
    pub stored_bytes: u64,
    /// Names of the parts in order.
    pub parts: Vec<String>,
    /// Digest, length and, of a delta, places of each named stream, in order.
    pub streams: Vec<(Digest, u64, Option<PlaceRows>)>,
}

/// Where parts go and how they are cut.
pub struct Target {
    /// The volume's objects.
    pub store: Arc<dyn Store>,
    /// `data/<job>/<run id>/`
    pub dir: String,
    /// Names of the named streams, from number 1 on.
    pub streams: Vec<Name>,
    /// The codec of all frames.
    pub codec: Codec,
    /// A part is full from this many stored bytes on.
    pub part_len: u64,
}

/// Parts that are being finished at the same time, where that takes time.
const PENDING_COUNT_MAX: usize = 4;

struct Open {
    name: String,
    out: Box<dyn Upload>,
    part: Part,
    digests: blake3::Hasher,
    /// Stored and plain length of each frame, for the seek table.
    frames: Vec<(u32, u32)>,
}

/// Stores frames.
pub struct PartWriter {
    target: Target,
    index: IndexWriter,
    open: Option<Open>,
    /// Parts that are written, but not yet durable.
    pending: VecDeque<Box<dyn Pending>>,
    number: u32,
    stored: Stored,
    /// The pieces so far of a content that runs over frames: offset, length, joined.
    pieces: Option<(u64, u64, Joiner)>,
    watch: Watch,
}

impl PartWriter {
    /// Stores at `target`, the index through `index`.
    pub fn new(target: Target, index: IndexWriter) -> Self {
        let empty = IndexRef { name: String::new(), len: 0, tail_digest: Digest([0; 32]) };
        let stored = Stored { index: empty, stored_bytes: 0, parts: Vec::new(), streams: Vec::new() };
        Self {
            target,
            index,
            open: None,
            pending: VecDeque::new(),
            number: 0,
            stored,
            pieces: None,
            watch: Watch::new(Stage::Wait),
        }
    }

    /// Stores the next frame; gives its buffer back.
    pub fn frame(&mut self, sealed: Sealed) -> Result<Vec<u8>> {
        self.watch.turn(Stage::Write);
        // A frame can be empty: entries after the last byte of a stream.
        if sealed.len > 0 {
            self.store(&sealed)?;
        }
        self.watch.turn(Stage::Index);
        for content in sealed.contents {
            self.content(sealed.stream, content)?;
        }
        for row in sealed.rows {
            self.index.entry(row)?;
        }
        for run in sealed.chunks {
            self.index.chunks(run)?;
        }
        if let Some(StreamEnd { digest, len, places }) = sealed.stream_end {
            self.index.extent(Extent { stream: sealed.stream, offset: 0, len, digest })?;
            let places = self.index.places(&places)?;
            self.stored.streams.push((digest, len, Some(places)));
        }
        if sealed.ends_stream {
            self.watch.turn(Stage::Write);
            self.close()?;
            self.number = 0;
        }
        self.watch.turn(Stage::Wait);
        Ok(sealed.stored)
    }

    /// Ends the last part, waits until all are durable, and ends the index.
    pub fn finish(mut self) -> Result<(Stored, Spent)> {
        self.watch.turn(Stage::Write);
        self.close()?;
        self.wait(0)?;
        self.watch.turn(Stage::Index);
        self.index.flush()?;
        self.watch.turn(Stage::Write);
        self.stored.index = self.index.finish()?;
        Ok((self.stored, self.watch.spent()))
    }

    fn store(&mut self, sealed: &Sealed) -> Result<()> {
        let full = self.open.as_ref().is_some_and(|open| open.part.stored_len >= self.target.part_len);
        let may_cut = sealed.starts_member || sealed.stream > 0 || sealed.runs_on > self.target.part_len;
        if full && may_cut {
            self.close()?;
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.begin(sealed.stream)?,
        };
        let too_long = || Error::integrity("a frame is too long");
        let stored_len = u32::try_from(sealed.stored.len()).map_err(|_| too_long())?;
        self.index.frame(Frame {
            stream: sealed.stream,
            offset: sealed.offset,
            len: sealed.len,
            part: self.index.next_part(),
            stored_offset: open.part.stored_len,
            stored_len,
            digest: sealed.digest,
            starts_member: sealed.starts_member,
        })?;
        open.out.write(&sealed.stored)?;
        open.digests.update(&sealed.digest.0);
        open.frames.push((stored_len, sealed.len));
        open.part.frames += 1;
        open.part.stored_len += u64::from(stored_len);
        open.part.plain_len += u64::from(sealed.len);
        self.open = Some(open);
        Ok(())
    }

    fn begin(&mut self, stream: u32) -> Result<Open> {
        let name = match stream {
            0 => None,
            n => self.target.streams.get(n as usize - 1),
        };
        let name = part_name(name, self.number, self.target.codec);
        let out = self.target.store.create(&format!("{}{name}", self.target.dir))?;
        let part = Part {
            stream,
            number: self.number,
            stored_len: 0,
            plain_len: 0,
            frames: 0,
            trailer_len: 0,
            digest: Digest([0; 32]),
        };
        self.number += 1;
        Ok(Open { name, out, part, digests: blake3::Hasher::new(), frames: Vec::new() })
    }

    fn close(&mut self) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        if matches!(self.target.codec, Codec::Zstd(_)) {
            let table = seek_table::encode(&open.frames);
            open.out.write(&table)?;
            open.digests.update(&Digest::of(&table).0);
            open.part.trailer_len =
                u32::try_from(table.len()).map_err(|_| Error::integrity("a seek table is too long"))?;
            open.part.stored_len += table.len() as u64;
        }
        self.pending.push_back(open.out.start()?);
        self.wait(PENDING_COUNT_MAX)?;
        open.part.digest = Digest(*open.digests.finalize().as_bytes());
        self.stored.stored_bytes += open.part.stored_len;
        self.stored.parts.push(open.name);
        self.index.part(open.part)
    }

    /// Waits until at most `count` parts are pending.
    fn wait(&mut self, count: usize) -> Result<()> {
        while self.pending.len() > count {
            if let Some(first) = self.pending.pop_front() {
                first.wait()?;
            }
        }
        Ok(())
    }

    fn content(&mut self, stream: u32, content: Content) -> Result<()> {
        let extent = match content {
            Content::Whole(extent) => extent,
            Content::Piece(offset, len, piece, last) => {
                let (start, before, mut joiner) = self.pieces.take().unwrap_or((offset, 0, Joiner::default()));
                joiner.push(piece);
                let len = before + len;
                if !last {
                    self.pieces = Some((start, len, joiner));
                    return Ok(());
                }
                let digest =
                    joiner.finish().ok_or_else(|| Error::integrity("a content of one piece was not hashed whole"))?;
                Extent { stream, offset: start, len, digest }
            }
        };
        if stream > 0 {
            self.stored.streams.push((extent.digest, extent.len, None));
        }
        self.index.extent(extent)
    }
}

//! Lays a stream out in frames: each a buffer that is filled in place and handed to the pipeline.
//!
//! Small contents lie whole in one frame. A content longer than a frame begins at the start of one, so that each of its frames is a
//! subtree of its BLAKE3 and the workers can hash them in parallel.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError};

use super::profile::{Spent, Stage, Watch};
use crate::{
    error::{Error, Kind, Result},
    format::index::ChunkRun,
    model::{
        digest::Digest,
        entry::{Entry, Place},
    },
};

/// Content in a frame that is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Where it begins in the frame.
    pub start: usize,
    /// Its length.
    pub len: usize,
    /// What it is.
    pub role: Role,
}

/// What a slice is to its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// All of it, for a worker to hash.
    Whole,
    /// All of it, hashed while it was warm in the cache.
    Hashed(Digest),
    /// A piece at this offset; others come before or after it.
    Piece {
        /// Offset in the content.
        offset: u64,
        /// Whether it is the last.
        last: bool,
    },
}

/// The content of a stream that is stored as a delta.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamEnd {
    /// Digest of the content.
    pub digest: Digest,
    /// Its length, bytes.
    pub len: u64,
    /// Where it lies.
    pub places: Vec<Place>,
}

/// A frame on its way to a worker.
pub struct Plain {
    /// Place in the order of all frames.
    pub number: u64,
    /// 0 is the tree, 1… named streams.
    pub stream: u32,
    /// Offset of its first byte in the plain stream.
    pub offset: u64,
    /// The buffer; the first `len` bytes count.
    pub buf: Vec<u8>,
    /// Length of its content.
    pub len: usize,
    /// Whether it begins with a member's header, or begins a stream.
    pub starts_member: bool,
    /// Length of the content that runs on from the frame before; 0 when none does.
    pub runs_on: u64,
    /// Content in it, in order.
    pub slices: Vec<Slice>,
    /// Entries that are complete with this frame, in order.
    pub rows: Vec<Entry>,
    /// Chunks of long contents that are complete with this frame, in the order of the entries.
    pub chunks: Vec<ChunkRun>,
    /// Whether the stream ends with it.
    pub ends_stream: bool,
    /// What the stream was, when it is a delta and ends here.
    pub stream_end: Option<StreamEnd>,
}

impl Plain {
    /// A frame with nothing in it, not even a buffer.
    fn empty(number: u64, stream: u32, offset: u64, starts_member: bool, runs_on: u64) -> Self {
        Self {
            number,
            stream,
            offset,
            buf: Vec::new(),
            len: 0,
            starts_member,
            runs_on,
            slices: Vec::new(),
            rows: Vec::new(),
            chunks: Vec::new(),
            ends_stream: false,
            stream_end: None,
        }
    }
}

/// Fills frames.
pub struct Framer<'a> {
    frame_len: usize,
    out: Sender<Plain>,
    pool: Receiver<Vec<u8>>,
    /// Does a worker's step when no buffer is free; false when there was nothing to do.
    help: &'a mut dyn FnMut() -> Result<bool>,
    /// Whether small contents are hashed here, where they are warm. With many workers the reading thread sets the pace, and they hash.
    hash_small: bool,
    frame: Plain,
    watch: Watch,
}

/// Contents up to this length are still in a core's own cache when they have just been read, bytes.
const SMALL_LEN_MAX: usize = 256 << 10;

/// How often a thread that waits for a buffer looks whether there is work, or another thread has failed.
const WAIT: Duration = Duration::from_millis(1);

/// The pipeline has stopped: the cause is with the thread that stopped.
pub fn stopped() -> Error {
    Error::new(Kind::Other, "the pipeline has stopped")
}

impl<'a> Framer<'a> {
    /// A framer for frames of `frame_len` bytes that takes empty buffers from `pool` and sends full ones to `out`.
    pub fn new(
        frame_len: usize,
        out: Sender<Plain>,
        pool: Receiver<Vec<u8>>,
        help: &'a mut dyn FnMut() -> Result<bool>,
    ) -> Result<Self> {
        let buf = pool.recv().map_err(|_| stopped())?;
        let frame = Plain { buf, ..Plain::empty(0, 0, 0, true, 0) };
        Ok(Self { frame_len, out, pool, help, hash_small: false, frame, watch: Watch::new(Stage::Read) })
    }

    /// Hashes small contents in this thread.
    #[must_use]
    pub fn hashing_small(mut self, yes: bool) -> Self {
        self.hash_small = yes;
        self
    }

    /// From now on the reading thread is at `stage`; gives what it was at. Reading, unless another is named.
    pub fn turn(&mut self, stage: Stage) -> Stage {
        self.watch.turn(stage)
    }

    /// What the reading thread has spent.
    pub fn spent(&mut self) -> Spent {
        self.watch.spent()
    }

    /// Begins stream `stream`; the one before must be ended.
    pub fn begin(&mut self, stream: u32) {
        self.frame.stream = stream;
    }

    /// Length of a frame.
    pub fn frame_len(&self) -> usize {
        self.frame_len
    }

    /// Offset in the plain stream of the next byte.
    pub fn offset(&self) -> u64 {
        self.frame.offset + self.frame.len as u64
    }

    /// Makes room for `len` bytes that must not straddle frames; `len` is at most a frame.
    pub fn reserve(&mut self, len: usize) -> Result<()> {
        if self.frame.len + len > self.frame_len { self.cut(true, 0) } else { Ok(()) }
    }

    /// Appends bytes, over as many frames as they need.
    pub fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = self.frame_len - self.frame.len;
            if room == 0 {
                self.cut(false, bytes.len() as u64)?;
                continue;
            }
            let now = room.min(bytes.len());
            self.frame.buf[self.frame.len..self.frame.len + now].copy_from_slice(&bytes[..now]);
            self.frame.len += now;
            bytes = &bytes[now..];
        }
        Ok(())
    }

    /// Appends zeros up to a multiple of `block`, within the frame: `block` divides the frame's length.
    pub fn pad(&mut self, block: usize) {
        let end = self.frame.len.next_multiple_of(block).min(self.frame_len);
        self.frame.buf[self.frame.len..end].fill(0);
        self.frame.len = end;
    }

    /// Where the next byte goes in the frame: for [`Self::rewind`].
    pub fn mark(&self) -> usize {
        self.frame.len
    }

    /// Takes back what was put since `mark`, which must be of this frame.
    pub fn rewind(&mut self, mark: usize) {
        self.frame.len = mark;
    }

    /// The rest of the frame, to read into; [`Self::advance`] says how much was read.
    pub fn spare(&mut self) -> &mut [u8] {
        &mut self.frame.buf[self.frame.len..]
    }

    /// Counts bytes read into [`Self::spare`].
    pub fn advance(&mut self, len: usize) {
        self.frame.len += len;
    }

    /// Says that the last `len` bytes are content.
    pub fn slice(&mut self, len: usize, role: Role) {
        let start = self.frame.len - len;
        let role = match role {
            Role::Whole if self.hash_small && len <= SMALL_LEN_MAX => Role::Hashed(self.digest(len)),
            role => role,
        };
        self.frame.slices.push(Slice { start, len, role });
    }

    /// Adds an entry: complete, in order.
    pub fn row(&mut self, row: Entry) {
        self.frame.rows.push(row);
    }

    /// Adds chunks of a content: in order, before the content's own row or with it.
    pub fn chunks(&mut self, run: ChunkRun) {
        if !run.chunks.is_empty() {
            self.frame.chunks.push(run);
        }
    }

    /// The digest of the last `len` bytes, which are in this frame.
    pub fn digest(&mut self, len: usize) -> Digest {
        let stage = self.watch.turn(Stage::Hash);
        let digest = Digest::of(&self.frame.buf[self.frame.len - len..self.frame.len]);
        self.watch.turn(stage);
        digest
    }

    /// The last `len` bytes, which are in this frame.
    pub fn last(&self, len: usize) -> &[u8] {
        &self.frame.buf[self.frame.len - len..self.frame.len]
    }

    /// How many entries wait in the frame.
    pub fn row_count(&self) -> usize {
        self.frame.rows.len()
    }

    /// Sends the frame and begins the next, which starts with a member's header or inside content of `runs_on` bytes.
    pub fn cut(&mut self, starts_member: bool, runs_on: u64) -> Result<()> {
        if self.frame.len == 0 && self.frame.rows.is_empty() && self.frame.chunks.is_empty() {
            (self.frame.starts_member, self.frame.runs_on) = (starts_member, runs_on);
            return Ok(());
        }
        self.send(self.offset(), starts_member, runs_on)
    }

    /// Ends a stream that is a delta.
    pub fn end_delta(&mut self, end: StreamEnd) -> Result<()> {
        self.frame.stream_end = Some(end);
        self.end_stream()
    }

    /// Ends the stream; the next one begins at offset 0.
    pub fn end_stream(&mut self) -> Result<()> {
        self.frame.ends_stream = true;
        self.send(0, true, 0)
    }

    fn send(&mut self, offset: u64, starts_member: bool, runs_on: u64) -> Result<()> {
        let next = Plain::empty(self.frame.number + 1, self.frame.stream, offset, starts_member, runs_on);
        self.out.send(std::mem::replace(&mut self.frame, next)).map_err(|_| stopped())?;
        let stage = self.watch.turn(Stage::Wait);
        self.frame.buf = self.buffer()?;
        self.watch.turn(stage);
        Ok(())
    }

    /// A free buffer; while there is none, this thread does a worker's work.
    fn buffer(&mut self) -> Result<Vec<u8>> {
        loop {
            match self.pool.try_recv() {
                Ok(buf) => return Ok(buf),
                Err(TryRecvError::Disconnected) => return Err(stopped()),
                Err(TryRecvError::Empty) => {}
            }
            self.watch.turn(Stage::Away);
            let helped = (self.help)()?;
            self.watch.turn(Stage::Wait);
            if !helped && let Ok(buf) = self.pool.recv_timeout(WAIT) {
                return Ok(buf);
            }
        }
    }
}

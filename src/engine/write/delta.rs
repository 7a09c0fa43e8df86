//! A long content against its previous version: chunk by chunk, in segments, in one pass.
//!
//! Chunks of the old version come from its index, in order, and only a window of them is held; what has one's identity is a copy of it, the rest is
//! new. A segment's new bytes are held until it is full. Memory: a segment, and about 90 bytes for each chunk of the window.

use std::collections::{HashMap, VecDeque};

use super::chunk::{Cutter, Key, Lengths};
use crate::{
    engine::read::chain::{Chain, Located},
    error::Result,
    format::{
        delta::Line,
        index::{Chunk, ChunkId, ChunkRun},
    },
    model::{digest::Digest, entry::Place},
};

/// Chunks of the old version that are held: those of about 28 GiB around where the new one is.
const WINDOW_COUNT_MAX: usize = 1 << 19;

/// Shorter frames than this are only used by tests, bytes.
const TEST_FRAME_LEN: usize = 256 << 10;
/// A segment is at most this long, bytes.
const SEGMENT_LEN_MAX: u64 = 64 << 20;

/// How contents are compared.
#[derive(Clone)]
pub struct Settings {
    /// What identities of chunks depend on: the same in all of a chain.
    pub key: Key,
    /// Lengths of chunks.
    pub lengths: Lengths,
    /// A segment's content, bytes.
    pub segment_len: u64,
}

impl Settings {
    /// For frames of `frame_len` bytes; `random` is the chain's own.
    pub fn new(random: &[u8; 32], frame_len: usize) -> Self {
        // Frames this short are for tests, whose contents are short too.
        let lengths = match frame_len {
            0..TEST_FRAME_LEN => {
                let min = (frame_len / 64).max(64);
                Lengths { min, max: 3 * min }
            }
            _ => Lengths::CONTENT,
        };
        let segment_len = (frame_len as u64 * 16).min(SEGMENT_LEN_MAX);
        Self { key: Key::new(random), lengths, segment_len }
    }

    /// The same for contents that change in place, such as a block device's.
    #[must_use]
    pub fn fixed(&self) -> Self {
        let lengths = if self.lengths == Lengths::CONTENT { Lengths::FIXED } else { self.lengths };
        Self { lengths, ..self.clone() }
    }
}

/// The previous version of a content.
pub struct Old<'a> {
    chain: &'a Chain,
    content: Located,
    /// Where each of its sources begins: a content written here and there for long has very many.
    starts: Vec<u64>,
    chunks: Box<dyn Iterator<Item = Result<ChunkRun>> + 'a>,
    /// Where the next chunk to load begins.
    loaded: u64,
    held: VecDeque<(u64, Chunk)>,
    by_id: HashMap<ChunkId, u64>,
    by_offset: HashMap<u64, Chunk>,
}

impl<'a> Old<'a> {
    /// The content at `content`, of which `chunks` were noted.
    pub fn new(chain: &'a Chain, content: Located, chunks: impl Iterator<Item = Result<ChunkRun>> + 'a) -> Self {
        Self {
            chain,
            starts: content.starts(),
            content,
            chunks: Box::new(chunks),
            loaded: 0,
            held: VecDeque::new(),
            by_id: HashMap::new(),
            by_offset: HashMap::new(),
        }
    }

    /// Moves the window so that it lies around `offset`.
    fn advance(&mut self, offset: u64) -> Result<()> {
        loop {
            let behind = self.held.iter().take(1).any(|(at, _)| *at < offset);
            let ahead = self.held.back().is_some_and(|(at, _)| *at > offset);
            if self.held.len() >= WINDOW_COUNT_MAX && (ahead || !behind) {
                return Ok(());
            }
            let Some(run) = self.chunks.next().transpose()? else { return Ok(()) };
            for chunk in run.chunks {
                self.by_id.entry(chunk.id).or_insert(self.loaded);
                self.by_offset.insert(self.loaded, chunk);
                self.held.push_back((self.loaded, chunk));
                self.loaded += u64::from(chunk.len);
            }
            while self.held.len() > WINDOW_COUNT_MAX + WINDOW_COUNT_MAX / 8 {
                let Some((at, chunk)) = self.held.pop_front() else { break };
                self.by_offset.remove(&at);
                if self.by_id.get(&chunk.id) == Some(&at) {
                    self.by_id.remove(&chunk.id);
                }
            }
        }
    }

    /// Where the old version has this chunk: at `expected` if it is there.
    fn find(&self, chunk: &Chunk, expected: u64) -> Option<u64> {
        if self.by_offset.get(&expected) == Some(chunk) {
            return Some(expected);
        }
        let found = *self.by_id.get(&chunk.id)?;
        (self.by_offset.get(&found) == Some(chunk)).then_some(found)
    }

    /// The places of `len` bytes of it from `from` on.
    fn places(&self, from: u64, len: u64) -> impl Iterator<Item = Place> + '_ {
        self.content.cut_by(&self.starts, from, len).into_iter().map(|source| Place {
            seq: self.chain.run(source.run).seq(),
            stream: source.stream,
            offset: source.offset,
            len: source.len,
        })
    }

    /// The places of all of it.
    pub fn all(&self) -> Vec<Place> {
        self.places(0, u64::MAX).collect()
    }

    /// What it is.
    pub fn content(&self) -> &Located {
        &self.content
    }
}

/// The chunks of a content that is stored whole, noted for the next increment.
pub struct Noted<'a> {
    cutter: Cutter,
    key: &'a Key,
    chunks: Vec<Chunk>,
}

impl<'a> Noted<'a> {
    /// Nothing noted yet.
    pub fn new(settings: &'a Settings) -> Self {
        Self { cutter: Cutter::new(settings.lengths), key: &settings.key, chunks: Vec::new() }
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        let Self { cutter, key, chunks } = self;
        cutter.feed(bytes, |bytes| chunks.push(chunk_of(key, bytes)));
    }

    /// The chunks found since the last call.
    pub fn take(&mut self) -> Vec<Chunk> {
        std::mem::take(&mut self.chunks)
    }

    /// The rest of the chunks.
    pub fn finish(mut self) -> Vec<Chunk> {
        let Self { cutter, key, chunks } = &mut self;
        cutter.finish(|bytes| chunks.push(chunk_of(key, bytes)));
        self.chunks
    }
}

fn chunk_of(key: &Key, bytes: &[u8]) -> Chunk {
    Chunk { len: u32::try_from(bytes.len()).unwrap_or(u32::MAX), id: key.identify(bytes) }
}

/// Stores a segment: lines, new bytes. Gives the offset at which the new bytes lie in the plain stream.
pub type Emit<'e> = dyn FnMut(&[Line], &[u8]) -> Result<u64> + 'e;

/// A content being compared.
pub struct Delta<'a> {
    cutter: Cutter,
    state: State<'a>,
    segment_len: u64,
    segments: u64,
    hasher: blake3::Hasher,
    /// 0 is the tree, 1… named streams.
    stream: u32,
    places: Vec<Place>,
}

struct State<'a> {
    key: &'a Key,
    old: Old<'a>,
    /// Where the next chunk begins.
    offset: u64,
    /// Where the old version goes on after the last chunk that was found.
    expected: u64,
    /// Whether all chunks so far lie where they did.
    same: bool,
    lines: Vec<Line>,
    data: Vec<u8>,
    chunks: Vec<Chunk>,
    failed: Option<crate::error::Error>,
}

impl State<'_> {
    fn chunk(&mut self, bytes: &[u8]) {
        let chunk = chunk_of(self.key, bytes);
        let len = u64::from(chunk.len);
        if let Err(e) = self.old.advance(self.offset) {
            self.failed.get_or_insert(e);
        }
        let line = match self.old.find(&chunk, self.expected) {
            Some(from) => {
                self.same &= from == self.offset;
                self.expected = from + len;
                Line::Copy { offset: self.offset, len, from }
            }
            None => {
                self.same = false;
                // A chunk that changed in place: what follows it is likely where it was.
                self.expected += len;
                self.data.extend_from_slice(bytes);
                Line::Data { offset: self.offset, len }
            }
        };
        Line::push(&mut self.lines, line);
        self.offset += len;
        self.chunks.push(chunk);
    }
}

/// What a comparison came to.
pub struct Compared<'a> {
    /// Digest of the new version.
    pub digest: Digest,
    /// Where it lies.
    pub places: Vec<Place>,
    /// Its length, bytes.
    pub len: u64,
    /// Whether it is the old version, and nothing was stored.
    pub same: bool,
    /// The old version.
    pub old: Old<'a>,
}

impl<'a> Delta<'a> {
    /// Compares what is pushed with `old`; new bytes will lie in stream `stream`.
    pub fn new(settings: &'a Settings, old: Old<'a>, stream: u32) -> Self {
        let state = State {
            key: &settings.key,
            old,
            offset: 0,
            expected: 0,
            same: true,
            lines: Vec::new(),
            data: Vec::new(),
            chunks: Vec::new(),
            failed: None,
        };
        Self {
            cutter: Cutter::new(settings.lengths),
            state,
            segment_len: settings.segment_len,
            segments: 0,
            hasher: blake3::Hasher::new(),
            stream,
            places: Vec::new(),
        }
    }

    /// Takes the next bytes, not many more than a chunk's; gives full segments to `emit`.
    pub fn push(&mut self, bytes: &[u8], emit: &mut Emit<'_>) -> Result<()> {
        self.hasher.update(bytes);
        let Self { cutter, state, .. } = self;
        cutter.feed(bytes, |chunk| state.chunk(chunk));
        let content: u64 = self.state.lines.iter().map(Line::content_len).sum();
        if content >= self.segment_len && !self.is_undecided() { self.emit(emit) } else { Ok(()) }
    }

    /// Whether all is as it was so far: nothing is stored till that is known not to be so.
    fn is_undecided(&self) -> bool {
        self.state.same && self.segments == 0 && self.state.chunks.len() < WINDOW_COUNT_MAX
    }

    /// The chunks found since the last call; none as long as the content may turn out to be the old version.
    pub fn take_chunks(&mut self) -> Vec<Chunk> {
        if self.is_undecided() { Vec::new() } else { std::mem::take(&mut self.state.chunks) }
    }

    fn emit(&mut self, emit: &mut Emit<'_>) -> Result<()> {
        let state = &mut self.state;
        if let Some(e) = state.failed.take() {
            return Err(e);
        }
        let mut at = emit(&state.lines, &state.data)?;
        for line in std::mem::take(&mut state.lines) {
            match line {
                Line::Copy { len, from, .. } => {
                    for place in state.old.places(from, len) {
                        push_place(&mut self.places, place);
                    }
                }
                Line::Data { len, .. } => {
                    push_place(&mut self.places, Place { seq: 0, stream: self.stream, offset: at, len });
                    at += len;
                }
            }
        }
        state.data.clear();
        self.segments += 1;
        Ok(())
    }

    /// Ends the content. What is all the same and was not stored in part is left out, unless `always`.
    pub fn finish(mut self, always: bool, emit: &mut Emit<'_>) -> Result<(Compared<'a>, Vec<Chunk>)> {
        let Self { cutter, state, .. } = &mut self;
        cutter.finish(|chunk| state.chunk(chunk));
        let digest = Digest(*self.hasher.finalize().as_bytes());
        let same = self.state.same && digest == self.state.old.content.digest;
        if !same || always || self.segments > 0 {
            self.emit(emit)?;
        } else {
            self.places = self.state.old.all();
        }
        let same = same && self.segments == 0;
        let chunks = std::mem::take(&mut self.state.chunks);
        let Self { places, state: State { old, offset, .. }, .. } = self;
        Ok((Compared { digest, places, len: offset, same, old }, chunks))
    }
}

/// Adds a place: to the one before, when it follows it.
pub fn push_place(places: &mut Vec<Place>, place: Place) {
    match places.last_mut() {
        Some(last)
            if (last.seq, last.stream) == (place.seq, place.stream) && last.offset + last.len == place.offset =>
        {
            last.len += place.len;
        }
        _ => places.push(place),
    }
}

//! Where the bytes of a file lie: its holes, its runs of data, and the frames that hold them.

use std::sync::{Arc, Weak};

use rustix::io::Errno;

use super::{Answer, snap::Opened};
use crate::{
    engine::read::{
        chain::{Located, Source},
        index::Numbered,
    },
    error::Error,
    format::index::Frame,
    model::entry::{Run, Status},
};

/// The content of a file. Many are kept, so it does not keep its chain open.
pub struct Content {
    /// The snapshot it belongs to.
    opened: Weak<Opened>,
    /// Its length with holes.
    pub size: u64,
    /// Its runs of data, when it is sparse, and how much data lies before each.
    runs: Option<Vec<(Run, u64)>>,
    /// Where its data lies, and how much of it lies before each.
    sources: Vec<(Source, u64)>,
    /// What could not be read when the snapshot was taken.
    damaged: Vec<Run>,
    /// Whether none of it could be.
    is_unreadable: bool,
}

/// A content that is read, and its snapshot, open that long.
pub struct Reading {
    /// Where it lies.
    pub content: Arc<Content>,
    /// The snapshot.
    pub opened: Arc<Opened>,
}

/// A frame, and which snapshot of the chain stores it.
#[derive(Clone)]
pub struct Stored {
    /// The chain.
    pub opened: Arc<Opened>,
    /// Which of its snapshots.
    pub run: usize,
    /// The frame.
    pub frame: Frame,
}

/// A piece of what was asked for.
pub enum Piece {
    /// A hole.
    Zeros(usize),
    /// Bytes `from..from + len` of a frame.
    Data {
        /// The frame.
        stored: Stored,
        /// Where in it.
        from: usize,
        /// How much.
        len: usize,
    },
}

fn sums<T>(items: Vec<T>, len: impl Fn(&T) -> u64) -> Vec<(T, u64)> {
    let mut sum = 0u64;
    let add = |item: T| {
        let before = sum;
        sum = sum.saturating_add(len(&item));
        (item, before)
    };
    items.into_iter().map(add).collect()
}

impl Content {
    /// Of a file of the tree.
    pub fn of_row(opened: &Arc<Opened>, row: &Numbered) -> Answer<Self> {
        let index = opened.chain.run(row.run);
        let located = opened.chain.locate(&index.row_of(row)?)?;
        // No content, no map of holes: nothing was stored of it.
        let is_unreadable =
            row.status.has(Status::UNREADABLE) || located.is_none() && row.sparse.is_none() && row.size > 0;
        let runs = row.sparse.clone().map(|runs| sums(runs, |run| run.len));
        Ok(Self {
            size: row.size,
            runs,
            sources: Self::sources(located),
            damaged: row.damaged.clone(),
            is_unreadable,
            opened: Arc::downgrade(opened),
        })
    }

    /// Of a stream.
    pub fn of_stream(opened: &Arc<Opened>, stream: u32) -> Answer<Self> {
        let size = opened.chain.last().stream_extent(stream)?.len;
        let sources = Self::sources(Some(opened.chain.locate_stream(stream)?));
        Ok(Self {
            opened: Arc::downgrade(opened),
            size,
            runs: None,
            sources,
            damaged: Vec::new(),
            is_unreadable: false,
        })
    }

    fn sources(located: Option<Located>) -> Vec<(Source, u64)> {
        sums(located.map(|located| located.sources).unwrap_or_default(), |source| source.len)
    }

    /// The snapshot it belongs to, while that is open.
    pub fn opened(&self) -> Option<Arc<Opened>> {
        self.opened.upgrade()
    }

    /// About how much memory it takes, bytes.
    pub fn memory(&self) -> u64 {
        let runs = self.runs.as_ref().map_or(0, Vec::len) + self.damaged.len();
        256 + (runs * size_of::<(Run, u64)>() + self.sources.len() * size_of::<(Source, u64)>()) as u64
    }

    /// What makes up `offset..offset + len`, cut off at the end of the file.
    pub fn pieces(&self, opened: &Arc<Opened>, offset: u64, len: u64) -> Answer<Vec<Piece>> {
        let end = offset.saturating_add(len).min(self.size);
        let mut pieces = Vec::new();
        if offset >= end {
            return Ok(pieces);
        }
        let touches = |run: &Run| run.offset < end && offset < run.end();
        if self.is_unreadable || self.damaged.iter().any(touches) {
            return Err(Errno::IO.into());
        }
        let Some(runs) = &self.runs else {
            self.data(opened, (offset, end), &mut pieces)?;
            return Ok(pieces);
        };
        let (mut at, first) = (offset, runs.partition_point(|(run, _)| run.end() <= offset));
        for (run, before) in runs[first..].iter().take_while(|(run, _)| run.offset < end) {
            let (from, to) = (run.offset.max(at), run.end().min(end));
            zeros(&mut pieces, from - at);
            self.data(opened, (before + (from - run.offset), before + (to - run.offset)), &mut pieces)?;
            at = to;
        }
        zeros(&mut pieces, end - at);
        Ok(pieces)
    }

    /// The frames of data `from..to`.
    fn data(&self, opened: &Arc<Opened>, (from, to): (u64, u64), pieces: &mut Vec<Piece>) -> Answer<()> {
        let short = || Error::integrity("a content is shorter than its entry says");
        let mut at = from;
        while at < to {
            let (stored, plain_at, source_end) = self.frame_at(opened, at)?.ok_or_else(short)?;
            let frame = stored.frame;
            let end = to.min(source_end).min(at + (frame.end() - plain_at));
            if end <= at {
                return Err(short().into());
            }
            let fit = |n: u64| usize::try_from(n).map_err(|_| short());
            pieces.push(Piece::Data { from: fit(plain_at - frame.offset)?, len: fit(end - at)?, stored });
            at = end;
        }
        Ok(())
    }

    /// The frame that holds byte `at` of the data, that byte's offset in the stream, and where its source ends in the data.
    fn frame_at(&self, opened: &Arc<Opened>, at: u64) -> Answer<Option<(Stored, u64, u64)>> {
        let n = self.sources.partition_point(|(source, before)| before + source.len <= at);
        let Some((source, before)) = self.sources.get(n) else { return Ok(None) };
        let plain_at = source.offset.saturating_add(at - before);
        let frame = opened.chain.run(source.run).frame_at(source.stream, plain_at)?;
        let stored = Stored { opened: Arc::clone(opened), run: source.run, frame };
        Ok(Some((stored, plain_at, before + source.len)))
    }

    /// The frames that follow byte `offset` of the file, until they hold `len` bytes.
    pub fn frames_after(&self, opened: &Arc<Opened>, offset: u64, len: u64) -> Answer<Vec<Stored>> {
        let mut at = self.data_before(offset);
        let end = at.saturating_add(len);
        let mut frames: Vec<Stored> = Vec::new();
        while at < end {
            let Some((stored, plain_at, source_end)) = self.frame_at(opened, at)? else { break };
            at = source_end.min(at + (stored.frame.end() - plain_at)).max(at + 1);
            frames.push(stored);
        }
        Ok(frames)
    }

    fn data_before(&self, offset: u64) -> u64 {
        let Some(runs) = &self.runs else { return offset };
        let n = runs.partition_point(|(run, _)| run.offset <= offset);
        let Some((run, before)) = n.checked_sub(1).map(|n| runs[n]) else { return 0 };
        before + (offset - run.offset).min(run.len)
    }

    /// How much data there is.
    pub fn data_len(&self) -> u64 {
        self.sources.last().map_or(0, |(source, before)| before + source.len)
    }

    /// The next data from `offset` on, or the next hole; the end of the file is a hole.
    pub fn seek(&self, offset: u64, to_data: bool) -> Answer<u64> {
        if offset >= self.size {
            return Err(Errno::NXIO.into());
        }
        let Some(runs) = &self.runs else { return Ok(if to_data { offset } else { self.size }) };
        let next = runs.get(runs.partition_point(|(run, _)| run.end() <= offset)).map(|(run, _)| *run);
        match (next, to_data) {
            (Some(run), true) => Ok(run.offset.max(offset)),
            (None, true) => Err(Errno::NXIO.into()),
            (Some(run), false) if run.offset <= offset => Ok(run.end()),
            (_, false) => Ok(offset),
        }
    }
}

fn zeros(pieces: &mut Vec<Piece>, len: u64) {
    if len > 0 {
        // No more than was asked for at once.
        pieces.push(Piece::Zeros(usize::try_from(len).unwrap_or(usize::MAX)));
    }
}

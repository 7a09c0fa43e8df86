//! Where contents lie: extents, places, frames and parts.

use std::ops::Range;

use super::{
    Frames, IndexReader, Row,
    block::{Block, block_with},
    damaged,
};
use crate::{
    error::Result,
    format::{
        index::{Extent, Frame, Part, Section},
        layout::part_name,
    },
    model::{
        entry::{Map, Place},
        show,
    },
};

impl IndexReader {
    /// The places a map names, in the order of the content.
    pub fn places(&self, map: &Map, len: u64) -> Result<Vec<Place>> {
        self.place_rows(map.first, map.count, len)
    }

    fn place_rows(&self, first: u64, count: u64, len: u64) -> Result<Vec<Place>> {
        let wrong = || damaged(&format!("the index of snapshot {} has not the places a map names", self.shown));
        let (mut next, end) = (first, first.saturating_add(count));
        let mut places = Vec::new();
        while next < end {
            let (info, at) = block_with(self.blocks_of(Section::Places), next).ok_or_else(wrong)?;
            let block = self.block(info)?;
            let Block::Places(rows) = &*block else { return Err(wrong()) };
            let want = usize::try_from(end - next).unwrap_or(usize::MAX).min(rows.len().saturating_sub(at));
            if want == 0 {
                return Err(wrong());
            }
            places.extend_from_slice(&rows[at..at + want]);
            next += want as u64;
        }
        let sum = places.iter().try_fold(0u64, |sum, place| sum.checked_add(place.len));
        if sum == Some(len) { Ok(places) } else { Err(wrong()) }
    }

    /// Extent row `n`.
    pub fn extent(&self, n: u64) -> Result<Extent> {
        let none = || damaged(&format!("the index of snapshot {} has no extent {n}", self.shown));
        let (info, at) = block_with(self.blocks_of(Section::Extents), n).ok_or_else(none)?;
        match &*self.block(info)? {
            Block::Extents(rows) => rows.get(at).copied().ok_or_else(none),
            _ => Err(none()),
        }
    }

    /// The extent of an entry's content; it must be as long as the entry says.
    pub fn extent_of(&self, row: &Row) -> Result<Option<Extent>> {
        let Some(n) = row.extent else { return Ok(None) };
        let extent = self.extent(n)?;
        if extent.stream != 0 || extent.len != row.entry.stored_len {
            let name = show::name(&row.entry.path);
            return Err(damaged(&format!("entry and extent of `{name}` in snapshot {} do not agree", self.shown)));
        }
        Ok(Some(extent))
    }

    /// The extent of stream `stream`, from 1 on.
    pub fn stream_extent(&self, stream: u32) -> Result<Extent> {
        let before = u64::from(stream).checked_sub(1).ok_or_else(|| damaged("no such stream"))?;
        let extent = self.extent(self.tree_extent_count() + before)?;
        if extent.stream != stream || extent.offset != 0 {
            return Err(damaged(&format!("the extent of stream {stream} in snapshot {} is not its own", self.shown)));
        }
        Ok(extent)
    }

    /// Where the content of a stream of an increment lies; none when the stored stream is the content.
    pub fn stream_places(&self, stream: u32) -> Result<Option<Vec<Place>>> {
        let at = usize::try_from(stream).unwrap_or(usize::MAX).wrapping_sub(1);
        let Some(rows) = self.stream_places.get(at).copied().flatten() else { return Ok(None) };
        let len = self.stream_extent(stream)?.len;
        self.place_rows(rows.first, rows.count, len).map(Some)
    }

    /// How many extents of the tree end at or before `offset`.
    pub fn extents_before(&self, offset: u64) -> Result<u64> {
        let (mut low, mut high) = (0, self.tree_extent_count());
        while low < high {
            let middle = low + (high - low) / 2;
            let extent = self.extent(middle)?;
            if extent.offset.saturating_add(extent.len) <= offset { low = middle + 1 } else { high = middle }
        }
        Ok(low)
    }

    /// The paths that own extents `first..end`, at most `max` of them.
    pub fn owners(&self, first: u64, end: u64, max: usize) -> Result<Vec<Vec<u8>>> {
        let mut paths = Vec::new();
        let start = self.entries.partition_point(|info| info.first_extent <= first).saturating_sub(1);
        for block in start..self.entries.len() {
            if self.entries[block].first_extent >= end || paths.len() == max {
                break;
            }
            let rows =
                self.entry_block(block)?.into_iter().filter(|row| row.extent.is_some_and(|n| n >= first && n < end));
            let room = max - paths.len();
            paths.extend(rows.map(|row| row.entry.path).take(room));
        }
        Ok(paths)
    }

    /// The frame that holds the byte at `offset` of `stream`.
    pub fn frame_at(&self, stream: u32, offset: u64) -> Result<Frame> {
        match self.frames_from(stream, offset)?.next().transpose()? {
            Some(frame) if frame.offset <= offset => Ok(frame),
            _ => Err(damaged(&format!("no frame of snapshot {} holds byte {offset} of stream {stream}", self.shown))),
        }
    }

    /// The frames of `stream` from the one that holds `offset` on; none when the stream ends before it.
    pub fn frames_from(&self, stream: u32, offset: u64) -> Result<Frames<'_>> {
        let mut key = [0; 12];
        key[..4].copy_from_slice(&stream.to_be_bytes());
        key[4..].copy_from_slice(&offset.to_be_bytes());
        let block = self
            .blocks_of(Section::Frames)
            .partition_point(|info| info.first_key.as_slice() <= &key[..])
            .saturating_sub(1);
        let mut frames = Frames { index: self, stream: Some(stream), block, at: 0, rows: None, failed: false };
        if let Some(block) = frames.load()?
            && let Block::Frames(rows) = &*block
        {
            frames.at = rows.partition_point(|row| (row.stream, row.end()) <= (stream, offset));
        }
        Ok(frames)
    }

    /// All frames in the order they are stored.
    pub fn frames(&self) -> Frames<'_> {
        Frames { index: self, stream: None, block: 0, at: 0, rows: None, failed: false }
    }

    /// Part row `n`.
    pub fn part(&self, n: u64) -> Result<Part> {
        let none = || damaged(&format!("the index of snapshot {} has no part {n}", self.shown));
        let (info, at) = block_with(self.blocks_of(Section::Parts), n).ok_or_else(none)?;
        match &*self.block(info)? {
            Block::Parts(rows) => rows.get(at).copied().ok_or_else(none),
            _ => Err(none()),
        }
    }

    /// The key of a part.
    pub fn part_key(&self, part: &Part) -> Result<String> {
        let name = match part.stream.checked_sub(1) {
            None => None,
            Some(n) => {
                Some(self.streams.get(n as usize).ok_or_else(|| damaged("a part of a stream that is not there"))?)
            }
        };
        Ok(format!("{}{}", self.dir, part_name(name, part.number, self.codec)))
    }

    /// Where a frame is stored: its part's key, and the range of bytes in it.
    pub fn place(&self, frame: &Frame) -> Result<(String, Range<u64>)> {
        let key = self.part_key(&self.part(u64::from(frame.part))?)?;
        Ok((key, frame.stored_offset..frame.stored_offset.saturating_add(u64::from(frame.stored_len))))
    }
}

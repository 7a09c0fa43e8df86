//! Tells the store which frames are read next, so that one that is far away fetches them before they are wanted.
//!
//! On a store near by nothing is held back: what comes is passed on as it is.

use std::collections::VecDeque;

use super::index::IndexReader;
use crate::{error::Result, format::index::Frame};

/// Something that is read from a frame.
pub trait Reads {
    /// The frame, and which snapshot of the chain stores it.
    fn frame(&self) -> Option<(usize, Frame)>;
    /// How much of what is in memory this is.
    fn weight(&self) -> usize {
        1
    }
}

impl Reads for Result<(usize, Frame)> {
    fn frame(&self) -> Option<(usize, Frame)> {
        self.as_ref().ok().copied()
    }
}

impl Reads for (usize, Frame) {
    fn frame(&self) -> Option<(usize, Frame)> {
        Some(*self)
    }
}

/// So much weight is held at most.
const WEIGHT_MAX: usize = 8192;

/// What comes later, told to the store already.
pub struct Told<'a, T> {
    runs: &'a [IndexReader],
    held: VecDeque<T>,
    stored_len: u64,
    weight: usize,
    ahead_len: u64,
}

impl<'a, T: Reads> Told<'a, T> {
    /// Of the snapshots `runs`, for one of `readers`.
    pub fn new(runs: &'a [IndexReader], readers: usize) -> Self {
        let ahead_len = runs.first().map_or(0, |run| run.store().ahead_len()) / readers.max(1) as u64;
        Self { runs, held: VecDeque::new(), stored_len: 0, weight: 0, ahead_len }
    }

    /// Whether more should be told before anything is taken.
    pub fn has_room(&self) -> bool {
        self.held.is_empty() || self.stored_len < self.ahead_len && self.weight < WEIGHT_MAX
    }

    /// Tells of `next`, which is taken after all that was put before.
    pub fn put(&mut self, next: T) {
        if self.ahead_len > 0
            && let Some((run, frame)) = next.frame()
            && let Some(index) = self.runs.get(run)
            && let Ok((key, range)) = index.place(&frame)
        {
            index.store().expect(&key, range);
            self.stored_len += u64::from(frame.stored_len);
        }
        self.weight += next.weight();
        self.held.push_back(next);
    }

    /// What comes next.
    pub fn take(&mut self) -> Option<T> {
        let next = self.held.pop_front()?;
        self.weight -= next.weight();
        if self.ahead_len > 0
            && let Some((_, frame)) = next.frame()
        {
            self.stored_len = self.stored_len.saturating_sub(u64::from(frame.stored_len));
        }
        Some(next)
    }
}

/// The same items, each told of before it is its turn.
pub fn told<'a, T: Reads + 'a>(
    runs: &'a [IndexReader],
    readers: usize,
    mut items: impl Iterator<Item = T> + 'a,
) -> impl Iterator<Item = T> + 'a {
    let mut told = Told::new(runs, readers);
    let mut ended = false;
    std::iter::from_fn(move || {
        while !ended && told.has_room() {
            match items.next() {
                Some(item) => told.put(item),
                None => ended = true,
            }
        }
        told.take()
    })
}

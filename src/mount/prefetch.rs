//! What will be read next, guessed from what was read: of a file, and of the stream in which files lie in the order of a walk.
//!
//! Two reads in order start it one frame ahead; each further step doubles that, up to a limit. A jump ends it. Of a file put
//! together from several snapshots only its own map tells what follows; of many small ones only the stream they lie in.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use super::{
    content::{Reading, Stored},
    node::Node,
};

/// Files and places in streams that are followed at a time; the last used ones.
const FOLLOWED_MAX: usize = 256;
/// A file's reads may come this far out of order: the kernel sends several at a time.
const BACK_MAX: u64 = 4 << 20;
/// Further than this ahead is a jump.
const JUMP_MAX: u64 = 16 << 20;
/// Shorter contents have no frame of their own to come.
const CONTENT_LEN_MIN: u64 = 1 << 20;

/// What is followed.
pub struct Ahead {
    len_max: u64,
    files: Mutex<HashMap<Node, File>>,
    cursors: Mutex<VecDeque<Cursor>>,
}

struct File {
    /// The furthest end of a read.
    end: u64,
    /// Where the last of what was fetched ahead ends.
    fetched: u64,
    /// How far ahead of it, bytes; 0 till the second read in order.
    window: u64,
    used: u64,
}

/// A place in a stream: the frame that was read last there.
struct Cursor {
    index: u64,
    stream: u32,
    offset: u64,
    end: u64,
    window: u64,
    fetched: u64,
}

/// A run of a file or stream to fetch.
struct Run {
    from: u64,
    len: u64,
}

impl Ahead {
    /// At most `len_max` bytes ahead of each reader.
    pub fn new(len_max: u64) -> Self {
        Self { len_max, files: Mutex::default(), cursors: Mutex::default() }
    }

    /// Notes a read of a file; gives the frames to fetch now.
    pub fn read(&self, node: Node, reading: &Reading, (offset, len): (u64, u64)) -> Vec<Stored> {
        let Reading { content, opened } = reading;
        if content.data_len() < CONTENT_LEN_MIN {
            return Vec::new();
        }
        let run = self.step(node, offset, len);
        run.map(|run| content.frames_after(opened, run.from, run.len).unwrap_or_default()).unwrap_or_default()
    }

    fn step(&self, node: Node, offset: u64, len: u64) -> Option<Run> {
        let end = offset.saturating_add(len);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let now = files.values().map(|file| file.used).max().unwrap_or(0) + 1;
        if files.len() >= FOLLOWED_MAX && !files.contains_key(&node) {
            let oldest = files.iter().min_by_key(|(_, file)| file.used).map(|(node, _)| *node);
            oldest.map(|node| files.remove(&node));
        }
        let file = files.entry(node).or_insert(File { end: offset, fetched: 0, window: 0, used: now });
        let is_first = file.end == offset && file.used == now && file.window == 0 && file.fetched == 0;
        file.used = now;
        if is_first {
            (file.end, file.fetched) = (end, end);
            return None;
        }
        if offset.saturating_add(BACK_MAX) < file.end || offset > file.end.saturating_add(JUMP_MAX) {
            *file = File { end, fetched: end, window: 0, used: now };
            return None;
        }
        file.end = file.end.max(end);
        file.window = if file.window == 0 { 1 } else { file.window };
        let goal = file.end.saturating_add(file.window);
        if file.fetched >= goal {
            return None;
        }
        // It doubles each time its reader has come into what was fetched ahead.
        let from = file.fetched.max(file.end);
        file.window = (file.window * 2).clamp(CONTENT_LEN_MIN, self.len_max.max(CONTENT_LEN_MIN));
        file.fetched = file.end.saturating_add(file.window);
        Some(Run { from, len: file.fetched - from })
    }

    /// Notes that a frame is read; gives those after it to fetch now.
    pub fn touch(&self, stored: &Stored) -> Vec<Stored> {
        let frame = &stored.frame;
        let chain = &stored.opened.chain;
        let run = self.follow((chain.run(stored.run).id(), frame.stream), frame.offset, frame.end());
        let Some(run) = run else { return Vec::new() };
        let end = run.from.saturating_add(run.len);
        let Ok(frames) = chain.run(stored.run).frames_from(frame.stream, run.from) else { return Vec::new() };
        let frames = frames.map_while(Result::ok).take_while(|next| next.offset < end);
        frames.map(|next| Stored { frame: next, ..stored.clone() }).collect()
    }

    fn follow(&self, (index, stream): (u64, u32), offset: u64, end: u64) -> Option<Run> {
        let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
        let own = |cursor: &Cursor| (cursor.index, cursor.stream) == (index, stream);
        let near = |cursor: &Cursor| offset < cursor.end && offset.saturating_add(BACK_MAX) >= cursor.offset;
        if let Some(at) = cursors.iter().position(|cursor| own(cursor) && near(cursor)) {
            // Still there, or just before: the last used one comes first.
            if at > 0 {
                cursors.swap(0, at);
            }
            return None;
        }
        let Some(at) = cursors.iter().position(|cursor| own(cursor) && cursor.end == offset) else {
            cursors.push_front(Cursor { index, stream, offset, end, window: 0, fetched: end });
            cursors.truncate(FOLLOWED_MAX);
            return None;
        };
        let mut cursor = cursors.remove(at)?;
        cursor.window = (cursor.window * 2).clamp((end - offset).min(self.len_max), self.len_max);
        (cursor.offset, cursor.end) = (offset, end);
        let from = cursor.fetched.max(end);
        cursor.fetched = from.max(end.saturating_add(cursor.window));
        let run = Run { from, len: cursor.fetched - from };
        cursors.push_front(cursor);
        (run.len > 0).then_some(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn reads_in_order_are_followed_further_and_further() {
        let ahead = Ahead::new(32 * MIB);
        let node = Node(9);
        let mut fetched = 0;
        let mut most = 0;
        for n in 0..1000u64 {
            let at = n * MIB / 4;
            match ahead.step(node, at, MIB / 4) {
                Some(run) => {
                    assert!(n > 0 && run.from >= fetched, "read {n} fetches from {} again", run.from);
                    fetched = run.from + run.len;
                    most = most.max(fetched - (at + MIB / 4));
                }
                None => assert!(n == 0 || fetched > at, "read {n} is not followed"),
            }
        }
        assert_eq!(most, 32 * MIB);
    }

    #[test]
    fn a_short_way_ahead_is_no_fault() {
        let ahead = Ahead::new(1);
        assert!(ahead.step(Node(9), 0, 4096).is_none());
        assert!(ahead.step(Node(9), 4096, 4096).is_some());
    }

    #[test]
    fn jumps_are_not_followed() {
        let ahead = Ahead::new(32 * MIB);
        for n in 0..100u64 {
            assert!(ahead.step(Node(9), n * 7919 % 100 * 64 * MIB, 4096).is_none(), "jump {n}");
        }
        for n in 0..10_000 {
            ahead.step(Node(n), 0, 4096);
        }
        assert!(ahead.files.lock().unwrap().len() <= FOLLOWED_MAX);
    }

    #[test]
    fn frames_in_order_are_followed_from_the_second_on() {
        let ahead = Ahead::new(32 * MIB);
        let frame = |n: u64| ahead.follow((1, 0), n * 4 * MIB, (n + 1) * 4 * MIB);
        assert!(frame(10).is_none());
        let run = frame(11).unwrap();
        assert_eq!((run.from, run.len), (48 * MIB, 4 * MIB));
        assert!(frame(11).is_none());
        assert!(frame(10).is_none(), "a read that is a little late is no new reader");
        assert_eq!(frame(12).unwrap().from, 52 * MIB);
        // Another reader elsewhere does not disturb it.
        assert!(frame(500).is_none());
        assert!(frame(13).is_some());
    }
}

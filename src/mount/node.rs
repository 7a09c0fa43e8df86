//! Inode numbers: which snapshot, which run of its chain, which row.
//!
//! | bits | |
//! |---|---|
//! | 36…63 | slot: the snapshot, a hash of its run id; 0 is the mount itself |
//! | 32…35 | 0…9: run of the chain. 10…13: what has no row, see [`Place`] |
//! | 0…31 | row of the entries in that run, number of the stream, or job |
//!
//! 1 is the root of the mount, as FUSE has it.

use crate::model::{digest::Digest, ids::RunId};

const ROW_BITS: u32 = 32;
const SLOT_SHIFT: u32 = 36;
/// Slots there are.
pub const SLOT_COUNT: u32 = 1 << 28;
/// Numbers of jobs there are.
pub const JOB_COUNT: u64 = 1 << ROW_BITS;

/// An inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node(pub u64);

/// What an inode number names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The root of the mount.
    Top,
    /// A job's directory.
    Job(u64),
    /// The root of a snapshot.
    Root(u32),
    /// A row of its tree.
    Row {
        /// The snapshot.
        slot: u32,
        /// Run of the chain.
        run: usize,
        /// Row in it.
        row: u64,
    },
    /// The directory of its streams, where there is a tree, too.
    Streams(u32),
    /// A stream, from 1 on.
    Stream(u32, u32),
    /// A job's `latest` while it leads to this snapshot.
    Latest(u32),
}

const ROOT: u64 = 10;
const STREAMS: u64 = 11;
const STREAM: u64 = 12;
const LATEST: u64 = 13;

impl Node {
    /// The root of the mount.
    pub const TOP: Node = Node(1);

    /// The number of a place; none when a row is past what a number holds.
    pub fn of(place: Place) -> Option<Self> {
        let made = |slot: u32, tag: u64, row: u64| {
            let fits = slot < SLOT_COUNT && row < 1 << ROW_BITS;
            fits.then_some(Node(u64::from(slot) << SLOT_SHIFT | tag << ROW_BITS | row))
        };
        match place {
            Place::Top => Some(Self::TOP),
            Place::Job(job) => made(0, 1, job),
            Place::Root(slot) => made(slot, ROOT, 0),
            Place::Row { slot, run, row } if run < 10 => made(slot, run as u64, row),
            Place::Row { .. } => None,
            Place::Streams(slot) => made(slot, STREAMS, 0),
            Place::Stream(slot, number) => made(slot, STREAM, u64::from(number)),
            Place::Latest(slot) => made(slot, LATEST, 0),
        }
    }

    /// The place of a number that was given out.
    pub fn place(self) -> Option<Place> {
        if self == Self::TOP {
            return Some(Place::Top);
        }
        let slot = u32::try_from(self.0 >> SLOT_SHIFT).ok()?;
        let (tag, row) = (self.0 >> ROW_BITS & 15, self.0 & ((1 << ROW_BITS) - 1));
        match (slot, tag) {
            (0, 1) => Some(Place::Job(row)),
            (0, _) => None,
            (_, 0..=9) => Some(Place::Row { slot, run: usize::try_from(tag).ok()?, row }),
            (_, ROOT) => Some(Place::Root(slot)),
            (_, STREAMS) => Some(Place::Streams(slot)),
            (_, STREAM) => Some(Place::Stream(slot, u32::try_from(row).ok()?)),
            (_, LATEST) => Some(Place::Latest(slot)),
            _ => None,
        }
    }
}

fn hash(text: &str) -> u64 {
    let bytes = Digest::of(text.as_bytes()).0;
    u64::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]])
}

/// The slot a snapshot should have; when another has it, the next free one is taken.
pub fn slot_of(run: RunId) -> u32 {
    1 + u32::try_from(hash(&run.to_string()) % u64::from(SLOT_COUNT - 1)).unwrap_or(0)
}

/// The number of a job; when another has it, the next free one is taken.
pub fn job_of(name: &str) -> u64 {
    hash(name) % JOB_COUNT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_names_its_place_and_no_other() {
        let places = [
            Place::Top,
            Place::Job(0),
            Place::Job((1 << 32) - 1),
            Place::Root(1),
            Place::Root(SLOT_COUNT - 1),
            Place::Row { slot: 7, run: 0, row: 0 },
            Place::Row { slot: 7, run: 9, row: (1 << 32) - 1 },
            Place::Streams(3),
            Place::Stream(3, 1),
            Place::Stream(3, u32::MAX),
            Place::Latest(3),
        ];
        let nodes: Vec<Node> = places.iter().map(|place| Node::of(*place).unwrap()).collect();
        for (n, place) in places.iter().enumerate() {
            assert_eq!(nodes[n].place(), Some(*place));
            assert!(nodes[..n].iter().all(|other| *other != nodes[n]));
        }
        assert_eq!(Node::of(Place::Row { slot: 7, run: 10, row: 0 }), None);
        assert_eq!(Node::of(Place::Row { slot: 7, run: 0, row: 1 << 32 }), None);
        for none in [0, 2, 1 << 31, 15 << 32 | 1 << 36] {
            assert_eq!(Node(none).place(), None, "{none:x}");
        }
    }
}

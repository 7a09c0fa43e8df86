//! Snapshots as a file system, read only.
//!
//! [`core`] is the file system itself and knows no FUSE types; [`fuse`] translates the kernel's requests to it and is
//! the only file that names `fuser`; [`attach`] puts the result into the tree of mounts and takes it out again.
//!
//! ```text
//!   kernel ── fuse (event loops) ── core ─┬─ top      jobs and snapshots, read again when the log has grown
//!                                         ├─ snap     one snapshot: its chain opened, rows by number
//!                                         ├─ content  which frames hold a run of a file
//!                                         ├─ frames   decoded frames, one decode for many waiters, workers, prefetch
//!                                         └─ give     small files handed to the kernel before it asks
//! ```
//!
//! - **Inode numbers are places, not hashes** ([`node`]): snapshot, run of its chain and row in that run's index. So they are the
//!   same in every mount, two things never share one, and no table is needed to find again what the kernel asks about:
//!   memory does not grow with what was looked at. The names of a hard-linked file lead to the row of the first one.
//! - **Nothing waits on the event loops.** A request is answered from memory, or else ([`crate::engine::read::patience`]) handed
//!   to a worker with its reply. Every reply that waits has a deadline ([`pool`]), after which it is an I/O error.
//! - **Never wrong bytes.** A frame is decoded only after its digest was checked; what could not be read when the snapshot
//!   was taken is an I/O error, too, not zeros.
//! - A finished snapshot never changes: the kernel may keep names, attributes and pages of it for a day. Only the lists of jobs and
//!   snapshots are asked for again after a second, and what could not be looked at, at once.

pub mod attach;
pub mod attr;
mod content;
pub mod core;
pub mod counts;
mod frames;
pub mod fuse;
mod gather;
mod give;
mod list;
pub mod node;
mod pool;
mod prefetch;
mod snap;
mod top;

use std::time::Duration;

use rustix::io::Errno;

use crate::error::Error;

/// Why a request has no answer.
#[derive(Debug)]
pub enum Failure {
    /// What is always so: no such entry, not a directory.
    Plain(Errno),
    /// What is wrong with the volume or the way to it: told to the user, an I/O error to the program.
    Fault(Error),
}

/// An answer or why there is none.
pub type Answer<T> = std::result::Result<T, Failure>;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Fault(error)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Plain(errno)
    }
}

/// What a mount may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Decoded frames kept, bytes.
    pub cache_len: u64,
    /// After this long a request that waits is an I/O error.
    pub deadline: Duration,
    /// Threads that fetch and decode frames.
    pub frame_threads: usize,
    /// Threads that read indexes and logs.
    pub index_threads: usize,
    /// A sequential reader is kept this many bytes ahead of at most; never more than a quarter of the cache.
    pub ahead_len: u64,
    /// The lists of jobs and snapshots are read again when they are older.
    pub fresh: Duration,
}

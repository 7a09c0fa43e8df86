//! Where objects lie: the narrow [`Store`] every volume offers, and the volume opened through it.
//!
//! Objects are created whole and once, never changed. A create that returns has made the object durable.

mod copies;
pub mod discard;
mod limit;
pub mod local;
pub mod memory;
pub mod mount;
mod near;
mod open;
pub mod probe;
pub mod s3;

use std::ops::Range;

use serde::Serialize;

use crate::{error::Result, model::time::Instant};

pub use open::{Volume, create, create_on, open, open_on};

/// Requests made of a store that counts them, and bytes of their bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "their names say it")]
pub struct Requests {
    pub put: u64,
    pub get: u64,
    pub head: u64,
    pub list: u64,
    pub delete: u64,
    /// Those for credentials.
    pub other: u64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
}

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The object's key.
    pub key: String,
    /// Its length, bytes.
    pub len: u64,
    /// When it was stored by the store's clock, milliseconds since 1970; `None` where that is not known.
    pub stored_unix_ms: Option<u64>,
}

/// Whether a create made the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It exists now, durable, with these bytes.
    New,
    /// Another object already had the key; nothing was changed.
    Exists,
}

/// A place for objects. Keys are relative ASCII paths ([`crate::format::layout::check_key`]).
pub trait Store: Send + Sync {
    /// Begins an object; nothing can be seen under `key` before [`Upload::finish`].
    fn create(&self, key: &str) -> Result<Box<dyn Upload>>;
    /// Creates a small object in one step, unless one has its key.
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Created>;
    /// Fills `buf` from `offset` on; an object that ends before that is an integrity error.
    fn read_at(&self, key: &str, offset: u64, buf: &mut [u8]) -> Result<()>;
    /// The whole object; longer than `len_max` bytes is an integrity error.
    fn read(&self, key: &str, len_max: u64) -> Result<Vec<u8>>;
    /// The whole object, `None` when there is none; longer than `len_max` bytes is an integrity error.
    fn find(&self, key: &str, len_max: u64) -> Result<Option<Vec<u8>>> {
        self.head(key)?.map(|_| self.read(key, len_max)).transpose()
    }
    /// Says that these bytes will be read soon, each range once and in about this order.
    fn expect(&self, _key: &str, _range: Range<u64>) {}
    /// So many bytes are worth being expected before they are read; 0 where reading takes no time to begin.
    fn ahead_len(&self) -> u64 {
        0
    }
    /// Says that what was read of an object was damaged: what is kept of it here may be, too, and is not given again.
    fn forget(&self, _key: &str) {}
    /// The length of an object, `None` when there is none.
    fn head(&self, key: &str) -> Result<Option<u64>>;
    /// All objects whose keys begin with `prefix`, which ends in `/` or is empty; sorted by key.
    /// A failure is an error, never a shorter list.
    fn list(&self, prefix: &str) -> Result<Vec<Item>>;
    /// Removes an object; one that is not there is no error.
    fn delete(&self, key: &str) -> Result<()>;
    /// Removes many objects, in any order; stops at an error. One that is not there is none.
    fn delete_all(&self, keys: &[String]) -> Result<()> {
        keys.iter().try_for_each(|key| self.delete(key))
    }
    /// Bytes that can still be written, when the store knows.
    fn free_bytes(&self) -> Result<Option<u64>>;
    /// An unnamed file for what does not fit into memory; gone when closed.
    fn scratch(&self) -> Result<std::fs::File>;
    /// Makes sure that objects can be written, by writing and removing one.
    fn check_writable(&self) -> Result<()>;
    /// Says that the store has failed and only tidying follows: what gets no answer is given up soon.
    fn hurry(&self) {}
    /// The store's own clock, as it told the time last; `None` where that is this machine's.
    fn now(&self) -> Option<Instant> {
        None
    }
    /// Requests made so far, where each costs money.
    fn requests(&self) -> Option<Requests> {
        None
    }
}

/// An object being written.
pub trait Upload: Send {
    /// Appends bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;
    /// Makes the object durable and visible. The key must be free.
    fn finish(self: Box<Self>) -> Result<()>;
    /// Begins to finish, where that takes time: the object is durable and visible only after [`Pending::wait`].
    fn start(self: Box<Self>) -> Result<Box<dyn Pending>> {
        self.finish()?;
        Ok(Box::new(Done))
    }
}

/// An object that is being finished.
pub trait Pending: Send {
    /// Waits until it is durable and visible, or has failed.
    fn wait(self: Box<Self>) -> Result<()>;
}

struct Done;

impl Pending for Done {
    fn wait(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

//! A signal that came: set by the command line, looked at by whatever waits.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Which signal came, if any. All clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicUsize>);

impl Stop {
    /// The signal that came.
    pub fn signal(&self) -> Option<i32> {
        i32::try_from(self.0.load(Ordering::Relaxed)).ok().filter(|&n| n != 0)
    }

    /// Where a handler puts the signal's number.
    pub fn cell(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.0)
    }
}

impl PartialEq for Stop {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Stop {}

//! Reading without waiting: what is at hand is given at once, the rest is left for a thread that may wait.
//!
//! A mount answers from memory on the threads that take the kernel's requests and hands all else to others. The same
//! code does both: inside [`without_waiting`] a read that would go to the store fails instead, and that is noticed.

use std::cell::Cell;

use crate::error::{Error, Kind, Result};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    Waits,
    Hurries,
    Missed,
}

thread_local! {
    static PATIENCE: Cell<Patience> = const { Cell::new(Patience::Waits) };
}

/// Runs `work` with what is in memory; none when it would have had to wait for the store.
pub fn without_waiting<T>(work: impl FnOnce() -> T) -> Option<T> {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            PATIENCE.set(Patience::Waits);
        }
    }
    let restore = Restore;
    PATIENCE.set(Patience::Hurries);
    let done = work();
    let missed = PATIENCE.get() == Patience::Missed;
    drop(restore);
    (!missed).then_some(done)
}

/// To be asked before anything that takes its time: an error inside [`without_waiting`], which then gives none.
pub fn may_wait() -> Result<()> {
    if PATIENCE.get() == Patience::Waits {
        return Ok(());
    }
    PATIENCE.set(Patience::Missed);
    Err(Error::new(Kind::Other, "this would have to wait"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_wait_is_none_and_what_need_not_is_there() {
        assert_eq!(without_waiting(|| 7), Some(7));
        assert_eq!(without_waiting(|| may_wait().is_ok()), None);
        // An error that was passed over counts, too.
        assert_eq!(without_waiting(|| may_wait().map_or(3, |()| 4)), None);
        assert!(may_wait().is_ok());
        let panicked = std::panic::catch_unwind(|| without_waiting(|| panic!("of the test")));
        assert!(panicked.is_err() && may_wait().is_ok());
    }
}

//! The same work on many things, several at once: for requests that take time to begin more than they take a processor.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use crate::error::{Error, Kind, Result};

/// Does `work` on each of `items`, on at most `threads` threads; gives what came of each, in their order.
///
/// After an error nothing new is begun; what was begun is waited for, and the first error in the items' order is given.
pub fn each<T: Sync, R: Send>(threads: usize, items: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let threads = threads.min(items.len());
    if threads <= 1 {
        return items.iter().map(work).collect();
    }
    let (pending, has_failed) = (Mutex::new(items.iter().enumerate()), AtomicBool::new(false));
    let next = || match has_failed.load(Ordering::Relaxed) {
        true => None,
        false => pending.lock().unwrap_or_else(PoisonError::into_inner).next(),
    };
    let worker = || {
        let mut done = Vec::new();
        while let Some((n, item)) = next() {
            let result = work(item);
            has_failed.fetch_or(result.is_err(), Ordering::Relaxed);
            done.push((n, result));
        }
        done
    };
    let mut done = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let ended = workers.into_iter().map(|worker| {
            worker.join().unwrap_or_else(|_| vec![(0, Err(Error::new(Kind::Other, "a thread panicked")))])
        });
        ended.flatten().collect::<Vec<_>>()
    });
    done.sort_unstable_by_key(|(n, _)| *n);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Barrier, atomic::AtomicUsize};

    use super::*;

    #[test]
    fn what_comes_of_each_is_in_their_order() {
        let items: Vec<usize> = (0..1000).collect();
        for threads in [0, 1, 2, 7] {
            let doubled = each(threads, &items, |n| Ok(n * 2)).unwrap();
            assert!(doubled.iter().enumerate().all(|(n, twice)| n * 2 == *twice), "{threads} threads");
        }
        assert!(each(3, &[], |n: &usize| Ok(*n)).unwrap().is_empty());
    }

    #[test]
    fn so_many_are_under_way_at_once() {
        // Each waits for three others.
        let barrier = Barrier::new(4);
        let leaders = each(4, &[(); 8], |()| Ok(barrier.wait().is_leader())).unwrap();
        assert_eq!(leaders.into_iter().filter(|leads| *leads).count(), 2);
    }

    #[test]
    fn nothing_is_begun_after_an_error() {
        let begun = AtomicUsize::new(0);
        let items: Vec<usize> = (0..1000).collect();
        let failed = each(2, &items, |n| {
            begun.fetch_add(1, Ordering::Relaxed);
            // The others take their time, so that the error is seen.
            std::thread::sleep(std::time::Duration::from_millis(u64::from(*n > 3)));
            if *n == 3 { Err(Error::usage("the third")) } else { Ok(()) }
        });
        assert_eq!(failed.unwrap_err().to_string(), "the third");
        assert!(begun.into_inner() < 1000);
    }
}

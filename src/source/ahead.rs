//! Directories looked at before their turn, on threads of their own, the nearest first.
//!
//! The walk says which directories are next: those that wait in each directory on the way down. It takes what is ready and looks itself where nothing
//! is, so the order of what it tells never depends on the threads. Memory: [`AHEAD_MAX`] looks of [`NAMES_MAX`] names; a larger
//! directory is left to the walk. A look that is no longer fresh is thrown away, so that a walk that waits for a long file meets
//! the directories behind it as they are by then.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    look::{Look, look},
    select::Selection,
};

/// Directories that wait to be looked at, or were and wait for their turn.
const AHEAD_MAX: usize = 64;
/// A directory of more names is not looked at ahead: 160 bytes are kept for each.
const NAMES_MAX: usize = 512;
/// Of the directories that wait in one directory, this many are looked at ahead.
pub const WINDOW: usize = 32;
/// So many of the nearest are left to the walk while there are others.
const LEFT: usize = 2;
/// A look that is older says too little about what is there.
const FRESH: Duration = Duration::from_secs(1);

/// Which directory: how deep, and its number among those that wait beside it. The nearest is the least.
pub type Turn = (Reverse<usize>, usize);

/// A directory to look at.
pub struct Task {
    /// The directory above it.
    pub parent: Arc<OwnedFd>,
    /// Its name in that.
    pub name: Vec<u8>,
    /// Its path in the snapshot.
    pub path: Vec<u8>,
}

enum Slot {
    Waiting(Task),
    /// The number of the look: the turn may be another directory's by its end.
    Running(u64),
    Done(Instant, Option<Box<rustix::io::Result<Look>>>),
}

fn is_running(slot: &Slot, number: u64) -> bool {
    matches!(slot, Slot::Running(own) if *own == number)
}

#[derive(Default)]
struct State {
    slots: BTreeMap<Turn, Slot>,
    looks: u64,
    idle: usize,
    closed: bool,
}

/// Looks at directories ahead of a walk.
pub struct Ahead<'a> {
    selection: &'a Selection,
    state: Mutex<State>,
    work: Condvar,
}

/// Ends all looking when it goes, whatever it is that makes it go.
pub struct Closing<'a>(&'a Ahead<'a>);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        state.slots.clear();
        drop(state);
        self.0.work.notify_all();
    }
}

impl<'a> Ahead<'a> {
    /// Nothing to look at yet.
    pub fn new(selection: &'a Selection) -> Self {
        Self { selection, state: Mutex::default(), work: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be held by the walk: the threads end when it goes.
    pub fn closing(&self) -> Closing<'_> {
        Closing(self)
    }

    /// Asks for looks; the farthest of all are forgotten when they are too many.
    pub fn ask(&self, tasks: impl Iterator<Item = (Turn, Task)>) {
        let mut forgotten = Vec::new();
        let mut state = self.lock();
        let mut added: usize = 0;
        for (turn, task) in tasks {
            if state.slots.len() >= AHEAD_MAX {
                if state.slots.last_key_value().is_none_or(|(last, _)| *last <= turn) {
                    break;
                }
                forgotten.extend(state.slots.pop_last());
            }
            state.slots.insert(turn, Slot::Waiting(task));
            added += 1;
        }
        let wake = added.min(state.idle);
        drop(state);
        (0..wake).for_each(|_| self.work.notify_one());
    }

    /// The look at a directory whose turn has come; none when the walk must look itself.
    pub fn take(&self, turn: Turn) -> Option<rustix::io::Result<Look>> {
        // What is just being looked at is not waited for: a look costs less than going to sleep and being woken.
        let slot = self.lock().slots.remove(&turn);
        match slot {
            Some(Slot::Done(at, look)) if at.elapsed() < FRESH => look.map(|look| *look),
            _ => None,
        }
    }

    /// Looks at what is asked for until the walk ends: the work of one thread.
    pub fn work(&self) {
        // A thread that panics leaves nobody waiting for it.
        let _closing = self.closing();
        let mut state = self.lock();
        while !state.closed {
            let State { slots, looks, .. } = &mut *state;
            // The walk may be at the nearest before the look at it ends: those behind it first.
            let is_waiting = |slot: &Slot| matches!(slot, Slot::Waiting(_));
            let first = if slots.values().filter(|slot| is_waiting(slot)).nth(LEFT).is_some() { LEFT } else { 0 };
            let next = slots.iter_mut().filter(|(_, slot)| is_waiting(slot)).nth(first);
            let Some((&turn, slot)) = next else {
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                continue;
            };
            *looks += 1;
            let number = *looks;
            let Slot::Waiting(task) = std::mem::replace(slot, Slot::Running(number)) else { continue };
            drop(state);
            let (at, found) = (Instant::now(), self.look(&task).map(Box::new));
            drop(task);
            state = self.lock();
            match state.slots.get_mut(&turn) {
                Some(slot) if is_running(slot, number) => *slot = Slot::Done(at, found),
                _ => {
                    // Forgotten meanwhile: what it holds goes without the lock.
                    drop(state);
                    drop(found);
                    state = self.lock();
                }
            }
        }
        drop(state);
    }

    fn look(&self, task: &Task) -> Option<rustix::io::Result<Look>> {
        let of = (task.parent.as_fd(), &task.name[..], &task.path[..]);
        let mut found = look(of, self.selection, NAMES_MAX).transpose()?;
        if let Ok(Look { fd, names: Some(names), .. }) = &mut found {
            names.stat_all(fd.as_fd());
        }
        Some(found)
    }
}

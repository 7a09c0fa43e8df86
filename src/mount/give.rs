//! Small files the kernel is given before it asks for them.
//!
//! A program that walks a tree and reads every file costs a request for each, and waits for it: on small files that is most of its
//! time. So who reads files of a directory in the order of its list gets those that follow put into the kernel's memory, more of
//! them the longer it goes on. Only what lies in frames that are at hand is given, only whole files, and only by a thread of
//! its own: the kernel may have it wait for a page that a reader waits for, too, and somebody else must answer that reader.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use super::{
    Answer,
    content::{Content, Piece},
    core::Core,
    counts::add,
    node::{Node, Place},
};
use crate::{
    engine::read::index::Numbered,
    model::{entry::EntryKind, path},
};

/// Larger files are read ahead by the kernel itself.
const FILE_LEN_MAX: u64 = 256 << 10;
/// Given at a time: so many files and so many bytes.
const COUNT_MIN: u64 = 8;
const COUNT_MAX: u64 = 512;
const LEN_MAX: u64 = 8 << 20;
/// Walks that are followed at a time, the last used ones.
const WALKS_MAX: usize = 16;
/// Orders that wait for their turn; more are left out.
const ORDERS_MAX: usize = 16;
/// Rows that a walk may skip at first, and for each file that is given at a time.
const REACH: u64 = 32;
/// Runs of a chain.
const RUNS: usize = 10;

/// Gives a whole file; false when it cannot be done any more.
type Store = Box<dyn Fn(Node, &[u8]) -> bool + Send>;

/// What is given, and to whom.
#[derive(Default)]
pub struct Give {
    walks: Mutex<Walks>,
    orders: OnceLock<SyncSender<Order>>,
}

#[derive(Default)]
struct Walks {
    /// The last used one first.
    walks: VecDeque<Walk>,
    last_id: u64,
}

/// Somebody who reads files in the order of their rows.
struct Walk {
    id: u64,
    slot: u32,
    /// The furthest row of each run that was read or given.
    rows: [Option<u64>; RUNS],
    /// Files to give at a time; 0 until two were read in order.
    count: u64,
    /// Whether a thread is at it.
    is_busy: bool,
}

/// Files to give: so many of those that follow a row in its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Order {
    walk: u64,
    slot: u32,
    run: usize,
    row: u64,
    count: u64,
}

impl Walk {
    fn reach(&self) -> u64 {
        REACH * (1 + self.count)
    }

    /// Whether a read of this row belongs to it: a little further on, or what was given at the same time as it was asked for.
    fn meets(&self, slot: u32, run: usize, row: u64) -> bool {
        let near = |last: u64| row <= last.saturating_add(self.reach()) && row.saturating_add(self.reach()) >= last;
        self.slot == slot && self.rows[run].is_none_or(near)
    }
}

impl Walks {
    /// Notes a read; gives what to do about it.
    fn note(&mut self, slot: u32, run: usize, row: u64) -> Option<Order> {
        let Some(at) = self.walks.iter().position(|walk| walk.meets(slot, run, row)) else {
            self.last_id += 1;
            let mut walk = Walk { id: self.last_id, slot, rows: [None; RUNS], count: 0, is_busy: false };
            walk.rows[run] = Some(row);
            self.walks.push_front(walk);
            self.walks.truncate(WALKS_MAX);
            return None;
        };
        let mut walk = self.walks.remove(at)?;
        let is_further = walk.rows[run].is_none_or(|last| row > last);
        let mut order = None;
        if is_further {
            walk.rows[run] = Some(row);
            if !walk.is_busy {
                walk.count = (walk.count * 2).clamp(COUNT_MIN, COUNT_MAX);
                walk.is_busy = true;
                order = Some(Order { walk: walk.id, slot, run, row, count: walk.count });
            }
        }
        self.walks.push_front(walk);
        order
    }

    fn find(&mut self, id: u64) -> Option<&mut Walk> {
        self.walks.iter_mut().find(|walk| walk.id == id)
    }
}

impl Give {
    fn walks(&self) -> MutexGuard<'_, Walks> {
        self.walks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to give with `store`; before that nothing is.
    pub fn begin(&self, core: &Arc<Core>, store: impl Fn(Node, &[u8]) -> bool + Send + 'static) {
        let (sender, orders) = sync_channel(ORDERS_MAX);
        if self.orders.set(sender).is_ok() {
            let core = Arc::downgrade(core);
            std::thread::spawn(move || work(&core, &orders, &(Box::new(store) as Store)));
        }
    }

    /// Notes that the beginning of a file of `size` bytes is read.
    pub fn note(&self, node: Node, size: u64) {
        let Some(orders) = self.orders.get() else { return };
        if size > FILE_LEN_MAX {
            return;
        }
        let Some(Place::Row { slot, run, row }) = node.place() else { return };
        let Some(order) = self.walks().note(slot, run, row) else { return };
        if orders.try_send(order).is_err() {
            self.end(order);
        }
    }

    /// False when somebody else came as far already.
    fn pass(&self, order: Order, row: &Numbered) -> bool {
        match self.walks().find(order.walk) {
            Some(walk) if walk.rows[row.run].is_some_and(|last| last >= row.number) => false,
            Some(walk) => {
                walk.rows[row.run] = Some(row.number);
                true
            }
            None => true,
        }
    }

    fn end(&self, order: Order) {
        if let Some(walk) = self.walks().find(order.walk) {
            walk.is_busy = false;
        }
    }
}

fn work(core: &Weak<Core>, orders: &Receiver<Order>, store: &Store) {
    while let Ok(order) = orders.recv() {
        let Some(core) = core.upgrade() else { return };
        // What cannot be given will be asked for, and its fault is told then.
        let _ = catch_unwind(AssertUnwindSafe(|| core.give_files(order, store)));
        core.give.end(order);
    }
}

impl Core {
    fn give_files(&self, order: Order, store: &Store) -> Answer<()> {
        let opened = self.top.opened(order.slot)?;
        let Some(first) = opened.chain.numbered(order.run, order.row)? else { return Ok(()) };
        let dir = path::split(&first.path).0;
        let oldest = opened.chain.oldest_in(dir)?;
        let (mut count, mut len) = (0, 0);
        let mut passed = None;
        for row in opened.chain.list_numbered(dir, oldest, Some(&first.path)) {
            let row = row?;
            // Holes, hard links and what could not be read go the usual way.
            let is_plain = row.kind == EntryKind::File && row.sparse.is_none() && row.damaged.is_empty();
            if !is_plain || row.size == 0 || row.size > FILE_LEN_MAX || !self.give.pass(order, &row) {
                continue;
            }
            let pieces = Content::of_row(&opened, &row)?.pieces(&opened, 0, row.size)?;
            let [Piece::Data { stored, from, len: piece_len }] = &pieces[..] else { continue };
            let Some(plain) = self.frames.get(stored) else { break };
            let bytes = plain.get(*from..from + piece_len).filter(|bytes| bytes.len() as u64 == row.size);
            let Some(bytes) = bytes else { continue };
            if !store(opened.node_of(&row)?, bytes) {
                break;
            }
            add(&self.counts.given);
            if passed.replace(stored.frame.offset) != Some(stored.frame.offset) {
                self.pass(stored);
            }
            (count, len) = (count + 1, len + row.size);
            if count >= order.count || len >= LEN_MAX {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_in_order_are_given_from_the_second_on() {
        let mut walks = Walks::default();
        assert_eq!(walks.note(1, 0, 100), None);
        let order = walks.note(1, 0, 102).unwrap();
        assert_eq!((order.row, order.count), (102, COUNT_MIN));
        // While a thread is at it, what is asked for at the same time is no new walk and no new order.
        walks.find(order.walk).unwrap().rows[0] = Some(110);
        assert_eq!(walks.note(1, 0, 103), None);
        walks.find(order.walk).unwrap().is_busy = false;
        assert_eq!(walks.note(1, 0, 104), None, "it was given");
        let order = walks.note(1, 0, 111).unwrap();
        assert_eq!((order.row, order.count), (111, COUNT_MIN * 2));
        assert_eq!(walks.walks.len(), 1);
        // Another reader elsewhere, or in another snapshot, has a walk of its own.
        assert_eq!(walks.note(1, 0, 100_000), None);
        assert_eq!(walks.note(2, 0, 112), None);
        assert_eq!(walks.walks.len(), 3);
    }

    #[test]
    fn jumps_are_given_nothing() {
        let mut walks = Walks::default();
        for n in 0..1000u64 {
            assert_eq!(walks.note(1, 0, n * 7919 % 1000 * 1000), None, "jump {n}");
        }
        assert!(walks.walks.len() <= WALKS_MAX);
    }
}

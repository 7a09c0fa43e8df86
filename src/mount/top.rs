//! The jobs and snapshots of a volume as they are now, or the one snapshot that was asked for.
//!
//! One listing of the log tells which jobs have new records; a job's log is read again only when it has, and only when
//! someone looks. While the store cannot be reached what was known last is shown.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::io::Errno;

use super::{
    Answer,
    node::{JOB_COUNT, SLOT_COUNT, job_of, slot_of},
    snap::{Opened, Snap},
};
use crate::{
    engine::{
        catalog::{self, JobLog},
        read::{chain::Chain, index::BlockCache, patience::may_wait},
    },
    error::Result,
    format::{
        layout::{log_dir, record_seq},
        record::Snapshot,
    },
    model::{
        ids::{Name, RunId},
        time::Time,
    },
    monitor::Monitor,
    volume::Volume,
};

/// Chains that stay open: the last used ones.
const OPEN_MAX: usize = 24;

/// What is shown.
pub enum Shown {
    /// Every job and snapshot.
    All,
    /// One snapshot, and what its chain is made of.
    One(Box<Snapshot>, Vec<Snapshot>),
}

/// A job as it was last read.
#[derive(Clone)]
pub struct Job {
    /// Its name.
    pub name: Name,
    /// Its part of inode numbers.
    pub number: u64,
    /// When its snapshots were last found to have changed.
    pub changed_at: Time,
    /// Its snapshots, by seq.
    pub snaps: Arc<BTreeMap<u64, Arc<Snap>>>,
    log: Option<Arc<JobLog>>,
    /// The newest record there is.
    newest: u64,
}

impl Job {
    /// The snapshot that `latest` leads to: none where a newer one may be, whose record cannot be read.
    pub fn latest(&self) -> Option<&Arc<Snap>> {
        let (seq, newest) = self.snaps.last_key_value()?;
        let is_known = self.log.as_ref().is_none_or(|log| log.unread_after(*seq).is_none());
        is_known.then_some(newest)
    }
}

#[derive(Default)]
struct State {
    listed_at: Option<Instant>,
    changed_at: Time,
    jobs: BTreeMap<Name, Job>,
    by_number: HashMap<u64, Name>,
    slots: HashMap<u32, Arc<Snap>>,
    by_run: HashMap<RunId, u32>,
    /// Slots with an open chain, the last used one first.
    open: VecDeque<u32>,
}

/// The volume as a mount sees it.
pub struct Top {
    volume: Volume,
    blocks: Arc<BlockCache>,
    fresh: Duration,
    monitor: Arc<dyn Monitor>,
    state: Mutex<State>,
    /// Held while the store is asked.
    asking: Mutex<()>,
    one: Option<(u32, Vec<Snapshot>)>,
    /// Every open chain holds it.
    live: Arc<()>,
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { sec: i64::try_from(since.as_secs()).unwrap_or(0), nsec: since.subsec_nanos() }
}

impl State {
    /// The slot of a snapshot: the same in each mount, unless two of a volume want one.
    fn snap(&mut self, snapshot: &Snapshot) -> Arc<Snap> {
        let known = self.by_run.get(&snapshot.run_id).and_then(|slot| self.slots.get(slot));
        if let Some(snap) = known {
            return Arc::clone(snap);
        }
        let mut slot = slot_of(snapshot.run_id);
        while self.slots.contains_key(&slot) {
            slot = 1 + slot % (SLOT_COUNT - 1);
        }
        let snap = Arc::new(Snap::new(slot, snapshot.clone()));
        self.slots.insert(slot, Arc::clone(&snap));
        self.by_run.insert(snapshot.run_id, slot);
        snap
    }

    fn take_listing(&mut self, newest: BTreeMap<Name, u64>) {
        let gone: Vec<Name> = self.jobs.keys().filter(|name| !newest.contains_key(*name)).cloned().collect();
        let mut is_changed = !gone.is_empty();
        for name in gone {
            self.jobs.remove(&name);
        }
        for (name, newest) in newest {
            if let Some(job) = self.jobs.get_mut(&name) {
                job.newest = newest;
                continue;
            }
            is_changed = true;
            let mut number = job_of(name.as_str());
            while self.by_number.get(&number).is_some_and(|other| *other != name) {
                number = (number + 1) % JOB_COUNT;
            }
            self.by_number.insert(number, name.clone());
            let job = Job { name: name.clone(), number, changed_at: now(), snaps: Arc::default(), log: None, newest };
            self.jobs.insert(name, job);
        }
        if is_changed {
            self.changed_at = now();
        }
        self.listed_at = Some(Instant::now());
    }
}

impl Top {
    /// Nothing is read yet.
    pub fn new(
        volume: Volume,
        shown: Shown,
        blocks: Arc<BlockCache>,
        fresh: Duration,
        monitor: Arc<dyn Monitor>,
    ) -> Self {
        let mut state = State::default();
        let one = match shown {
            Shown::All => None,
            Shown::One(snapshot, chain) => Some((state.snap(&snapshot).slot, chain)),
        };
        let (state, asking) = (Mutex::new(state), Mutex::default());
        Self { volume, blocks, fresh, monitor, state, asking, one, live: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The snapshot at the root, when only one is shown.
    pub fn one(&self) -> Option<u32> {
        self.one.as_ref().map(|(slot, _)| *slot)
    }

    fn is_fresh(&self) -> bool {
        self.state().listed_at.is_some_and(|at| at.elapsed() < self.fresh)
    }

    fn refresh(&self) -> Result<()> {
        if self.is_fresh() {
            return Ok(());
        }
        may_wait()?;
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_fresh() {
            return Ok(());
        }
        match self.volume.store.list("log/") {
            Ok(items) => {
                let mut newest = BTreeMap::new();
                for name in catalog::jobs_of(&items) {
                    let dir = log_dir(&name);
                    let seqs = items.iter().filter_map(|item| record_seq(item.key.strip_prefix(&dir)?));
                    newest.insert(name, seqs.max().unwrap_or(0));
                }
                self.state().take_listing(newest);
                Ok(())
            }
            Err(e) => self.stay(e, self.state().listed_at.is_some()),
        }
    }

    /// What could not be read anew stays as it was, if it was known at all.
    fn stay(&self, error: crate::error::Error, is_known: bool) -> Result<()> {
        if !is_known {
            return Err(error);
        }
        self.monitor.warn(&format!("what is shown may be old: {error}"));
        self.state().listed_at = Some(Instant::now());
        Ok(())
    }

    /// When jobs last came or went.
    pub fn changed_at(&self) -> Result<Time> {
        self.refresh()?;
        Ok(self.state().changed_at)
    }

    /// All jobs by name, their snapshots as they were last read.
    pub fn jobs(&self) -> Result<Vec<Job>> {
        self.refresh()?;
        Ok(self.state().jobs.values().cloned().collect())
    }

    /// A job by its number, its snapshots as they are now.
    pub fn job(&self, number: u64) -> Answer<Job> {
        self.refresh()?;
        let name = self.state().by_number.get(&number).cloned().ok_or(Errno::STALE)?;
        self.job_named(&name)?.ok_or(Errno::STALE.into())
    }

    /// A job by its name, its snapshots as they are now.
    pub fn job_named(&self, name: &Name) -> Result<Option<Job>> {
        self.refresh()?;
        let is_read = |job: &Job| job.log.as_ref().is_some_and(|log| log.head.seq >= job.newest);
        let find = || self.state().jobs.get(name).cloned();
        match find() {
            None => return Ok(None),
            Some(job) if is_read(&job) => return Ok(Some(job)),
            Some(_) => may_wait()?,
        }
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(job) = find() else { return Ok(None) };
        if is_read(&job) {
            return Ok(Some(job));
        }
        match catalog::read(&self.volume, name) {
            Ok(log) => self.take_log(name, log),
            Err(e) => self.stay(e, job.log.is_some())?,
        }
        Ok(find())
    }

    fn take_log(&self, name: &Name, log: JobLog) {
        for fault in &log.faults {
            self.monitor.warn(&format!("the log of {name}: {fault}"));
        }
        let mut state = self.state();
        let snaps: BTreeMap<u64, Arc<Snap>> =
            log.live_states().map(|live| (live.snapshot.seq, state.snap(&live.snapshot))).collect();
        let Some(job) = state.jobs.get_mut(name) else { return };
        if job.log.is_none() || !job.snaps.keys().eq(snaps.keys()) {
            job.changed_at = now();
        }
        job.snaps = Arc::new(snaps);
        job.log = Some(Arc::new(log));
    }

    /// The snapshot in a slot.
    pub fn snap(&self, slot: u32) -> Answer<Arc<Snap>> {
        Ok(self.state().slots.get(&slot).cloned().ok_or(Errno::STALE)?)
    }

    /// The snapshot in a slot, opened.
    pub fn opened(&self, slot: u32) -> Answer<Arc<Opened>> {
        let snap = self.snap(slot)?;
        let (opened, is_new) = snap.opened(&self.live, || self.open_chain(&snap.snapshot))?;
        let mut closing = None;
        {
            let mut state = self.state();
            if is_new || state.open.front() != Some(&slot) {
                state.open.retain(|other| *other != slot);
                state.open.push_front(slot);
            }
            if state.open.len() > OPEN_MAX {
                closing = state.open.pop_back().and_then(|old| state.slots.get(&old).cloned());
            }
        }
        if let Some(old) = closing {
            old.close();
        }
        Ok(opened)
    }

    /// Chains that are open, whoever holds them.
    pub fn open_chains(&self) -> usize {
        Arc::strong_count(&self.live) - 1
    }

    fn open_chain(&self, snapshot: &Snapshot) -> Result<Chain> {
        if let Some((_, chain)) = &self.one {
            return Chain::open_with(&self.volume, chain, &self.blocks);
        }
        if snapshot.base.is_none() {
            return Chain::open_with(&self.volume, std::slice::from_ref(snapshot), &self.blocks);
        }
        let log = self.state().jobs.get(&snapshot.job).and_then(|job| job.log.clone());
        let log = match log {
            Some(log) => log,
            None => Arc::new(catalog::read(&self.volume, &snapshot.job)?),
        };
        Chain::open_with(&self.volume, &catalog::chain(&log, snapshot)?, &self.blocks)
    }
}

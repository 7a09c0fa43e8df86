//! What must hold after every step of every actor.

use std::collections::BTreeMap;

use bk::engine::catalog;
use bk::format::envelope;
use bk::format::layout::{log_dir, record_seq};
use bk::format::record::{Record, Snapshot};
use bk::model::ids::Name;
use bk::plan::log::JobLog;
use bk::volume::Store;
use bk::volume::memory::MemoryStore;

/// The log as it was seen so far, and what runs were told.
pub struct Checker {
    log: JobLog,
    /// Nonces of the snapshots in the log.
    recorded: Vec<String>,
    told: BTreeMap<String, bool>,
    /// Epochs of the lease that are held by one who believes so.
    held: Vec<u64>,
    /// The first thing that was broken.
    pub violation: Option<String>,
}

impl Checker {
    pub fn new(job: &Name) -> Self {
        Self { log: JobLog::new(job), recorded: Vec::new(), told: BTreeMap::new(), held: Vec::new(), violation: None }
    }

    pub fn told(&mut self, nonce: &str, won: bool) {
        self.told.insert(nonce.to_owned(), won);
    }

    /// With nothing that fails and nobody who waits too long, the lease has one holder.
    pub fn holds_lease(&mut self, epoch: u64, holds: bool) {
        if !holds {
            return self.held.retain(|held| *held != epoch);
        }
        if !self.held.is_empty() {
            self.violation.get_or_insert_with(|| format!("epoch {epoch} and {:?} are held at once", self.held));
        }
        self.held.push(epoch);
    }

    pub fn check(&mut self, memory: &MemoryStore) {
        if self.violation.is_none()
            && let Err(what) = self.holds(memory)
        {
            self.violation = Some(what);
        }
    }

    fn holds(&mut self, memory: &MemoryStore) -> Result<(), String> {
        self.follow(memory)?;
        // No live snapshot lacks an object, and no live snapshot's base is gone.
        let items = memory.list(&format!("data/{}/", self.log.job)).unwrap();
        let runs = catalog::runs(&items, &self.log.job);
        for snapshot in self.log.live() {
            let lying = runs.get(&snapshot.run_id).map_or(&[][..], Vec::as_slice);
            if let Some(what) = catalog::damage_in(lying, snapshot) {
                return Err(format!("live snapshot {}: {what}", snapshot.seq));
            }
            if let Some(base) = &snapshot.base
                && !self.log.state(base.seq).is_some_and(|state| state.is_live() && state.digest == base.digest)
            {
                return Err(format!("live snapshot {}: its base {} is gone", snapshot.seq, base.seq));
            }
        }
        // Who was told that he lost has no record, and who was told that he won has one.
        for (nonce, &won) in &self.told {
            if self.recorded.contains(nonce) != won {
                return Err(format!(
                    "a run was told {}",
                    if won { "won, but has no record" } else { "lost, but has a record" }
                ));
            }
        }
        Ok(())
    }

    /// Reads the records that are new: one a seq, no gaps, each the successor of the one before.
    fn follow(&mut self, memory: &MemoryStore) -> Result<(), String> {
        let dir = log_dir(&self.log.job);
        let items = memory.list(&dir).unwrap();
        if (items.len() as u64) < self.log.records {
            return Err("a record was deleted".to_owned());
        }
        for item in items.iter().skip(self.log.records as usize) {
            let seq = record_seq(item.key.strip_prefix(&dir).unwrap()).unwrap();
            let bytes = memory.read(&item.key, 1 << 20).unwrap();
            let record = Record::decode(&bytes).map_err(|e| e.to_string())?;
            if let Record::Snapshot(snapshot) = &record {
                self.recorded.push(snapshot.nonce.as_str().to_owned());
                self.base_is_newest(snapshot)?;
                self.is_alone_in_its_round(snapshot)?;
            }
            self.log.push(seq, Ok((record, envelope::digest(&bytes).unwrap())));
            if let Some(fault) = self.log.faults.first() {
                return Err(fault.to_string());
            }
        }
        Ok(())
    }

    /// All runs of one round have a stamp of the store: at most one of them counts, till it is expired.
    fn is_alone_in_its_round(&self, snapshot: &Snapshot) -> Result<(), String> {
        let other = self.log.live().find(|other| other.store_at.is_some());
        match (snapshot.store_at, other) {
            (Some(_), Some(other)) => Err(format!("snapshots {} and {} are of one round", other.seq, snapshot.seq)),
            _ => Ok(()),
        }
    }

    /// The base of a snapshot is the newest live one of a lower level, by the order of the log.
    fn base_is_newest(&self, snapshot: &Snapshot) -> Result<(), String> {
        let newest = self.log.live().rev().find(|s| s.level < snapshot.level).map(|s| s.seq);
        let base = snapshot.base.as_ref().map(|base| base.seq);
        if base == newest {
            return Ok(());
        }
        Err(format!("snapshot {} of level {} has base {base:?}, not {newest:?}", snapshot.seq, snapshot.level))
    }
}

//! Copies on a second volume: killed, gone on with, expired there by a clock of its own, and read back.

use std::sync::Arc;

use bk::engine::catalog;
use bk::engine::read::check::Depth;
use bk::format::record::Snapshot;
use bk::model::time::Instant;
use bk::monitor::Silent;
use bk::ops::{copy, expire, verify};
use bk::volume::{Volume, create_on, memory::MemoryStore};

use super::{Held, JOBS, World, failed, name, same};
use crate::history::model::Damage;
use crate::history::store::{Life, Mortal};
use crate::support::rng::Rng;

/// The second volume; it may die at any call, too.
pub struct Second {
    pub volume: Volume,
    life: Life,
}

impl Second {
    pub fn new() -> Self {
        let life = Life::endless();
        let store = Arc::new(Mortal { inner: Arc::new(MemoryStore::default()), life: life.clone() });
        Self { volume: create_on(store, "second".to_owned(), Instant::from_second(1).unwrap()).unwrap(), life }
    }
}

impl World {
    /// All of a job, or one of its snapshots.
    fn copy_request(&self, job: usize, live: &[u64], rng: &mut Rng) -> copy::Request {
        let what = match rng.below(3) {
            0 => copy::What::Snapshot(name(job, live[rng.below(live.len() as u64) as usize])),
            _ => copy::What::Job(JOBS[job].parse().unwrap()),
        };
        let keep = [None, None, Some("2h"), Some("never")][rng.below(4) as usize];
        let keep = keep.map(|text| text.parse().unwrap());
        copy::Request { what: vec![what], to_job: None, keep, threads: 1 + rng.below(3) as usize }
    }

    pub(super) fn copy(&mut self, job: usize, rng: &mut Rng) -> Held {
        let live: Vec<u64> = self.jobs[job].live().map(|snap| snap.seq).collect();
        if live.is_empty() {
            return Ok(());
        }
        let request = self.copy_request(job, &live, rng);
        let (target, clock) = (self.second.volume.clone(), self.clock(0));
        for _ in 0..rng.below(3) {
            let calls = rng.below(40) as i64;
            self.second.life.end_after(calls, rng.below(2) == 0);
            let ran = copy::run(&self.volume, &target, &request, &clock, &Silent);
            self.second.life.revive(calls);
            self.trace.push(format!("  killed after {calls} calls: {:?}", ran.map(|ran| ran.copied).map_err(failed)));
        }
        let outcome = copy::run(&self.volume, &target, &request, &clock, &Silent).map_err(failed)?;
        self.trace.push(format!("  {:?}: {:?}", request.what, outcome.rows));
        for row in &outcome.rows {
            let seq: u64 = row.source.split_once('/').unwrap().1.parse().unwrap();
            let snap = self.jobs[job].get(seq);
            let is_whole = self.jobs[job].is_whole(snap);
            // A base that was copied before it was damaged is good there.
            let is_right = match row.outcome {
                "failed" => !is_whole,
                "copied" => snap.damage == Damage::None,
                _ => true,
            };
            if !is_right {
                return Err(format!("{} is whole: {is_whole}, {:?}, and the copy: {row:?}", row.source, snap.damage));
            }
        }
        if rng.below(3) == 0 {
            self.expire_there(job, rng)?;
        }
        self.copies(job, rng.below(4) == 0)
    }

    fn expire_there(&mut self, job: usize, rng: &mut Rng) -> Held {
        let request = expire::Request {
            job: Some(JOBS[job].parse().unwrap()),
            node: "other".to_owned(),
            allow_last: rng.below(2) == 0,
            yes: true,
            sweep_lost: false,
            dry_run: false,
            sweep_grace: 0,
            threads: 1,
        };
        self.ahead += [0, 3 * 3600, 50 * 86_400][rng.below(3) as usize];
        let clock = self.clock(250);
        let outcome = expire::run(&self.second.volume, &request, &clock, &Silent).map_err(failed)?;
        self.trace.push(format!("  expired there: {}, swept: {}", outcome.expired, outcome.swept));
        same(&Vec::new(), &outcome.errors.into_iter().map(failed).collect::<Vec<_>>(), "errors of expiry there")?;
        let left = self.second.volume.store.list(&format!("runs/{}/", JOBS[job])).map_err(failed)?;
        same(&Vec::new(), &left, "what copies noted")
    }

    /// The newest copy, or all, come back as the tree was, whatever became of the originals.
    pub(super) fn copies(&mut self, job: usize, all: bool) -> Held {
        let volume = self.second.volume.clone();
        let log = catalog::read(&volume, &JOBS[job].parse().unwrap()).map_err(failed)?;
        log.sound().map_err(failed)?;
        let live: Vec<Snapshot> = log.live().cloned().collect();
        let count = if all { live.len() } else { 1 };
        for snapshot in live.iter().rev().take(count) {
            let from = snapshot.copied_from.as_ref().unwrap();
            let snap = self.jobs[job].get(from.seq).clone();
            let about = format!("copy {} of {}/{}", snapshot.seq, JOBS[job], from.seq);
            same(&snap.run_id, &from.run_id.to_string(), &about)?;
            let own = name(job, snapshot.seq);
            let options = verify::Options { snapshot: Some(own.clone()), depth: Depth::Data, threads: 1 };
            let verified = verify::run(&volume, &options, &bk::clock::System, &Silent)
                .map_err(|e| format!("{about}: {}", failed(e)))?;
            same(&Vec::new(), &verified.faults, &about)?;
            self.restores(&volume, own, &snap, &about)?;
            self.count.copies += 1;
        }
        Ok(())
    }
}

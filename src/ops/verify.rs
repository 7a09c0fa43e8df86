//! The run book of `bk verify`: the log, what no log names, then every object of one snapshot or of all.

use serde::Serialize;

use super::orphans;
use crate::{
    clock::Clock,
    engine::{
        catalog,
        read::check::{self, Checked},
    },
    error::{Error, Result},
    format::{layout::run_dir, record::Snapshot},
    model::ids::{Name, SnapshotName},
    monitor::Monitor,
    volume::Volume,
};

pub use crate::engine::read::check::{Depth, Fault};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The snapshot, with those it is based on; all of the volume when `None`.
    pub snapshot: Option<SnapshotName>,
    /// How deep.
    pub depth: Depth,
    /// Threads.
    pub threads: usize,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// Snapshots looked at.
    pub snapshots: u64,
    /// Sums.
    #[serde(flatten)]
    pub checked: Checked,
    /// Everything wrong: exit 8 when there is any.
    pub faults: Vec<Fault>,
}

/// Checks one snapshot, or all of them and the logs. Goes on after a fault.
pub fn run(volume: &Volume, options: &Options, clock: &dyn Clock, monitor: &dyn Monitor) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut snapshots: Vec<Snapshot> = Vec::new();
    // A job may have lost its whole log.
    let items = if options.snapshot.is_some() { Vec::new() } else { volume.store.list("data/")? };
    let lying = catalog::by_job(items);
    let lost_before_ms = clock.unix_ms().saturating_sub(orphans::YOUNG_MS);
    let mut jobs = match &options.snapshot {
        Some(name) => vec![name.job.clone()],
        None => catalog::jobs(volume)?,
    };
    jobs.extend(lying.keys().cloned());
    jobs.sort();
    jobs.dedup();
    for job in jobs {
        let log = catalog::read(volume, &job)?;
        let runs = lying.get(&job).map(|items| catalog::runs(items, &job)).unwrap_or_default();
        let lost = orphans::lost(volume, &log, &runs, lost_before_ms)?;
        let what = "it looks whole, but no record names it: has the log lost records?";
        outcome.faults.extend(lost.into_iter().map(|run| Fault::new(run_dir(&job, run), "log", what)));
        outcome.faults.extend(log.faults.iter().map(|e| log_fault(&job, e)));
        let broken = log.live().filter_map(|snapshot| log.chain(snapshot).err());
        outcome.faults.extend(broken.map(|e| log_fault(&job, &e)));
        snapshots.extend(log.live().cloned());
    }
    if let Some(name) = &options.snapshot {
        match catalog::find(volume, name) {
            // Without what it needs it is worth nothing.
            Ok(one) => {
                let log = catalog::read(volume, &name.job)?;
                snapshots = log.chain(&one).unwrap_or_else(|_| vec![one]);
            }
            // The record itself is damaged: the faults say so.
            Err(e) if e.kind() == crate::error::Kind::Integrity && !outcome.faults.is_empty() => snapshots.clear(),
            Err(e) => return Err(e),
        }
    }
    let bytes = snapshots.iter().map(|s| s.totals.stored_bytes + s.totals.index_bytes).sum();
    monitor.expect(0, if options.depth == Depth::Quick { 0 } else { bytes });
    for snapshot in &snapshots {
        let (checked, faults) = check::check(volume, snapshot, options.depth, options.threads, monitor)?;
        // What is missing of a snapshot that has gone since the log was read is no fault.
        if !faults.is_empty()
            && let Some(mark) = catalog::expired_by(volume, snapshot)
        {
            let gone = catalog::gone_meanwhile(snapshot, &mark, "verified");
            if options.snapshot.is_some() {
                return Err(gone);
            }
            monitor.note(&gone.to_string());
            continue;
        }
        outcome.snapshots += 1;
        outcome.checked.add(checked);
        outcome.faults.extend(faults);
    }
    Ok(outcome)
}

fn log_fault(job: &Name, error: &Error) -> Fault {
    Fault::new(format!("log/{job}/"), "log", error.to_string())
}

//! The run book of `bk expire`: list what lies there, record what goes, and only then delete it.
//!
//! Order, for every job: list the objects → read the log → look for runs that have lost their records → plan → win the `expire`
//! record → win a `sweep` record for runs that never ended → delete the objects of all runs that a record says are gone, those of
//! an earlier, killed expiry too. A failed listing, or a lost record, ends the job before anything follows from it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::orphans;
use crate::{
    clock::Clock,
    engine::{
        catalog::{self, Author, JobLog},
        parallel,
    },
    error::{Error, Kind, Result},
    format::{
        change::{Expire, NAMES_MAX, RunName, Sweep},
        layout::{run_dir, runs_dir},
    },
    model::{
        ids::{Name, RunId},
        time::Instant,
    },
    monitor::Monitor,
    plan::expiry::{self, Fate, Plan},
    volume::{Item, Volume},
};

/// A run that was not recorded is swept when it began, and last stored anything, this long ago, seconds. One that goes on says how
/// far it is every few seconds.
pub const SWEEP_GRACE_SECONDS: u64 = 24 * 3600;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The job; all when `None`.
    pub job: Option<Name>,
    /// This node's name, for the records.
    pub node: String,
    /// The last usable chain of a job may go, too.
    pub allow_last: bool,
    /// Any share of a job's snapshots may go at once.
    pub yes: bool,
    /// Runs that have lost their records go as runs that were never recorded.
    pub sweep_lost: bool,
    /// Only show what would be done.
    pub dry_run: bool,
    /// Runs that were not recorded stay this long, seconds.
    pub sweep_grace: u64,
    /// Deleting threads.
    pub threads: usize,
}

/// One snapshot that is past its time, or would be.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `job/seq`
    pub snapshot: String,
    /// When it may go; null is never.
    pub expires_at: Option<Instant>,
    /// What happens to it.
    #[serde(flatten)]
    pub fate: Fate,
    /// Whether nothing of the job went, as too much would have.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
}

/// What expiry came to.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// Snapshots that went, and those that are past their time and stay.
    #[serde(skip)]
    pub rows: Vec<Row>,
    /// Snapshots that went.
    pub expired: u64,
    /// Runs that were never recorded and went.
    pub swept: u64,
    /// Runs whose objects were deleted, those of an earlier expiry too.
    pub runs: u64,
    /// Objects deleted.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Jobs where nothing, or not all, could be done, and why.
    #[serde(skip)]
    pub errors: Vec<Error>,
}

/// Expires what is past its time. An error of one job does not stop the others.
pub fn run(volume: &Volume, request: &Request, clock: &dyn Clock, monitor: &dyn Monitor) -> Result<Outcome> {
    // What is listed is as old as the listing when its turn comes, however long that takes.
    let unix_ms = clock.unix_ms();
    let prefix = request.job.as_ref().map_or_else(|| "data/".to_owned(), |job| format!("data/{job}/"));
    let items = volume.store.list(&prefix)?;
    let prefix = request.job.as_ref().map_or_else(|| "runs/".to_owned(), runs_dir);
    let notes = volume.store.list(&prefix)?;
    let (mut items, mut notes) = (catalog::by_job(items), catalog::by_job(notes));
    let mut jobs: Vec<Name> = items.keys().chain(notes.keys()).cloned().collect();
    match &request.job {
        Some(job) => jobs = vec![job.clone()],
        None => jobs.extend(catalog::jobs(volume)?),
    }
    jobs.sort();
    jobs.dedup();
    let mut outcome = Outcome::default();
    for job in jobs {
        let lying = catalog::runs(&items.remove(&job).unwrap_or_default(), &job);
        let notes = catalog::notes(&notes.remove(&job).unwrap_or_default(), &job);
        let mut one = Job { volume, request, job, lying, notes, clock, unix_ms, monitor, outcome: &mut outcome };
        let mut errors = one.run();
        if let Some(at) = errors.iter().position(|e| matches!(e.kind(), Kind::Signal(_))) {
            return Err(errors.swap_remove(at));
        }
        outcome.errors.append(&mut errors);
    }
    Ok(outcome)
}

struct Job<'a> {
    volume: &'a Volume,
    request: &'a Request,
    job: Name,
    /// Objects by run, as they were listed.
    lying: BTreeMap<RunId, Vec<Item>>,
    /// What lies below `runs/`, likewise.
    notes: BTreeMap<RunId, Vec<Item>>,
    /// Asked anew for each record: what others wrote while an earlier job took hours is not ahead of time.
    clock: &'a dyn Clock,
    /// Before that was listed.
    unix_ms: u64,
    monitor: &'a dyn Monitor,
    outcome: &'a mut Outcome,
}

impl Job<'_> {
    /// Does it, and gives all that went wrong.
    fn run(&mut self) -> Vec<Error> {
        let mut log = match self.look() {
            Ok(log) => log,
            Err(e) => return vec![e],
        };
        // What is recorded as gone is deleted whatever the clock says; nothing new is recorded when it is wrong.
        let mut ended = vec![self.expire(&mut log), self.sweep(&mut log)];
        if !self.request.dry_run {
            ended.push(self.delete(&log).and_then(|()| self.tidy(&log)));
        }
        let mut errors: Vec<Error> = ended.into_iter().filter_map(Result::err).collect();
        errors.dedup_by_key(|e| e.to_string());
        errors
    }

    /// Reads the log. Where records of it are damaged or gone, nothing may be recorded or deleted: what they said is not known, and
    /// what is recorded now would take their place.
    fn look(&self) -> Result<JobLog> {
        let log = catalog::read(self.volume, &self.job)?;
        if log.records == 0 && self.lying.is_empty() && self.notes.is_empty() {
            return Err(Error::usage(format!("{} has no job {}", self.volume.shown, self.job))
                .with_hint("`bk list` shows what there is"));
        }
        log.sound()?;
        if self.request.sweep_lost {
            return Ok(log);
        }
        let quiet_ms = orphans::YOUNG_MS.min(self.request.sweep_grace.saturating_mul(1000));
        let lost = orphans::lost(self.volume, &log, &self.lying, self.unix_ms.saturating_sub(quiet_ms))?;
        if lost.is_empty() {
            return Ok(log);
        }
        let hint = "bring back what is missing below log/: nothing of the job goes till then; `--sweep-lost` gives these runs up";
        Err(Error::usage(orphans::told(&self.job, &lost)).with_hint(hint))
    }

    /// Records what goes.
    fn expire(&mut self, log: &mut JobLog) -> Result<()> {
        let plan = self.plan(log)?;
        self.show(log, &plan)?;
        if self.request.dry_run {
            self.outcome.expired += plan.go.len() as u64;
            return plan.refused.map_or(Ok(()), |why| Err(refusal(why)));
        }
        // More than fit into one record go in several, dependents first.
        let mut left = plan.go.len();
        while left > 0 {
            let (after, what) = catalog::change(self.volume, &self.job, &self.author()?, |log| {
                let plan = self.plan(log)?;
                if let Some(why) = plan.refused {
                    return Err(refusal(why));
                }
                let snapshots: Vec<_> =
                    plan.go.iter().take(left.min(NAMES_MAX)).filter_map(|&seq| Some(log.state(seq)?.named())).collect();
                Ok((!snapshots.is_empty()).then_some(Expire { snapshots }))
            })?;
            *log = after;
            let count = what.map_or(0, |what| what.snapshots.len());
            self.outcome.expired += count as u64;
            left = if count == 0 { 0 } else { left.saturating_sub(count) };
        }
        Ok(())
    }

    /// Now, if this node's clock and the store's agree.
    fn now(&self) -> Result<Instant> {
        let now = self.clock.now()?;
        expiry::check_clocks(now, self.volume.store.now())?;
        Ok(now)
    }

    fn plan(&self, log: &JobLog) -> Result<Plan> {
        log.sound()?;
        let request = self.request;
        let options = expiry::Options { now: self.now()?, allow_last: request.allow_last, yes: request.yes };
        expiry::plan(log, &unusable(log, &self.lying), options)
    }

    fn author(&self) -> Result<Author> {
        Ok(Author { node: self.request.node.clone(), at: self.now()? })
    }

    /// What is past its time, whether it goes or stays.
    fn show(&mut self, log: &JobLog, plan: &Plan) -> Result<()> {
        let now = self.clock.now()?;
        for (&seq, fate) in &plan.fates {
            let expires_at = log.state(seq).and_then(|state| state.expires_at);
            if expires_at.is_some_and(|at| at <= now) {
                let (snapshot, fate, refused) = (format!("{}/{seq}", self.job), fate.clone(), plan.refused.is_some());
                self.outcome.rows.push(Row { snapshot, expires_at, fate, refused });
            }
        }
        Ok(())
    }

    /// Records that runs which never ended cannot be recorded any more.
    fn sweep(&mut self, log: &mut JobLog) -> Result<()> {
        log.sound()?;
        expiry::check_clock(log, self.now()?)?;
        let found = self.orphans(log);
        if self.request.dry_run {
            self.outcome.swept += found.len() as u64;
        } else if !found.is_empty() {
            let (after, what) = catalog::change(self.volume, &self.job, &self.author()?, |log| {
                log.sound()?;
                expiry::check_clock(log, self.now()?)?;
                let runs = self.orphans(log);
                Ok((!runs.is_empty()).then_some(Sweep { runs }))
            })?;
            *log = after;
            self.outcome.swept += what.map_or(0, |what| what.runs.len()) as u64;
        }
        Ok(())
    }

    /// Runs that no record names and that are old enough.
    fn orphans(&self, log: &JobLog) -> Vec<RunName> {
        let runs = self.lying.keys().filter(|run| !log.knows(**run) && self.is_over(**run));
        runs.take(NAMES_MAX).map(|run| RunName(*run)).collect()
    }

    /// Whether a run that no record names has ended, however it did: nothing of it is younger than the grace.
    fn is_over(&self, run: RunId) -> bool {
        let items = self.lying.get(&run).into_iter().chain(self.notes.get(&run)).flatten();
        orphans::last_ms(run, items).saturating_add(self.request.sweep_grace.saturating_mul(1000)) <= self.unix_ms
    }

    /// Deletes what lies below `runs/` of runs that have ended. What was not swept keeps its notes: they tell that it was killed.
    fn tidy(&self, log: &JobLog) -> Result<()> {
        let is_over = |run: RunId| !self.lying.contains_key(&run) && self.now().is_ok() && self.is_over(run);
        let ended = self.notes.iter().filter(|(run, _)| log.knows(**run) || is_over(**run));
        let keys: Vec<String> = ended.flat_map(|(_, items)| items.iter().map(|item| item.key.clone())).collect();
        self.volume.store.delete_all(&keys)
    }

    /// Deletes the objects of every run that a record says is gone, those of dependents before those of their bases.
    fn delete(&mut self, log: &JobLog) -> Result<()> {
        let mut waves: BTreeMap<u8, Vec<RunId>> = BTreeMap::new();
        let expired = log.states.iter().filter(|state| !state.is_live()).map(|s| (s.snapshot.level, s.snapshot.run_id));
        for (level, run) in expired.chain(log.swept.iter().map(|run| (0, *run))) {
            if self.lying.contains_key(&run) {
                waves.entry(level).or_default().push(run);
            }
        }
        for runs in waves.into_values().rev() {
            let deleted = remove(self.volume, &self.job, &runs, self.request.threads, self.monitor)?;
            self.outcome.runs += runs.len() as u64;
            self.outcome.objects += deleted.objects;
            self.outcome.bytes += deleted.bytes;
        }
        Ok(())
    }
}

fn refusal(why: String) -> Error {
    Error::usage(why).with_hint("look at `bk expire --dry-run`; `--yes` lets them go")
}

/// The live snapshots whose objects are not all there, by the listing of their job.
pub fn unusable(log: &JobLog, lying: &BTreeMap<RunId, Vec<Item>>) -> BTreeSet<u64> {
    let damaged = log.live().filter(|s| {
        let items = lying.get(&s.run_id).map_or(&[][..], Vec::as_slice);
        catalog::damage_in(items, s).is_some()
    });
    damaged.map(|s| s.seq).collect()
}

/// What was deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Objects deleted between two looks at signals.
const DELETE_COUNT: usize = 1000;

/// Deletes all objects of `runs`, each of which a record must say is gone: one listing a run, many objects a call.
///
/// Stops at the first error; what is left goes with the next expiry.
pub fn remove(volume: &Volume, job: &Name, runs: &[RunId], threads: usize, monitor: &dyn Monitor) -> Result<Deleted> {
    let one = |run: &RunId| -> Result<Deleted> {
        let mut deleted = Deleted::default();
        for items in volume.store.list(&run_dir(job, *run))?.chunks(DELETE_COUNT) {
            if let Some(signal) = monitor.interrupted() {
                return Err(Error::new(Kind::Signal(signal), "interrupted")
                    .with_hint("`bk expire` goes on where this one stopped"));
            }
            volume.store.delete_all(&items.iter().map(|item| item.key.clone()).collect::<Vec<_>>())?;
            for item in items {
                deleted.objects += 1;
                deleted.bytes += item.len;
                monitor.advance(1, item.len, item.key.as_bytes());
            }
        }
        Ok(deleted)
    };
    let deleted = parallel::each(threads, runs, one)?;
    Ok(Deleted {
        objects: deleted.iter().map(|run| run.objects).sum(),
        bytes: deleted.iter().map(|run| run.bytes).sum(),
    })
}

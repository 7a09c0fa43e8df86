//! The run book of `bk expire`: list what lies there, record what goes, and only then delete it.
//!
//! Order, for every job: list the objects → read the log and plan → win the `expire` record → win a `sweep` record for runs
//! that never ended → delete the objects of all runs that a record says are gone, those of an earlier, killed expiry too.
//! A failed listing ends the job before anything follows from it.

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

/// More runs than this that look whole, have no record and were killed are not swept without a yes.
const WHOLE_ORPHANS_MAX: usize = 1;

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
    let mut jobs = catalog::jobs_of(&items);
    jobs.extend(catalog::jobs_of(&notes));
    match &request.job {
        Some(job) => jobs = vec![job.clone()],
        None => jobs.extend(catalog::jobs(volume)?),
    }
    jobs.sort();
    jobs.dedup();
    let mut outcome = Outcome::default();
    for job in jobs {
        let lying = catalog::runs(&items, &job);
        let notes = catalog::notes(&notes, &job);
        let mut one = Job { volume, request, job, lying, notes, clock, unix_ms, monitor, outcome: &mut outcome };
        if let Err(e) = one.run() {
            if matches!(e.kind(), Kind::Signal(_)) {
                return Err(e);
            }
            outcome.errors.push(e);
        }
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
    fn run(&mut self) -> Result<()> {
        let mut log = catalog::read(self.volume, &self.job)?;
        if log.records == 0 && self.lying.is_empty() && self.notes.is_empty() {
            return Err(Error::usage(format!("{} has no job {}", self.volume.shown, self.job))
                .with_hint("`bk list` shows what there is"));
        }
        // What is recorded as gone is deleted whatever the clock says; nothing new is recorded when it is wrong.
        let expired = self.expire(&mut log);
        let swept = self.sweep(&mut log);
        if !self.request.dry_run && log.sound().is_ok() {
            self.delete(&log)?;
            self.tidy(&log)?;
        }
        expired.and(swept)
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
        let (found, kept) = self.orphans(log);
        if self.request.dry_run {
            self.outcome.swept += found.len() as u64;
        } else if !found.is_empty() {
            let (after, what) = catalog::change(self.volume, &self.job, &self.author()?, |log| {
                log.sound()?;
                expiry::check_clock(log, self.now()?)?;
                let runs = self.orphans(log).0;
                Ok((!runs.is_empty()).then_some(Sweep { runs }))
            })?;
            *log = after;
            self.outcome.swept += what.map_or(0, |what| what.runs.len()) as u64;
        }
        if kept == 0 {
            return Ok(());
        }
        let what = match kept {
            1 => format!("a run of {} looks whole, but no record names it: has the log lost records?", self.job),
            _ => format!("{kept} runs of {} look whole, but no record names them: has the log lost records?", self.job),
        };
        Err(Error::usage(what).with_hint("bring back what is missing below log/; `--yes` sweeps these runs"))
    }

    /// Runs that no record names and that are old enough, and how many more are kept since they look whole.
    ///
    /// A run that stored everything and was killed before its commit is rare: several at once are snapshots whose records are
    /// gone, and so is a single one that was not killed.
    fn orphans(&self, log: &JobLog) -> (Vec<RunName>, usize) {
        // A copy that was noted and not ended has another where it came from.
        let is_copy = |run: &RunId| {
            let name = |item: &Item| item.key.rsplit('/').next().is_some_and(|name| name.starts_with("copy."));
            self.notes.get(run).is_some_and(|items| items.iter().any(name))
        };
        let orphans = self.lying.iter().filter(|(run, _)| !log.knows(**run) && self.is_over(**run));
        let (whole, half): (Vec<_>, Vec<_>) =
            orphans.partition(|(run, items)| orphans::is_whole(items) && !is_copy(run));
        let is_lost = |(run, _): &(&RunId, &Vec<Item>)| !self.notes.contains_key(*run);
        let keep = (whole.len() > WHOLE_ORPHANS_MAX || whole.iter().any(is_lost)) && !self.request.yes;
        let kept = if keep { whole.len() } else { 0 };
        let runs = half.into_iter().chain(whole.into_iter().filter(|_| !keep));
        (runs.take(NAMES_MAX).map(|(run, _)| RunName(*run)).collect(), kept)
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

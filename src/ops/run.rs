//! The run book of a job: what goes on around a snapshot. From top to bottom:
//!
//! lock and recover → gate → media steps → volume, lease, base → steps → stream, frame, store → role asked again → commit
//! → steps left → lease given back, volume closed → expiry and copies → media steps left → steps that follow a run → what it came to.
//!
//! Invariant: whatever was begun is left, however the run ends; a run that no longer may act commits nothing.

mod hold;
mod report;
mod validate;

use std::{path::Path, sync::Arc};

use hold::{Alone, Hold};
use report::Failed;
pub use report::{Fault, Report, weight};
pub(super) use report::{exit_of, fault};
pub use validate::{Valid, validate};

use super::snapshot::{self, Guarded, Outcome, Ready, Request, Skipped, Unrecorded, prepare};
use crate::{
    clock::Clock,
    config::{
        gate::{Gate, GateKind},
        step::Step,
    },
    engine::{
        beat::{self, Beating, Phase, Watch},
        cluster::gate::{Asking, Open, Verdict},
    },
    error::{Error, Kind, Result},
    model::ids::{Name, RunId},
    monitor::Monitor,
    steps::{self, Closed, Locked, State, Steps, Values, recover},
    volume::{Volume, local::LocalStore},
};

/// A job as far as it is not the snapshot itself.
pub struct Job<'a> {
    /// Its name.
    pub name: &'a Name,
    /// This node's name.
    pub node: &'a str,
    /// Whether this node may act.
    pub gate: &'a Gate,
    /// Its steps, in order, as far as they do not depend on the role.
    pub steps: &'a [Step],
    /// There may be others in the role that the gate tells.
    pub steps_by_role: bool,
    /// Where steps are noted.
    pub state_dir: &'a Path,
    /// How a run says on the volume how far it is.
    pub beat: beat::Settings,
}

/// A job as it is in the role that the gate told.
pub struct Told<'a> {
    /// Its steps, in order.
    pub steps: &'a [Step],
    /// How long the application may be held.
    pub max_hold: Option<std::time::Duration>,
    /// What is to be stored.
    pub request: Request,
}

/// What can be made only in the middle of a run.
pub struct Work<'a> {
    /// Opens the volume, when the media are there.
    pub open: &'a dyn Fn() -> Result<(Volume, Option<LocalStore>)>,
    /// The rest of the job, when role and datasource are known: asked before anything is begun.
    pub told: &'a dyn Fn(&Open) -> Result<Told<'a>>,
    /// What follows a snapshot that was taken, while the media are still there: expiry and copies. What goes wrong comes back.
    pub then: &'a dyn Fn(&Outcome) -> Vec<Error>,
}

/// A run that did not fail.
enum Done {
    Taken(Box<Outcome>),
    Valid(Box<Valid>),
    Skipped(Skipped),
}

/// Runs a job once. All that happens is in the report, failures included.
pub fn run(job: &Job<'_>, work: &Work<'_>, clock: &dyn Clock, monitor: &dyn Monitor) -> Report {
    let mut report = Report::new(job);
    let state = State::new(job.state_dir);
    // Of programs that are not to be run, none is run, not even to tell of that.
    let run_id = match check(job).and_then(|()| RunId::new(clock.unix_ms())) {
        Ok(run_id) => run_id,
        Err(e) => return report.fail(e.into()),
    };
    let locked = match lock(job, &state) {
        Ok(Some(locked)) => locked,
        Ok(None) => return report.skip(at_work(job)),
        Err(e) => {
            let steps = Steps::new(job.steps, None, values(job, run_id), monitor);
            let mut run = Run { job, work, clock, monitor, run_id, steps };
            report.end(Err(e.into()));
            run.follow(&mut report);
            return report.finish(&run.steps);
        }
    };
    let place = locked.as_ref().map(|locked| (&state, locked, job.name, run_id));
    let steps = Steps::new(job.steps, place, values(job, run_id), monitor);
    let told = steps.closed();
    monitor.opens_first(Box::new(move || told.keeps_process()));
    let mut run = Run { job, work, clock, monitor, run_id, steps };
    let ended = run.recovered(locked.as_ref(), &mut report).and_then(|()| run.gated(&mut report));
    report.end(ended);
    let finished = run.steps.finish();
    report.faults(finished.err());
    run.follow(&mut report);
    report.finish(&run.steps)
}

/// What every command of the run gets.
fn values(job: &Job<'_>, run_id: RunId) -> Values {
    let values =
        [("BK_JOB", job.name.to_string()), ("BK_NODE", job.node.to_owned()), ("BK_RUN_ID", run_id.to_string())];
    values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn at_work(job: &Job<'_>) -> Skipped {
    let why = format!("another run of {} is at work on this node", job.name);
    Skipped { job: job.name.to_string(), outcome: "skipped-running", why }
}

/// Looks at the programs.
fn check(job: &Job<'_>) -> Result<()> {
    steps::check_ahead(job.steps)?;
    if let GateKind::Command { argv, user, .. } | GateKind::Postgres { argv, user, .. } = &job.gate.kind {
        steps::check_program(argv, user.as_deref()).map_err(|e| e.context("gate"))?;
    }
    Ok(())
}

/// Takes the job's lock on this machine: `None` when a run has it, an error when that was killed and leaves nothing any more. A
/// job that never had steps needs none.
fn lock(job: &Job<'_>, state: &State) -> Result<Option<Option<Locked>>> {
    if job.steps.is_empty() && !job.steps_by_role && !state.knows(job.name) {
        return Ok(Some(None));
    }
    match state.lock_or_holder(job.name)? {
        Ok(locked) => Ok(Some(Some(locked))),
        Err(holder) => holder.killed().map_or(Ok(None), Err),
    }
}

/// Leaves what an earlier run had begun, wherever the coordinator is by now. What cannot be left keeps this run from beginning.
pub(super) fn leave_earlier(
    locked: Option<&Locked>,
    job: &Name,
    closed: &Closed,
    monitor: &dyn Monitor,
    recovered: &mut Vec<recover::Recovered>,
) -> Result<()> {
    let Some(locked) = locked else { return Ok(()) };
    for mut run in recover::recover(locked, None, closed, monitor)? {
        let errors = std::mem::take(&mut run.errors);
        recovered.push(run);
        if let Some(e) = errors.into_iter().next() {
            let hint = format!("`bk recover {job}` tries again; `bk recover --forget {job}` when it was done by hand");
            return Err(e.context("what an earlier run had begun is not left").with_hint(hint));
        }
    }
    Ok(())
}

struct Run<'a, 'w> {
    job: &'a Job<'a>,
    work: &'a Work<'w>,
    clock: &'a dyn Clock,
    monitor: &'a dyn Monitor,
    run_id: RunId,
    steps: Steps<'a>,
}

impl Run<'_, '_> {
    fn recovered(&self, locked: Option<&Locked>, report: &mut Report) -> Result<(), Failed> {
        Ok(leave_earlier(locked, self.job.name, &self.steps.closed(), self.monitor, &mut report.recovered)?)
    }

    /// Asks the gate; with media and volume, when it is open.
    fn gated(&mut self, report: &mut Report) -> Result<Done, Failed> {
        let values = self.steps.values().clone();
        let asking = Asking { gate: self.job.gate, node: self.job.node, values: &values, monitor: self.monitor };
        let open = match asking.ask()? {
            Verdict::Open(open) => open,
            Verdict::Skip(why) => {
                let job = self.job.name.to_string();
                return Ok(Done::Skipped(Skipped { job, outcome: "skipped-gate", why }));
            }
        };
        for (name, value) in open.values() {
            self.steps.set(&name, value);
        }
        report.open = Some(open.clone());
        let told = (self.work.told)(&open)?;
        steps::check_ahead(told.steps)?;
        self.steps.turn_to(told.steps);
        let entered = self.steps.enter(true, self.monitor, &|| Ok(())).map_err(of_media);
        let ended = entered.map_err(Failed::from).and_then(|()| self.with_volume(&asking, &open, told, report));
        if let Ok(Done::Taken(outcome)) = &ended {
            report.faults((self.work.then)(outcome));
        }
        self.tell(&ended);
        report.faults(self.steps.leave(false).into_iter().map(of_media));
        ended
    }

    /// The run with its volume open; all of it is closed again when this returns, so that a medium can be put away.
    fn with_volume(
        &mut self,
        asking: &Asking<'_>,
        open: &Open,
        told: Told<'_>,
        report: &mut Report,
    ) -> Result<Done, Failed> {
        let (volume, local) = (self.work.open)()?;
        let mut request = told.request;
        request.values.extend(self.steps.values().clone());
        let watch = Watch::new(self.monitor);
        let hold = Hold::new(told.max_hold, self.steps.closed(), &watch);
        let prepared = match prepare(&volume, local.as_ref(), &request, self.run_id, self.clock, &hold)? {
            Ready::Run(prepared) => prepared,
            Ready::Skip(skipped) => return Ok(Done::Skipped(skipped)),
        };
        // Kept until the application is open again: no other run begins before.
        let lease = prepared.lease();
        self.steps.set("BK_LEVEL", prepared.level().to_string());
        let begun = prepared.begun();
        let who = self.who(&volume, &request, prepared.level())?;
        let beating = watch.start(who, &self.job.beat, Arc::clone(&begun));
        let taken = self.held((&hold, &watch, &beating), prepared, asking, open, report);
        watch.turn_to(Phase::Leaving);
        // Beside the steps: a slow volume holds no application.
        beating.take_back();
        let ended = taken.map(|outcome| Done::Taken(Box::new(outcome)));
        self.tell(&ended);
        report.faults(self.steps.leave(true));
        drop(beating);
        begun.take_back();
        drop(lease);
        ended
    }

    /// From the safe state of the application to the commit.
    fn held(
        &mut self,
        (hold, watch, beating): (&Hold<'_>, &Watch<'_>, &Beating),
        prepared: Box<snapshot::Prepared<'_>>,
        asking: &Asking<'_>,
        open: &Open,
        report: &mut Report,
    ) -> Result<Outcome, Failed> {
        let explain = |e| watch.explain(hold.explain(e));
        // A run that was still while another took its place closes nothing any more.
        let guarded = Guarded::new(hold, prepared.lease());
        let check = || guarded.lease().check_soon(&|| guarded.interrupted().is_some());
        self.steps.enter(false, &guarded, &check).map_err(|e| explain(guarded.explain(e)))?;
        watch.turn_to(Phase::Storing);
        // What is left alone is nothing any more: it keeps no other run away.
        let yields = || {
            guarded.lease().end();
            beating.end();
        };
        let outcome = |signal| Failed::from(explain(Error::new(Kind::Signal(signal), "interrupted"))).outcome();
        let (ended, early) = hold.storing(&mut self.steps, &Alone { outcome: &outcome, yields: &yields }, || {
            let unrecorded = prepared.store().map_err(explain)?;
            if !hold.may_commit() {
                unrecorded.abandon();
                let signal = hold.interrupted().unwrap_or_default();
                return Err(explain(Error::new(Kind::Signal(signal), "interrupted")).into());
            }
            watch.turn_to(Phase::Committing);
            commit(asking, open, unrecorded, watch)
        });
        report.faults(early);
        ended
    }

    /// The run as it shows itself on the volume.
    fn who(&self, volume: &Volume, request: &Request, level: u8) -> Result<beat::Who> {
        Ok(beat::Who {
            store: Arc::clone(&volume.store),
            job: request.job.clone(),
            run_id: self.run_id,
            node: request.node.clone(),
            level,
            started_at: self.clock.now()?,
        })
    }

    /// Tells the steps that are left, and follow, what came of it.
    fn tell(&mut self, ended: &Result<Done, Failed>) {
        let (result, snapshot) = match ended {
            Ok(Done::Taken(outcome)) => (outcome.outcome, Some(outcome.snapshot.clone())),
            Ok(Done::Skipped(skipped)) => (skipped.outcome, None),
            Ok(Done::Valid(_)) => ("valid", None),
            Err(failed) => (failed.outcome(), None),
        };
        self.steps.set("BK_RESULT", result);
        if let Some(snapshot) = snapshot {
            self.steps.set("BK_SNAPSHOT", snapshot);
        }
    }

    /// Runs the steps that follow a run, with the report so far as their input.
    fn follow(&mut self, report: &mut Report) {
        let kinds = report.followed_by();
        if kinds.is_empty() {
            return;
        }
        self.steps.set("BK_RESULT", report.outcome());
        self.steps.set("BK_EXIT", report.exit().to_string());
        match report.json(&self.steps) {
            Ok(json) => report.faults(self.steps.after(&kinds, &json)),
            Err(e) => report.faults(Some(e)),
        }
    }
}

/// Asks for the role again, then makes the record.
fn commit(asking: &Asking<'_>, open: &Open, unrecorded: Unrecorded<'_>, watch: &Watch<'_>) -> Result<Outcome, Failed> {
    let may = asking.ask_again(open).map_err(Failed::from).and_then(|lost| match (lost, watch.interrupted()) {
        (Some(why), _) => Err(Failed::named("lost-role", Error::new(Kind::Lost, format!("{why}: nothing is kept")))),
        (None, Some(signal)) => Err(watch.explain(Error::new(Kind::Signal(signal), "interrupted")).into()),
        (None, None) => Ok(()),
    });
    match may {
        Ok(()) => Ok(unrecorded.commit()?),
        Err(failed) => {
            unrecorded.abandon();
            Err(failed)
        }
    }
}

/// A step of the media that fails is a fault of the media.
fn of_media(error: Error) -> Error {
    if error.kind() == Kind::Step { error.with_kind(Kind::Volume).context("media") } else { error }
}

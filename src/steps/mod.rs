//! A user's commands around the work: entered in order, left in reverse, whatever happened.
//!
//! Invariant: a step is in the journal before its first command starts, and everything in the journal is left: by the run, by the
//! [`watch`]er when the run is killed, by [`recover`] when the machine is started again. A step's `leave` so runs at least once, and
//! once only when its end was written down.

mod attempt;
mod closed;
mod feed;
mod journal;
mod output;
pub mod process;
pub mod recover;
mod state;
mod trust;
pub mod watch;

use std::{collections::BTreeMap, time::Duration};

pub use attempt::{Phase, Report};
use attempt::{attempt, until};
pub use closed::Closed;
pub use feed::Feed;
use journal::Journal;
pub use journal::Locked;
pub use state::{Holder, State};
pub use trust::{AS_USER, number};
use watch::Watcher;

use crate::{
    config::step::{On, Step},
    error::{Error, Kind, Result},
    model::ids::{Name, RunId},
    monitor::Monitor,
};

/// What goes by environment.
pub type Values = BTreeMap<String, String>;

/// Refuses programs that others can change, before anything is run.
pub fn check_ahead(steps: &[Step]) -> Result<()> {
    for step in steps {
        let around = [&step.when, &step.enter, &step.enter_until, &step.leave, &step.leave_until];
        let after = step.after.as_ref().map(|(_, argv)| argv);
        for argv in around.into_iter().flatten().chain(after) {
            trust::check_ahead(argv, step.user.as_deref()).map_err(|e| e.context(format!("step {}", step.name)))?;
        }
    }
    Ok(())
}

/// Refuses such a program of a gate.
pub fn check_program(argv: &[String], user: Option<&str>) -> Result<()> {
    trust::check_ahead(argv, user)
}

/// Refuses such a program, and one that is not there.
pub fn require_program(argv: &[String], user: Option<&str>) -> Result<()> {
    trust::program(argv, user).map(drop)
}

/// User and group of a user of this system.
pub fn ids_of(user: &str) -> Result<(u32, u32)> {
    trust::ids(user)
}

/// The steps of a run.
pub struct Steps<'a> {
    steps: &'a [Step],
    monitor: &'a dyn Monitor,
    place: Option<(&'a State, &'a Locked, &'a Name, RunId)>,
    values: Values,
    journal: Option<(Journal, Watcher)>,
    begun: Vec<&'a Step>,
    /// What could not be left, in the order it was tried.
    stuck: Vec<&'a Step>,
    closed: Closed,
    /// What was run.
    pub reports: Vec<Report>,
}

impl<'a> Steps<'a> {
    /// Steps that are yet to be entered. `place` is where they are noted; there is none for a job without steps.
    pub fn new(
        steps: &'a [Step],
        place: Option<(&'a State, &'a Locked, &'a Name, RunId)>,
        values: Values,
        monitor: &'a dyn Monitor,
    ) -> Self {
        let (begun, stuck, closed, reports) = Default::default();
        Self { steps, monitor, place, values, journal: None, begun, stuck, closed, reports }
    }

    /// From now on these are the steps, of which none is begun yet.
    pub fn turn_to(&mut self, steps: &'a [Step]) {
        self.steps = steps;
    }

    /// Sets a value of the environment of what is run from now on.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.values.insert(name.to_owned(), value.into());
    }

    /// What is in the environment.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// Enters the media steps, or all others, each in order with its waiting; stops at the first that fails, which is begun all the same.
    /// `monitor` tells when to stop, `may_go_on` before each of them.
    pub fn enter(&mut self, is_media: bool, monitor: &dyn Monitor, may_go_on: &dyn Fn() -> Result<()>) -> Result<()> {
        for step in self.steps.iter().filter(|step| step.media == is_media && step.after.is_none()) {
            may_go_on()?;
            self.enter_step(step, monitor)?;
        }
        Ok(())
    }

    /// Enters one of the steps, when its condition holds; one that fails is begun all the same.
    pub fn enter_step(&mut self, step: &'a Step, monitor: &dyn Monitor) -> Result<()> {
        if let Some(signal) = monitor.interrupted() {
            return Err(Error::new(Kind::Signal(signal), "interrupted"));
        }
        if self.applies(step, monitor)? {
            self.begin(step)?;
            self.enter_one(step, monitor)?;
        }
        Ok(())
    }

    /// Feeds bytes into a command, which is ended with the run when that is killed.
    pub fn feed(
        &mut self,
        feed: &Feed<'_>,
        monitor: &dyn Monitor,
        content: &mut dyn FnMut(&mut dyn std::io::Write) -> Result<u64>,
    ) -> Result<u64> {
        feed::feed(feed, &self.values, monitor, content, &mut self.reports)
    }

    fn enter_one(&mut self, step: &'a Step, monitor: &dyn Monitor) -> Result<()> {
        let (values, reports) = (&self.values, &mut self.reports);
        if let Some(argv) = &step.enter {
            attempt(step, Phase::Enter, argv, values, None, monitor, &stop(monitor), reports)?;
        }
        if let Some(argv) = &step.enter_until {
            until(step, Phase::EnterUntil, argv, values, monitor, &stop(monitor), reports)?;
        }
        if let Some((journal, _)) = &mut self.journal {
            journal.entered(&step.name)?;
        }
        Ok(())
    }

    /// Whether the condition of a step holds. One that cannot be asked is a failure: nothing is skipped by mistake.
    fn applies(&mut self, step: &Step, monitor: &dyn Monitor) -> Result<bool> {
        let Some(argv) = &step.when else { return Ok(true) };
        attempt::applies(step, argv, &self.values, monitor, &stop(monitor), &mut self.reports)
    }

    fn begin(&mut self, step: &'a Step) -> Result<()> {
        // All steps before it are entered: what leaves it must be there by now.
        for argv in [&step.leave, &step.leave_until].into_iter().flatten() {
            let there = require_program(argv, step.user.as_deref());
            there.map_err(|e| e.with_kind(Kind::Step).context(format!("step {} is not begun: leave", step.name)))?;
        }
        // Who leaves it may be a process that the name service does not answer.
        let account = step.user.as_deref().map(trust::account).transpose();
        let account = account.map_err(|e| e.context(format!("step {} is not begun", step.name)))?;
        if self.journal.is_none()
            && let Some((state, locked, job, run_id)) = self.place
        {
            let journal = locked.begin(run_id)?;
            self.journal = Some((journal, Watcher::start(state, job, run_id)?));
        }
        if let Some((journal, _)) = &mut self.journal {
            journal.begin(step, &self.values, account.as_ref())?;
        }
        self.begun.push(step);
        if !step.media {
            self.closed.begin();
        }
        Ok(())
    }

    /// Whether one that was begun holds the application.
    pub fn holds(&self) -> bool {
        self.begun.iter().any(|step| !step.media)
    }

    /// Whether every step that holds the application may be left early.
    pub fn may_leave_early(&self) -> bool {
        let mut holding = self.begun.iter().filter(|step| !step.media).peekable();
        holding.peek().is_some() && holding.all(|step| step.leave_early)
    }

    /// Leaves what was begun, in reverse, but for media steps when `is_early`. Goes on after a failure; a signal does not stop it.
    pub fn leave(&mut self, is_early: bool) -> Vec<Error> {
        let mut errors = Vec::new();
        let (mut kept, mut left) = (Vec::new(), std::mem::take(&mut self.begun));
        self.closed.set_leaving(true);
        while let Some(step) = left.pop() {
            if is_early && step.media {
                kept.push(step);
                continue;
            }
            errors.extend(self.leave_one(step).err());
            if !left.iter().chain(&self.stuck).any(|step| !step.media) {
                self.closed.end();
            }
        }
        self.closed.set_leaving(false);
        kept.reverse();
        self.begun = kept;
        errors
    }

    /// Tries once more to leave what could not be left.
    pub fn leave_again(&mut self) -> Vec<Error> {
        let mut errors = Vec::new();
        self.closed.set_leaving(true);
        for step in std::mem::take(&mut self.stuck) {
            errors.extend(self.leave_one(step).err());
        }
        if !self.begun.iter().chain(&self.stuck).any(|step| !step.media) {
            self.closed.end();
        }
        self.closed.set_leaving(false);
        errors
    }

    fn leave_one(&mut self, step: &'a Step) -> Result<()> {
        let journal = self.journal.as_mut().map(|(journal, _)| journal);
        let left = leave_one(step, &self.values, journal, self.monitor, &mut self.reports);
        if left.is_err() {
            self.stuck.push(step);
        }
        left
    }

    /// How long the application was held.
    pub fn held(&self) -> Duration {
        self.closed.time()
    }

    /// The same, as it goes on.
    pub fn closed(&self) -> Closed {
        self.closed.clone()
    }

    /// Runs the steps that follow a run, with what it came to as their standard input.
    pub fn after(&mut self, kinds: &[On], result: &[u8]) -> Vec<Error> {
        let mut errors = Vec::new();
        for step in self.steps {
            if let Some((on, argv)) = &step.after
                && kinds.contains(on)
            {
                let (values, reports) = (&self.values, &mut self.reports);
                let ran = attempt(step, Phase::Run, argv, values, Some(result), self.monitor, &|| false, reports);
                errors.extend(ran.err());
            }
        }
        errors
    }

    /// The run is over: what could not be left stays in the journal, and the watcher may go.
    pub fn finish(&mut self) -> Result<()> {
        let Some((journal, watcher)) = self.journal.take() else { return Ok(()) };
        let done = if !self.stuck.is_empty() || !self.begun.is_empty() { Ok(()) } else { journal.finish() };
        watcher.dismiss();
        done
    }
}

/// Leaves one step and notes it. What fails stays noted as begun.
fn leave_one(
    step: &Step,
    values: &Values,
    mut journal: Option<&mut Journal>,
    monitor: &dyn Monitor,
    reports: &mut Vec<Report>,
) -> Result<()> {
    let left = leave_noted(step, values, journal.as_deref_mut(), monitor, reports);
    if left.is_err()
        && let Some(journal) = journal
        && let Err(e) = journal.stuck(&step.name)
    {
        monitor.warn(&format!("step {}: {e}", step.name));
    }
    left
}

fn leave_noted(
    step: &Step,
    values: &Values,
    mut journal: Option<&mut Journal>,
    monitor: &dyn Monitor,
    reports: &mut Vec<Report>,
) -> Result<()> {
    if let Some(journal) = &mut journal
        && let Err(e) = journal.leave(&step.name)
    {
        monitor.warn(&format!("step {}: {e}", step.name));
    }
    if let Some(argv) = &step.leave {
        attempt(step, Phase::Leave, argv, values, None, monitor, &|| false, reports)?;
    }
    if let Some(argv) = &step.leave_until {
        // What `leave` started is the application by now.
        if let Some(journal) = &mut journal
            && let Err(e) = journal.awaited(&step.name)
        {
            monitor.warn(&format!("step {}: {e}", step.name));
        }
        until(step, Phase::LeaveUntil, argv, values, monitor, &|| false, reports)?;
    }
    match journal {
        Some(journal) => journal.left(&step.name),
        None => Ok(()),
    }
}

fn stop(monitor: &dyn Monitor) -> impl Fn() -> bool + '_ {
    || monitor.interrupted().is_some()
}

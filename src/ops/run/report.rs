//! What a run came to: its outcome is the contract, the exit code a summary of it and of all that went wrong.

use serde::Serialize;

use super::{Done, Job, Valid};
use crate::{
    config::step::On,
    engine::cluster::{datasource::Member, gate::Open},
    error::{Error, Kind, Result},
    ops::snapshot::{Outcome, Skipped},
    steps::{self, Steps, recover::Recovered},
};

/// A failure with the outcome it makes, where its kind does not tell.
pub struct Failed {
    outcome: Option<&'static str>,
    error: Error,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { outcome: None, error }
    }
}

impl Failed {
    pub(super) fn named(outcome: &'static str, error: Error) -> Self {
        Self { outcome: Some(outcome), error }
    }

    pub(super) fn outcome(&self) -> &'static str {
        self.outcome.unwrap_or(match self.error.kind() {
            Kind::Signal(_) => "interrupted",
            Kind::Aborted => "aborted",
            Kind::Gate => "gate-error",
            Kind::Step => "step-failed",
            Kind::Lost => "lost",
            _ => "failed",
        })
    }
}

/// Something that went wrong.
#[derive(Debug, Serialize)]
pub struct Fault {
    /// What.
    pub message: String,
    /// What can be done about it.
    pub hint: Option<String>,
    /// The exit code it alone would make.
    pub exit: u8,
    /// What kind of failure.
    #[serde(skip)]
    pub(in crate::ops) kind: Kind,
}

/// The middle of a report: what came of the snapshot.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Came {
    Taken(Box<Outcome>),
    Skipped(Skipped),
    Valid(Box<Valid>),
    Failed { job: String, outcome: &'static str, message: String, hint: Option<String> },
}

/// What a run came to.
#[derive(Debug, Serialize)]
pub struct Report {
    #[serde(flatten)]
    came: Came,
    /// The gate that was asked.
    gate: &'static str,
    /// What it said, when this node acts.
    #[serde(flatten, with = "opened")]
    pub(super) open: Option<Open>,
    /// Earlier runs whose steps were left first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recovered: Vec<Recovered>,
    /// What was run, in order.
    steps: Vec<steps::Report>,
    /// How long the application was held.
    held_seconds: f64,
    /// All that went wrong, the first cause first.
    pub faults: Vec<Fault>,
    /// The exit code of it all.
    exit: u8,
    #[serde(skip)]
    job: String,
}

mod opened {
    //! Role, mode and datasource beside the gate's name.
    use serde::{Serialize, Serializer};

    use super::Open;

    pub fn serialize<S: Serializer>(open: &Option<Open>, to: S) -> Result<S::Ok, S::Error> {
        open.clone().unwrap_or_default().serialize(to)
    }
}

impl Report {
    pub(super) fn new(job: &Job<'_>) -> Self {
        let job_name = job.name.to_string();
        let nothing = Skipped { job: job_name.clone(), outcome: "skipped", why: String::new() };
        Self {
            came: Came::Skipped(nothing),
            gate: job.gate.kind.name(),
            open: None,
            recovered: Vec::new(),
            steps: Vec::new(),
            held_seconds: 0.0,
            faults: Vec::new(),
            exit: 0,
            job: job_name,
        }
    }

    pub(super) fn skip(mut self, skipped: Skipped) -> Self {
        self.came = Came::Skipped(skipped);
        self
    }

    pub(super) fn fail(mut self, failed: Failed) -> Self {
        self.end(Err(failed));
        self.exit_now()
    }

    /// Nothing more will happen.
    pub(super) fn exit_now(mut self) -> Self {
        if let Came::Valid(valid) = &mut self.came
            && !self.faults.is_empty()
        {
            valid.outcome = "invalid";
        }
        self.exit = self.exit();
        self
    }

    pub(super) fn end(&mut self, ended: Result<Done, Failed>) {
        self.came = match ended {
            Ok(Done::Taken(outcome)) => Came::Taken(outcome),
            Ok(Done::Skipped(skipped)) => Came::Skipped(skipped),
            Ok(Done::Valid(valid)) => Came::Valid(valid),
            Err(failed) => {
                let (outcome, error) = (failed.outcome(), failed.error);
                let (message, hint) = (error.to_string(), error.hint().map(str::to_owned));
                // The first cause, whatever came after it.
                self.faults.insert(0, fault(&error));
                Came::Failed { job: self.job.clone(), outcome, message, hint }
            }
        };
    }

    pub(super) fn faults(&mut self, errors: impl IntoIterator<Item = Error>) {
        self.faults.extend(errors.into_iter().map(|e| fault(&e)));
    }

    /// The outcome in one word.
    pub fn outcome(&self) -> &'static str {
        match &self.came {
            Came::Taken(outcome) => outcome.outcome,
            Came::Skipped(skipped) => skipped.outcome,
            Came::Valid(valid) => valid.outcome,
            Came::Failed { outcome, .. } => outcome,
        }
    }

    /// The snapshot that was taken.
    pub fn taken(&self) -> Option<&Outcome> {
        match &self.came {
            Came::Taken(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Why nothing was done.
    pub fn skipped(&self) -> Option<&Skipped> {
        match &self.came {
            Came::Skipped(skipped) => Some(skipped),
            _ => None,
        }
    }

    /// The member a dump is taken from, when the gate chose one.
    pub fn datasource(&self) -> Option<&Member> {
        self.open.as_ref()?.datasource.as_ref()
    }

    /// What was found by a run that only looks.
    pub fn valid(&self) -> Option<&Valid> {
        match &self.came {
            Came::Valid(valid) => Some(valid),
            _ => None,
        }
    }

    /// The exit code: of several faults the one that matters most.
    pub fn exit(&self) -> u8 {
        let incomplete = self.taken().filter(|outcome| outcome.totals.incomplete > 0).map(|_| Kind::Incomplete);
        let kinds = self.faults.iter().map(|fault| fault.kind).chain(incomplete);
        exit_of(kinds)
    }

    /// Which steps follow this run.
    pub(super) fn followed_by(&self) -> Vec<On> {
        match &self.came {
            Came::Valid(_) => Vec::new(),
            Came::Skipped(_) if self.faults.is_empty() => Vec::new(),
            Came::Taken(outcome) if self.faults.is_empty() && outcome.totals.incomplete == 0 => {
                vec![On::Success, On::End]
            }
            _ => vec![On::Failure, On::End],
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "seconds with three digits")]
    fn fill(&mut self, steps: &Steps<'_>) {
        self.steps.clone_from(&steps.reports);
        self.held_seconds = steps.held().as_millis() as f64 / 1000.0;
        self.exit = self.exit();
    }

    pub(super) fn json(&mut self, steps: &Steps<'_>) -> Result<Vec<u8>> {
        self.fill(steps);
        serde_json::to_vec(self).map_err(|e| Error::new(Kind::Other, format!("cannot write the result: {e}")))
    }

    pub(super) fn finish(mut self, steps: &Steps<'_>) -> Self {
        self.fill(steps);
        self
    }
}

pub(in crate::ops) fn fault(error: &Error) -> Fault {
    let (message, hint) = (error.to_string(), error.hint().map(str::to_owned));
    Fault { message, hint, exit: error.kind().exit_code(), kind: error.kind() }
}

/// The exit code of several faults: that of the one which matters most.
pub(in crate::ops) fn exit_of(kinds: impl Iterator<Item = Kind>) -> u8 {
    kinds.max_by_key(|kind| weight(*kind)).map_or(0, Kind::exit_code)
}

/// What matters most: the user's own stop, then damage, space, media, the application, the commit, the gate.
pub fn weight(kind: Kind) -> u8 {
    match kind {
        Kind::Signal(_) | Kind::Aborted => 10,
        Kind::Integrity => 9,
        Kind::NoSpace => 8,
        Kind::Volume => 7,
        Kind::Step => 6,
        Kind::Lost => 5,
        Kind::Gate => 4,
        Kind::Usage => 3,
        Kind::Other => 2,
        Kind::Incomplete => 1,
        Kind::BrokenPipe => 0,
    }
}

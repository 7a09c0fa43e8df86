//! A run that only looks: whether everything it needs is there and says yes. Nothing is entered or stored, no lease is taken.

use serde::Serialize;

use super::{Done, Job, Report, Work, at_work, check, lock, of_media, report::Failed, values};
use crate::{
    clock::Clock,
    config::{gate::GateKind, step::Step},
    engine::cluster::gate::{Asking, Verdict},
    error::{Error, Kind, Result},
    model::ids::RunId,
    monitor::Monitor,
    ops::snapshot::{self, Input, Planned, Request, Skipped},
    steps::{self, Locked, State},
};

/// What was found.
#[derive(Debug, Serialize)]
pub struct Valid {
    job: String,
    /// `valid`, or `invalid`.
    pub(super) outcome: &'static str,
    /// The volume, and what a run would take; `None` where media steps come first.
    #[serde(flatten)]
    pub looked: Option<Looked>,
}

/// What lies behind the gate.
#[derive(Debug, Serialize)]
pub struct Looked {
    /// Id of the volume.
    pub volume: String,
    /// What a run would take.
    #[serde(flatten)]
    pub planned: Planned,
}

/// Looks at all a run of the job needs. `copies` looks at the volumes it is copied to.
pub fn validate(
    job: &Job<'_>,
    work: &Work<'_>,
    copies: &dyn Fn() -> Vec<Error>,
    clock: &dyn Clock,
    monitor: &dyn Monitor,
) -> Report {
    let mut report = Report::new(job);
    let ended = look(job, work, copies, clock, monitor, &mut report);
    report.end(ended);
    report.exit_now()
}

fn look(
    job: &Job<'_>,
    work: &Work<'_>,
    copies: &dyn Fn() -> Vec<Error>,
    clock: &dyn Clock,
    monitor: &dyn Monitor,
    report: &mut Report,
) -> Result<Done, Failed> {
    check(job)?;
    match lock(job, &State::new(job.state_dir))? {
        None => return Ok(Done::Skipped(at_work(job))),
        // Not held any longer than this: a run that begins meanwhile must not give way to one that only looks.
        Some(locked) => nothing_is_left_to_do(job, locked.as_ref())?,
    }
    if !job.steps_by_role {
        report.faults(lacking(job.steps));
    }
    if let GateKind::Command { argv, user, .. } | GateKind::Postgres { argv, user, .. } = &job.gate.kind {
        steps::require_program(argv, user.as_deref()).map_err(|e| e.with_kind(Kind::Gate).context("gate"))?;
    }
    let values = values(job, RunId::new(clock.unix_ms())?);
    let open = match (Asking { gate: job.gate, node: job.node, values: &values, monitor }).ask()? {
        Verdict::Open(open) => open,
        Verdict::Skip(why) => {
            return Ok(Done::Skipped(Skipped { job: job.name.to_string(), outcome: "skipped-gate", why }));
        }
    };
    report.open = Some(open.clone());
    let told = (work.told)(&open)?;
    steps::check_ahead(told.steps)?;
    if job.steps_by_role {
        report.faults(lacking(told.steps));
    }
    let looked = if told.steps.iter().any(|step| step.media) {
        monitor.note("volumes are not looked at: media steps come before them");
        None
    } else {
        let (volume, _) = (work.open)()?;
        report.faults(producers(&told.request));
        let planned = snapshot::validate(&volume, &told.request, clock)?;
        report.faults(copies().into_iter().map(of_media));
        Some(Looked { volume: volume.file.id.as_str().to_owned(), planned })
    };
    Ok(Done::Valid(Box::new(Valid { job: job.name.to_string(), outcome: "valid", looked })))
}

/// An earlier run has left everything it had begun.
fn nothing_is_left_to_do(job: &Job<'_>, locked: Option<&Locked>) -> Result<()> {
    match locked.map(|locked| locked.unfinished(None)).transpose()?.and_then(|mut runs| runs.pop()) {
        Some(run) => Err(Error::new(Kind::Step, format!("what the run {} had begun is not left yet", run.run_id))
            .with_hint(format!("`bk recover {}`, or the next run, leaves it", job.name))),
        None => Ok(()),
    }
}

/// Programs of steps that are not there.
fn lacking(steps: &[Step]) -> impl Iterator<Item = Error> {
    let has_media = steps.iter().any(|step| step.media);
    // A medium may bring the programs of the steps that follow it.
    steps.iter().filter(move |step| !has_media || step.media).filter_map(|step| missing(step).err())
}

/// A program of the step that is not there.
fn missing(step: &Step) -> Result<()> {
    let around = [&step.when, &step.enter, &step.enter_until, &step.leave, &step.leave_until];
    let after = step.after.as_ref().map(|(_, argv)| argv);
    around.into_iter().flatten().chain(after).try_for_each(|argv| {
        steps::require_program(argv, step.user.as_deref()).map_err(|e| e.context(format!("step {}", step.name)))
    })
}

/// Programs and devices of streams that are not there.
fn producers(request: &Request) -> Vec<Error> {
    let missing = |(name, input): &(_, Input)| {
        let found = match input {
            Input::Stdin => Ok(()),
            Input::Device(device) => match device.metadata() {
                Ok(_) => Ok(()),
                Err(e) => Err(Error::io(format!("cannot find {}", device.display()), e)),
            },
            Input::Command(line) => {
                let argv: Vec<String> = line.argv.iter().map(|word| word.to_string_lossy().into_owned()).collect();
                steps::require_program(&argv, line.user.as_deref())
            }
        };
        found.err().map(|e| e.with_kind(Kind::Other).context(format!("stream {name}")))
    };
    request.streams.iter().filter_map(missing).collect()
}

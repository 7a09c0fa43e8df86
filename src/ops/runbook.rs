//! The run book of `bk restore --runbook`: a job's own actions around and between what is restored. From top to bottom:
//!
//! snapshot, paths, streams and programs looked at → lock and recover → lease → actions in order: a step is entered, paths are
//! restored, a stream goes into a command → steps left in reverse, whatever happened → steps that follow.
//!
//! Invariant: nothing is run before all that the snapshot must hold was found in it, and whatever was begun is left, by the
//! machinery of a run's steps: the same journal, watcher and `bk recover`.

use std::{path::Path, sync::Arc};

use serde::Serialize;

use super::{
    cat::stream_number,
    run::{self, Fault},
    snapshot::{self, Guarded},
};
use crate::{
    clock::Clock,
    config::{
        runbook::{Action, Deed},
        step::{On, Step},
    },
    engine::{
        cluster::keeper::Keeper,
        read::{
            chain::Chain,
            export,
            extract::{self, Overwrite, extract},
            outcome::Outcome,
            select::Taken,
        },
    },
    error::{Error, Kind, Result},
    format::record::Snapshot,
    model::{
        ids::{Name, RunId, SnapshotName},
        show,
        units::show_size,
    },
    monitor::Monitor,
    steps::{self, Closed, Feed, Locked, State, Steps, Values, recover::Recovered},
    volume::Volume,
};

/// What is asked for.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The job, by its name on the volume.
    pub job: &'a Name,
    /// This node's name.
    pub node: &'a str,
    /// The snapshot.
    pub snapshot: &'a SnapshotName,
    /// The runbook.
    pub actions: &'a [Action],
    /// Where steps are noted.
    pub state_dir: &'a Path,
    /// Worker threads.
    pub threads: usize,
}

/// An action as it is shown before it is done.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// What it does, in words.
    pub does: String,
    /// How it is left at the end.
    pub left_by: Option<String>,
}

/// A runbook whose snapshot was found and holds all that is asked of it.
pub struct Planned<'a> {
    request: Request<'a>,
    volume: &'a Volume,
    chain: Chain,
    steps: Vec<Step>,
    /// The snapshot.
    pub snapshot: Snapshot,
    /// What would be done, in order.
    pub rows: Vec<Row>,
}

/// Finds the snapshot, looks for every path and stream in it, and at every program; does nothing.
pub fn plan<'a>(volume: &'a Volume, request: Request<'a>) -> Result<Planned<'a>> {
    if request.actions.is_empty() {
        return Err(Error::usage(format!("job {} has no runbook", request.job))
            .with_hint("`[[job.NAME.runbook]]` in the configuration says what it is restored by; see docs/run.md"));
    }
    let (snapshot, chain) = Chain::find(volume, request.snapshot)?;
    let (mut rows, mut steps) = (Vec::new(), Vec::new());
    for action in request.actions {
        let found = row(&chain, action).map_err(|e| e.context(format!("action {}", action.name)))?;
        rows.push(found);
        match &action.deed {
            Deed::Step(step) => steps.push((**step).clone()),
            deed => {
                if let Some((feed, _)) = feed(action, deed) {
                    feed.check_ahead()?;
                }
            }
        }
    }
    steps::check_ahead(&steps)?;
    Ok(Planned { request, volume, chain, steps, snapshot, rows })
}

fn words(argv: &[String]) -> String {
    let argv = match argv {
        [sh, flag, line] if sh == "/bin/sh" && flag == "-c" => std::slice::from_ref(line),
        _ => argv,
    };
    format!("`{}`", show::name(argv.join(" ").as_bytes()))
}

fn row(chain: &Chain, action: &Action) -> Result<Row> {
    let (does, left_by) = match &action.deed {
        Deed::Step(step) => {
            let after = step.after.as_ref().map(|(on, argv)| match on {
                On::Failure => format!("after a failure {}", words(argv)),
                On::Success => format!("after success {}", words(argv)),
                On::End => format!("at the end {}", words(argv)),
            });
            let when = step.when.iter().map(|argv| format!("if {}", words(argv)));
            let enter = step.enter.iter().map(|argv| words(argv));
            let until = step.enter_until.iter().map(|argv| format!("until {}", words(argv)));
            let left = step.leave.iter().map(|argv| words(argv));
            let left_until = step.leave_until.iter().map(|argv| format!("until {}", words(argv)));
            let left: Vec<String> = left.chain(left_until).collect();
            let does: Vec<String> = when.chain(enter).chain(until).chain(after).collect();
            let does = if does.is_empty() { "nothing".to_owned() } else { does.join(", ") };
            (does, (!left.is_empty()).then(|| left.join(", ")))
        }
        Deed::Restore { paths, exclude, target } => {
            options(chain, paths, exclude, 1)?;
            let what = if paths.is_empty() { "everything".to_owned() } else { paths.join(" ") };
            let without = if exclude.is_empty() { String::new() } else { format!(", but for {}", exclude.join(" ")) };
            (format!("restore {what} below {}{without}", target.display()), None)
        }
        Deed::Stream { stream, into, .. } => {
            let len = chain.last().stream_extent(stream_number(chain, stream)?)?.len;
            (format!("stream {stream} ({}) into {}", show_size(len), words(into)), None)
        }
    };
    Ok(Row { name: action.name.to_string(), does, left_by })
}

fn options(chain: &Chain, paths: &[String], exclude: &[String], threads: usize) -> Result<extract::Options> {
    if !chain.has_tree() {
        return Err(Error::usage(format!("snapshot {} has no tree", chain.shown())));
    }
    let paths: Vec<Vec<u8>> = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
    let taken = Taken::new(chain, &paths, &[], exclude)?;
    Ok(extract::Options { taken, overwrite: Overwrite::IfChanged, safe: false, threads })
}

fn feed<'a>(action: &'a Action, deed: &'a Deed) -> Option<(Feed<'a>, &'a Name)> {
    match deed {
        Deed::Stream { stream, into, timeout, user, env } => {
            let feed = Feed { name: &action.name, argv: into, user: user.as_deref(), env, timeout: *timeout };
            Some((feed, stream))
        }
        _ => None,
    }
}

/// What was restored by one action.
#[derive(Debug, Serialize)]
struct Did {
    action: String,
    #[serde(flatten)]
    what: What,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum What {
    Tree(Box<Outcome>),
    Stream { stream: String, bytes: u64 },
}

/// What a runbook came to.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The job.
    pub job: String,
    /// The snapshot that was restored from.
    pub snapshot: String,
    /// `done`; `incomplete`: some entries were not stored as they were; `step-failed`, `interrupted`, `lost`, `failed`.
    pub outcome: &'static str,
    /// What was restored, in order.
    restored: Vec<Did>,
    /// What was run, in order.
    steps: Vec<steps::Report>,
    /// Earlier runs whose steps were left first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    recovered: Vec<Recovered>,
    /// All that went wrong, the first cause first.
    pub faults: Vec<Fault>,
    /// The exit code of it all.
    pub exit: u8,
}

impl Report {
    /// Files and bytes of trees, and bytes of streams that were restored.
    pub fn sums(&self) -> (u64, u64, u64) {
        self.restored.iter().fold((0, 0, 0), |(files, bytes, streams), did| match &did.what {
            What::Tree(tree) => (files + tree.files, bytes + tree.content_bytes, streams),
            What::Stream { bytes: len, .. } => (files, bytes, streams + len),
        })
    }

    fn is_incomplete(&self) -> bool {
        self.restored.iter().any(|did| matches!(&did.what, What::Tree(tree) if tree.is_incomplete()))
    }

    /// Notes what ended it.
    fn first(&mut self, error: &Error) -> Kind {
        self.faults.insert(0, run::fault(error));
        error.kind()
    }

    fn judge(&mut self, first: Option<Kind>) {
        let incomplete = self.is_incomplete().then_some(Kind::Incomplete);
        self.exit = run::exit_of(self.faults.iter().map(|fault| fault.kind).chain(incomplete));
        self.outcome = match first {
            Some(Kind::Signal(_)) => "interrupted",
            Some(Kind::Step) => "step-failed",
            Some(Kind::Lost) => "lost",
            Some(_) => "failed",
            None if self.is_incomplete() => "incomplete",
            None => "done",
        };
    }
}

/// Does what was planned. All that happens is in the report, failures included.
pub fn run(planned: &Planned<'_>, clock: &dyn Clock, monitor: &dyn Monitor) -> Report {
    let (request, snapshot) = (&planned.request, planned.chain.shown());
    let mut report = Report {
        job: request.job.to_string(),
        snapshot: snapshot.to_owned(),
        outcome: "done",
        restored: Vec::new(),
        steps: Vec::new(),
        recovered: Vec::new(),
        faults: Vec::new(),
        exit: 0,
    };
    let state = State::new(request.state_dir);
    let first = match begin(planned, &state, clock, monitor, &mut report) {
        Ok((locked, lease, run_id)) => {
            let place = locked.as_ref().map(|locked| (&state, locked, request.job, run_id));
            let steps = Steps::new(&planned.steps, place, values(request, snapshot, run_id), monitor);
            let guarded = lease.map(|lease| Guarded::new(monitor, lease));
            let lease = guarded.as_ref();
            let monitor = lease.map_or(monitor, |guarded| guarded as &dyn Monitor);
            Doing { planned, monitor, lease, steps }.all(&mut report)
        }
        Err(e) => Some(report.first(&e)),
    };
    report.judge(first);
    report
}

fn values(request: &Request<'_>, snapshot: &str, run_id: RunId) -> Values {
    let values = [
        ("BK_JOB", request.job.to_string()),
        ("BK_NODE", request.node.to_owned()),
        ("BK_RUN_ID", run_id.to_string()),
        ("BK_SNAPSHOT", snapshot.to_owned()),
    ];
    values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

type Begun = (Option<Locked>, Option<Arc<Keeper>>, RunId);

/// Keeps runs of the job away, on this machine and on others, and leaves what an earlier one had begun.
fn begin(
    planned: &Planned<'_>,
    state: &State,
    clock: &dyn Clock,
    monitor: &dyn Monitor,
    report: &mut Report,
) -> Result<Begun> {
    let Request { job, node, .. } = planned.request;
    let locked = if planned.steps.is_empty() && !state.knows(job) {
        None
    } else {
        let busy = || Error::new(Kind::Lost, format!("another run of {job} is at work on this node"));
        let locked = state.lock_or_holder(job)?;
        Some(locked.map_err(|holder| holder.killed().unwrap_or_else(busy))?)
    };
    let closed = Closed::default();
    let told = closed.clone();
    monitor.opens_first(Box::new(move || told.keeps_process()));
    run::leave_earlier(locked.as_ref(), job, &closed, monitor, &mut report.recovered)?;
    let run_id = RunId::new(clock.unix_ms())?;
    // A medium that cannot be written to is restored from all the same.
    let lease = match planned.volume.store.check_writable() {
        Ok(()) => Some(snapshot::lease(planned.volume, (job, node, run_id), clock, monitor)?.map_err(|why| {
            Error::new(Kind::Lost, why).with_hint(format!("`bk lease list {job}` shows who; `bk abort {job}` stops it"))
        })?),
        Err(e) => {
            monitor.warn(&format!("no lease is taken, so nothing keeps other nodes from a run of {job}: {e}"));
            None
        }
    };
    Ok((locked, lease, run_id))
}

struct Doing<'a> {
    planned: &'a Planned<'a>,
    /// Stops what goes on when the lease is lost.
    monitor: &'a dyn Monitor,
    lease: Option<&'a Guarded<'a>>,
    steps: Steps<'a>,
}

impl Doing<'_> {
    /// Every action, then what was begun is left. Gives what ended it, when something did.
    fn all(mut self, report: &mut Report) -> Option<Kind> {
        let ended = self.actions(report).map_err(|e| match self.lease {
            Some(guarded) => guarded.explain(e),
            None => e,
        });
        let first = ended.err().map(|e| report.first(&e));
        report.judge(first);
        self.steps.set("BK_RESULT", report.outcome);
        report.faults.extend(self.steps.leave(false).iter().map(run::fault));
        report.faults.extend(self.steps.finish().err().iter().map(run::fault));
        report.judge(first);
        self.follow(report);
        report.steps = std::mem::take(&mut self.steps.reports);
        first
    }

    fn actions(&mut self, report: &mut Report) -> Result<()> {
        let Planned { request, chain, .. } = self.planned;
        let mut steps = self.planned.steps.iter();
        for action in request.actions {
            if let Some(signal) = self.monitor.interrupted() {
                return Err(Error::new(Kind::Signal(signal), "interrupted"));
            }
            let is_stopped = || self.monitor.interrupted().is_some();
            self.lease.map_or(Ok(()), |guarded| guarded.lease().check_soon(&is_stopped))?;
            let what = match &action.deed {
                Deed::Step(_) => {
                    if let Some(step) = steps.next().filter(|step| step.after.is_none()) {
                        self.steps.enter_step(step, self.monitor)?;
                    }
                    continue;
                }
                Deed::Restore { paths, exclude, target } => {
                    let options = options(chain, paths, exclude, request.threads)?;
                    let restored = extract(chain, target, &options, self.monitor);
                    let outcome = restored.map_err(|e| e.context(format!("action {}", action.name)))?;
                    let fault = (outcome.not_restored > 0).then(|| not_restored(action, &outcome));
                    report.restored.push(did(action, What::Tree(Box::new(outcome))));
                    if let Some(fault) = fault {
                        return Err(fault);
                    }
                    continue;
                }
                deed => self.stream(action, deed)?,
            };
            report.restored.extend(what.map(|what| did(action, what)));
        }
        Ok(())
    }

    fn stream(&mut self, action: &Action, deed: &Deed) -> Result<Option<What>> {
        let Planned { request, chain, .. } = self.planned;
        let Some((feed, stream)) = feed(action, deed) else { return Ok(None) };
        let number = stream_number(chain, stream)?;
        let len = chain.last().stream_extent(number)?.len;
        let bytes = self.steps.feed(&feed, self.monitor, &mut |out| {
            export::write_stream(chain, number, (0, len), request.threads, self.monitor, out)
        })?;
        Ok(Some(What::Stream { stream: stream.to_string(), bytes }))
    }

    /// Runs the steps that follow, with the report so far as their input.
    fn follow(&mut self, report: &mut Report) {
        let kinds = if report.exit == 0 { [On::Success, On::End] } else { [On::Failure, On::End] };
        self.steps.set("BK_EXIT", report.exit.to_string());
        match serde_json::to_vec(report) {
            Ok(json) => report.faults.extend(self.steps.after(&kinds, &json).iter().map(run::fault)),
            Err(e) => report.faults.push(run::fault(&Error::new(Kind::Other, format!("cannot write the result: {e}")))),
        }
    }
}

fn did(action: &Action, what: What) -> Did {
    Did { action: action.name.to_string(), what }
}

fn not_restored(action: &Action, outcome: &Outcome) -> Error {
    let first = outcome.faults.first().map_or_else(String::new, |one| format!(": {}: {}", one.path, one.why));
    let what = format!("action {}: {} entries were not restored{first}", action.name, outcome.not_restored);
    Error::new(Kind::Other, what)
}

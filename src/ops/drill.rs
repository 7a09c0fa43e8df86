//! The run book of `bk drill`: a snapshot is restored for practice. From top to bottom:
//!
//! snapshot found → scratch directory made, for nobody else to look into → room looked at → tree and streams restored into it →
//! read back and held against the index → the command → the directory removed → result noted on the volume, for `bk check`.
//!
//! Invariant: nothing outside the scratch directory is written but that note, and nothing of the directory stays.

mod scratch;

use std::{
    collections::BTreeMap,
    io::{BufWriter, Write},
    path::Path,
    time::Duration,
};

use serde::Serialize;

use super::run::{self, Fault};
use crate::{
    clock::Clock,
    engine::read::{
        chain::Chain,
        export,
        extract::{self, Overwrite, extract},
        restored::{self, Compared},
        select::Taken,
    },
    error::{Error, Kind, Result},
    format::{
        drill::{self, Drill, DrillTag, WHY_LEN_MAX},
        envelope,
        record::Snapshot,
        volume::FORMAT_VERSION,
    },
    model::{
        ids::{Name, RunId, SnapshotName},
        time::Instant,
        units::show_size,
    },
    monitor::Monitor,
    steps::process::{self, Call, End},
    volume::{Created, Volume},
};
use scratch::Scratch;

/// So many drills of a job stay noted.
const KEPT_COUNT: usize = 10;
/// Differences that are told one by one.
const NAMED_MAX: usize = 10;

/// A command that tries what was restored.
#[derive(Clone, Debug)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Who runs it.
    pub user: Option<String>,
    /// Added to its environment.
    pub env: BTreeMap<String, String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// What is asked for.
pub struct Request<'a> {
    /// The job, by its name on the volume.
    pub job: &'a Name,
    /// This node's name.
    pub node: &'a str,
    /// The snapshot.
    pub snapshot: &'a SnapshotName,
    /// The directory the drill's own is made in.
    pub scratch: &'a Path,
    /// What is run against it.
    pub command: Option<Command>,
    /// Worker threads.
    pub threads: usize,
}

/// What a drill came to.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The job.
    pub job: String,
    /// The snapshot.
    pub snapshot: String,
    /// `passed` or `failed`.
    pub outcome: &'static str,
    /// Entries compared, streams included.
    pub entries: u64,
    /// Bytes of content compared.
    pub bytes: u64,
    /// How many entries were not as they were stored.
    pub differ: u64,
    /// How the command ended, when there was one.
    #[serde(flatten)]
    pub command: Option<End>,
    /// All that went wrong, the first cause first.
    pub faults: Vec<Fault>,
    /// The exit code of it all.
    pub exit: u8,
}

/// Does a drill. An error is what kept it from beginning, or stopped it; what it found is in the report.
pub fn run(volume: &Volume, request: &Request<'_>, clock: &dyn Clock, monitor: &dyn Monitor) -> Result<Report> {
    if let Some(command) = &request.command {
        crate::steps::check_program(&command.argv, command.user.as_deref()).map_err(|e| e.context("drill"))?;
    }
    let drill_id = RunId::new(clock.unix_ms())?;
    let started_at = clock.now()?;
    let (snapshot, chain) = Chain::find(volume, request.snapshot)?;
    let mut report = Report {
        job: request.job.to_string(),
        snapshot: chain.shown().to_owned(),
        outcome: "passed",
        entries: 0,
        bytes: 0,
        differ: 0,
        command: None,
        faults: Vec::new(),
        exit: 0,
    };
    let user = request.command.as_ref().and_then(|command| command.user.as_deref());
    let scratch = Scratch::make(request.scratch, request.job, user)?;
    let tried = try_it(&chain, &snapshot, request, &scratch, monitor, &mut report);
    let removed = scratch.remove();
    if let Err(e) = tried {
        // What was stopped has found nothing.
        if matches!(e.kind(), Kind::Signal(_) | Kind::Usage) {
            removed?;
            return Err(e);
        }
        report.faults.push(run::fault(&e));
    }
    report.faults.extend(removed.err().iter().map(run::fault));
    report.outcome = if report.faults.is_empty() { "passed" } else { "failed" };
    let noted = note(volume, request, (drill_id, started_at, clock.now()?), &snapshot, &report);
    report.faults.extend(noted.err().map(|e| run::fault(&e.context("the drill's result cannot be noted"))));
    report.exit = run::exit_of(report.faults.iter().map(|fault| fault.kind));
    Ok(report)
}

fn try_it(
    chain: &Chain,
    snapshot: &Snapshot,
    request: &Request<'_>,
    scratch: &Scratch,
    monitor: &dyn Monitor,
    report: &mut Report,
) -> Result<()> {
    let need = snapshot.totals.content_bytes;
    let free = scratch.free_bytes()?;
    if free < need {
        let what = format!("{} has {} free", request.scratch.display(), show_size(free));
        return Err(Error::new(Kind::NoSpace, format!("{what}, the snapshot wants {}", show_size(need))));
    }
    monitor.expect(snapshot.totals.entries, need);
    restore(chain, request, scratch, monitor)?;
    let compared = compare(chain, request, scratch, monitor)?;
    (report.entries, report.bytes, report.differ) = (compared.entries, compared.bytes, compared.differ);
    if compared.differ > 0 {
        let named = compared.faults.iter().take(NAMED_MAX).map(|one| format!("{}: {}", one.path, one.why));
        let named: Vec<String> = named.collect();
        let what = format!("{} entries are not as they were stored: {}", compared.differ, named.join("; "));
        return Err(Error::integrity(what));
    }
    match &request.command {
        Some(command) => tried_by(command, request, chain.shown(), scratch, monitor, report),
        None => Ok(()),
    }
}

/// Devices and owners only where another user is to see them: for a command of bk's own the files alone do.
fn is_safe(request: &Request<'_>) -> bool {
    request.command.as_ref().is_none_or(|command| command.user.is_none())
}

fn restore(chain: &Chain, request: &Request<'_>, scratch: &Scratch, monitor: &dyn Monitor) -> Result<()> {
    if chain.has_tree() {
        let taken = Taken::new(chain, &[], &[], &[])?;
        let (safe, threads) = (is_safe(request), request.threads);
        let options = extract::Options { taken, overwrite: Overwrite::Always, safe, threads };
        let outcome = extract(chain, &scratch.tree(), &options, monitor)?;
        if outcome.not_restored > 0 {
            let first = outcome.faults.first().map_or_else(String::new, |one| format!(": {}: {}", one.path, one.why));
            let what = format!("{} entries were not restored{first}", outcome.not_restored);
            return Err(Error::new(Kind::Other, what));
        }
    }
    for (number, name) in (1..).zip(chain.streams()) {
        let path = scratch.stream(name);
        let failed = |e| Error::io(format!("cannot write {}", path.display()), e);
        let mut file = BufWriter::with_capacity(1 << 20, std::fs::File::create_new(&path).map_err(failed)?);
        let len = chain.last().stream_extent(number)?.len;
        export::write_stream(chain, number, (0, len), request.threads, monitor, &mut file)?;
        file.flush().map_err(failed)?;
    }
    Ok(())
}

fn compare(chain: &Chain, request: &Request<'_>, scratch: &Scratch, monitor: &dyn Monitor) -> Result<Compared> {
    let mut compared = match chain.has_tree() {
        true => restored::compare(chain, &scratch.tree(), !is_safe(request), request.threads, &Quiet(monitor))?,
        false => Compared::default(),
    };
    for (number, name) in (1..).zip(chain.streams()) {
        restored::compare_stream(chain, number, &scratch.stream(name), &mut compared)?;
    }
    Ok(compared)
}

/// Comparing is not counted: the progress was that of the restore.
struct Quiet<'a>(&'a dyn Monitor);

impl Monitor for Quiet<'_> {
    fn warn(&self, text: &str) {
        self.0.warn(text);
    }
    fn advance(&self, _: u64, _: u64, _: &[u8]) {}
    fn expect(&self, _: u64, _: u64) {}
    fn interrupted(&self) -> Option<i32> {
        self.0.interrupted()
    }
}

/// Runs the command against what was restored.
fn tried_by(
    command: &Command,
    request: &Request<'_>,
    snapshot: &str,
    scratch: &Scratch,
    monitor: &dyn Monitor,
    report: &mut Report,
) -> Result<()> {
    scratch.give()?;
    let shown = |path: &Path| path.display().to_string();
    let values: BTreeMap<String, String> = [
        ("BK_JOB", request.job.to_string()),
        ("BK_NODE", request.node.to_owned()),
        ("BK_SNAPSHOT", snapshot.to_owned()),
        ("BK_PHASE", "drill".to_owned()),
        ("BK_DRILL_DIR", shown(&scratch.place())),
        ("BK_DRILL_TREE", shown(&scratch.tree())),
        ("BK_DRILL_STREAMS", shown(&scratch.streams())),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    let call = Call {
        argv: &command.argv,
        user: command.user.as_deref(),
        values: &[&command.env, &values],
        timeout: command.timeout,
        input: None,
        is_kept: false,
    };
    let stop = || monitor.interrupted().is_some();
    let ran = process::run(&call, &stop, &mut |line| monitor.note(&format!("drill: {line}")));
    report.command = Some(ran.end);
    match monitor.interrupted() {
        Some(signal) if ran.end == End::Stopped => Err(Error::new(Kind::Signal(signal), "interrupted")),
        _ if ran.is_ok() => Ok(()),
        _ => Err(Error::new(Kind::Step, format!("the drill's command failed: {}", ran.why))),
    }
}

/// Notes the result on the volume, where `bk check` looks for it from any node, and removes old ones.
fn note(
    volume: &Volume,
    request: &Request<'_>,
    (drill_id, started_at, ended_at): (RunId, Instant, Instant),
    snapshot: &Snapshot,
    report: &Report,
) -> Result<()> {
    let why = report.faults.first().map(|fault| {
        let end = fault.message.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|&end| end <= WHY_LEN_MAX);
        fault.message[..end.last().unwrap_or(0)].to_owned()
    });
    let drill = Drill {
        r#type: DrillTag::Drill,
        format_version: FORMAT_VERSION,
        job: snapshot.job.clone(),
        node: request.node.to_owned(),
        seq: snapshot.seq,
        run_id: snapshot.run_id,
        started_at,
        ended_at,
        passed: report.faults.is_empty(),
        why,
        entries: report.entries,
        bytes: report.bytes,
        command: report.command.is_some(),
    };
    let key = drill::key(&snapshot.job, drill_id);
    if volume.store.put_new(&key, &drill.encode()?)? != Created::New {
        return Err(Error::new(Kind::Other, format!("{key} is there already")));
    }
    let mut noted = keys(volume, &snapshot.job)?;
    noted.truncate(noted.len().saturating_sub(KEPT_COUNT));
    volume.store.delete_all(&noted)
}

/// Keys of the drills of a job, the oldest first.
fn keys(volume: &Volume, job: &Name) -> Result<Vec<String>> {
    let items = volume.store.list(&drill::dir(job))?;
    let mut keys: Vec<String> = items.into_iter().map(|item| item.key).collect();
    keys.retain(|key| drill::place(job, key).is_some());
    keys.sort();
    Ok(keys)
}

/// The newest drill of a job.
pub fn last(volume: &Volume, job: &Name) -> Result<Option<Drill>> {
    let Some(key) = keys(volume, job)?.pop() else { return Ok(None) };
    match volume.store.read(&key, envelope::JSON_LEN_MAX) {
        Ok(bytes) => Drill::decode(&bytes).map(Some).map_err(|e| e.context(&key)),
        Err(e) if volume.store.head(&key)?.is_some() => Err(e),
        Err(_) => Ok(None),
    }
}

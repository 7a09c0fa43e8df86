//! `bk restore --runbook`

use std::io::{BufRead, IsTerminal, Write};

use super::{Context, Ended, job};
use crate::{
    clock::System,
    config::{job::Job, meaning, typed::RestoreArgs},
    error::{Error, Kind, Result},
    model::{
        ids::{Name, SnapshotName, Which},
        units::show_size,
    },
    ops::runbook::{self, Planned, Report, Request},
};

pub fn run(context: &Context<'_>, args: &RestoreArgs, job: &str) -> Result<Ended> {
    let config = context.config()?;
    // The runbook of a job with sets by role stands in the job as a rule: then no role needs to be known.
    let chosen = job::chosen(args.role.as_ref(), args.agent.as_ref())?;
    let job = Job::resolve(config, &job.parse()?, &crate::config::job::Chosen { is_open: true, ..chosen })?;
    let node = match (args.node.as_ref().filter(|name| !name.is_empty()), &job.text.node) {
        (None, Some(node)) => node.to_string(),
        (typed, _) => context.node(typed)?,
    };
    let stored = job.stored_name(&node)?;
    let snapshot = match &args.from {
        Some(text) => text.parse()?,
        None => SnapshotName { job: stored.clone(), which: Which::Latest(0) },
    };
    let actions = job.text.runbook.clone().unwrap_or_default();
    let request = Request {
        job: &stored,
        node: &node,
        snapshot: &snapshot,
        actions: &actions,
        state_dir: &meaning::state_dir(args.state_dir.as_ref(), config.text.state_dir.as_ref())?,
        threads: meaning::threads(context.global)?,
    };
    let volume = context.volume_of(&stored)?;
    let planned = runbook::plan(&volume, request)?;
    if args.dry_run {
        return show_plan(context, &planned);
    }
    if !args.yes && !asked(context, &stored, &planned)? {
        return Err(Error::new(Kind::Other, "nothing was done"));
    }
    let progress = context.progress("restore");
    let report = runbook::run(&planned, &System, &progress);
    let seconds = progress.elapsed().as_secs_f64();
    drop(progress);
    show(context, &report, seconds)
}

/// Shows what would be done and waits for a word; who cannot be asked has to say `--yes`.
fn asked(context: &Context<'_>, job: &Name, planned: &Planned<'_>) -> Result<bool> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() || context.out.is_json() {
        return Err(Error::usage("the runbook overwrites what is there, and nobody can be asked")
            .with_hint("--yes does it without asking, --dry-run shows what it would do"));
    }
    let mut err = std::io::stderr().lock();
    let failed = |e| Error::io("cannot ask", e);
    for line in lines(planned) {
        writeln!(err, "{line}").map_err(failed)?;
    }
    write!(err, "This overwrites what is there. Type the job's name, {job}, to go on: ").map_err(failed)?;
    err.flush().map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    Ok(answer.trim() == job.as_str())
}

fn lines(planned: &Planned<'_>) -> Vec<String> {
    let (snapshot, rows) = (&planned.snapshot, &planned.rows);
    let first =
        format!("from {}/{}, level {}, taken {}", snapshot.job, snapshot.seq, snapshot.level, snapshot.taken_at);
    let actions = rows.iter().map(|row| format!("{:<16} {}", row.name, row.does));
    let left = rows.iter().rev().filter_map(|row| row.left_by.as_ref().map(|by| (row, by)));
    let left = left.map(|(row, by)| format!("{:<16} left: {by}", row.name));
    std::iter::once(first).chain(actions).chain(left).collect()
}

fn show_plan(context: &Context<'_>, planned: &Planned<'_>) -> Result<Ended> {
    if context.out.is_json() {
        for row in &planned.rows {
            context.out.object("planned", row)?;
        }
        let snapshot = format!("{}/{}", planned.snapshot.job, planned.snapshot.seq);
        context.out.object("result", &serde_json::json!({ "snapshot": snapshot }))?;
        return Ok(Ended::Done);
    }
    for line in lines(planned) {
        context.out.line(&line)?;
    }
    Ok(Ended::Done)
}

fn show(context: &Context<'_>, report: &Report, seconds: f64) -> Result<Ended> {
    #[derive(serde::Serialize)]
    struct Timed<'a> {
        #[serde(flatten)]
        report: &'a Report,
        seconds: f64,
    }
    let (files, bytes, streams) = report.sums();
    let word = match report.outcome {
        "done" | "incomplete" => "restored",
        _ => "stopped while restoring",
    };
    context.out.say(&format!(
        "{word} {} by the runbook of {}: {files} files with {}, streams of {}, in {seconds:.1} s",
        report.snapshot,
        report.job,
        show_size(bytes),
        show_size(streams)
    ));
    for fault in &report.faults {
        context.out.told(&fault.message, fault.hint.as_deref(), fault.exit);
    }
    if report.outcome == "incomplete" {
        context.out.fault("some entries were not stored as they were: --json names them");
    }
    if context.out.is_json() {
        let is_result = matches!(report.outcome, "done" | "incomplete");
        context.out.object(if is_result { "result" } else { "error" }, &Timed { report, seconds })?;
    }
    Ok(Ended::Code(report.exit))
}

//! `bk drill`

use std::time::Duration;

use super::{Context, Ended};
use crate::{
    clock::System,
    config::{
        job::{Chosen, Job},
        keys::DrillText,
        meaning,
        typed::DrillArgs,
    },
    error::{Error, Kind, Result},
    model::{
        ids::{Name, SnapshotName, Which},
        units::show_size,
    },
    ops::drill::{self, Command, Request},
};

/// How long the command may take when nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(3600);

pub fn run(context: &Context<'_>, args: &DrillArgs) -> Result<Ended> {
    let (named, which) = match args.what.split_once('/') {
        Some(_) => {
            let snapshot: SnapshotName = args.what.parse()?;
            (snapshot.job, snapshot.which)
        }
        None => (args.what.parse()?, Which::Latest(0)),
    };
    let (stored, node, text) = configured(context, &named, args.node.as_ref())?;
    let scratch = args.scratch.as_ref().or(text.scratch.as_ref()).ok_or_else(|| {
        Error::usage("no directory to restore into is named")
            .with_hint(format!("--scratch DIR, or `scratch` in [job.{named}.drill]"))
    })?;
    let request = Request {
        job: &stored,
        node: &node,
        snapshot: &SnapshotName { job: stored.clone(), which },
        scratch,
        command: command(args, &text)?,
        threads: meaning::threads(context.global)?,
    };
    let volume = context.volume_of(&stored)?;
    let progress = context.progress("drill");
    let report = drill::run(&volume, &request, &System, &progress)?;
    let seconds = progress.elapsed().as_secs_f64();
    drop(progress);
    let out = context.out;
    out.say(&format!(
        "drill of {} {}: {} entries with {} restored and compared in {seconds:.1} s",
        report.snapshot,
        report.outcome,
        report.entries,
        show_size(report.bytes)
    ));
    for fault in &report.faults {
        out.told(&fault.message, fault.hint.as_deref(), fault.exit);
    }
    if out.is_json() {
        #[derive(serde::Serialize)]
        struct Timed<'a> {
            #[serde(flatten)]
            report: &'a drill::Report,
            seconds: f64,
        }
        let r#type = if report.faults.is_empty() { "result" } else { "error" };
        out.object(r#type, &Timed { report: &report, seconds })?;
    }
    Ok(Ended::Code(report.exit))
}

/// The job's name on the volume, the node and its `drill`, when it is configured; by the name it has there, or by the one on the volume.
fn configured(context: &Context<'_>, named: &Name, node: Option<&String>) -> Result<(Name, String, DrillText)> {
    let config = context.config()?;
    let Some(name) = config.job_of(named) else {
        return Ok((named.clone(), context.node(node)?, DrillText::default()));
    };
    let job = Job::resolve(config, name, &Chosen { is_open: true, ..Chosen::default() })?;
    let node = match (node.filter(|typed| !typed.is_empty()), &job.text.node) {
        (None, Some(own)) => own.to_string(),
        (typed, _) => context.node(typed)?,
    };
    let stored = if name == named { job.stored_name(&node)? } else { named.clone() };
    Ok((stored, node, job.text.drill.unwrap_or_default()))
}

fn command(args: &DrillArgs, text: &DrillText) -> Result<Option<Command>> {
    let wrong = |e: String| Error::new(Kind::Usage, format!("drill: {e}"));
    let argv = match (&args.run[..], &text.command) {
        ([], None) => return Ok(None),
        ([], Some(command)) => command.clone().argv(text.shell, "command").map_err(wrong)?,
        (typed, _) => typed.to_vec(),
    };
    let timeout = text.timeout.map_or(TIMEOUT, |span| span.0);
    Ok(Some(Command { argv, user: text.user.clone(), env: text.env.clone(), timeout }))
}

//! `bk recover`

use std::path::PathBuf;

use super::{Context, Ended};
use crate::{
    config::{file::Config, meaning, typed::RecoverArgs},
    error::{Error, Kind, Result},
    model::ids::{Name, RunId},
    ops::recover::{self, Outcome},
};

pub fn run(context: &Context<'_>, args: &RecoverArgs) -> Result<Ended> {
    let configured = match &args.state_dir {
        Some(_) => None,
        None => match context.config() {
            Ok(config) => config.text.state_dir.clone(),
            Err(e) => {
                context.out.warn(&format!("{e}: what was noted is left all the same"));
                Config::state_dir_of_broken(context.global.config.as_deref())
            }
        },
    };
    let state_dir: PathBuf = meaning::state_dir(args.state_dir.as_ref(), configured.as_ref())?;
    let job = args.job.as_ref().map(|name| name.parse::<Name>()).transpose()?;
    let monitor = context.progress("recover");
    if let (Some(run_id), Some(job)) = (&args.watch, &job) {
        let run_id: RunId = run_id.parse()?;
        recover::watch(&state_dir, job, run_id, std::io::stdin(), &monitor)?;
        return Ok(Ended::Done);
    }
    // With `per_node` a job's runs are noted under the names of its nodes.
    let is_configured = |name: &Name| context.config().is_ok_and(|config| config.job(name).is_some());
    let is_of = |job: &Name, name: &Name| {
        let node = name.as_str().strip_prefix(job.as_str()).and_then(|rest| rest.strip_prefix('.'));
        name == job || node.is_some() && !is_configured(name)
    };
    let is_wanted = |name: &Name| job.as_ref().is_none_or(|job| is_of(job, name));
    let outcomes = recover::run(&state_dir, &is_wanted, args.forget, &monitor)?;
    drop(monitor);
    if let Some(job) = job.as_ref().filter(|_| outcomes.is_empty())
        && context.config().is_ok_and(|config| config.job_of(job).is_none())
    {
        let what = format!("no job is called {job}, and no run of one has noted anything in {}", state_dir.display());
        return Err(Error::usage(what));
    }
    for one in &outcomes {
        show(context, one)?;
    }
    let faults = outcomes.into_iter().flat_map(|one| one.errors.into_iter().map(move |e| (one.job.clone(), e)));
    let mut faults: Vec<(String, Error)> = faults.collect();
    match faults.pop() {
        None if context.out.is_json() => {
            context.out.object("result", &serde_json::json!({ "outcome": "done" })).map(|()| Ended::Done)
        }
        None => Ok(Ended::Done),
        Some((job, last)) => {
            for (job, error) in &faults {
                context.out.fault(&format!("{job}: {error}"));
            }
            let hint = match last.hint() {
                Some(hint) => hint.to_owned(),
                None => format!("`bk recover --forget {job}` when it was done by hand"),
            };
            let kind = if last.kind() == Kind::Other { Kind::Step } else { last.kind() };
            Err(last.with_kind(kind).context(job).with_hint(hint))
        }
    }
}

fn show(context: &Context<'_>, one: &Outcome) -> Result<()> {
    if context.out.is_json() {
        return context.out.object("job", one);
    }
    let runs: Vec<&str> = one.runs.iter().map(|run| run.run_id.as_str()).collect();
    match (one.outcome, runs.is_empty()) {
        ("running", _) if !one.errors.is_empty() => {}
        ("running", _) => context.out.say(&format!("{}: a run is at work: nothing is to be left", one.job)),
        ("killed", _) => {}
        (_, true) => context.out.say(&format!("{}: nothing is to be left", one.job)),
        (outcome, false) => context.out.say(&format!("{}: {outcome}: {}", one.job, runs.join(" "))),
    }
    Ok(())
}

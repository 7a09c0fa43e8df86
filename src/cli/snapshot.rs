//! `bk snapshot`

use std::cell::OnceCell;

use super::{
    Context, Ended, copy, health, job,
    progress::{Progress, show_time},
    run as shown,
};
use crate::{
    clock::System,
    config::{meaning, typed::SnapshotArgs, volume::Target},
    engine::{beat, cluster::gate::Open},
    error::{Error, Result},
    format::notes::COMMENT_LEN_MAX,
    model::units::show_size,
    ops::{
        expire,
        run::{self, Job, Work},
        snapshot::{self, Guards, Outcome, Planned, Request},
    },
    plan::level::Decision,
};

pub fn run(context: &Context<'_>, args: &SnapshotArgs) -> Result<Ended> {
    let asked = job::asked(context, args)?;
    let request = asked.request(context, args)?;
    let target = super::itself(asked.target(context, &request.job)?);
    let free_bytes_min = target.expected.min_free.unwrap_or(0);
    let guarded = |request: Request| Request { guards: Guards { free_bytes_min, ..request.guards }, ..request };
    let in_role = |role: Option<&str>| match asked.in_role(context, args, role)? {
        Some(asked) => asked.request(context, args).map(guarded),
        None => Ok(guarded(request.clone())),
    };
    let after = copy::After::new(args, asked.copy_to(), meaning::threads(context.global)?)?;
    if args.dry_run {
        let request = in_role(None)?;
        let planned = snapshot::plan(&super::open(&target)?, &request, &System)?;
        return show_plan(context, &request, &planned);
    }
    let around = asked.around(args)?;
    let job = Job {
        name: &request.job,
        node: &request.node,
        gate: &around.gate,
        steps: &around.steps,
        max_hold: around.max_hold,
        state_dir: &meaning::state_dir(args.state_dir.as_ref(), context.config()?.text.state_dir.as_ref())?,
        beat: beat(args)?,
    };
    let open = || {
        let (volume, local) = (super::open(&target)?, super::local(&target)?);
        let (at, level) = (&volume.shown, request.level.as_ref().map_or(0, |level| level.level));
        let id = volume.file.id.as_str();
        context.out.detail(&format!("job {} at level {level} on volume {id} at {at}", request.job));
        Ok((volume, local))
    };
    let requested = |open: &Open| in_role(open.role.as_deref());
    let progress = context.progress("snapshot");
    let (expired, copied) = (OnceCell::new(), OnceCell::new());
    let then = |outcome: &Outcome| {
        let mut errors = Vec::new();
        if asked.expires_after() {
            progress.turn_to("expire");
            match expire_now(&target, &request, &progress) {
                Ok((outcome, faults)) => {
                    errors.extend(faults);
                    let _ = expired.set(outcome);
                }
                Err(e) => errors.push(e.context("not expired")),
            }
        }
        let mut copies = after.run(context, &target, &outcome.snapshot, &progress);
        errors.extend(copies.iter_mut().filter_map(copy::Copied::take_error));
        let _ = copied.set(copies);
        errors
    };
    let work = Work { open: &open, request: &requested, then: &then };
    let report = match args.validate {
        true => run::validate(&job, &work, &|| after.check(context), &System, &progress),
        false => run::run(&job, &work, &System, &progress),
    };
    let seconds = progress.elapsed().as_secs_f64();
    drop(progress);
    let copies = copied.get().map_or(&[][..], |copies: &Vec<copy::Copied>| copies);
    if let Some(path) = asked.metrics(args).filter(|_| !args.validate) {
        health::after_run(context, path, &target, health::Ran::now(&request.job, report.exit(), seconds));
    }
    shown::show(context, (&report, copies, expired.get()), seconds, |outcome| summary(context, outcome, seconds))
}

/// `expire_after`: what is past its time goes, of this job.
fn expire_now(target: &Target, request: &Request, progress: &Progress<'_>) -> Result<(expire::Outcome, Vec<Error>)> {
    let request = expire::Request {
        job: Some(request.job.clone()),
        node: request.node.clone(),
        allow_last: false,
        yes: false,
        dry_run: false,
        sweep_grace: expire::SWEEP_GRACE_SECONDS,
        threads: super::expire::DELETE_THREADS,
    };
    let mut outcome = expire::run(&super::open(target)?, &request, &System, progress)?;
    let errors = std::mem::take(&mut outcome.errors);
    Ok((outcome, errors))
}

/// How the run says how far it is; tests cannot wait so long and set `BK_TEST_BEAT_MS`.
fn beat(args: &SnapshotArgs) -> Result<beat::Settings> {
    let set = std::env::var("BK_TEST_BEAT_MS").ok().and_then(|text| text.parse::<u64>().ok());
    let every = set.map_or(beat::Settings::default().every, std::time::Duration::from_millis);
    let comment = args.comment.clone().filter(|text| !text.is_empty());
    if comment.as_ref().is_some_and(|text| text.len() > COMMENT_LEN_MAX) {
        return Err(Error::usage(format!("--comment is longer than {COMMENT_LEN_MAX} bytes")));
    }
    Ok(beat::Settings { every, comment })
}

/// `--dry-run`: what would be taken and why.
fn show_plan(context: &Context<'_>, request: &Request, planned: &Planned) -> Result<Ended> {
    let out = context.out;
    if out.is_json() {
        out.object("result", planned)?;
        return Ok(Ended::Done);
    }
    let (job, because) = (&request.job, planned.because.as_ref());
    let because = because.map_or_else(String::new, |text| format!(" by {text}"));
    out.line(&format!("level {}{because}", planned.level))?;
    match &planned.decision {
        Decision::Full => {}
        Decision::Increment { base, chain, .. } => {
            let chain: Vec<String> = chain.iter().map(|seq| format!("{job}/{seq}")).collect();
            out.line(&format!("base {job}/{base}, the newest of a lower level; chain {}", chain.join(" ")))?;
        }
        Decision::Promoted { from, why } => out.line(&format!("instead of level {from}: {why}"))?,
    }
    let expires = planned.expires_at.map_or_else(|| "never".to_owned(), |at| at.to_string());
    out.line(&format!("expires {expires}"))?;
    Ok(Ended::Done)
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "shown with three digits"
)]
fn summary(context: &Context<'_>, outcome: &Outcome, seconds: f64) {
    let totals = &outcome.totals;
    let stored = totals.stored_bytes + totals.index_bytes;
    let ratio = totals.content_bytes as f64 / stored.max(1) as f64;
    let rate = totals.content_bytes as f64 / seconds.max(0.001);
    let base = outcome.base.map_or_else(String::new, |base| format!(" over {base}"));
    let mut text = format!("snapshot {} level {}{base}: ", outcome.snapshot, outcome.level);
    if totals.entries > 0 {
        text += &format!("{} entries, {} files, ", totals.entries, totals.files);
    }
    text += &format!(
        "{} stored as {} ({ratio:.2} : 1) in {} at {}/s",
        show_size(totals.content_bytes),
        show_size(stored),
        if seconds < 60.0 { format!("{seconds:.1} s") } else { show_time(seconds as u64) },
        show_size(rate as u64),
    );
    if let Some(at) = outcome.expires_at {
        text += &format!(", expires {at}");
    }
    context.out.say(&text);
    context.out.detail(&format!("busy: {}", outcome.profile.line()));
    if totals.incomplete > 0 {
        context.out.fault(&format!("{} entries are incomplete:", totals.incomplete));
        for entry in outcome.incomplete.iter().take(20) {
            context.out.fault(&format!("  {}: {}", entry.path, entry.why));
        }
    }
}

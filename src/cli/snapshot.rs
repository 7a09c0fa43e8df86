//! `bk snapshot`

use std::cell::OnceCell;

use super::{
    Context, Ended, copy, health,
    job::{self, Around, Asked},
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
        run::{self, Job, Told, Work},
        snapshot::{self, Outcome, Planned, Request},
    },
    plan::level::Decision,
};

pub fn run(context: &Context<'_>, args: &SnapshotArgs) -> Result<Ended> {
    let asked = job::asked(context, args)?;
    // What depends on the role is known only when the gate has told that.
    let settled = OnceCell::new();
    let settle = |role: Option<&str>| match settled.get() {
        Some(known) => Ok::<&Settled, Error>(known),
        None => {
            let known = Settled::new(context, args, &asked, role)?;
            Ok(settled.get_or_init(|| known))
        }
    };
    if args.dry_run || !asked.is_open() {
        settle(None)?;
    }
    if let (true, Some(Settled { request, target, .. })) = (args.dry_run, settled.get()) {
        let planned = snapshot::plan(&super::open(target)?, request, &System)?;
        return show_plan(context, request, &planned);
    }
    let (request, around) = (asked.request(context, args)?, asked.around(args)?);
    let job = Job {
        name: &request.job,
        node: &request.node,
        gate: &around.gate,
        steps: &around.steps,
        steps_by_role: asked.has_steps_by_role(context)?,
        state_dir: &meaning::state_dir(args.state_dir.as_ref(), context.config()?.text.state_dir.as_ref())?,
        beat: beat(args)?,
    };
    let told = |open: &Open| {
        let Settled { request, around, .. } = settle(open.role.as_deref())?;
        Ok(Told { steps: &around.steps, max_hold: around.max_hold, request: request.clone() })
    };
    let open = || {
        let Settled { request, target, .. } = settle(None)?;
        let (volume, local) = (super::open(target)?, super::local(target)?);
        let (at, level) = (&volume.shown, request.level.as_ref().map_or(0, |level| level.level));
        let id = volume.file.id.as_str();
        context.out.detail(&format!("job {} at level {level} on volume {id} at {at}", request.job));
        Ok((volume, local))
    };
    let progress = context.progress("snapshot");
    let (expired, copied) = (OnceCell::new(), OnceCell::new());
    let then = |outcome: &Outcome| {
        let mut errors = Vec::new();
        let Some(Settled { asked, request, target, after, .. }) = settled.get() else { return errors };
        if asked.expires_after() {
            progress.turn_to("expire");
            match expire_now(target, request, &progress) {
                Ok((outcome, faults)) => {
                    errors.extend(faults);
                    let _ = expired.set(outcome);
                }
                Err(e) => errors.push(e.context("not expired")),
            }
        }
        let mut copies = after.run(context, target, &outcome.snapshot, &progress);
        errors.extend(copies.iter_mut().filter_map(copy::Copied::take_error));
        let _ = copied.set(copies);
        errors
    };
    let work = Work { open: &open, told: &told, then: &then };
    let copies = || settled.get().map_or_else(Vec::new, |settled| settled.after.check(context));
    let report = match args.validate {
        true => run::validate(&job, &work, &copies, &System, &progress),
        false => run::run(&job, &work, &System, &progress),
    };
    let seconds = progress.elapsed().as_secs_f64();
    drop(progress);
    let copies = copied.get().map_or(&[][..], |copies: &Vec<copy::Copied>| copies);
    // A run whose gate told nothing is counted where all runs of the job are.
    let settled = settled.get();
    let asked = settled.map_or(&asked, |settled| &settled.asked);
    if let Some(path) = asked.metrics(args).filter(|_| !args.validate) {
        let ran = health::Ran::now(&request.job, report.exit(), seconds);
        match settled.map_or_else(|| asked.target(context, &request.job), |settled| Ok(settled.target.clone())) {
            Ok(target) => health::after_run(context, path, &target, ran),
            Err(e) => context.out.warn(&format!("{} is not written: {e}", path.display())),
        }
    }
    shown::show(context, (&report, copies, expired.get()), seconds, |outcome| summary(context, outcome, seconds))
}

/// All that is asked for, in the role of this node.
struct Settled {
    asked: Asked,
    around: Around,
    request: Request,
    target: Target,
    after: copy::After,
}

impl Settled {
    fn new(context: &Context<'_>, args: &SnapshotArgs, asked: &Asked, role: Option<&str>) -> Result<Self> {
        let asked = asked.in_role(context, args, role)?;
        let mut request = asked.request(context, args)?;
        let target = super::itself(asked.target(context, &request.job)?);
        request.guards.free_bytes_min = target.expected.min_free.unwrap_or(0);
        let after = copy::After::new(args, asked.copy_to(), meaning::threads(context.global)?)?;
        Ok(Self { around: asked.around(args)?, asked, request, target, after })
    }
}

/// `expire_after`: what is past its time goes, of this job.
fn expire_now(target: &Target, request: &Request, progress: &Progress<'_>) -> Result<(expire::Outcome, Vec<Error>)> {
    let request = expire::Request {
        job: Some(request.job.clone()),
        node: request.node.clone(),
        allow_last: false,
        yes: false,
        sweep_lost: false,
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

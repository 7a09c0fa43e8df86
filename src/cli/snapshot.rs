//! `bk snapshot`

use super::{Context, Ended, copy, health, progress::show_time};
use crate::{
    clock::{Clock, System},
    config::{meaning, typed::SnapshotArgs},
    engine::{beat, write::pipeline},
    error::{Error, Result},
    model::{time::Lifetime, units::show_size},
    ops::snapshot::{self, Input, Outcome, Planned, Request, Skipped},
    plan::{
        level::{self, Decision},
        schedule::Schedule,
    },
    source::select::{Globs, Selection, parse_exclude_file},
};

pub fn run(context: &Context<'_>, args: &SnapshotArgs) -> Result<Ended> {
    let started = std::time::Instant::now();
    let ended = take(context, args);
    health::after_run(context, args, &ended, started.elapsed().as_secs_f64());
    ended
}

fn take(context: &Context<'_>, args: &SnapshotArgs) -> Result<Ended> {
    let request = request(context, args)?;
    let after = copy::After::new(context, args)?;
    let (volume, local) = (context.volume_itself()?, context.local()?);
    if args.dry_run {
        let planned = snapshot::plan(&volume, &request, &System)?;
        return show_plan(context, &request, &planned);
    }
    let progress = context.progress("snapshot");
    let ended = snapshot::run(&volume, local.as_ref(), &request, &System, &progress)?;
    let seconds = progress.elapsed().as_secs_f64();
    drop(progress);
    let outcome = match ended {
        snapshot::Ended::Taken(outcome) => outcome,
        snapshot::Ended::Skipped(skipped) => return show_skipped(context, &skipped),
    };
    let copies = after.run(context, &volume, &outcome.snapshot)?;
    if context.out.is_json() {
        #[derive(serde::Serialize)]
        struct Timed<'a> {
            #[serde(flatten)]
            outcome: &'a Outcome,
            seconds: f64,
            #[serde(skip_serializing_if = "<[_]>::is_empty")]
            copies: &'a [copy::Copied],
        }
        context.out.object("result", &Timed { outcome: &outcome, seconds, copies: &copies })?;
    } else {
        summary(context, &outcome, seconds);
    }
    let ended = if outcome.totals.incomplete > 0 { Ended::Incomplete } else { Ended::Done };
    Ok(copy::told(context, &copies, ended))
}

/// A run that was not needed: exit 0.
fn show_skipped(context: &Context<'_>, skipped: &Skipped) -> Result<Ended> {
    if context.out.is_json() {
        context.out.object("result", skipped)?;
    } else {
        context.out.say(&format!("{}: {}", skipped.outcome, skipped.why));
    }
    Ok(Ended::Done)
}

fn request(context: &Context<'_>, args: &SnapshotArgs) -> Result<Request> {
    let job = meaning::job(args)?;
    let storing = meaning::storing(args)?;
    let mut patterns = args.exclude.clone();
    for file in &args.exclude_file {
        let text = std::fs::read_to_string(file).map_err(|e| {
            Error::io(format!("cannot read {}", file.display()), e).with_kind(crate::error::Kind::Usage)
        })?;
        patterns.extend(parse_exclude_file(&text));
    }
    let streams = match (&args.stdin, args.run.is_empty()) {
        (Some(name), _) => vec![(name.parse()?, Input::Stdin)],
        (None, true) => Vec::new(),
        (None, false) => {
            let name = args.stream_name.as_ref().map_or_else(|| Ok(job.clone()), |name| name.parse())?;
            vec![(name, Input::Command(args.run.clone()))]
        }
    };
    let (every, comment) = meaning::beat(args)?;
    Ok(Request {
        node: meaning::node(args.node.as_ref()),
        level: level(args)?,
        min_interval: meaning::min_interval(args)?,
        keep: args.expire.as_ref().filter(|text| !text.is_empty()).map(|text| text.parse::<Lifetime>()).transpose()?,
        base: args.directory.clone(),
        sources: args.paths.clone(),
        selection: Selection {
            exclude: Globs::new(&patterns)?,
            exclude_caches: args.exclude_caches,
            exclude_if_present: args.exclude_if_present.clone(),
            one_file_system: args.one_file_system,
        },
        patterns,
        streams,
        pipeline: pipeline::Settings {
            threads: meaning::threads(context.global)?,
            codec: storing.codec,
            frame_len: storing.frame_len,
            verify_all: args.verify_write,
        },
        part_len: storing.part_len,
        ignore_inode: args.ignore_inode,
        beat: beat::Settings { every: every.unwrap_or(beat::Settings::default().every), comment },
        job,
    })
}

/// The level that is wanted: as typed, or by the schedule for this day in this node's time zone.
fn level(args: &SnapshotArgs) -> Result<Option<level::Request>> {
    let levels = args.levels.as_ref().filter(|text| !text.trim().is_empty());
    let schedule = levels.map(|text| text.parse::<Schedule>()).transpose()?;
    let (level, because) = match (args.level.as_deref(), schedule) {
        (None, None) => (0, None),
        (None | Some("auto"), Some(schedule)) => {
            let zone = jiff::tz::TimeZone::try_system().unwrap_or(jiff::tz::TimeZone::UTC);
            let now = System.now()?.0.to_zoned(zone);
            let (level, clause) = schedule.on(now.date());
            (level, Some(format!("`{clause}` on {}", now.strftime("%A %Y-%m-%d, %Q"))))
        }
        (Some("auto"), None) => {
            return Err(Error::usage("--level auto has no schedule").with_hint("--levels '0 on sun, 1 otherwise'"));
        }
        (Some(text), _) => match text.parse::<u8>() {
            Ok(level @ 0..=9) => (level, None),
            _ => return Err(Error::usage(format!("--level {text} is not 0 to 9 or auto"))),
        },
    };
    Ok(Some(level::Request { level, because, no_promote: args.no_promote, strict_base: args.strict_base }))
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
    if totals.incomplete > 0 {
        context.out.fault(&format!("{} entries are incomplete:", totals.incomplete));
        for entry in outcome.incomplete.iter().take(20) {
            context.out.fault(&format!("  {}: {}", entry.path, entry.why));
        }
    }
}

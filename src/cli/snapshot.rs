//! `bk snapshot`

use super::{Context, Ended, job, progress::show_time};
use crate::{
    clock::System,
    config::typed::SnapshotArgs,
    error::Result,
    model::units::show_size,
    ops::snapshot::{self, Guards, Outcome, Planned, Request, Skipped},
    plan::level::Decision,
};

pub fn run(context: &Context<'_>, args: &SnapshotArgs) -> Result<Ended> {
    let asked = job::asked(context, args)?;
    let request = asked.request(context, args)?;
    let target = super::itself(asked.target(context, &request.job)?);
    let (volume, local) = (super::open(&target)?, super::local(&target)?);
    let request = Request {
        guards: Guards { free_bytes_min: target.expected.min_free.unwrap_or(0), ..request.guards },
        ..request
    };
    if args.dry_run {
        let planned = snapshot::plan(&volume, &request, &System)?;
        return show_plan(context, &request, &planned);
    }
    let (at, level) = (&volume.shown, request.level.as_ref().map_or(0, |level| level.level));
    context.out.detail(&format!("job {} at level {level} on volume {} at {at}", request.job, volume.file.id.as_str()));
    let progress = context.progress("snapshot");
    let ended = snapshot::run(&volume, local.as_ref(), &request, &System, &progress)?;
    let seconds = progress.elapsed().as_secs_f64();
    drop(progress);
    let outcome = match ended {
        snapshot::Ended::Taken(outcome) => outcome,
        snapshot::Ended::Skipped(skipped) => return show_skipped(context, &skipped),
    };
    if context.out.is_json() {
        #[derive(serde::Serialize)]
        struct Timed<'a> {
            #[serde(flatten)]
            outcome: &'a Outcome,
            seconds: f64,
        }
        context.out.object("result", &Timed { outcome: &outcome, seconds })?;
    } else {
        summary(context, &outcome, seconds);
    }
    Ok(if outcome.totals.incomplete > 0 { Ended::Incomplete } else { Ended::Done })
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

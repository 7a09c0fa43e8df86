//! `bk expire`, `bk hold`, `bk release`, `bk why`

use super::{Context, Ended};
use crate::{
    clock::System,
    config::typed::{ExpireArgs, HoldArgs, ReleaseArgs, WhyArgs},
    error::{Error, Result},
    model::{
        ids::SnapshotName,
        time::{Instant, Lifetime},
        units::show_size,
    },
    ops::{
        expire::{self, Outcome, Request, Row, SWEEP_GRACE_SECONDS},
        keep::{self, When},
    },
    plan::expiry::Fate,
};

/// Deletes wait for the store, not for a processor: a few at once are enough.
pub const DELETE_THREADS: usize = 8;

pub fn run(context: &Context<'_>, args: &ExpireArgs) -> Result<Ended> {
    if let Some([snapshot, at]) = args.set.as_deref() {
        let (name, node): (SnapshotName, _) = (snapshot.parse()?, context.node(args.node.as_ref())?);
        let outcome = keep::set(&context.volume_itself_of(&name.job)?, &name, when(at)?, &node, &System)?;
        return recorded(context, &outcome);
    }
    let request = Request {
        job: args.job.as_ref().map(|job| context.stored(&job.parse()?)).transpose()?,
        node: context.node(args.node.as_ref())?,
        allow_last: args.allow_last,
        yes: args.yes,
        sweep_lost: args.sweep_lost,
        dry_run: args.dry_run,
        sweep_grace: args.sweep_grace.unwrap_or(SWEEP_GRACE_SECONDS),
        threads: DELETE_THREADS,
    };
    let volume = match &request.job {
        Some(job) => context.volume_itself_of(job)?,
        None => context.volume_itself()?,
    };
    let progress = context.progress("expire");
    let mut outcome = expire::run(&volume, &request, &System, &progress)?;
    drop(progress);
    let out = context.out;
    for row in &outcome.rows {
        if out.is_json() {
            out.object("snapshot", row)?;
        } else if !(context.global.quiet) {
            out.line(&line(row, args.dry_run || row.refused))?;
        }
    }
    let mut errors = outcome.errors.drain(..);
    let first = errors.next();
    errors.for_each(|e| out.fault(&format!("error: {e}")));
    if let Some(e) = first {
        return Err(e);
    }
    if out.is_json() {
        out.object("result", &outcome)?;
    } else {
        out.say(&summary(&outcome, args.dry_run));
    }
    Ok(Ended::Done)
}

/// A time from now, an instant, a day in UTC, or `never`.
fn when(text: &str) -> Result<When> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Instant::from_second(at.as_second()).map(When::At);
    }
    if let Ok(day) = text.parse::<jiff::civil::Date>()
        && let Ok(at) = day.to_zoned(jiff::tz::TimeZone::UTC)
    {
        return Instant::from_second(at.timestamp().as_second()).map(When::At);
    }
    text.parse::<Lifetime>().map(When::After)
}

fn line(row: &Row, dry_run: bool) -> String {
    let what = match &row.fate {
        Fate::Go if dry_run => "would go".to_owned(),
        Fate::Go => "goes".to_owned(),
        Fate::Held { by } => {
            format!("held by {}", by.iter().map(u64::to_string).collect::<Vec<_>>().join(", "))
        }
        Fate::LastChain => "stays: the last usable chain".to_owned(),
        Fate::Hold { record } => format!("on hold by record {record}"),
        Fate::NotYet | Fate::Never => "stays".to_owned(),
    };
    let at = row.expires_at.map_or_else(|| "never".to_owned(), |at| at.to_string());
    format!("{}  {at}  {what}", row.snapshot)
}

fn summary(outcome: &Outcome, dry_run: bool) -> String {
    let (expired, swept) = (outcome.expired, outcome.swept);
    if dry_run {
        return format!("{expired} snapshots would expire, {swept} runs that never ended would be swept");
    }
    format!(
        "{expired} snapshots expired, {swept} runs that never ended swept: {} objects deleted, {}",
        outcome.objects,
        show_size(outcome.bytes)
    )
}

pub fn hold(context: &Context<'_>, args: &HoldArgs) -> Result<Ended> {
    let (name, node): (SnapshotName, _) = (args.snapshot.parse()?, context.node(args.node.as_ref())?);
    recorded(
        context,
        &keep::hold(&context.volume_itself_of(&name.job)?, &name, args.comment.as_deref(), &node, &System)?,
    )
}

pub fn release(context: &Context<'_>, args: &ReleaseArgs) -> Result<Ended> {
    let (name, node): (SnapshotName, _) = (args.snapshot.parse()?, context.node(args.node.as_ref())?);
    recorded(context, &keep::release(&context.volume_itself_of(&name.job)?, &name, &node, &System)?)
}

fn recorded(context: &Context<'_>, outcome: &keep::Outcome) -> Result<Ended> {
    if context.out.is_json() {
        context.out.object("result", outcome)?;
        return Ok(Ended::Done);
    }
    let at = outcome.expires_at.map_or_else(|| "never expires".to_owned(), |at| format!("expires {at}"));
    let hold = if outcome.hold { ", on hold" } else { "" };
    let record = outcome.record.map_or_else(|| "nothing to change".to_owned(), |seq| format!("record {seq}"));
    context.out.say(&format!("{} {at}{hold} ({record})", outcome.snapshot));
    Ok::<_, Error>(Ended::Done)
}

pub fn why(context: &Context<'_>, args: &WhyArgs) -> Result<Ended> {
    let name: SnapshotName = args.snapshot.parse()?;
    let why = keep::why(&context.volume_of(&name.job)?, &name, &System)?;
    if context.out.is_json() {
        context.out.object("result", &why)?;
        return Ok(Ended::Done);
    }
    context.out.line(&why.snapshot)?;
    for fact in &why.facts {
        context.out.line(&format!("  {fact}"))?;
    }
    Ok(Ended::Done)
}

//! `bk restore`

use std::os::unix::ffi::OsStrExt;

use super::{Context, Ended};
use crate::{
    config::{
        meaning,
        typed::{OverwriteArg, RestoreArgs},
    },
    error::{Error, Result},
    model::{show, units::show_size},
    ops::restore::{self, Action, DeviceOptions, Options, Outcome, Overwrite},
};

/// Entries named on a terminal; JSON names all that were kept.
const NAMED_MAX: usize = 20;

pub fn run(context: &Context<'_>, args: &RestoreArgs) -> Result<Ended> {
    if let Some(job) = &args.runbook {
        return super::runbook::run(context, args, job);
    }
    let snapshot = args.snapshot.as_ref().ok_or_else(|| Error::usage("no snapshot is named"))?;
    let threads = meaning::threads(context.global)?;
    if let (Some(device), Some(stream)) = (&args.to_device, &args.stream) {
        let options =
            DeviceOptions { snapshot: snapshot.parse()?, stream: stream.parse()?, device: device.clone(), threads };
        let (volume, progress) = (context.volume_of(&options.snapshot.job)?, context.progress("restore"));
        let outcome = restore::to_device(&volume, &options, &progress)?;
        drop(progress);
        if context.out.is_json() {
            context.out.object("result", &outcome)?;
        } else {
            context.out.say(&format!("{} written to {}", show_size(outcome.bytes), device.display()));
        }
        return Ok(Ended::Done);
    }
    let target = args.target.clone().ok_or_else(|| Error::usage("--target DIR is missing"))?;
    let options = Options {
        snapshot: snapshot.parse()?,
        target,
        paths: args.paths.iter().map(|path| path.as_bytes().to_vec()).collect(),
        include: args.include.clone(),
        exclude: args.exclude.clone(),
        overwrite: match args.overwrite {
            OverwriteArg::Never => Overwrite::Never,
            OverwriteArg::IfChanged => Overwrite::IfChanged,
            OverwriteArg::Always => Overwrite::Always,
        },
        safe: args.safe,
        threads,
    };
    let volume = context.volume_of(&options.snapshot.job)?;
    if args.dry_run {
        return dry_run(context, &volume, &options);
    }
    let progress = context.progress("restore");
    let outcome = restore::run(&volume, &options, &progress)?;
    let seconds = progress.elapsed().as_secs_f64();
    drop(progress);
    if context.out.is_json() {
        context.out.object("result", &serde_json::json!({ "outcome": outcome, "seconds": seconds }))?;
    } else {
        summary(context, &options, &outcome, seconds);
    }
    Ok(if outcome.is_incomplete() { Ended::Incomplete } else { Ended::Done })
}

fn dry_run(context: &Context<'_>, volume: &crate::volume::Volume, options: &Options) -> Result<Ended> {
    let progress = context.progress("restore");
    restore::plan(volume, options, &progress, &mut |entry, action| {
        let word = match action {
            Action::Create => "create",
            Action::Replace => "replace",
            Action::Keep => "keep",
            Action::Skip => "skip",
        };
        if context.out.is_json() {
            let path = crate::model::text::PathText(entry.path.clone());
            #[derive(serde::Serialize)]
            struct Planned {
                #[serde(flatten)]
                path: crate::model::text::PathText,
                action: &'static str,
            }
            return context.out.object("planned", &Planned { path, action: word });
        }
        context.out.line(&format!("{word:<8} {}", show::name(&entry.path)))
    })?;
    Ok(Ended::Done)
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "shown with three digits"
)]
fn summary(context: &Context<'_>, options: &Options, outcome: &Outcome, seconds: f64) {
    let out = context.out;
    let rate = show_size((outcome.content_bytes as f64 / seconds.max(0.001)) as u64);
    let mut text = format!(
        "restored {} to {}: {} files, {} directories, {} hard links, {} others, {} in {seconds:.1} s at {rate}/s",
        options.snapshot,
        options.target.display(),
        outcome.files,
        outcome.directories,
        outcome.hard_links,
        outcome.others,
        show_size(outcome.content_bytes)
    );
    if outcome.kept > 0 {
        text += &format!("; {} kept as they were", outcome.kept);
    }
    if outcome.left_out > 0 {
        text += &format!("; {} left out", outcome.left_out);
    }
    out.say(&text);
    if outcome.owners_not_set > 0 {
        out.warn(&format!("{} owners could not be set: only root may", outcome.owners_not_set));
    }
    if outcome.attributes_not_set > 0 {
        out.warn(&format!(
            "{} entries have attributes that could not be set: only root may",
            outcome.attributes_not_set
        ));
    }
    for (count, faults, what) in [
        (outcome.not_restored, &outcome.faults, "were not restored"),
        (outcome.incomplete, &outcome.incomplete_entries, "were not stored as they were"),
    ] {
        if count > 0 {
            out.fault(&format!("{count} entries {what}:"));
            for fault in faults.iter().take(NAMED_MAX) {
                out.fault(&format!("  {}: {}", fault.path, fault.why));
            }
            if faults.len() > NAMED_MAX {
                out.fault("  … --json names more");
            }
        }
    }
}

//! `bk snapshot`

use super::{Context, Ended, progress::show_time};
use crate::{
    clock::System,
    config::{meaning, typed::SnapshotArgs},
    engine::write::pipeline,
    error::{Error, Result},
    model::units::show_size,
    ops::snapshot::{self, Input, Outcome, Request},
    source::select::{Globs, Selection, parse_exclude_file},
};

pub fn run(context: &Context<'_>, args: &SnapshotArgs) -> Result<Ended> {
    let request = request(context, args)?;
    let (volume, local) = (context.volume()?, context.local()?);
    let progress = context.progress("snapshot");
    let outcome = snapshot::run(&volume, Some(&local), &request, &System, &progress)?;
    let seconds = progress.elapsed().as_secs_f64();
    drop(progress);
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
    let stream = match (&args.stdin, args.run.is_empty()) {
        (Some(name), _) => Some((name.parse()?, Input::Stdin)),
        (None, true) => None,
        (None, false) => {
            let name = args.stream_name.as_ref().map_or_else(|| Ok(job.clone()), |name| name.parse())?;
            Some((name, Input::Command(args.run.clone())))
        }
    };
    Ok(Request {
        node: meaning::node(args),
        base: args.directory.clone(),
        sources: args.paths.clone(),
        selection: Selection {
            exclude: Globs::new(&patterns)?,
            exclude_caches: args.exclude_caches,
            exclude_if_present: args.exclude_if_present.clone(),
            one_file_system: args.one_file_system,
        },
        patterns,
        stream,
        pipeline: pipeline::Settings {
            threads: meaning::threads(context.global)?,
            codec: storing.codec,
            frame_len: storing.frame_len,
            verify_all: args.verify_write,
        },
        part_len: storing.part_len,
        level: args.level,
        ignore_inode: args.ignore_inode,
        job,
    })
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
    let mut text = format!("snapshot {} level {}: ", outcome.snapshot, outcome.level);
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
    context.out.say(&text);
    if totals.incomplete > 0 {
        context.out.fault(&format!("{} entries are incomplete:", totals.incomplete));
        for entry in outcome.incomplete.iter().take(20) {
            context.out.fault(&format!("  {}: {}", entry.path, entry.why));
        }
    }
}

//! `bk verify`

use super::{Context, Ended};
use crate::{
    clock::System,
    config::{meaning, typed::VerifyArgs},
    engine::read::check::Depth,
    error::Result,
    model::units::show_size,
    ops::verify,
};

pub fn run(context: &Context<'_>, args: &VerifyArgs) -> Result<Ended> {
    let options = verify::Options {
        snapshot: args.snapshot.as_ref().map(|name| name.parse()).transpose()?,
        depth: match (args.quick, args.data) {
            (true, _) => Depth::Quick,
            (false, true) => Depth::Data,
            (false, false) => Depth::Stored,
        },
        threads: meaning::threads(context.global)?,
    };
    let volume = match &options.snapshot {
        Some(name) => context.volume_itself_of(&name.job)?,
        None => context.volume_itself()?,
    };
    let progress = context.progress("verify");
    let outcome = verify::run(&volume, &options, &System, &progress)?;
    let seconds = progress.elapsed().as_secs_f64();
    drop(progress);
    if context.out.is_json() {
        for fault in &outcome.faults {
            context.out.object("fault", fault)?;
        }
        let totals = serde_json::json!({
            "snapshots": outcome.snapshots, "checked": outcome.checked, "faults": outcome.faults.len(), "seconds": seconds,
        });
        context.out.object("result", &totals)?;
    } else {
        for fault in &outcome.faults {
            let place = if fault.r#where.is_empty() { String::new() } else { format!(", {}", fault.r#where) };
            context.out.fault(&format!("damaged: {}{place}: {}", fault.object, fault.what));
            for path in &fault.paths {
                context.out.fault(&format!("  affects {path}"));
            }
            let more = fault.affected.saturating_sub(fault.paths.len() as u64);
            if more > 0 {
                context.out.fault(&format!("  and {more} more"));
            }
        }
        let word =
            if outcome.faults.is_empty() { "no damage".to_owned() } else { format!("{} faults", outcome.faults.len()) };
        context.out.say(&format!(
            "{} snapshots, {} objects, {} read in {seconds:.1} s: {word}",
            outcome.snapshots,
            outcome.checked.objects,
            show_size(outcome.checked.stored_bytes)
        ));
    }
    Ok(if outcome.faults.is_empty() { Ended::Done } else { Ended::Faults })
}

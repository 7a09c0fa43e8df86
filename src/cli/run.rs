//! How a run of a job is shown, and the exit code it ends with.

use super::{Context, Ended};
use crate::{
    error::Result,
    ops::{run::Report, snapshot::Outcome},
};

/// Shows a report; `summary` tells of a snapshot in words.
pub fn show(context: &Context<'_>, report: &Report, seconds: f64, summary: impl FnOnce(&Outcome)) -> Result<Ended> {
    #[derive(serde::Serialize)]
    struct Timed<'a> {
        #[serde(flatten)]
        report: &'a Report,
        seconds: f64,
    }
    let out = context.out;
    if let Some(outcome) = report.taken() {
        summary(outcome);
    } else if let Some(skipped) = report.skipped() {
        out.say(&format!("{}: {}", skipped.outcome, skipped.why));
    }
    for fault in &report.faults {
        out.told(&fault.message, fault.hint.as_deref(), fault.exit);
    }
    if out.is_json() {
        let is_result = report.taken().is_some() || report.skipped().is_some();
        out.object(if is_result { "result" } else { "error" }, &Timed { report, seconds })?;
    }
    Ok(Ended::Code(report.exit()))
}

//! How a run of a job is shown, and the exit code it ends with.

use super::{Context, Ended, copy::Copied};
use crate::{
    error::Result,
    ops::{expire, run::Report, snapshot::Outcome},
};

/// Shows a report and the copies made after it; `summary` tells of a snapshot in words.
pub fn show(
    context: &Context<'_>,
    (report, copies, expired): (&Report, &[Copied], Option<&expire::Outcome>),
    seconds: f64,
    summary: impl FnOnce(&Outcome),
) -> Result<Ended> {
    #[derive(serde::Serialize)]
    struct Timed<'a> {
        #[serde(flatten)]
        report: &'a Report,
        seconds: f64,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        copies: &'a [Copied],
        #[serde(skip_serializing_if = "Option::is_none")]
        expired: Option<&'a expire::Outcome>,
    }
    let out = context.out;
    if let Some(outcome) = report.taken() {
        summary(outcome);
    } else if let Some(skipped) = report.skipped() {
        out.say(&format!("{}: {}", skipped.outcome, skipped.why));
    }
    if let Some(expired) = expired.filter(|expired| expired.expired > 0) {
        out.say(&format!("{} snapshots of the job were past their time and went", expired.expired));
    }
    copies.iter().for_each(|copy| copy.say(context));
    for fault in &report.faults {
        out.told(&fault.message, fault.hint.as_deref(), fault.exit);
    }
    if out.is_json() {
        let is_result = report.taken().is_some() || report.skipped().is_some();
        out.object(if is_result { "result" } else { "error" }, &Timed { report, seconds, copies, expired })?;
    }
    Ok(Ended::Code(report.exit()))
}

//! How a run of a job is shown, and the exit code it ends with.

use super::{Context, Ended, copy::Copied, output::Message};
use crate::{
    error::Result,
    model::show,
    ops::{
        expire,
        run::{Report, Valid},
        snapshot::Outcome,
    },
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
        messages: Vec<Message>,
    }
    let out = context.out;
    if let Some(outcome) = report.taken() {
        summary(outcome);
    } else if let Some(skipped) = report.skipped() {
        out.say(&format!("{}: {}", skipped.outcome, skipped.why));
    } else if let Some(valid) = report.valid() {
        say_valid(context, report, valid);
    }
    if let Some(expired) = expired.filter(|expired| expired.expired > 0) {
        out.say(&format!("{} snapshots of the job were past their time and went", expired.expired));
    }
    copies.iter().for_each(|copy| copy.say(context));
    for fault in &report.faults {
        out.told(&fault.message, fault.hint.as_deref(), fault.exit);
    }
    if out.is_json() {
        let is_result = report.taken().is_some() || report.skipped().is_some() || report.valid().is_some();
        let messages = out.messages();
        out.object(if is_result { "result" } else { "error" }, &Timed { report, seconds, copies, expired, messages })?;
    }
    Ok(Ended::Code(report.exit()))
}

/// What `--validate` found, in words.
fn say_valid(context: &Context<'_>, report: &Report, valid: &Valid) {
    let out = context.out;
    if let Some(member) = report.datasource() {
        let at = member.host.as_ref().map_or_else(String::new, |host| format!(" at {}", show::name(host.as_bytes())));
        out.say(&format!("datasource {}, {}{at}", show::name(member.name.as_bytes()), member.role.name()));
    }
    if let Some(looked) = &valid.looked {
        out.say(&format!("volume {}: level {} would be taken", looked.volume, looked.planned.level));
    }
    if report.faults.is_empty() {
        out.say("valid: nothing was found that would keep a run from its work");
    }
}

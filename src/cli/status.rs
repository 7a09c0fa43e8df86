//! `bk status` and `bk abort`

use std::time::Duration;

use super::{Context, Ended, list::table, progress::show_time};
use crate::{
    clock::System,
    config::typed::{AbortArgs, StatusArgs},
    error::{Error, Kind, Result},
    model::{ids::Name, show, units::show_size},
    ops::{
        list,
        status::{self, Row},
    },
    volume::Volume,
};

/// How often `--follow` looks.
const FOLLOW_EVERY: Duration = Duration::from_secs(2);
/// It looks for signals so often.
const TICK: Duration = Duration::from_millis(100);

pub fn run(context: &Context<'_>, args: &StatusArgs) -> Result<Ended> {
    let job = args.job.as_ref().map(|job| context.stored(&job.parse()?)).transpose()?;
    let volume = job.as_ref().map_or_else(|| context.volume(), |job| context.volume_of(job))?;
    loop {
        let rows = status::run(&volume, job.as_ref(), &System)?;
        show_rows(context, &volume, job.as_ref(), &rows)?;
        if !args.follow || !rows.iter().any(|row| row.state != "stalled") {
            break;
        }
        for _ in 0..FOLLOW_EVERY.as_millis() / TICK.as_millis() {
            if let Some(signal) = context.signals.seen() {
                return Err(Error::new(Kind::Signal(signal), "interrupted"));
            }
            std::thread::sleep(TICK);
        }
    }
    Ok(Ended::Done)
}

fn show_rows(context: &Context<'_>, volume: &Volume, job: Option<&Name>, rows: &[Row]) -> Result<()> {
    let out = context.out;
    // Who asks after a job whose run has ended wants to know what came of it.
    let newest = match (job, rows) {
        (Some(job), []) => list::run(volume, Some(job), &System)?.rows.pop(),
        _ => None,
    };
    if out.is_json() {
        for row in rows {
            out.object("run", row)?;
        }
        return out.object("result", &serde_json::json!({ "runs": rows.len(), "newest": newest }));
    }
    if rows.is_empty() {
        let newest = newest.map_or_else(String::new, |row| {
            format!("; the newest snapshot is {}, level {}, taken {}", row.snapshot, row.level, row.taken_at)
        });
        out.say(&format!("no run goes on{newest}"));
        return Ok(());
    }
    out.line(&format!("volume {} at {}", volume.file.id.as_str(), volume.shown))?;
    let mut lines = vec![
        ["JOB", "TYPE", "NODE", "LEVEL", "STATE", "PHASE", "DONE", "BYTES", "RATE", "SINCE", "COMMENT"]
            .map(str::to_owned),
    ];
    for row in rows {
        let said = &row.progress;
        let took = said.written_at.as_second().saturating_sub(said.started_at.as_second());
        lines.push([
            said.job.to_string(),
            row.makes.to_owned(),
            show::name(said.node.as_bytes()),
            said.level.to_string(),
            match row.state {
                "stalled" => format!("stalled for {}", show_time(row.silent_seconds)),
                state => state.to_owned(),
            },
            show::name(said.phase.as_bytes()),
            row.percent.map_or_else(|| "?".to_owned(), |percent| format!("{percent} %")),
            show_size(said.bytes),
            format!("{}/s", show_size(said.bytes_per_second)),
            show_time(u64::try_from(took).unwrap_or(0)),
            said.comment.as_ref().map_or_else(String::new, |text| show::name(text.as_bytes())),
        ]);
    }
    table(&lines, &[3, 6, 7, 8, 9]).iter().try_for_each(|line| out.line(line))
}

pub fn abort(context: &Context<'_>, args: &AbortArgs) -> Result<Ended> {
    let job = context.stored(&args.job.parse()?)?;
    let node = context.node(args.node.as_ref())?;
    let asked = status::abort(&context.volume_itself_of(&job)?, &job, (&node, args.comment.as_deref()), &System)?;
    if context.out.is_json() {
        context.out.object("result", &serde_json::json!({ "asked": asked }))?;
        return Ok(Ended::Done);
    }
    for one in &asked {
        let node = show::name(one.node.as_bytes());
        context.out.say(&match one.state {
            "stalled" => format!("run {} on {node} was asked to stop, but it has said nothing for a while", one.run_id),
            _ => format!("run {} on {node} was asked to stop", one.run_id),
        });
    }
    Ok(Ended::Done)
}

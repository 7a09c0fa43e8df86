//! `bk list`

use super::{Context, Ended};
use crate::{clock::System, config::typed::ListArgs, error::Result, model::units::show_size, ops::list};

pub fn run(context: &Context<'_>, args: &ListArgs) -> Result<Ended> {
    let job = args.job.as_ref().map(|job| context.stored(&job.parse()?)).transpose()?;
    let volume = job.as_ref().map_or_else(|| context.volume(), |job| context.volume_of(job))?;
    let found = list::run(&volume, job.as_ref(), &System)?;
    let out = context.out;
    if out.is_json() {
        for row in &found.rows {
            out.object("snapshot", row)?;
        }
        out.object("result", &serde_json::json!({ "snapshots": found.rows.len(), "faults": found.faults }))?;
    } else if found.rows.is_empty() {
        out.say("no snapshots");
    } else {
        let mut rows = vec![
            ["SNAPSHOT", "LEVEL", "TAKEN (UTC)", "EXPIRES", "CONTENT", "STORED", "FILES", "WHAT"].map(str::to_owned),
        ];
        for row in &found.rows {
            let what = row.sources.iter().cloned().chain(row.streams.iter().map(|name| format!("stream:{name}")));
            let mut what = what.collect::<Vec<_>>().join(" ");
            if row.totals.incomplete > 0 {
                what += &format!(" ({} incomplete)", row.totals.incomplete);
            }
            rows.push([
                row.snapshot.clone(),
                row.level.to_string(),
                row.taken_at.0.strftime("%Y-%m-%d %H:%M:%S").to_string(),
                expires(row),
                show_size(row.totals.content_bytes),
                show_size(row.totals.stored_bytes + row.totals.index_bytes),
                row.totals.files.to_string(),
                what,
            ]);
        }
        for line in table(&rows, &[1, 4, 5, 6]) {
            out.line(&line)?;
        }
    }
    for fault in &found.faults {
        out.fault(&format!("damaged: {fault}"));
    }
    Ok(if found.faults.is_empty() { Ended::Done } else { Ended::Faults })
}

/// When a snapshot goes, and what keeps it beyond that.
fn expires(row: &list::Row) -> String {
    let at = row.expires_at.map_or_else(|| "never".to_owned(), |at| at.to_string());
    match (row.hold, row.held) {
        (true, _) => at + " (hold)",
        (false, true) => at + " (held)",
        (false, false) => at,
    }
}

/// Lines of columns as wide as their widest cell; the columns in `right` are numbers.
pub fn table<const N: usize>(rows: &[[String; N]], right: &[usize]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().enumerate().map(|(n, cell)| {
            let width = widths[n];
            if right.contains(&n) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

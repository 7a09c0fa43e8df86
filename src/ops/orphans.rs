//! Runs that look whole and that no record names: killed or unsure of their commit, or snapshots whose records were lost.
//!
//! What tells them apart lies below `runs/`: a run says that it has begun before it stores anything, and takes that back when its
//! end is certain. So what is whole, unnamed and has not said so is a snapshot that has lost its record.

use std::collections::BTreeMap;

use super::status;
use crate::{
    engine::{
        beat::Phase,
        catalog::{self, JobLog},
    },
    error::{Kind, Result},
    format::{
        layout::{INDEX_NAME, RESTORE_NAME, run_dir, runs_dir},
        notes::{BEGUN_NAME, RECORDED_NAME},
    },
    model::ids::{Name, RunId},
    volume::{Item, Volume},
};

/// A run that stored its last object less than this ago may be about to be recorded, milliseconds.
pub const YOUNG_MS: u64 = 3600 * 1000;
/// So many runs are named in one line.
const SHOWN_COUNT: usize = 10;

/// Whether a run has stored all that comes before its record.
fn is_whole(items: &[Item]) -> bool {
    [INDEX_NAME, RESTORE_NAME].iter().all(|name| items.iter().any(|item| item.key.ends_with(name)))
}

/// When a run last stored one of these, or began, milliseconds since 1970.
pub fn last_ms<'a>(run: RunId, items: impl IntoIterator<Item = &'a Item>) -> u64 {
    items.into_iter().filter_map(|item| item.stored_unix_ms).fold(run.unix_ms(), u64::max)
}

/// Of the runs `lying` there those that are taken for snapshots whose records were lost, and have stored nothing since `unix_ms`;
/// the log was read before, or is older.
pub fn lost(volume: &Volume, log: &JobLog, lying: &BTreeMap<RunId, Vec<Item>>, unix_ms: u64) -> Result<Vec<RunId>> {
    let is_unnamed = |(run, items): &(&RunId, &Vec<Item>)| {
        last_ms(**run, items.iter()) <= unix_ms && !log.knows(**run) && is_whole(items)
    };
    let found: Vec<RunId> = lying.iter().filter(is_unnamed).map(|(run, _)| *run).collect();
    if found.is_empty() {
        return Ok(found);
    }
    let notes = catalog::notes(&volume.store.list(&runs_dir(&log.job))?, &log.job);
    // One that was recorded meanwhile took its word back after that.
    let log = catalog::read(volume, &log.job)?;
    let mut lost = Vec::new();
    for run in found {
        if !log.knows(run) && was_recorded(volume, notes.get(&run).map_or(&[], Vec::as_slice))? {
            lost.push(run);
        }
    }
    Ok(lost)
}

/// Whether a whole run that has left these notes had its record.
fn was_recorded(volume: &Volume, notes: &[Item]) -> Result<bool> {
    let has = |is_it: &dyn Fn(&str) -> bool| notes.iter().any(|item| item.key.rsplit('/').next().is_some_and(is_it));
    if has(&|name| name == RECORDED_NAME) {
        return Ok(true);
    }
    // A copy says so with a note of its own.
    if has(&|name| name == BEGUN_NAME || name.starts_with("copy.")) {
        return Ok(false);
    }
    // Runs of earlier versions only said how far they were.
    match status::newest(volume, notes) {
        Ok(progress) => Ok(progress.is_none_or(|progress| progress.phase == Phase::Leaving.name())),
        Err(e) if e.kind() == Kind::Integrity => Ok(true),
        Err(e) => Err(e),
    }
}

/// Says that these runs of a job have lost their records.
pub fn told(job: &Name, runs: &[RunId]) -> String {
    let mut named = runs.iter().take(SHOWN_COUNT).map(|run| run_dir(job, *run)).collect::<Vec<_>>().join(", ");
    if let more @ 1.. = runs.len().saturating_sub(SHOWN_COUNT) {
        named = format!("{named} and {more} more");
    }
    match runs.len() {
        1 => format!("{named} looks whole, but no record names it: has the log lost records?"),
        count => {
            format!("{count} runs of {job} look whole, but no record names them: has the log lost records? {named}")
        }
    }
}

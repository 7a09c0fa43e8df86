//! Runs that look whole and that no record names: killed just before their commit, or snapshots whose records were lost.
//!
//! What tells them apart are their notes: a run that ends by itself leaves none below `runs/`, and one that is killed leaves its
//! last ones. So what is whole, unnamed and without a note is taken for a snapshot that has lost its record.

use std::collections::BTreeMap;

use crate::{
    clock::Clock,
    engine::catalog::{self, JobLog},
    error::Result,
    format::layout::{INDEX_NAME, RESTORE_NAME, runs_dir},
    model::ids::RunId,
    volume::{Item, Volume},
};

/// A run that stored its last object less than this ago may be about to be recorded, milliseconds.
const YOUNG_MS: u64 = 3600 * 1000;

/// Whether a run has stored all that comes before its record.
pub fn is_whole(items: &[Item]) -> bool {
    [INDEX_NAME, RESTORE_NAME].iter().all(|name| items.iter().any(|item| item.key.ends_with(name)))
}

/// When a run last stored one of these, or began, milliseconds since 1970.
pub fn last_ms<'a>(run: RunId, items: impl IntoIterator<Item = &'a Item>) -> u64 {
    items.into_iter().filter_map(|item| item.stored_unix_ms).fold(run.unix_ms(), u64::max)
}

/// Of the runs `lying` there those that are taken for snapshots whose records were lost; the log was read before, or is older.
pub fn lost(
    volume: &Volume,
    log: &JobLog,
    lying: &BTreeMap<RunId, Vec<Item>>,
    clock: &dyn Clock,
) -> Result<Vec<RunId>> {
    let is_unnamed = |(run, items): &(&RunId, &Vec<Item>)| {
        let is_old = last_ms(**run, items.iter()).saturating_add(YOUNG_MS) <= clock.unix_ms();
        is_old && !log.knows(**run) && is_whole(items)
    };
    let mut found: Vec<RunId> = lying.iter().filter(is_unnamed).map(|(run, _)| *run).collect();
    if !found.is_empty() {
        let notes = catalog::notes(&volume.store.list(&runs_dir(&log.job))?, &log.job);
        // One that was recorded meanwhile took its notes away after that.
        let log = catalog::read(volume, &log.job)?;
        found.retain(|run| !notes.contains_key(run) && !log.knows(*run));
    }
    Ok(found)
}

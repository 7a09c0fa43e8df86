//! The run book of `bk list` and `bk volume info`: read the logs, show what they say.

use serde::Serialize;

use crate::{
    clock::Clock,
    engine::catalog::{self, JobLog, State},
    error::Result,
    format::record::Totals,
    model::{ids::Name, time::Instant},
    volume::Volume,
};

/// One snapshot in a list.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `job/seq`
    pub snapshot: String,
    /// 0 to 9.
    pub level: u8,
    /// When its run began.
    pub taken_at: Instant,
    /// When it may go; null is never.
    pub expires_at: Option<Instant>,
    /// Whether it is past its time, but a live snapshot needs it.
    pub held: bool,
    /// Whether it is on hold: it stays whatever its time says.
    pub hold: bool,
    /// The node that took it.
    pub node: String,
    /// Its run.
    pub run_id: String,
    /// The snapshot it is an increment of.
    pub base: Option<u64>,
    /// Sources as they were given.
    pub sources: Vec<String>,
    /// Names of its streams.
    pub streams: Vec<Name>,
    /// Codec.
    pub codec: String,
    /// Sums.
    pub totals: Totals,
}

/// A list of snapshots, and what is wrong with the logs.
#[derive(Debug)]
pub struct List {
    /// Snapshots by job and seq.
    pub rows: Vec<Row>,
    /// Damaged or missing records.
    pub faults: Vec<String>,
}

/// Lists the live snapshots of one job or of all, as of now.
pub fn run(volume: &Volume, job: Option<&Name>, clock: &dyn Clock) -> Result<List> {
    let now = clock.now()?;
    let logs = match job {
        Some(job) => vec![catalog::read(volume, job)?],
        None => catalog::read_all(volume)?,
    };
    let mut list = List { rows: Vec::new(), faults: Vec::new() };
    for log in logs {
        list.rows.extend(log.live_states().map(|state| row(&log, state, now)));
        list.faults.extend(log.faults.iter().map(ToString::to_string));
    }
    Ok(list)
}

fn row(log: &JobLog, state: &State, now: Instant) -> Row {
    let snapshot = &state.snapshot;
    let is_base = |of: &State| of.snapshot.base.as_ref().is_some_and(|base| base.seq == snapshot.seq);
    let due = state.expires_at.is_some_and(|at| at <= now);
    Row {
        snapshot: format!("{}/{}", snapshot.job, snapshot.seq),
        level: snapshot.level,
        taken_at: snapshot.taken_at,
        expires_at: state.expires_at,
        held: due && log.live_states().any(is_base),
        hold: state.hold.is_some(),
        node: snapshot.node.clone(),
        run_id: snapshot.run_id.to_string(),
        base: snapshot.base.as_ref().map(|base| base.seq),
        sources: snapshot.sources.clone(),
        streams: snapshot.streams.iter().map(|stream| stream.name.clone()).collect(),
        codec: snapshot.codec.to_string(),
        totals: snapshot.totals,
    }
}

/// What a volume is and holds.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    /// Where it is.
    pub volume: String,
    /// Its id.
    pub id: String,
    /// Its format version.
    pub format_version: u32,
    /// When it was made.
    pub created_at: Instant,
    /// Jobs with a log.
    pub jobs: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Bytes of all snapshots: parts and indexes.
    pub stored_bytes: u64,
    /// Bytes that can still be written.
    pub free_bytes: Option<u64>,
}

/// Describes a volume.
pub fn info(volume: &Volume, clock: &dyn Clock) -> Result<Info> {
    let list = run(volume, None, clock)?;
    Ok(Info {
        volume: volume.shown.clone(),
        id: volume.file.id.as_str().to_owned(),
        format_version: volume.file.format_version,
        created_at: volume.file.created_at,
        jobs: catalog::jobs(volume)?.len() as u64,
        snapshots: list.rows.len() as u64,
        stored_bytes: list.rows.iter().map(|row| row.totals.stored_bytes + row.totals.index_bytes).sum(),
        free_bytes: volume.store.free_bytes()?,
    })
}

//! The run book of `bk list` and `bk volume info`: read the logs, show what they say.

use serde::Serialize;

use crate::{
    engine::catalog,
    error::Result,
    format::record::{Snapshot, Totals},
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

/// Lists the snapshots of one job or of all.
pub fn run(volume: &Volume, job: Option<&Name>) -> Result<List> {
    let jobs = match job {
        Some(job) => vec![job.clone()],
        None => catalog::jobs(volume)?,
    };
    let mut list = List { rows: Vec::new(), faults: Vec::new() };
    for job in jobs {
        let log = catalog::read(volume, &job)?;
        list.rows.extend(log.snapshots.iter().map(row));
        list.faults.extend(log.faults.iter().map(ToString::to_string));
    }
    Ok(list)
}

fn row(snapshot: &Snapshot) -> Row {
    Row {
        snapshot: format!("{}/{}", snapshot.job, snapshot.seq),
        level: snapshot.level,
        taken_at: snapshot.taken_at,
        expires_at: snapshot.expires_at,
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
pub fn info(volume: &Volume) -> Result<Info> {
    let list = run(volume, None)?;
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

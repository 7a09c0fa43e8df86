//! The log of a job: what exists, and how a run makes its record.

use crate::{
    error::{Error, Kind, Result},
    format::{
        envelope,
        layout::{self, log_dir, record_key},
        record::{Record, Snapshot},
    },
    model::{
        digest::Digest,
        ids::{Name, SnapshotName, Which},
    },
    volume::{Created, Volume},
};

/// The end of a log as it was read once, at the start of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The newest record's number; 0 when there is none.
    pub seq: u64,
    /// Its digest.
    pub digest: Option<Digest>,
}

/// The log of one job, read.
#[derive(Debug)]
pub struct JobLog {
    /// Its snapshots, by seq.
    pub snapshots: Vec<Snapshot>,
    /// What is wrong with it: damaged records, gaps, broken links.
    pub faults: Vec<Error>,
    /// How many records there are.
    pub records: u64,
}

/// The names of all jobs that have a log.
pub fn jobs(volume: &Volume) -> Result<Vec<Name>> {
    let mut jobs: Vec<Name> = Vec::new();
    for item in volume.store.list("log/")? {
        let name = item.key.split('/').nth(1).unwrap_or_default();
        match name.parse::<Name>() {
            Ok(job) if jobs.last() != Some(&job) => jobs.push(job),
            _ => {}
        }
    }
    jobs.sort();
    jobs.dedup();
    Ok(jobs)
}

fn seqs(volume: &Volume, job: &Name) -> Result<Vec<u64>> {
    let dir = log_dir(job);
    let items = volume.store.list(&dir)?;
    let mut seqs: Vec<u64> = items.iter().filter_map(|item| layout::record_seq(item.key.strip_prefix(&dir)?)).collect();
    seqs.sort_unstable();
    Ok(seqs)
}

fn read_record(volume: &Volume, job: &Name, seq: u64) -> Result<(Record, Digest)> {
    let key = record_key(job, seq);
    let bytes = volume.store.read(&key, envelope::JSON_LEN_MAX)?;
    let record = Record::decode(&bytes).map_err(|e| e.context(&key))?;
    let Record::Snapshot(snapshot) = &record;
    if snapshot.seq != seq || snapshot.job != *job {
        return Err(Error::integrity(format!("{key} holds the record {}/{}", snapshot.job, snapshot.seq)));
    }
    Ok((record, envelope::digest(&bytes)?))
}

/// Reads a job's log. Damaged records are faults, the others stand.
pub fn read(volume: &Volume, job: &Name) -> Result<JobLog> {
    let seqs = seqs(volume, job)?;
    let mut log = JobLog { snapshots: Vec::new(), faults: Vec::new(), records: seqs.len() as u64 };
    let mut before: Option<(u64, Digest)> = None;
    for (n, &seq) in seqs.iter().enumerate() {
        if seq != n as u64 + 1 && (n == 0 || seqs[n - 1] + 1 != seq) {
            log.faults.push(Error::integrity(format!("{} is missing", record_key(job, seq - 1))));
        }
        match read_record(volume, job, seq) {
            Ok((Record::Snapshot(snapshot), digest)) => {
                let linked = match before {
                    Some((last, digest)) if last + 1 == seq => snapshot.prev == Some(digest),
                    _ => true,
                };
                if !linked {
                    log.faults.push(Error::integrity(format!(
                        "{} does not follow the record before it",
                        record_key(job, seq)
                    )));
                }
                before = Some((seq, digest));
                log.snapshots.push(*snapshot);
            }
            Err(e) if e.kind() == Kind::Integrity => {
                log.faults.push(e);
                before = None;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(log)
}

/// The end of a job's log. The newest record must be good: a new one holds its digest.
pub fn head(volume: &Volume, job: &Name) -> Result<Head> {
    match seqs(volume, job)?.last() {
        None => Ok(Head { seq: 0, digest: None }),
        Some(&seq) => {
            let (_, digest) = read_record(volume, job, seq)?;
            Ok(Head { seq, digest: Some(digest) })
        }
    }
}

/// Finds the snapshot a user named.
pub fn find(volume: &Volume, name: &SnapshotName) -> Result<Snapshot> {
    let log = read(volume, &name.job)?;
    let none = || {
        let why = if log.records == 0 { format!(": it has no job {}", name.job) } else { String::new() };
        Error::usage(format!("there is no snapshot {name} on {}{why}", volume.shown))
            .with_hint("`bk list` shows what there is")
    };
    let found = match name.which {
        Which::Seq(seq) => {
            if let Some(fault) = log.faults.iter().find(|f| f.to_string().contains(&format!("{seq:020}")))
                && !log.snapshots.iter().any(|s| s.seq == seq)
            {
                return Err(Error::integrity(fault.to_string()));
            }
            log.snapshots.iter().find(|s| s.seq == seq)
        }
        Which::Latest(back) => {
            let back = usize::try_from(back).unwrap_or(usize::MAX);
            log.snapshots.iter().rev().nth(back)
        }
    };
    found.cloned().ok_or_else(none)
}

/// The digest of a record.
pub fn record_digest(volume: &Volume, job: &Name, seq: u64) -> Result<Digest> {
    Ok(read_record(volume, job, seq)?.1)
}

/// The chain of a snapshot: level 0 first, each the base of the next, the snapshot itself last.
pub fn chain(log: &JobLog, snapshot: &Snapshot) -> Result<Vec<Snapshot>> {
    let mut chain = vec![snapshot.clone()];
    while let Some(base) = chain.last().and_then(|one| one.base.clone()) {
        let found = log.snapshots.iter().find(|one| one.seq == base.seq && one.run_id == base.run_id);
        let found = found.ok_or_else(|| {
            Error::integrity(format!("the base {}/{} of a snapshot is missing", snapshot.job, base.seq))
        })?;
        if chain.last().is_some_and(|one| one.level <= found.level) {
            return Err(Error::integrity("the levels of a chain do not descend"));
        }
        chain.push(found.clone());
    }
    chain.reverse();
    Ok(chain)
}

/// Creates the record of a snapshot: the commit. Whoever creates `seq` owns it; the loser's snapshot does not exist.
///
/// A create that failed with an error may have been made all the same: the record is read back, and its nonce decides.
pub fn commit(volume: &Volume, snapshot: Snapshot) -> Result<()> {
    let (job, seq, nonce) = (snapshot.job.clone(), snapshot.seq, snapshot.nonce.clone());
    let key = record_key(&job, seq);
    let bytes = Record::Snapshot(Box::new(snapshot)).encode()?;
    let failure = match volume.store.put_new(&key, &bytes) {
        Ok(Created::New) => return Ok(()),
        Ok(Created::Exists) => None,
        Err(e) => Some(e),
    };
    let own = match volume.store.head(&key)? {
        None => None,
        Some(_) => {
            let (Record::Snapshot(found), _) = read_record(volume, &job, seq)?;
            Some(found.nonce == nonce)
        }
    };
    match (failure, own) {
        (_, Some(false)) | (None, None) => {
            Err(Error::new(Kind::Lost, format!("another run took {job}/{seq}; this one is not kept"))
                .with_hint(format!("`bk list {job}` shows the snapshot that won")))
        }
        (None, Some(true)) => Ok(()),
        // It is there, but not known to be durable: say so rather than claim success.
        (Some(e), Some(true)) => {
            let kind = if e.kind() == Kind::NoSpace { Kind::NoSpace } else { Kind::Lost };
            Err(e.with_kind(kind).context(format!("{job}/{seq} was recorded, but may not survive a power cut")))
        }
        (Some(e), None) => Err(e),
    }
}

/// Whether the log holds this very snapshot: its record with its nonce.
pub fn is_recorded(volume: &Volume, snapshot: &Snapshot) -> Result<bool> {
    if volume.store.head(&record_key(&snapshot.job, snapshot.seq))?.is_none() {
        return Ok(false);
    }
    let (Record::Snapshot(found), _) = read_record(volume, &snapshot.job, snapshot.seq)?;
    Ok(found.nonce == snapshot.nonce)
}

//! The log of a job on a volume: reading it, finding snapshots in it, and what lies in data. [`commit()`] appends to it.

mod append;

use std::collections::BTreeMap;

use super::parallel;
use crate::{
    error::{Error, Kind, Result},
    format::{
        envelope,
        layout::{self, log_dir, record_key, run_dir},
        record::{Record, Snapshot},
    },
    model::{
        digest::Digest,
        ids::{Name, RunId, SnapshotName, Which},
        show::name as show_name,
    },
    volume::{Item, Volume},
};

pub use crate::plan::log::{Head, JobLog, Mark, State};
pub use append::{Author, Failed, change, commit, commit_by};

/// Records read at once where each is a request that takes its time.
const REMOTE_READERS: usize = 16;
/// The same on a local volume, for long logs.
const LOCAL_READERS: usize = 2;
/// Records of a log that are read before they are folded into it.
const RECORD_COUNT: usize = 512;

/// The names of all jobs that have a log.
pub fn jobs(volume: &Volume) -> Result<Vec<Name>> {
    Ok(jobs_of(&volume.store.list("log/")?))
}

/// The names of all jobs in keys below `log/` or `data/`, sorted.
pub fn jobs_of(items: &[Item]) -> Vec<Name> {
    let mut jobs: Vec<Name> = Vec::new();
    for item in items {
        let name = item.key.split('/').nth(1).unwrap_or_default();
        match name.parse::<Name>() {
            Ok(job) if jobs.last() != Some(&job) => jobs.push(job),
            _ => {}
        }
    }
    jobs.sort();
    jobs.dedup();
    jobs
}

fn seqs(volume: &Volume, job: &Name) -> Result<Vec<u64>> {
    Ok(seqs_in(&volume.store.list(&log_dir(job))?, job))
}

/// The records of a job in a listing.
fn seqs_in(items: &[Item], job: &Name) -> Vec<u64> {
    let dir = log_dir(job);
    let mut seqs: Vec<u64> = items.iter().filter_map(|item| layout::record_seq(item.key.strip_prefix(&dir)?)).collect();
    seqs.sort_unstable();
    seqs
}

fn read_record(volume: &Volume, job: &Name, seq: u64) -> Result<(Record, Digest)> {
    let key = record_key(job, seq);
    let bytes = volume.store.read(&key, envelope::JSON_LEN_MAX)?;
    let record = Record::decode(&bytes).map_err(|e| e.context(&key))?;
    let common = record.common();
    if common.seq != seq || common.job != job {
        return Err(Error::integrity(format!("{key} holds the record {}/{}", common.job, common.seq)));
    }
    Ok((record, envelope::digest(&bytes)?))
}

/// Reads a job's log. Damaged records are faults, the others stand.
pub fn read(volume: &Volume, job: &Name) -> Result<JobLog> {
    read_seqs(volume, job, &seqs(volume, job)?)
}

/// Reads the logs of all jobs, found by one listing.
pub fn read_all(volume: &Volume) -> Result<Vec<JobLog>> {
    let items = volume.store.list("log/")?;
    jobs_of(&items).iter().map(|job| read_seqs(volume, job, &seqs_in(&items, job))).collect()
}

fn read_seqs(volume: &Volume, job: &Name, seqs: &[u64]) -> Result<JobLog> {
    let threads = match volume.store.ahead_len() {
        0 if seqs.len() < RECORD_COUNT => 1,
        0 => LOCAL_READERS,
        _ => REMOTE_READERS,
    };
    let mut log = JobLog::new(job);
    for some in seqs.chunks(RECORD_COUNT) {
        let read = parallel::each(threads, some, |seq| match read_record(volume, job, *seq) {
            Err(e) if e.kind() != Kind::Integrity => Err(e),
            read => Ok(read),
        })?;
        some.iter().zip(read).for_each(|(seq, read)| log.push(*seq, read));
    }
    Ok(log)
}

/// The snapshots a reader of `snapshot` needs: level 0 first, the snapshot itself last.
///
/// A member that is missing, expired, or not the one its successor was made from is an integrity error.
pub fn chain(log: &JobLog, snapshot: &Snapshot) -> Result<Vec<Snapshot>> {
    log.chain(snapshot)
}

/// Finds the snapshot a user named. One that was expired is none, and the error says so.
pub fn find(volume: &Volume, name: &SnapshotName) -> Result<Snapshot> {
    find_in(&read(volume, &name.job)?, name, &volume.shown).map(|state| state.snapshot.clone())
}

/// Finds the snapshot a user named in a log that was read; `shown` is the volume in messages.
///
/// A record that is missing or cannot be read may have been any: of one that was named by its number, and of the latest when
/// the record is newer, it is an integrity error.
pub fn find_in<'a>(log: &'a JobLog, name: &SnapshotName, shown: &str) -> Result<&'a State> {
    let fault_of = |seq: u64| {
        let mut faults = log.faults.iter().map(ToString::to_string);
        let fault = faults.find(|fault| fault.contains(&format!("{seq:020}")));
        fault.unwrap_or_else(|| format!("{} cannot be read", record_key(&log.job, seq)))
    };
    let found = match name.which {
        Which::Seq(seq) if log.unread.contains(&seq) => return Err(Error::integrity(fault_of(seq))),
        Which::Seq(seq) => log.state(seq),
        Which::Latest(back) => {
            let found = log.live_states().rev().nth(usize::try_from(back).unwrap_or(usize::MAX));
            if let Some(seq) = log.unread_after(found.map_or(0, |state| state.snapshot.seq)) {
                let error = Error::integrity(format!("which snapshot {name} is cannot be told: {}", fault_of(seq)));
                return Err(error.with_hint(match log.live().next_back() {
                    Some(newest) => format!("the newest that can be read is {}/{}", log.job, newest.seq),
                    None => "`bk verify` shows all that is wrong".to_owned(),
                }));
            }
            found
        }
    };
    let hint = "`bk list` shows what there is";
    match found {
        Some(State { expired: Some(mark), .. }) => {
            Err(Error::usage(format!("{name} expired on {} by record {}", mark.at, mark.seq)).with_hint(hint))
        }
        Some(state) => Ok(state),
        None => {
            let why = if log.records == 0 { format!(": it has no job {}", name.job) } else { String::new() };
            Err(Error::usage(format!("there is no snapshot {name} on {shown}{why}")).with_hint(hint))
        }
    }
}

/// What a snapshot was expired by, as the log says now. `None` too when that cannot be told.
pub fn expired_by(volume: &Volume, snapshot: &Snapshot) -> Option<Mark> {
    let log = read(volume, &snapshot.job).ok()?;
    log.state(snapshot.seq).filter(|state| state.snapshot.run_id == snapshot.run_id)?.expired.clone()
}

/// Says that a snapshot was expired while it was used, as `doing` says: what is missing of it then is no damage.
pub fn gone_meanwhile(snapshot: &Snapshot, mark: &Mark, doing: &str) -> Error {
    let Snapshot { job, seq, .. } = snapshot;
    let what = format!("{job}/{seq} was expired on {} by record {} while it was {doing}", mark.at, mark.seq);
    Error::new(Kind::Lost, what)
}

/// The items of each job in a listing of `log/`, `data/` or `runs/`.
pub fn by_job(items: Vec<Item>) -> BTreeMap<Name, Vec<Item>> {
    let mut jobs: BTreeMap<Name, Vec<Item>> = BTreeMap::new();
    for item in items {
        if let Some(Ok(job)) = item.key.split('/').nth(1).map(str::parse::<Name>) {
            jobs.entry(job).or_default().push(item);
        }
    }
    jobs
}

/// The objects of every run in a listing of `data/` or of `data/<job>/`, for one job.
pub fn runs(items: &[Item], job: &Name) -> BTreeMap<RunId, Vec<Item>> {
    by_run(items, &format!("data/{job}/"))
}

/// The same for a listing of `runs/` or of `runs/<job>/`.
pub fn notes(items: &[Item], job: &Name) -> BTreeMap<RunId, Vec<Item>> {
    by_run(items, &layout::runs_dir(job))
}

fn by_run(items: &[Item], dir: &str) -> BTreeMap<RunId, Vec<Item>> {
    let mut runs: BTreeMap<RunId, Vec<Item>> = BTreeMap::new();
    for item in items {
        let run = item.key.strip_prefix(dir).and_then(|rest| rest.split_once('/')).map(|(run, _)| run.parse());
        // What has no run's name is not ours: nobody's to delete.
        if let Some(Ok(run)) = run {
            runs.entry(run).or_default().push(item.clone());
        }
    }
    runs
}

/// What is missing of a snapshot's objects on the volume, by their names and lengths; `None` when nothing is.
pub fn damage(volume: &Volume, snapshot: &Snapshot) -> Result<Option<String>> {
    Ok(damage_in(&volume.store.list(&run_dir(&snapshot.job, snapshot.run_id))?, snapshot))
}

/// What is missing of a snapshot's objects in a listing of its run's directory.
pub fn damage_in(items: &[Item], snapshot: &Snapshot) -> Option<String> {
    let dir = run_dir(&snapshot.job, snapshot.run_id);
    let named = |name: &str| items.iter().find(|item| item.key.strip_prefix(&dir) == Some(name));
    let index = &snapshot.index;
    match named(&index.name) {
        None => return Some(format!("{} is missing", index.name)),
        Some(item) if item.len != index.len => {
            return Some(format!("{} has {} bytes, not {}", show_name(index.name.as_bytes()), item.len, index.len));
        }
        Some(_) => {}
    }
    let is_part = |item: &&Item| {
        let name = item.key.rsplit('/').next().unwrap_or_default();
        name.starts_with("tree-") || name.starts_with("stream-")
    };
    let parts: Vec<&Item> = items.iter().filter(is_part).collect();
    let (count, bytes) = (parts.len() as u64, parts.iter().map(|part| part.len).sum::<u64>());
    let totals = &snapshot.totals;
    ((count, bytes) != (totals.parts, totals.stored_bytes))
        .then(|| format!("it has {count} parts of {bytes} bytes, not {} of {}", totals.parts, totals.stored_bytes))
}

//! Appending to a log: a create that only one can win, and what the loser does.
//!
//! Invariant: whoever creates `seq` owns it, and a record is only made by a writer that has read all records before it.
//! A create that failed with an error may have been made all the same: the log is read again, and the nonce decides.

use super::{JobLog, read, read_record, seqs};
use crate::{
    error::{Error, Kind, Result},
    format::{
        change::{Change, What},
        layout::record_key,
        record::{Record, Snapshot},
        volume::FORMAT_VERSION,
    },
    model::{
        digest::Digest,
        ids::{Name, Nonce},
        time::Instant,
    },
    plan::commit::{Verdict, judge},
    volume::{Created, Volume},
};

/// How often a writer aims again before it gives up: each time another has won, so the log itself goes on.
const AIM_COUNT_MAX: usize = 32;

/// A snapshot that was not recorded, as far as is known.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub error: Error,
    /// Whether no record of it is there or can come to be: only then may its objects go.
    pub is_certain: bool,
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}

fn unsure(error: Error) -> Failed {
    Failed { error, is_certain: false }
}

/// Neither done nor failed, as far as can be seen: the next run will see.
fn unknown(error: Error, job: &Name, seq: u64) -> Error {
    let kind = match error.kind() {
        kind @ (Kind::NoSpace | Kind::Signal(_)) => kind,
        _ => Kind::Lost,
    };
    error.with_kind(kind).context(format!("whether {job}/{seq} was recorded is not known"))
}

/// Creates the record of a snapshot: the commit. `chain` are the seqs of its base's chain, none at level 0.
///
/// `snapshot` aims at the seq after the log's end as the run read it once, at its start. Gives the snapshot as it was
/// recorded: with a later seq when records that do not concern the run came before it.
pub fn commit(volume: &Volume, snapshot: Snapshot, chain: &[u64]) -> Result<Snapshot, Failed> {
    commit_by(volume, snapshot, |mine, between| judge(mine, chain, between))
}

/// The commit by a given rule: [`judge`], but in tests of the rule.
pub fn commit_by(
    volume: &Volume,
    mut snapshot: Snapshot,
    rule: impl Fn(&Snapshot, &[Record]) -> Verdict,
) -> Result<Snapshot, Failed> {
    let job = snapshot.job.clone();
    let first = snapshot.seq;
    for _ in 0..AIM_COUNT_MAX {
        let aim = snapshot.seq;
        let bytes = Record::Snapshot(Box::new(snapshot.clone())).encode().map_err(unsure)?;
        let failure = match volume.store.put_new(&record_key(&job, aim), &bytes) {
            Ok(Created::New) => return Ok(snapshot),
            Ok(Created::Exists) => None,
            Err(e) => Some(e),
        };
        let between = match (since(volume, &job, first), failure) {
            (Ok(between), failure) => (between, failure),
            // The first error says more than that nothing could be read after it.
            (Err(_), Some(e)) => return Err(unsure(unknown(e, &job, aim))),
            (Err(e), None) => return Err(unsure(e)),
        };
        let (Since { records, head, prev }, failure) = between;
        match (rule(&snapshot, &records), failure) {
            (Verdict::Own(seq), None) => {
                let own = records.into_iter().find(|record| record.common().seq == seq);
                return match own {
                    Some(Record::Snapshot(own)) => Ok(*own),
                    _ => Ok(snapshot),
                };
            }
            // It is there, but not known to be durable: say so rather than claim success.
            (Verdict::Own(seq), Some(e)) => {
                let kind = if e.kind() == Kind::NoSpace { Kind::NoSpace } else { Kind::Lost };
                let what = format!("{job}/{seq} was recorded, but may not survive a power cut");
                return Err(unsure(e.with_kind(kind).context(what)));
            }
            // The seq is free: a create on its way may still be made. No space is a plain no.
            (_, Some(e)) if head < aim => {
                let is_certain = e.kind() == Kind::NoSpace;
                return Err(Failed { error: e, is_certain });
            }
            (Verdict::Lost { by, why }, _) => {
                let what = format!("this run is not kept: record {job}/{by} {why}");
                let error =
                    Error::new(Kind::Lost, what).with_hint(format!("`bk list {job}` shows the snapshots there are"));
                return Err(Failed { error, is_certain: true });
            }
            (Verdict::Aim, _) if head >= aim => {
                (snapshot.seq, snapshot.prev) = (head + 1, prev);
            }
            (Verdict::Aim, _) => {
                let key = record_key(&job, aim);
                return Err(unsure(Error::integrity(format!("{key} exists, but is not listed"))));
            }
        }
    }
    let what = format!("{job} got {AIM_COUNT_MAX} records while this run tried to make its own");
    Err(Failed { error: Error::new(Kind::Lost, what), is_certain: true })
}

/// The records from one on.
struct Since {
    records: Vec<Record>,
    /// The newest seq; 0 when the log is empty.
    head: u64,
    /// Its digest, as the next record's `prev`.
    prev: Option<Digest>,
}

/// Reads all records from `first` on. One that is missing or damaged is an error: it may say anything.
fn since(volume: &Volume, job: &Name, first: u64) -> Result<Since> {
    let seqs = seqs(volume, job)?;
    let mut found = Since { records: Vec::new(), head: seqs.last().copied().unwrap_or(0), prev: None };
    for seq in first..=found.head {
        let (record, digest) = read_record(volume, job, seq)?;
        found.records.push(record);
        found.prev = Some(digest);
    }
    Ok(found)
}

/// Who writes a change, and when.
#[derive(Clone, Debug)]
pub struct Author {
    /// The node.
    pub node: String,
    /// Now.
    pub at: Instant,
}

/// Appends a change to a job's log: `decide` gives it from the log as it is, or `None` when there is nothing to change.
///
/// When another record wins the seq, the log is read and the change decided again from scratch. Gives the log as it is with
/// the change (or as it was last read), and the change that was made.
pub fn change<W: What + Clone>(
    volume: &Volume,
    job: &Name,
    author: &Author,
    mut decide: impl FnMut(&JobLog) -> Result<Option<W>>,
) -> Result<(JobLog, Option<W>)> {
    for _ in 0..AIM_COUNT_MAX {
        let mut log = read(volume, job)?;
        let Some(what) = decide(&log)? else { return Ok((log, None)) };
        let ((seq, prev), nonce) = (log.next()?, Nonce::new()?);
        let record = W::record(Change {
            format_version: FORMAT_VERSION,
            job: job.clone(),
            node: author.node.clone(),
            nonce: nonce.clone(),
            seq,
            prev,
            written_at: author.at,
            what: what.clone(),
        });
        let bytes = record.encode()?;
        let failure = match volume.store.put_new(&record_key(job, seq), &bytes) {
            Ok(Created::New) => None,
            Ok(Created::Exists) if is_own(volume, job, seq, &nonce)? => None,
            Ok(Created::Exists) => continue,
            Err(e) => Some(e),
        };
        if let Some(e) = failure {
            return Err(e.context(format!("cannot record {} in {job}", record.kind())));
        }
        log.push(seq, Record::decode(&bytes).and_then(|record| Ok((record, crate::format::envelope::digest(&bytes)?))));
        return Ok((log, Some(what)));
    }
    let what = format!("{job} got {AIM_COUNT_MAX} records while this one was tried");
    Err(Error::new(Kind::Lost, what).with_hint("try again when fewer runs write to the job"))
}

fn is_own(volume: &Volume, job: &Name, seq: u64, nonce: &Nonce) -> Result<bool> {
    let (record, _) = read_record(volume, job, seq)?;
    Ok(record.common().nonce == nonce)
}

//! What a job's log says: its records, folded in order into the state of every snapshot.
//!
//! A damaged record is a fault and stays one: what it said is not known, so nothing may be deleted by such a log.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::{Error, Result},
    format::{
        change::Named,
        layout::record_key,
        record::{Record, Snapshot},
    },
    model::{
        digest::Digest,
        ids::{Name, RunId},
        time::Instant,
    },
};

/// Records of one gap that are named one by one: the last ones.
const GAP_COUNT_MAX: u64 = 10_000;

/// The end of a log as it was read once, at the start of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The newest record's number; 0 when there is none.
    pub seq: u64,
    /// Its digest; `None` when there is no record, or it could not be read.
    pub digest: Option<Digest>,
}

/// What a later record did to a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The record's number.
    pub seq: u64,
    /// When it was written.
    pub at: Instant,
    /// The node that wrote it.
    pub node: String,
    /// Why, when that was said.
    pub comment: Option<String>,
}

/// A snapshot and all that later records said of it.
#[derive(Clone, Debug)]
pub struct State {
    /// Its own record.
    pub snapshot: Snapshot,
    /// Digest of its record.
    pub digest: Digest,
    /// When it may go; `None` is never.
    pub expires_at: Option<Instant>,
    /// The newest record that set its expiry.
    pub set: Option<Mark>,
    /// The hold it is under.
    pub hold: Option<Mark>,
    /// The record that expired it: it is no snapshot any more.
    pub expired: Option<Mark>,
}

impl State {
    /// How records name it.
    pub fn named(&self) -> Named {
        Named { seq: self.snapshot.seq, run_id: self.snapshot.run_id }
    }

    /// Whether it is still a snapshot.
    pub fn is_live(&self) -> bool {
        self.expired.is_none()
    }
}

/// The log of one job, read.
#[derive(Debug)]
pub struct JobLog {
    /// The job.
    pub job: Name,
    /// Every snapshot that ever was, by seq, the expired ones too.
    pub states: Vec<State>,
    /// Runs named by a sweep: they can never be recorded.
    pub swept: BTreeSet<RunId>,
    /// What is wrong with it: damaged records, gaps, broken links, names of what is not there.
    pub faults: Vec<Error>,
    /// Records that are missing or could not be read, in rising order: what they said is not known.
    pub unread: Vec<u64>,
    /// How many records there are.
    pub records: u64,
    /// Its newest record.
    pub head: Head,
    /// The newest stamp in it.
    pub newest_at: Option<Instant>,
    runs: BTreeMap<RunId, u64>,
}

impl JobLog {
    /// The log without a record.
    pub fn new(job: &Name) -> Self {
        Self {
            job: job.clone(),
            states: Vec::new(),
            swept: BTreeSet::new(),
            faults: Vec::new(),
            unread: Vec::new(),
            records: 0,
            head: Head::default(),
            newest_at: None,
            runs: BTreeMap::new(),
        }
    }

    /// Adds record `seq` as it was read; records come in rising order.
    pub fn push(&mut self, seq: u64, read: Result<(Record, Digest)>) {
        let key = record_key(&self.job, seq);
        let (first, last) = (self.head.seq.saturating_add(1), seq.saturating_sub(1));
        if first <= last {
            let more = if first < last { format!(", as are those from {first} on before it") } else { String::new() };
            self.faults.push(Error::integrity(format!("{} is missing{more}", record_key(&self.job, last))));
            self.unread.extend(first.max(seq.saturating_sub(GAP_COUNT_MAX))..=last);
        }
        let before = std::mem::replace(&mut self.head, Head { seq, digest: None });
        self.records += 1;
        let (record, digest) = match read {
            Ok(read) => read,
            Err(e) => {
                self.unread.push(seq);
                return self.faults.push(e);
            }
        };
        let common = record.common();
        // What follows a record that could not be read has nothing to be held against.
        let known = before.seq + 1 == seq && (before.seq == 0 || before.digest.is_some());
        if known && common.prev != before.digest {
            self.faults.push(Error::integrity(format!("{key} does not follow the record before it")));
        }
        self.head.digest = Some(digest);
        self.newest_at = self.newest_at.max(Some(common.at));
        if !self.apply(&record, digest) {
            self.faults.push(Error::integrity(format!("{key} names what is not in the log before it")));
        }
    }

    /// Whether all that the record names is there.
    fn apply(&mut self, record: &Record, digest: Digest) -> bool {
        let common = record.common();
        let mark = |comment: Option<&String>| {
            Some(Mark { seq: common.seq, at: common.at, node: common.node.to_owned(), comment: comment.cloned() })
        };
        match record {
            Record::Snapshot(snapshot) => {
                let twice = self.runs.insert(snapshot.run_id, snapshot.seq).is_some();
                self.states.push(State {
                    expires_at: snapshot.expires_at,
                    snapshot: (**snapshot).clone(),
                    digest,
                    set: None,
                    hold: None,
                    expired: None,
                });
                !twice
            }
            Record::Expire(change) => change.what.snapshots.iter().fold(true, |all, &named| {
                let found = self.named(named).map(|state| state.expired = state.expired.take().or_else(|| mark(None)));
                all && found.is_some()
            }),
            Record::SetExpiry(change) => self.named(change.what.snapshot).is_some_and(|state| {
                state.expires_at = change.what.expires_at;
                state.set = mark(None);
                true
            }),
            Record::Hold(change) => self.named(change.what.snapshot).is_some_and(|state| {
                state.hold = mark(change.what.comment.as_ref());
                true
            }),
            Record::Release(change) => self.named(change.what.snapshot).is_some_and(|state| {
                state.hold = None;
                true
            }),
            Record::Sweep(change) => {
                self.swept.extend(change.what.runs.iter().map(|run| run.0));
                !change.what.runs.iter().any(|run| self.runs.contains_key(&run.0))
            }
        }
    }

    fn named(&mut self, named: Named) -> Option<&mut State> {
        let at = self.states.binary_search_by_key(&named.seq, |state| state.snapshot.seq).ok()?;
        Some(&mut self.states[at]).filter(|state| state.snapshot.run_id == named.run_id)
    }

    /// The snapshots that exist, by seq.
    pub fn live(&self) -> impl DoubleEndedIterator<Item = &Snapshot> {
        self.live_states().map(|state| &state.snapshot)
    }

    /// The snapshots that exist, by seq, with all that the log says of them.
    pub fn live_states(&self) -> impl DoubleEndedIterator<Item = &State> {
        self.states.iter().filter(|state| state.is_live())
    }

    /// The snapshot of record `seq`, expired or not.
    pub fn state(&self, seq: u64) -> Option<&State> {
        let at = self.states.binary_search_by_key(&seq, |state| state.snapshot.seq).ok()?;
        Some(&self.states[at])
    }

    /// The newest record that is missing or could not be read, when it is newer than `seq`.
    pub fn unread_after(&self, seq: u64) -> Option<u64> {
        self.unread.last().copied().filter(|&unread| unread > seq)
    }

    /// The seq a new record gets, and the digest it follows. A newest record that cannot be read is an integrity error.
    pub fn next(&self) -> Result<(u64, Option<Digest>)> {
        if self.records > 0 && self.head.digest.is_none() {
            self.sound()?;
        }
        Ok((self.head.seq + 1, self.head.digest))
    }

    /// Whether a record names this run: as a snapshot, or as swept.
    pub fn knows(&self, run: RunId) -> bool {
        self.runs.contains_key(&run) || self.swept.contains(&run)
    }

    /// Fails when anything in the log is damaged: what cannot be read must never count as not there.
    pub fn sound(&self) -> Result<()> {
        match self.faults.first() {
            None => Ok(()),
            Some(fault) => Err(Error::integrity(format!("the log of {} is damaged: {fault}", self.job))
                .with_hint("nothing is deleted by a damaged log; `bk verify` shows all that is wrong")),
        }
    }

    /// The snapshots that a reader of `snapshot` needs: level 0 first, the snapshot itself last.
    ///
    /// A member that is missing, expired, or not the one its successor was made from is an integrity error.
    pub fn chain(&self, snapshot: &Snapshot) -> Result<Vec<Snapshot>> {
        let mut chain = vec![snapshot.clone()];
        while let Some(base) = chain.last().and_then(|member| member.base.as_ref()) {
            let name = format!("{}/{}", self.job, base.seq);
            let bad = |what: String| {
                let of = format!("{}/{}", snapshot.job, snapshot.seq);
                Err(Error::integrity(format!("{name}, which {of} needs as a base, {what}")))
            };
            let Some(state) = self.state(base.seq).filter(|state| state.snapshot.run_id == base.run_id) else {
                return bad("is missing".to_owned());
            };
            if let Some(mark) = &state.expired {
                return bad(format!("was expired by record {}", mark.seq));
            }
            if state.digest != base.digest {
                let (stored, found) = (base.digest.short(), state.digest.short());
                return bad(format!("is another one (expected {stored}…, found {found}…)"));
            }
            if chain.last().is_some_and(|member| member.level <= state.snapshot.level) {
                return bad("is not of a lower level".to_owned());
            }
            chain.push(state.snapshot.clone());
        }
        chain.reverse();
        Ok(chain)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::format::{
        change::{Change, Expire, Hold, Release, RunName, SetExpiry, Sweep, What},
        codec::Codec,
        record::{Base, IndexRef, ObjectRef, Totals},
        volume::FORMAT_VERSION,
    };
    use crate::model::ids::Nonce;

    pub const DAY: i64 = 86_400;

    pub fn day(day: i64) -> Instant {
        Instant::from_second(1_800_000_000 + day * DAY).unwrap()
    }

    /// A log put together record by record; record n is written on day n.
    pub struct Made {
        pub log: JobLog,
    }

    impl Made {
        pub fn new() -> Self {
            Self { log: JobLog::new(&"db".parse().unwrap()) }
        }

        /// A snapshot over the one at `base`, going `days` after it was taken.
        pub fn snapshot(&mut self, level: u8, base: Option<u64>, days: Option<i64>) -> u64 {
            let seq = self.log.head.seq + 1;
            let at = i64::try_from(seq).unwrap();
            let base = base.map(|base| {
                let state = self.log.state(base).unwrap();
                Base { run_id: state.snapshot.run_id, seq: base, digest: state.digest }
            });
            let digest = Digest::of(b"");
            self.push(Record::Snapshot(Box::new(Snapshot {
                format_version: FORMAT_VERSION,
                job: self.log.job.clone(),
                cluster: None,
                node: "n1".to_owned(),
                run_id: RunId::new(seq).unwrap(),
                nonce: Nonce::new().unwrap(),
                epoch: 0,
                seq,
                prev: self.log.head.digest,
                level,
                base,
                promoted_from: None,
                taken_at: day(at),
                store_at: None,
                expires_at: days.map(|days| day(at + days)),
                definition: Digest::of(b"what"),
                codec: Codec::None,
                sources: Vec::new(),
                streams: Vec::new(),
                index: IndexRef { name: "index-00000.bki".to_owned(), len: 1, tail_digest: digest },
                restore_txt: ObjectRef { name: "RESTORE.txt".to_owned(), len: 1, digest },
                totals: Totals::default(),
                chunk_key: None,
                incomplete: Vec::new(),
                copied_from: None,
                crypto: None,
                sig: None,
            })))
        }

        pub fn change<W: What>(&mut self, what: W) -> u64 {
            let seq = self.log.head.seq + 1;
            self.push(W::record(Change {
                format_version: FORMAT_VERSION,
                job: self.log.job.clone(),
                node: "n1".to_owned(),
                nonce: Nonce::new().unwrap(),
                seq,
                prev: self.log.head.digest,
                written_at: day(i64::try_from(seq).unwrap()),
                what,
            }))
        }

        pub fn named(&self, seq: u64) -> Named {
            self.log.state(seq).unwrap().named()
        }

        pub fn expire(&mut self, seqs: &[u64]) -> u64 {
            let snapshots = seqs.iter().map(|&seq| self.named(seq)).collect();
            self.change(Expire { snapshots })
        }

        fn push(&mut self, record: Record) -> u64 {
            let bytes = record.encode().unwrap();
            let seq = record.common().seq;
            let digest = crate::format::envelope::digest(&bytes).unwrap();
            self.log.push(seq, Record::decode(&bytes).map(|record| (record, digest)));
            seq
        }
    }

    #[test]
    fn records_fold_in_order() {
        let mut made = Made::new();
        for _ in 0..3 {
            made.snapshot(0, None, Some(7));
        }
        made.change(SetExpiry { snapshot: made.named(1), expires_at: None });
        made.change(SetExpiry { snapshot: made.named(2), expires_at: Some(day(3)) });
        made.change(Hold { snapshot: made.named(2), comment: Some("audit".to_owned()) });
        made.change(Hold { snapshot: made.named(3), comment: None });
        made.change(Release { snapshot: made.named(3), comment: None });
        made.expire(&[3]);
        made.change(Sweep { runs: vec![RunName(RunId::new(77).unwrap())] });
        let log = &made.log;
        assert!(log.sound().is_ok(), "{:?}", log.faults);
        assert_eq!(log.live().map(|s| s.seq).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(log.state(1).unwrap().expires_at, None);
        assert_eq!(log.state(2).unwrap().expires_at, Some(day(3)));
        assert_eq!(log.state(2).unwrap().hold.as_ref().unwrap().comment.as_deref(), Some("audit"));
        assert!(log.state(3).unwrap().hold.is_none());
        assert_eq!(log.state(3).unwrap().expired.as_ref().unwrap().seq, 9);
        assert_eq!((log.records, log.swept.len(), log.newest_at), (10, 1, Some(day(10))));
    }

    #[test]
    fn what_does_not_fit_is_a_fault() {
        let stranger = Named { seq: 1, run_id: RunId::new(99).unwrap() };
        let mut made = Made::new();
        made.snapshot(0, None, None);
        made.change(Expire { snapshots: vec![stranger] });
        assert!(made.log.sound().is_err(), "another run under this number");
        assert_eq!(made.log.live().count(), 1);

        let mut made = Made::new();
        made.snapshot(0, None, None);
        made.change(Sweep { runs: vec![RunName(made.named(1).run_id)] });
        assert!(made.log.sound().is_err(), "a sweep of what is recorded");
        assert_eq!(made.log.live().count(), 1);

        let mut made = Made::new();
        made.snapshot(0, None, None);
        made.log.push(2, Err(Error::integrity("torn")));
        made.snapshot(0, None, None);
        assert_eq!((made.log.faults.len(), made.log.live().count()), (1, 2));

        let mut made = Made::new();
        made.snapshot(0, None, None);
        made.log.push(3, Err(Error::integrity("torn")));
        assert_eq!((made.log.faults.len(), &made.log.unread[..]), (2, &[2, 3][..]), "a gap");
        made.log.push(7, Err(Error::integrity("torn")));
        assert_eq!((made.log.faults.len(), &made.log.unread[2..]), (4, &[4, 5, 6, 7][..]), "a longer one");
        made.log.push(u64::MAX, Err(Error::integrity("torn")));
        assert!(made.log.unread.len() < 20_000 && made.log.unread.contains(&(u64::MAX - 1)), "an endless one");
    }

    #[test]
    fn a_chain_is_whole_or_an_error() {
        let mut made = Made::new();
        made.snapshot(0, None, None);
        made.snapshot(1, Some(1), None);
        made.snapshot(2, Some(2), None);
        let top = made.log.state(3).unwrap().snapshot.clone();
        let seqs = |log: &JobLog| log.chain(&top).map(|chain| chain.iter().map(|s| s.seq).collect::<Vec<_>>());
        assert_eq!(seqs(&made.log).unwrap(), [1, 2, 3]);
        made.log.states[0].digest = Digest::of(b"another");
        assert!(seqs(&made.log).unwrap_err().to_string().contains("another one"));
        made.expire(&[2]);
        assert!(seqs(&made.log).unwrap_err().to_string().contains("db/2, which db/3 needs as a base, was expired"));
        made.log.states.remove(1);
        assert!(seqs(&made.log).unwrap_err().to_string().contains("missing"));
    }
}

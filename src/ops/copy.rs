//! The run book of `bk copy`: for every snapshot that is wanted, its chain from level 0 up, what is not there yet.
//!
//! Order, for each: read the target's log → find the run an earlier copy began, or note a new one → carry parts and index →
//! write `RESTORE.txt` → commit. A copy that ends early leaves what it carried: the next one goes on with it, or a sweep
//! takes it a day after its last object. Objects of a copy are never deleted here: another copy of the same snapshot may be using them.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use serde::Serialize;

use crate::{
    clock::Clock,
    engine::{
        catalog::{self, JobLog, State},
        copy::{Carried, Load},
        read::index::IndexReader,
    },
    error::{Error, Kind, Result},
    format::{
        envelope,
        layout::{RESTORE_NAME, copy_key, run_dir, runs_dir},
        record::{Base, CopiedFrom, ObjectRef, Snapshot},
        restore_txt,
    },
    model::{
        digest::Digest,
        ids::{Name, Nonce, RunId, SnapshotName},
        time::{Instant, Lifetime},
        units::show_size,
    },
    monitor::Monitor,
    volume::{Created, Volume},
};

/// A copy that stored its last object longer ago than this is not gone on with: it may be swept any moment, milliseconds.
const RESUME_MS_MAX: u64 = 12 * 3600 * 1000;

/// What is to be copied.
#[derive(Clone, Debug)]
pub enum What {
    /// A snapshot, even one that was copied before and expired there.
    Snapshot(SnapshotName),
    /// All live snapshots of a job that were never copied there.
    Job(Name),
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// In this order.
    pub what: Vec<What>,
    /// The job it becomes there; its own when `None`.
    pub to_job: Option<Name>,
    /// How long it is kept there, from now on; as long as at the source when `None`.
    pub keep: Option<Lifetime>,
    /// Reading threads.
    pub threads: usize,
}

/// What became of one snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `job/seq` at the source.
    pub source: String,
    /// `copied`; `there`: it was there already; `expired`: it was there, and went; `failed`.
    pub outcome: &'static str,
    /// `job/seq` at the target.
    pub snapshot: Option<String>,
    /// When it may go there; null is never.
    pub expires_at: Option<Instant>,
    /// Bytes of its objects.
    pub bytes: u64,
    /// Objects that an earlier copy had carried.
    pub kept: u64,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a copy came to.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// Every snapshot that was wanted, and every member of a chain that was copied for one.
    #[serde(skip)]
    pub rows: Vec<Row>,
    /// Snapshots copied.
    pub copied: u64,
    /// Snapshots that were there already.
    pub there: u64,
    /// Snapshots that could not be copied.
    pub failed: u64,
    /// Bytes of what was copied.
    pub bytes: u64,
    /// Why those could not.
    #[serde(skip)]
    pub errors: Vec<Error>,
}

/// Copies. What fails does not stop the others, but a signal does, and what concerns the whole target.
pub fn run(
    source: &Volume,
    target: &Volume,
    request: &Request,
    clock: &dyn Clock,
    monitor: &dyn Monitor,
) -> Result<Outcome> {
    if source.file.id == target.file.id {
        return Err(Error::usage(format!("{} and {} are one volume", source.shown, target.shown)));
    }
    target.store.check_writable()?;
    let mut copy = Copy {
        source,
        target,
        request,
        clock,
        monitor,
        logs: BTreeMap::new(),
        failed: BTreeSet::new(),
        looked_at: RefCell::default(),
        outcome: Outcome::default(),
    };
    for what in &request.what {
        let wanted = match copy.wanted(what) {
            Ok(wanted) => wanted,
            Err(e) => {
                copy.fail(what.to_string(), e)?;
                continue;
            }
        };
        for (job, seq) in wanted {
            if let Err(e) = copy.one(&job, seq, matches!(what, What::Snapshot(_))) {
                copy.fail(format!("{job}/{seq}"), e)?;
            }
        }
    }
    Ok(copy.outcome)
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Snapshot(name) => name.fmt(f),
            Self::Job(job) => job.fmt(f),
        }
    }
}

struct Copy<'a> {
    source: &'a Volume,
    target: &'a Volume,
    request: &'a Request,
    clock: &'a dyn Clock,
    monitor: &'a dyn Monitor,
    /// The source's logs, each read once.
    logs: BTreeMap<Name, JobLog>,
    /// Snapshots that could not be copied: nor can what needs them.
    failed: BTreeSet<(Name, u64)>,
    /// Runs of the target whose objects were looked at, and whether they are all there.
    looked_at: RefCell<BTreeMap<RunId, bool>>,
    outcome: Outcome,
}

/// A member of a chain as the target has it.
#[derive(Clone)]
struct There {
    snapshot: Snapshot,
    digest: Digest,
}

impl Copy<'_> {
    fn fail(&mut self, source: String, error: Error) -> Result<()> {
        if matches!(error.kind(), Kind::Signal(_) | Kind::NoSpace | Kind::Volume) {
            return Err(error.context(format!("cannot copy {source}")));
        }
        self.outcome.failed += 1;
        let text = Some(error.to_string());
        let (outcome, snapshot, expires_at) = ("failed", None, None);
        self.outcome.errors.push(error.context(format!("cannot copy {source}")));
        self.outcome.rows.push(Row { source, outcome, snapshot, expires_at, bytes: 0, kept: 0, error: text });
        Ok(())
    }

    /// The source's log of a job.
    fn log(&mut self, job: &Name) -> Result<&JobLog> {
        if !self.logs.contains_key(job) {
            let log = catalog::read(self.source, job)?;
            self.logs.insert(job.clone(), log);
        }
        Ok(&self.logs[job])
    }

    fn wanted(&mut self, what: &What) -> Result<Vec<(Name, u64)>> {
        let shown = self.source.shown.clone();
        match what {
            What::Snapshot(name) => {
                let state = catalog::find_in(self.log(&name.job)?, name, &shown)?;
                Ok(vec![(name.job.clone(), state.snapshot.seq)])
            }
            What::Job(job) => {
                let log = self.log(job)?;
                if log.records == 0 {
                    return Err(
                        Error::usage(format!("{shown} has no job {job}")).with_hint("`bk list` shows what there is")
                    );
                }
                // What cannot be read may be a snapshot that is wanted.
                log.sound()?;
                Ok(log.live().map(|snapshot| (job.clone(), snapshot.seq)).collect())
            }
        }
    }

    /// Copies one snapshot, and before it what is missing of its chain.
    fn one(&mut self, job: &Name, seq: u64, is_named: bool) -> Result<()> {
        let log = self.log(job)?;
        let state = log.state(seq).ok_or_else(|| Error::usage(format!("there is no snapshot {job}/{seq}")))?.clone();
        let members = log.chain(&state.snapshot)?;
        let states: Vec<State> = members.iter().filter_map(|member| log.state(member.seq).cloned()).collect();
        let to = self.request.to_job.clone().unwrap_or_else(|| job.clone());
        let origin = self.origin(&states, &state);
        let there = catalog::read(self.target, &to)?;
        let mut good = None;
        for found in there.states.iter().rev().filter(|found| found.is_live() && self.is_of(found, &origin)) {
            if self.is_good(&there, &found.snapshot)? {
                good = Some(found);
                break;
            }
        }
        let newest = || there.states.iter().rfind(|found| self.is_of(found, &origin));
        if let Some(found) = good.or_else(|| newest().filter(|found| !found.is_live() && !is_named)) {
            let outcome = if found.is_live() { "there" } else { "expired" };
            self.outcome.there += 1;
            self.outcome.rows.push(Row {
                source: format!("{job}/{seq}"),
                outcome,
                snapshot: Some(format!("{to}/{}", found.snapshot.seq)),
                expires_at: found.expires_at,
                bytes: 0,
                kept: 0,
                error: None,
            });
            return Ok(());
        }
        let mut chain: Vec<There> = Vec::new();
        for (n, member) in states.iter().enumerate() {
            let origin = self.origin(&states[..=n], member);
            let own = (job.clone(), member.snapshot.seq);
            if self.failed.contains(&own) {
                return Err(Error::new(Kind::Other, format!("{job}/{}, which it needs, was not copied", own.1)));
            }
            match self.member(&to, member, &origin, &chain) {
                Ok(there) => chain.push(there),
                Err(e) => {
                    self.failed.insert(own);
                    return Err(self.expired_or(e, member));
                }
            }
        }
        Ok(())
    }

    /// What a member of a chain, the last of `chain`, was first taken as.
    fn origin(&self, chain: &[State], member: &State) -> CopiedFrom {
        let snapshot = &member.snapshot;
        snapshot.copied_from.clone().unwrap_or_else(|| CopiedFrom {
            volume: self.source.file.id.clone(),
            job: snapshot.job.clone(),
            seq: snapshot.seq,
            run_id: snapshot.run_id,
            digest: member.digest,
            chain: chain[..chain.len() - 1].iter().map(|state| state.snapshot.seq).collect(),
        })
    }

    /// Whether a snapshot of the target is the one first taken as `origin`, or a copy of it.
    fn is_of(&self, state: &State, origin: &CopiedFrom) -> bool {
        match &state.snapshot.copied_from {
            Some(from) => from.is_same(origin),
            None => {
                self.target.file.id == origin.volume
                    && (state.snapshot.run_id, state.digest) == (origin.run_id, origin.digest)
            }
        }
    }

    /// Whether all that a snapshot of the target needs is there. What is not whole is worth nothing: it is copied again.
    fn is_good(&self, log: &JobLog, snapshot: &Snapshot) -> Result<bool> {
        let Ok(chain) = log.chain(snapshot) else { return Ok(false) };
        for member in &chain {
            if !self.is_whole(member)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the objects of a snapshot of the target are there, by their names and lengths. One that expires meanwhile is
    /// not damaged: the log tells.
    fn is_whole(&self, snapshot: &Snapshot) -> Result<bool> {
        let known = self.looked_at.borrow().get(&snapshot.run_id).copied();
        if let Some(is_whole) = known {
            return Ok(is_whole);
        }
        let damage = catalog::damage(self.target, snapshot)?;
        let is_whole = damage.is_none() || catalog::expired_by(self.target, snapshot).is_some();
        if let Some(what) = damage.filter(|_| !is_whole) {
            let Snapshot { job, seq, .. } = snapshot;
            self.monitor.warn(&format!("{job}/{seq} on {} is damaged and copied again: {what}", self.target.shown));
        }
        self.looked_at.borrow_mut().insert(snapshot.run_id, is_whole);
        Ok(is_whole)
    }

    /// A member of a chain at the target: as it is there, or copied now over `chain`.
    fn member(&mut self, to: &Name, member: &State, origin: &CopiedFrom, chain: &[There]) -> Result<There> {
        let log = catalog::read(self.target, to)?;
        // What cannot be read may be the end of the base, or this very snapshot.
        log.sound()?;
        // Nothing is put on what has gone since it was found, or copied, there.
        for There { snapshot, .. } in chain {
            let state = log.state(snapshot.seq).filter(|state| state.snapshot.run_id == snapshot.run_id);
            match state.map(|state| &state.expired) {
                Some(None) => {}
                Some(Some(mark)) => return Err(catalog::gone_meanwhile(snapshot, mark, "copied upon")),
                None => return Err(Error::integrity(format!("{to}/{} is not in the log", snapshot.seq))),
            }
        }
        let is_it = |state: &&State| {
            let base = state.snapshot.base.as_ref().map(|base| base.digest);
            self.is_of(state, origin) && base == chain.last().map(|base| base.digest)
        };
        for state in log.live_states().filter(is_it) {
            if self.is_whole(&state.snapshot)? {
                return Ok(There { snapshot: state.snapshot.clone(), digest: state.digest });
            }
        }
        let source = format!("{}/{}", member.snapshot.job, member.snapshot.seq);
        let named = |e: Error| {
            let dir = run_dir(&member.snapshot.job, member.snapshot.run_id);
            if e.kind() == Kind::Integrity { e.context(format!("{dir}{}", member.snapshot.index.name)) } else { e }
        };
        let index = IndexReader::open(self.source, &member.snapshot).map_err(named)?;
        let load = Load::of(self.source, &member.snapshot, &index)?;
        self.check_restore_txt(&member.snapshot)?;
        self.check_space(&load)?;
        self.monitor.expect(0, load.bytes());
        let what = Digest::of(format!("{} {:?}", origin.digest, chain.last().map(|base| base.digest)).as_bytes());
        let mut begun = self.begun(&log, &what)?;
        loop {
            let run_id = match begun.pop() {
                Some(run_id) => run_id,
                None => self.begin(to, &what, origin)?,
            };
            let Some((snapshot, carried)) = self.carry(&log, to, run_id, (member, origin, chain), &load)? else {
                continue;
            };
            let seqs: Vec<u64> = chain.iter().map(|base| base.snapshot.seq).collect();
            let snapshot = catalog::commit(self.target, snapshot, &seqs)?;
            // Only tidies: what is left of it goes with the next expiry.
            let _ = self.target.store.delete(&copy_key(to, run_id, &what.hex()));
            self.outcome.copied += 1;
            self.outcome.bytes += carried.bytes;
            self.outcome.rows.push(Row {
                source,
                outcome: "copied",
                snapshot: Some(format!("{to}/{}", snapshot.seq)),
                expires_at: snapshot.expires_at,
                bytes: carried.bytes,
                kept: carried.kept,
                error: None,
            });
            let log = catalog::read(self.target, to)?;
            let state = log.state(snapshot.seq).filter(|state| state.snapshot.run_id == run_id);
            let state = state.ok_or_else(|| Error::integrity(format!("{to}/{} is not in the log", snapshot.seq)))?;
            return Ok(There { digest: state.digest, snapshot });
        }
    }

    fn check_restore_txt(&self, snapshot: &Snapshot) -> Result<()> {
        let object = &snapshot.restore_txt;
        let key = format!("{}{}", run_dir(&snapshot.job, snapshot.run_id), object.name);
        let read = Digest::of(&self.source.store.read(&key, object.len)?);
        if read == object.digest {
            return Ok(());
        }
        let (stored, read) = (object.digest.short(), read.short());
        Err(Error::integrity(format!("{key}: digest differs (stored {stored}…, read {read}…)")))
    }

    fn check_space(&self, load: &Load<'_>) -> Result<()> {
        match self.target.store.free_bytes()? {
            Some(free) if free < load.bytes() => {
                let (free, needed) = (show_size(free), show_size(load.bytes()));
                let what = format!("{} has {free} free, the copy takes {needed}", self.target.shown);
                Err(Error::new(Kind::NoSpace, what))
            }
            _ => Ok(()),
        }
    }

    /// Runs that were begun for the same copy and may be gone on with, the newest last.
    fn begun(&self, log: &JobLog, what: &Digest) -> Result<Vec<RunId>> {
        let (dir, now) = (runs_dir(&log.job), self.clock.unix_ms());
        let name = format!("copy.{}.json", what.hex());
        let items = self.target.store.list(&dir)?;
        let runs = items.iter().filter_map(|item| item.key.strip_prefix(&dir)?.strip_suffix(&name)?.strip_suffix('/'));
        let runs = runs.filter_map(|run| run.parse::<RunId>().ok());
        let mut young = Vec::new();
        for run in runs.filter(|run| !log.knows(*run)) {
            let stored = self.target.store.list(&run_dir(&log.job, run))?;
            let last = stored.iter().filter_map(|item| item.stored_unix_ms).fold(run.unix_ms(), u64::max);
            if now < last.saturating_add(RESUME_MS_MAX) {
                young.push(run);
            }
        }
        Ok(young)
    }

    /// Notes what a new run is for, so that another can go on with it.
    fn begin(&self, to: &Name, what: &Digest, origin: &CopiedFrom) -> Result<RunId> {
        let run_id = RunId::new(self.clock.unix_ms())?;
        let note = envelope::encode(&serde_json::json!({ "type": "copy", "copied_from": origin }))?;
        self.target.store.put_new(&copy_key(to, run_id, &what.hex()), &note)?;
        Ok(run_id)
    }

    /// Stores all but the record. `None` when the run's directory holds something else.
    fn carry(
        &self,
        log: &JobLog,
        to: &Name,
        run_id: RunId,
        (member, origin, chain): (&State, &CopiedFrom, &[There]),
        load: &Load<'_>,
    ) -> Result<Option<(Snapshot, Carried)>> {
        let dir = run_dir(to, run_id);
        let threads = self.request.threads;
        let Some(carried) = load.carry(self.target, &dir, threads, self.monitor)? else { return Ok(None) };
        let (seq, prev) = log.next()?;
        let base =
            chain.last().map(|base| Base { run_id: base.snapshot.run_id, seq: base.snapshot.seq, digest: base.digest });
        let expires_at = match self.request.keep {
            Some(keep) => keep.after(self.clock.now()?)?,
            None => member.expires_at,
        };
        let mut snapshot = Snapshot {
            job: to.clone(),
            run_id,
            nonce: Nonce::new()?,
            epoch: 0,
            seq,
            prev,
            base,
            expires_at,
            copied_from: Some(origin.clone()),
            ..member.snapshot.clone()
        };
        let text = self.restore_txt(&snapshot, chain, &load.part_names())?;
        let key = format!("{dir}{RESTORE_NAME}");
        let is_new = self.target.store.put_new(&key, text.as_bytes())? == Created::New;
        if !is_new && self.target.store.read(&key, text.len() as u64).ok().as_deref() != Some(text.as_bytes()) {
            return Ok(None);
        }
        let (name, len, digest) = (RESTORE_NAME.to_owned(), text.len() as u64, Digest::of(text.as_bytes()));
        snapshot.restore_txt = ObjectRef { name, len, digest };
        match self.monitor.interrupted() {
            Some(signal) => Err(Error::new(Kind::Signal(signal), "interrupted")),
            None => Ok(Some((snapshot, carried))),
        }
    }

    fn restore_txt(&self, snapshot: &Snapshot, chain: &[There], parts: &[String]) -> Result<String> {
        let mut before = Vec::new();
        for There { snapshot, .. } in chain {
            let dir = run_dir(&snapshot.job, snapshot.run_id);
            let items = self.target.store.list(&dir)?.into_iter();
            let names = items.filter_map(|item| item.key.strip_prefix(&dir).map(str::to_owned));
            before.push((snapshot, names.collect::<Vec<String>>()));
        }
        Ok(restore_txt::text(snapshot, parts, &before))
    }

    /// Objects that are missing since the snapshot was expired meanwhile are not damage.
    fn expired_or(&self, error: Error, member: &State) -> Error {
        if error.kind() != Kind::Integrity {
            return error;
        }
        match catalog::expired_by(self.source, &member.snapshot) {
            Some(mark) => catalog::gone_meanwhile(&member.snapshot, &mark, "copied"),
            None => error,
        }
    }
}

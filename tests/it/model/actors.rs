//! Who shares the job: runs that store and commit, an expirer, a sweeper, one who holds. All by bk's own code, but for a mutant.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bk::clock::Clock;
use bk::engine::catalog::{self, Author, Failed};
use bk::engine::cluster::lease::{self, Acquired, Held, Who};
use bk::error::{Error, Kind, Result};
use bk::format::change::Expire;
use bk::format::codec::Codec;
use bk::format::envelope;
use bk::format::layout::{INDEX_NAME, RESTORE_NAME, VOLUME_KEY, log_dir, record_key, record_seq, run_dir};
use bk::format::record::{Base, IndexRef, ObjectRef, Record, Snapshot, Totals};
use bk::format::volume::{FORMAT_VERSION, VolumeFile, VolumeTag};
use bk::model::digest::Digest;
use bk::model::ids::{Name, Nonce, RunId};
use bk::model::time::Instant;
use bk::monitor::Silent;
use bk::ops::{expire, keep};
use bk::plan::commit::{Verdict, judge};
use bk::plan::expiry;
use bk::plan::interval::{self, Due};
use bk::plan::lease::{Standing, Times};
use bk::plan::level::{self, Decision};
use bk::plan::log::JobLog;
use bk::volume::memory::MemoryStore;
use bk::volume::{Created, Store, Volume};

use super::check::Checker;
use super::schedule::{ActorStore, Choices, Faults, Sched};
use super::{Ended, Mutant};
use crate::support::rng::Rng;

/// Now, milliseconds since 1970; snapshots are dated within two minutes of it.
pub const NOW_MS: u64 = 1_800_000_000_000;

/// Worlds that a search starts from.
const START_COUNT: u64 = 500;

/// What an actor does.
#[derive(Clone, Copy, Debug)]
pub enum Actor {
    /// Takes a snapshot. Its clock is `skew` seconds ahead; the snapshot is due at once unless it is to `keep`.
    Run { level: u8, skew: i64, keep: bool },
    /// Takes a snapshot as one of a round: by the lease, and unless the job has one by now.
    Leased { level: u8, keep: bool, ticks: Ticks },
    /// Takes the lease and gives it back.
    Candidate,
    /// Expires what is due.
    Expirer { allow_last: bool },
    /// Sweeps every run without a record, however young.
    Sweeper,
    /// Sets the expiry of a snapshot to never.
    Holder { seq: u64 },
}

impl Actor {
    pub fn run(rng: &mut Rng) -> Self {
        let level = [0, 1, 1, 2, 2][rng.below(5) as usize];
        Self::Run { level, skew: rng.below(120) as i64, keep: rng.below(2) == 0 }
    }

    pub fn leased(rng: &mut Rng) -> Self {
        let level = [0, 1, 1, 2][rng.below(4) as usize];
        let ticks = match rng.below(16) {
            0 => Ticks::Still,
            1..=3 => Ticks::Jumping,
            _ => Ticks::Steady,
        };
        Self::Leased { level, keep: rng.below(2) == 0, ticks }
    }

    pub fn expirer(rng: &mut Rng) -> Self {
        Self::Expirer { allow_last: rng.below(2) == 0 }
    }
}

/// How the clocks of a node that shares rounds go: the one that can be set is wrong by up to days in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ticks {
    Steady,
    Still,
    /// Nothing passes in a wait, or ten lease times.
    Jumping,
}

/// What the store's clock says in a round: the snapshots before it are an hour old.
const STORE_NOW: i64 = NOW_MS as i64 / 1000 + 3600;
/// The interval within which there is to be one snapshot.
const INTERVAL: &str = "30min";
const LEASE_TIMES: Times = Times { ttl: Duration::from_secs(24) };
/// A wait passes so many times faster than it is asked for: what a candidate does in between is always the same.
const HASTE: u64 = 8;

/// The clock of one node.
struct NodeClock {
    ticks: Ticks,
    nth: u64,
    boot_ms: AtomicU64,
    store: Arc<dyn Store>,
}

impl Clock for NodeClock {
    fn unix_ms(&self) -> u64 {
        // Days ahead, or behind.
        let days = [0, 3, 0, 5][self.nth as usize % 4];
        let ms = days * 86_400_000;
        if self.nth % 8 < 4 { NOW_MS + ms } else { NOW_MS - ms }
    }

    fn boot_ms(&self) -> u64 {
        self.boot_ms.load(Ordering::Relaxed)
    }

    fn pause(&self, time: Duration) {
        let ms = time.as_millis() as u64;
        let nth = self.boot_ms.load(Ordering::Relaxed);
        let passed = match self.ticks {
            Ticks::Steady => ms * HASTE,
            Ticks::Still => 0,
            Ticks::Jumping if nth.is_multiple_of(3) => 10 * LEASE_TIMES.ttl.as_millis() as u64 + 1,
            Ticks::Jumping => ms + 1,
        };
        self.boot_ms.fetch_add(passed, Ordering::Relaxed);
        // Others go on meanwhile.
        let _ = self.store.free_bytes();
    }
}

/// The clock of a model stands still.
struct Still;

impl Clock for Still {
    fn unix_ms(&self) -> u64 {
        NOW_MS
    }
}

/// All objects of a store.
type Objects = Vec<(String, Vec<u8>)>;

/// A job with a few snapshots.
#[derive(Clone)]
pub struct World {
    job: Name,
    memory: MemoryStore,
    mutant: Mutant,
}

impl World {
    /// A log of one to four snapshots, most of them due: one of a few that are made once.
    pub fn new(rng: &mut Rng, mutant: Mutant) -> Self {
        static STARTS: OnceLock<Vec<Objects>> = OnceLock::new();
        let starts =
            STARTS.get_or_init(|| (0..START_COUNT).map(|seed| Self::made(&mut Rng::new(seed)).objects()).collect());
        let memory = MemoryStore::default();
        for (key, bytes) in &starts[rng.below(START_COUNT) as usize] {
            memory.set(key, bytes.clone());
        }
        Self { job: "m".parse().unwrap(), memory, mutant }
    }

    fn objects(&self) -> Objects {
        let items = self.memory.list("").unwrap();
        items.into_iter().map(|item| (item.key.clone(), self.memory.read(&item.key, 1 << 20).unwrap())).collect()
    }

    fn made(rng: &mut Rng) -> Self {
        let world = Self { job: "m".parse().unwrap(), memory: MemoryStore::default(), mutant: Mutant::None };
        for n in 0..1 + rng.below(4) {
            let level = if n == 0 { 0 } else { rng.below(3) as u8 };
            let (skew, keep) = (rng.below(120) as i64, rng.below(4) == 0);
            world.with(usize::MAX, n, Arc::new(world.memory.clone())).run(level, skew, keep, None).unwrap();
        }
        world
    }

    /// One snapshot of level 0, and it is due.
    pub fn small(mutant: Mutant) -> Self {
        let world = Self { job: "m".parse().unwrap(), memory: MemoryStore::default(), mutant };
        world.with(usize::MAX, 0, Arc::new(world.memory.clone())).run(0, 0, false, None).unwrap();
        world
    }

    /// Snapshots of these levels, dated within a minute of [`NOW_MS`] and due.
    pub fn of(levels: &[u8]) -> (MemoryStore, Volume) {
        let world = Self { job: "m".parse().unwrap(), memory: MemoryStore::default(), mutant: Mutant::None };
        let doer = |n: usize| world.with(usize::MAX, n as u64, Arc::new(world.memory.clone()));
        for (n, &level) in levels.iter().enumerate() {
            doer(n).run(level, 0, false, None).unwrap();
        }
        (world.memory.clone(), doer(0).volume)
    }

    fn with(&self, me: usize, nth: u64, store: Arc<dyn Store>) -> Doer {
        let file = VolumeFile {
            r#type: VolumeTag::Volume,
            format_version: FORMAT_VERSION,
            id: "00000000000000000000000000000000".to_owned().try_into().unwrap(),
            created_at: Instant::from_second(0).unwrap(),
            exclusive_writer: false,
        };
        let mutant = if me == usize::MAX { Mutant::None } else { self.mutant };
        Doer {
            volume: Volume { store, file, shown: VOLUME_KEY.to_owned() },
            job: self.job.clone(),
            nth,
            mutant,
            sched: None,
        }
    }

    /// Lets the actors go until all are done.
    pub fn play(&self, actors: &[Actor], choices: Choices, faults: Faults) -> Ended {
        let checker = Checker::new(&self.job);
        let sched = Arc::new(Sched::new(actors.len(), choices, faults, self.memory.clone(), checker));
        let (done, all) = channel();
        for (me, &actor) in actors.iter().enumerate() {
            let (world, sched, done) = (self.clone(), Arc::clone(&sched), done.clone());
            on_thread(me, move || {
                let list_error_is_empty = world.mutant == Mutant::ListErrorIsEmpty;
                let exists_is_new = world.mutant == Mutant::ExistsIsWin;
                let store = ActorStore { sched: Arc::clone(&sched), me, list_error_is_empty, exists_is_new };
                let mut doer = world.with(me, 100 + me as u64, Arc::new(store));
                doer.sched = Some(Arc::clone(&sched));
                sched.begin(me);
                // What an actor fails at is its own business: what it leaves behind is checked. A panic is a fault.
                if catch_unwind(AssertUnwindSafe(|| doer.act(actor))).is_err() {
                    sched.panicked(me);
                }
                sched.end(me);
                done.send(()).unwrap();
            });
        }
        sched.start();
        for _ in actors {
            all.recv().unwrap();
        }
        let (violation, steps, chosen) = sched.finish();
        Ended { violation, steps, chosen }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Runs `job` on the `n`-th of this thread's own threads: starting one for each actor would cost more than its work.
fn on_thread(n: usize, job: impl FnOnce() + Send + 'static) {
    thread_local! {
        static THREADS: RefCell<Vec<Sender<Job>>> = const { RefCell::new(Vec::new()) };
    }
    THREADS.with_borrow_mut(|threads| {
        while threads.len() <= n {
            let (jobs, queue) = channel::<Job>();
            std::thread::spawn(move || queue.into_iter().for_each(|job| job()));
            threads.push(jobs);
        }
        threads[n].send(Box::new(job)).unwrap();
    });
}

/// One actor at work.
struct Doer {
    volume: Volume,
    job: Name,
    /// Orders run ids.
    nth: u64,
    mutant: Mutant,
    sched: Option<Arc<Sched>>,
}

impl Doer {
    fn act(&self, actor: Actor) -> Result<()> {
        match actor {
            Actor::Run { level, skew, keep } => self.run(level, skew, keep, None),
            Actor::Leased { level, keep, ticks } => self.leased(level, keep, ticks),
            Actor::Candidate => self.candidate(),
            Actor::Expirer { allow_last } if self.mutant == Mutant::DeleteFirst => self.delete_first(allow_last),
            Actor::Expirer { allow_last } => self.expire(allow_last, u64::MAX / 2000),
            Actor::Sweeper if self.mutant == Mutant::SweepUnrecorded => self.sweep_unrecorded(),
            Actor::Sweeper => self.expire(false, 0),
            Actor::Holder { seq } => {
                let name = format!("{}/{seq}", self.job).parse().unwrap();
                keep::hold(&self.volume, &name, None, "h", &Still).map(|_| ())
            }
        }
    }

    fn expire(&self, allow_last: bool, sweep_grace: u64) -> Result<()> {
        let request = expire::Request {
            job: Some(self.job.clone()),
            node: "e".to_owned(),
            allow_last,
            yes: true,
            sweep_lost: true,
            dry_run: false,
            sweep_grace,
            threads: 1,
        };
        expire::run(&self.volume, &request, &Still, &Silent).map(|_| ())
    }

    /// The mutant: what the plan lets go is deleted, then recorded.
    fn delete_first(&self, allow_last: bool) -> Result<()> {
        let options = expiry::Options { now: Still.now()?, allow_last, yes: true };
        let plan = |log: &JobLog| expiry::plan(log, &Default::default(), options);
        let log = catalog::read(&self.volume, &self.job)?;
        let runs: Vec<RunId> = plan(&log)?.go.iter().map(|&seq| log.state(seq).unwrap().snapshot.run_id).collect();
        expire::remove(&self.volume, &self.job, &runs, 1, &Silent)?;
        let author = Author { node: "e".to_owned(), at: options.now };
        catalog::change(&self.volume, &self.job, &author, |log| {
            let snapshots: Vec<_> = plan(log)?.go.iter().map(|&seq| log.state(seq).unwrap().named()).collect();
            Ok((!snapshots.is_empty()).then_some(Expire { snapshots }))
        })?;
        Ok(())
    }

    /// The mutant: what no record names is deleted, and nothing is recorded.
    fn sweep_unrecorded(&self) -> Result<()> {
        let runs = catalog::runs(&self.volume.store.list(&format!("data/{}/", self.job))?, &self.job);
        let log = catalog::read(&self.volume, &self.job)?;
        let orphans: Vec<RunId> = runs.into_keys().filter(|run| !log.knows(*run)).collect();
        expire::remove(&self.volume, &self.job, &orphans, 1, &Silent).map(|_| ())
    }

    fn clock(&self, ticks: Ticks) -> NodeClock {
        NodeClock { ticks, nth: self.nth, boot_ms: AtomicU64::new(0), store: Arc::clone(&self.volume.store) }
    }

    fn acquire(&self, clock: &NodeClock) -> Result<Option<Held>> {
        let who = Who {
            store: Arc::clone(&self.volume.store),
            job: self.job.clone(),
            node: format!("n{}", self.nth),
            run_id: None,
            process: None,
            times: LEASE_TIMES,
        };
        match lease::acquire(&who, clock, &Silent)? {
            Acquired::Held(held) => Ok(Some(held)),
            Acquired::Skip(_) => Ok(None),
        }
    }

    /// Holds the lease for a while, if it can be had.
    fn candidate(&self) -> Result<()> {
        let clock = self.clock(Ticks::Steady);
        let Some(held) = self.acquire(&clock)? else { return Ok(()) };
        // Who has waited as long as a lease is good has taken it from one who was too slow to renew it: that is as it should be.
        let has_waited = Duration::from_millis(clock.boot_ms()) >= LEASE_TIMES.free_after();
        if let Some(sched) = self.sched.as_ref().filter(|_| !has_waited) {
            sched.holds(held.epoch(), true);
            let _ = self.volume.store.free_bytes();
            sched.holds(held.epoch(), false);
        }
        held.release(&clock)
    }

    /// What `bk snapshot --min-interval` does.
    fn leased(&self, level: u8, keep: bool, ticks: Ticks) -> Result<()> {
        let clock = self.clock(ticks);
        let Some(mut held) = self.acquire(&clock)? else { return Ok(()) };
        // Of level 0 nothing is wrong but that there are two.
        let level = if self.mutant == Mutant::LeaseIsGuard { 0 } else { level };
        let ran = self.run(level, 0, keep, Some((&mut held, &clock)));
        let _ = held.release(&clock);
        ran
    }

    /// Whether the job has a snapshot in this round.
    fn is_fresh(&self, log: &JobLog, clock: &NodeClock) -> Result<bool> {
        let now = match self.mutant {
            Mutant::AgeByNode => clock.now()?,
            // The store's clock is a little off, now and then.
            _ => Instant::from_second(STORE_NOW - (self.nth as i64 * 37) % 240)?,
        };
        let damage = |member: &Snapshot| catalog::damage(&self.volume, member);
        Ok(interval::due(log, INTERVAL.parse()?, now, damage)? != Due::Yes)
    }

    /// What `bk snapshot` does, with one part.
    fn run(&self, level: u8, skew: i64, keep: bool, mut turn: Option<(&mut Held, &NodeClock)>) -> Result<()> {
        let definition = Digest::of(b"what");
        let mut log = catalog::read(&self.volume, &self.job)?;
        if let Some((_, clock)) = &turn
            && self.is_fresh(&log, clock)?
        {
            return Ok(());
        }
        if self.mutant == Mutant::BaseByTime {
            // The newest by time is made the newest by number.
            let newest = log.live().filter(|s| s.level < level).max_by_key(|s| s.taken_at).map(|s| s.seq);
            log.states.retain(|state| state.snapshot.level >= level || newest.is_none_or(|n| state.snapshot.seq <= n));
        }
        let request = level::Request { level, ..level::Request::default() };
        let decision = level::decide(&log, &request, &definition, |member| catalog::damage(&self.volume, member))?;
        let run_id = RunId::new(NOW_MS - 1000 + self.nth)?;
        let dir = run_dir(&self.job, run_id);
        let stored =
            self.object(&format!("{dir}tree-00000.tar")).and_then(|()| self.object(&format!("{dir}{INDEX_NAME}")));
        if let Err(e) = stored {
            self.remove(&dir);
            return Err(e);
        }
        if let Some((held, clock)) = &mut turn {
            // A lease that another has taken ends the run; one that cannot be renewed does not.
            let is_passed = held.renew(*clock).is_ok_and(|(standing, _)| standing == Standing::Passed);
            if is_passed {
                self.remove(&dir);
                return Err(Error::new(Kind::Lost, "passed"));
            }
            clock.pause(LEASE_TIMES.look_every());
        }
        let taken = Instant::from_second(NOW_MS as i64 / 1000 - 60 + skew)?;
        let (seq, prev) = match self.mutant {
            Mutant::SeqLate => catalog::read(&self.volume, &self.job)?.next()?,
            _ => log.next()?,
        };
        let base = match &decision {
            Decision::Increment { base, .. } => log.state(*base),
            _ => None,
        };
        let snapshot = Snapshot {
            format_version: FORMAT_VERSION,
            job: self.job.clone(),
            cluster: None,
            node: "n".to_owned(),
            run_id,
            nonce: Nonce::new()?,
            epoch: turn.as_ref().map_or(0, |(held, _)| held.epoch()),
            seq,
            prev,
            level: decision.level(),
            base: base.map(|state| Base {
                run_id: state.snapshot.run_id,
                seq: state.snapshot.seq,
                digest: state.digest,
            }),
            promoted_from: decision.promoted_from(),
            taken_at: taken,
            store_at: turn.as_ref().map(|_| Instant::from_second(STORE_NOW)).transpose()?,
            expires_at: (!keep).then(|| Instant::from_second(NOW_MS as i64 / 1000 - 1)).transpose()?,
            definition,
            codec: Codec::None,
            sources: Vec::new(),
            streams: Vec::new(),
            index: IndexRef { name: INDEX_NAME.to_owned(), len: 1, tail_digest: definition },
            restore_txt: ObjectRef { name: RESTORE_NAME.to_owned(), len: 1, digest: definition },
            totals: Totals { parts: 1, stored_bytes: 1, ..Totals::default() },
            chunk_key: None,
            incomplete: Vec::new(),
            copied_from: None,
            crypto: None,
            sig: None,
        };
        let nonce = snapshot.nonce.as_str().to_owned();
        if let (Mutant::LeaseIsGuard, Some((held, clock))) = (self.mutant, &turn) {
            // The lease is good by this node's clock, and that is taken to be enough.
            let age = Duration::from_millis(clock.boot_ms().saturating_sub(held.confirmed_ms()));
            if age > LEASE_TIMES.sure_for() {
                self.remove(&dir);
                return Err(Error::new(Kind::Lost, "not renewed"));
            }
        }
        match self.commit(snapshot, decision.chain()) {
            Ok(_) => self.told(&nonce, true),
            Err(failed) => {
                if failed.is_certain || self.mutant == Mutant::ErrorIsNo {
                    self.told(&nonce, false);
                    self.remove(&dir);
                }
                return Err(failed.error);
            }
        }
        Ok(())
    }

    fn told(&self, nonce: &str, won: bool) {
        if let Some(sched) = &self.sched {
            sched.told(nonce, won);
        }
    }

    fn object(&self, key: &str) -> Result<()> {
        let mut upload = self.volume.store.create(key)?;
        upload.write(b"x")?;
        upload.finish()
    }

    fn remove(&self, dir: &str) {
        for item in self.volume.store.list(dir).unwrap_or_default() {
            let _ = self.volume.store.delete(&item.key);
        }
    }

    fn commit(&self, snapshot: Snapshot, chain: &[u64]) -> Result<Snapshot, Failed> {
        match self.mutant {
            Mutant::NoNonce => {
                catalog::commit_by(&self.volume, snapshot, |mine, between| match judge(mine, chain, between) {
                    Verdict::Own(by) => Verdict::Lost { by, why: "is there" },
                    other => other,
                })
            }
            Mutant::ExistsIsLoss => catalog::commit_by(&self.volume, snapshot, |mine, between| match between.first() {
                Some(record) => Verdict::Lost { by: record.common().seq, why: "was first" },
                None => judge(mine, chain, between),
            }),
            Mutant::LeaseIsGuard if snapshot.epoch > 0 => {
                catalog::commit_by(&self.volume, snapshot, |mine, between| match judge(mine, chain, between) {
                    Verdict::Lost { .. } => Verdict::Aim,
                    other => other,
                })
            }
            Mutant::NoBetween => {
                catalog::commit_by(&self.volume, snapshot, |mine, between| match judge(mine, chain, between) {
                    Verdict::Lost { .. } => Verdict::Aim,
                    other => other,
                })
            }
            Mutant::ListErrorIsEmpty => self.trusting_commit(snapshot, chain),
            _ => catalog::commit(&self.volume, snapshot, chain),
        }
    }

    /// The mutant: what a listing shows is all there is, so that a failed one shows nothing to stop for.
    fn trusting_commit(&self, mut snapshot: Snapshot, chain: &[u64]) -> Result<Snapshot, Failed> {
        let unsure = |error| Failed { error, is_certain: false };
        let (store, dir, first) = (&self.volume.store, log_dir(&self.job), snapshot.seq);
        for _ in 0..8 {
            let key = record_key(&self.job, snapshot.seq);
            let bytes = Record::Snapshot(Box::new(snapshot.clone())).encode().map_err(unsure)?;
            match store.put_new(&key, &bytes).map_err(unsure)? {
                Created::New => return Ok(snapshot),
                Created::Exists => {}
            }
            let seqs = store.list(&dir).map_err(unsure)?;
            let seqs =
                seqs.iter().filter_map(|item| record_seq(item.key.strip_prefix(&dir)?)).filter(|seq| *seq >= first);
            let between: Vec<Record> = seqs
                .map(|seq| Record::decode(&store.read(&record_key(&self.job, seq), 1 << 20)?))
                .collect::<Result<_>>()
                .map_err(unsure)?;
            match judge(&snapshot, chain, &between) {
                Verdict::Own(_) => return Ok(snapshot),
                Verdict::Lost { .. } => {
                    return Err(Failed { error: Error::new(Kind::Lost, "lost"), is_certain: true });
                }
                Verdict::Aim => {
                    let taken = store.read(&key, 1 << 20).map_err(unsure)?;
                    snapshot.prev = Some(envelope::digest(&taken).map_err(unsure)?);
                    snapshot.seq += 1;
                }
            }
        }
        Err(unsure(Error::new(Kind::Lost, "gave up")))
    }
}

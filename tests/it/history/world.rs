//! A tree, a volume and a model side by side: steps are taken on all three, and compared.

mod second;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bk::clock::Clock;
use bk::engine::catalog;
use bk::engine::read::check::Depth;
use bk::engine::write::pipeline;
use bk::format::codec::Codec;
use bk::model::ids::{Name, SnapshotName, Which};
use bk::model::time::Instant;
use bk::monitor::Silent;
use bk::ops::{cat, diff, expire, keep, list, restore, snapshot, verify};
use bk::plan::level;
use bk::source::command::CommandLine;
use bk::source::select::{Globs, Selection};
use bk::volume::{Volume, create_on, local::LocalStore, memory::MemoryStore};

use self::second::Second;
use super::change::{self, Change};
use super::model::{Damage, Decided, Job, Picture, SKIPPED, Seen, Snap, difference};
use super::store::{Life, Mortal};
use crate::support::inventory::{Compare, Inventory, differences, inventory};
use crate::support::rng::Rng;
use crate::support::{Bk, is_root, taken, temp_dir};

/// A fault in words, or nothing.
pub type Held = Result<(), String>;

/// What one step does; all else of it is drawn from its seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Change(Change),
    Snapshot,
    /// Two snapshots, between which a file changes without any time showing it: within one tick of the file system's clock.
    Racy,
    /// A run that dies at a random point.
    Killed,
    /// An object is gone.
    Damage,
    SetExpiry,
    Hold,
    Release,
    Expire,
    /// An expiry that dies at a random point; then another.
    ExpireKilled,
    /// Snapshots are copied to a second volume.
    Copy,
    /// The job's definition becomes another.
    Define,
}

/// One step of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub kind: Kind,
    pub seed: u64,
}

/// A clock that stands still.
struct Still(u64);

/// What the runs that waited for the lease of a killed one have waited.
static WAITED_MS: AtomicU64 = AtomicU64::new(0);

impl Clock for Still {
    fn unix_ms(&self) -> u64 {
        self.0
    }

    fn boot_ms(&self) -> u64 {
        WAITED_MS.load(Ordering::Relaxed)
    }

    fn pause(&self, time: Duration) {
        WAITED_MS.fetch_add(time.as_millis() as u64, Ordering::Relaxed);
    }
}

const JOBS: [&str; 2] = ["one", "two"];
/// The stream of a job that has one: also a name in the tree.
const STREAM: &str = "log";

/// What all runs of a history share.
#[derive(Clone, Copy, Debug)]
struct Shape {
    frame_len: usize,
    part_len: u64,
    codec: Codec,
    threads: usize,
    ignore_inode: bool,
}

impl Shape {
    fn new(rng: &mut Rng) -> Self {
        Self {
            frame_len: [4096, 4096, 16 << 10, 64 << 10][rng.below(4) as usize],
            part_len: [4 << 10, 64 << 10, 1 << 20][rng.below(3) as usize],
            codec: [Codec::Zstd(1), Codec::Zstd(3), Codec::None, Codec::Bzip2(1)][rng.below(4) as usize],
            threads: 1 + rng.below(2) as usize,
            ignore_inode: rng.below(8) == 0,
        }
    }
}

pub struct World {
    dir: tempfile::TempDir,
    volume: Volume,
    /// The volume's directory, when it has one.
    local: Option<PathBuf>,
    life: Life,
    second: Second,
    jobs: [Job; 2],
    /// Whether a job leaves out [`SKIPPED`].
    skip: [bool; 2],
    has_stream: [bool; 2],
    stream: Vec<u8>,
    shape: Shape,
    seen: Seen,
    /// How far the clock was turned on, seconds.
    ahead: u64,
    /// Calls of the store that the last snapshot made.
    calls: i64,
    /// What was done.
    pub trace: Vec<String>,
    pub count: Count,
}

/// How much was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    pub snapshots: u64,
    pub increments: u64,
    pub promoted: u64,
    pub chain_max: u64,
    pub killed: u64,
    pub killed_recorded: u64,
    pub damaged: u64,
    pub expired: u64,
    pub racy: u64,
    pub restored: u64,
    pub copies: u64,
}

impl Count {
    pub fn add(&mut self, other: Self) {
        self.snapshots += other.snapshots;
        self.increments += other.increments;
        self.promoted += other.promoted;
        self.chain_max = self.chain_max.max(other.chain_max);
        self.killed += other.killed;
        self.killed_recorded += other.killed_recorded;
        self.damaged += other.damaged;
        self.expired += other.expired;
        self.racy += other.racy;
        self.restored += other.restored;
        self.copies += other.copies;
    }
}

fn failed(e: bk::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = std::error::Error::source(&e);
    while let Some(e) = source {
        text += &format!(": {e}");
        source = e.source();
    }
    text
}

fn same<T: PartialEq + std::fmt::Debug>(expected: &T, found: &T, what: &str) -> Held {
    if expected == found { Ok(()) } else { Err(format!("{what}: expected {expected:?}, found {found:?}")) }
}

fn same_bytes(expected: &[u8], found: &[u8], what: &str) -> Held {
    if expected == found {
        return Ok(());
    }
    let at = expected.iter().zip(found).position(|(a, b)| a != b).unwrap_or(expected.len().min(found.len()));
    Err(format!("{what}: {} bytes expected, {} found, another at {at}", expected.len(), found.len()))
}

impl World {
    pub fn new(rng: &mut Rng, local: bool) -> Self {
        let dir = temp_dir("history");
        fs::create_dir_all(dir.path().join("home/src")).unwrap();
        let path = dir.path().join("volume");
        let inner: Arc<dyn bk::volume::Store> = if local {
            fs::create_dir(&path).unwrap();
            Arc::new(LocalStore::open(&path).unwrap())
        } else {
            Arc::new(MemoryStore::default())
        };
        let life = Life::endless();
        let store = Arc::new(Mortal { inner, life: life.clone() });
        let volume = create_on(store, "volume".to_owned(), Instant::from_second(1).unwrap()).unwrap();
        change::plant(&dir.path().join("home/src"), rng);
        let shape = Shape::new(rng);
        let streams = rng.below(3);
        let bytes = change::length(rng) + 1;
        Self {
            volume,
            local: local.then_some(path),
            life,
            second: Second::new(),
            jobs: [Job::default(), Job::default()],
            skip: [rng.below(3) == 0, rng.below(3) == 0],
            has_stream: [streams == 0, streams == 1],
            stream: rng.content(bytes),
            seen: Seen::new(),
            ahead: 0,
            calls: 40,
            trace: vec![format!("{shape:?}, local: {local}")],
            shape,
            count: Count::default(),
            dir,
        }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    fn src(&self) -> PathBuf {
        self.dir.path().join("home/src")
    }

    /// The clock, turned on by so many seconds.
    fn clock(&self, more: u64) -> Still {
        Still(bk::clock::System.unix_ms() + (self.ahead + more) * 1000)
    }

    /// Takes a step, and looks at what must hold after it.
    pub fn step(&mut self, step: Step) -> Held {
        let mut rng = Rng::new(step.seed);
        let job = usize::from(rng.below(6) == 0);
        if !matches!(step.kind, Kind::Change(_)) {
            self.trace.push(format!("{:?} of {}", step.kind, JOBS[job]));
        }
        match step.kind {
            Kind::Change(change) => {
                self.trace.extend(change::apply(change, &self.src(), &mut rng));
                return Ok(());
            }
            Kind::Snapshot => self.snapshot(job, &mut rng)?,
            Kind::Racy => self.racy(job, &mut rng)?,
            Kind::Killed => self.killed(job, &mut rng)?,
            Kind::Damage => self.damage(job, &mut rng)?,
            Kind::SetExpiry | Kind::Hold | Kind::Release => self.keep(step.kind, job, &mut rng)?,
            Kind::Expire => self.expire(job, false, &mut rng)?,
            Kind::ExpireKilled => self.expire(job, true, &mut rng)?,
            Kind::Copy => self.copy(job, &mut rng)?,
            Kind::Define => {
                self.skip[job] = !self.skip[job];
                return Ok(());
            }
        }
        self.lists(job)?;
        let live: Vec<u64> = self.jobs[job].live().map(|snap| snap.seq).collect();
        if let Some(newest) = live.last() {
            if matches!(step.kind, Kind::Snapshot | Kind::Racy | Kind::Killed) || rng.below(3) == 0 {
                self.reads(job, *newest, &mut rng)?;
            }
            if rng.below(3) == 0 {
                self.reads(job, live[rng.below(live.len() as u64) as usize], &mut rng)?;
            }
            let pair = [0, 1].map(|_| live[rng.below(live.len() as u64) as usize]);
            self.differs(job, pair)?;
        }
        Ok(())
    }

    /// Looks at everything that is there.
    pub fn end(&mut self) -> Held {
        self.trace.push("the end".to_owned());
        let mut rng = Rng::new(self.count.restored);
        for job in 0..JOBS.len() {
            self.lists(job)?;
            self.copies(job, true)?;
            let live: Vec<u64> = self.jobs[job].live().map(|snap| snap.seq).collect();
            for (n, seq) in live.iter().enumerate() {
                self.reads(job, *seq, &mut rng)?;
                self.differs(job, [live[n.saturating_sub(1)], *seq])?;
            }
        }
        Ok(())
    }

    fn request(&self, job: usize, level: level::Request, shape: Shape, keep: Option<&str>) -> snapshot::Request {
        let patterns: Vec<String> = if self.skip[job] { vec![SKIPPED.to_owned()] } else { Vec::new() };
        let argv = vec!["cat".into(), self.dir.path().join("stream").into()];
        let input = snapshot::Input::Command(CommandLine { argv, ..CommandLine::default() });
        snapshot::Request {
            job: JOBS[job].parse().unwrap(),
            node: "node".to_owned(),
            base: Some(self.src()),
            sources: vec![".".into()],
            selection: Selection {
                exclude: Globs::new(&patterns).unwrap(),
                exclude_caches: false,
                exclude_if_present: Vec::new(),
                one_file_system: false,
            },
            patterns,
            level: Some(level),
            min_interval: None,
            keep: keep.map(|text| text.parse().unwrap()),
            keep_promoted: None,
            streams: self.has_stream[job].then(|| (STREAM.parse().unwrap(), input)).into_iter().collect(),
            pipeline: pipeline::Settings {
                threads: shape.threads,
                codec: shape.codec,
                frame_len: shape.frame_len,
                verify_all: false,
            },
            part_len: shape.part_len,
            ignore_inode: shape.ignore_inode,
            guards: snapshot::Guards::default(),
            values: std::collections::BTreeMap::new(),
        }
    }

    /// What the run to come must store.
    fn picture(&mut self, job: usize) -> Arc<Picture> {
        Arc::new(Picture::take(&self.home(), self.skip[job], &mut self.seen))
    }

    fn change_stream(&mut self, rng: &mut Rng) {
        let bytes = &mut self.stream;
        for _ in 0..rng.below(3) {
            let at = rng.below(bytes.len() as u64 + 1) as usize;
            let count = 1 + rng.below(5000) as usize;
            let end = (at + count).min(bytes.len());
            match rng.below(6) {
                0 => drop(bytes.splice(at..at, rng.content(count))),
                1 => bytes.extend(rng.content(count)),
                2 => drop(bytes.drain(at..end)),
                3 => bytes.splice(at..end, rng.noise(end - at)).for_each(drop),
                4 => {
                    // What comes again lies in the old version, at another place.
                    let again = bytes[at..end].to_vec();
                    bytes.extend(again);
                }
                _ => bytes.truncate(at),
            }
        }
        if bytes.is_empty() {
            bytes.push(b'x');
        }
        fs::write(self.dir.path().join("stream"), &self.stream).unwrap();
    }

    fn level(&self, job: usize, rng: &mut Rng) -> level::Request {
        let newest = self.jobs[job].live().next_back().map_or(0, |snap| snap.level);
        let level = match rng.below(7) {
            0 => 0,
            1..=3 => (newest + 1).min(9),
            _ => 1 + (rng.below(9) * rng.below(9) / 8) as u8,
        };
        level::Request { level, because: None, no_promote: false, strict_base: rng.below(9) == 0 }
    }

    fn shape(&self, rng: &mut Rng) -> Shape {
        let ignore_inode = self.shape.ignore_inode;
        if rng.below(5) == 0 { Shape { ignore_inode, ..Shape::new(rng) } } else { self.shape }
    }

    fn snapshot(&mut self, job: usize, rng: &mut Rng) -> Held {
        // By a clock that is right all of a young tree must be read again; by one that is ahead its times can be trusted.
        let more = if rng.below(3) == 0 { None } else { Some(10 + rng.below(60)) };
        self.snapshot_at(job, more, rng)
    }

    fn snapshot_at(&mut self, job: usize, more: Option<u64>, rng: &mut Rng) -> Held {
        self.change_stream(rng);
        let level = self.level(job, rng);
        let shape = self.shape(rng);
        let keep = [None, Some("2h"), Some("2h"), Some("30d"), Some("never")][rng.below(5) as usize];
        let request = self.request(job, level, shape, keep);
        let clock = match more {
            Some(more) => {
                settle(self.dir.path());
                self.clock(more)
            }
            None => Still(bk::clock::System.unix_ms()),
        };
        let decided = self.decided(job, &request);
        let tree = self.picture(job);
        self.life.revive(0);
        let ran = snapshot::run(&self.volume, None, &request, &clock, &Silent).map(taken);
        let outcome = ran.map_err(|e| format!("the snapshot failed: {}", failed(e)))?;
        self.calls = self.life.revive(i64::MAX);
        self.trace.push(format!("  {} {decided:?} asked {:?} ahead {more:?}", outcome.snapshot, request.level));
        same(&"done", &outcome.outcome, "outcome")?;
        let found = Decided { level: outcome.level, base: outcome.base, promoted_from: outcome.promoted_from };
        if !decided.contains(&found) {
            return Err(format!("{}: expected one of {decided:?}, found {found:?}", outcome.snapshot));
        }
        let lifetime = [("2h", 7200), ("30d", 30 * 86_400)].into_iter().find(|(text, _)| keep == Some(text));
        let expires_at = lifetime.map(|(_, seconds)| (clock.0 / 1000) as i64 + seconds);
        same(&expires_at, &outcome.expires_at.map(Instant::as_second), "expires_at")?;
        let seq = outcome.snapshot.split_once('/').unwrap().1.parse().unwrap();
        self.add(job, seq, found, outcome.run_id, expires_at, tree);
        self.count.increments += u64::from(outcome.level > 0);
        self.count.promoted += u64::from(outcome.promoted_from.is_some());
        let snap = self.jobs[job].snaps.last().unwrap();
        self.count.chain_max = self.count.chain_max.max(self.jobs[job].chain(snap).len() as u64);
        self.totals(job, seq, &outcome.totals)
    }

    fn decided(&self, job: usize, request: &snapshot::Request) -> Vec<Decided> {
        let level = request.level.as_ref().unwrap();
        self.jobs[job].decide(level.level, level.strict_base, self.skip[job])
    }

    fn add(
        &mut self,
        job: usize,
        seq: u64,
        decided: Decided,
        run_id: String,
        expires_at: Option<i64>,
        tree: Arc<Picture>,
    ) {
        let stream = self.has_stream[job].then(|| Arc::new(self.stream.clone()));
        let (hold, live, damage, skip) = (false, true, Damage::None, self.skip[job]);
        let Decided { level, base, .. } = decided;
        let snap = Snap { seq, level, base, run_id, expires_at, hold, live, damage, skip, tree, stream };
        self.count.snapshots += 1;
        self.jobs[job].snaps.push(snap);
    }

    /// Sums that count all of the tree, changed or not.
    fn totals(&self, job: usize, seq: u64, totals: &bk::format::record::Totals) -> Held {
        let snap = self.jobs[job].get(seq);
        same(&(snap.tree.inventory.len() as u64), &totals.entries, "totals.entries")?;
        same(&0, &totals.incomplete, "totals.incomplete")
    }

    /// A snapshot by a right clock, a change that no time shows, and another snapshot.
    fn racy(&mut self, job: usize, rng: &mut Rng) -> Held {
        let path = self.src().join("racy");
        if path.symlink_metadata().is_ok_and(|meta| !meta.is_file()) {
            change::clear(&path);
        }
        let bytes = 1 + change::length(rng);
        fs::write(&path, rng.content(bytes)).unwrap();
        self.snapshot_at(job, None, rng)?;
        if change_unseen(&path, rng.below(bytes as u64)) {
            self.count.racy += 1;
            self.trace.push(format!("  \"racy\" of {bytes} bytes changed within the tick"));
        }
        self.reads(job, self.jobs[job].snaps.last().unwrap().seq, rng)?;
        self.snapshot(job, rng)
    }

    fn killed(&mut self, job: usize, rng: &mut Rng) -> Held {
        self.change_stream(rng);
        let request = self.request(job, self.level(job, rng), self.shape(rng), None);
        let decided = self.decided(job, &request);
        let tree = self.picture(job);
        let before = self.newest(job)?;
        match &self.local {
            Some(volume) if rng.below(2) == 0 => {
                let words = format!(
                    "snapshot --job {} --level {} --threads {} --compression {} --frame-size {}KiB --part-size 64KiB",
                    JOBS[job],
                    request.level.as_ref().unwrap().level,
                    self.shape.threads,
                    self.shape.codec,
                    self.shape.frame_len >> 10,
                );
                let mut bk = Bk::new(&words).small().env("BK_VOLUME", volume);
                for pattern in &request.patterns {
                    bk = bk.arg("--exclude").arg(pattern);
                }
                if request.level.as_ref().unwrap().strict_base {
                    bk = bk.arg("--strict-base");
                }
                bk = bk.arg("-C").arg(self.src()).arg(".");
                if self.has_stream[job] {
                    bk = bk.words("--stream-name").arg(STREAM).words("-- cat").arg(self.dir.path().join("stream"));
                }
                let mut running = bk.spawn();
                let micros = rng.below(25_000);
                std::thread::sleep(std::time::Duration::from_micros(micros));
                running.child.kill().unwrap();
                let ran = running.finish();
                self.trace.push(format!("  killed after {micros} µs: {}", ran.code()));
                if ![0, 137].contains(&ran.code()) {
                    return Err(format!("the run to be killed failed:\n{}", ran.show()));
                }
            }
            _ => {
                let (calls, last) = (rng.below(self.calls.max(1) as u64 + 3) as i64, rng.below(2) == 0);
                self.life.end_after(calls, last);
                let ran = snapshot::run(&self.volume, None, &request, &self.clock(0), &Silent).map(taken);
                self.life.revive(calls);
                let ended = ran.map_or_else(failed, |outcome| outcome.snapshot);
                self.trace.push(format!("  killed after {calls} calls, the last done: {last}: {ended}"));
            }
        }
        self.count.killed += 1;
        let after = self.newest(job)?;
        if let Some((seq, run_id)) = after.filter(|after| before.as_ref() != Some(after)) {
            let log = catalog::read(&self.volume, &JOBS[job].parse().unwrap()).map_err(failed)?;
            let own = &log.state(seq).unwrap().snapshot;
            let base = own.base.as_ref().map(|base| base.seq);
            let found = Decided { level: own.level, base, promoted_from: own.promoted_from };
            self.trace.push(format!("  it is recorded as {seq}: {found:?}"));
            if !decided.contains(&found) {
                return Err(format!("{seq}: expected one of {decided:?}, found {found:?}"));
            }
            self.count.killed_recorded += 1;
            self.add(job, seq, found, run_id, None, tree);
        }
        Ok(())
    }

    /// The newest snapshot that was ever recorded.
    fn newest(&self, job: usize) -> Result<Option<(u64, String)>, String> {
        let log = catalog::read(&self.volume, &JOBS[job].parse().unwrap()).map_err(failed)?;
        log.sound().map_err(failed)?;
        Ok(log.states.last().map(|state| (state.snapshot.seq, state.snapshot.run_id.to_string())))
    }

    fn damage(&mut self, job: usize, rng: &mut Rng) -> Held {
        let live: Vec<u64> = self.jobs[job].live().map(|snap| snap.seq).collect();
        if live.is_empty() {
            return Ok(());
        }
        let seq = live[rng.below(live.len() as u64) as usize];
        let snap = self.jobs[job].snaps.iter_mut().find(|snap| snap.seq == seq).unwrap();
        let items = self.volume.store.list(&format!("data/{}/{}/", JOBS[job], snap.run_id)).map_err(failed)?;
        let items: Vec<_> = items.iter().filter(|item| !item.key.ends_with(".txt")).collect();
        if items.is_empty() {
            return Ok(());
        }
        let key = &items[rng.below(items.len() as u64) as usize].key;
        let mut bytes = self.volume.store.read(key, u64::MAX - 1).map_err(failed)?;
        self.volume.store.delete(key).map_err(failed)?;
        let at = rng.below(bytes.len() as u64) as usize;
        let what = rng.below(3);
        match what {
            0 => snap.damage = Damage::Gone,
            1 => {
                bytes.truncate(at);
                snap.damage = Damage::Gone;
            }
            _ => {
                bytes[at] ^= 1 << rng.below(8);
                snap.damage = snap.damage.max(Damage::Flipped);
            }
        }
        if what > 0 {
            self.volume.store.put_new(key, &bytes).map_err(failed)?;
        }
        self.count.damaged += 1;
        self.trace.push(format!("  {key} of {seq}: {:?} at {at}", snap.damage));
        Ok(())
    }

    fn keep(&mut self, kind: Kind, job: usize, rng: &mut Rng) -> Held {
        let live: Vec<u64> = self.jobs[job].live().map(|snap| snap.seq).collect();
        for _ in 0..1 + rng.below(5) {
            if live.is_empty() {
                return Ok(());
            }
            let seq = live[rng.below(live.len() as u64) as usize];
            let clock = self.clock(250);
            let (name, now) = (name(job, seq), clock.now().unwrap());
            let (outcome, at) = match kind {
                Kind::Hold => (keep::hold(&self.volume, &name, Some("kept"), "node", &clock), None),
                Kind::Release => (keep::release(&self.volume, &name, "node", &clock), None),
                _ => {
                    let at = now.as_second() - 100 + rng.below(5) as i64 * 50;
                    let when = keep::When::At(Instant::from_second(at).unwrap());
                    (keep::set(&self.volume, &name, when, "node", &clock), Some(at))
                }
            };
            let outcome = outcome.map_err(failed)?;
            let snap = self.jobs[job].snaps.iter_mut().find(|snap| snap.seq == seq).unwrap();
            match kind {
                Kind::Hold => snap.hold = true,
                Kind::Release => snap.hold = false,
                _ => snap.expires_at = at,
            }
            self.trace.push(format!("  {kind:?} {seq} {:?}", at.map(|at| at - now.as_second())));
            same(&snap.hold, &outcome.hold, "hold")?;
            same(&snap.expires_at, &outcome.expires_at.map(Instant::as_second), "expires_at")?;
        }
        Ok(())
    }

    fn expire(&mut self, job: usize, killed: bool, rng: &mut Rng) -> Held {
        if rng.below(2) == 0 {
            self.ahead += [3600, 7200, 40 * 86_400][rng.below(3) as usize];
        }
        let clock = self.clock(250);
        let request = expire::Request {
            job: Some(JOBS[job].parse().unwrap()),
            node: "node".to_owned(),
            allow_last: rng.below(3) == 0,
            yes: killed || rng.below(4) > 0,
            sweep_lost: false,
            dry_run: false,
            sweep_grace: 0,
            threads: 1 + rng.below(2) as usize,
        };
        if self.newest(job)?.is_none() {
            return Ok(());
        }
        let model = &mut self.jobs[job];
        let mut due = model.due(clock.now().unwrap().as_second(), request.allow_last);
        // What others that go need goes with these.
        let is_base = |seq: u64, among: &[u64]| {
            among.iter().any(|&other| model.snaps.iter().any(|snap| snap.seq == other && snap.base == Some(seq)))
        };
        let tops = |among: &[u64]| among.iter().filter(|&&seq| !is_base(seq, among)).count();
        let live: Vec<u64> = model.live().map(|snap| snap.seq).collect();
        let going = tops(&due.iter().copied().collect::<Vec<_>>());
        let refused = !request.yes && going > 1 && going * 5 > tops(&live);
        if refused {
            due.clear();
        }
        if killed {
            let calls = rng.below(30) as i64;
            self.life.end_after(calls, rng.below(2) == 0);
            let ran = expire::run(&self.volume, &request, &clock, &Silent);
            self.life.revive(calls);
            self.trace.push(format!("  killed after {calls} calls: {:?}", ran.map(|ran| ran.expired).map_err(failed)));
        }
        let outcome = expire::run(&self.volume, &request, &clock, &Silent).map_err(failed)?;
        self.trace.push(format!("  expires {due:?}, allow_last: {}, refused: {refused}", request.allow_last));
        let errors: Vec<String> = outcome.errors.into_iter().map(failed).collect();
        same(&usize::from(refused), &errors.len(), &format!("errors of expiry {errors:?}"))?;
        if !killed {
            same(&(due.len() as u64), &outcome.expired, "expired")?;
        }
        for snap in model.snaps.iter_mut().filter(|snap| due.contains(&snap.seq)) {
            snap.live = false;
        }
        self.count.expired += due.len() as u64;
        if refused {
            return Ok(());
        }
        // What is left lies in live snapshots: killed runs are swept.
        let items = self.volume.store.list(&format!("data/{}/", JOBS[job])).map_err(failed)?;
        let is_known = |key: &str| self.jobs[job].live().any(|snap| key.contains(&snap.run_id));
        match items.iter().find(|item| !is_known(&item.key)) {
            Some(item) => Err(format!("{} is of no live snapshot", item.key)),
            None => Ok(()),
        }
    }

    /// The list is the model's; objects are those of live snapshots; no live snapshot's base is gone.
    fn lists(&self, job: usize) -> Held {
        let (model, job_name): (&Job, Name) = (&self.jobs[job], JOBS[job].parse().unwrap());
        let clock = self.clock(250);
        let found = list::run(&self.volume, Some(&job_name), &clock).map_err(failed)?;
        same(&Vec::new(), &found.faults, "faults of the log")?;
        let now = clock.now().unwrap().as_second();
        let expected = model.live().map(|snap| {
            let due = snap.expires_at.is_some_and(|at| at <= now);
            let held = due && model.live().any(|other| other.base == Some(snap.seq));
            (format!("{job_name}/{}", snap.seq), snap.level, snap.base, snap.expires_at, held, snap.hold)
        });
        let expected: Vec<_> = expected.collect();
        let rows = found.rows.iter().map(|row| {
            let expires_at = row.expires_at.map(Instant::as_second);
            (row.snapshot.clone(), row.level, row.base, expires_at, row.held, row.hold)
        });
        same(&expected, &rows.collect(), "the list")?;
        for snap in model.live() {
            if let Some(base) = snap.base.filter(|base| !model.get(*base).live) {
                return Err(format!("{} lives, its base {base} is gone", snap.seq));
            }
        }
        let items = self.volume.store.list(&format!("data/{job_name}/")).map_err(failed)?;
        for snap in model.snaps.iter().filter(|snap| !snap.live) {
            // Killed runs leave what no record names: the next expiry takes it.
            if let Some(item) = items.iter().find(|item| item.key.contains(&snap.run_id)) {
                return Err(format!("{} expired, but {} is still there", snap.seq, item.key));
            }
        }
        Ok(())
    }

    /// A snapshot comes back as it was, in every way there is.
    fn reads(&mut self, job: usize, seq: u64, rng: &mut Rng) -> Held {
        let snap = self.jobs[job].get(seq).clone();
        let is_whole = self.jobs[job].is_whole(&snap);
        let about = format!("{}/{seq}", JOBS[job]);
        let options = verify::Options { snapshot: Some(name(job, seq)), depth: Depth::Data, threads: 1 };
        let verified = verify::run(&self.volume, &options, &bk::clock::System, &Silent);
        if !is_whole {
            // Its own faults are found, and those of what it needs.
            let found = verified.map_or(1, |outcome| outcome.faults.len());
            return if found == 0 { Err(format!("{about}: damage is not found")) } else { Ok(()) };
        }
        let faults = verified.map_err(|e| format!("{about}: verify: {}", failed(e)))?.faults;
        same(&Vec::new(), &faults, &format!("{about}: verify --data"))?;
        self.restores(&self.volume.clone(), name(job, seq), &snap, &about)?;
        for _ in 0..3 {
            let paths: Vec<_> = snap.tree.contents.iter().collect();
            if paths.is_empty() {
                break;
            }
            let (path, bytes) = paths[rng.below(paths.len() as u64) as usize];
            self.cats(job, seq, &cat::What::Path(path.clone()), bytes, rng)?;
        }
        if let Some(bytes) = &snap.stream {
            let what = cat::What::Stream(STREAM.parse().unwrap());
            self.cats(job, seq, &what, bytes, rng)?;
            let mut out = Vec::new();
            let options = cat::Options { snapshot: name(job, seq), what, range: None, threads: 2 };
            cat::run(&self.volume, &options, &Silent, &mut out).map_err(|e| format!("{about}: {}", failed(e)))?;
            same_bytes(bytes, &out, &format!("{about}: the stream"))?;
        }
        Ok(())
    }

    fn restores(&mut self, volume: &Volume, snapshot: SnapshotName, snap: &Snap, about: &str) -> Held {
        self.count.restored += 1;
        let out = self.dir.path().join("out");
        let options = restore::Options {
            snapshot,
            target: out.join("src"),
            paths: Vec::new(),
            include: Vec::new(),
            exclude: Vec::new(),
            overwrite: restore::Overwrite::Never,
            safe: false,
            threads: 1 + (self.count.restored % 2) as usize,
        };
        fs::create_dir(&out).unwrap();
        let outcome = restore::run(volume, &options, &Silent).map_err(|e| format!("{about}: {}", failed(e)))?;
        if outcome.is_incomplete() {
            return Err(format!("{about}: the restore is incomplete: {outcome:?}"));
        }
        let how = Compare { owner: is_root(), ..Compare::EXACT };
        // The target is the caller's own: its mode, owner and time are left to him.
        let within = |mut inventory: Inventory| {
            inventory.remove(&b"src"[..]);
            inventory
        };
        let found = differences(&within(snap.tree.inventory.clone()), &within(inventory(&out)), &how);
        fs::remove_dir_all(&out).unwrap();
        if found.is_empty() { Ok(()) } else { Err(format!("{about}: restored otherwise:\n{found}")) }
    }

    fn cats(&self, job: usize, seq: u64, what: &cat::What, bytes: &[u8], rng: &mut Rng) -> Held {
        let at = rng.below(bytes.len() as u64 + 2);
        let len = if rng.below(4) == 0 { None } else { Some(rng.below(9000)) };
        let options = cat::Options { snapshot: name(job, seq), what: what.clone(), range: Some((at, len)), threads: 1 };
        let about = format!("{}/{seq} {what:?} range {at}:{len:?}", JOBS[job]);
        let mut out = Vec::new();
        cat::run(&self.volume, &options, &Silent, &mut out).map_err(|e| format!("{about}: {}", failed(e)))?;
        let from = (at as usize).min(bytes.len());
        let to = len.map_or(bytes.len(), |len| (from + len as usize).min(bytes.len()));
        same_bytes(&bytes[from..to], &out, &about)
    }

    /// `bk diff` says what the model says.
    fn differs(&self, job: usize, pair: [u64; 2]) -> Held {
        let model = &self.jobs[job];
        let [older, newer] = pair.map(|seq| model.get(seq));
        if !model.is_whole(older) || !model.is_whole(newer) {
            return Ok(());
        }
        let about = format!("diff of {}/{} and {}", JOBS[job], older.seq, newer.seq);
        let expected = difference(&older.tree, &newer.tree);
        let options = diff::Options { older: name(job, older.seq), newer: name(job, newer.seq) };
        let mut found: BTreeMap<Vec<u8>, Vec<&str>> = BTreeMap::new();
        let (mut stream, mut twice) = (false, false);
        let ran = diff::run(&self.volume, &options, &mut |one| {
            let words = if one.change == "changed" { one.what.clone() } else { vec![one.change] };
            match one.stream {
                true => stream = true,
                false => twice |= found.insert(one.path.0.clone(), words).is_some(),
            }
            Ok(())
        });
        ran.map_err(|e| format!("{about}: {}", failed(e)))?;
        same(&(older.stream != newer.stream), &stream, &format!("{about}: the stream"))?;
        same(&false, &twice, &format!("{about}: a path told twice"))?;
        if let Some(path) = found.keys().find(|path| !expected.contains_key(*path)) {
            return Err(format!("{about}: {} is said to differ: {:?}", path.escape_ascii(), found[path]));
        }
        for (path, wording) in &expected {
            let said = found.get(path).map_or(&[][..], Vec::as_slice);
            if !wording.allows(said) {
                return Err(format!("{about}: {}: expected {wording:?}, said {said:?}", path.escape_ascii()));
            }
        }
        Ok(())
    }
}

fn name(job: usize, seq: u64) -> SnapshotName {
    SnapshotName { job: JOBS[job].parse().unwrap(), which: Which::Seq(seq) }
}

/// Waits until what changes from now on gets a later time than what changed before.
fn settle(dir: &Path) {
    let probe = dir.join("probe");
    let time = || {
        fs::write(&probe, "x").unwrap();
        std::os::unix::fs::MetadataExt::ctime_nsec(&probe.metadata().unwrap())
    };
    let before = time();
    while time() == before {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Changes a byte so that times and length stay as they are: by a mapping, on a file system that does not stamp such writes.
/// False when that cannot be done here.
fn change_unseen(path: &Path, at: u64) -> bool {
    use std::os::unix::fs::MetadataExt;
    const SCRIPT: &str = "import mmap, sys
with open(sys.argv[1], 'r+b') as file, mmap.mmap(file.fileno(), 0) as map:
    map[int(sys.argv[2])] ^= 0x55";
    let times = |meta: fs::Metadata| (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
    let before = times(path.metadata().unwrap());
    let ran =
        std::process::Command::new("python3").args(["-S", "-E", "-c", SCRIPT]).arg(path).arg(at.to_string()).status();
    ran.is_ok_and(|status| status.success()) && times(path.metadata().unwrap()) == before
}

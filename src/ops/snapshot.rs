//! The run book of `bk snapshot`: check the volume, read the log, choose level and base, store, index, commit.

use std::{ffi::OsString, path::PathBuf};

use serde::Serialize;

use crate::{
    clock::Clock,
    engine::{
        catalog,
        read::{chain::Chain, index::IndexReader},
        write::{
            delta,
            framer::Framer,
            increment::Base,
            index::IndexWriter,
            links::Links,
            part::{PartWriter, Stored, Target},
            pipeline,
            sorted::Sorted,
            stream, tree,
        },
    },
    error::{Error, Kind, Result},
    format::{
        layout::{INDEX_NAME, RESTORE_NAME, run_dir},
        record::{self, Incomplete, ObjectRef, Origin, Snapshot, Stream, Totals},
        restore_txt,
        volume::FORMAT_VERSION,
    },
    model::{
        digest::Digest,
        ids::{Name, Nonce, RunId},
        time::{Instant, Lifetime},
        units::show_size,
    },
    monitor::Monitor,
    plan::{
        level::{self, Decision},
        log::JobLog,
    },
    source::{
        command::{Producer, Watched},
        roots::{self, Roots},
        select::Selection,
        walk::Walk,
    },
    volume::{Created, Requests, SECRETS, Volume, local::LocalStore},
};

/// A volume with less space than this is full before anything is read, bytes.
const FREE_BYTES_MIN: u64 = 1 << 20;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The job.
    pub job: Name,
    /// This node's name.
    pub node: String,
    /// Names are relative to this directory; `/` when `None`.
    pub base: Option<PathBuf>,
    /// Paths to store.
    pub sources: Vec<PathBuf>,
    /// What is left out of them.
    pub selection: Selection,
    /// The patterns as they were given, for the job's definition.
    pub patterns: Vec<String>,
    /// The level that is wanted; `None` is a level 0 that notes nothing for increments.
    pub level: Option<level::Request>,
    /// How long it is kept; never ending when `None`.
    pub keep: Option<Lifetime>,
    /// A stream to store, and its name.
    pub stream: Option<(Name, Input)>,
    /// Workers, codec, frames, verification.
    pub pipeline: pipeline::Settings,
    /// A part is full from this many stored bytes on.
    pub part_len: u64,
    /// Inode numbers say nothing, as on some network file systems.
    pub ignore_inode: bool,
}

/// Where a stream comes from.
#[derive(Clone, Debug)]
pub enum Input {
    /// Standard input.
    Stdin,
    /// The standard output of a command.
    Command(Vec<OsString>),
}

/// What a snapshot came to.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// `job/seq`
    pub snapshot: String,
    /// `done`, or `incomplete`.
    pub outcome: &'static str,
    /// The run.
    pub run_id: String,
    /// 0 to 9.
    pub level: u8,
    /// The snapshot it is an increment of.
    pub base: Option<u64>,
    /// The level that was asked for, when level 0 was taken instead.
    pub promoted_from: Option<u8>,
    /// When the run began.
    pub taken_at: Instant,
    /// When it may go; null is never.
    pub expires_at: Option<Instant>,
    /// Sums.
    pub totals: Totals,
    /// Warnings given.
    pub warnings: u64,
    /// The first entries that are not what was there.
    pub incomplete: Vec<Incomplete>,
    /// Named streams.
    pub streams: Vec<Stream>,
    /// What was asked of the store, where that costs money.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Requests>,
}

/// What a run would do: its level, and what follows from it.
#[derive(Clone, Debug, Serialize)]
pub struct Planned {
    /// Its number in the log, if no other record comes before it.
    pub seq: u64,
    /// 0 to 9.
    pub level: u8,
    /// The clause of the schedule the level comes from.
    pub because: Option<String>,
    /// Why this level and base.
    #[serde(flatten)]
    pub decision: Decision,
    /// When it may go; null is never.
    pub expires_at: Option<Instant>,
}

/// What [`run`] would do by the log as it is. Writes nothing.
pub fn plan(volume: &Volume, request: &Request, clock: &dyn Clock) -> Result<Planned> {
    let roots = roots::resolve(request.base.as_deref(), &request.sources)?;
    let names = stream_names(request, &roots)?;
    let log = catalog::read(volume, &request.job)?;
    let decision = decide(volume, &log, request, &definition(request, &roots, &names)?)?;
    let because = request.level.as_ref().and_then(|level| level.because.clone());
    let expires_at = request.keep.map_or(Ok(None), |keep| keep.after(clock.now()?))?;
    Ok(Planned { seq: log.next()?.0, level: decision.level(), because, decision, expires_at })
}

fn decide(volume: &Volume, log: &JobLog, request: &Request, definition: &Digest) -> Result<Decision> {
    let level = request.level.clone().unwrap_or_default();
    level::decide(log, &level, definition, |member| damage(volume, member))
}

/// What keeps a snapshot from being a base: objects that are missing, an index that cannot be read.
fn damage(volume: &Volume, member: &Snapshot) -> Result<Option<String>> {
    if let Some(what) = catalog::damage(volume, member)? {
        return Ok(Some(what));
    }
    match IndexReader::open(volume, member).and_then(|index| index.check_entries_stored()) {
        Ok(()) => Ok(None),
        Err(e) if e.kind() == Kind::Integrity => Ok(Some(e.to_string())),
        Err(e) => Err(e),
    }
}

/// Takes a snapshot. `local` is the volume's directory, which is never stored in itself.
pub fn run(
    volume: &Volume,
    local: Option<&LocalStore>,
    request: &Request,
    clock: &dyn Clock,
    monitor: &dyn Monitor,
) -> Result<Outcome> {
    let roots = roots::resolve(request.base.as_deref(), &request.sources)?;
    let names = stream_names(request, &roots)?;
    if roots.tree == roots::Node::default() && names.is_empty() {
        return Err(Error::usage("there is nothing to store").with_hint("name paths, --stdin NAME, or -- COMMAND"));
    }
    check_volume(volume)?;
    let log = catalog::read(volume, &request.job)?;
    let definition = definition(request, &roots, &names)?;
    let decision = decide(volume, &log, request, &definition)?;
    if let Decision::Promoted { from, why } = &decision {
        monitor.warn(&format!("level 0 is taken instead of level {from}: {why}"));
    }
    let taken_at = clock.now()?;
    expect(volume, &log, decision.level(), monitor)?;
    let base = Chosen::of(volume, &log, &decision)?;
    let place = Place {
        next: log.next()?,
        base: base.as_ref().map(Chosen::named),
        expires_at: request.keep.map_or(Ok(None), |keep| keep.after(taken_at))?,
        taken_at,
        definition,
        decision,
    };
    let run_id = RunId::new(clock.unix_ms())?;
    let run = Run {
        volume,
        local,
        request,
        monitor,
        roots,
        names,
        dir: run_dir(&request.job, run_id),
        deltas: deltas(request, base.as_ref(), monitor)?,
        base,
    };
    let stored = run.store().and_then(|(tree, streams, stored)| {
        let mut snapshot = run.record(run_id, &place, &tree, streams, &stored)?;
        run.restore_txt(&mut snapshot, &stored.parts)?;
        if let Some(signal) = monitor.interrupted() {
            return Err(Error::new(Kind::Signal(signal), "interrupted"));
        }
        Ok((snapshot, tree))
    });
    let (snapshot, tree) = stored.map_err(|e| {
        run.remove_objects();
        run.lost_or(e, run_id)
    })?;
    let snapshot = catalog::commit(volume, snapshot, place.decision.chain()).map_err(|failed| {
        // Only what is certainly not recorded, and never will be, may go.
        if failed.is_certain {
            run.remove_objects();
        }
        failed.error
    })?;
    Ok(Outcome {
        snapshot: format!("{}/{}", snapshot.job, snapshot.seq),
        outcome: if snapshot.totals.incomplete > 0 { "incomplete" } else { "done" },
        run_id: run_id.to_string(),
        level: snapshot.level,
        base: snapshot.base.as_ref().map(|base| base.seq),
        promoted_from: snapshot.promoted_from,
        taken_at,
        expires_at: snapshot.expires_at,
        totals: snapshot.totals,
        warnings: tree.warnings,
        incomplete: snapshot.incomplete,
        streams: snapshot.streams,
        requests: volume.store.requests(),
    })
}

fn check_volume(volume: &Volume) -> Result<()> {
    volume.store.check_writable()?;
    match volume.store.free_bytes()? {
        Some(free) if free < FREE_BYTES_MIN => {
            Err(Error::new(Kind::NoSpace, format!("{} has only {free} bytes free", volume.shown)))
        }
        _ => Ok(()),
    }
}

/// Says how much there is to do, and whether there may be too little room for it, by what the job's last snapshots came to.
fn expect(volume: &Volume, log: &JobLog, level: u8, monitor: &dyn Monitor) -> Result<()> {
    if let Some(last) = log.live().next_back() {
        monitor.expect(last.totals.entries, last.totals.content_bytes);
    }
    if let Some(like) = log.live().rev().find(|one| one.level == level)
        && let Some(free) = volume.store.free_bytes()?
    {
        let needed = like.totals.stored_bytes + like.totals.index_bytes;
        if free < needed {
            let (free, needed) = (show_size(free), show_size(needed));
            monitor.warn(&format!(
                "{} has {free} free; {}/{} of the same level took {needed}",
                volume.shown, like.job, like.seq
            ));
        }
    }
    Ok(())
}

/// The names of all streams in the order they are stored: block devices, then the stream asked for.
fn stream_names(request: &Request, roots: &Roots) -> Result<Vec<Name>> {
    let mut names = Vec::new();
    for device in &roots.devices {
        let base = device.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
        names.push(base.parse::<Name>().map_err(|e| e.context(format!("a stream for {}", device.display())))?);
    }
    names.extend(request.stream.iter().map(|(name, _)| name.clone()));
    let mut sorted = names.clone();
    sorted.sort();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Error::usage("two streams have the same name"));
    }
    Ok(names)
}

/// What a run decided before it read anything.
struct Place {
    /// The seq it aims at, and the digest of the record before it.
    next: (u64, Option<Digest>),
    taken_at: Instant,
    expires_at: Option<Instant>,
    definition: Digest,
    decision: Decision,
    base: Option<record::Base>,
}

/// What was asked for, as a digest: an increment of another definition is no increment.
fn definition(request: &Request, roots: &Roots, names: &[Name]) -> Result<Digest> {
    let definition = serde_json::json!({
        "base": request.base.as_ref().map(|_| roots.base.display().to_string()),
        "sources": roots.shown,
        "exclude": request.patterns,
        "exclude_caches": request.selection.exclude_caches,
        "exclude_if_present": request.selection.exclude_if_present,
        "one_file_system": request.selection.one_file_system,
        "streams": names,
    });
    let bytes =
        serde_json::to_vec(&definition).map_err(|e| Error::usage(format!("cannot write the definition: {e}")))?;
    Ok(Digest::of(&bytes))
}

/// The base of an increment.
struct Chosen {
    /// Its chain, level 0 first.
    snapshots: Vec<Snapshot>,
    /// Digest of its own record.
    digest: Digest,
    chain: Chain,
}

impl Chosen {
    fn of(volume: &Volume, log: &JobLog, decision: &Decision) -> Result<Option<Self>> {
        let Decision::Increment { base, .. } = decision else { return Ok(None) };
        let gone = || Error::integrity(format!("the base {}/{base} is not in the log", log.job));
        let state = log.state(*base).ok_or_else(gone)?;
        let snapshots = log.chain(&state.snapshot)?;
        let chain = Chain::open(volume, &snapshots)?;
        Ok(Some(Self { snapshots, digest: state.digest, chain }))
    }

    fn named(&self) -> record::Base {
        let own = &self.snapshots[self.snapshots.len() - 1];
        record::Base { run_id: own.run_id, seq: own.seq, digest: self.digest }
    }
}

/// How long contents are compared, and what the identities of chunks depend on: the same in all of a chain.
fn deltas(
    request: &Request,
    base: Option<&Chosen>,
    monitor: &dyn Monitor,
) -> Result<Option<(Digest, delta::Settings)>> {
    if request.level.is_none() {
        return Ok(None);
    }
    let mut key = base.and_then(|base| base.snapshots.iter().rev().find_map(|one| one.chunk_key));
    if key.is_none() {
        if base.is_some() {
            monitor.warn("the base was taken without --level: what was renamed, and long contents that changed, are stored whole");
        }
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(|e| Error::new(Kind::Other, format!("no random numbers: {e}")))?;
        key = Some(Digest(random));
    }
    Ok(key.map(|key| (key, delta::Settings::new(&key.0, request.pipeline.frame_len))))
}

/// A named stream and where it came from.
type Named = (Name, Origin);

struct Run<'a> {
    volume: &'a Volume,
    local: Option<&'a LocalStore>,
    request: &'a Request,
    monitor: &'a dyn Monitor,
    roots: Roots,
    names: Vec<Name>,
    dir: String,
    base: Option<Chosen>,
    deltas: Option<(Digest, delta::Settings)>,
}

impl Run<'_> {
    fn settings(&self) -> Option<&delta::Settings> {
        self.deltas.as_ref().map(|(_, settings)| settings)
    }

    fn store(&self) -> Result<(tree::Outcome, Vec<Named>, Stored)> {
        let store = &self.volume.store;
        let mut index = IndexWriter::new(store.create(&format!("{}{INDEX_NAME}", self.dir))?);
        if self.request.level.is_some() {
            index = index.with_traces(Sorted::new(store.clone()));
        }
        let target = Target {
            store: store.clone(),
            dir: self.dir.clone(),
            streams: self.names.clone(),
            codec: self.request.pipeline.codec,
            part_len: self.request.part_len,
        };
        let writer = PartWriter::new(target, index);
        let ((tree, streams), stored) = pipeline::run(self.request.pipeline, writer, |framer| self.fill(framer))?;
        Ok((tree, streams, stored))
    }

    fn fill(&self, framer: &mut Framer<'_>) -> Result<(tree::Outcome, Vec<Named>)> {
        let mut outcome = tree::Outcome::default();
        if self.roots.tree != roots::Node::default() {
            let volume = self
                .local
                .and_then(|local| rustix::fs::fstat(local.root()).ok())
                .map(|stat| (stat.st_dev, stat.st_ino));
            let walk = Walk::new(&self.roots, &self.request.selection, volume);
            let scratch = || self.volume.store.scratch();
            let base = self.base.as_ref().map(|base| Base {
                chain: &base.chain,
                taken_at: base.snapshots.iter().map(|one| one.taken_at.as_second()).collect(),
                ignore_inode: self.request.ignore_inode,
            });
            let request = tree::Request { links: Links::new(&scratch), deltas: self.settings(), base };
            outcome = tree::store(framer, walk, request, self.monitor)?;
        }
        for text in &self.roots.warnings {
            self.monitor.warn(text);
        }
        for path in &self.roots.missing {
            self.monitor.warn(&format!("no such source: {path}"));
            outcome.incomplete.push(Incomplete { path: path.clone(), why: "no such source".to_owned() });
            outcome.totals.incomplete += 1;
        }
        let mut streams = Vec::new();
        for (n, name) in self.names.iter().enumerate() {
            let number = u32::try_from(n + 1).map_err(|_| Error::usage("too many streams"))?;
            let (len, origin) = match self.roots.devices.get(n) {
                Some(device) => (self.device(framer, number, name, device)?, Origin::Device),
                None => self.stream(framer, number, name)?,
            };
            outcome.totals.content_bytes += len;
            streams.push((name.clone(), origin));
        }
        Ok((outcome, streams))
    }

    fn device(&self, framer: &mut Framer<'_>, number: u32, name: &Name, device: &std::path::Path) -> Result<u64> {
        let mut file =
            std::fs::File::open(device).map_err(|e| Error::io(format!("cannot open {}", device.display()), e))?;
        not_empty(name, self.store_stream(framer, (number, name, Origin::Device), &mut file)?)
    }

    /// Stores a stream: as a delta, when the base has one of its name and noted its chunks.
    fn store_stream(
        &self,
        framer: &mut Framer<'_>,
        (number, name, origin): (u32, &Name, Origin),
        input: &mut dyn std::io::Read,
    ) -> Result<u64> {
        let settings = self.settings().map(|settings| match origin {
            Origin::Device => settings.fixed(),
            Origin::Command | Origin::Unverified => settings.clone(),
        });
        let old = match &self.base {
            Some(base) => base.chain.old_stream(name)?,
            None => None,
        };
        let stream = stream::Stream { number, name: name.as_str(), settings: settings.as_ref(), monitor: self.monitor };
        match (old, &self.base) {
            (Some((content, chunks)), Some(base)) if settings.is_some() => {
                stream.compare(framer, delta::Old::new(&base.chain, content, chunks), input)
            }
            _ => stream.store(framer, input),
        }
    }

    fn stream(&self, framer: &mut Framer<'_>, number: u32, name: &Name) -> Result<(u64, Origin)> {
        match &self.request.stream {
            Some((_, Input::Command(argv))) => {
                // A volume that needs no secrets leaves those there are to the command.
                let hidden: &[&str] = if self.volume.store.requests().is_some() { &SECRETS } else { &[] };
                let mut producer = Producer::start(argv, hidden)?;
                let mut output = Watched::new(producer.output()?, self.monitor);
                let len = self.store_stream(framer, (number, name, Origin::Command), &mut output)?;
                drop(output);
                // A command that fails says so itself, before "the stream is empty" does.
                producer.finish()?;
                Ok((not_empty(name, len)?, Origin::Command))
            }
            _ => {
                let mut input = Watched::stdin(self.monitor)?;
                let len = self.store_stream(framer, (number, name, Origin::Unverified), &mut input)?;
                Ok((not_empty(name, len)?, Origin::Unverified))
            }
        }
    }

    fn record(
        &self,
        run_id: RunId,
        place: &Place,
        tree: &tree::Outcome,
        streams: Vec<Named>,
        stored: &Stored,
    ) -> Result<Snapshot> {
        let request = self.request;
        let streams = streams.into_iter().zip(&stored.streams);
        Ok(Snapshot {
            format_version: FORMAT_VERSION,
            job: request.job.clone(),
            cluster: None,
            node: request.node.clone(),
            run_id,
            nonce: Nonce::new()?,
            epoch: 0,
            seq: place.next.0,
            prev: place.next.1,
            level: place.decision.level(),
            base: place.base.clone(),
            promoted_from: place.decision.promoted_from(),
            taken_at: place.taken_at,
            expires_at: place.expires_at,
            definition: place.definition,
            codec: request.pipeline.codec,
            sources: self
                .roots
                .shown
                .iter()
                .cloned()
                .chain(self.roots.devices.iter().map(|d| d.display().to_string()))
                .collect(),
            streams: streams
                .map(|((name, origin), &(digest, content_bytes, places))| Stream {
                    name,
                    origin,
                    content_bytes,
                    digest,
                    places,
                })
                .collect(),
            index: stored.index.clone(),
            restore_txt: ObjectRef { name: RESTORE_NAME.to_owned(), len: 0, digest: Digest([0; 32]) },
            totals: Totals {
                stored_bytes: stored.stored_bytes,
                index_bytes: stored.index.len,
                parts: stored.parts.len() as u64,
                ..tree.totals
            },
            chunk_key: self.deltas.as_ref().map(|(key, _)| *key),
            incomplete: tree.incomplete.clone(),
            crypto: None,
            sig: None,
        })
    }

    fn restore_txt(&self, snapshot: &mut Snapshot, parts: &[String]) -> Result<()> {
        let mut before = Vec::new();
        for member in self.base.iter().flat_map(|base| &base.snapshots) {
            let dir = run_dir(&member.job, member.run_id);
            let items = self.volume.store.list(&dir)?.into_iter();
            let names = items.filter_map(|item| item.key.strip_prefix(&dir).map(str::to_owned));
            before.push((member, names.collect::<Vec<String>>()));
        }
        let text = restore_txt::text(snapshot, parts, &before);
        let key = format!("{}{RESTORE_NAME}", self.dir);
        if self.volume.store.put_new(&key, text.as_bytes())? == Created::Exists {
            return Err(Error::new(Kind::Lost, format!("{key} exists already")));
        }
        snapshot.restore_txt.len = text.len() as u64;
        snapshot.restore_txt.digest = Digest::of(text.as_bytes());
        Ok(())
    }

    /// A run that was swept meets missing directories and the like: then that is what is wrong.
    fn lost_or(&self, error: Error, run_id: RunId) -> Error {
        let is_swept = || catalog::read(self.volume, &self.request.job).is_ok_and(|log| log.swept.contains(&run_id));
        if matches!(error.kind(), Kind::Signal(_)) || !is_swept() {
            return error;
        }
        let what = "this run took so long that its objects were swept; it is not kept";
        Error::new(Kind::Lost, what).with_hint("take the snapshot again")
    }

    /// Removes what this run stored: it is not recorded, so nothing refers to it. What cannot be removed is an orphan and harmless.
    fn remove_objects(&self) {
        let left = self.volume.store.list(&self.dir).unwrap_or_default();
        let _ = self.volume.store.delete_all(&left.into_iter().map(|item| item.key).collect::<Vec<_>>());
        // A run that stored nothing has at most made its directory, which goes with this name.
        let _ = self.volume.store.delete(&format!("{}{INDEX_NAME}", self.dir));
    }
}

fn not_empty(name: &Name, len: u64) -> Result<u64> {
    if len > 0 {
        return Ok(len);
    }
    Err(Error::new(Kind::Other, format!("the stream {name} is empty: nothing was stored")))
}

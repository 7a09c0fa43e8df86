//! What a run decides before it reads anything: level, base, names, and the definition an increment must share with its base.

use serde::Serialize;

use super::Request;
use crate::{
    clock::Clock,
    engine::{
        catalog,
        read::{chain::Chain, index::IndexReader},
        write::delta,
    },
    error::{Error, Kind, Result},
    format::record::{self, Snapshot},
    model::{digest::Digest, ids::Name, time::Instant},
    monitor::Monitor,
    plan::{
        level::{self, Decision},
        log::JobLog,
    },
    source::roots::{self, Roots},
    volume::Volume,
};

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
    let expires_at = expires_at(request, &decision, clock.now()?)?;
    Ok(Planned { seq: log.next()?.0, level: decision.level(), because, decision, expires_at })
}

/// When it may go.
pub(super) fn expires_at(request: &Request, decision: &Decision, taken_at: Instant) -> Result<Option<Instant>> {
    let keep = match decision {
        Decision::Promoted { .. } => request.keep_promoted.or(request.keep),
        Decision::Full | Decision::Increment { .. } => request.keep,
    };
    keep.map_or(Ok(None), |keep| keep.after(taken_at))
}

pub(super) fn decide(volume: &Volume, log: &JobLog, request: &Request, definition: &Digest) -> Result<Decision> {
    let level = request.level.clone().unwrap_or_default();
    level::decide(log, &level, definition, |member| damage(volume, member))
}

/// What keeps a snapshot from being a base: objects that are missing, an index that cannot be read.
pub(super) fn damage(volume: &Volume, member: &Snapshot) -> Result<Option<String>> {
    if let Some(what) = catalog::damage(volume, member)? {
        return Ok(Some(what));
    }
    match IndexReader::open(volume, member).and_then(|index| index.check_entries_stored()) {
        Ok(()) => Ok(None),
        Err(e) if e.kind() == Kind::Integrity => Ok(Some(e.to_string())),
        Err(e) => Err(e),
    }
}

/// The names of all streams in the order they are stored: block devices, then the stream asked for.
pub(super) fn stream_names(request: &Request, roots: &Roots) -> Result<Vec<Name>> {
    let mut names = Vec::new();
    for device in &roots.devices {
        let base = device.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
        names.push(base.parse::<Name>().map_err(|e| e.context(format!("a stream for {}", device.display())))?);
    }
    names.extend(request.streams.iter().map(|(name, _)| name.clone()));
    let mut sorted = names.clone();
    sorted.sort();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Error::usage("two streams have the same name"));
    }
    Ok(names)
}

/// What a run decided before it read anything.
pub(super) struct Place {
    /// The seq it aims at, and the digest of the record before it.
    pub(super) next: (u64, Option<Digest>),
    pub(super) taken_at: Instant,
    pub(super) store_at: Option<Instant>,
    pub(super) expires_at: Option<Instant>,
    pub(super) definition: Digest,
    pub(super) decision: Decision,
    pub(super) base: Option<record::Base>,
}

/// What was asked for, as a digest: an increment of another definition is no increment.
pub(super) fn definition(request: &Request, roots: &Roots, names: &[Name]) -> Result<Digest> {
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
pub(super) struct Chosen {
    /// Its chain, level 0 first.
    pub(super) snapshots: Vec<Snapshot>,
    /// Digest of its own record.
    digest: Digest,
    pub(super) chain: Chain,
}

impl Chosen {
    pub(super) fn of(volume: &Volume, log: &JobLog, decision: &Decision) -> Result<Option<Self>> {
        let Decision::Increment { base, .. } = decision else { return Ok(None) };
        let gone = || Error::integrity(format!("the base {}/{base} is not in the log", log.job));
        let state = log.state(*base).ok_or_else(gone)?;
        let snapshots = log.chain(&state.snapshot)?;
        let chain = Chain::open(volume, &snapshots)?;
        Ok(Some(Self { snapshots, digest: state.digest, chain }))
    }

    pub(super) fn named(&self) -> record::Base {
        let own = &self.snapshots[self.snapshots.len() - 1];
        record::Base { run_id: own.run_id, seq: own.seq, digest: self.digest }
    }
}

/// How long contents are compared, and what the identities of chunks depend on: the same in all of a chain.
pub(super) fn deltas(
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

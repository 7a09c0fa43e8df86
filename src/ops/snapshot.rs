//! The run book of `bk snapshot`: check the volume, take the lease, read the log, choose level and base, store, index, commit.
//!
//! A run has three steps, so that others can be put between them: [`prepare`] decides and stores nothing, [`Prepared::store`]
//! stores all objects, [`Unrecorded::commit`] makes the record. What is dropped before its commit was never there, but for
//! objects that [`Unrecorded::abandon`] removes and a sweep finds. The lease is kept from [`prepare`] on till the last of
//! the three is dropped, and longer by who keeps [`Prepared::lease`]. That the run has begun is said from [`prepare`] on, till
//! [`Begun::take_back`].

mod choose;
mod sane;
mod store;
mod turn;

use std::{path::PathBuf, sync::Arc};

use serde::Serialize;

use crate::{
    clock::Clock,
    engine::{
        begun::{Begun, End},
        catalog,
        cluster::keeper::Keeper,
        write::{pipeline, profile::Profile, tree},
    },
    error::{Error, Kind, Result},
    format::{
        layout::run_dir,
        record::{Incomplete, Snapshot, Stream, Totals},
    },
    model::{
        ids::{Name, RunId},
        time::{Instant, Lifetime},
        units::show_size,
    },
    monitor::Monitor,
    plan::{
        level::{self, Decision},
        log::JobLog,
    },
    source::{command::CommandLine, roots, select::Selection},
    steps::Values,
    volume::{Requests, Volume, local::LocalStore},
};
use choose::{Chosen, Place};
pub use choose::{Planned, plan};
pub use sane::{Guards, Sanity};
use store::Run;
pub use turn::{Guarded, Skipped, lease};

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
    /// Nothing is done when the job has a snapshot that is younger than this.
    pub min_interval: Option<Lifetime>,
    /// How long it is kept; never ending when `None`.
    pub keep: Option<Lifetime>,
    /// How long it is kept when level 0 is taken instead of the level that is wanted; as any other when `None`.
    pub keep_promoted: Option<Lifetime>,
    /// Streams to store, each with its name.
    pub streams: Vec<(Name, Input)>,
    /// Workers, codec, frames, verification.
    pub pipeline: pipeline::Settings,
    /// A part is full from this many stored bytes on.
    pub part_len: u64,
    /// Inode numbers say nothing, as on some network file systems.
    pub ignore_inode: bool,
    /// What the commands of streams get by environment.
    pub values: Values,
    /// What must hold of the sources.
    pub guards: Guards,
}

/// Where a stream comes from.
#[derive(Clone, Debug)]
pub enum Input {
    /// Standard input.
    Stdin,
    /// The standard output of a command.
    Command(CommandLine),
    /// A block device, or an image of one.
    Device(PathBuf),
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
    /// Where the time of reading and storing went.
    pub profile: Profile,
    /// What was asked of the store, where that costs money.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Requests>,
}

/// How a run ended that did not fail.
#[derive(Clone, Debug)]
pub enum Ended {
    /// There is a new snapshot.
    Taken(Box<Outcome>),
    /// It was not this run's turn.
    Skipped(Skipped),
}

/// Takes a snapshot. `local` is the volume's directory, which is never stored in itself.
pub fn run(
    volume: &Volume,
    local: Option<&LocalStore>,
    request: &Request,
    clock: &dyn Clock,
    monitor: &dyn Monitor,
) -> Result<Ended> {
    Ok(match prepare(volume, local, request, RunId::new(clock.unix_ms())?, clock, monitor)? {
        Ready::Run(prepared) => {
            let begun = prepared.begun();
            let ended = prepared.store().and_then(Unrecorded::commit);
            begun.take_back();
            Ended::Taken(Box::new(ended?))
        }
        Ready::Skip(skipped) => Ended::Skipped(skipped),
    })
}

/// What [`prepare`] found.
pub enum Ready<'a> {
    /// It is this run's turn.
    Run(Box<Prepared<'a>>),
    /// It is not, and nothing more is to be done.
    Skip(Skipped),
}

/// A run that is decided and has the job's lease; nothing has been stored.
pub struct Prepared<'a> {
    run: Run<'a>,
    run_id: RunId,
    place: Place,
}

/// Checks the volume, takes the lease, reads the log, asks whether the job is due, and chooses level and base.
pub fn prepare<'a>(
    volume: &'a Volume,
    local: Option<&'a LocalStore>,
    request: &'a Request,
    run_id: RunId,
    clock: &dyn Clock,
    monitor: &'a dyn Monitor,
) -> Result<Ready<'a>> {
    request.guards.check_mounts()?;
    let roots = roots::resolve(request.base.as_deref(), &request.sources)?;
    let names = choose::stream_names(request, &roots)?;
    if roots.tree == roots::Node::default() && names.is_empty() {
        return Err(Error::usage("there is nothing to store").with_hint("name paths, --stdin NAME, or -- COMMAND"));
    }
    check_volume(volume, request.guards.free_bytes_min)?;
    let lease = match turn::take(volume, request, run_id, clock, monitor)? {
        Ok(lease) => lease,
        Err(skipped) => return Ok(Ready::Skip(skipped)),
    };
    let log = catalog::read(volume, &request.job)?;
    let (taken_at, store_at) = (clock.now()?, volume.store.now());
    if let Some(skipped) = turn::fresh(volume, &log, request, store_at.unwrap_or(taken_at), monitor)? {
        return Ok(Ready::Skip(skipped));
    }
    let definition = choose::definition(request, &roots, &names)?;
    let decision = choose::decide(volume, &log, request, &definition)?;
    if let Decision::Promoted { from, why } = &decision {
        monitor.warn(&format!("level 0 is taken instead of level {from}: {why}"));
    }
    expect(volume, &log, decision.level(), monitor)?;
    let base = Chosen::of(volume, &log, &decision)?;
    let place = Place {
        next: log.next()?,
        base: base.as_ref().map(Chosen::named),
        expires_at: choose::expires_at(request, &decision, taken_at)?,
        taken_at,
        store_at,
        definition,
        decision,
    };
    let deltas = choose::deltas(request, base.as_ref(), monitor)?;
    let dir = run_dir(&request.job, run_id);
    let before = names.iter().map(|name| sane::before(&log, place.decision.level(), name)).collect();
    let monitor = Guarded::new(monitor, lease);
    let mut values = request.values.clone();
    values.insert("BK_PHASE".to_owned(), "stream".to_owned());
    values.insert("BK_LEVEL".to_owned(), place.decision.level().to_string());
    // Last, so that only what stores something has to take it back.
    let begun = Arc::new(Begun::say(&volume.store, (&request.job, run_id), &request.node, taken_at)?);
    let run = Run { volume, local, request, values, monitor, roots, names, before, dir, base, deltas, begun };
    Ok(Ready::Run(Box::new(Prepared { run, run_id, place })))
}

/// What [`run`] would do, when volume and sources are as they must be at its beginning. Stores nothing and takes no lease.
pub fn validate(volume: &Volume, request: &Request, clock: &dyn Clock) -> Result<Planned> {
    request.guards.check_mounts()?;
    check_volume(volume, request.guards.free_bytes_min)?;
    plan(volume, request, clock)
}

impl<'a> Prepared<'a> {
    /// The run.
    pub fn run_id(&self) -> RunId {
        self.run_id
    }

    /// The level it will have.
    pub fn level(&self) -> u8 {
        self.place.decision.level()
    }

    /// The lease: kept as long as anybody keeps it, so that no other run begins while this one still tidies up.
    pub fn lease(&self) -> Arc<Keeper> {
        Arc::clone(self.run.monitor.lease())
    }

    /// What the run has said on the volume: to be taken back when it has ended.
    pub fn begun(&self) -> Arc<Begun> {
        Arc::clone(&self.run.begun)
    }

    /// Stores everything but the record. What a failed run stored is removed again.
    pub fn store(self) -> Result<Unrecorded<'a>> {
        let Self { run, run_id, place } = self;
        run.begun.turn_to(End::Unsure);
        let stored = run.store().and_then(|(tree, streams, stored, profile)| {
            let mut snapshot = run.record(run_id, &place, &tree, streams, &stored)?;
            run.restore_txt(&mut snapshot, &stored.parts)?;
            if let Some(signal) = run.monitor.interrupted() {
                return Err(Error::new(Kind::Signal(signal), "interrupted"));
            }
            Ok((snapshot, tree, profile))
        });
        match stored {
            Ok((snapshot, tree, profile)) => Ok(Unrecorded { run, place, snapshot, tree, profile }),
            Err(e) => {
                run.remove_after(&e);
                Err(run.lost_or(run.monitor.explain(e), run_id))
            }
        }
    }
}

/// A run whose objects are all stored, durable, and not yet a snapshot.
pub struct Unrecorded<'a> {
    run: Run<'a>,
    place: Place,
    snapshot: Snapshot,
    tree: tree::Outcome,
    profile: Profile,
}

impl Unrecorded<'_> {
    /// Removes what was stored: there will be no snapshot.
    pub fn abandon(self) {
        self.run.remove_objects();
    }

    /// Creates the record: from then on the snapshot exists.
    pub fn commit(self) -> Result<Outcome> {
        let Self { run, place, snapshot, tree, profile } = self;
        run.monitor.lease().check().inspect_err(|e| run.remove_after(e))?;
        let snapshot = catalog::commit(run.volume, snapshot, place.decision.chain()).map_err(|failed| {
            // Only what is certainly not recorded, and never will be, may go.
            if failed.is_certain {
                run.remove_after(&failed.error);
            }
            failed.error
        })?;
        run.begun.turn_to(End::Recorded);
        Ok(Outcome {
            snapshot: format!("{}/{}", snapshot.job, snapshot.seq),
            outcome: if snapshot.totals.incomplete > 0 { "incomplete" } else { "done" },
            run_id: snapshot.run_id.to_string(),
            level: snapshot.level,
            base: snapshot.base.as_ref().map(|base| base.seq),
            promoted_from: snapshot.promoted_from,
            taken_at: place.taken_at,
            expires_at: snapshot.expires_at,
            totals: snapshot.totals,
            warnings: tree.warnings,
            incomplete: snapshot.incomplete,
            streams: snapshot.streams,
            profile,
            requests: run.volume.store.requests(),
        })
    }
}

fn check_volume(volume: &Volume, free_bytes_min: u64) -> Result<()> {
    volume.store.check_writable()?;
    match volume.store.free_bytes()? {
        Some(free) if free < FREE_BYTES_MIN.max(free_bytes_min) => {
            let (free, min) = (show_size(free), show_size(FREE_BYTES_MIN.max(free_bytes_min)));
            Err(Error::new(Kind::NoSpace, format!("{} has only {free} free of at least {min}", volume.shown)))
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

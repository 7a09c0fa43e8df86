//! The storing: trees and streams into parts, then the index, then what the record will say.

use std::sync::Arc;

use super::{
    Input, Request,
    choose::{Chosen, Place},
    sane::Tailed,
    turn::Guarded,
};
use crate::{
    engine::{
        begun::{Begun, End},
        catalog,
        write::{
            delta,
            framer::Framer,
            increment::Base,
            index::IndexWriter,
            part::{PartWriter, Stored, Target},
            pipeline,
            profile::Profile,
            sorted::Sorted,
            stream, tree,
        },
    },
    error::{Error, Kind, Result},
    format::{
        layout::{INDEX_NAME, RESTORE_NAME, run_dir},
        record::{Incomplete, ObjectRef, Origin, Snapshot, Stream, Totals},
        restore_txt,
        volume::FORMAT_VERSION,
    },
    model::{
        digest::Digest,
        ids::{Name, Nonce, RunId},
    },
    monitor::Monitor,
    source::{
        command::{Output, Producer, Watched},
        roots::{self, Roots},
        walk::Walk,
    },
    steps::Values,
    volume::{Created, Item, Volume, local::LocalStore},
};

/// A named stream and where it came from.
pub(super) type Named = (Name, Origin);

pub(super) struct Run<'a> {
    pub(super) volume: &'a Volume,
    pub(super) local: Option<&'a LocalStore>,
    pub(super) request: &'a Request,
    /// What the commands of streams get by environment.
    pub(super) values: Values,
    pub(super) monitor: Guarded<'a>,
    pub(super) roots: Roots,
    pub(super) names: Vec<Name>,
    /// Of each name, the length of its last stream of this level, and the snapshot that has it.
    pub(super) before: Vec<Option<(u64, String)>>,
    pub(super) dir: String,
    pub(super) base: Option<Chosen>,
    pub(super) deltas: Option<(Digest, delta::Settings)>,
    /// What it has said on the volume.
    pub(super) begun: Arc<Begun>,
}

impl Run<'_> {
    fn settings(&self) -> Option<&delta::Settings> {
        self.deltas.as_ref().map(|(_, settings)| settings)
    }

    pub(super) fn store(&self) -> Result<(tree::Outcome, Vec<Named>, Stored, Profile)> {
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
        let ((tree, streams), stored, profile) =
            pipeline::run(self.request.pipeline, writer, |framer| self.fill(framer))?;
        Ok((tree, streams, stored, profile))
    }

    fn fill(&self, framer: &mut Framer<'_>) -> Result<(tree::Outcome, Vec<Named>)> {
        let mut outcome = tree::Outcome::default();
        if self.roots.tree != roots::Node::default() {
            let volume = self
                .local
                .and_then(|local| rustix::fs::fstat(local.root()).ok())
                .map(|stat| (stat.st_dev, stat.st_ino));
            let walk = Walk::new(&self.roots, &self.request.selection, volume, self.request.pipeline.threads);
            let scratch = || self.volume.store.scratch();
            let base = self.base.as_ref().map(|base| Base {
                chain: &base.chain,
                taken_at: base.snapshots.iter().map(|one| one.taken_at.as_second()).collect(),
                ignore_inode: self.request.ignore_inode,
            });
            let request = tree::Request { scratch: &scratch, deltas: self.settings(), base };
            outcome = tree::store(framer, walk, request, &self.monitor)?;
            self.request.guards.check_files(&outcome.totals)?;
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
                None => {
                    let (_, input) = &self.request.streams[n - self.roots.devices.len()];
                    self.stream(framer, number, name, input)?
                }
            };
            outcome.totals.content_bytes += len;
            streams.push((name.clone(), origin));
        }
        Ok((outcome, streams))
    }

    fn device(&self, framer: &mut Framer<'_>, number: u32, name: &Name, device: &std::path::Path) -> Result<u64> {
        let mut file = std::fs::File::open(device)
            .map_err(|e| Error::io(format!("cannot open {}", device.display()), e).with_kind(Kind::Other))?;
        let (len, sane) = self.store_stream(framer, (number, name, Origin::Device), &mut file)?;
        not_empty(name, len)?;
        sane.map(|()| len)
    }

    /// Stores a stream: as a delta, when the base has one of its name and noted its chunks.
    fn store_stream(
        &self,
        framer: &mut Framer<'_>,
        (number, name, origin): (u32, &Name, Origin),
        input: &mut dyn std::io::Read,
    ) -> Result<(u64, Result<()>)> {
        let settings = self.settings().map(|settings| match origin {
            Origin::Device => settings.fixed(),
            Origin::Command | Origin::Unverified => settings.clone(),
        });
        let old = match &self.base {
            Some(base) => base.chain.old_stream(name)?,
            None => None,
        };
        let stream =
            stream::Stream { number, name: name.as_str(), settings: settings.as_ref(), monitor: &self.monitor };
        let mut tailed = Tailed::new(input);
        let len = match (old, &self.base) {
            (Some((content, chunks)), Some(base)) if settings.is_some() => {
                stream.compare(framer, delta::Old::new(&base.chain, content, chunks), &mut tailed)
            }
            _ => stream.store(framer, &mut tailed),
        }?;
        Ok((len, self.judge(name, number, &tailed)))
    }

    /// Whether the stream is what it must be; a command's own failure is told first.
    fn judge(&self, name: &Name, number: u32, tailed: &Tailed<'_>) -> Result<()> {
        let Some(sanity) = self.request.guards.streams.get(name) else { return Ok(()) };
        let n = usize::try_from(number).unwrap_or(usize::MAX) - 1;
        tailed.check(name, sanity, self.before.get(n).cloned().flatten())
    }

    fn stream(&self, framer: &mut Framer<'_>, number: u32, name: &Name, input: &Input) -> Result<(u64, Origin)> {
        match input {
            Input::Device(device) => Ok((self.device(framer, number, name, device)?, Origin::Device)),
            Input::Command(command) => {
                let mut output = Output::new(Producer::start(command, &self.values)?, &self.monitor)?;
                let stored = self.store_stream(framer, (number, name, Origin::Command), &mut output);
                // A command that fails says so itself, before "the stream is empty" does.
                let (len, sane) = output.judge(stored)?;
                not_empty(name, len)?;
                sane.map(|()| (len, Origin::Command))
            }
            Input::Stdin => {
                let mut input = Watched::stdin(&self.monitor)?;
                let (len, sane) = self.store_stream(framer, (number, name, Origin::Unverified), &mut input)?;
                not_empty(name, len)?;
                sane.map(|()| (len, Origin::Unverified))
            }
        }
    }

    pub(super) fn record(
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
            epoch: self.monitor.lease().epoch(),
            seq: place.next.0,
            prev: place.next.1,
            level: place.decision.level(),
            base: place.base.clone(),
            promoted_from: place.decision.promoted_from(),
            taken_at: place.taken_at,
            store_at: place.store_at,
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
            copied_from: None,
            crypto: None,
            sig: None,
        })
    }

    pub(super) fn restore_txt(&self, snapshot: &mut Snapshot, parts: &[String]) -> Result<()> {
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
    pub(super) fn lost_or(&self, error: Error, run_id: RunId) -> Error {
        let is_swept = || catalog::read(self.volume, &self.request.job).is_ok_and(|log| log.swept.contains(&run_id));
        if matches!(error.kind(), Kind::Signal(_)) || !is_swept() {
            return error;
        }
        let what = "this run took so long that its objects were swept; it is not kept";
        Error::new(Kind::Lost, what).with_hint("take the snapshot again")
    }

    /// Removes what this run stored, because of `error`: where the volume has failed, only as far as that goes quickly.
    pub(super) fn remove_after(&self, error: &Error) {
        if error.kind() == Kind::Volume {
            self.volume.store.hurry();
        }
        self.remove_objects();
    }

    /// Removes what this run stored: it is not recorded, so nothing refers to it. What cannot be removed is an orphan and harmless.
    pub(super) fn remove_objects(&self) {
        let store = &self.volume.store;
        let delete = |left: Vec<Item>| store.delete_all(&left.into_iter().map(|item| item.key).collect::<Vec<_>>());
        if store.list(&self.dir).and_then(delete).is_ok() {
            self.begun.turn_to(End::Nothing);
        }
        // A run that stored nothing has at most made its directory, which goes with this name.
        let _ = store.delete(&format!("{}{INDEX_NAME}", self.dir));
    }
}

fn not_empty(name: &Name, len: u64) -> Result<u64> {
    if len > 0 {
        return Ok(len);
    }
    Err(Error::new(Kind::Other, format!("the stream {name} is empty: nothing was stored")))
}

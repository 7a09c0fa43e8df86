//! Directories: what is in them, from any place on.
//!
//! A place in a list is a number that names the row it comes after, not a count: so a list that is read in pieces, as the
//! kernel does, costs the same at its end as at its beginning, and nothing is kept between the pieces.

use std::sync::Arc;

use rustix::io::Errno;

use super::{
    Answer, Failure,
    attr::Attr,
    core::Core,
    counts::add,
    node::{Node, Place},
    snap::{Opened, Snap, number},
};
use crate::{
    engine::read::{index::Numbered, patience::may_wait},
    model::{
        entry::{EntryKind, Status},
        path,
    },
};

/// The places after `.`, `..` and the directory of streams or `latest`; rows and numbers follow.
const AFTER_DOT: u64 = 1;
const AFTER_DOTS: u64 = 2;
const AFTER_SPECIAL: u64 = 3;
const FIRST_ROW: u64 = 16;
const RUN_SHIFT: u32 = 36;
/// Set in places among the directories, which come after all else.
const AMONG_DIRS: u64 = 1 << 40;

/// One entry of a list: name, attributes, and the place after it. True when there is room for no more.
pub type Put<'a> = &'a mut dyn FnMut(&[u8], &Attr, u64) -> bool;

impl Core {
    /// Tells `put` what is in the directory `node` after the place `from`, until it has enough.
    pub fn list(&self, node: Node, from: u64, put: Put<'_>) -> Answer<()> {
        let place = self.place(node)?;
        if from < AFTER_DOT && put(b".", &self.attr_at(place)?, AFTER_DOT) {
            return Ok(());
        }
        if from < AFTER_DOTS && put(b"..", &self.parent_of(place)?, AFTER_DOTS) {
            return Ok(());
        }
        match place {
            Place::Top => self.list_jobs(from, put),
            Place::Job(job) => self.list_snaps(job, from, put),
            Place::Root(slot) => {
                let opened = self.top.opened(slot)?;
                self.list_root(&opened, from, put)
            }
            Place::Streams(slot) => list_streams(&*self.top.opened(slot)?, from, put),
            Place::Row { slot, run, row } => {
                let opened = self.top.opened(slot)?;
                let row = opened.chain.numbered(run, row)?.ok_or(Errno::STALE)?;
                if row.kind != EntryKind::Dir {
                    return Err(Errno::NOTDIR.into());
                }
                self.list_dir(node, &opened, (&row.path, row.status), from, put)
            }
            Place::Stream(..) | Place::Latest(_) => Err(Errno::NOTDIR.into()),
        }
    }

    fn list_jobs(&self, from: u64, put: Put<'_>) -> Answer<()> {
        let mut jobs = self.top.jobs()?;
        jobs.sort_by_key(|job| job.number);
        for job in jobs.iter().filter(|job| job.number + FIRST_ROW >= from) {
            if put(job.name.as_str().as_bytes(), &self.job_attr(job)?, job.number + FIRST_ROW + 1) {
                break;
            }
        }
        Ok(())
    }

    fn list_snaps(&self, job: u64, from: u64, put: Put<'_>) -> Answer<()> {
        let job = self.top.job(job)?;
        if from < AFTER_SPECIAL
            && let Some(newest) = job.latest()
            && put(b"latest", &super::core::latest_attr(newest)?, AFTER_SPECIAL)
        {
            return Ok(());
        }
        let rest: Vec<&Arc<Snap>> = job.snaps.range(from.saturating_sub(FIRST_ROW)..).map(|(_, snap)| snap).collect();
        for snap in rest {
            // Names alone open nothing, so one that is damaged is shown, too, and says so when it is looked at.
            let attr = match snap.known_root() {
                Some(attr) => attr,
                None => Attr::unknown(number(Place::Root(snap.slot))?, EntryKind::Dir, snap.taken_at()),
            };
            if put(snap.name.as_bytes(), &attr, snap.snapshot.seq + FIRST_ROW + 1) {
                break;
            }
        }
        Ok(())
    }

    fn list_root(&self, opened: &Arc<Opened>, from: u64, put: Put<'_>) -> Answer<()> {
        if !opened.chain.has_tree() {
            return list_streams(opened, from, put);
        }
        if from < AFTER_SPECIAL
            && let Some(name) = &opened.streams_dir
            && put(name.as_bytes(), &opened.streams_attr()?, AFTER_SPECIAL)
        {
            return Ok(());
        }
        let node = number(Place::Root(opened.slot))?;
        self.list_dir(node, opened, (b"", opened.root_status()), from, put)
    }

    /// Files first, then directories: so whoever goes down depth first reads in the order in which content is stored.
    fn list_dir(
        &self,
        node: Node,
        opened: &Arc<Opened>,
        (dir, status): (&[u8], Status),
        from: u64,
        put: Put<'_>,
    ) -> Answer<()> {
        let place = from.checked_sub(FIRST_ROW);
        let mut after = match place {
            None => None,
            Some(place) => {
                let run = usize::try_from((place & !AMONG_DIRS) >> RUN_SHIFT).map_err(|_| Errno::INVAL)?;
                let row = opened.chain.numbered(run, place & ((1 << RUN_SHIFT) - 1))?.ok_or(Errno::INVAL)?;
                if path::split(&row.path).0 != dir {
                    return Err(Errno::INVAL.into());
                }
                Some(row)
            }
        };
        let oldest = self.oldest_in(node, opened, dir)?;
        let is_among_dirs = place.is_some_and(|place| place & AMONG_DIRS != 0);
        for wants_dirs in [false, true].into_iter().skip(usize::from(is_among_dirs)) {
            let last = after.take();
            for row in opened.chain.list_numbered(dir, oldest, last.as_ref().map(|row| row.path.as_slice())) {
                let row = row?;
                if (row.kind == EntryKind::Dir) != wants_dirs {
                    continue;
                }
                let bits = (row.run as u64) << RUN_SHIFT | row.number | if wants_dirs { AMONG_DIRS } else { 0 };
                if put(path::split(&row.path).1, &self.listed_attr(opened, &row)?, FIRST_ROW + bits) {
                    return Ok(());
                }
            }
        }
        // Nobody knows what else was in one that could not be read.
        if status.has(Status::UNREADABLE) { Err(Errno::IO.into()) } else { Ok(()) }
    }

    /// The attributes of a row in a list. A further name whose file cannot be found has none, and hides no other name: who looks at
    /// it gets the error.
    fn listed_attr(&self, opened: &Opened, row: &Numbered) -> Answer<Attr> {
        match opened.attr_of(row.clone()) {
            Err(Failure::Fault(e)) if may_wait().is_ok() => {
                add(&self.counts.faults);
                self.monitor.warn(&e.to_string());
                Ok(Attr::unknown(opened.node_of(row)?, EntryKind::File, opened.taken_at))
            }
            attr => attr,
        }
    }
}

fn list_streams(opened: &Opened, from: u64, put: Put<'_>) -> Answer<()> {
    let done = from.saturating_sub(FIRST_ROW);
    for (n, name) in (1u32..).zip(opened.chain.streams()).filter(|(n, _)| u64::from(*n) > done) {
        if put(name.as_str().as_bytes(), &opened.stream_attr(n)?, FIRST_ROW + u64::from(n)) {
            break;
        }
    }
    Ok(())
}

//! The run books of `bk expire --set`, `bk hold`, `bk release` and `bk why`: how long one snapshot stays.

use serde::Serialize;

use super::expire::unusable;
use crate::{
    clock::Clock,
    engine::catalog::{self, Author, JobLog},
    error::{Error, Result},
    format::change::{COMMENT_LEN_MAX, Hold, Named, Release, SetExpiry, What},
    model::{
        ids::SnapshotName,
        time::{Instant, Lifetime},
    },
    plan::expiry,
    volume::Volume,
};

/// When a snapshot may go, as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// So long from now, or never.
    After(Lifetime),
    /// At this instant.
    At(Instant),
}

/// What was recorded.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// `job/seq`
    pub snapshot: String,
    /// The record that says so; null when it was so before.
    pub record: Option<u64>,
    /// When it may go; null is never.
    pub expires_at: Option<Instant>,
    /// Whether it is on hold.
    pub hold: bool,
}

/// Sets when a snapshot may go.
pub fn set(volume: &Volume, name: &SnapshotName, when: When, node: &str, clock: &dyn Clock) -> Result<Outcome> {
    let expires_at = match when {
        When::After(lifetime) => lifetime.after(clock.now()?)?,
        When::At(at) => Some(at),
    };
    record(volume, name, node, clock, |state| {
        (state.expires_at != expires_at).then(|| SetExpiry { snapshot: state.named(), expires_at })
    })
}

/// Keeps a snapshot, whatever its time says, until it is released.
pub fn hold(
    volume: &Volume,
    name: &SnapshotName,
    comment: Option<&str>,
    node: &str,
    clock: &dyn Clock,
) -> Result<Outcome> {
    if comment.is_some_and(|text| text.len() > COMMENT_LEN_MAX) {
        return Err(Error::usage(format!("the comment is longer than {COMMENT_LEN_MAX} bytes")));
    }
    record(volume, name, node, clock, |state| {
        let said = state.hold.as_ref().map(|mark| mark.comment.as_deref());
        let same = said.is_some_and(|said| comment.is_none() || said == comment);
        (!same).then(|| Hold { snapshot: state.named(), comment: comment.map(str::to_owned) })
    })
}

/// Ends a hold.
pub fn release(volume: &Volume, name: &SnapshotName, node: &str, clock: &dyn Clock) -> Result<Outcome> {
    record(volume, name, node, clock, |state| {
        state.hold.is_some().then(|| Release { snapshot: state.named(), comment: None })
    })
}

fn record<W: What + Clone>(
    volume: &Volume,
    name: &SnapshotName,
    node: &str,
    clock: &dyn Clock,
    decide: impl Fn(&catalog::State) -> Option<W>,
) -> Result<Outcome> {
    let author = Author { node: node.to_owned(), at: clock.now()? };
    // `latest` is what it was at first, whatever comes meanwhile.
    let mut found: Option<Named> = None;
    let (log, what) = catalog::change(volume, &name.job, &author, |log| {
        let state = match found {
            None => catalog::find_in(log, name, &volume.shown)?,
            Some(named) => {
                let exact = SnapshotName { job: name.job.clone(), which: crate::model::ids::Which::Seq(named.seq) };
                catalog::find_in(log, &exact, &volume.shown)?
            }
        };
        found = Some(state.named());
        Ok(decide(state))
    })?;
    let state = found.and_then(|named| log.state(named.seq));
    let state = state.ok_or_else(|| Error::usage(format!("there is no snapshot {name}")))?;
    Ok(Outcome {
        snapshot: format!("{}/{}", name.job, state.snapshot.seq),
        record: what.map(|_| log.head.seq),
        expires_at: state.expires_at,
        hold: state.hold.is_some(),
    })
}

/// Why a snapshot is still there, or no more.
#[derive(Clone, Debug, Serialize)]
pub struct Why {
    /// `job/seq`
    pub snapshot: String,
    /// Facts, one a line.
    pub facts: Vec<String>,
}

/// Tells why a snapshot is still there, or no more: expired ones can be asked for by their number.
pub fn why(volume: &Volume, name: &SnapshotName, clock: &dyn Clock) -> Result<Why> {
    let items = volume.store.list(&format!("data/{}/", name.job))?;
    let log: JobLog = catalog::read(volume, &name.job)?;
    let state = match name.which {
        crate::model::ids::Which::Seq(seq) => log.state(seq),
        crate::model::ids::Which::Latest(_) => None,
    };
    let state = match state {
        Some(state) => state,
        None => catalog::find_in(&log, name, &volume.shown)?,
    };
    let facts = expiry::why(&log, state, &unusable(&log, &catalog::runs(&items, &name.job)), clock.now()?);
    Ok(Why { snapshot: format!("{}/{}", name.job, state.snapshot.seq), facts })
}

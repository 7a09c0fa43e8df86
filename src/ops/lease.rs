//! The run books of `bk lease list` and `bk lease release`: who works on a job, and ending a lease that is in the way.

use std::sync::Arc;

use serde::Serialize;

use crate::{
    clock::Clock,
    engine::{
        catalog,
        cluster::{
            lease::{self, Found, Who},
            process,
        },
    },
    error::{Error, Kind, Result},
    format::lease::State,
    model::{ids::Name, time::Instant},
    monitor::Monitor,
    plan::lease::{Candidate, Seen, Turn},
    volume::Volume,
};

/// The newest lease of a job.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The job.
    pub job: String,
    /// How often the lease has changed hands.
    pub epoch: u64,
    /// Its number in the epoch.
    pub n: u64,
    /// `held`, `released`, `dead` (its holder ran on this machine and is gone), or `unreadable`.
    pub state: &'static str,
    /// The node of its holder.
    pub node: Option<String>,
    /// The process of its holder, on its node.
    pub pid: Option<u32>,
    /// The run it was taken for.
    pub run_id: Option<String>,
    /// When it was taken, renewed or released last, by the clock of its node.
    pub written_at: Option<Instant>,
}

fn row(job: &Name, found: &Found) -> Row {
    let lease = found.lease.as_ref();
    let state = match (found.head.seen, lease) {
        (Seen::Dead, _) => "dead",
        (Seen::Released, _) => "released",
        (Seen::Held, Some(_)) => "held",
        (Seen::Held, None) => "unreadable",
    };
    Row {
        job: job.to_string(),
        epoch: found.head.place.epoch,
        n: found.head.place.n,
        state,
        node: lease.map(|lease| lease.node.clone()),
        pid: lease.and_then(|lease| lease.process.as_ref()).map(|process| process.pid),
        run_id: lease.and_then(|lease| lease.run_id).map(|run_id| run_id.to_string()),
        written_at: lease.map(|lease| lease.written_at),
    }
}

/// The newest lease of every job that ever had one, or of one job.
pub fn list(volume: &Volume, job: Option<&Name>) -> Result<Vec<Row>> {
    let jobs = match job {
        Some(job) => vec![job.clone()],
        None => catalog::jobs_of(&volume.store.list("leases/")?),
    };
    let own = process::own();
    let mut rows = Vec::new();
    for job in jobs {
        if let Some(found) = lease::look(&*volume.store, &job, own.as_ref())? {
            rows.push(row(&job, &found));
        }
    }
    Ok(rows)
}

/// What a release came to.
#[derive(Clone, Debug, Serialize)]
pub struct Released {
    /// The job.
    pub job: String,
    /// `released`; `free` when nobody held it.
    pub outcome: &'static str,
    /// The epoch that ends here.
    pub epoch: Option<u64>,
    /// The node that held it.
    pub node: Option<String>,
}

/// Ends the lease of a job. Without `yes` only one that is certainly not used: it is watched till that is known.
///
/// The run that held it is not stopped by this, and what it does may still count.
pub fn release(
    volume: &Volume,
    job: &Name,
    node: &str,
    yes: bool,
    clock: &dyn Clock,
    monitor: &dyn Monitor,
) -> Result<Released> {
    let who = Who {
        store: Arc::clone(&volume.store),
        job: job.clone(),
        node: node.to_owned(),
        run_id: None,
        process: process::own(),
        times: lease::times(),
    };
    let found = lease::look(&*who.store, job, who.process.as_ref())?;
    let Some(found) = found.filter(|found| found.lease.as_ref().is_none_or(|lease| lease.state == State::Held)) else {
        return Ok(Released { job: job.to_string(), outcome: "free", epoch: None, node: None });
    };
    let mut epoch = found.head.place.epoch;
    if !yes {
        match lease::watch(&who, &mut Candidate::default(), clock, monitor)? {
            (Turn::Take(next), _) => epoch = next - 1,
            (_, now) => {
                let by = now.unwrap_or(found).holder();
                return Err(Error::usage(format!("the lease of {job} is in use by {by}"))
                    .with_hint("--yes releases it all the same; its run is not stopped by that, and may still count"));
            }
        }
    }
    if !lease::release_after(&who, epoch, clock)? {
        return Err(Error::new(Kind::Lost, format!("another run of {job} took the lease meanwhile")));
    }
    Ok(Released { job: job.to_string(), outcome: "released", epoch: Some(epoch), node: row(job, &found).node })
}

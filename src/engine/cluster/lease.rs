//! A lease on a volume: looking at it, taking it, renewing it and giving it back, with nothing but creates.
//!
//! The newest object of `leases/<job>/` by its name says who holds the job; it is never deleted. Older ones are deleted by
//! the holder, after it has seen that its own is the newest. So a candidate that slept may make an object of an epoch that
//! was long deleted; it looks once more after its create, finds a later one, and has not taken the lease. Were that look
//! wrong, a run would work in vain, and no more: the lease saves work, the log decides what counts.

use std::{sync::Arc, time::Duration};

use super::process;
use crate::{
    clock::Clock,
    error::{Error, Kind, Result},
    format::{
        envelope,
        layout::{lease_dir, lease_key, lease_place},
        lease::{Lease, LeaseTag, Process, State},
        volume::FORMAT_VERSION,
    },
    model::ids::{Name, Nonce, RunId},
    monitor::Monitor,
    plan::lease::{Candidate, Head, Place, Seen, Standing, Times, Turn, standing},
    volume::{Created, Store},
};

/// A create that is not answered is tried so often.
const TRY_COUNT_MAX: u32 = 3;
/// Objects one clearing deletes at most; the next one deletes more.
const CLEAR_COUNT_MAX: usize = 1000;
/// How long a lease is good for.
const TTL: Duration = Duration::from_secs(24);

/// The times of leases; tests cannot wait so long and set `BK_TEST_LEASE_MS`.
pub fn times() -> Times {
    let set = std::env::var("BK_TEST_LEASE_MS").ok().and_then(|text| text.parse::<u64>().ok());
    Times { ttl: set.map_or(TTL, Duration::from_millis) }
}

/// Who takes a lease, and of what.
#[derive(Clone)]
pub struct Who {
    /// The volume's store.
    pub store: Arc<dyn Store>,
    /// The job.
    pub job: Name,
    /// The node.
    pub node: String,
    /// The run.
    pub run_id: Option<RunId>,
    /// This process.
    pub process: Option<Process>,
    /// How long leases are good for.
    pub times: Times,
}

/// The newest lease object of a job.
pub struct Found {
    /// What follows from it.
    pub head: Head,
    /// What it says; `None` when it cannot be read.
    pub lease: Option<Lease>,
    /// Keys of all objects, sorted.
    keys: Vec<String>,
}

impl Found {
    /// The holder, for messages.
    pub fn holder(&self) -> String {
        match &self.lease {
            None => "somebody".to_owned(),
            Some(lease) => match &lease.process {
                Some(process) => format!("node {} (process {})", lease.node, process.pid),
                None => format!("node {}", lease.node),
            },
        }
    }
}

/// Looks at the newest object; `own` tells whether its holder's process is gone.
pub fn look(store: &dyn Store, job: &Name, own: Option<&Process>) -> Result<Option<Found>> {
    let dir = lease_dir(job);
    let mut keys: Vec<String> = store.list(&dir)?.into_iter().map(|item| item.key).collect();
    keys.retain(|key| key.strip_prefix(&dir).and_then(lease_place).is_some());
    let Some((epoch, n)) = keys.last().and_then(|key| lease_place(key.strip_prefix(&dir)?)) else { return Ok(None) };
    let lease = match read(store, job, epoch, n) {
        Ok(lease) => Some(lease),
        // Deleted since, damaged, or of a newer bk: somebody holds it, till it is not renewed.
        Err(e) if e.kind() == Kind::Integrity || store.head(&lease_key(job, epoch, n))?.is_some() => None,
        Err(e) => return Err(e),
    };
    let is_gone = |lease: &Lease| match (own, &lease.process) {
        (Some(own), Some(other)) => process::is_gone(own, other),
        _ => false,
    };
    let seen = match &lease {
        Some(lease) if lease.state == State::Released => Seen::Released,
        Some(lease) if is_gone(lease) => Seen::Dead,
        _ => Seen::Held,
    };
    Ok(Some(Found { head: Head { place: Place { epoch, n }, seen }, lease, keys }))
}

fn read(store: &dyn Store, job: &Name, epoch: u64, n: u64) -> Result<Lease> {
    let key = lease_key(job, epoch, n);
    let lease = Lease::decode(&store.read(&key, envelope::JSON_LEN_MAX)?).map_err(|e| e.context(&key))?;
    if (&lease.job, lease.epoch, lease.n) != (job, epoch, n) {
        return Err(Error::integrity(format!("{key} holds the lease {}/{}.{}", lease.job, lease.epoch, lease.n)));
    }
    Ok(lease)
}

/// How a candidate fared.
pub enum Acquired {
    /// It holds the lease.
    Held(Held),
    /// Another was seen at work: who.
    Skip(String),
}

/// Takes the lease, or waits till its holder was seen alive.
pub fn acquire(who: &Who, clock: &dyn Clock, monitor: &dyn Monitor) -> Result<Acquired> {
    let mut candidate = Candidate::default();
    loop {
        let (turn, found) = watch(who, &mut candidate, clock, monitor)?;
        let Turn::Take(epoch) = turn else {
            return Ok(Acquired::Skip(found.map_or_else(|| "somebody".to_owned(), |found| found.holder())));
        };
        let mut held = Held { who: who.clone(), epoch, n: 0, nonce: Nonce::new()?, confirmed_ms: clock.boot_ms() };
        let is_made = held.put(0, State::Held, clock)?;
        // What is newer than an object that was just made was there before: this epoch is long over.
        let found = look(&*who.store, &who.job, who.process.as_ref())?;
        let is_newest = found.as_ref().is_none_or(|found| found.head.place <= held.place());
        if is_made && is_newest {
            held.clear(found.as_ref());
            return Ok(Acquired::Held(held));
        }
        candidate.beaten();
    }
}

/// Looks at a lease till it is clear whose turn it is: never [`Turn::Wait`].
pub fn watch(
    who: &Who,
    candidate: &mut Candidate,
    clock: &dyn Clock,
    monitor: &dyn Monitor,
) -> Result<(Turn, Option<Found>)> {
    loop {
        if let Some(signal) = monitor.interrupted() {
            return Err(Error::new(Kind::Signal(signal), "interrupted"));
        }
        let found = look(&*who.store, &who.job, who.process.as_ref())?;
        match candidate.see(found.as_ref().map(|found| found.head), clock.boot_ms(), who.times) {
            Turn::Wait => clock.pause(who.times.look_every()),
            turn => return Ok((turn, found)),
        }
    }
}

/// Gives back a lease that somebody else holds, or held: the next epoch is made, and is free. False when another took it meanwhile.
pub fn release_after(who: &Who, epoch: u64, clock: &dyn Clock) -> Result<bool> {
    let mut made = Held { who: who.clone(), epoch: epoch + 1, n: 0, nonce: Nonce::new()?, confirmed_ms: 0 };
    made.put(0, State::Released, clock)
}

/// A lease that is held, till another takes it.
pub struct Held {
    who: Who,
    epoch: u64,
    /// The newest object it made.
    n: u64,
    nonce: Nonce,
    /// When the last create that was confirmed was begun, by the boot-time clock.
    confirmed_ms: u64,
}

impl Held {
    /// The lease's number, which only rises.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// When it was confirmed last, by the boot-time clock.
    pub fn confirmed_ms(&self) -> u64 {
        self.confirmed_ms
    }

    /// Who took it.
    pub fn who(&self) -> &Who {
        &self.who
    }

    fn place(&self) -> Place {
        Place { epoch: self.epoch, n: self.n }
    }

    /// Makes the next object, and says how the holder stands then.
    pub fn renew(&mut self, clock: &dyn Clock) -> Result<(Standing, Option<Found>)> {
        let begun = clock.boot_ms();
        if self.put(self.n + 1, State::Held, clock)? {
            self.n += 1;
        }
        let (standing, found) = self.stand()?;
        if standing == Standing::Held {
            self.confirmed_ms = begun;
            self.clear(found.as_ref());
        }
        Ok((standing, found))
    }

    /// Says how the holder stands, and makes nothing.
    pub fn stand(&self) -> Result<(Standing, Option<Found>)> {
        let found = look(&*self.who.store, &self.who.job, self.who.process.as_ref())?;
        Ok((standing(self.epoch, found.as_ref().map(|found| found.head)), found))
    }

    /// Gives it back, so that the next one need not wait.
    pub fn release(mut self, clock: &dyn Clock) -> Result<()> {
        // A renewal that was not answered may have been made, or be made yet: then the number after it.
        for n in self.n + 1..=self.n + u64::from(TRY_COUNT_MAX) {
            if self.put(n, State::Released, clock)? {
                let last = std::mem::replace(&mut self.n, n);
                return self.who.store.delete(&lease_key(&self.who.job, self.epoch, last));
            }
        }
        Ok(())
    }

    /// Makes object `n`; false when another object has its place. What is not answered is settled by the nonce.
    fn put(&mut self, n: u64, state: State, clock: &dyn Clock) -> Result<bool> {
        let (store, job) = (&self.who.store, &self.who.job);
        let lease = Lease {
            r#type: LeaseTag::Lease,
            format_version: FORMAT_VERSION,
            job: job.clone(),
            epoch: self.epoch,
            n,
            state,
            nonce: self.nonce.clone(),
            run_id: self.who.run_id,
            node: self.who.node.clone(),
            process: self.who.process.clone(),
            written_at: clock.now()?,
        };
        let (key, bytes) = (lease_key(job, self.epoch, n), lease.encode()?);
        let mut tries = 0;
        loop {
            tries += 1;
            let failure = match store.put_new(&key, &bytes) {
                Ok(Created::New) => return Ok(true),
                Ok(Created::Exists) => None,
                Err(e) => Some(e),
            };
            match (store.head(&key), failure) {
                (Ok(Some(_)), _) => {
                    let there = read(&**store, job, self.epoch, n);
                    return Ok(there.is_ok_and(|there| (&there.nonce, there.state) == (&self.nonce, state)));
                }
                // It was there and is not: deleted, so another is ahead.
                (Ok(None), None) => return Ok(false),
                (Ok(None), Some(e)) if tries >= TRY_COUNT_MAX || e.kind() == Kind::NoSpace => return Err(e),
                (Ok(None), Some(_)) => {}
                (Err(_), Some(e)) | (Err(e), None) => return Err(e),
            }
        }
    }

    /// Deletes what is older than the newest object, when that is its own. What cannot be deleted now can be later.
    fn clear(&self, found: Option<&Found>) {
        let own = lease_key(&self.who.job, self.epoch, self.n);
        let Some(found) = found.filter(|found| found.keys.last() == Some(&own)) else { return };
        let older: Vec<String> = found.keys.iter().filter(|key| **key < own).take(CLEAR_COUNT_MAX).cloned().collect();
        let _ = self.who.store.delete_all(&older);
    }
}

//! Whose turn it is to work on a job: what a candidate and a holder make of the lease objects they see.
//!
//! A lease saves work and nothing else: that two runs never both count is the log's rule ([`super::commit`]), so every
//! answer here may be wrong without harm. Clocks of two machines are never compared: a candidate counts on its own, from
//! when it first saw the object that is there now.

use std::time::Duration;

/// Looks at a lease before a candidate whose clock does not go gives up.
const LOOK_COUNT_MAX: u32 = 200;

/// How long a lease is good for, and what follows from that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// A lease that was not renewed for so long may be gone: the unit of all others.
    pub ttl: Duration,
}

impl Times {
    /// A holder renews so often.
    pub fn renew_every(self) -> Duration {
        self.ttl / 3
    }

    /// A holder counts on its lease for so long after the last renewal that was confirmed.
    pub fn sure_for(self) -> Duration {
        self.ttl * 2 / 3
    }

    /// A candidate takes a lease that it has seen unchanged for so long.
    pub fn free_after(self) -> Duration {
        self.ttl * 3 / 2
    }

    /// A candidate looks so often: so it knows within ten seconds whether the lease is renewed.
    pub fn look_every(self) -> Duration {
        self.ttl / 32
    }
}

/// Where a lease object stands among those of its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// How often the lease has changed hands.
    pub epoch: u64,
    /// Its number in the epoch.
    pub n: u64,
}

/// What the newest lease object says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is held, or cannot be read.
    Held,
    /// It was given back.
    Released,
    /// Its holder is a process of this machine, and is no more.
    Dead,
}

/// The newest lease object of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Where it stands.
    pub place: Place,
    /// What it says.
    pub seen: Seen,
}

/// What a candidate does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It makes the first object of this epoch.
    Take(u64),
    /// It leaves the job to the holder, who was seen alive.
    Skip,
    /// It looks again after a while.
    Wait,
    /// It has looked too often: its clock does not go.
    GiveUp,
}

/// One who wants the lease.
#[derive(Clone, Copy, Debug, Default)]
pub struct Candidate {
    /// The object that was there first, and when it was seen, ms.
    first: Option<(Place, u64)>,
    /// Another took the lease while this one looked on.
    is_beaten: bool,
    looks: u32,
}

impl Candidate {
    /// What follows from the newest object at `now`, ms of a clock that nobody sets.
    pub fn see(&mut self, head: Option<Head>, now: u64, times: Times) -> Turn {
        self.looks += 1;
        if self.looks > LOOK_COUNT_MAX {
            return Turn::GiveUp;
        }
        let Some(head) = head else { return Turn::Take(1) };
        let next = Turn::Take(head.place.epoch + 1);
        if head.seen != Seen::Held {
            return next;
        }
        match self.first {
            _ if self.is_beaten => Turn::Skip,
            Some((first, _)) if head.place > first => Turn::Skip,
            Some((first, at)) if head.place == first => {
                let unchanged = Duration::from_millis(now.saturating_sub(at));
                if unchanged >= times.free_after() { next } else { Turn::Wait }
            }
            // The first look; or a listing that is older than the one before.
            _ => {
                self.first = Some((head.place, now));
                Turn::Wait
            }
        }
    }

    /// Another made the object this one tried to make.
    pub fn beaten(&mut self) {
        self.is_beaten = true;
    }
}

/// How a holder stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The lease is its own.
    Held,
    /// Another holds it by a later epoch: what this one does now is done twice.
    Passed,
    /// It was taken and given back: nobody holds it, and what this one does may still count.
    Free,
}

/// How the holder of `epoch` stands when `head` is the newest object.
pub fn standing(epoch: u64, head: Option<Head>) -> Standing {
    match head {
        Some(head) if head.place.epoch > epoch => match head.seen {
            Seen::Held => Standing::Passed,
            Seen::Released | Seen::Dead => Standing::Free,
        },
        _ => Standing::Held,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times { ttl: Duration::from_secs(24) };

    fn head(epoch: u64, n: u64, seen: Seen) -> Option<Head> {
        Some(Head { place: Place { epoch, n }, seen })
    }

    #[test]
    fn what_is_free_is_taken_at_once() {
        for (found, epoch) in [(None, 1), (head(3, 9, Seen::Released), 4), (head(7, 0, Seen::Dead), 8)] {
            assert_eq!(Candidate::default().see(found, 0, TIMES), Turn::Take(epoch));
        }
    }

    #[test]
    fn a_renewal_is_seen_within_ten_seconds() {
        assert!(TIMES.renew_every() + TIMES.look_every() < Duration::from_secs(10));
        let mut candidate = Candidate::default();
        assert_eq!(candidate.see(head(3, 1, Seen::Held), 1000, TIMES), Turn::Wait);
        assert_eq!(candidate.see(head(3, 1, Seen::Held), 9000, TIMES), Turn::Wait);
        assert_eq!(candidate.see(head(3, 2, Seen::Held), 9750, TIMES), Turn::Skip);
        // Given back while it was looked at, and taken by another.
        let mut candidate = Candidate::default();
        assert_eq!(candidate.see(head(3, 1, Seen::Held), 0, TIMES), Turn::Wait);
        assert_eq!(candidate.see(head(3, 2, Seen::Released), 9, TIMES), Turn::Take(4));
        candidate.beaten();
        assert_eq!(candidate.see(head(4, 0, Seen::Held), 10, TIMES), Turn::Skip);
        assert_eq!(candidate.see(head(4, 1, Seen::Released), 11, TIMES), Turn::Take(5));
    }

    #[test]
    fn what_does_not_change_is_free_by_ones_own_clock() {
        let mut candidate = Candidate::default();
        let old = head(3, 1, Seen::Held);
        assert_eq!(candidate.see(old, 50_000, TIMES), Turn::Wait);
        // A clock that goes back only waits longer; a listing that is older than the last one is no renewal.
        assert_eq!(candidate.see(old, 10, TIMES), Turn::Wait);
        assert_eq!(candidate.see(old, 85_999, TIMES), Turn::Wait);
        assert_eq!(candidate.see(old, 86_000, TIMES), Turn::Take(4));
        let mut candidate = Candidate::default();
        assert_eq!(candidate.see(old, 0, TIMES), Turn::Wait);
        assert_eq!(candidate.see(head(3, 0, Seen::Held), 40_000, TIMES), Turn::Wait);
        // A clock that stands still has an end.
        let mut candidate = Candidate::default();
        let turns: Vec<Turn> = (0..1000).map(|_| candidate.see(old, 5, TIMES)).collect();
        assert_eq!((turns[150], turns[999]), (Turn::Wait, Turn::GiveUp));
    }

    #[test]
    fn a_holder_is_passed_only_by_one_who_holds() {
        assert_eq!(standing(3, head(3, 9, Seen::Held)), Standing::Held);
        assert_eq!(standing(3, head(2, 9, Seen::Held)), Standing::Held);
        assert_eq!(standing(3, None), Standing::Held);
        assert_eq!(standing(3, head(4, 0, Seen::Held)), Standing::Passed);
        assert_eq!(standing(3, head(4, 1, Seen::Released)), Standing::Free);
        assert_eq!(standing(3, head(4, 1, Seen::Dead)), Standing::Free);
    }
}

//! Whether a job is due: `min_interval`, by the stamps in its log and the clock of the store.
//!
//! Asked by the log that a run's commit builds on. A snapshot that comes after it ends the run there, so two runs that both
//! found the job due do not both count.

use super::log::JobLog;
use crate::{
    error::Result,
    format::record::Snapshot,
    model::time::{Instant, Lifetime},
};

/// A stamp may be so far ahead of the clock: two clocks that are set well differ by less. One that is further ahead was set
/// by a wrong clock and says nothing, else one bad clock would stop a job's backups for as long as it was ahead.
const AHEAD_SECONDS_MAX: i64 = 300;

/// Whether a job is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing stands against a snapshot.
    Yes,
    /// This snapshot is younger than the interval; the job is due again then.
    Fresh(u64, Instant),
}

/// When a snapshot began, by the store's clock where that is known.
pub fn began_at(snapshot: &Snapshot) -> Instant {
    snapshot.store_at.unwrap_or(snapshot.taken_at)
}

/// Whether a stamp is too far ahead of `now` to be believed.
pub fn is_ahead(stamp: Instant, now: Instant) -> bool {
    stamp.as_second() > now.as_second().saturating_add(AHEAD_SECONDS_MAX)
}

/// Asks at `now` whether any live snapshot began less than `interval` ago. `damage` says what is missing of a snapshot: one
/// that is damaged is no reason to take none.
pub fn due(
    log: &JobLog,
    interval: Lifetime,
    now: Instant,
    mut damage: impl FnMut(&Snapshot) -> Result<Option<String>>,
) -> Result<Due> {
    for snapshot in log.live().rev().filter(|snapshot| !is_ahead(began_at(snapshot), now)) {
        let Some(due_at) = interval.after(began_at(snapshot))? else { continue };
        if due_at > now && is_whole(log, snapshot, &mut damage)? {
            return Ok(Due::Fresh(snapshot.seq, due_at));
        }
    }
    Ok(Due::Yes)
}

fn is_whole(
    log: &JobLog,
    snapshot: &Snapshot,
    damage: &mut dyn FnMut(&Snapshot) -> Result<Option<String>>,
) -> Result<bool> {
    let Ok(chain) = log.chain(snapshot) else { return Ok(false) };
    for member in &chain {
        if damage(member)?.is_some() {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind};
    use crate::plan::log::tests::{DAY, Made, day};

    fn at(days: i64, seconds: i64) -> Instant {
        Instant::from_second(day(days).as_second() + seconds).unwrap()
    }

    fn asked(made: &Made, now: Instant) -> Due {
        due(&made.log, "20h".parse().unwrap(), now, |_| Ok(None)).unwrap()
    }

    #[test]
    fn a_young_snapshot_stops_another_till_it_is_old_enough() {
        let mut made = Made::new();
        assert_eq!(asked(&made, day(1)), Due::Yes);
        made.snapshot(0, None, None);
        made.snapshot(1, Some(1), None);
        let due_at = at(2, 20 * 3600);
        for now in [at(2, 0), at(2, 5), at(2, 20 * 3600 - 1)] {
            assert_eq!(asked(&made, now), Due::Fresh(2, due_at));
        }
        assert_eq!(asked(&made, due_at), Due::Yes);
        // One that was expired is none.
        made.expire(&[2]);
        assert_eq!(asked(&made, at(2, 5)), Due::Yes);
    }

    #[test]
    fn a_stamp_ahead_of_the_clock_does_not_stop_it_for_ever() {
        let mut made = Made::new();
        made.snapshot(0, None, None);
        assert_eq!(asked(&made, at(1, -300)), Due::Fresh(1, at(1, 20 * 3600)), "a little ahead");
        assert_eq!(asked(&made, at(1, -301)), Due::Yes, "too far ahead");
        // The store's stamp counts, whatever the node's clock said.
        made.log.states[0].snapshot.store_at = Some(at(1, DAY));
        assert_eq!(asked(&made, at(2, 3600)), Due::Fresh(1, at(2, 20 * 3600)));
        // Of two clocks that differ, the one that says it is young is believed: any of the snapshots counts.
        made.snapshot(0, None, None);
        made.log.states[1].snapshot.store_at = Some(at(0, 0));
        assert_eq!(asked(&made, at(2, 3600)), Due::Fresh(1, at(2, 20 * 3600)));
    }

    #[test]
    fn what_is_damaged_does_not_count() {
        let mut made = Made::new();
        made.snapshot(0, None, None);
        made.snapshot(1, Some(1), None);
        let ask = |bad: u64| {
            let damage = |one: &Snapshot| Ok((one.seq == bad).then(|| "gone".to_owned()));
            due(&made.log, "30d".parse().unwrap(), at(2, 60), damage).unwrap()
        };
        assert!(matches!(ask(2), Due::Fresh(1, _)));
        assert_eq!(ask(1), Due::Yes, "the base of one, and the other");
        let failed = |_: &Snapshot| Err(Error::new(Kind::Volume, "gone"));
        assert!(due(&made.log, "30d".parse().unwrap(), at(2, 60), failed).is_err(), "no answer is no no");
    }
}

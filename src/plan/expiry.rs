//! Which snapshots of a job may go now, and why the others stay.
//!
//! Invariant: what stays is whole. A snapshot goes only when no snapshot that stays needs it, and some usable chain
//! always stays, unless that was waived.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::log::{JobLog, State};
use crate::{
    error::{Error, Kind, Result},
    model::time::Instant,
};

/// Clocks of nodes may differ by this much, seconds; a stamp further ahead of now is a wrong clock.
const SKEW_SECONDS_MAX: i64 = 300;
/// More than one in this many of a job's snapshots at once wants a yes; one that others of them need goes with these, and does not count.
const SHARE: usize = 5;

/// What the plan is made for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Now.
    pub now: Instant,
    /// The last usable chain may go, too.
    pub allow_last: bool,
    /// Any share of the snapshots may go at once.
    pub yes: bool,
}

/// What happens to a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "fate", rename_all = "kebab-case")]
pub enum Fate {
    /// It goes.
    Go,
    /// It is past its time, but these live snapshots need it.
    Held {
        /// Their seqs.
        by: Vec<u64>,
    },
    /// It is past its time, but belongs to the last usable chain of the job.
    LastChain,
    /// It stays until the hold of this record is released.
    Hold {
        /// The record's seq.
        record: u64,
    },
    /// Its time has not come.
    NotYet,
    /// It never goes by itself.
    Never,
}

/// A plan for one job.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What happens to every live snapshot, by seq.
    pub fates: BTreeMap<u64, Fate>,
    /// What goes, dependents before their bases.
    pub go: Vec<u64>,
    /// Set when too many go at once: nothing goes.
    pub refused: Option<String>,
}

/// Checks the clock against the log: ages mean nothing when either is wrong.
pub fn check_clock(log: &JobLog, now: Instant) -> Result<()> {
    match log.newest_at {
        Some(newest) if newest.0.as_second() > now.0.as_second() + SKEW_SECONDS_MAX => {
            Err(Error::new(Kind::Other, format!("the log of {} has a stamp of {newest}, but it is {now} now", log.job))
                .with_hint("a clock is wrong, or was when the record was written; nothing is deleted by such a clock"))
        }
        _ => Ok(()),
    }
}

/// Checks this node's clock against the store's, where that is known.
pub fn check_clocks(node: Instant, store: Option<Instant>) -> Result<()> {
    match store {
        Some(store) if store.0.as_second().abs_diff(node.0.as_second()) > SKEW_SECONDS_MAX.unsigned_abs() => {
            Err(Error::new(Kind::Other, format!("it is {store} by the store's clock, {node} by this node's"))
                .with_hint("a clock is wrong; nothing is deleted by such a clock"))
        }
        _ => Ok(()),
    }
}

/// What happens to every live snapshot. `unusable` are those whose objects are not all there: they are no last chain.
///
/// A damaged log and a wrong clock are errors.
pub fn plan(log: &JobLog, unusable: &BTreeSet<u64>, options: Options) -> Result<Plan> {
    log.sound()?;
    check_clock(log, options.now)?;
    let live: BTreeMap<u64, &State> = log.live_states().map(|state| (state.snapshot.seq, state)).collect();
    let mut fates: BTreeMap<u64, Fate> =
        live.iter().map(|(&seq, state)| (seq, by_itself(state, options.now))).collect();
    let chain = |seq: u64| log.chain(&live[&seq].snapshot).map(|chain| chain.iter().map(|s| s.seq).collect::<Vec<_>>());
    // A snapshot whose chain is broken needs what is left of it: nothing more is taken from it.
    let needs: BTreeMap<u64, Vec<u64>> =
        live.keys().map(|&seq| (seq, chain(seq).unwrap_or_else(|_| bases(&live, seq)))).collect();
    let stays = |fates: &BTreeMap<u64, Fate>, seq: u64| fates[&seq] != Fate::Go;
    let is_usable = |seq: u64| chain(seq).is_ok_and(|chain| !chain.iter().any(|member| unusable.contains(member)));
    if !options.allow_last && !live.keys().any(|&seq| stays(&fates, seq) && is_usable(seq)) {
        // The newest that is usable; when none is, the newest at all.
        let last = live.keys().rev().find(|&&seq| is_usable(seq)).or_else(|| live.keys().next_back());
        for member in last.into_iter().flat_map(|seq| &needs[seq]) {
            if fates[member] == Fate::Go {
                fates.insert(*member, Fate::LastChain);
            }
        }
    }
    // What stays by itself holds all below it; what is held holds nothing that its holder does not.
    let holders: Vec<u64> = live.keys().copied().filter(|&seq| stays(&fates, seq)).collect();
    for holder in holders {
        for member in needs[&holder].iter().filter(|&&member| member != holder) {
            match fates.get_mut(member) {
                Some(fate @ Fate::Go) => *fate = Fate::Held { by: vec![holder] },
                Some(Fate::Held { by }) => by.push(holder),
                _ => {}
            }
        }
    }
    let go: Vec<u64> = live.keys().rev().copied().filter(|seq| fates[seq] == Fate::Go).collect();
    // One at a time is what a daily run of a short series comes to.
    let goes = |seq: u64| fates.get(&seq) == Some(&Fate::Go);
    let going = if options.yes || go.len() < 2 { 0 } else { tops(&live, goes) };
    let all = if going < 2 { 0 } else { tops(&live, |seq| live.contains_key(&seq)) };
    let refused = (going > 1 && going * SHARE > all).then(|| {
        let chains = if all < live.len() { " (a chain, or its end, counts as one)" } else { "" };
        format!("{going} of {all} snapshots of {} would go at once, more than 20 %{chains}", log.job)
    });
    Ok(Plan { fates, go, refused })
}

/// How many of the live snapshots with `is` are the base of no other of them.
fn tops(live: &BTreeMap<u64, &State>, is: impl Fn(u64) -> bool) -> usize {
    let (mut count, mut bases) = (0, Vec::new());
    for state in live.values().filter(|state| is(state.snapshot.seq)) {
        count += 1;
        bases.extend(state.snapshot.base.as_ref().map(|base| base.seq).filter(|&base| is(base)));
    }
    bases.sort_unstable();
    bases.dedup();
    count - bases.len()
}

fn by_itself(state: &State, now: Instant) -> Fate {
    match (&state.hold, state.expires_at) {
        (Some(mark), _) => Fate::Hold { record: mark.seq },
        (None, None) => Fate::Never,
        (None, Some(at)) if at > now => Fate::NotYet,
        (None, Some(_)) => Fate::Go,
    }
}

/// The bases of `seq` as far as they are there.
fn bases(live: &BTreeMap<u64, &State>, seq: u64) -> Vec<u64> {
    let mut found = vec![seq];
    let mut at = live.get(&seq);
    while let Some(base) = at.and_then(|state| state.snapshot.base.as_ref()) {
        found.push(base.seq);
        at = live.get(&base.seq).filter(|state| state.snapshot.seq < found[found.len() - 2]);
    }
    found
}

/// Facts about a snapshot, one a line: why it is still here, or why it is not.
pub fn why(log: &JobLog, state: &State, unusable: &BTreeSet<u64>, now: Instant) -> Vec<String> {
    let (job, snapshot) = (&log.job, &state.snapshot);
    let mut facts = vec![format!("taken {} by {}, level {}", snapshot.taken_at, snapshot.node, snapshot.level)];
    if let Some(from) = snapshot.promoted_from {
        facts.push(format!("level {from} was asked for, but it had no usable base"));
    }
    if let Some(base) = &snapshot.base {
        facts.push(format!("needs {job}/{} as its base", base.seq));
    }
    if let Some(mark) = &state.expired {
        facts.push(format!("expired {} by record {} of {}", mark.at, mark.seq, mark.node));
        return facts;
    }
    let dependents: Vec<String> = log
        .live()
        .filter(|s| s.base.as_ref().is_some_and(|base| base.seq == snapshot.seq))
        .map(|s| format!("{job}/{}", s.seq))
        .collect();
    if !dependents.is_empty() {
        facts.push(format!("base of {}", dependents.join(", ")));
    }
    let by = state.set.as_ref().map_or_else(String::new, |mark| format!(", set {} by record {}", mark.at, mark.seq));
    facts.push(match state.expires_at {
        Some(at) => format!("expires {at}{by}"),
        None => format!("never expires{by}"),
    });
    if let Some(mark) = &state.hold {
        let comment = mark
            .comment
            .as_ref()
            .map_or_else(String::new, |text| format!(": {}", crate::model::show::name(text.as_bytes())));
        facts.push(format!("on hold since {} by record {} of {}{comment}", mark.at, mark.seq, mark.node));
    }
    let options = Options { now, allow_last: false, yes: true };
    facts.push(match plan(log, unusable, options) {
        Err(e) => format!("stays: {e}"),
        Ok(plan) => match &plan.fates[&snapshot.seq] {
            Fate::Go => "goes with the next `bk expire`".to_owned(),
            Fate::Held { by } => {
                let by: Vec<String> = by.iter().map(|seq| format!("{job}/{seq}")).collect();
                format!("stays: held, since {} {} it", by.join(", "), if by.len() == 1 { "needs" } else { "need" })
            }
            Fate::LastChain => "stays: it belongs to the last usable chain of the job".to_owned(),
            Fate::Hold { .. } => "stays: it is on hold".to_owned(),
            Fate::NotYet => "stays: its time has not come".to_owned(),
            Fate::Never => "stays: it never expires".to_owned(),
        },
    });
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::change::Hold;
    use crate::plan::log::tests::{Made, day};

    const YES: Options = Options { now: Instant(jiff::Timestamp::UNIX_EPOCH), allow_last: false, yes: true };

    fn planned(made: &Made, on: i64) -> Plan {
        plan(&made.log, &BTreeSet::new(), Options { now: day(on), ..YES }).unwrap()
    }

    /// Level 0 on record 1, level 1 on record 2, level 2 on record 3, another level 0 on record 4.
    fn two_chains() -> Made {
        let mut made = Made::new();
        made.snapshot(0, None, Some(1));
        made.snapshot(1, Some(1), Some(1));
        made.snapshot(2, Some(2), Some(20));
        made.snapshot(0, None, Some(100));
        made
    }

    #[test]
    fn what_is_needed_is_held() {
        let made = two_chains();
        let held = |by: u64| Fate::Held { by: vec![by] };
        let plan = planned(&made, 10);
        assert!(plan.go.is_empty());
        assert_eq!(plan.fates.values().collect::<Vec<_>>(), [&held(3), &held(3), &Fate::NotYet, &Fate::NotYet]);
        assert_eq!(planned(&made, 30).go, [3, 2, 1], "dependents before bases");
    }

    #[test]
    fn a_hold_holds_all_below_it() {
        let mut made = two_chains();
        made.change(Hold { snapshot: made.named(2), comment: None });
        let plan = planned(&made, 30);
        assert_eq!(plan.go, [3]);
        assert_eq!(plan.fates[&2], Fate::Hold { record: 5 });
        assert_eq!(plan.fates[&1], Fate::Held { by: vec![2] });
    }

    #[test]
    fn the_last_usable_chain_stays() {
        let mut made = two_chains();
        assert_eq!(planned(&made, 200).go, [3, 2, 1], "the newest is enough");
        assert_eq!(planned(&made, 200).fates[&4], Fate::LastChain);
        let waived = Options { now: day(200), allow_last: true, yes: true };
        assert_eq!(plan(&made.log, &BTreeSet::new(), waived).unwrap().go, [4, 3, 2, 1]);
        // What is there, but damaged, is no backup.
        let damaged = plan(&made.log, &BTreeSet::from([4]), Options { now: day(50), ..YES }).unwrap();
        assert!(damaged.go.is_empty(), "{damaged:?}");
        assert_eq!(damaged.fates[&3], Fate::LastChain);
        assert_eq!(damaged.fates[&1], Fate::LastChain, "a member of it, too");
        let all: BTreeSet<u64> = (1..=4).collect();
        assert_eq!(plan(&made.log, &all, Options { now: day(200), ..YES }).unwrap().go, [3, 2, 1]);
        made.snapshot(0, None, None);
        assert_eq!(planned(&made, 200).go, [4, 3, 2, 1]);
    }

    #[test]
    fn more_than_a_fifth_at_once_wants_a_yes() {
        let mut made = Made::new();
        for n in 0..10 {
            made.snapshot(0, None, (n < 3).then_some(1));
        }
        let no = |now| Options { now: day(now), allow_last: false, yes: false };
        made.log.states[2].expires_at = Some(day(50));
        assert!(plan(&made.log, &BTreeSet::new(), no(20)).unwrap().refused.is_none(), "2 of 10");
        assert!(plan(&made.log, &BTreeSet::new(), no(60)).unwrap().refused.unwrap().contains("3 of 10"));
        assert!(planned(&made, 60).refused.is_none());
        let mut made = Made::new();
        made.snapshot(0, None, Some(1));
        made.snapshot(0, None, None);
        assert!(plan(&made.log, &BTreeSet::new(), no(20)).unwrap().refused.is_none(), "1 of 2");
    }

    #[test]
    fn a_chain_that_goes_whole_counts_as_one() {
        let no = |now| Options { now: day(now), allow_last: false, yes: false };
        // Two chains of seven levels, and the first level of a third one, as in two weeks of levels 0 to 6.
        let weeks = |expires: [i64; 2]| {
            let mut made = Made::new();
            for (chain, on) in expires.into_iter().enumerate() {
                made.snapshot(0, None, Some(on));
                for level in 1..7 {
                    made.snapshot(level, Some(chain as u64 * 7 + u64::from(level)), Some(on));
                }
            }
            made.snapshot(0, None, None);
            made
        };
        let planned = plan(&weeks([20, 40]).log, &BTreeSet::new(), no(30)).unwrap();
        assert_eq!((planned.go.len(), planned.refused), (7, None));
        let refused = plan(&weeks([20, 20]).log, &BTreeSet::new(), no(60)).unwrap().refused.unwrap();
        assert!(refused.contains("2 of 3 snapshots") && refused.contains("counts as one"), "{refused}");
    }

    #[test]
    fn a_wrong_clock_and_a_damaged_log_stop_everything() {
        let made = two_chains();
        assert!(plan(&made.log, &BTreeSet::new(), Options { now: day(3), ..YES }).is_err(), "runs backwards");
        let mut made = two_chains();
        made.log.faults.push(Error::integrity("torn"));
        assert!(plan(&made.log, &BTreeSet::new(), Options { now: day(30), ..YES }).is_err());
    }

    #[test]
    fn facts() {
        let mut made = two_chains();
        made.change(Hold { snapshot: made.named(3), comment: Some("audit".to_owned()) });
        let facts =
            |made: &Made, seq| why(&made.log, made.log.state(seq).unwrap(), &BTreeSet::new(), day(300)).join("\n");
        assert!(facts(&made, 1).contains("base of db/2") && facts(&made, 1).contains("held, since db/3 need"));
        assert!(facts(&made, 3).contains("record 5 of n1: audit"));
        made.expire(&[4]);
        assert!(facts(&made, 4).contains("by record 6"));
    }
}

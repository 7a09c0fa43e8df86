//! What a run does when another record took the seq it aimed at: the rule that makes deleting safe.
//!
//! The run chose its base by the log as it was at its start. A record since then that makes the choice wrong (another
//! snapshot) or takes away what the run builds on (its base, its own objects) ends it; any other only moves its aim.

use crate::format::record::{Record, Snapshot};

/// What follows from the records since the start of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its own record is there, under this seq: a create that was answered with an error, or sent twice, was made.
    Own(u64),
    /// The run is lost: why, and by which record.
    Lost {
        /// The record's number.
        by: u64,
        /// What it did.
        why: &'static str,
    },
    /// Nothing stands against it: it aims at the next free seq.
    Aim,
}

/// Judges `mine`, whose base has the members `chain` (seqs), by all records since the run read the log, in order.
pub fn judge(mine: &Snapshot, chain: &[u64], between: &[Record]) -> Verdict {
    if let Some(own) = between.iter().find(|record| *record.common().nonce == mine.nonce) {
        return Verdict::Own(own.common().seq);
    }
    for record in between {
        if let Some(why) = conflict(mine, chain, record) {
            return Verdict::Lost { by: record.common().seq, why };
        }
    }
    Verdict::Aim
}

fn conflict(mine: &Snapshot, chain: &[u64], record: &Record) -> Option<&'static str> {
    match record {
        Record::Snapshot(other) => match (&mine.copied_from, &other.copied_from) {
            (None, _) => Some("is another run's snapshot"),
            (Some(mine), Some(other)) if mine.is_same(other) => Some("is another copy of the same snapshot"),
            // The base of a copy was not chosen by the end of the log: another snapshot takes nothing from it.
            (Some(_), _) => None,
        },
        Record::Expire(change) => {
            let names = change.what.snapshots.iter().any(|named| chain.contains(&named.seq));
            names.then_some("expired what this run builds on")
        }
        Record::Sweep(change) => change.what.runs.iter().any(|name| name.0 == mine.run_id).then_some("swept this run"),
        Record::SetExpiry(_) | Record::Hold(_) | Record::Release(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::change::{Expire, Hold, RunName, Sweep};
    use crate::format::record::CopiedFrom;
    use crate::model::{
        digest::Digest,
        ids::{Nonce, RunId},
    };
    use crate::plan::log::tests::Made;

    #[test]
    fn only_what_touches_the_run_ends_it() {
        let mut made = Made::new();
        for (level, base) in [(0, None), (1, Some(1)), (0, None)] {
            made.snapshot(level, base, None);
        }
        let state = |made: &Made, seq| made.log.state(seq).unwrap().snapshot.clone();
        let mine = {
            let mut mine = state(&made, 2);
            mine.seq = 4;
            mine
        };
        let record = |made: &mut Made, what: &str| {
            use crate::format::{change::Change, change::What, volume::FORMAT_VERSION};
            fn of<W: What>(made: &Made, what: W) -> Record {
                W::record(Change {
                    format_version: FORMAT_VERSION,
                    job: made.log.job.clone(),
                    node: "n2".to_owned(),
                    nonce: Nonce::new().unwrap(),
                    seq: 4,
                    prev: made.log.head.digest,
                    written_at: crate::plan::log::tests::day(4),
                    what,
                })
            }
            match what {
                "base" => of(made, Expire { snapshots: vec![made.named(3), made.named(1)] }),
                "other" => of(made, Expire { snapshots: vec![made.named(3)] }),
                "mine" => of(made, Sweep { runs: vec![RunName(mine.run_id)] }),
                "swept" => of(made, Sweep { runs: vec![RunName(RunId::new(5).unwrap())] }),
                _ => of(made, Hold { snapshot: made.named(1), comment: None }),
            }
        };
        let between = |made: &mut Made, all: &[&str]| all.iter().map(|what| record(made, what)).collect::<Vec<_>>();
        for harmless in [&[][..], &["other"], &["swept", "hold"]] {
            assert_eq!(judge(&mine, &[1], &between(&mut made, harmless)), Verdict::Aim, "{harmless:?}");
        }
        for fatal in [&["base"][..], &["hold", "base"], &["mine"], &["other", "mine"]] {
            let verdict = judge(&mine, &[1], &between(&mut made, fatal));
            assert!(matches!(verdict, Verdict::Lost { by: 4, .. }), "{fatal:?}");
        }
        let theirs = Record::Snapshot(Box::new(state(&made, 3)));
        assert!(matches!(judge(&mine, &[1], std::slice::from_ref(&theirs)), Verdict::Lost { by: 3, .. }));
        // To a copy another snapshot is nothing, unless it is the same one.
        let copied = |name: &str| {
            let mut copy = mine.clone();
            copy.copied_from = Some(CopiedFrom {
                volume: Nonce::try_from("0".repeat(32)).unwrap(),
                job: copy.job.clone(),
                seq: 9,
                run_id: copy.run_id,
                digest: Digest::of(name.as_bytes()),
                chain: vec![7],
            });
            copy
        };
        let others = Record::Snapshot(Box::new(Snapshot { nonce: Nonce::new().unwrap(), ..copied("b") }));
        for other in [&theirs, &others] {
            assert_eq!(judge(&copied("a"), &[1], std::slice::from_ref(other)), Verdict::Aim);
        }
        assert!(matches!(judge(&copied("b"), &[1], std::slice::from_ref(&others)), Verdict::Lost { .. }));
        for fatal in ["base", "mine"] {
            let between = between(&mut made, &[fatal]);
            assert!(matches!(judge(&copied("a"), &[1], &between), Verdict::Lost { by: 4, .. }), "{fatal}");
        }
        // The own record counts wherever it lies, whatever came after it.
        let own = Record::Snapshot(Box::new(mine.clone()));
        assert_eq!(judge(&mine, &[1], &[own, theirs]), Verdict::Own(4));
    }
}

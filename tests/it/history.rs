//! Random histories against a model: a small tree changes in every way there is, is snapshotted at all levels, snapshots are
//! held, expired, killed and damaged, and after each step all that must be there is there, exactly.
//!
//! `BK_TEST_HISTORIES=N` runs N histories, `BK_TEST_HISTORY=SEED` only this one. A failing history is made shorter by leaving
//! out steps, then shown with its seed, its steps and what they did.
//!
//! The clock of a run stands still and is turned on at will: one that is right makes all of a young tree be read again, one
//! that is ahead makes times be trusted, and by the two in turn time says nothing about what is the base.
//!
//! The model was seen to catch these faults, each put into the source once. Named is the history that failed and to how
//! many steps it was made shorter; histories are tried in order, so as many as that were enough.
//!
//! | fault | history | steps |
//! |---|---|---|
//! | unchanged is what has the same time and size (`Base::is_same` without inode and ctime) | 1 | 8 |
//! | the oldest run wins in the merge (`Merged::newest`) | 1 | 3 |
//! | a removed directory hides only its own row (`Chain::oldest_seen` is 0) | 1 | 3 |
//! | a renamed file is trusted by its inode number (`Tree::is_known` without ctime) | 0 | 4 |
//! | places are not cut at the right offset (`Located::cut`) | 1 | 2 |
//! | a further name stays one when its first name is another file (`Base::is_same` of a hard link without inode and ctime) | 10 | 4 |
//! | what changed within the tick is not read again (`Base::is_racy` is never) | 9 | 1 |
//! | the base is the newest by time, not by seq (`plan::level`) | 1 | 3 |

mod change;
mod model;
mod store;
mod world;

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use self::change::CHANGES;
use self::world::{Count, Held, Kind, Step, World};
use crate::support::rng::Rng;

/// Histories that are run when nothing else is said.
const HISTORY_COUNT: u64 = 500;
/// A failing history is run again at most this often to make it shorter.
const SHORTER_COUNT_MAX: usize = 300;

/// What is done beside changes of the tree, and how often each comes.
const ACTIONS: [(u64, Kind); 10] = [
    (60, Kind::Snapshot),
    (3, Kind::Racy),
    (6, Kind::Killed),
    (3, Kind::Damage),
    (9, Kind::SetExpiry),
    (2, Kind::Hold),
    (1, Kind::Release),
    (12, Kind::Expire),
    (2, Kind::ExpireKilled),
    (1, Kind::Define),
];
/// After one action in so many, snapshots are copied to a second volume.
const COPY_ONE_IN: u64 = 6;

fn weighted<T: Copy>(all: &[(u64, T)], rng: &mut Rng) -> T {
    let mut at = rng.below(all.iter().map(|(weight, _)| weight).sum());
    let found = all.iter().find(|(weight, _)| {
        let here = at < *weight;
        at = at.saturating_sub(*weight);
        here
    });
    found.unwrap().1
}

/// A generator of its own for each seed: those of seeds in a row give the same numbers, one further on.
fn generator(seed: u64) -> Rng {
    Rng::new(Rng::new(seed).next())
}

/// The steps of a history.
fn steps(seed: u64) -> Vec<Step> {
    // Copies are drawn apart: without them a history is what it was before there were any.
    let (mut rng, mut copies) = (generator(seed), generator(seed ^ 1 << 40));
    let mut steps = Vec::new();
    for _ in 0..5 + rng.below(9) {
        for _ in 0..rng.below(5) {
            steps.push(Step { kind: Kind::Change(weighted(&CHANGES, &mut rng)), seed: rng.next() });
        }
        steps.push(Step { kind: weighted(&ACTIONS, &mut rng), seed: rng.next() });
        if copies.below(COPY_ONE_IN) == 0 {
            steps.push(Step { kind: Kind::Copy, seed: copies.next() });
        }
    }
    steps
}

/// Runs the steps; gives what was done and what did not hold.
fn run(seed: u64, steps: &[Step]) -> (World, Held) {
    // One in eight lies in a directory, where runs can be killed for real.
    let mut world = World::new(&mut generator(!seed), seed.is_multiple_of(8));
    let all = |world: &mut World| steps.iter().try_for_each(|step| world.step(*step)).and_then(|()| world.end());
    let held = catch_unwind(AssertUnwindSafe(|| all(&mut world))).unwrap_or_else(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        Err(text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default())
    });
    (world, held)
}

/// Leaves out steps as long as what is left still fails.
fn shorter(seed: u64, mut steps: Vec<Step>) -> Vec<Step> {
    let (mut left, mut len) = (SHORTER_COUNT_MAX, steps.len().div_ceil(2));
    while len > 0 {
        let mut at = 0;
        while at < steps.len() && left > 0 {
            let mut without = steps.clone();
            without.drain(at..(at + len).min(steps.len()));
            left -= 1;
            if run(seed, &without).1.is_err() {
                steps = without;
            } else {
                at += len;
            }
        }
        len /= 2;
    }
    steps
}

fn show(seed: u64, all: Vec<Step>) -> String {
    let count = all.len();
    let steps = shorter(seed, all);
    // What depends on time may not fail again.
    let (world, held) = run(seed, &steps);
    let what = held.err().unwrap_or_else(|| "it held this time".to_owned());
    let mut text = format!("history {seed} ({} of {count} steps): {what}\n", steps.len());
    for step in &steps {
        let _ = writeln!(text, "{step:?}");
    }
    text + &world.trace.join("\n")
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn random_histories_are_as_the_model_says() {
    if let Some(seed) = number("BK_TEST_HISTORY") {
        let (world, held) = run(seed, &steps(seed));
        let trace = world.trace.join("\n");
        assert!(held.is_ok(), "{trace}\n{}", show(seed, steps(seed)));
        return println!("{trace}");
    }
    let count = number("BK_TEST_HISTORIES").unwrap_or(HISTORY_COUNT);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let (next, stop, failed) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::new(None));
    let done = Mutex::new(Count::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        return;
                    }
                    let (mut world, held) = run(seed, &steps(seed));
                    done.lock().unwrap().add(world.count);
                    if let Err(e) = held {
                        stop.store(true, Ordering::Relaxed);
                        failed.lock().unwrap().get_or_insert((seed, e, std::mem::take(&mut world.trace)));
                    }
                }
            });
        }
    });
    if let Some((seed, e, trace)) = failed.into_inner().unwrap() {
        panic!("{e}\n{}\n\nmade shorter:\n{}", trace.join("\n"), show(seed, steps(seed)));
    }
    let done = done.into_inner().unwrap();
    println!("{count} histories: {done:?}");
    // They are worth something.
    assert!(
        count < HISTORY_COUNT
            || done.increments > 2 * count
                && done.killed > 2 * done.killed_recorded
                && done.expired > count / 5
                && done.chain_max > 4
                && done.copies > count,
        "{done:?}"
    );
}

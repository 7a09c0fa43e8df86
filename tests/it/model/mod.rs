//! A state search over the log: the real catalog, plans and expiry behind a store that decides at every call who goes on,
//! and what becomes of the call. Runs, an expirer, a sweeper and a holder share one job.
//!
//! What must hold after every step is in [`check`]. Each way of doing it wrong that the rules forbid is a [`Mutant`], and the
//! search must find it: else the search proves nothing.

pub mod actors;
mod check;
mod schedule;

use std::sync::atomic::{AtomicU64, Ordering};

use actors::{Actor, World};
use rustix::thread::sched_getcpu;
use schedule::{Choices, Faults};

use crate::support::rng::Rng;
use crate::support::stay_on;

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// All rules hold.
    None,
    /// A record of one's own is taken for another's.
    NoNonce,
    /// Objects are deleted before the record says so.
    DeleteFirst,
    /// The seq to aim at is read after the parts were stored.
    SeqLate,
    /// A loser aims again without a look at the records between.
    NoBetween,
    /// A listing that failed is taken for an empty one.
    ListErrorIsEmpty,
    /// The base is the newest by time.
    BaseByTime,
    /// A create that failed is taken for one that was not made.
    ErrorIsNo,
    /// A lease that is good by its holder's clock is all that is asked before a commit.
    LeaseIsGuard,
    /// Whoever finds his seq taken has lost.
    ExistsIsLoss,
    /// Whoever finds his object there takes it for his own.
    ExistsIsWin,
    /// How old a snapshot is is told by the clock of whoever asks.
    AgeByNode,
    /// Runs without a record are swept without one, too.
    SweepUnrecorded,
}

/// One random world. The same seed makes the same one.
fn random(seed: u64, mutant: Mutant) -> Ended {
    let mut rng = Rng::new(seed);
    // Some worlds are calm, some are stormy: each finds what the other hides.
    let faults = [Faults::NONE, Faults { one_in: 60 }, Faults { one_in: 12 }][rng.below(3) as usize];
    // Half of the worlds have a round: runs that take turns by the lease and want one snapshot between them.
    let is_round = rng.below(2) == 0;
    let run = |rng: &mut Rng| if is_round { Actor::leased(rng) } else { Actor::run(rng) };
    let mut actors = vec![run(&mut rng), run(&mut rng)];
    if !is_round || rng.below(2) == 0 {
        actors.push(Actor::expirer(&mut rng));
    }
    if rng.below(2) == 0 {
        actors.push(run(&mut rng));
    }
    if is_round && rng.below(4) == 0 {
        actors.push(Actor::run(&mut rng));
    }
    if rng.below(2) == 0 {
        actors.push(Actor::Sweeper);
    }
    if rng.below(3) == 0 {
        actors.push(Actor::Holder { seq: 1 + rng.below(4) });
    }
    let world = World::new(&mut rng, mutant);
    let stickiness = 1 + rng.below(4);
    world.play(&actors, Choices::Random { rng, stickiness }, faults)
}

/// How a world ended.
pub struct Ended {
    /// What was broken, and after which steps.
    pub violation: Option<String>,
    /// Calls of the store at which another could have gone on.
    pub steps: u64,
    /// What was chosen of how many, at each choice.
    pub chosen: Vec<(usize, usize)>,
}

/// Plays the seeds `0..count` on all processors; gives the first violation and the number of steps.
fn search(count: u64, mutant: Mutant) -> (Option<(u64, String)>, u64, u64) {
    let (next, steps, played) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let work = |processor: usize| -> Option<(u64, String)> {
        stay_on(processor);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= count {
                return None;
            }
            let ended = random(seed, mutant);
            steps.fetch_add(ended.steps, Ordering::Relaxed);
            played.fetch_add(1, Ordering::Relaxed);
            if let Some(violation) = ended.violation {
                next.store(count, Ordering::Relaxed);
                return Some((seed, violation));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let found = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|n| scope.spawn(move || work(n))).collect();
        workers.into_iter().filter_map(|worker| worker.join().unwrap()).min_by_key(|(seed, _)| *seed)
    });
    (found, steps.into_inner(), played.into_inner())
}

/// Worlds of the search; `BK_TEST_MODEL_SEEDS` asks for more.
fn seeds() -> u64 {
    std::env::var("BK_TEST_MODEL_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000)
}

#[test]
fn no_schedule_breaks_the_log() {
    let (found, steps, played) = search(seeds(), Mutant::None);
    println!("{played} worlds, {steps} steps");
    if let Some((seed, violation)) = found {
        panic!("seed {seed}: {violation}");
    }
}

fn is_caught(mutant: Mutant) -> String {
    let (found, steps, played) = search(50_000, mutant);
    let Some((seed, violation)) = found else { panic!("{mutant:?} was not caught in {played} worlds, {steps} steps") };
    let first = violation.lines().next().unwrap_or("").to_owned();
    println!("{mutant:?}: caught after {played} worlds (seed {seed}): {first}");
    first
}

#[test]
fn caught_no_nonce() {
    is_caught(Mutant::NoNonce);
}

#[test]
fn caught_delete_before_the_record() {
    is_caught(Mutant::DeleteFirst);
}

#[test]
fn caught_seq_read_late() {
    is_caught(Mutant::SeqLate);
}

#[test]
fn caught_aim_again_without_reading() {
    is_caught(Mutant::NoBetween);
}

#[test]
fn caught_list_error_taken_as_empty() {
    is_caught(Mutant::ListErrorIsEmpty);
}

#[test]
fn caught_base_by_time() {
    is_caught(Mutant::BaseByTime);
}

#[test]
fn caught_error_taken_as_no() {
    is_caught(Mutant::ErrorIsNo);
}

#[test]
fn caught_lease_as_the_only_guard() {
    let violation = is_caught(Mutant::LeaseIsGuard);
    assert!(violation.contains("are of one round"), "{violation}");
}

#[test]
fn caught_exists_taken_as_loss() {
    is_caught(Mutant::ExistsIsLoss);
}

#[test]
fn caught_exists_taken_as_win() {
    is_caught(Mutant::ExistsIsWin);
}

#[test]
fn caught_age_by_the_nodes_clock() {
    is_caught(Mutant::AgeByNode);
}

#[test]
fn caught_sweep_without_a_record() {
    is_caught(Mutant::SweepUnrecorded);
}

/// Plays every interleaving of `actors` at the calls that others can see, and gives their number.
/// With `crash`, also every way in which one of them dies at one of these calls.
fn exhaust(actors: &[Actor], mutant: Mutant, crash: bool) -> Result<u64, String> {
    std::thread::scope(|scope| scope.spawn(|| exhaust_here(actors, mutant, crash)).join().unwrap())
}

fn exhaust_here(actors: &[Actor], mutant: Mutant, crash: bool) -> Result<u64, String> {
    stay_on(sched_getcpu());
    let mut script: Vec<usize> = Vec::new();
    let mut count = 0;
    loop {
        let world = World::small(mutant);
        let ended = world.play(
            actors,
            Choices::Script { script: script.clone(), at: 0, crashes: usize::from(crash) },
            Faults::NONE,
        );
        count += 1;
        if let Some(violation) = ended.violation {
            return Err(violation);
        }
        // The next script: the last choice that has another option takes it.
        let mut chosen = ended.chosen;
        while let Some(&(took, of)) = chosen.last() {
            if took + 1 < of {
                break;
            }
            chosen.pop();
        }
        let Some(last) = chosen.last_mut() else { return Ok(count) };
        last.0 += 1;
        script = chosen.into_iter().map(|(took, _)| took).collect();
    }
}

const INCREMENT: Actor = Actor::Run { level: 1, skew: 0, keep: false };

#[test]
fn every_interleaving_of_an_expiry_and_an_increment() {
    for allow_last in [false, true] {
        let expirer = Actor::Expirer { allow_last };
        let count =
            exhaust(&[expirer, INCREMENT], Mutant::None, false).unwrap_or_else(|violation| panic!("{violation}"));
        println!("allow_last {allow_last}: {count} interleavings");
        assert!(count > 50);
    }
}

#[test]
fn every_interleaving_of_a_sweep_and_an_increment() {
    let count =
        exhaust(&[Actor::Sweeper, INCREMENT], Mutant::None, false).unwrap_or_else(|violation| panic!("{violation}"));
    println!("{count} interleavings");
    assert!(count > 100);
}

#[test]
fn every_interleaving_with_a_crash() {
    let actors = [Actor::Expirer { allow_last: true }, INCREMENT];
    let count = exhaust(&actors, Mutant::None, true).unwrap_or_else(|violation| panic!("{violation}"));
    println!("{count} interleavings with and without a crash");
    assert!(count > 1000);
}

#[test]
fn every_interleaving_sees_what_is_wrong() {
    let actors = [Actor::Expirer { allow_last: true }, INCREMENT];
    for mutant in [Mutant::DeleteFirst, Mutant::SeqLate, Mutant::NoBetween] {
        let found = exhaust(&actors, mutant, false);
        assert!(found.is_err(), "{mutant:?}: {found:?}");
    }
}

#[test]
fn every_interleaving_of_two_candidates_for_the_lease() {
    let actors = [Actor::Candidate, Actor::Candidate];
    let count = exhaust(&actors, Mutant::None, false).unwrap_or_else(|violation| panic!("{violation}"));
    println!("{count} interleavings");
    assert!(count > 100);
}

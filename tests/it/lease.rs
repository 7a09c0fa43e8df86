//! Runs of one job that meet: with an interval there is one snapshot a round, whoever starts when, whoever is stopped where;
//! and what `bk lease` shows and ends.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use bk::format::layout::lease_key;
use bk::format::lease::{Lease, LeaseTag, State};
use rustix::process::Signal;

use crate::support::rng::Rng;
use crate::support::tools::need;
use crate::support::{Bk, Ran, World, exit};

const ROUNDS: usize = 50;
const RUNS: usize = 8;
/// A guard against runs that hang, not a measure.
const HANG: Duration = Duration::from_secs(300);

/// Starts a run of `job` by the interval: 1 MiB of a command that takes `seconds`.
fn start(world: &World, job: &str, lease_ms: Option<&str>, seconds: &str) -> (Instant, crate::support::Running) {
    let script = format!("sleep {seconds}; head -c 100000 /dev/zero");
    let mut bk = world.bk("snapshot --json --min-interval 1h --frame-size 256KiB --threads 1 --job").arg(job);
    if let Some(ms) = lease_ms {
        bk = bk.env("BK_TEST_LEASE_MS", ms);
    }
    (Instant::now(), bk.words("-- sh -c").arg(script).spawn())
}

/// What a run said it came to: an outcome, or `lost`.
fn outcome(ran: &Ran) -> String {
    match ran.code() {
        0 => ran.json().pop().unwrap()["outcome"].as_str().unwrap().to_owned(),
        exit::LOST => "lost".to_owned(),
        code => panic!("exit code {code}\n{}", ran.show()),
    }
}

/// Waits for all, and counts what they came to; also gives the longest time that one without a snapshot took.
fn finish(runs: Vec<(Instant, crate::support::Running)>) -> (BTreeMap<String, usize>, Duration) {
    let (mut counts, mut longest) = (BTreeMap::new(), Duration::ZERO);
    let ended: Vec<(Ran, Duration)> = std::thread::scope(|scope| {
        let each = |(began, run): (Instant, crate::support::Running)| {
            scope.spawn(move || {
                let ran = run.finish();
                (ran, began.elapsed())
            })
        };
        let threads: Vec<_> = runs.into_iter().map(each).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (ran, took) in ended {
        let outcome = outcome(&ran);
        if outcome != "done" {
            longest = longest.max(took);
        }
        *counts.entry(outcome).or_insert(0) += 1;
    }
    assert!(longest < HANG, "{longest:?}");
    (counts, longest)
}

fn sum(total: &mut BTreeMap<String, usize>, more: BTreeMap<String, usize>) {
    for (outcome, count) in more {
        *total.entry(outcome).or_insert(0) += count;
    }
}

/// Eight at the same instant, one job for all rounds: what a round made is expired before the next.
fn at_once(world: &World, name: &str) {
    let (mut total, mut longest) = (BTreeMap::new(), Duration::ZERO);
    for round in 1..=ROUNDS {
        // Every other round with a lease so short that it is taken from one who is only slow.
        let lease = (round % 2 == 0).then_some("300");
        let runs = (0..RUNS).map(|_| start(world, "j", lease, "0")).collect();
        let (counts, took) = finish(runs);
        assert_eq!(counts.get("done"), Some(&1), "round {round}: {counts:?}");
        longest = longest.max(took);
        sum(&mut total, counts);
        let made = world.list();
        assert_eq!(made.len(), 1, "round {round}: {made:?}");
        world.bk("expire --set").arg(&made[0]).words("2001-01-01T00:00:00Z").run().ok();
        world.bk("expire --allow-last --yes").run().ok();
    }
    eprintln!("{name}: {ROUNDS} rounds of {RUNS}: {total:?}; without a snapshot in at most {longest:.1?}");
}

/// Four at the same instant, while they work four more: each round a job of its own, several rounds side by side.
fn some_late(world: &World, name: &str) {
    const SIDE_BY_SIDE: usize = 5;
    let (mut total, mut longest) = (BTreeMap::new(), Duration::ZERO);
    for batch in 0..ROUNDS / SIDE_BY_SIDE {
        let jobs: Vec<String> = (0..SIDE_BY_SIDE).map(|n| format!("late{batch}-{n}")).collect();
        let some = |job: &String| (0..RUNS / 2).map(|_| start(world, job, None, "2.5")).collect::<Vec<_>>();
        let mut runs: Vec<Vec<_>> = jobs.iter().map(some).collect();
        std::thread::sleep(Duration::from_secs(2));
        for (runs, job) in runs.iter_mut().zip(&jobs) {
            runs.extend(some(job));
        }
        for (job, runs) in jobs.iter().zip(runs) {
            let (counts, took) = finish(runs);
            assert_eq!(counts.get("done"), Some(&1), "{job}: {counts:?}");
            longest = longest.max(took);
            sum(&mut total, counts);
        }
    }
    assert_eq!(world.list().len(), ROUNDS);
    eprintln!("{name}: {ROUNDS} rounds, half of {RUNS} late: {total:?}; without a snapshot in at most {longest:.1?}");
}

#[test]
fn eight_at_once_make_one_snapshot_a_round() {
    at_once(&World::new("lease-at-once"), "local");
}

#[test]
fn eight_at_once_make_one_snapshot_a_round_on_s3() {
    at_once(&World::on_s3("lease-at-once-s3"), "S3");
}

#[test]
fn late_ones_make_no_second_snapshot() {
    some_late(&World::new("lease-late"), "local");
}

#[test]
fn late_ones_make_no_second_snapshot_on_s3() {
    some_late(&World::on_s3("lease-late-s3"), "S3");
}

/// How long a lease is in the tests of runs that are stopped.
const SHORT_MS: &str = "300";
const STOPPED: Duration = Duration::from_millis(3000);

fn round(world: &World, job: &str) -> Bk {
    round_under(world, &[], job)
}

fn round_under(world: &World, program: &[&OsStr], job: &str) -> Bk {
    let bk =
        world.bk_under(program, "snapshot --json --min-interval 1h --threads 1 --frame-size 16KiB --part-size 64KiB");
    bk.small().env("BK_TEST_LEASE_MS", SHORT_MS).words("--job").arg(job)
}

fn of_source(bk: Bk, world: &World) -> Bk {
    bk.arg("-C").arg(&world.src).arg(".")
}

/// How often each call is made by the thread that makes it most.
fn calls(world: &World, wanted: &str) -> BTreeMap<String, usize> {
    let (log, trace) = (world.path("strace"), format!("trace={wanted}"));
    let strace = ["strace", "-f", "-qq", "-e", &trace, "-o"].map(OsStr::new);
    of_source(round_under(world, &[&strace[..], &[log.as_os_str()]].concat(), "counted"), world).run().ok();
    let text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
    let mut by_thread: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for line in text.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let Some((call, _)) = rest.trim_start().split_once('(') else { continue };
        if call.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            *by_thread.entry((pid, call)).or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((_, call), count) in by_thread {
        let max = most.entry(call.to_owned()).or_insert(0);
        *max = count.max(*max);
    }
    most
}

/// The process that strace started.
fn child_of(strace: &Child) -> Option<rustix::process::Pid> {
    let parent = strace.id().to_string();
    let of = |entry: fs::DirEntry| -> Option<i32> {
        let text = fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
        (fields.nth(1)? == parent).then(|| entry.file_name().to_str()?.parse().ok())?
    };
    fs::read_dir("/proc").unwrap().flatten().find_map(of).and_then(rustix::process::Pid::from_raw)
}

/// Stops a run at its `when`-th `call`, lets another make the round's snapshot, or begin to, and lets the first go on.
/// Gives whether it was stopped, and what both came to.
fn stopped_at(world: &World, job: &str, (call, when): (&str, usize), overlap: bool) -> (bool, String, String) {
    let log = world.path(&format!("stop-{job}"));
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=SIGSTOP:when={when}"));
    let strace = ["strace", "-f", "-qq", "-e", &trace, "-e", &inject, "-o"].map(OsStr::new);
    let run = round_under(world, &[&strace[..], &[log.as_os_str()]].concat(), job);
    let mut run = of_source(run, world).spawn();
    drop(run.child.stdin.take());
    let began = Instant::now();
    let is_stopped = loop {
        assert!(began.elapsed() < HANG, "{job}: {call} {when} hangs");
        let said = fs::read(&log).unwrap_or_default();
        if said.windows(18).any(|w| w == b"stopped by SIGSTOP") {
            break true;
        }
        if run.child.try_wait().unwrap().is_some() {
            break false;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let stopped = Instant::now();
    let pid = child_of(&run.child);
    let second = if overlap {
        // It has begun, by what it reads; it goes on when the first has ended.
        let mut second = round(world, job).words("--stdin d").spawn();
        let _ = second.child.stdin.as_mut().unwrap().write_all(&Rng::new(1).noise(2 << 20));
        Err(second)
    } else {
        Ok(of_source(round(world, job), world).run())
    };
    std::thread::sleep(STOPPED.saturating_sub(stopped.elapsed()));
    // Each thread that comes to the call is stopped there.
    while run.child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < HANG, "{job}: {call} {when} does not go on");
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, Signal::CONT);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let first = run.finish();
    let second = second.unwrap_or_else(crate::support::Running::finish);
    (is_stopped, outcome(&first), outcome(&second))
}

/// Stops a run at each of about `wanted` calls, spread over its run.
fn stopped_everywhere(world: &World, name: &str, wanted_calls: &str, wanted: usize) {
    if !need(name, &["strace"]) {
        return;
    }
    fs::write(world.src.join("big"), Rng::new(7).noise(300_000)).unwrap();
    for n in 0..10 {
        fs::write(world.src.join(format!("f{n}")), Rng::new(n).noise(5000)).unwrap();
    }
    let points = crate::crash::points(&calls(world, wanted_calls), wanted);
    assert!(points.len() > wanted / 2, "{points:?}");
    let next = std::sync::atomic::AtomicUsize::new(0);
    let ended: Vec<(bool, String)> = std::thread::scope(|scope| {
        let work = || {
            let mut ended = Vec::new();
            loop {
                let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let Some((call, when)) = points.get(n) else { return ended };
                let job = format!("p{n}");
                let (is_stopped, first, second) = stopped_at(world, &job, (call.as_str(), *when), n % 2 == 1);
                let about = format!("{call} {when}: {first}, {second}");
                let made = world.list().into_iter().filter(|name| name.starts_with(&format!("{job}/"))).count();
                assert_eq!(made, 1, "{about}");
                let done = [&first, &second].into_iter().filter(|outcome| *outcome == "done").count();
                assert_eq!(done, 1, "{about}");
                ended.push((is_stopped, format!("{first}, {second}")));
            }
        };
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    world.bk("verify").run().ok();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, outcomes) in ended.iter().filter(|(is_stopped, _)| *is_stopped) {
        *counts.entry(outcomes).or_default() += 1;
    }
    eprintln!("{name}: stopped at {} of {} points: {counts:?}", counts.values().sum::<usize>(), points.len());
    assert!(counts.values().sum::<usize>() > points.len() / 2);
    // Those that were stopped with the lease, and those that were stopped before they had it.
    assert!(counts.contains_key("lost, done") && counts.contains_key("skipped-fresh, done"), "{counts:?}");
}

#[test]
fn a_stopped_run_makes_no_second_snapshot() {
    let calls = "openat,openat2,write,fsync,linkat,mkdirat,statx,newfstatat,getdents64,read,futex,lseek";
    stopped_everywhere(&World::new("lease-stop"), "a_stopped_run_makes_no_second_snapshot", calls, 60);
}

#[test]
fn a_stopped_run_makes_no_second_snapshot_on_s3() {
    let calls = "socket,connect,sendto,writev,write,recvfrom,epoll_wait,futex";
    let name = "a_stopped_run_makes_no_second_snapshot_on_s3";
    stopped_everywhere(&World::on_s3("lease-stop-s3"), name, calls, 30);
}

/// A lease of `job` as a node elsewhere would have written it.
fn held_elsewhere(volume: &Path, job: &str, epoch: u64, n: u64) {
    let lease = Lease {
        r#type: LeaseTag::Lease,
        format_version: 1,
        job: job.parse().unwrap(),
        epoch,
        n,
        state: State::Held,
        nonce: bk::model::ids::Nonce::new().unwrap(),
        run_id: None,
        node: "elsewhere".to_owned(),
        process: None,
        written_at: bk::model::time::Instant::from_second(1_800_000_000).unwrap(),
    };
    let path = volume.join(lease_key(&job.parse().unwrap(), epoch, n));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, lease.encode().unwrap()).unwrap();
}

fn leases(world: &World, job: &str) -> Vec<String> {
    crate::support::sorted(&world.volume.join("leases").join(job)).iter().map(|p| crate::support::name_of(p)).collect()
}

#[test]
fn a_run_that_is_renewed_is_left_alone() {
    let world = World::new("lease-skip");
    let mut first = world.bk("snapshot --job j --stdin d --node n1").spawn();
    first.child.stdin.as_mut().unwrap().write_all(&Rng::new(1).noise(2 << 20)).unwrap();
    let began = Instant::now();
    let second = world.bk("snapshot --json --job j --stdin d").stdin("second").run().ok();
    let took = began.elapsed();
    eprintln!("skipped after {took:.1?}");
    let result = second.json().pop().unwrap();
    assert_eq!(result["outcome"], "skipped-running", "{result}");
    assert!(result["why"].as_str().unwrap().contains("node n1"), "{result}");
    let listed = world.bk("lease list --json j").run().ok().json();
    assert_eq!((&listed[0]["state"], &listed[0]["node"]), (&"held".into(), &"n1".into()), "{listed:?}");
    assert_eq!(listed[1]["leases"], 1, "{listed:?}");
    world.bk("lease release j").run().code_is(&[exit::USAGE]).says("in use").says("--yes");
    world.bk("snapshot --job j --stdin d").stdin("second").run().ok().says("skipped-running");
    first.finish().ok();
    assert_eq!(world.list(), ["j/1"]);
    world.bk("lease list").run().ok().says("released");
    world.bk("lease release j").run().ok().says("nobody");
    world.bk("snapshot --job j --stdin d").stdin("third").run().ok();
    assert_eq!(world.list(), ["j/1", "j/2"]);
    let record: serde_json::Value = {
        let text = fs::read_to_string(world.volume.join("log/j/00000000000000000002.json")).unwrap();
        serde_json::from_str(text.lines().next().unwrap()).unwrap()
    };
    assert_eq!(record["epoch"], 2, "{record}");
    assert_eq!(leases(&world, "j").len(), 1, "old ones are deleted");
}

#[test]
fn a_killed_run_is_not_waited_for() {
    let world = World::new("lease-killed");
    // No renewal is ever waited for with leases so long: only that the process is gone can tell.
    let slow = |words: &str| world.bk(words).env("BK_TEST_LEASE_MS", "6000000");
    let mut first = slow("snapshot --job j --stdin d").spawn();
    first.child.stdin.as_mut().unwrap().write_all(&Rng::new(1).noise(2 << 20)).unwrap();
    first.child.kill().unwrap();
    first.finish().code_is(&[137]);
    slow("lease list").run().ok().says("dead");
    slow("snapshot --job j --stdin d").stdin("second").run().ok();
    // One that was killed again, and its lease ended by hand without a question.
    let mut third = slow("snapshot --job j --stdin d").spawn();
    third.child.stdin.as_mut().unwrap().write_all(&Rng::new(1).noise(2 << 20)).unwrap();
    third.child.kill().unwrap();
    third.finish().code_is(&[137]);
    let released = slow("lease release --json j").run().ok().json().pop().unwrap();
    assert_eq!((released["outcome"].as_str(), released["epoch"].as_u64()), (Some("released"), Some(3)), "{released}");
    slow("snapshot --job j --stdin d").stdin("fourth").run().ok();
    assert_eq!(world.list(), ["j/1", "j/2"]);
}

#[test]
fn a_lease_that_nobody_renews_is_taken() {
    let world = World::new("lease-old");
    held_elsewhere(&world.volume, "j", 7, 3);
    let bk = |words: &str| world.bk(words).env("BK_TEST_LEASE_MS", SHORT_MS);
    bk("lease list").run().ok().says("elsewhere").says("held");
    bk("snapshot --job j --stdin d").stdin("a").run().ok();
    assert_eq!(leases(&world, "j"), ["00000000000000000008.0000000001.json"]);
    // So is one that cannot be read, by a run or by hand.
    let broken = world.volume.join("leases/j/00000000000000000009.0000000000.json");
    fs::write(&broken, "{}").unwrap();
    bk("lease list").run().ok().says("unreadable");
    bk("lease release j").run().ok().says("released");
    fs::write(world.volume.join("leases/j/00000000000000000011.0000000000.json"), "").unwrap();
    bk("snapshot --job j --stdin d").stdin("b").run().ok();
    assert_eq!(leases(&world, "j"), ["00000000000000000012.0000000001.json"]);
    // What has no lease's name is nobody's to delete.
    fs::write(world.volume.join("leases/j/README"), "?").unwrap();
    bk("snapshot --job j --stdin d").stdin("c").run().ok();
    assert_eq!(leases(&world, "j").len(), 2);
    world.bk("verify").run().ok();
}

#[test]
fn a_signal_ends_the_waiting() {
    let world = World::new("lease-signal");
    held_elsewhere(&world.volume, "j", 1, 0);
    let waiting = world.bk("snapshot --job j --stdin d").env("BK_TEST_LEASE_MS", "60000").spawn();
    // It waits, or has not begun: nothing tells from outside.
    std::thread::sleep(Duration::from_millis(700));
    waiting.signal(Signal::TERM);
    waiting.finish().code_is(&[143]);
    assert_eq!(leases(&world, "j").len(), 1);
    assert!(world.list().is_empty());
}

#[test]
fn a_young_snapshot_is_enough() {
    let world = World::new("lease-fresh");
    let job = |options: &str| world.bk("snapshot --json --job j --stdin d").words(options).stdin("x").run();
    job("--min-interval 20h").ok();
    let fresh = job("--min-interval 20h").ok().json().pop().unwrap();
    assert_eq!(fresh["outcome"], "skipped-fresh", "{fresh}");
    assert!(fresh["why"].as_str().unwrap().contains("j/1"), "{fresh}");
    job("").ok();
    assert_eq!(world.list(), ["j/1", "j/2"]);
    for bad in ["never", "5", "x", "1"] {
        job(&format!("--min-interval {bad}")).code_is(&[exit::USAGE]);
    }
    // One that was expired does not count, nor one that is damaged.
    world.bk("expire --set j/2 2001-01-01T00:00:00Z").run().ok();
    world.bk("expire --yes").run().ok();
    let index = world.parts("j", "index-");
    fs::write(&index[0], "damaged").unwrap();
    let again = job("--min-interval 20h").ok().json().pop().unwrap();
    assert_eq!(again["snapshot"], "j/5", "{again}");
    // Another job's is another's.
    world.bk("snapshot --json --job k --stdin d --min-interval 20h").stdin("x").run().ok();
}

#[test]
fn the_stores_clock_is_noted_where_it_has_one() {
    let world = World::on_s3("lease-clock");
    world.bk("snapshot --job j --stdin d").stdin("x").run().ok();
    let text = fs::read_to_string(world.volume.join("log/j/00000000000000000001.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert!(record["store_at"].as_str().is_some_and(|at| at.starts_with("20") && at.ends_with('Z')), "{record}");
}

//! Levels, expiry, holds and sweeps as a user meets them, and what expiry costs and leaves when the store fails.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bk::clock::Clock;
use bk::engine::catalog;
use bk::error::{Error, Kind, Result};
use bk::format::envelope;
use bk::format::layout::record_key;
use bk::format::record::{Record, Snapshot};
use bk::model::ids::{Name, RunId, SnapshotName};
use bk::monitor::Silent;
use bk::ops::{expire, health, keep, verify};
use bk::volume::memory::MemoryStore;
use bk::volume::{Created, Item, Store, Upload, Volume};

use crate::model::actors::{NOW_MS, World as Model};
use crate::support::between::Between;
use crate::support::rng::Rng;
use crate::support::tools::{need, shell_ok};
use crate::support::{Bk, Running, World, exit, files_below, name_of, sorted};

/// A job `j` with `count` snapshots of a small file.
fn with_snapshots(name: &str, count: usize) -> World {
    let world = World::new(name);
    for n in 0..count {
        fs::write(world.src.join("f"), format!("version {n}")).unwrap();
        world.snapshot("j", "").ok();
    }
    world
}

fn due(world: &World, seq: u64) {
    world.bk("expire --set").arg(format!("j/{seq}")).arg("2001-01-01T00:00:00Z").run().ok();
}

fn runs(world: &World) -> Vec<String> {
    let mut dirs = sorted(&world.volume.join("data/j"));
    // A store of objects has no directories; what its server leaves of them is its own.
    dirs.retain(|dir| world.server.is_none() || !sorted(dir).is_empty());
    dirs.iter().map(|path| name_of(path)).collect()
}

fn records(world: &World) -> usize {
    sorted(&world.volume.join("log/j")).len()
}

#[test]
fn what_is_past_its_time_goes() {
    let world = with_snapshots("goes", 6);
    let before = runs(&world);
    due(&world, 2);
    let files = files_below(&world.volume);
    world.bk("expire --dry-run").run().ok().says("j/2").says("would go").says("1 snapshots would expire");
    assert_eq!(files_below(&world.volume), files, "a dry run writes nothing");
    let ran = world.bk("expire j --json").run().ok();
    let lines = ran.json();
    assert_eq!((&lines[0]["snapshot"], &lines[0]["fate"]), (&"j/2".into(), &"go".into()));
    let result = lines.last().unwrap();
    assert_eq!((&result["expired"], &result["objects"]), (&1.into(), &3.into()), "{result}");
    assert_eq!(world.list(), ["j/1", "j/3", "j/4", "j/5", "j/6"]);
    let left: Vec<&String> = before.iter().enumerate().filter(|(n, _)| *n != 1).map(|(_, run)| run).collect();
    assert_eq!(runs(&world).iter().collect::<Vec<_>>(), left);
    for words in ["ls j/2", "verify j/2", "cat j/2 f", "export j/2"] {
        world.bk(words).run().code_is(&[exit::USAGE]).says("j/2 expired on").says("by record 8");
    }
    world.bk("why j/2").run().ok().says("by record 8");
    // `latest` counts what is there.
    assert_eq!(world.bk("cat j/latest~4 f").run().ok().text(), "version 0");
    world.bk("verify --data").run().ok();
    let again = records(&world);
    world.bk("expire").run().ok().says("0 snapshots expired");
    assert_eq!(records(&world), again);
    // Numbers go on, they are never used again.
    assert_eq!(world.snapshot("j", "--json").ok().json().last().unwrap()["snapshot"], "j/9");
}

#[test]
fn a_hold_keeps_what_is_past_its_time() {
    let world = with_snapshots("hold", 6);
    due(&world, 1);
    world.bk("hold j/1 --comment").arg("audit of 2026").run().ok().says("on hold");
    let count = records(&world);
    world.bk("hold j/1").run().ok().says("nothing to change");
    assert_eq!(records(&world), count);
    world.bk("expire").run().ok().says("on hold by record 8");
    world.bk("list").run().ok().says("(hold)");
    world.bk("why j/1").run().ok().says("audit of 2026").says("stays: it is on hold");
    assert_eq!(world.list().len(), 6);
    world.bk("release j/1").run().ok();
    world.bk("why j/1").run().ok().says("goes with the next");
    world.bk("expire").run().ok();
    assert_eq!(world.list().len(), 5);
    world.bk("hold j/1").run().code_is(&[exit::USAGE]).says("expired");
    world.bk("hold j/77").run().code_is(&[exit::USAGE]);
    world.bk("hold other/latest").run().code_is(&[exit::USAGE]);
    world.bk("hold j/2 --comment").arg("x".repeat(1001)).run().code_is(&[exit::USAGE]);
}

#[test]
fn more_than_a_fifth_wants_a_yes() {
    let world = with_snapshots("fifth", 5);
    due(&world, 1);
    due(&world, 2);
    for words in ["expire", "expire --dry-run"] {
        let refused = world.bk(words).run().code_is(&[exit::USAGE]).says("2 of 5").says("20 %").says("--yes");
        assert!(refused.text().contains("would go") && !refused.text().contains("goes"), "{}", refused.show());
    }
    assert_eq!(world.list().len(), 5);
    world.bk("expire --yes").run().ok();
    assert_eq!(world.list(), ["j/3", "j/4", "j/5"]);
}

#[test]
fn the_last_usable_chain_stays() {
    let world = with_snapshots("last", 3);
    for seq in 1..=3 {
        due(&world, seq);
    }
    // The newest is damaged: the one before it is the last that can be restored.
    let index = world.parts("j", "index").remove(0);
    let bytes = fs::read(&index).unwrap();
    fs::write(&index, &bytes[..bytes.len() - 1]).unwrap();
    world.bk("expire --yes --dry-run").run().ok().says("stays: the last usable chain");
    world.bk("why j/2").run().ok().says("the last usable chain");
    fs::write(&index, &bytes).unwrap();
    world.bk("expire --yes").run().ok().says("stays: the last usable chain");
    assert_eq!(world.list(), ["j/3"]);
    world.bk("expire --yes --allow-last").run().ok();
    assert!(world.list().is_empty() && runs(&world).is_empty());
    world.snapshot("j", "").ok();
    world.bk("verify --data").run().ok();
}

fn listed(world: &World, seq: u64) -> serde_json::Value {
    let ran = world.bk("list --json").run().ok();
    ran.json().into_iter().find(|v| v["snapshot"] == format!("j/{seq}")).unwrap()
}

fn seconds(value: &serde_json::Value) -> i64 {
    value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second()
}

#[test]
fn expiry_is_set_and_shown_as_an_instant() {
    let world = with_snapshots("set", 1);
    assert!(listed(&world, 1)["expires_at"].is_null());
    let ran = world.snapshot("j", "--json --expire 1w3d").ok();
    let result = ran.json().pop().unwrap();
    assert_eq!(seconds(&result["expires_at"]) - seconds(&result["taken_at"]), 10 * 86_400);
    assert_eq!(listed(&world, 2)["expires_at"], result["expires_at"]);
    let text = result["expires_at"].as_str().unwrap().to_owned();
    world.bk("list").run().ok().says(&text);
    world.bk("snapshot --job j --expire").arg("1w 3d").arg(&world.src).run().ok().says("expires 20");
    assert!(world.snapshot("j", "--json --expire never").ok().json()[0]["expires_at"].is_null());
    for bad in ["5m", "soon", "1d 1w", "", "0d"] {
        let ran = world.bk("expire --set j/1").arg(bad).run().code_is(&[exit::USAGE]);
        assert!(bad != "5m" || ran.said().contains("5min or 5mo"), "{}", ran.show());
    }
    for bad in ["5m", "soon"] {
        let ran = world.snapshot("j", &format!("--expire {bad}")).code_is(&[exit::USAGE]);
        assert!(bad != "5m" || ran.said().contains("5min or 5mo"), "{}", ran.show());
    }
    world.bk("expire --set j/1").arg("2031-05-01T10:00:00+02:00").run().ok().says("2031-05-01T08:00:00Z");
    assert_eq!(listed(&world, 1)["expires_at"], "2031-05-01T08:00:00Z");
    world.bk("expire --set j/1 2031-05-01").run().ok();
    assert_eq!(listed(&world, 1)["expires_at"], "2031-05-01T00:00:00Z");
    world.bk("expire --set j/1 6mo").run().ok();
    assert_ne!(listed(&world, 1)["expires_at"], "2031-05-01T00:00:00Z");
    world.bk("expire --set j/1 never").run().ok().says("never expires");
    assert!(listed(&world, 1)["expires_at"].is_null());
    world.bk("why j/1").run().ok().says("never expires, set");
    world.bk("expire --set j/1").run().code_is(&[exit::USAGE]);
    world.bk("expire j --set j/1 never").run().code_is(&[exit::USAGE]);
}

#[test]
fn a_level_is_chosen_and_shown_before_it_is_taken() {
    let world = with_snapshots("level", 0);
    fs::write(world.src.join("f"), "x").unwrap();
    world.snapshot("j", "--level 1 --dry-run").ok().says("level 0").says("instead of level 1: j has no snapshot");
    assert!(runs(&world).is_empty() && records(&world) == 0);
    let ran = world.snapshot("j", "--level 1 --json").ok();
    let lines = ran.json();
    assert!(lines.iter().any(|v| v["type"] == "warning" && v["text"].as_str().unwrap().contains("instead of level 1")));
    assert_eq!((&lines.last().unwrap()["level"], &lines.last().unwrap()["promoted_from"]), (&0.into(), &1.into()));
    world.bk("why j/1").run().ok().says("level 1 was asked for");
    let ran = world.snapshot("j", "--level 2 --dry-run --json").ok();
    let plan = ran.json().pop().unwrap();
    assert_eq!((&plan["decision"], &plan["level"], &plan["base"]), (&"increment".into(), &2.into(), &1.into()));
    world.snapshot("j", "--level 2 --strict-base --dry-run").ok().says("has no snapshot of level 1");
    world.snapshot("j", "--level 2 --strict-base --no-promote").code_is(&[exit::ERROR]).says("cannot take level 2");
    world.snapshot("j", "--level 1 --exclude x --dry-run").ok().says("instead of level 1: sources, excludes");
    for (text, level) in [("0 otherwise", 0), ("3 otherwise", 3)] {
        let dry = |bk: crate::support::Bk| bk.arg("-C").arg(&world.src).arg(".").run().ok();
        let ran = dry(world.bk("snapshot --job j --level auto --dry-run --levels").arg(text));
        ran.says(&format!("level {level} by `{text}` on "));
        dry(world.bk("snapshot --job j --dry-run").env("BK_LEVELS", text)).says(&format!("level {level} by"));
        dry(world.bk("snapshot --job j --dry-run --level 1").env("BK_LEVELS", text)).says("level 1\n");
    }
    for bad in ["--level 10", "--level -1", "--level x", "--level auto", "--levels 0"] {
        world.snapshot("j", bad).code_is(&[exit::USAGE]);
    }
    // A base that is not whole is none.
    let part = world.parts("j", "tree-").remove(0);
    fs::rename(&part, world.path("away")).unwrap();
    world.snapshot("j", "--level 1 --dry-run").ok().says("instead of level 1").says("j/1, which is needed as a base");
    world.snapshot("j", "--level 1 --no-promote").code_is(&[exit::INTEGRITY]);
}

fn days_ago(days: u64) -> std::time::SystemTime {
    std::time::SystemTime::now() - std::time::Duration::from_secs(days * 86_400)
}

#[test]
fn what_no_record_names_is_swept() {
    let world = with_snapshots("sweep", 5);
    let now = bk::clock::System.unix_ms();
    let plant = |run: &str| {
        let dir = world.volume.join("data/j").join(run);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("tree-00000.tar.zst"), "half").unwrap();
    };
    let age = |run: &str| {
        let (part, at) = (world.volume.join("data/j").join(run).join("tree-00000.tar.zst"), days_ago(2));
        fs::File::options().write(true).open(part).unwrap().set_modified(at).unwrap();
    };
    let (old, young) = (RunId::new(now - 25 * 3_600_000).unwrap(), RunId::new(now - 1000).unwrap());
    for run in [&old.to_string(), &young.to_string(), "not-a-run"] {
        plant(run);
    }
    // One that began long ago, and still stores, goes on.
    world.bk("expire").run().ok().says(" 0 runs that never ended swept");
    age(&old.to_string());
    world.bk("expire --dry-run").run().ok().says("1 runs that never ended would be swept");
    world.bk("expire").run().ok().says("1 runs that never ended swept: 1 objects deleted");
    let left = runs(&world);
    assert!(!left.contains(&old.to_string()) && left.contains(&young.to_string()));
    let record = fs::read_to_string(sorted(&world.volume.join("log/j")).pop().unwrap()).unwrap();
    assert!(record.contains(r#""type":"sweep""#) && record.contains(&old.to_string()), "{record}");
    // What the swept run writes later goes without a new record.
    plant(&old.to_string());
    let count = records(&world);
    world.bk("expire").run().ok().says("1 objects deleted");
    assert_eq!(records(&world), count);
    assert!(!runs(&world).contains(&old.to_string()));
    world.bk("expire --sweep-grace 0").run().ok();
    assert_eq!(runs(&world).len(), 6, "five snapshots, and what is no run's");
    // A job that never got a record.
    let first = world.volume.join("data/first").join(old.to_string());
    fs::create_dir_all(&first).unwrap();
    fs::write(first.join("index-00000.bki"), "half").unwrap();
    fs::File::options().write(true).open(first.join("index-00000.bki")).unwrap().set_modified(days_ago(2)).unwrap();
    world.bk("expire").run().ok();
    assert!(!first.exists() || world.server.is_some() && files_below(&first).is_empty());
    world.bk("verify --data").run().ok();
    world.bk("expire none").run().code_is(&[exit::USAGE]).says("no job none");
}

#[test]
fn a_log_that_lost_its_records_sweeps_no_snapshot() {
    let world = with_snapshots("lost-log", 3);
    let before = files_below(&world.volume.join("data"));
    let away = world.path("away");
    fs::rename(world.volume.join("log/j"), &away).unwrap();
    for words in ["expire --sweep-grace 0", "expire --sweep-grace 0 --dry-run", "expire j --sweep-grace 0"] {
        world.bk(words).run().code_is(&[exit::USAGE]).says("3 runs of j look whole").says("below log/");
    }
    assert_eq!(files_below(&world.volume.join("data")), before);
    fs::rename(&away, world.volume.join("log/j")).unwrap();
    world.bk("expire --sweep-grace 0").run().ok();
    assert_eq!(files_below(&world.volume.join("data")), before);
    fs::remove_dir_all(world.volume.join("log/j")).unwrap();
    world.bk("expire --sweep-grace 0 --sweep-lost").run().ok().says("3 runs that never ended swept");
}

#[test]
fn a_damaged_log_deletes_nothing() {
    let world = with_snapshots("damaged", 6);
    due(&world, 1);
    let record = world.volume.join("log/j/00000000000000000004.json");
    let good = fs::read(&record).unwrap();
    let orphan = world.volume.join("data/j").join(RunId::new(1).unwrap().to_string());
    fs::create_dir_all(&orphan).unwrap();
    fs::write(orphan.join("index-00000.bki"), "half").unwrap();
    let before = files_below(&world.volume);
    for bytes in [&good[..good.len() - 9], b""] {
        fs::write(&record, bytes).unwrap();
        for words in ["expire", "expire --yes --allow-last --sweep-grace 0"] {
            world.bk(words).run().code_is(&[exit::INTEGRITY]).says("the log of j is damaged");
        }
    }
    assert_eq!(files_below(&world.volume), before);
    fs::remove_file(&record).unwrap();
    world.bk("expire --yes").run().code_is(&[exit::INTEGRITY]).says("00000000000000000004.json is missing");
    fs::write(&record, &good).unwrap();
    world.bk("expire").run().ok();
    assert_eq!(world.list().len(), 5);
}

/// A snapshot that has stored parts and waits for the rest of its input.
fn under_way(world: &World) -> Running {
    let words = "snapshot --job j --stdin d --frame-size 16KiB --part-size 64KiB --compression none";
    let mut running = world.bk(words).small().spawn();
    running.child.stdin.as_mut().unwrap().write_all(&Rng::new(1).noise(2 << 20)).unwrap();
    running
}

#[test]
fn a_run_that_was_swept_cannot_commit() {
    let world = with_snapshots("late", 2);
    // All parts that are full, which come to rest: not what is only on its way into an object.
    let is_part = |path: &std::path::PathBuf| name_of(path).starts_with("stream-");
    let parts = || sorted(&world.volume.join("data/j")).iter().flat_map(|run| sorted(run)).filter(is_part).count();
    let before = parts();
    let mut running = under_way(&world);
    while parts() < before + 31 {
        assert!(running.child.try_wait().unwrap().is_none(), "it has ended");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    world.bk("expire --sweep-grace 0").run().ok().says("1 runs that never ended swept");
    running.finish().code_is(&[exit::LOST]).says("swept");
    assert_eq!(world.list(), ["j/1", "j/2"]);
    world.bk("expire").run().ok();
    assert_eq!(runs(&world).len(), 2, "nothing is left of it");
    world.bk("verify --data").run().ok();
}

#[test]
fn a_record_that_does_not_concern_a_run_only_moves_its_aim() {
    let world = with_snapshots("aim", 5);
    due(&world, 1);
    let running = under_way(&world);
    world.bk("hold j/2").run().ok();
    world.bk("expire").run().ok().says("1 snapshots expired");
    running.finish().ok().says("snapshot j/9 ");
    assert_eq!(world.list(), ["j/2", "j/3", "j/4", "j/5", "j/9"]);
    world.bk("verify --data").run().ok();
}

/// kill -9 at every call that changes the volume, and at some that only look.
#[test]
fn an_expiry_that_is_killed_is_resumed() {
    if !need("an_expiry_that_is_killed_is_resumed", &["strace", "cp"]) {
        return;
    }
    let world = with_snapshots("killed", 4);
    (1..=3).for_each(|seq| due(&world, seq));
    let old = world.path("old");
    fs::rename(&world.volume, &old).unwrap();
    let mut killed = 0;
    for call in ["unlinkat", "linkat", "fsync", "getdents64", "openat2", "write"] {
        for when in 1..100 {
            let _ = fs::remove_dir_all(&world.volume);
            shell_ok(r#"cp -a "$1" "$2""#, &[&old, &world.volume]);
            let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=SIGKILL:when={when}"));
            let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject].map(OsStr::new);
            let ran = Bk::under(&strace, "expire --yes").env("BK_VOLUME", &world.volume).run();
            let listed = world.list();
            // A directory without an object means nothing, and may stay.
            let lying = || files_below(&world.volume.join("data")).len();
            let about = format!("{call} {when}: {listed:?}\n{}", ran.show());
            assert!(listed == ["j/4"] || listed == ["j/1", "j/2", "j/3", "j/4"], "{about}");
            world.bk("verify --data").run().ok();
            if ran.code() == 0 {
                assert!(listed.len() == 1 && lying() == 3, "{about}");
                break;
            }
            killed += 1;
            world.bk("expire --yes").run().ok();
            assert_eq!((world.list().len(), lying()), (1, 3), "{about}");
        }
    }
    println!("killed {killed} times");
    assert!(killed > 10);
}

/// A clock that stands where it is put, milliseconds since 1970.
struct At(u64);

impl Clock for At {
    fn unix_ms(&self) -> u64 {
        self.0
    }
}

fn request(threads: usize) -> expire::Request {
    expire::Request {
        job: Some(job()),
        node: "e".to_owned(),
        allow_last: true,
        yes: true,
        sweep_lost: false,
        dry_run: false,
        sweep_grace: expire::SWEEP_GRACE_SECONDS,
        threads,
    }
}

#[test]
fn many_runs_take_few_descriptors() {
    let me = "many_runs_take_few_descriptors";
    if !need(me, &["prlimit"]) || std::env::var_os("BK_TEST_VOLUME").is_some() {
        return;
    }
    let world = with_snapshots("descriptors", 6);
    // Runs that are under way, and other jobs.
    for n in 0..100 {
        let run = RunId::new(bk::clock::System.unix_ms() + n).unwrap();
        for dir in [format!("data/j/{run}"), format!("runs/j/{run}"), format!("data/j{n}/{run}")] {
            let dir = world.volume.join(dir);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("tree-00000.tar.zst"), "part").unwrap();
        }
    }
    due(&world, 2);
    let few = |words: &str| world.bk_under(&["prlimit", "--nofile=64"].map(OsStr::new), words).run();
    few("list").ok();
    few("check j").ok();
    few("expire j").ok().says("1 snapshots expired");
    few("expire").ok();
    assert_eq!(runs(&world).len(), 5 + 100);
}

/// Does something when the first object is done or expected.
struct Meanwhile(std::sync::Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Meanwhile {
    fn new(then: impl FnOnce() + Send + 'static) -> Self {
        Self(std::sync::Mutex::new(Some(Box::new(then))))
    }

    fn now(&self) {
        let then = self.0.lock().unwrap().take();
        if let Some(then) = then {
            then();
        }
    }
}

impl bk::monitor::Monitor for Meanwhile {
    fn warn(&self, _: &str) {}
    fn advance(&self, _: u64, _: u64, _: &[u8]) {
        self.now();
    }
    fn expect(&self, _: u64, _: u64) {
        self.now();
    }
}

fn local(world: &World) -> Volume {
    let store = bk::volume::local::LocalStore::open(&world.volume).unwrap();
    bk::volume::open_on(Arc::new(store), "here".to_owned()).unwrap()
}

/// Lets a snapshot go as `bk expire` of another process does.
fn goes(volume: &Volume, name: &str) {
    let when = keep::When::At(bk::model::time::Instant::from_second(1).unwrap());
    keep::set(volume, &name.parse::<SnapshotName>().unwrap(), when, "other", &bk::clock::System).unwrap();
    let request = expire::Request { job: Some(name.split('/').next().unwrap().parse().unwrap()), ..request(1) };
    let outcome = expire::run(volume, &request, &bk::clock::System, &Silent).unwrap();
    assert_eq!((outcome.expired, outcome.errors.len()), (1, 0));
}

#[test]
fn what_goes_while_it_is_verified_is_no_fault() {
    if std::env::var_os("BK_TEST_VOLUME").is_some() {
        return;
    }
    for depth in [verify::Depth::Quick, verify::Depth::Stored, verify::Depth::Data] {
        let world = with_snapshots("goes-verify", 3);
        let volume = local(&world);
        let other = volume.clone();
        let meanwhile = Meanwhile::new(move || goes(&other, "j/2"));
        let options = verify::Options { snapshot: None, depth, threads: 1 };
        let outcome = verify::run(&volume, &options, &bk::clock::System, &meanwhile).unwrap();
        assert!(outcome.faults.is_empty(), "{:?}", outcome.faults);
        assert_eq!(world.list(), ["j/1", "j/3"]);
        // What is really damaged is found all the same.
        let index = world.parts("j", "index").remove(0);
        let bytes = fs::read(&index).unwrap();
        fs::write(&index, &bytes[..bytes.len() - 1]).unwrap();
        let other = volume.clone();
        let meanwhile = Meanwhile::new(move || goes(&other, "j/1"));
        let outcome = verify::run(&volume, &options, &bk::clock::System, &meanwhile).unwrap();
        assert!(!outcome.faults.is_empty());
        assert!(
            outcome.faults.iter().all(|fault| fault.object.contains(&name_of(index.parent().unwrap()))),
            "{outcome:?}"
        );
    }
}

#[test]
fn a_snapshot_verified_alone_that_goes_is_lost() {
    if std::env::var_os("BK_TEST_VOLUME").is_some() {
        return;
    }
    let world = with_snapshots("goes-verify-one", 3);
    let volume = local(&world);
    let other = volume.clone();
    let meanwhile = Meanwhile::new(move || goes(&other, "j/2"));
    let options = verify::Options { snapshot: Some("j/2".parse().unwrap()), depth: verify::Depth::Data, threads: 1 };
    let error = verify::run(&volume, &options, &bk::clock::System, &meanwhile).unwrap_err();
    assert_eq!(error.kind(), Kind::Lost, "{error}");
    assert!(error.to_string().contains("j/2 was expired on"), "{error}");
}

#[test]
fn what_goes_while_it_is_checked_is_not_missed() {
    if std::env::var_os("BK_TEST_VOLUME").is_some() {
        return;
    }
    let world = with_snapshots("goes-check", 3);
    let plain = local(&world);
    let other = plain.clone();
    let between = Between::new(Arc::clone(&plain.store), "list 1 of data/j/", move || goes(&other, "j/3"));
    let volume = Volume { store: Arc::new(between), ..plain.clone() };
    let jobs = health::Jobs::Named(vec!["j".parse().unwrap()]);
    let limits = |_: &Name| Ok(bk::plan::health::Limits::default());
    let outcome = health::run(&volume, &jobs, &limits, &bk::clock::System).unwrap();
    assert_eq!(world.list(), ["j/1", "j/2"]);
    assert_eq!(outcome.status, bk::plan::health::Status::Ok, "{:?}", outcome.health.findings);
    // What is really missing is told.
    fs::remove_file(world.parts("j", "index").remove(0)).unwrap();
    let outcome = health::run(&plain, &jobs, &limits, &bk::clock::System).unwrap();
    assert_eq!(outcome.status, bk::plan::health::Status::Critical, "{:?}", outcome.health.findings);
}

/// A clock that is set while it runs.
struct Turned(Arc<AtomicU64>);

impl Clock for Turned {
    fn unix_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn an_expiry_that_takes_hours_accuses_no_clock() {
    if std::env::var_os("BK_TEST_VOLUME").is_some() {
        return;
    }
    let world = with_snapshots("hours", 2);
    for job in ["k", "l"] {
        world.snapshot(job, "").ok();
        world.snapshot(job, "").ok();
    }
    let volume = local(&world);
    let now = Arc::new(AtomicU64::new(bk::clock::System.unix_ms() + 1000));
    for name in ["j/1", "k/1", "l/1"] {
        let when = keep::When::At(bk::model::time::Instant::from_second(1).unwrap());
        keep::set(&volume, &name.parse().unwrap(), when, "s", &Turned(Arc::clone(&now))).unwrap();
    }
    // Deleting what went of `j` takes an hour; meanwhile others write to `k`.
    let then = {
        let (volume, now) = (volume.clone(), Arc::clone(&now));
        move || {
            now.fetch_add(3_600_000, Ordering::Relaxed);
            keep::hold(&volume, &"k/2".parse().unwrap(), None, "h", &Turned(now)).unwrap();
        }
    };
    let request = expire::Request { job: None, ..request(1) };
    let outcome = expire::run(&volume, &request, &Turned(Arc::clone(&now)), &Meanwhile::new(then)).unwrap();
    assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
    assert_eq!(outcome.expired, 3);
    // Its own records say when they were made.
    let log = catalog::read(&volume, &"l".parse().unwrap()).unwrap();
    assert_eq!(log.newest_at.unwrap(), Turned(now).now().unwrap());
}

fn job() -> Name {
    "m".parse().unwrap()
}

fn expire(volume: &Volume, threads: usize, at: u64) -> Result<expire::Outcome> {
    let mut outcome = expire::run(volume, &request(threads), &At(at), &Silent)?;
    if outcome.errors.is_empty() { Ok(outcome) } else { Err(outcome.errors.remove(0)) }
}

#[test]
fn a_wrong_clock_deletes_nothing() {
    let (store, volume) = Model::of(&[0, 0, 1]);
    let before = store.list("").unwrap();
    for back in [3_600_000, 10 * 365 * 86_400_000, NOW_MS] {
        let error = expire(&volume, 1, NOW_MS - back).unwrap_err();
        assert!(error.to_string().contains("has a stamp of"), "{error}");
    }
    assert_eq!(store.list("").unwrap(), before);
    // One stamp far ahead, as a node with a wrong clock writes it, stops expiry from then on.
    let (store, volume) = Model::of(&[0, 0, 1]);
    let name: SnapshotName = "m/3".parse().unwrap();
    keep::hold(&volume, &name, None, "h", &At(NOW_MS + 10 * 365 * 86_400_000)).unwrap();
    let before = store.list("").unwrap();
    assert!(expire(&volume, 1, NOW_MS).is_err());
    assert_eq!(store.list("").unwrap(), before);
    // Minutes between the clocks of two nodes are no wrong clock.
    let (_, volume) = Model::of(&[0]);
    assert_eq!(expire(&volume, 1, NOW_MS - 50_000).unwrap().expired, 0, "not due yet by this clock");
}

#[test]
fn dependents_hold_their_bases() {
    let (_, volume) = Model::of(&[0, 1, 2, 0]);
    keep::set(&volume, &"m/3".parse().unwrap(), keep::When::After("4w".parse().unwrap()), "s", &At(NOW_MS)).unwrap();
    assert_eq!(expire(&volume, 1, NOW_MS).unwrap().expired, 1);
    let log = catalog::read(&volume, &job()).unwrap();
    assert_eq!(log.live().map(|s| s.seq).collect::<Vec<_>>(), [1, 2, 3]);
    let top = log.state(3).unwrap().snapshot.clone();
    assert_eq!(catalog::chain(&log, &top).unwrap().len(), 3);
    let why = keep::why(&volume, &"m/1".parse().unwrap(), &At(NOW_MS)).unwrap();
    assert!(why.facts.iter().any(|fact| fact.contains("held, since m/3 needs it")), "{why:?}");
    assert_eq!(expire(&volume, 4, NOW_MS + 29 * 86_400_000).unwrap().expired, 3);
}

/// Counts calls, and fails one of them.
#[derive(Clone)]
struct Tally {
    inner: MemoryStore,
    calls: Arc<AtomicU64>,
    /// The call that fails, from 1 on; every later one fails too, as if the machine was gone.
    fails_at: u64,
    deleted: Arc<std::sync::Mutex<Vec<String>>>,
}

impl Tally {
    fn on(volume: &Volume, inner: &MemoryStore, fails_at: u64) -> (Self, Volume) {
        let calls = Arc::new(AtomicU64::new(0));
        let tally = Self { inner: inner.clone(), calls, fails_at, deleted: Arc::default() };
        (tally.clone(), Volume { store: Arc::new(tally), ..volume.clone() })
    }

    fn count(&self) -> Result<()> {
        if self.calls.fetch_add(1, Ordering::Relaxed) + 1 >= self.fails_at {
            return Err(Error::new(Kind::Other, "the store is gone"));
        }
        Ok(())
    }
}

impl Store for Tally {
    fn create(&self, key: &str) -> Result<Box<dyn Upload>> {
        self.count()?;
        self.inner.create(key)
    }

    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Created> {
        self.count()?;
        self.inner.put_new(key, bytes)
    }

    fn read_at(&self, key: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.count()?;
        self.inner.read_at(key, offset, buf)
    }

    fn read(&self, key: &str, len_max: u64) -> Result<Vec<u8>> {
        self.count()?;
        self.inner.read(key, len_max)
    }

    fn head(&self, key: &str) -> Result<Option<u64>> {
        self.count()?;
        self.inner.head(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Item>> {
        self.count()?;
        self.inner.list(prefix)
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.count()?;
        self.deleted.lock().unwrap().push(key.to_owned());
        self.inner.delete(key)
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn scratch(&self) -> Result<std::fs::File> {
        self.inner.scratch()
    }

    fn check_writable(&self) -> Result<()> {
        Ok(())
    }
}

#[test]
fn two_hundred_snapshots_cost_three_calls_an_object() {
    let levels: Vec<u8> = (0..200).map(|n| (n % 5) as u8).collect();
    for threads in [1, 8] {
        let (store, volume) = Model::of(&levels);
        let objects = store.list("data/").unwrap().len() as u64;
        let (tally, volume) = Tally::on(&volume, &store, u64::MAX);
        let outcome = expire(&volume, threads, NOW_MS).unwrap();
        let calls = tally.calls.load(Ordering::Relaxed);
        assert_eq!((outcome.expired, outcome.objects), (200, objects));
        assert!(calls <= 3 * objects, "{calls} calls for {objects} objects");
        assert!(store.list("data/").unwrap().is_empty());
        println!("{threads} threads: {calls} calls for {objects} objects of 200 snapshots");
        if threads == 1 {
            // Dependents go before what they were made from: the level of what is deleted never rises.
            let log = catalog::read(&volume, &job()).unwrap();
            let level = |key: &String| {
                let run: RunId = key.split('/').nth(2).unwrap().parse().unwrap();
                log.states.iter().find(|state| state.snapshot.run_id == run).unwrap().snapshot.level
            };
            let levels: Vec<u8> = tally.deleted.lock().unwrap().iter().map(level).collect();
            assert!(levels.is_sorted_by(|a, b| a >= b), "{levels:?}");
        }
    }
}

#[test]
fn more_than_fit_into_a_record_go_in_several() {
    const COUNT: u64 = 10_050;
    let (store, volume) = Model::of(&[0]);
    let log = catalog::read(&volume, &job()).unwrap();
    let (first, mut prev) = (log.state(1).unwrap().snapshot.clone(), log.head.digest);
    for seq in 2..=COUNT {
        let run_id = RunId::new(NOW_MS - 100_000 + seq).unwrap();
        let snapshot = Snapshot { seq, prev, run_id, ..first.clone() };
        let bytes = Record::Snapshot(Box::new(snapshot)).encode().unwrap();
        prev = Some(envelope::digest(&bytes).unwrap());
        store.set(&record_key(&job(), seq), bytes);
    }
    assert_eq!(expire(&volume, 1, NOW_MS).unwrap().expired, COUNT);
    let log = catalog::read(&volume, &job()).unwrap();
    log.sound().unwrap();
    assert_eq!((log.live().count(), log.records), (0, COUNT + 2));
}

#[test]
fn an_expiry_that_dies_at_any_call_is_resumed() {
    let (store, volume) = Model::of(&[0, 1, 2, 0, 1]);
    let orphan = format!("data/m/{}/tree-00000.tar", RunId::new(1).unwrap());
    store.set(&orphan, b"half".to_vec());
    let start: Vec<(String, Vec<u8>)> = store
        .list("")
        .unwrap()
        .into_iter()
        .map(|item| (item.key.clone(), store.read(&item.key, 1 << 20).unwrap()))
        .collect();
    for fails_at in 1.. {
        let store = MemoryStore::default();
        start.iter().for_each(|(key, bytes)| store.set(key, bytes.clone()));
        let plain = Volume { store: Arc::new(store.clone()), ..volume.clone() };
        let (_, failing) = Tally::on(&plain, &store, fails_at);
        let done = expire(&failing, 1 + (fails_at % 3) as usize, NOW_MS).is_ok();
        let log = catalog::read(&plain, &job()).unwrap();
        log.sound().unwrap();
        let lying = catalog::runs(&store.list("data/m/").unwrap(), &job());
        for snapshot in log.live() {
            assert_eq!(catalog::damage_in(&lying[&snapshot.run_id], snapshot), None, "call {fails_at}");
            catalog::chain(&log, snapshot).unwrap();
        }
        let gone: BTreeSet<RunId> = log.states.iter().filter(|s| !s.is_live()).map(|s| s.snapshot.run_id).collect();
        assert!(gone.is_empty() || gone.len() == 5, "one record says it all");
        let again = expire(&plain, 1, NOW_MS).unwrap();
        assert!(!done || again.objects == 0);
        assert!(store.list("data/").unwrap().is_empty(), "call {fails_at}");
        if done {
            println!("{} calls, each failed once", fails_at - 1);
            break;
        }
    }
}

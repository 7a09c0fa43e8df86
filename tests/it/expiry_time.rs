//! Expiry and the time: a clock that disagrees with the store's, and expiries that take longer than their grace.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bk::clock::{Clock, System};
use bk::model::ids::RunId;
use bk::model::time::Instant;
use bk::monitor::{Monitor, Silent};
use bk::ops::{expire, keep};
use bk::volume::local::LocalStore;
use bk::volume::{Store, Volume, open_on};

use crate::support::between::Dated;
use crate::support::{World, files_below};

/// A clock that is set while it runs.
struct Turned(Arc<AtomicU64>);

impl Clock for Turned {
    fn unix_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Does something when the first object is deleted.
struct Meanwhile(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Monitor for Meanwhile {
    fn warn(&self, _: &str) {}
    fn expect(&self, _: u64, _: u64) {}
    fn advance(&self, _: u64, _: u64, _: &[u8]) {
        if let Some(then) = self.0.lock().unwrap().take() {
            then();
        }
    }
}

fn request() -> expire::Request {
    expire::Request {
        job: None,
        node: "e".to_owned(),
        allow_last: true,
        yes: true,
        sweep_lost: false,
        dry_run: false,
        sweep_grace: expire::SWEEP_GRACE_SECONDS,
        threads: 1,
    }
}

fn set_due(volume: &Volume, name: &str, at: i64) {
    let when = keep::When::At(Instant::from_second(at).unwrap());
    keep::set(volume, &name.parse().unwrap(), when, "s", &System).unwrap();
}

fn with_jobs(name: &str, jobs: &[&str]) -> Option<World> {
    if std::env::var_os("BK_TEST_VOLUME").is_some() {
        return None;
    }
    let world = World::new(name);
    fs::write(world.src.join("f"), "f").unwrap();
    for job in jobs {
        world.snapshot(job, "").ok();
        world.snapshot(job, "").ok();
    }
    Some(world)
}

fn local(world: &World) -> Volume {
    open_on(Arc::new(LocalStore::open(&world.volume).unwrap()), "here".to_owned()).unwrap()
}

#[test]
fn a_run_that_goes_on_is_alive_however_long_the_expiry_takes() {
    let Some(world) = with_jobs("long-expiry", &["j", "k"]) else { return };
    let volume = local(&world);
    set_due(&volume, "j/1", 1);
    // A run of `k` stores something while the expiry begins; deleting what goes of `j` takes longer than the grace.
    let run = world.volume.join("data/k").join(RunId::new(System.unix_ms()).unwrap().to_string());
    let note = world.volume.join("runs/k").join(run.file_name().unwrap()).join("progress.0.json");
    for path in [run.join("tree-00000.tar.zst"), note] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "so far").unwrap();
    }
    let before = (files_below(&world.volume.join("data/k")), files_below(&world.volume.join("runs")));
    let now = Arc::new(AtomicU64::new(System.unix_ms()));
    let clock = Turned(Arc::clone(&now));
    let then = move || {
        now.fetch_add((expire::SWEEP_GRACE_SECONDS + 3600) * 1000, Ordering::Relaxed);
    };
    let meanwhile = Meanwhile(Mutex::new(Some(Box::new(then))));
    let outcome = expire::run(&volume, &request(), &clock, &meanwhile).unwrap();
    assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
    assert_eq!((outcome.expired, outcome.swept), (1, 0));
    assert_eq!((files_below(&world.volume.join("data/k")), files_below(&world.volume.join("runs"))), before);
}

#[test]
fn a_clock_that_disagrees_with_the_stores_expires_nothing() {
    let Some(world) = with_jobs("two-clocks", &["j"]) else { return };
    let plain = local(&world);
    let second = System.now().unwrap().as_second();
    set_due(&plain, "j/1", second + 86_400);
    let run = world.volume.join("data/j").join(RunId::new(System.unix_ms()).unwrap().to_string());
    let note = world.volume.join("runs/j").join(run.file_name().unwrap()).join("progress.0.json");
    for path in [run.join("tree-00000.tar.zst"), note] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "so far").unwrap();
    }
    let before = files_below(&world.volume);
    let with = |second: i64| {
        let now = Instant::from_second(second).unwrap();
        let store: Arc<dyn Store> = Arc::new(Dated { inner: Arc::clone(&plain.store), now });
        Volume { store, ..plain.clone() }
    };
    let at = |second: i64| Turned(Arc::new(AtomicU64::new(u64::try_from(second).unwrap() * 1000)));
    // Two days ahead of the store, and behind it.
    for dry_run in [false, true] {
        let request = expire::Request { dry_run, ..request() };
        for (store, node) in [(second, second + 2 * 86_400), (second + 2 * 86_400, second)] {
            let outcome = expire::run(&with(store), &request, &at(node), &Silent).unwrap();
            assert_eq!((outcome.expired, outcome.swept), (0, 0));
            assert!(outcome.errors[0].to_string().contains("clock"), "{:?}", outcome.errors);
        }
    }
    assert_eq!(files_below(&world.volume), before);
    // A few minutes are nothing.
    let outcome = expire::run(&with(second + 86_500), &request(), &at(second + 86_700), &Silent).unwrap();
    assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
    assert_eq!(outcome.expired, 1);
}

//! A signal ends bk whatever it waits for: a request that is never answered, the pause before the next try, room for
//! what is to be sent. Requests may take a minute and tries three, so a run that did not notice would not end in time.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::proxy::{Fault, Proxy};
use crate::support::rng::Rng;
use crate::support::{Bk, Ran, World, exit, list};

const OPTIONS: &str = "--frame-size 16KiB --part-size 64KiB --threads 2";
/// Shorter than one request may take.
const HANGS: Duration = Duration::from_secs(40);

fn world(name: &str) -> (World, Proxy) {
    let world = World::on_s3(name);
    fs::write(world.src.join("f"), Rng::new(500).noise(600_000)).unwrap();
    world.snapshot("s", &format!("{OPTIONS} --level 0")).ok();
    let proxy = Proxy::before(&world.server.as_ref().unwrap().endpoint);
    (world, proxy)
}

/// Starts `bk`, waits until `fault` has come, and sends the signal; the run must end by it while it waits.
fn ends(proxy: &Proxy, bk: Bk, signal: Signal, codes: &[i32], about: &str) -> Ran {
    let mut running = bk.env("AWS_ENDPOINT_URL", &proxy.endpoint).spawn();
    while proxy.came() == 0 {
        // How reads are joined to requests is a matter of timing: this time there were fewer.
        if running.child.try_wait().unwrap().is_some() {
            return running.finish();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // Others may get as far as to wait, too.
    std::thread::sleep(Duration::from_millis(100));
    let sent_at = Instant::now();
    running.signal(signal);
    let ran = running.finish();
    assert!(codes.contains(&ran.code()), "{about}: {}\n{}", ran.code(), ran.show());
    assert!(sent_at.elapsed() < HANGS, "{about}: {:?}\n{}", sent_at.elapsed(), ran.show());
    ran
}

#[test]
fn a_signal_ends_readers() {
    let (world, proxy) = world("s3-signal-read");
    for words in ["verify", "verify --data", "list", "export s/1 --no-cache", "cat s/1 f --no-cache"] {
        proxy.pass();
        world.bk(words).env("AWS_ENDPOINT_URL", &proxy.endpoint).run().ok();
        let count = proxy.seen().len();
        for k in [1, count / 2, count - 1] {
            for fault in [Fault::Hang, Fault::Status(503)] {
                proxy.plan(k, usize::MAX, fault);
                let about = format!("{words}, {fault:?} from request {k} of {count} on");
                ends(&proxy, world.bk(words), Signal::TERM, &[143], &about);
            }
        }
    }
    let out = world.path("out");
    proxy.plan(6, usize::MAX, Fault::Hang);
    ends(&proxy, world.bk("restore s/1 --target").arg(&out), Signal::INT, &[130], "restore");
}

#[test]
fn a_signal_ends_writers() {
    let (world, proxy) = world("s3-signal-write");
    let snapshot = |in_flight: &str| {
        let bk = world.bk(&format!("snapshot --job s {OPTIONS} --level 0")).small();
        bk.arg("-C").arg(&world.src).arg(".").env("BK_S3_IN_FLIGHT", in_flight)
    };
    proxy.pass();
    snapshot("").env("AWS_ENDPOINT_URL", &proxy.endpoint).run().ok();
    let count = proxy.seen().len();
    for k in (1..=count).step_by(2) {
        for (fault, in_flight) in [(Fault::Hang, "64KiB"), (Fault::Status(500), "")] {
            proxy.plan(k, usize::MAX, fault);
            let about = format!("{fault:?} from request {k} of {count} on");
            let before = list(&world.volume);
            let ran = ends(&proxy, snapshot(in_flight), Signal::TERM, &[143, 0], &about);
            // A commit that was sent, but not answered, may have been made; then it is said that nobody knows.
            let is_unknown = ran.said().contains("was recorded is not known");
            // After the commit only the lease is given back: then the run is done.
            let is_made = list(&world.volume) != before;
            assert!(is_unknown || is_made == (ran.code() == 0), "{about}\n{}", ran.show());
        }
    }
    Bk::new("verify --data --volume").arg(&world.volume).run().ok();
}

#[test]
fn a_server_that_went_away_ends_a_verify() {
    let (world, proxy) = world("s3-gone");
    proxy.pass();
    // What cannot be reached is no fault in what is stored, and one part of many says it.
    proxy.plan(7, usize::MAX, Fault::ResetBefore);
    let verify = world.bk("verify").env("AWS_ENDPOINT_URL", &proxy.endpoint).env("BK_TEST_S3_TIMEOUT_MS", "300");
    let ran = verify.run().code_is(&[exit::VOLUME]).says("cannot read");
    assert!(!ran.said().contains("faults"), "{}", ran.show());
}

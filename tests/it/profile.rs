//! Every snapshot tells where its time went, and what held it up is what was slow.

use std::fs;

use serde_json::Value;

use crate::support::World;
use crate::support::rng::Rng;

/// The profile of a snapshot on two threads, after a look at its sums.
fn profile(ran: &crate::support::Ran) -> Value {
    let profile = ran.json().last().unwrap()["profile"].clone();
    let (seconds, threads) = (profile["seconds"].as_f64().unwrap(), profile["threads"].as_f64().unwrap());
    let stages = profile["stages"].as_array().unwrap();
    assert_eq!(stages.len(), 8, "{profile}");
    let sum: f64 = stages.iter().map(|stage| stage["seconds"].as_f64().unwrap()).sum();
    // Each moment of the workers and the one that writes is in one stage; workers that end early leave a rest.
    assert!(sum > 0.5 * seconds && sum <= seconds * (threads + 1.0) + 0.01, "{sum} of {profile}");
    for stage in stages {
        let busy = stage["busy"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&busy), "{profile}");
    }
    assert!(profile["cpu_seconds"].as_f64().unwrap() <= seconds * (threads + 1.0) + 0.01, "{profile}");
    profile
}

fn busy(profile: &Value, stage: &str) -> f64 {
    let stages = profile["stages"].as_array().unwrap();
    stages.iter().find(|one| one["stage"] == stage).unwrap()["busy"].as_f64().unwrap()
}

#[test]
fn a_slow_source_holds_it_up() {
    let world = World::new("profile-source");
    let slow = "for n in 1 2 3; do head -c 400000 /dev/zero; sleep 0.5; done";
    let bk = world.bk("snapshot --json --threads 2 --job s -- sh -c").arg(slow);
    let profile = profile(&bk.run().ok());
    assert_eq!(profile["bottleneck"], "reading the source", "{profile}");
    assert!(busy(&profile, "read") > 0.5, "{profile}");
}

#[test]
fn a_slow_volume_holds_it_up() {
    let world = World::new("profile-volume");
    fs::write(world.src.join("noise"), Rng::new(31).noise(3_000_000)).unwrap();
    let words = "snapshot --json --threads 2 --frame-size 256KiB --limit-upload 1MiB --job s -C";
    let profile = profile(&world.bk(words).arg(&world.src).arg(".").run().ok());
    assert_eq!(profile["bottleneck"], "the volume", "{profile}");
    assert!(busy(&profile, "write") > 0.5, "{profile}");
}

#[test]
fn strong_compression_holds_it_up() {
    let world = World::new("profile-zstd");
    fs::write(world.src.join("prose"), Rng::new(32).prose(6_000_000)).unwrap();
    let words = "snapshot --json --threads 2 --frame-size 512KiB --compression zstd:19 --job s -C";
    let ran = world.bk(words).arg(&world.src).arg(".").run().ok();
    let profile = profile(&ran);
    assert_eq!(profile["bottleneck"], "compression", "{profile}");
    assert!(busy(&profile, "compress") > busy(&profile, "read"), "{profile}");
    // An increment has one, too, and people see it with -v.
    fs::write(world.src.join("more"), "x").unwrap();
    let words = "snapshot -v --threads 2 --level 1 --job s -C";
    world.bk(words).arg(&world.src).arg(".").run().ok().says("bottleneck: ").says("compress ");
}

//! Records of a log that are damaged or gone: what they said is not known, and nothing goes on as if they had never been.

use std::fs;
use std::path::PathBuf;

use crate::support::{Bk, World, exit};

/// A job `j` with `count` snapshots of a small file.
fn with_snapshots(name: &str, count: usize) -> World {
    let world = World::new(name);
    for n in 1..=count {
        fs::write(world.src.join("f"), format!("version {n}")).unwrap();
        world.snapshot("j", "").ok();
    }
    world
}

fn record(world: &World, seq: u64) -> PathBuf {
    world.volume.join(format!("log/j/{seq:020}.json"))
}

/// Damages record `seq`, or takes it away; gives what it was.
fn lose(world: &World, seq: u64, is_gone: bool) -> Vec<u8> {
    let path = record(world, seq);
    let good = fs::read(&path).unwrap();
    if is_gone {
        fs::remove_file(&path).unwrap();
    } else {
        let mut bad = good.clone();
        bad[40] ^= 1;
        fs::write(&path, bad).unwrap();
    }
    good
}

#[test]
fn the_latest_is_never_an_older_one() {
    let world = with_snapshots("latest", 3);
    // Copies of records that are kept near by would heal what is damaged here.
    if world.server.is_some() {
        return;
    }
    // A record of another kind after them, so that one in the middle can be missed.
    world.bk("hold j/1").run().ok();
    let second = world.path("second");
    Bk::new("volume create").arg(&second).run().ok();
    for is_gone in [false, true] {
        let good = lose(&world, 3, is_gone);
        for words in ["ls j/latest", "cat j/latest f", "export j/latest", "diff j/1 j/latest", "ls j/latest~1"] {
            let ran = world.bk(words).run().code_is(&[exit::INTEGRITY]);
            ran.says("00000000000000000003.json").says("j/2");
        }
        let (target, ran) = world.restore("j/latest", "out");
        ran.code_is(&[exit::INTEGRITY]);
        assert!(!target.exists());
        world.bk("copy j/latest --to").arg(&second).run().code_is(&[exit::INTEGRITY]);
        assert!(crate::support::list(&second).is_empty());
        let scratch = world.path("scratch");
        fs::create_dir_all(&scratch).unwrap();
        world.bk("drill j --scratch").arg(&scratch).run().code_is(&[exit::INTEGRITY]);
        // What is named is there.
        assert_eq!(world.bk("cat j/2 f").run().ok().text(), "version 2");
        world.bk("list").run().code_is(&[exit::INTEGRITY]).says("j/2").says("00000000000000000003.json");
        fs::write(record(&world, 3), good).unwrap();
    }
    assert_eq!(world.bk("cat j/latest f").run().ok().text(), "version 3");
    // What is newer is known; what comes before it is not.
    let good = lose(&world, 2, false);
    assert_eq!(world.bk("cat j/latest f").run().ok().text(), "version 3");
    world.bk("cat j/latest~1 f").run().code_is(&[exit::INTEGRITY]).says("00000000000000000002.json");
    fs::write(record(&world, 2), good).unwrap();
    assert_eq!(world.bk("cat j/latest~1 f").run().ok().text(), "version 2");
    // Where nothing can be read, nothing is said not to be there.
    let all: Vec<_> = (1..=4).map(|seq| lose(&world, seq, false)).collect();
    world.bk("ls j/latest").run().code_is(&[exit::INTEGRITY]);
    (1..).zip(all).for_each(|(seq, good)| fs::write(record(&world, seq), good).unwrap());
    world.bk("ls j/latest~3").run().code_is(&[exit::USAGE]).says("there is no snapshot");
}

//! Records of a log that are damaged or gone: what they said is not known, and nothing goes on as if they had never been.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bk::clock::Clock;
use bk::model::ids::RunId;

use crate::support::{Bk, World, exit, files_below, name_of, sorted};

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

/// The newest run of a job as if it had ended two days ago; gives its new name.
fn age(world: &World, job: &str) -> String {
    let dir = world.volume.join("data").join(job);
    let mut runs = sorted(&dir);
    runs.retain(|run| !sorted(run).is_empty());
    let ago = Duration::from_secs(2 * 86_400);
    let run = RunId::new(bk::clock::System.unix_ms() - 2 * 86_400_000).unwrap().to_string();
    let to = dir.join(&run);
    fs::create_dir_all(&to).unwrap();
    for file in sorted(runs.last().unwrap()) {
        fs::rename(&file, to.join(name_of(&file))).unwrap();
    }
    let file = |path: &Path| fs::File::options().write(true).open(path).unwrap();
    files_below(&to).iter().for_each(|path| file(path).set_modified(SystemTime::now() - ago).unwrap());
    run
}

#[test]
fn a_whole_run_whose_record_is_gone_is_told_and_stays() {
    let world = with_snapshots("unnamed", 3);
    fs::write(world.src.join("g"), "of k").unwrap();
    world.snapshot("k", "").ok();
    // The newest record of one job, and the whole log of another.
    fs::remove_file(record(&world, 3)).unwrap();
    fs::remove_dir_all(world.volume.join("log/k")).unwrap();
    // Young as they are, they may be about to get their records.
    world.bk("verify").run().ok();
    world.bk("check").run().ok();
    let runs = [("j", age(&world, "j")), ("k", age(&world, "k"))];
    let before = files_below(&world.volume.join("data"));
    let verified = world.bk("verify").run().code_is(&[exit::INTEGRITY]);
    for (job, run) in &runs {
        assert!(verified.said().contains(&format!("data/{job}/{run}/")), "{}", verified.show());
    }
    world.bk("check").run().code_is(&[1]).says(&runs[0].1);
    world.bk("check k").run().code_is(&[2]).says(&runs[1].1);
    world.bk("verify j/1").run().ok();
    for words in ["expire", "expire j", "expire k", "expire --dry-run"] {
        world.bk(words).run().code_is(&[exit::USAGE]).says("looks whole").says("below log/").says("--yes");
    }
    assert_eq!(files_below(&world.volume.join("data")), before);
    world.bk("expire --yes").run().ok().says("2 runs that never ended swept");
    assert_eq!(world.list(), ["j/1", "j/2"]);
    world.bk("verify").run().ok();
    world.bk("check j").run().ok();
}

#[test]
fn a_whole_run_that_was_killed_goes() {
    let world = with_snapshots("unnamed-killed", 2);
    fs::remove_file(record(&world, 2)).unwrap();
    let run = age(&world, "j");
    // What it said of itself is there: it did not end by itself.
    let notes = world.volume.join("runs/j").join(&run);
    fs::create_dir_all(&notes).unwrap();
    let note = notes.join("progress.0.json");
    fs::write(&note, "as it was").unwrap();
    let file = fs::File::options().write(true).open(&note).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(2 * 86_400)).unwrap();
    world.bk("verify").run().ok();
    world.bk("expire").run().ok().says("1 runs that never ended swept");
    assert_eq!(world.list(), ["j/1"]);
    assert!(files_below(&world.volume.join("runs")).is_empty());
}

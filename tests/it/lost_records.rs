//! Records of a log that are damaged or gone: what they said is not known, and nothing goes on as if they had never been.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bk::clock::Clock;
use bk::format::notes::{BEGUN_NAME, Note, Progress, RECORDED_NAME, Word};
use bk::model::ids::RunId;
use bk::model::time::Instant;

use crate::support::tools::need;
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
    let last = runs.last().unwrap();
    for file in sorted(last) {
        fs::rename(&file, to.join(name_of(&file))).unwrap();
    }
    let said = world.volume.join("runs").join(job);
    if said.join(name_of(last)).exists() {
        fs::rename(said.join(name_of(last)), said.join(&run)).unwrap();
    }
    set_ago(&files_below(&to), ago);
    set_ago(&files_below(&said), ago);
    run
}

fn set_ago(paths: &[PathBuf], ago: Duration) {
    let file = |path: &Path| fs::File::options().write(true).open(path).unwrap();
    paths.iter().for_each(|path| file(path).set_modified(SystemTime::now() - ago).unwrap());
}

/// What a run two days ago said of itself.
fn say(world: &World, run: &str, name: &str, note: &Note) {
    let path = world.volume.join("runs/j").join(run).join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, note.encode().unwrap()).unwrap();
    set_ago(&[path], Duration::from_secs(2 * 86_400));
}

fn word() -> Word {
    let written_at = Instant::from_second(1).unwrap();
    Word { format_version: 1, job: "j".parse().unwrap(), node: "n".to_owned(), written_at }
}

fn progress(phase: &str) -> Note {
    Note::Progress(Progress {
        format_version: 1,
        job: "j".parse().unwrap(),
        node: "n".to_owned(),
        pid: 1,
        level: 0,
        phase: phase.to_owned(),
        started_at: Instant::from_second(1).unwrap(),
        written_at: Instant::from_second(1).unwrap(),
        every_ms: 10_000,
        entries: 0,
        bytes: 0,
        bytes_expected: None,
        bytes_per_second: 0,
        comment: None,
    })
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
    for words in ["expire", "expire j", "expire k", "expire --dry-run", "expire --yes"] {
        world.bk(words).run().code_is(&[exit::USAGE]).says("looks whole").says("below log/").says("--sweep-lost");
    }
    assert_eq!(files_below(&world.volume.join("data")), before);
    world.bk("expire --sweep-lost").run().ok().says("2 runs that never ended swept");
    assert_eq!(world.list(), ["j/1", "j/2"]);
    world.bk("verify").run().ok();
    world.bk("check j").run().ok();
}

#[test]
fn nothing_goes_while_a_record_is_lost() {
    let world = with_snapshots("unnamed-due", 5);
    for seq in 1..=4 {
        world.bk(&format!("expire --set j/{seq} 2020-01-01")).run().ok();
    }
    // The snapshot is lost with all that was recorded since.
    let log = world.volume.join("log/j");
    sorted(&log).iter().skip(4).for_each(|path| fs::remove_file(path).unwrap());
    for seq in 1..=4 {
        world.bk(&format!("expire --set j/{seq} 2020-01-01")).run().ok();
    }
    let run = age(&world, "j");
    let before = files_below(&world.volume);
    for words in ["expire", "expire --yes", "expire --yes --allow-last", "expire --dry-run"] {
        world.bk(words).run().code_is(&[exit::USAGE]).says(&run).says("--sweep-lost");
        assert_eq!(files_below(&world.volume), before, "{words}");
    }
    // Younger than what is swept, but old enough to be none that goes on.
    let hours = Duration::from_secs(2 * 3600);
    let younger = RunId::new(bk::clock::System.unix_ms() - 2 * 3_600_000).unwrap().to_string();
    fs::rename(world.volume.join("data/j").join(&run), world.volume.join("data/j").join(&younger)).unwrap();
    set_ago(&files_below(&world.volume.join("data/j").join(&younger)), hours);
    world.bk("expire --yes").run().code_is(&[exit::USAGE]).says(&younger);
    world.bk("expire --sweep-lost").run().code_is(&[exit::USAGE]).says("would go at once").says("--yes");
    world.bk("expire --sweep-lost --yes").run().ok().says("3 snapshots expired");
    assert!(world.volume.join("data/j").join(&younger).exists());
}

#[test]
fn a_whole_run_whose_end_was_not_known_goes() {
    let not_known = [(BEGUN_NAME, Note::Begun(word())), ("progress.7.json", progress("committing"))];
    for (name, note) in not_known {
        let world = with_snapshots("unnamed-killed", 2);
        fs::remove_file(record(&world, 2)).unwrap();
        let run = age(&world, "j");
        say(&world, &run, name, &note);
        world.bk("verify").run().ok();
        // It may well be said to stall.
        assert!(!world.bk("check j").run().said().contains("looks whole"), "{name}");
        world.bk("expire").run().ok().says("1 runs that never ended swept");
        assert_eq!(world.list(), ["j/1"]);
        assert!(files_below(&world.volume.join("runs")).is_empty());
    }
}

#[test]
fn a_lost_record_is_told_whatever_its_run_left() {
    let world = with_snapshots("unnamed-left", 2);
    fs::remove_file(record(&world, 2)).unwrap();
    let run = age(&world, "j");
    let is_told = || {
        world.bk("verify").run().code_is(&[exit::INTEGRITY]).says(&run);
        world.bk("expire --yes").run().code_is(&[exit::USAGE]).says(&run);
    };
    // It was recorded, and may have been killed after that.
    say(&world, &run, "progress.7.json", &progress("storing"));
    say(&world, &run, "progress.8.json", &progress("leaving"));
    is_told();
    // Nor could it take back what it said.
    say(&world, &run, BEGUN_NAME, &Note::Begun(word()));
    say(&world, &run, RECORDED_NAME, &Note::Recorded(word()));
    is_told();
}

#[test]
fn a_run_that_ends_at_its_commit_has_lost_no_record() {
    let me = "a_run_that_ends_at_its_commit_has_lost_no_record";
    if !need(me, &["strace"]) {
        return;
    }
    for (what, code) in [("signal=SIGKILL", 137), ("error=EIO", exit::LOST)] {
        let world = with_snapshots("unnamed-commit", 1);
        if world.server.is_some() {
            return;
        }
        let log = world.path("strace");
        let under = |more: &[&str]| {
            let head = ["strace", "-f", "-qq", "-e", "trace=linkat"].iter().chain(more).chain(&["-o"]);
            let program: Vec<&OsStr> = head.map(OsStr::new).chain([log.as_os_str()]).collect();
            let bk = world.bk_under(&program, "snapshot --job j --level 0 --threads 1");
            bk.arg("-C").arg(&world.src).arg(".").run()
        };
        under(&[]).ok();
        // Which link of its thread makes the record.
        let text = fs::read_to_string(&log).unwrap();
        let lines: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(' ')).collect();
        let made = lines.iter().position(|(_, call)| call.contains("00000000000000000002.json")).unwrap();
        let when = lines[..=made].iter().filter(|(pid, _)| *pid == lines[made].0).count();
        under(&["-e", &format!("inject=linkat:{what}:when={when}")]).code_is(&[code, exit::VOLUME]);
        assert_eq!(world.list(), ["j/1", "j/2"], "{what}");
        age(&world, "j");
        let lying = sorted(&world.volume.join("data/j")).iter().filter(|dir| !sorted(dir).is_empty()).count();
        assert_eq!(lying, 3, "{what}: what it stored lies there");
        world.bk("verify").run().ok();
        world.bk("check j").run().ok();
        world.bk("expire").run().ok().says("1 runs that never ended swept");
        assert!(files_below(&world.volume.join("runs")).is_empty(), "{what}");
    }
}

//! Runs in trouble that is not of their commands' making: a state directory that is full, a configuration broken between kill and
//! recovery, a volume that goes away, an abort that comes late.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::job::Job;
use crate::support::tools::{Mounted, need_root, skip};
use crate::support::{Bk, exit};

/// Fills a file system but for what its last page holds.
fn fill(dir: &Path) {
    let block = vec![0; 4096];
    let mut file = fs::File::create(dir.join("fill")).unwrap();
    while std::io::Write::write_all(&mut file, &block).is_ok() {}
}

/// A step that is not noted is not begun, one that was begun is left, and what was noted can be read: whenever the disk gets full.
#[test]
fn a_full_state_directory_leaves_the_application_open() {
    let me = "a_full_state_directory_leaves_the_application_open";
    if !need_root(me) {
        return;
    }
    for at in ["before", "tape enter", "a enter", "b enter", "run stream", "b leave", "a leave"] {
        let mut job = Job::new("trouble-full");
        // So long that a line crosses a page of the disk.
        for step in ["tape", "a", "b"] {
            job.steps.insert(step, format!("env = {{ PAD = '{}' }}", "x".repeat(3500)));
        }
        let Some(disk) = Mounted::tmpfs(&job.state(), "64k") else {
            skip(me, "cannot mount a tmpfs");
            return;
        };
        let ran = if at == "before" {
            fill(&disk.at);
            job.bk().run()
        } else {
            job.mode(at, "stop");
            let running = job.bk().spawn();
            job.wait_for_stop();
            fill(&disk.at);
            job.go();
            running.finish()
        };
        assert!(job.entered().is_empty(), "{at}: {:?} is entered\n{}", job.entered(), ran.show());
        for name in ["tape", "a", "b"] {
            let (enter, leave) = (job.count(&format!("{name} enter")).0, job.count(&format!("{name} leave")).1);
            assert!(enter == 0 || leave >= 1, "{at}: {name} is begun and not left\n{}", ran.show());
        }
        if matches!(at, "before") {
            assert!(job.began().iter().all(|one| !one.ends_with("enter")), "{:?}", job.began());
            assert!([7, exit::NO_SPACE].contains(&ran.code()), "{at}\n{}", ran.show());
        }
        // A run that could note all it had to is one that went well.
        assert!([0, 7, exit::NO_SPACE].contains(&ran.code()), "{at}\n{}", ran.show());
        assert_eq!(ran.code() == 0, job.journals() == 0 && job.snapshots() == 1, "{at}\n{}", ran.show());
        fs::remove_file(disk.at.join("fill")).unwrap();
        job.recover().run().ok();
        job.bk().run().ok();
        assert!(job.entered().is_empty() && job.journals() == 0, "{at}");
    }
}

/// A line of which the disk took a half is taken back: what is noted after it, when there is room again, can be read.
#[test]
fn half_a_line_of_a_full_disk_spoils_nothing() {
    let me = "half_a_line_of_a_full_disk_spoils_nothing";
    if !need_root(me) {
        return;
    }
    let mut job = Job::new("trouble-half");
    let pad = format!("env = {{ PAD = '{}' }}", "x".repeat(3500));
    job.steps.insert("b", pad);
    let Some(disk) = Mounted::tmpfs(&job.state(), "64k") else {
        skip(me, "cannot mount a tmpfs");
        return;
    };
    job.mode("a enter", "stop");
    job.mode("tape leave", "hang");
    let mut running = job.bk().spawn();
    job.wait_for_stop();
    fill(&disk.at);
    // `b` cannot be noted; there is room again when `a` is left.
    job.mode("a leave", "room");
    job.go();
    job.wait_for("a command that hangs", || job.dir.join("hanging").exists());
    assert_eq!((job.count("b enter").0, job.count("tape leave").0), (0, 1));
    for pid in job.watchers() {
        _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
    }
    running.signal(Signal::KILL);
    running.child.wait().unwrap();
    job.well("tape leave");
    job.recover().run().ok();
    assert!(job.entered().is_empty() && job.journals() == 0);
    assert_eq!((job.count("a leave").1, job.count("tape leave").1), (1, 1));
}

/// Kills bk and its watcher in the middle of `at`.
fn killed(at: &str) -> Job {
    let job = Job::new("trouble-kill");
    job.mode(at, "stop");
    let mut running = job.bk().spawn();
    job.wait_for_stop();
    job.well(at);
    for pid in job.watchers() {
        _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
    }
    running.signal(Signal::KILL);
    running.child.wait().unwrap();
    job
}

#[test]
fn what_was_begun_is_left_when_the_configuration_is_broken() {
    for text in ["this is not TOML\nstate_dir = 'STATE'\n", "state_dir = 'STATE'\n[job.app]\npahts = ['/x']\n"] {
        let job = killed("b enter");
        let file = job.world.path("bk.toml");
        fs::write(&file, text.replace("STATE", &job.state().display().to_string())).unwrap();
        let ran = Bk::new("recover --config").arg(&file).run().ok();
        assert!(job.entered().is_empty() && job.journals() == 0, "{}", ran.show());
        ran.says("bk.toml:").says("what was noted is left all the same");
        job.go();
    }
}

#[test]
fn a_job_that_is_gone_from_the_configuration_is_left() {
    let job = killed("b enter");
    fs::write(job.world.path("bk.toml"), format!("state_dir = '{}'\n", job.state().display())).unwrap();
    Bk::new("recover --config").arg(job.world.path("bk.toml")).run().ok().says("app: left");
    assert!(job.entered().is_empty() && job.journals() == 0);
    job.go();
}

#[test]
fn two_recoveries_at_once_leave_once() {
    let job = killed("b enter");
    job.go();
    job.bk().words("--validate").run().code_is(&[7]).says("is not left yet").says("bk recover app");
    let running: Vec<_> = (0..4).map(|_| job.recover().spawn()).collect();
    running.into_iter().for_each(|one| drop(one.finish().ok()));
    assert!(job.entered().is_empty() && job.journals() == 0);
    for leave in ["tape leave", "a leave", "b leave"] {
        assert_eq!(job.count(leave), (1, 1), "{leave}");
    }
}

#[test]
fn a_volume_that_goes_away_ends_the_run_and_all_is_left() {
    let job = Job::new("trouble-volume");
    fs::write(job.world.src.join("big"), crate::support::rng::Rng::new(9).noise(3_000_000)).unwrap();
    job.mode("run stream", "stop");
    let running = job.bk().spawn();
    job.wait_for_stop();
    fs::remove_dir_all(&job.world.volume).unwrap();
    job.go();
    let ran = running.finish();
    assert!([exit::VOLUME, exit::ERROR, exit::LOST].contains(&ran.code()), "{}", ran.show());
    assert!(job.entered().is_empty() && job.journals() == 0, "{}", ran.show());
    assert_eq!((job.count("b leave"), job.count("a leave"), job.count("tape leave")), ((1, 1), (1, 1), (1, 1)));
    assert!(!job.world.volume.exists(), "the volume was made again");
}

/// An abort that comes before the record keeps nothing; one that comes after it changes nothing.
#[test]
fn an_abort_that_comes_late() {
    for (at, code, snapshots) in [("a enter", 143, 0), ("run regate", 143, 0), ("b leave", 0, 1)] {
        let job = Job::new("trouble-abort");
        job.mode(at, "stop");
        let running = job.bk().env("BK_TEST_BEAT_MS", "200").spawn();
        job.wait_for_stop();
        let status = || job.world.bk("status app --json").run().ok().json();
        if snapshots == 0 {
            let phase = if at == "a enter" { "entering" } else { "committing" };
            job.wait_for("word of the run", || status()[0]["phase"] == phase);
            job.world.bk("abort app").run().ok();
        } else {
            // It is recorded: there is nothing to be stopped any more.
            let told = status();
            assert_eq!(told[0]["newest"]["snapshot"], "app/1", "{told:?}");
            job.world.bk("abort app").run().code_is(&[exit::ERROR]).says("no run of app is under way");
        }
        if at != "a enter" {
            std::thread::sleep(std::time::Duration::from_millis(500));
            job.go();
        }
        let ran = running.finish().code_is(&[code]);
        assert_eq!(job.snapshots(), snapshots, "{at}\n{}", ran.show());
        assert!(job.entered().is_empty() && job.journals() == 0, "{at}\n{}", ran.show());
    }
}

/// A dump that hangs, before or after it has closed its output, is ended by a signal, and by its own time.
#[test]
fn a_stream_that_hangs_is_ended() {
    for line in [
        "echo a dump; exec sleep 1000",
        "echo a dump; exec >&-; sleep 1000",
        "trap '' TERM; exec >&-; sleep 1000; sleep 1000",
    ] {
        let world = crate::support::World::new("trouble-stream");
        let at = world.path("at");
        let text = format!("touch {}; {line}", at.display());
        let running = world.bk("snapshot --job s -- sh -c").arg(&text).spawn();
        while !at.exists() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        running.signal(Signal::TERM);
        running.finish().code_is(&[143]);
        let file = world.path("bk.toml");
        let job = format!(
            "[volume.v]\nurl = '{}'\n[job.s.stream.s]\nshell = true\ntimeout = '1s'\ncommand = \"\"\"{line}\"\"\"\n",
            world.named().display()
        );
        fs::write(&file, job).unwrap();
        let ran =
            world.bk("snapshot s --json").without("BK_VOLUME").env("BK_CONFIG", &file).run().code_is(&[exit::ERROR]);
        ran.says("took longer than 1s");
        assert!(
            world.list().is_empty() && crate::support::files_below(&world.volume.join("data")).is_empty(),
            "{line}"
        );
    }
}

//! The application is opened again, and only closed as long as a snapshot can come of it: whatever hangs, nobody reads, is not there or
//! was taken over by another.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::support::job::Job;
use crate::support::tools::{Frozen, Mounted, need, need_root, shell_ok, skip};
use crate::support::{Bk, exit};

#[test]
fn a_volume_that_hangs_holds_no_application() {
    let me = "a_volume_that_hangs_holds_no_application";
    if !need_root(me) || !need(me, &["fsfreeze", "mkfs.ext4", "losetup"]) {
        return;
    }
    for how in ["max_hold", "signal"] {
        let mut job = Job::new("reopened-frozen");
        fs::remove_dir_all(&job.world.volume).unwrap();
        let Some(disk) = Mounted::ext4(&job.world.path("disk"), 64 << 20, &job.world.volume) else {
            skip(me, "cannot mount an ext4");
            return;
        };
        let volume = disk.at.join("bk");
        Bk::new("volume create").arg(&volume).run().ok();
        job.world.volume.clone_from(&volume);
        if how == "max_hold" {
            job.keys = "max_hold = '3s'\n".to_owned();
        }
        job.mode("run stream", "stop");
        let running = job.bk().env("BK_TEST_STOP_MS", "500").spawn();
        job.wait_for_stop();
        assert_eq!(job.entered(), ["a", "b", "tape"]);
        let frozen = Frozen::new(&disk.at);
        job.go();
        if how == "signal" {
            running.signal(Signal::TERM);
        }
        job.wait_for("application that is open", || job.entered() == ["tape"]);
        drop(frozen);
        let result = if how == "signal" { "interrupted" } else { "step-failed" };
        assert!(job.had("a leave", &format!("BK_RESULT={result}")), "{how}");
        let code = if how == "signal" { 143 } else { 7 };
        let ran = running.finish().code_is(&[code]);
        assert_eq!((job.snapshots(), job.journals()), (0, 0), "{how}\n{}", ran.show());
        assert!(job.entered().is_empty(), "{how}");
    }
}

/// Its steps say much, and neither output of bk is read.
#[test]
fn nobody_reads_what_is_said() {
    for how in [None, Some(Signal::TERM), Some(Signal::KILL)] {
        let job = Job::new("reopened-unread");
        job.mode("b enter", "flood");
        job.mode("run stream", "stop");
        let running = job.bk().words("-v").spawn();
        job.wait_for_stop();
        match how {
            None => job.go(),
            Some(signal) => running.signal(signal),
        }
        job.wait_for("application that is open", || job.entered().is_empty() && job.journals() == 0);
        job.go();
        let code = how.map_or(0, |signal| 128 + signal.as_raw());
        assert_eq!(running.finish().code(), code, "{how:?}");
    }
}

#[test]
fn what_cannot_be_left_is_not_begun() {
    for (command, began) in [("b leave", "b enter"), ("a leave_until", "a enter")] {
        let mut job = Job::new("reopened-missing");
        job.missing = Some(command.to_owned());
        let ran = job.bk().run().code_is(&[7]).says("is not begun");
        assert_eq!(job.count(began).0, 0, "{command}\n{}", ran.show());
        assert!(job.entered().is_empty() && job.journals() == 0 && job.snapshots() == 0, "{command}");
    }
    let mut job = Job::new("reopened-relative");
    job.steps.insert("b", "enter_until = ['./act']".to_owned());
    job.bk().run().code_is(&[7]).says("not an absolute path");
    assert!(job.began().iter().all(|command| command.starts_with("tell ")), "{:?}", job.began());
}

/// A run that was still while another took its place closes nothing any more.
#[test]
fn a_run_that_lost_its_lease_closes_nothing() {
    let job = Job::new("reopened-lost");
    job.mode("a enter", "stop");
    let running = job.bk().env("BK_TEST_LEASE_MS", "2400").spawn();
    job.wait_for_stop();
    running.signal(Signal::STOP);
    // Not the same machine, as it looks: nothing there knows of the process that is still.
    let script =
        format!("touch {0}/other; while [ ! -e {0}/other-goes ]; do sleep 0.05; done; echo dump", job.dir.display());
    let other = || {
        let bk = Bk::new("snapshot --job app --node n2 -- sh -c").arg(&script).env("BK_VOLUME", &job.world.volume);
        bk.env("BK_TEST_LEASE_MS", "2400").spawn()
    };
    let mut taken = other();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while !job.dir.join("other").exists() {
        assert!(std::time::Instant::now() < end, "the other run does not begin");
        // Till the lease has run out it gives way.
        if taken.child.try_wait().unwrap().is_some() {
            taken = other();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    job.go();
    running.signal(Signal::CONT);
    let ran = running.finish().code_is(&[exit::LOST]);
    fs::write(job.dir.join("other-goes"), "").unwrap();
    taken.finish().ok();
    assert_eq!(job.count("b enter").0, 0, "{:?}\n{}", job.began(), ran.show());
    assert!(job.entered().is_empty() && job.journals() == 0 && job.snapshots() == 1, "{}", ran.show());
}

#[test]
fn nothing_of_a_streams_command_outlives_its_run() {
    let mut job = Job::new("reopened-group");
    job.stream = ", timeout = '1s'".to_owned();
    job.mode("run stream", "fork");
    let ran = job.bk().run().code_is(&[exit::ERROR]);
    let all = shell_ok("ps -eo args", &[]);
    let ours = job.dir.join("act").display().to_string();
    let all = String::from_utf8_lossy(&all.stdout).into_owned();
    assert!(!all.lines().any(|line| line.contains(&ours)), "{all}\n{}", ran.show());
    assert!(job.entered().is_empty() && job.snapshots() == 0);
}

/// What follows a run hears of success only when nothing is missing.
#[test]
fn an_incomplete_snapshot_is_no_success() {
    let mut job = Job::new("reopened-incomplete");
    job.paths = ", '/no/such/source'".to_owned();
    let ran = job.bk().run().code_is(&[exit::INCOMPLETE]);
    assert_eq!((job.count("tell run").0, job.count("glad run").0), (1, 0), "{}", ran.show());
}

#[test]
fn a_state_directory_that_cannot_be_used_is_told() {
    let job = Job::new("reopened-state");
    fs::create_dir_all(job.state()).unwrap();
    fs::set_permissions(job.state(), fs::Permissions::from_mode(0o777)).unwrap();
    let ran = job.bk().run().code_is(&[7]).says("is not bk's alone");
    assert_eq!(job.order(), ["tell run"], "{}", ran.show());
}

/// Signals as the parent left them: a hang-up that is ignored stays so, children can be waited for all the same.
#[test]
fn what_the_parent_ignores() {
    let job = Job::new("reopened-signals");
    job.mode("run stream", "stop");
    let running = job.bk_under(&["nohup".as_ref()]).spawn();
    job.wait_for_stop();
    let children = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("snapshot") && line.contains(&job.world.path("bk.toml").display().to_string())
    });
    for child in children {
        let pid = child.file_name().into_string().unwrap();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    }
    job.go();
    running.finish().ok();
    let script =
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])";
    let words = ["python3", "-S", "-E", "-c", script].map(std::ffi::OsStr::new);
    let ran = job.bk_under(&words).run().ok();
    assert_eq!(job.count("a enter"), (1, 1), "{}", ran.show());
}

/// An application that `leave` has started is no command of the run that was killed.
#[test]
fn what_leaving_started_is_not_ended() {
    let mut job = Job::new("reopened-started");
    let app = job.world.path("app");
    let alive = || fs::read_to_string(&app).is_ok_and(|pid| Path::new("/proc").join(pid.trim()).exists());
    // It is asked for till the run is killed meanwhile.
    let leave = format!("[ -e {0} ] || {{ nohup sleep 60 >/dev/null 2>&1 & echo $! > {0}; }}", app.display());
    let until = format!("touch {0}.asked; [ -e {0}.up ]", app.display());
    job.keys = format!(
        "step = [{{ name = 'app', enter = ['true'], leave = ['sh', '-c', \"{leave}\"], leave_until = ['sh', '-c', '{until}'], max_wait = '60s' }}]\n"
    );
    let config = job.world.path("app.toml");
    let state = job.state().display().to_string();
    let text = format!(
        "state_dir = '{state}'\n[volume.main]\nurl = '{}'\n[job.app]\npaths = ['{}']\n{}",
        job.world.volume.display(),
        job.world.src.display(),
        job.keys
    );
    fs::write(&config, text).unwrap();
    let running = Bk::new("snapshot app --config").arg(&config).spawn();
    job.wait_for("leave that waits", || app.with_extension("asked").exists() && alive());
    running.signal(Signal::KILL);
    job.wait_for("leave that waits again", || {
        drop(fs::remove_file(app.with_extension("asked")));
        std::thread::sleep(std::time::Duration::from_secs(2));
        job.watchers().len() == 1 && app.with_extension("asked").exists()
    });
    fs::write(app.with_extension("up"), "").unwrap();
    running.finish();
    job.wait_for("journal that is done", || job.journals() == 0);
    assert!(alive(), "the application was ended");
    let pid = fs::read_to_string(&app).unwrap();
    assert!(Command::new("kill").arg(pid.trim()).status().unwrap().success());
}

/// With `per_node` the journal has the node's name.
#[test]
fn a_job_per_node_is_recovered_by_its_own_name() {
    let mut job = Job::new("reopened-node");
    job.keys = "per_node = true\nnode = 'n1'\n".to_owned();
    job.mode("run stream", "stop");
    let running = job.bk().spawn();
    job.wait_for_stop();
    let noted = || {
        crate::support::sorted(&job.state().join("runs"))
            .iter()
            .map(|path| crate::support::name_of(path))
            .collect::<Vec<_>>()
    };
    let watcher = job.watchers();
    assert_eq!((watcher.len(), noted()), (1, vec!["app.n1".to_owned()]));
    for pid in watcher {
        assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    }
    running.signal(Signal::KILL);
    // What its stream runs holds its output.
    job.go();
    running.finish();
    assert_eq!(job.entered(), ["a", "b", "tape"]);
    let recover = |name: &str| Bk::new("recover --config").arg(job.world.path("bk.toml")).arg(name).run();
    recover("nobody").code_is(&[exit::USAGE]).says("no job is called nobody");
    recover("app").ok().says("app.n1: left");
    assert!(job.entered().is_empty());
}

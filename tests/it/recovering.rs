//! Recovering that is itself disturbed: by signals, by a kill, by a session of its own. Nobody stands behind it.

use std::ffi::OsStr;
use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::job::Job;
use crate::support::tools::need;
use crate::support::{Bk, Running};

/// A run that was killed while its stream hung, and whose watcher was killed before: all is entered.
fn killed(job: &Job) {
    job.mode("run stream", "hang");
    let mut running = job.bk().spawn();
    job.wait_for("stream that hangs", || job.dir.join("hanging").exists());
    for pid in job.watchers() {
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
    job.wait_for("end of the watcher", || job.watchers().is_empty());
    running.signal(Signal::KILL);
    // Its stream still has its output.
    running.child.wait().unwrap();
    assert_eq!(job.entered(), ["a", "b", "tape"]);
}

/// While `b` is left, which waits, two signals come.
fn told_twice(job: &Job, running: Running) {
    job.wait_for_stop();
    for signal in [Signal::TERM, Signal::TERM] {
        running.signal(signal);
        std::thread::sleep(Duration::from_millis(300));
    }
    job.go();
    let ran = running.finish().code_is(&[0, 143]);
    assert!(job.entered().is_empty() && job.journals() == 0, "{:?}\n{}", job.entered(), ran.show());
    assert_eq!((job.count("b leave"), job.count("a leave")), ((1, 1), (1, 1)));
}

#[test]
fn two_signals_let_recover_leave_all() {
    let job = Job::new("recovering-told");
    killed(&job);
    job.mode("b leave", "stop");
    told_twice(&job, job.recover().spawn());
}

#[test]
fn two_signals_let_the_next_run_leave_what_the_last_one_began() {
    let job = Job::new("recovering-next");
    killed(&job);
    job.mode("b leave", "stop");
    told_twice(&job, job.bk().spawn());
    assert_eq!(job.count("a enter"), (0, 0));
}

/// Commands of the job that run now.
fn commands(job: &Job) -> usize {
    let act = job.dir.join("act").display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|one| fs::read(one.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(&act)).count()
}

/// What a recovery that was killed left running is ended by the next one, whatever session that was in.
#[test]
fn nothing_is_left_twice_at_the_same_time() {
    if !need("nothing_is_left_twice_at_the_same_time", &["setsid"]) {
        return;
    }
    let job = Job::new("recovering-twice");
    killed(&job);
    job.mode("b leave", "stop");
    let recover = || Bk::under(&[OsStr::new("setsid")], "recover --json --state-dir").arg(job.state());
    let mut first = recover().spawn();
    job.wait_for_stop();
    first.signal(Signal::KILL);
    first.child.wait().unwrap();
    assert!(commands(&job) > 0);
    job.well("b leave");
    recover().run().ok();
    assert_eq!(commands(&job), 0);
    assert_eq!(job.count("b leave"), (2, 1));
    assert!(job.entered().is_empty() && job.journals() == 0);
}

//! A job's run: the order of all commands, in success and at each possible failure, and what is left when it is killed.

use std::ffi::OsStr;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::job::Job;
use crate::support::tools::{need_root, skip};

/// All commands of a run that goes well, in order.
const ORDER: [&str; 12] = [
    "run gate",
    "tape enter",
    "a enter",
    "a enter_until",
    "b enter",
    "run stream",
    "run regate",
    "b leave",
    "a leave",
    "a leave_until",
    "tape leave",
    "glad run",
];
/// Where the snapshot is recorded: before this one.
const RECORDED: usize = 7;

/// What a run comes to whose command `at` fails.
fn expected(at: usize) -> Vec<&'static str> {
    let mut order: Vec<&str> = ORDER[..=at].to_vec();
    let begun = |name: &str| ORDER[..=at].contains(&name);
    for (leave, enter) in
        [("b leave", "b enter"), ("a leave", "a enter"), ("a leave_until", "a enter"), ("tape leave", "tape enter")]
    {
        // What follows a leave of the same step is not asked when that failed.
        let is_stuck = leave == "a leave_until" && ORDER[at] == "a leave";
        if begun(enter) && !order.contains(&leave) && !is_stuck {
            order.push(leave);
        }
    }
    order.push("tell run");
    order
}

fn code(at: usize) -> i32 {
    match ORDER[at] {
        "run gate" | "run regate" => 5,
        "tape enter" | "tape leave" => 4,
        "run stream" => 1,
        _ => 7,
    }
}

#[test]
fn a_run_that_goes_well() {
    let job = Job::new("run-well");
    let ran = job.bk().run().ok();
    assert_eq!(job.order(), ORDER);
    let result = ran.json().pop().unwrap();
    assert_eq!((&result["outcome"], &result["exit"], &result["gate"]), (&"done".into(), &0.into(), &"command".into()));
    assert!(result["held_seconds"].as_f64().unwrap() > 0.0, "{result}");
    let steps: Vec<String> =
        result["steps"].as_array().unwrap().iter().map(|one| format!("{} {}", one["step"], one["phase"])).collect();
    assert_eq!(steps.len(), 9, "{steps:?}");
    assert!(job.entered().is_empty() && job.journals() == 0 && job.watchers().is_empty());
    let said = std::fs::read_to_string(job.dir.join("env/b-leave")).unwrap();
    for line in ["BK_JOB=app", "BK_LEVEL=0", "BK_RESULT=done", "BK_SNAPSHOT=app/1"] {
        assert!(said.lines().any(|one| one == line), "{line} is not in {said}");
    }
    let told: serde_json::Value =
        serde_json::from_slice(&std::fs::read(job.dir.join("env/glad.json")).unwrap()).unwrap();
    assert_eq!((&told["snapshot"], &told["exit"]), (&"app/1".into(), &0.into()));
}

/// As after `docker exec`: processes that are outside have the number 0 there, bk's session leader among them.
#[test]
fn a_run_in_a_container() {
    let me = "a_run_in_a_container";
    let alone = ["unshare", "--pid", "--fork", "--mount-proc"].map(OsStr::new);
    if !need_root(me) {
        return;
    }
    if !Command::new(alone[0]).args(&alone[1..]).arg("true").status().is_ok_and(|status| status.success()) {
        skip(me, "cannot make a PID namespace");
        return;
    }
    let job = Job::new("run-container");
    job.bk_under(&alone).run().ok();
    assert_eq!(job.order(), ORDER);
    job.mode("b enter", "fail");
    job.bk_under(&alone).run().code_is(&[7]);
    assert!(job.entered().is_empty() && job.journals() == 0);
}

#[test]
fn each_command_fails_in_each_way() {
    for (at, command) in ORDER.iter().enumerate().take(11) {
        for fault in ["fail", "kill", "hang", "missing"] {
            let mut job = Job::new("run-fault");
            match fault {
                "missing" => job.missing = Some((*command).to_owned()),
                _ => job.mode(command, fault),
            }
            let step = command.split(' ').next().unwrap();
            match (fault, step) {
                ("hang", "run") if *command == "run stream" => job.stream = ", timeout = '2s'".to_owned(),
                ("hang", "run") => {
                    let act = job.dir.join("act").display().to_string();
                    job.keys = format!("gate = {{ kind = 'command', tries = 2, timeout = '2s', command = ['{act}'] }}");
                }
                ("hang", "a") => _ = job.steps.insert("a", "timeout = '2s'".to_owned()),
                ("hang", "b") => _ = job.steps.insert("b", "timeout = '2s'".to_owned()),
                ("hang", _) => _ = job.steps.insert("tape", "timeout = '2s'".to_owned()),
                // What cannot be left is not begun: `reopened::what_cannot_be_left_is_not_begun`.
                ("missing", _) if at >= RECORDED => continue,
                // Both asks of a gate are the same command, and so not there together.
                ("missing", "run") if *command == "run regate" => continue,
                _ => {}
            }
            let what = format!("{command}: {fault}");
            let ran = job.bk().run();
            assert_eq!(ran.code(), code(at), "{what}\n{}", ran.show());
            let mut order = expected(at);
            if fault == "missing" {
                order.retain(|one| one != command);
            }
            assert_eq!(job.order(), order, "{what}\n{}", ran.show());
            let tries = job.count(command).0;
            let is_tried = !matches!(*command, "run stream" | "a enter_until" | "a leave_until");
            assert!(fault == "missing" && tries == 0 || !is_tried || tries == 2, "{what}: {tries} tries");
            assert_eq!(job.snapshots(), usize::from(at >= RECORDED), "{what}");
            let result = ran.json().pop().unwrap();
            assert_eq!(result["exit"], code(at), "{what}: {result}");
            // What could not be left is noted, and is left as soon as it can be.
            let is_stuck = at >= RECORDED;
            assert_eq!(job.journals(), usize::from(is_stuck), "{what}");
            if is_stuck {
                job.recover().run().code_is(&[7]).says("--forget");
                let again = job.bk().run().code_is(&[7]).says("bk recover app");
                assert!(!job.began().iter().any(|one| one == "run gate"), "{what}\n{}", again.show());
            }
            job.well(command);
            job.missing = None;
            let next = job.bk().run().ok();
            assert!(job.entered().is_empty() && job.journals() == 0, "{what}\n{}", next.show());
            assert!(job.order().ends_with(&ORDER.map(str::to_owned)), "{what}: {:?}", job.order());
        }
    }
}

#[test]
fn a_command_that_fails_once_is_tried_again() {
    let job = Job::new("run-once");
    for command in ["tape enter", "a enter", "b leave", "tape leave", "run gate"] {
        job.mode(command, "once");
    }
    job.bk().run().ok();
    assert_eq!(job.order(), ORDER);
    assert_eq!((job.count("a enter"), job.count("b leave")), ((2, 1), (2, 1)));
}

#[test]
fn a_condition_that_does_not_hold_skips_its_step() {
    for (argv, code) in
        [("['/bin/false']", 0), ("['/bin/true']", 0), ("['/not/there']", 7), ("['/bin/sh', '-c', 'kill -9 $$']", 7)]
    {
        let mut job = Job::new("run-when");
        job.steps.insert("b", format!("when = {argv}"));
        job.bk().run().code_is(&[code]);
        let is_run = job.count("b enter").0 == 1;
        assert_eq!(is_run, argv.contains("true"), "{argv}");
        assert_eq!(job.count("b leave").0, usize::from(is_run), "{argv}: what was not begun is not left");
        assert_eq!(job.count("a leave"), (1, 1), "{argv}");
    }
}

/// Kills bk, and its watcher too when `with_watcher`, while `command` is at work.
fn killed(command: &str, with_watcher: bool) -> Job {
    let job = Job::new("run-kill");
    job.mode(command, "stop");
    let mut running = job.bk().spawn();
    job.wait_for_stop();
    // The one at work goes on waiting; what is run from now on does not.
    job.well(command);
    if with_watcher {
        for pid in job.watchers() {
            _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
    }
    running.signal(Signal::KILL);
    if with_watcher {
        // What was at work is still there, and holds the outputs.
        running.child.wait().unwrap();
    } else {
        // The outputs are open as long as the watcher lives: this waits for it.
        running.finish().code_is(&[137]);
    }
    job
}

/// Each step that was begun is left, and once only when the end of that was noted.
fn is_left(job: &Job, at: usize, what: &str) {
    for (enter, leave) in [("tape enter", "tape leave"), ("a enter", "a leave"), ("b enter", "b leave")] {
        let position = |name| ORDER.iter().position(|one| *one == name).unwrap();
        let (begun, ended) = job.count(leave);
        let expected = match (position(enter) <= at, position(leave) == at) {
            (false, _) => (0, 0),
            // A step is left when its waiting has ended, too: till then none of it is noted.
            (true, false) if leave == "a leave" && ORDER[at] == "a leave_until" => (2, 2),
            // It was begun, killed, and run again.
            (true, true) => (2, 1),
            (true, false) => (1, 1),
        };
        assert_eq!((begun, ended), expected, "{what}: {leave}: {:?}", job.began());
    }
    assert!(job.entered().is_empty() && job.journals() == 0, "{what}");
}

#[test]
fn what_a_killed_run_had_begun_is_left_by_its_watcher() {
    for (at, command) in ORDER.iter().enumerate().skip(1).take(10) {
        let job = killed(command, false);
        is_left(&job, at, command);
        job.recover().run().ok();
        is_left(&job, at, &format!("{command}, and recover once more"));
        assert_eq!(job.snapshots(), usize::from(at >= RECORDED), "{command}");
        job.go();
        job.bk().run().ok();
        assert!(job.order().ends_with(&ORDER.map(str::to_owned)), "{command}: the next run: {:?}", job.order());
    }
}

#[test]
fn what_a_killed_run_had_begun_is_left_by_recover_or_the_next_run() {
    for (at, command) in ORDER.iter().enumerate().skip(1).take(10) {
        for by_recover in [true, false] {
            let job = killed(command, true);
            assert_eq!(job.journals(), 1, "{command}: {:?}", job.began());
            if by_recover {
                job.recover().run().ok();
                is_left(&job, at, command);
                job.recover().run().ok();
                is_left(&job, at, &format!("{command}, and recover once more"));
                job.go();
                continue;
            }
            let before = job.began().len();
            // The next run leaves first, even where the gate sends it away by now.
            job.mode("run gate", "skip");
            let log = std::fs::read(job.dir.join("log")).unwrap();
            let next = job.bk();
            std::fs::write(job.dir.join("log"), log).unwrap();
            next.run().ok().says("skipped-gate");
            assert_eq!(job.began().last().map(String::as_str), Some("run gate"), "{command}");
            assert!(job.began().len() > before);
            is_left(&job, at, command);
            job.go();
        }
    }
}

#[test]
fn a_signal_stops_the_run_and_everything_is_left() {
    for (at, command) in ORDER.iter().enumerate().take(11) {
        let job = Job::new("run-term");
        job.mode(command, "stop");
        let running = job.bk().spawn();
        job.wait_for_stop();
        running.signal(Signal::TERM);
        let begun = Instant::now();
        if at >= RECORDED {
            // What is being left is not stopped: it has its own time.
            job.go();
        }
        let ran = running.finish();
        assert!(begun.elapsed() < Duration::from_secs(60), "{command}");
        // After the commit there is nothing left to stop.
        assert_eq!(ran.code(), if at >= RECORDED { 0 } else { 143 }, "{command}\n{}", ran.show());
        assert_eq!(job.snapshots(), usize::from(at >= RECORDED), "{command}");
        assert!(job.entered().is_empty() && job.journals() == 0, "{command}\n{}", ran.show());
        for (enter, leave) in [("tape enter", "tape leave"), ("a enter", "a leave"), ("b enter", "b leave")] {
            let begun = ORDER[..=at].contains(&enter);
            assert_eq!(job.count(leave), (usize::from(begun), usize::from(begun)), "{command}: {leave}");
        }
    }
}

#[test]
fn a_second_signal_ends_bk_at_once_and_the_watcher_leaves() {
    let job = Job::new("run-twice");
    job.mode("a enter", "ignore");
    let running = job.bk().spawn();
    job.wait_for("command that ignores", || job.count("a enter").0 == 1);
    running.signal(Signal::INT);
    std::thread::sleep(Duration::from_millis(300));
    running.signal(Signal::INT);
    job.well("a enter");
    running.finish().code_is(&[130]);
    assert!(job.entered().is_empty() && job.journals() == 0);
    assert_eq!((job.count("a leave"), job.count("tape leave")), ((1, 1), (1, 1)));
}

/// What is being left when it comes is not left by the watcher once more, at the same time.
#[test]
fn a_second_signal_lets_what_is_being_left_end() {
    let job = Job::new("run-leaving");
    job.mode("tape leave", "stop");
    let mut running = job.bk().spawn();
    job.wait_for_stop();
    for _ in 0..2 {
        running.signal(Signal::INT);
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!(running.child.try_wait().unwrap().is_none());
    job.go();
    running.finish();
    assert!(job.entered().is_empty() && job.journals() == 0);
    assert_eq!((job.count("a leave"), job.count("tape leave")), ((1, 1), (1, 1)));
}

#[test]
fn a_step_that_forks_ignores_or_floods_does_not_stop_bk() {
    let mut job = Job::new("run-odd");
    job.mode("a enter", "fork");
    job.mode("b enter", "flood");
    let ran = job.bk().run().ok();
    assert!(ran.stdout.len() < 3 << 20, "{} bytes", ran.stdout.len());
    assert!(ran.says("more output than 1 MiB").code() == 0);
    // TERM, ten seconds, KILL; then the second try.
    job.well("b enter");
    job.steps.insert("b", "timeout = '2s'".to_owned());
    job.mode("b enter", "ignore");
    let begun = Instant::now();
    job.bk().run().code_is(&[7]);
    // Each try that had come so far as to ignore TERM took the ten seconds till KILL.
    let ignoring = std::fs::read_to_string(job.dir.join("ignoring")).unwrap().lines().count();
    assert!(ignoring > 0 && begun.elapsed() >= Duration::from_secs(10) * u32::try_from(ignoring).unwrap());
    assert_eq!((job.count("b leave"), job.count("a leave")), ((1, 1), (1, 1)));
    assert!(job.entered().is_empty() && job.snapshots() == 1);
}

#[test]
fn two_runs_of_a_job_on_one_node_do_not_mix() {
    let job = Job::new("run-two");
    job.mode("run stream", "stop");
    let running = job.bk().spawn();
    job.wait_for_stop();
    let before = job.began();
    let log = std::fs::read(job.dir.join("log")).unwrap();
    let second = job.bk();
    std::fs::write(job.dir.join("log"), log).unwrap();
    second.run().ok().says("skipped-running");
    job.recover().run().ok().says("running");
    assert_eq!(job.began(), before);
    job.go();
    running.finish().ok();
    assert_eq!(job.order(), ORDER);
}

#[test]
fn a_held_application_is_opened_in_time() {
    let mut job = Job::new("run-hold");
    job.keys = "max_hold = '1s'".to_owned();
    job.mode("run stream", "stop");
    let ran = job.bk().run().code_is(&[7]).says("held longer than 1s");
    assert!(ran.json().pop().unwrap()["held_seconds"].as_f64().unwrap() >= 1.0);
    assert!(job.snapshots() == 0 && job.entered().is_empty());

    // With `leave_early` the snapshot goes on without its steps.
    let mut job = Job::new("run-early");
    job.keys = "max_hold = '1s'".to_owned();
    for step in ["a", "b"] {
        job.steps.insert(step, "leave_early = true".to_owned());
    }
    job.mode("run stream", "stop");
    let running = job.bk().spawn();
    job.wait_for_stop();
    job.wait_for("early leave", || job.entered() == ["tape"]);
    assert!(job.had("a leave", "BK_RESULT=storing"));
    job.go();
    let ran = running.finish().ok();
    assert!(job.count("a leave") == (1, 1) && job.count("b leave") == (1, 1) && job.snapshots() == 1, "{}", ran.show());
    let (early, stream) =
        (job.began().iter().position(|one| one == "a leave"), job.began().iter().position(|one| one == "run regate"));
    assert!(early < stream, "{:?}", job.began());
    assert!(ran.json().pop().unwrap()["held_seconds"].as_f64().unwrap() >= 1.0);
}

#[test]
fn secrets_are_not_passed_on() {
    const CANARY: &str = "canary-7f3a";
    let job = Job::new("run-secret");
    let names = [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "BK_S3_SECRET",
        "PGPASSWORD",
        "SOME_API_KEY",
        "CREDENTIALS_DIRECTORY",
    ];
    let bk = names.iter().fold(job.bk(), |bk, name| bk.env(name, CANARY));
    job.mode("run stream", "stop");
    let running = bk.env("KEPT", "kept").spawn();
    job.wait_for_stop();
    for pid in job.watchers() {
        let environ = String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/environ")).unwrap()).into_owned();
        assert!(!environ.contains(CANARY) && environ.contains("KEPT=kept"), "the watcher");
    }
    for file in crate::support::files_below(&job.state()) {
        assert!(!String::from_utf8_lossy(&std::fs::read(&file).unwrap()).contains(CANARY), "{}", file.display());
    }
    job.go();
    let ran = running.finish().ok();
    assert!(!ran.said().contains(CANARY));
    for file in crate::support::sorted(&job.dir.join("env")) {
        let text = std::fs::read_to_string(&file).unwrap();
        let found: Vec<&str> = text.lines().filter(|line| line.contains(CANARY)).collect();
        // The command of a stream may need its database's password, and nothing of bk's.
        if file.ends_with("run-stream") {
            assert!(!found.iter().any(|line| line.starts_with("AWS_") || line.starts_with("BK_")), "{found:?}");
        } else {
            assert!(found.is_empty(), "{}: {found:?}", file.display());
        }
    }
}

#[test]
fn programs_that_others_can_change_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    if !crate::support::tools::need_root("programs_that_others_can_change_are_refused") {
        return;
    }
    let job = Job::new("run-trust");
    for (path, mode) in [("act", 0o775), ("act", 0o757), ("", 0o777)] {
        let path = if path.is_empty() { job.dir.clone() } else { job.dir.join(path) };
        let before = std::fs::metadata(&path).unwrap().permissions();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        job.bk().run().code_is(&[2]).says("can be written by its group or by others").says("chmod go-w");
        assert!(job.began().is_empty());
        std::fs::set_permissions(&path, before).unwrap();
    }
    std::os::unix::fs::lchown(job.dir.join("act"), Some(65534), None).unwrap();
    job.bk().run().code_is(&[2]).says("belongs to user 65534");
    std::os::unix::fs::lchown(job.dir.join("act"), Some(0), None).unwrap();
    job.bk().run().ok();
}

#[test]
fn a_volume_that_is_not_there_keeps_the_application_open() {
    let job = Job::new("run-volume");
    let away = job.world.path("away");
    std::fs::rename(&job.world.volume, &away).unwrap();
    job.bk().run().code_is(&[4]);
    assert_eq!(job.order(), ["run gate", "tape enter", "tape leave", "tell run"]);
}

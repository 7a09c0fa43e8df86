//! Runs that hang, in the kernel or at a volume, while they hold an application: it is opened all the same, whatever signals come.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::job::Job;
use crate::support::proxy::{Fault, Proxy};
use crate::support::tools::{Frozen, Mounted, need, need_root, shell_ok, skip};
use crate::support::{Bk, Ran, Running, World, files_below};

/// A disk with the job's volume on it.
fn disk_of(job: &mut Job, me: &str) -> Option<Mounted> {
    if !need_root(me) || !need(me, &["fsfreeze", "mkfs.ext4", "losetup"]) {
        return None;
    }
    fs::remove_dir_all(&job.world.volume).unwrap();
    let Some(disk) = Mounted::ext4(&job.world.path("disk"), 64 << 20, &job.world.volume) else {
        skip(me, "cannot mount an ext4");
        return None;
    };
    let volume = disk.at.join("bk");
    Bk::new("volume create").arg(&volume).run().ok();
    job.world.volume.clone_from(&volume);
    Some(disk)
}

/// Whether a thread of a process waits in the kernel for a device.
fn waits_in_kernel(running: &Running) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", running.child.id())).unwrap().flatten();
    tasks.into_iter().any(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('D')
    })
}

/// A run that waits for its frozen volume.
fn hung<'a>(job: &Job, disk: &'a Mounted) -> (Running, Frozen<'a>) {
    job.mode("run stream", "stop");
    let running = job.bk().spawn();
    job.wait_for_stop();
    assert_eq!(job.entered(), ["a", "b", "tape"]);
    let frozen = Frozen::new(&disk.at);
    job.go();
    job.wait_for("run that hangs", || waits_in_kernel(&running));
    (running, frozen)
}

fn open_now(job: &Job) {
    job.wait_for("application that is open", || job.entered().is_empty() && job.journals() == 0);
}

#[test]
fn two_signals_open_before_they_end() {
    let mut job = Job::new("hanging-twice");
    let Some(disk) = disk_of(&mut job, "two_signals_open_before_they_end") else { return };
    let (running, frozen) = hung(&job, &disk);
    running.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(300));
    running.signal(Signal::INT);
    open_now(&job);
    // The run opened it; the medium is the watcher's.
    assert!(job.had("a leave", "BK_RESULT=interrupted") && job.had("tape leave", "BK_RESULT=killed"));
    assert_eq!((job.count("a leave"), job.count("b leave")), ((1, 1), (1, 1)));
    drop(frozen);
    let ran = running.finish().code_is(&[130]);
    assert_eq!(job.snapshots(), 0, "{}", ran.show());
}

/// The third signal ends it though a step is being left, by the watcher then.
#[test]
fn a_third_signal_ends_what_is_being_left() {
    let mut job = Job::new("hanging-thrice");
    let Some(disk) = disk_of(&mut job, "a_third_signal_ends_what_is_being_left") else { return };
    job.mode("b leave", "hang");
    let (running, frozen) = hung(&job, &disk);
    for signal in [Signal::TERM, Signal::TERM] {
        running.signal(signal);
        std::thread::sleep(Duration::from_millis(300));
    }
    job.wait_for("step that is being left", || job.count("b leave").0 == 1);
    job.well("b leave");
    running.signal(Signal::TERM);
    open_now(&job);
    assert!(job.had("a leave", "BK_RESULT=killed"));
    drop(frozen);
    running.finish().code_is(&[143]);
}

#[test]
fn a_killed_run_that_waits_for_a_device_is_left() {
    let mut job = Job::new("hanging-killed");
    let Some(disk) = disk_of(&mut job, "a_killed_run_that_waits_for_a_device_is_left") else { return };
    let (running, frozen) = hung(&job, &disk);
    running.signal(Signal::KILL);
    open_now(&job);
    assert!(job.had("a leave", "BK_RESULT=killed"));
    drop(frozen);
    running.finish().code_is(&[137]);
    assert_eq!(job.snapshots(), 0);
}

/// Without its watcher nobody does so, and `bk recover` says so.
#[test]
fn a_killed_run_whose_watcher_is_gone_is_told_of() {
    let mut job = Job::new("hanging-unwatched");
    let Some(disk) = disk_of(&mut job, "a_killed_run_whose_watcher_is_gone_is_told_of") else { return };
    let (running, frozen) = hung(&job, &disk);
    // A run that is well, though it hangs, is none of its business.
    job.recover().run().ok().says("running");
    for pid in job.watchers() {
        assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    }
    running.signal(Signal::KILL);
    let noted = || job.recover().run().code() != 0;
    job.wait_for("recover that sees it", noted);
    job.recover().run().code_is(&[7]).says("not left yet: tape, a, b").says("killed");
    // Nor does the next run pass it over.
    job.bk().run().code_is(&[7]).says("not left yet: tape, a, b");
    assert_eq!(job.entered(), ["a", "b", "tape"]);
    // One that is about to end is waited for.
    let recovering = job.recover().env("BK_TEST_ENDING_MS", "120000").spawn();
    std::thread::sleep(Duration::from_millis(500));
    drop(frozen);
    running.finish().code_is(&[137]);
    recovering.finish().ok();
    assert!(job.entered().is_empty() && job.journals() == 0);
}

/// A volume that does not answer keeps no run from its next step, nor from the end of its time.
#[test]
fn a_lease_that_cannot_be_looked_at_holds_up_no_step() {
    let world = World::on_s3("hanging-lease");
    let proxy = Proxy::before(&world.server.as_ref().unwrap().endpoint);
    proxy.pass();
    let mut env = world.server.as_ref().unwrap().env();
    env.push(("XDG_CACHE_HOME".to_owned(), world.path("cache").display().to_string()));
    env.push(("AWS_ENDPOINT_URL".to_owned(), proxy.endpoint.clone()));
    let job = Job::on(world);
    job.mode("a enter", "stop");
    let bk = env.iter().fold(job.bk(), |bk, (name, value)| bk.env(name, value));
    let running = bk.env("BK_TEST_LEASE_MS", "2400").env("BK_TEST_STOP_MS", "500").spawn();
    job.wait_for_stop();
    proxy.plan(1, usize::MAX, Fault::Hang);
    // Till the lease is not sure any more.
    std::thread::sleep(Duration::from_secs(4));
    job.go();
    job.wait_for("stream", || job.count("run stream").0 == 1);
    running.signal(Signal::TERM);
    job.wait_for("application that is open", || !job.entered().iter().any(|step| step != "tape"));
    running.finish().code_is(&[143]);
    assert!(job.entered().is_empty() && job.journals() == 0);
}

#[test]
fn a_log_that_hangs_holds_no_application() {
    let me = "a_log_that_hangs_holds_no_application";
    if !need_root(me) || !need(me, &["fsfreeze", "mkfs.ext4", "losetup"]) {
        return;
    }
    let job = Job::new("hanging-log");
    let Some(disk) = Mounted::ext4(&job.world.path("disk"), 64 << 20, &job.world.path("logs")) else {
        skip(me, "cannot mount an ext4");
        return;
    };
    job.mode("run stream", "stop");
    let log = disk.at.join("log");
    let running = job.bk().words("-v --log").arg(&log).spawn();
    job.wait_for_stop();
    let frozen = Frozen::new(&disk.at);
    job.go();
    open_now(&job);
    assert_eq!(job.snapshots(), 1);
    drop(frozen);
    let ran = running.finish().ok();
    let logged = fs::read_to_string(&log).unwrap();
    assert!(logged.contains("b leave: done") && logged.contains("snapshot app/1"), "{logged}\n{}", ran.show());
}

/// A file system that nobody serves: what looks into it waits.
struct Unserved<'a>(Option<std::os::fd::OwnedFd>, &'a Path);

impl<'a> Unserved<'a> {
    fn new(at: &'a Path) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        bk::mount::attach::mount(at, "unserved", bk::mount::attach::Options::default())
            .ok()
            .map(|device| Self(Some(device), at))
    }
}

impl Drop for Unserved<'_> {
    fn drop(&mut self) {
        drop(self.0.take());
        shell_ok(r#"umount -l "$1""#, &[self.1]);
    }
}

/// A run that is given up while its source hangs keeps no other run away.
#[test]
fn a_run_that_was_given_up_lets_others_begin() {
    let me = "a_run_that_was_given_up_lets_others_begin";
    if !need_root(me) {
        return;
    }
    let mut job = Job::new("hanging-source");
    let at = job.world.src.join("far");
    let Some(unserved) = Unserved::new(&at) else {
        skip(me, "cannot mount");
        return;
    };
    job.keys = "max_hold = '1s'\n".to_owned();
    let running = job.bk().env("BK_TEST_STOP_MS", "300").env("BK_TEST_BEAT_MS", "200").spawn();
    job.wait_for("application that is closed", || job.entered() == ["a", "b", "tape"]);
    job.wait_for("application that is open", || job.entered() == ["tape"]);
    let other = Bk::new("snapshot --job app --node n2 -- echo dump").env("BK_VOLUME", &job.world.volume);
    let other = other.run().ok();
    job.wait_for("snapshot of another node", || {
        let bk = Bk::new("snapshot --job app --node n2 -- echo dump").env("BK_VOLUME", &job.world.volume);
        job.snapshots() > 0 || bk.run().ok().code() != 0
    });
    let beats = || Bk::new("status --volume").arg(&job.world.volume).run().ok().said().contains("storing");
    job.wait_for("run that is not shown any more", || !beats());
    drop(unserved);
    assert!(job.had("a leave", "BK_RESULT=step-failed"));
    let ran = running.finish().code_is(&[7]);
    assert!(job.entered().is_empty() && job.journals() == 0, "{}\n{}", ran.show(), other.show());
}

/// What could not be left is tried again though the run hangs; before it is open nobody says so, and no other run begins.
#[test]
fn what_could_not_be_opened_is_tried_again_while_the_run_hangs() {
    let me = "what_could_not_be_opened_is_tried_again_while_the_run_hangs";
    if !need_root(me) {
        return;
    }
    let mut job = Job::new("hanging-stuck");
    let at = job.world.src.join("far");
    let Some(unserved) = Unserved::new(&at) else {
        skip(me, "cannot mount");
        return;
    };
    job.keys = "max_hold = '1s'\n".to_owned();
    job.mode("a leave", "fail");
    let running = job.bk().env("BK_TEST_STOP_MS", "300").spawn();
    // It has two tries.
    job.wait_for("third try", || job.count("a leave").0 >= 3);
    job.recover().run().code_is(&[7]).says("could not leave: a");
    let held = Bk::new("lease list --json --volume").arg(&job.world.volume).run().ok();
    assert!(held.said().contains("\"app\""), "{}", held.show());
    job.well("a leave");
    job.wait_for("application that is open", || job.entered() == ["tape"]);
    job.wait_for("recover that knows it", || job.recover().run().code() == 0);
    drop(unserved);
    let ran = running.finish().code_is(&[7]);
    let said = ran.said();
    let (not_yet, open) = (said.find("the application is not opened"), said.find("the application is opened"));
    assert!(not_yet.is_some() && open > not_yet, "{}", ran.show());
    assert!(job.entered().is_empty() && job.journals() == 0, "{}", ran.show());
    assert_eq!((job.count("a leave").1, job.count("b leave")), (1, (1, 1)));
}

#[test]
fn what_could_not_be_opened_is_tried_again_while_the_run_goes_on() {
    let mut job = Job::new("hanging-early");
    job.keys = "max_hold = '300ms'\n".to_owned();
    for step in ["a", "b"] {
        job.steps.insert(step, "leave_early = true".to_owned());
    }
    job.mode("run stream", "stop");
    job.mode("b leave", "fail");
    let running = job.bk().env("BK_TEST_STOP_MS", "200").spawn();
    job.wait_for("third try", || job.count("b leave").0 >= 3);
    job.recover().run().code_is(&[7]).says("could not leave: b");
    job.well("b leave");
    job.wait_for("application that is open", || job.entered() == ["tape"]);
    job.go();
    let ran = running.finish().ok();
    let said = ran.said();
    let (not_yet, open) = (said.find("the application is not opened"), said.find("it is opened while"));
    assert!(not_yet.is_some() && open > not_yet, "{}", ran.show());
    assert!(job.entered().is_empty() && job.journals() == 0, "{}", ran.show());
    assert_eq!((job.count("b leave").1, job.count("a leave"), job.snapshots()), (1, (1, 1), 1));
}

/// Time counts from the first step that is begun: one whose condition does not hold closes nothing.
#[test]
fn what_is_not_begun_is_not_held() {
    let mut job = Job::new("hanging-skipped");
    job.keys = "max_hold = '100ms'\n".to_owned();
    for step in ["a", "b"] {
        job.steps.insert(step, "when = ['/bin/false']".to_owned());
    }
    job.mode("run stream", "stop");
    let running = job.bk().spawn();
    job.wait_for_stop();
    std::thread::sleep(Duration::from_millis(500));
    job.go();
    let result = running.finish().ok().json().pop().unwrap();
    assert_eq!((&result["held_seconds"], job.snapshots()), (&0.0.into(), 1), "{result}");
}

/// A run of two steps, the first with a user. The second one makes the name service hang, then runs `then`.
fn without_names(me: &str, world: &World, then: &str) -> Option<Ran> {
    let apart = ["unshare", "--mount", "--propagation", "private"].map(std::ffi::OsStr::new);
    if !need_root(me) || !need(me, &["mkfifo", "mount"]) {
        return None;
    }
    if !Command::new(apart[0]).args(&apart[1..]).arg("true").status().is_ok_and(|status| status.success()) {
        skip(me, "cannot make a mount namespace");
        return None;
    }
    let (pipe, config) = (world.path("pipe"), world.path("bk.toml"));
    fs::write(world.src.join("file"), "content").unwrap();
    shell_ok(r#"mkfifo "$1""#, &[&pipe]);
    let text = format!(
        "state_dir = '{}'\n[volume.main]\nurl = '{}'\n[job.app]\npaths = ['{}']\n\
         [[job.app.step]]\nname = 'app'\nuser = 'nobody'\ntries = 1\ntimeout = '5s'\nshell = true\n\
         enter = 'true'\nleave = 'grep -E \"^(Uid|Gid|Groups|CapEff)\" /proc/self/status; echo $HOME $USER'\n\
         [[job.app.step]]\nname = 'names'\nshell = true\n\
         enter = 'mount --bind {pipe} /etc/passwd && mount --bind {pipe} /etc/group && {then}'\nleave = 'true'\n",
        world.path("bk-state").display(),
        world.volume.display(),
        world.src.display(),
        pipe = pipe.display()
    );
    fs::write(&config, text).unwrap();
    Some(Bk::under(&apart, "snapshot app --config").arg(&config).run())
}

/// Who a user is, is asked before anything is closed, and never again.
#[test]
fn a_name_service_that_hangs_keeps_nothing_entered() {
    let world = World::new("hanging-names");
    let ran = without_names("a_name_service_that_hangs_keeps_nothing_entered", &world, "true");
    if let Some(ran) = ran {
        is_left_as_nobody(&ran.ok());
    }
}

/// Nor is it asked by the watcher of a run that was killed.
#[test]
fn a_name_service_that_hangs_keeps_nothing_entered_of_a_killed_run() {
    let world = World::new("hanging-names-killed");
    let ran = without_names("a_name_service_that_hangs_keeps_nothing_entered_of_a_killed_run", &world, "kill -9 $PPID");
    if let Some(ran) = ran {
        // Its end is the watcher's: that has the same output.
        is_left_as_nobody(&ran.code_is(&[137]));
        assert!(!files_below(&world.path("bk-state")).iter().any(|file| file.extension() == Some("journal".as_ref())));
    }
}

fn is_left_as_nobody(ran: &Ran) {
    let expected = shell_ok(
        r#"setpriv --reuid=nobody --regid="$(id -g nobody)" --init-groups -- grep -E '^(Uid|Gid|Groups|CapEff)' /proc/self/status"#,
        &[],
    );
    let mut found = 0;
    for line in String::from_utf8_lossy(&expected.stdout).lines() {
        // What is logged is escaped.
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_said = |said: &str| {
            let rest = said.split("app leave: ").nth(1).unwrap_or_default().replace("\\t", " ");
            rest.split_whitespace().collect::<Vec<_>>() == words
        };
        assert!(ran.said().lines().any(is_said), "{line:?}\n{}", ran.show());
        found += 1;
    }
    assert_eq!(found, 4);
}

/// The kernel takes that number for "as it is", which is root.
#[test]
fn nobody_becomes_the_user_of_no_number() {
    for ids in ["4294967295 0 0", "0 4294967295 0", "0 0 4294967295"] {
        Bk::new("as-user").words(ids).arg("/bin/true").run().code_is(&[127]).says("are wanted");
    }
}

//! How a mount begins and ends: signals, `bk umount`, the background, a bk that was killed, snapshots that come and go.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Pid, Signal, kill_process};

use super::{Mount, can_mount, is_mounted, wait_for};
use crate::support::rng::Rng;
use crate::support::tools::need;
use crate::support::{World, exit, files_below, sorted};

fn world() -> World {
    let world = World::new("mount");
    for n in 0..40 {
        let dir = world.src.join(format!("d{}", n % 4));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("f{n}")), Rng::new(n).content(50_000)).unwrap();
    }
    world.snapshot("tree", "--level 0 --frame-size 64KiB").ok();
    world
}

#[test]
fn signals_and_umount_end_it() {
    if !can_mount("signals_and_umount_end_it") {
        return;
    }
    let world = world();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut mount = Mount::new(&world, "mnt", "");
        let bk = mount.bk.take().unwrap();
        bk.signal(signal);
        let ran = bk.finish().ok();
        assert!(!is_mounted(&mount.at));
        assert!(ran.text().contains("\"result\""), "{}", ran.show());
    }
    let mut mount = Mount::new(&world, "mnt", "");
    world.bk("umount").arg(&mount.at).run().ok();
    mount.bk.take().unwrap().finish().ok();
    assert!(!is_mounted(&mount.at));
    // Twice at one place is an error, and so is unmounting what is not there, or not ours.
    let mount = Mount::new(&world, "mnt", "");
    world.bk("mount").arg(&mount.at).run().code_is(&[exit::USAGE]).says("already");
    let at = mount.at.clone();
    mount.end().ok();
    world.bk("umount").arg(&at).run().code_is(&[exit::USAGE]).says("no volume is mounted");
    world.bk("mount").arg(world.path("no-such")).run().code_is(&[exit::USAGE]);
    let file = world.path("file");
    fs::write(&file, "").unwrap();
    world.bk("mount").arg(&file).run().code_is(&[exit::USAGE]).says("not a directory");
    world.bk("mount tree/77").arg(&at).run().code_is(&[exit::USAGE]).says("tree/77");
    rustix::mount::mount("none", &at, "tmpfs", MountFlags::empty(), None).unwrap();
    let ran = world.bk("umount").arg(&at).run();
    let is_there = fs::read_to_string("/proc/self/mountinfo").unwrap().contains(at.to_str().unwrap());
    rustix::mount::unmount(&at, UnmountFlags::DETACH).unwrap();
    ran.code_is(&[exit::USAGE]);
    assert!(is_there, "bk umount took away another's mount");
}

#[test]
fn in_use_it_stays_unless_it_is_lazy() {
    if !can_mount("in_use_it_stays_unless_it_is_lazy") {
        return;
    }
    let world = world();
    let mut mount = Mount::new(&world, "mnt", "tree/1");
    let mut open = File::open(mount.path("d1/f1")).unwrap();
    world.bk("umount").arg(&mount.at).run().code_is(&[exit::USAGE]).says("in use").says("--lazy");
    assert!(is_mounted(&mount.at));
    world.bk("umount --lazy").arg(&mount.at).run().ok();
    assert!(!is_mounted(&mount.at));
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    assert!(bytes == fs::read(world.src.join("d1/f1")).unwrap());
    drop(open);
    mount.bk.take().unwrap().finish().ok();
}

#[test]
fn sixteen_readers_do_not_hold_it_back() {
    if !can_mount("sixteen_readers_do_not_hold_it_back") {
        return;
    }
    let world = world();
    let mount = Mount::new(&world, "mnt", "--cache-memory 16MiB tree/1");
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let files = files_below(&world.src);
    let at = mount.at.clone();
    std::thread::scope(|scope| {
        for n in 0..16usize {
            let (files, at, stop, done) = (&files, &at, &stop, &done);
            let src = &world.src;
            scope.spawn(move || {
                let mut next = n;
                while !stop.load(Ordering::Relaxed) {
                    let path = &files[next % files.len()];
                    next += 7;
                    let shown = at.join(path.strip_prefix(src).unwrap());
                    // Once it is unmounted there is nothing, or an error; never other bytes.
                    if let Ok(bytes) = fs::read(shown) {
                        assert!(bytes == fs::read(path).unwrap(), "{}", path.display());
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        wait_for("some reads", || done.load(Ordering::Relaxed) > 200);
        let ran = mount.end();
        stop.store(true, Ordering::Relaxed);
        ran.ok();
    });
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn a_killed_bk_leaves_nothing_mounted() {
    if !can_mount("a_killed_bk_leaves_nothing_mounted") {
        return;
    }
    let world = world();
    let mut mount = Mount::new(&world, "mnt", "tree/1");
    let mut open = File::open(mount.path("d1/f1")).unwrap();
    kill(mount.pid);
    let ran = mount.bk.take().unwrap().finish();
    assert_eq!(ran.code(), 128 + 9);
    wait_for("the watcher to unmount", || !is_mounted(&mount.at));
    assert!(open.read(&mut [0; 10]).is_err());
    // Another can mount there, the file still open.
    let again = Mount::new(&world, "mnt", "tree/1");
    assert!(fs::read(again.path("d1/f1")).unwrap() == fs::read(world.src.join("d1/f1")).unwrap());
    again.end().ok();
}

#[test]
fn killed_while_a_tree_is_read_it_lets_its_reader_go() {
    let me = "killed_while_a_tree_is_read_it_lets_its_reader_go";
    if !can_mount(me) || !need(me, &["tar"]) {
        return;
    }
    let world = World::new("mount");
    for n in 0..3000 {
        let dir = world.src.join(format!("d{}", n / 60));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("f{n}")), Rng::new(n).content(9000)).unwrap();
    }
    world.snapshot("tree", "--frame-size 256KiB").ok();
    let mut given = 0;
    for round in 0..12 {
        let mut mount = Mount::new(&world, "mnt", "tree/1");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&mount.at).args(["-cf", "-", "."]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut tar = tar.spawn().unwrap();
        let mut out = tar.stdout.take().unwrap();
        // Killed after ever more of it, files of the next directories on their way.
        out.read_exact(&mut vec![0; 1_000_000 + 800_000 * round]).unwrap();
        given += mount.count("given");
        kill(mount.pid);
        let _ = std::io::copy(&mut out, &mut std::io::sink());
        tar.wait().unwrap();
        assert_eq!(mount.bk.take().unwrap().finish().code(), 128 + 9);
        wait_for("the watcher to unmount", || !is_mounted(&mount.at));
    }
    assert!(given > 0);
}

#[test]
fn a_mount_that_was_left_dead_is_taken_away() {
    if !can_mount("a_mount_that_was_left_dead_is_taken_away") {
        return;
    }
    let world = world();
    let mut mount = Mount::new(&world, "mnt", "tree/1");
    let open = File::open(mount.path("d1/f1")).unwrap();
    // Watcher first, so that nobody is left to clean up.
    for child in children(mount.pid) {
        kill(child);
    }
    kill(mount.pid);
    mount.bk.take().unwrap().finish();
    assert!(is_mounted(&mount.at));
    assert!(fs::read_dir(&mount.at).is_err());
    let again = Mount::new(&world, "mnt", "tree/1");
    assert!(fs::read(again.path("d2/f2")).is_ok());
    drop(open);
    assert!(again.said.contains("left dead"), "{}", again.said);
    again.end().ok();
    // `bk umount` takes it away, too.
    let mut mount = Mount::new(&world, "mnt", "tree/1");
    children(mount.pid).into_iter().for_each(kill);
    kill(mount.pid);
    mount.bk.take().unwrap().finish();
    world.bk("umount").arg(&mount.at).run().ok();
    assert!(!is_mounted(&mount.at));
}

#[test]
fn in_the_background_it_tells_when_it_is_there() {
    if !can_mount("in_the_background_it_tells_when_it_is_there") {
        return;
    }
    let world = world();
    let at = world.path("mnt");
    fs::create_dir(&at).unwrap();
    let socket_path = world.path("notify");
    let socket = UnixDatagram::bind(&socket_path).unwrap();
    world.bk("mount --daemon tree/1").arg(&at).env("NOTIFY_SOCKET", &socket_path).run().ok();
    // Back at once, and it is there.
    assert!(is_mounted(&at));
    assert!(fs::read(at.join("d1/f1")).unwrap() == fs::read(world.src.join("d1/f1")).unwrap());
    let mut said = [0; 200];
    let len = socket.recv(&mut said).unwrap();
    let said = String::from_utf8_lossy(&said[..len]).into_owned();
    assert!(said.starts_with("READY=1\n") && said.contains(at.to_str().unwrap()), "{said}");
    world.bk("umount").arg(&at).run().ok();
    assert!(!is_mounted(&at));
    // What goes wrong is said before it returns.
    world.bk("mount --daemon tree/9").arg(&at).run().code_is(&[exit::ERROR, exit::USAGE]).says("tree/9");
    assert!(!is_mounted(&at));
}

fn stop(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::STOP).unwrap();
}

/// It may have gone already.
fn go_on(pid: u32) {
    let _ = kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::CONT);
}

/// Whether a process has ended; whoever has to may not have asked for its code yet.
fn is_over(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().unwrap().trim_start().chars().next().is_none_or(|state| "ZX".contains(state))
}

#[test]
fn a_mount_made_right_after_another_stays() {
    if !can_mount("a_mount_made_right_after_another_stays") {
        return;
    }
    let world = world();
    for round in 0..15 {
        let mut first = Mount::new(&world, "mnt", "tree/1");
        let mut bk = first.bk.take().unwrap();
        let watchers = children(first.pid);
        // Every other time the watcher comes late, as on a busy machine.
        let is_late = round / 5 != 1;
        if is_late {
            watchers.iter().for_each(|pid| stop(*pid));
        }
        match round % 5 {
            0 => drop(world.bk("umount").arg(&first.at).run().ok()),
            1 => rustix::mount::unmount(&first.at, UnmountFlags::empty()).unwrap(),
            2 => bk.signal(Signal::TERM),
            3 => {
                kill(first.pid);
                bk.child.wait().unwrap();
                // Its watcher may have done so already.
                let _ = rustix::mount::unmount(&first.at, UnmountFlags::DETACH);
            }
            // What is left is taken away by the next one.
            _ => {
                kill(first.pid);
                bk.child.wait().unwrap();
            }
        }
        if round % 5 < 4 {
            wait_for("the first to go", || !is_mounted(&first.at));
        }
        let second = Mount::new(&world, "mnt", "tree/1");
        watchers.iter().for_each(|pid| go_on(*pid));
        wait_for("the first watcher to end", || watchers.iter().all(|pid| is_over(*pid)));
        bk.finish();
        assert!(is_mounted(&second.at), "round {round}: the second one was unmounted, too");
        assert!(fs::read(second.path("d1/f1")).unwrap() == fs::read(world.src.join("d1/f1")).unwrap());
        second.end().ok();
    }
}

/// A file system that is not bk's, unmounted in the end.
struct Stranger<'a>(&'a Path);

impl<'a> Stranger<'a> {
    fn on(at: &'a Path) -> Self {
        rustix::mount::mount("none", at, "tmpfs", MountFlags::empty(), None).unwrap();
        Self(at)
    }

    fn is_there(&self) -> bool {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        text.lines().any(|line| line.split(' ').nth(4) == self.0.to_str() && line.contains(" - tmpfs "))
    }
}

impl Drop for Stranger<'_> {
    fn drop(&mut self) {
        if self.is_there() {
            let _ = rustix::mount::unmount(self.0, UnmountFlags::DETACH);
        }
    }
}

#[test]
fn what_others_mounted_there_stays() {
    if !can_mount("what_others_mounted_there_stays") {
        return;
    }
    let world = world();
    // It was taken out of sight, and is still in use.
    let mut mount = Mount::new(&world, "mnt", "tree/1");
    let at = mount.at.clone();
    let open = File::open(mount.path("d1/f1")).unwrap();
    world.bk("umount --lazy").arg(&at).run().ok();
    {
        let stranger = Stranger::on(&at);
        let bk = mount.bk.take().unwrap();
        bk.signal(Signal::TERM);
        bk.finish().ok();
        assert!(stranger.is_there(), "bk unmounted another's file system");
    }
    drop(open);
    assert!(!is_mounted(&at));
    // It is covered.
    for signal in [Signal::TERM, Signal::KILL] {
        let mut mount = Mount::new(&world, "mnt", "tree/1");
        {
            let stranger = Stranger::on(&at);
            let watchers = children(mount.pid);
            let bk = mount.bk.take().unwrap();
            bk.signal(signal);
            assert_eq!(bk.finish().code(), if signal == Signal::TERM { 0 } else { 128 + 9 });
            wait_for("the watcher to end", || watchers.iter().all(|pid| is_over(*pid)));
            assert!(stranger.is_there(), "bk unmounted another's file system");
        }
        // What is left below it is dead, and the next one takes it away.
        let again = Mount::new(&world, "mnt", "tree/1");
        assert!(again.said.contains("left dead"), "{}", again.said);
        again.end().ok();
    }
}

#[test]
fn it_is_found_where_its_directory_has_gone() {
    if !can_mount("it_is_found_where_its_directory_has_gone") {
        return;
    }
    let world = world();
    for signal in [Signal::TERM, Signal::KILL] {
        fs::create_dir_all(world.path("here")).unwrap();
        let mut mount = Mount::new(&world, "here/mnt", "tree/1");
        fs::rename(world.path("here"), world.path("there")).unwrap();
        let at = world.path("there/mnt");
        assert!(is_mounted(&at));
        let bk = mount.bk.take().unwrap();
        bk.signal(signal);
        bk.finish();
        wait_for("the mount to go", || !is_mounted(&at));
        fs::rename(world.path("there"), world.path("here")).unwrap();
    }
}

#[test]
fn one_that_does_not_answer_can_be_unmounted() {
    if !can_mount("one_that_does_not_answer_can_be_unmounted") {
        return;
    }
    let world = world();
    for (words, mounts_again) in [("umount --lazy", true), ("umount", false)] {
        let mut mount = Mount::new(&world, "mnt", "");
        stop(mount.pid);
        // It says so, and may not be able to go before the other one is served or gone.
        let again = mounts_again.then(|| {
            let mut bk = world.bk("mount").arg(&mount.at).spawn();
            let lines = BufReader::new(bk.child.stderr.take().unwrap()).lines().map(Result::unwrap);
            let (tell, told) = mpsc::channel();
            std::thread::spawn(move || lines.for_each(|line| drop(tell.send(line))));
            let line = || told.recv_timeout(Duration::from_secs(120)).unwrap_or_default();
            (bk, [line(), line()].concat())
        });
        let mut bk = world.bk(words).arg(&mount.at).spawn();
        let is_over = (0..6000).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            bk.child.try_wait().unwrap().is_some()
        });
        go_on(mount.pid);
        assert!(is_over, "`bk {words}` waits for a bk that does not answer");
        bk.finish().ok();
        assert!(!is_mounted(&mount.at));
        mount.bk.take().unwrap().finish().ok();
        if let Some((bk, said)) = again {
            assert!(said.contains("does not answer") && said.contains("bk umount --lazy"), "{said}");
            bk.finish().code_is(&[exit::USAGE]);
        }
    }
}

#[test]
fn in_the_background_it_tells_what_is_wrong_as_json() {
    if !can_mount("in_the_background_it_tells_what_is_wrong_as_json") {
        return;
    }
    let world = world();
    let mut mount = Mount::new(&world, "mnt", "tree/1");
    let at = mount.at.clone();
    children(mount.pid).into_iter().for_each(kill);
    kill(mount.pid);
    mount.bk.take().unwrap().finish();
    // A warning is no reason not to begin.
    let ran = world.bk("mount --json --daemon tree/1").arg(&at).run().ok();
    let warning: serde_json::Value = serde_json::from_str(ran.text().lines().next().unwrap()).unwrap();
    assert!(warning["type"] == "warning" && warning.to_string().contains("left dead"), "{}", ran.show());
    assert!(is_mounted(&at) && at.join("d1/f1").exists());
    world.bk("umount").arg(&at).run().ok();
    // The error and the exit code are those of the one in the background, and told once.
    for (volume, words, code) in
        [(world.path("no-such").into_os_string(), "tree/1", exit::VOLUME), (world.named(), "tree/9", exit::USAGE)]
    {
        for json in ["--json", ""] {
            let bk = world.bk("mount --daemon").words(json).words(words).env("BK_VOLUME", &volume);
            let ran = bk.arg(&at).run().code_is(&[code]);
            assert_eq!(ran.said().matches("bk: error: ").count(), 1, "{}", ran.show());
            if !json.is_empty() {
                let lines = ran.json();
                assert_eq!(lines.len(), 1, "{}", ran.show());
                assert!(lines[0]["type"] == "error" && lines[0]["exit"] == code, "{}", ran.show());
            }
        }
    }
    assert!(!is_mounted(&at));
}

fn shown(mount: &Mount, job: &str) -> Vec<String> {
    sorted(&mount.path(job)).iter().map(|p| crate::support::name_of(p)).collect()
}

#[test]
fn snapshots_come_and_go() {
    if !can_mount("snapshots_come_and_go") {
        return;
    }
    let world = world();
    let mount = Mount::new(&world, "mnt", "");
    let first = sorted(&mount.path("tree"))[0].clone();
    assert_eq!(shown(&mount, "tree").len(), 2);
    assert!(!mount.path("other").exists());
    world.snapshot("tree", "--level 0").ok();
    world.snapshot("other", "").ok();
    wait_for("the new snapshots", || shown(&mount, "tree").len() == 3 && mount.path("other/latest/d1").exists());
    let latest = fs::read_link(mount.path("tree/latest")).unwrap();
    assert!(latest.to_str().unwrap().starts_with("2-L0-"), "{latest:?}");
    // Expired while it is read: what is open gives its bytes or an error, and the list has it no more.
    let mut open = File::open(first.join("d1/f1")).unwrap();
    let unread: PathBuf = first.join("d3/f3");
    assert!(unread.exists());
    world.bk("expire --set tree/1 2020-01-01T00:00:00Z").run().ok();
    world.bk("expire tree --yes").run().ok();
    wait_for("the expired snapshot to go", || shown(&mount, "tree").len() == 2 && !first.exists());
    let mut bytes = Vec::new();
    if open.read_to_end(&mut bytes).is_ok() {
        assert!(bytes == fs::read(world.src.join("d1/f1")).unwrap());
    }
    assert!(fs::read(&unread).is_err());
    assert!(fs::read(mount.path("tree/latest/d3/f3")).unwrap() == fs::read(world.src.join("d3/f3")).unwrap());
    mount.end().ok();
}

#[test]
fn nothing_is_left_in_the_background_or_in_temporary_places() {
    if !can_mount("nothing_is_left_in_the_background_or_in_temporary_places") {
        return;
    }
    let world = world();
    let mount = Mount::new(&world, "mnt", "");
    let (pid, helpers) = (mount.pid, children(mount.pid));
    assert_eq!(helpers.len(), 1);
    mount.end().ok();
    for pid in helpers.into_iter().chain([pid]) {
        assert!(!PathBuf::from(format!("/proc/{pid}")).exists(), "process {pid} is left");
    }
}

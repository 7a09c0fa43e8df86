//! Sources that are easily taken for less than they are: mounts among them, marked directories on the way, names and directories that
//! cannot be read, files that become others while a run goes on.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::tools::{Mounted, copy_program, need, need_root, shell_ok, skip};
use crate::support::tree::chmod;
use crate::support::{BK, Bk, Ran, World, exit};

fn names(world: &World, snapshot: &str) -> Vec<String> {
    let rows = world.bk("ls -R --json").arg(snapshot).run().ok().json();
    rows.iter().filter_map(|row| row["path"].as_str().map(str::to_owned)).collect()
}

fn write(path: impl AsRef<Path>, text: &str) {
    fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn every_source_has_its_own_file_system() {
    let me = "every_source_has_its_own_file_system";
    if !need_root(me) {
        return;
    }
    let world = World::new("sources-x");
    let mount = |at: &str| Mounted::tmpfs(&world.src.join(at), "1m");
    let (Some(_home), Some(_deep)) = (mount("home"), mount("srv/data")) else {
        skip(me, "cannot mount a tmpfs");
        return;
    };
    for path in ["home/u/h", "etc/ssh/s", "srv/data/in/d", "srv/data/out/o", "srv/s"] {
        write(world.src.join(path), path);
    }
    let taken = |job: &str, sources: &[&str]| {
        let snapshot = world.bk("snapshot -x --job").arg(job).arg("-C").arg(&world.src);
        sources.iter().fold(snapshot, Bk::arg).run().ok();
        let mut files = names(&world, &format!("{job}/latest"));
        files.retain(|path| world.src.join(path).is_file());
        files.sort();
        files
    };
    // A mount beside a plain directory, whichever comes first.
    assert_eq!(taken("beside", &["home", "etc"]), ["etc/ssh/s", "home/u/h"]);
    // One inside the other: what was named is wanted, other mounts are not.
    assert_eq!(taken("inside", &[".", "home"]), ["etc/ssh/s", "home/u/h", "srv/s"]);
    assert_eq!(taken("below", &[".", "srv/data/in"]), ["etc/ssh/s", "srv/data/in/d", "srv/s"]);
    assert_eq!(taken("all", &["."]), ["etc/ssh/s", "srv/s"]);
}

#[test]
fn a_marker_on_the_way_to_a_source_hides_only_what_was_not_named() {
    let world = World::new("sources-marked");
    for path in ["home/u/.nobackup", "home/u/data/wanted", "home/u/junk", "home/v/own"] {
        write(world.src.join(path), path);
    }
    let sources =
        [("way", &["home/u/data"][..]), ("both", &[".", "home/u/data"]), ("twice", &["home/u", "home/u/data"])];
    for (job, sources) in sources {
        let snapshot = world.bk("snapshot --exclude-if-present .nobackup --job").arg(job).arg("-C").arg(&world.src);
        sources.iter().fold(snapshot, Bk::arg).run().ok();
        let files = names(&world, &format!("{job}/latest"));
        assert!(files.iter().any(|path| path == "home/u/data/wanted"), "{job}: {files:?}");
        assert!(!files.iter().any(|path| path.ends_with("junk")), "{job}: {files:?}");
        assert_eq!(files.iter().any(|path| path == "home/v/own"), job == "both", "{files:?}");
    }
}

/// What cannot be looked at or listed is no longer known, which is not to say that it is gone.
#[test]
fn what_cannot_be_looked_at_has_not_vanished() {
    let me = "what_cannot_be_looked_at_has_not_vanished";
    if !need(me, &["setpriv"]) || !need_root(me) {
        return;
    }
    let world = World::new("sources-eacces");
    if world.server.is_some() {
        skip(me, "the volume is another user's directory");
        return;
    }
    // The program and the volume must be within reach of the other user.
    let program = world.path("bk");
    copy_program(BK, &program);
    let top = world.src.join("top");
    for path in ["d/e/f", "g"] {
        write(top.join(path), path);
    }
    for dir in [world.src.parent().unwrap(), &world.src] {
        chmod(dir, 0o755);
    }
    shell_ok(r#"chown -R 65534:65534 "$1""#, &[&top]);
    let volume = world.path("theirs");
    fs::create_dir(&volume).unwrap();
    chown(&volume, Some(65_534), Some(65_534)).unwrap();
    let user = |words: &str| {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).args(words.split(' '));
        let output = command.env("BK_VOLUME", &volume).current_dir(&world.src).output().unwrap();
        Ran { line: vec![words.into()], status: output.status, stdout: output.stdout, stderr: output.stderr }
    };
    user(&format!("volume create {}", volume.display())).ok();
    user("snapshot --job j -C . top").ok();
    // Names can be read, what they are cannot; then not even the names.
    for (mode, level) in [(0o644, 1), (0o000, 2)] {
        chmod(&top, mode);
        let ran = user(&format!("snapshot --json --job j --level {level} -C . top")).code_is(&[exit::INCOMPLETE]);
        chmod(&top, 0o755);
        // All that is counted is named.
        let result = ran.json().pop().unwrap();
        let (named, counted) = (&result["incomplete"], &result["totals"]["incomplete"]);
        assert!(
            counted.as_u64() > Some(0) && named.as_array().map(|all| all.len() as u64) == counted.as_u64(),
            "{named}"
        );
        assert!(
            named.as_array().unwrap().iter().all(|one| one["path"].as_str().unwrap().starts_with("top")),
            "{named}"
        );
        let left = user(&format!("ls -R j/{}", level + 1)).ok().text();
        for path in ["top/d/e/f", "top/g"] {
            assert!(left.contains(path), "level {level}: {path} is gone\n{left}");
        }
    }
    // A further name of what is another file now is not taken for that.
    write(top.join("a/one"), "the one");
    fs::create_dir(top.join("b")).unwrap();
    fs::hard_link(top.join("a/one"), top.join("b/two")).unwrap();
    shell_ok(r#"chown -R 65534:65534 "$1""#, &[&top]);
    user("snapshot --job k -C . top").ok();
    assert_eq!(user("cat k/1 top/b/two").ok().text(), "the one");
    fs::remove_file(top.join("a/one")).unwrap();
    write(top.join("a/one"), "another");
    fs::hard_link(top.join("a/one"), top.join("a/three")).unwrap();
    shell_ok(r#"chown -R 65534:65534 "$1"; touch -d 2020-01-01 "$1/a/one""#, &[&top]);
    chmod(&top.join("b"), 0o000);
    user("snapshot --job k --level 1 -C . top").code_is(&[exit::INCOMPLETE]);
    chmod(&top.join("b"), 0o755);
    user("cat k/2 top/b/two").code_is(&[exit::INCOMPLETE]).says("another file");
    let out = volume.join("out");
    user(&format!("restore k/2 --target {}", out.display())).code_is(&[exit::INCOMPLETE]).says("b/two");
    assert!(!out.join("top/b/two").exists() && out.join("top/a/three").exists());
    // Nor do stock tools delete a directory that could not be looked at.
    fs::remove_file(top.join("g")).unwrap();
    chmod(&top, 0o644);
    user("snapshot --job j --level 3 -C . top").code_is(&[exit::INCOMPLETE]);
    chmod(&top, 0o755);
    let runs = crate::support::sorted(&volume.join("data/j"));
    let by_hand = world.path("by-hand");
    fs::create_dir(&by_hand).unwrap();
    for run in [&runs[0], &runs[3]] {
        shell_ok(r#"cat "$1"/tree-*.zst | zstd -dc | tar -x -G -C "$2" -f -"#, &[run, &by_hand]);
    }
    assert!(by_hand.join("top/d/e/f").exists());
    // What is really gone is gone.
    fs::remove_dir_all(top.join("d")).unwrap();
    user("snapshot --job j --level 3 -C . top").ok();
    assert!(!user("ls -R j/5").ok().text().contains("top/d"));
}

#[test]
fn a_mount_below_a_source_is_known_again() {
    let me = "a_mount_below_a_source_is_known_again";
    if !need(me, &["mkfs.ext4", "losetup"]) || !need_root(me) {
        return;
    }
    let world = World::new("sources-fsid");
    let Some(_disk) = Mounted::ext4(&world.path("disk"), 8 << 20, &world.src.join("home")) else {
        skip(me, "cannot mount a loop device");
        return;
    };
    for n in 0..5 {
        write(world.src.join(format!("home/u/f{n}")), &"x".repeat(1000 + n));
    }
    std::thread::sleep(Duration::from_secs(3));
    let changed = |level: u8| {
        let ran = world.bk(&format!("snapshot --json --job j --level {level} -C")).arg(&world.src).arg(".").run().ok();
        ran.json().last().unwrap()["totals"]["changed_entries"].as_u64().unwrap_or(0)
    };
    changed(0);
    assert_eq!(changed(1), 0, "nothing changed");
    fs::write(world.src.join("home/u/f1"), "another").unwrap();
    assert_eq!(changed(2), 1);
}

/// bk is stopped at its first `call` of what is at `at`, `change` happens, and it goes on.
fn stopped_at(world: &World, call: &str, at: &Path, change: impl FnOnce()) -> Ran {
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=SIGSTOP:when=1"));
    let path = at.as_os_str();
    let strace = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject, "-P"].map(OsStr::new);
    let words = "snapshot --job j --threads 1 -C";
    let running = world.bk_under(&[&strace[..], &[path]].concat(), words).arg(&world.src).arg(".").spawn();
    let pid = running.child.id();
    // Between two calls it is stopped for a moment, too.
    let mut seen = 0;
    while seen < 30 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let state = stat.rsplit(')').next().unwrap().trim_start().chars().next().unwrap();
        assert_ne!(state, 'Z', "it ended, and was never stopped");
        seen = if matches!(state, 'T' | 't') { seen + 1 } else { 0 };
        std::thread::sleep(Duration::from_millis(10));
    }
    change();
    // Again and again: where all is slow, it may be stopped only now.
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::CONT);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let ran = running.finish();
        ended.store(true, Ordering::Relaxed);
        ran
    })
}

#[test]
fn an_inode_number_may_come_again() {
    let me = "an_inode_number_may_come_again";
    if !need(me, &["strace", "mkfs.ext4", "losetup"]) || !need_root(me) {
        return;
    }
    let world = World::new("sources-inode");
    let Some(_disk) = Mounted::ext4(&world.path("disk"), 8 << 20, &world.src) else {
        skip(me, "cannot mount a loop device");
        return;
    };
    write(world.src.join("a/one"), "what was there before");
    fs::hard_link(world.src.join("a/one"), world.src.join("a/two")).unwrap();
    for dir in ["m", "z"] {
        fs::create_dir(world.src.join(dir)).unwrap();
    }
    let number = fs::metadata(world.src.join("a/one")).unwrap().ino();
    let ran = stopped_at(&world, "getdents64", &world.src.join("m"), || {
        for name in ["a/one", "a/two"] {
            fs::remove_file(world.src.join(name)).unwrap();
        }
        write(world.src.join("z/x"), "new");
        fs::hard_link(world.src.join("z/x"), world.src.join("z/y")).unwrap();
    });
    ran.ok();
    if fs::metadata(world.src.join("z/x")).unwrap().ino() != number {
        skip(me, "the file system did not use the number again");
        return;
    }
    for name in ["z/x", "z/y"] {
        assert_eq!(world.bk("cat j/1").arg(name).run().ok().text(), "new", "{name}");
    }
    assert_eq!(world.bk("cat j/1 a/two").run().ok().text(), "what was there before");
    world.bk("verify --data").run().ok();
    let (target, ran) = world.restore("j/1", "out");
    ran.ok();
    let link = |name: &str| fs::metadata(target.join(name)).unwrap().ino();
    assert!(link("z/x") == link("z/y") && link("z/x") != link("a/one"));
}

#[test]
fn attributes_set_meanwhile_are_not_half_stored() {
    let me = "attributes_set_meanwhile_are_not_half_stored";
    if !need(me, &["strace", "setfattr"]) {
        return;
    }
    let world = World::new("sources-xattr");
    for dir in ["m", "z"] {
        fs::create_dir(world.src.join(dir)).unwrap();
    }
    let set = |value: &str| shell_ok(&format!(r#"setfattr -n user.k -v {value} "$1""#), &[&world.src.join("z")]);
    set("one");
    stopped_at(&world, "getdents64", &world.src.join("m"), || drop(set("two"))).ok();
    world.bk("verify --data").run().ok();
}

#[test]
fn a_file_rewritten_longer_is_read_again() {
    let me = "a_file_rewritten_longer_is_read_again";
    if !need(me, &["strace"]) {
        return;
    }
    let world = World::new("sources-grown");
    let file = world.src.join("f");
    fs::write(&file, vec![b'A'; 8192]).unwrap();
    let ran = stopped_at(&world, "read", &file, || fs::write(&file, vec![b'B'; 12_288]).unwrap());
    ran.ok();
    assert!(world.bk("cat j/1 f").run().ok().stdout == vec![b'B'; 12_288]);
}

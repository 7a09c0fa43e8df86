//! Increments where the ground differs: block devices, file systems that keep whole seconds only, restores that are killed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::support::history::change;
use crate::support::inventory::{assert_same, inventory};
use crate::support::rng::Rng;
use crate::support::tools::{Mounted, need, need_root, shell_ok, skip};
use crate::support::tree::{DEEP, LARGE, MANY, SOCKETS, Tree};
use crate::support::{Bk, World};

/// A loop device on a file.
struct Loop(PathBuf);

impl Loop {
    fn on(image: &Path) -> Self {
        let found = shell_ok(r#"losetup -f --show "$1""#, &[image]);
        Self(PathBuf::from(String::from_utf8_lossy(&found.stdout).trim()))
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        let device = File::options().write(true).open(&self.0).unwrap();
        device.write_all_at(bytes, at).unwrap();
        device.sync_all().unwrap();
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_through_levels() {
    let me = "a_block_device_through_levels";
    if !need(me, &["losetup"]) || !need_root(me) {
        return;
    }
    const BLOCK: usize = 64 << 10;
    let world = World::new("device");
    let mut rng = Rng::new(500);
    let image = world.path("image");
    let mut disk = rng.noise(128 * BLOCK);
    fs::write(&image, &disk).unwrap();
    let device = Loop::on(&image);
    let name = device.0.file_name().unwrap().to_str().unwrap().to_owned();
    let snapshot = |level: usize| {
        let words = format!("snapshot --job d --level {level} --no-promote --frame-size 1MiB");
        world.bk(&words).arg(&device.0).run().ok();
    };
    snapshot(0);
    for level in 1..=3 {
        let changed = [5, 1, 0][level - 1];
        for n in 0..changed {
            let at = (7 + n * 23) * BLOCK;
            let new = rng.noise(BLOCK);
            device.write(at as u64, &new);
            disk[at..at + BLOCK].copy_from_slice(&new);
        }
        snapshot(level);
        let seq = level + 1;
        let back = world.bk(&format!("cat d/{seq} --stream {name}")).run().ok().stdout;
        assert!(back == disk, "level {level}");
        let other = world.path("other");
        fs::write(&other, vec![0xaa; disk.len()]).unwrap();
        let onto = Loop::on(&other);
        world.bk(&format!("restore d/{seq} --stream {name} --to-device")).arg(&onto.0).run().ok();
        drop(onto);
        assert!(fs::read(&other).unwrap() == disk, "level {level}");
        let text = fs::read_to_string(world.volume.join(format!("log/d/{seq:020}.json"))).unwrap();
        let record: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let stored = record["totals"]["stored_bytes"].as_u64().unwrap();
        eprintln!("level {level}: {changed} blocks of 64 KiB changed, {stored} bytes stored");
        assert!(stored <= (changed * BLOCK) as u64 + 4096, "level {level}: {stored} bytes for {changed} blocks");
    }
    world.bk("verify --data").run().ok();
}

/// Where a file system keeps whole seconds, a change right after a snapshot shows in neither size nor time.
#[test]
fn a_change_within_the_second_of_a_snapshot_is_seen() {
    let me = "a_change_within_the_second_of_a_snapshot_is_seen";
    if !need(me, &["losetup", "mkfs.ext4", "mount", "umount"]) || !need_root(me) {
        return;
    }
    let world = World::new("coarse");
    let Some(mounted) = Mounted::ext4_with(&world.path("image"), 16 << 20, &world.path("disk"), &["-I", "128"]) else {
        skip(me, "cannot mount ext4 on a loop device");
        return;
    };
    let path = mounted.at.join("file");
    let snapshot = |job: &str, level: usize| {
        let words = format!("snapshot --job {job} --level {level} --no-promote");
        world.bk(&words).arg("-C").arg(&mounted.at).arg(".").run().ok();
    };
    let times =
        || fs::metadata(&path).map(|m| (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec(), m.size(), m.ino()));
    let mut seen = false;
    for round in 0..50 {
        // Early in a second, so that there is room in it for a snapshot.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        std::thread::sleep(Duration::from_nanos(1_010_000_000 - u64::from(now.subsec_nanos())));
        fs::write(&path, "before").unwrap();
        let before = times().unwrap();
        assert_eq!((before.1, before.3), (0, 0), "this file system keeps parts of seconds");
        let job = format!("c{round}");
        snapshot(&job, 0);
        File::options().write(true).open(&path).unwrap().write_all_at(b"behind", 0).unwrap();
        if times().unwrap() != before {
            continue;
        }
        seen = true;
        // The next level is taken later, when nothing is fresh any more.
        std::thread::sleep(Duration::from_secs(3));
        snapshot(&job, 1);
        let back = world.bk(&format!("cat {job}/2 file")).run().ok().stdout;
        assert_eq!(String::from_utf8_lossy(&back), "behind");
        break;
    }
    if !seen {
        skip(me, "no snapshot fitted into one second");
    }
}

#[test]
fn a_killed_restore_of_an_increment_is_completed() {
    let me = "a_killed_restore_of_an_increment_is_completed";
    if !need(me, &["strace"]) {
        return;
    }
    let world = World::new("killed");
    Tree::new(510).without(SOCKETS | DEEP | LARGE | MANY).build(&world.src);
    let options = "--frame-size 16KiB --part-size 256KiB --no-promote";
    world.snapshot("k", &format!("--level 0 {options}")).ok();
    change(&mut Rng::new(511), &world.src, 60);
    world.snapshot("k", &format!("--level 1 {options}")).ok();
    let expected = inventory(&world.src);
    let (target, log) = (world.path("out"), world.path("strace"));
    let mut killed = 0;
    for overwrite in ["if-changed", "never"] {
        for call in ["mkdirat", "openat2", "linkat", "pwrite64", "write", "fchmod", "utimensat", "mknodat", "symlinkat"]
        {
            for when in [1, 2, 5, 17, 60, 200] {
                let _ = fs::remove_dir_all(&target);
                fs::create_dir(&target).unwrap();
                let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=KILL:when={when}"));
                let head = ["strace", "-f", "-qq", "-e", &trace, "-e", &inject, "-o"].map(OsStr::new);
                let words = format!("restore k/2 --overwrite {overwrite} --target");
                let restore =
                    |program: &[&OsStr]| Bk::under(program, &words).env("BK_VOLUME", &world.volume).arg(&target).run();
                restore(&[&head[..], &[log.as_os_str()]].concat());
                if !fs::read_to_string(&log).unwrap().contains("+++ killed by SIGKILL") {
                    break;
                }
                killed += 1;
                restore(&[]).ok();
                let about = format!("{overwrite}: killed at {call} {when}");
                let (mut expected, mut found) = (expected.clone(), inventory(&target));
                // The target itself was there before.
                if overwrite == "never" {
                    expected.remove(&b""[..]);
                    found.remove(&b""[..]);
                }
                assert_same(&expected, &found, &crate::roundtrip::exact(), &about);
            }
        }
    }
    eprintln!("{killed} restores were killed");
    assert!(killed >= 40, "only {killed} restores were killed");
}

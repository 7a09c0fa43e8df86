//! The medium around a run: a volume that is read-only or goes away, parts that cannot be read, a target that fills.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;

use crate::support::inventory::{assert_same, inventory};
use crate::support::rng::Rng;
use crate::support::tools::{Mounted, need, need_root, shell_ok, skip};
use crate::support::tree::{DEEP, LARGE, Tree};
use crate::support::{Bk, World, exit, list, name_of, sorted};

#[test]
fn a_read_only_volume_is_read_and_not_written() {
    let me = "a_read_only_volume_is_read_and_not_written";
    if !need(me, &["mount"]) || !need_root(me) {
        return;
    }
    let world = World::new("readonly");
    Tree::new(160).without(DEEP | LARGE).build(&world.src);
    let Some(mounted) = Mounted::tmpfs(&world.path("disk"), "64m") else {
        skip(me, "cannot mount a tmpfs");
        return;
    };
    let volume = mounted.at.join("volume");
    Bk::new("volume create").arg(&volume).run().ok();
    let snapshot = || Bk::new("snapshot --job r --volume").arg(&volume).arg("-C").arg(&world.src).arg(".").run();
    snapshot().ok();
    shell_ok(r#"mount -o remount,ro "$1""#, &[&mounted.at]);
    snapshot().code_is(&[exit::VOLUME]);
    assert_eq!(list(&volume), ["r/1"]);
    Bk::new("verify --data --volume").arg(&volume).run().ok();
    let target = world.path("out");
    Bk::new("restore r/1 --volume").arg(&volume).arg("--target").arg(&target).run().ok();
    assert_same(&inventory(&world.src), &inventory(&target), &crate::roundtrip::exact(), "from a read-only volume");
}

#[test]
fn a_volume_that_goes_away_is_not_written_beside() {
    let me = "a_volume_that_goes_away_is_not_written_beside";
    if !need(me, &["mount"]) || !need_root(me) {
        return;
    }
    let world = World::new("gone");
    let Some(mounted) = Mounted::tmpfs(&world.path("disk"), "64m") else {
        skip(me, "cannot mount a tmpfs");
        return;
    };
    let volume = mounted.at.join("volume");
    Bk::new("volume create").arg(&volume).run().ok();
    let mut running = Bk::new("snapshot --job g --stdin d --frame-size 256KiB --volume").arg(&volume).spawn();
    let noise = Rng::new(161).noise(3 << 20);
    running.child.stdin.as_mut().unwrap().write_all(&noise).unwrap();
    shell_ok(r#"umount -l "$1""#, &[&mounted.at]);
    // What was under the mount comes to light; bk holds the volume and must not look for it by its path.
    running.child.stdin.as_mut().unwrap().write_all(&noise).unwrap();
    let ran = running.finish();
    assert!(ran.code() < 128, "{}", ran.show());
    assert!(sorted(&mounted.at).is_empty(), "written beside the volume: {:?}", sorted(&mounted.at));
    Bk::new("snapshot --job g --volume").arg(&volume).arg(&world.src).run().code_is(&[exit::VOLUME]);
    assert!(sorted(&mounted.at).is_empty());
}

#[test]
fn a_part_that_cannot_be_read_is_named() {
    let me = "a_part_that_cannot_be_read_is_named";
    if !need(me, &["strace"]) {
        return;
    }
    let world = World::new("badpart");
    for n in 0..30 {
        fs::write(world.src.join(format!("file-{n:02}")), Rng::new(n).noise(9000)).unwrap();
    }
    world.snapshot("t", "--frame-size 16KiB --part-size 64KiB").ok();
    let before = inventory(&world.src);
    let part = world.parts("t", "tree-").remove(1);
    let calls = "read,pread64,readv,preadv,preadv2";
    let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:error=EIO"));
    let strace = [
        "strace".as_ref(),
        "-f".as_ref(),
        "-qqq".as_ref(),
        "-o".as_ref(),
        "/dev/null".as_ref(),
        "-P".as_ref(),
        part.as_os_str(),
        "-e".as_ref(),
        OsStr::new(&trace),
        "-e".as_ref(),
        OsStr::new(&inject),
    ];
    let bk = |words: &str| Bk::under(&strace, words).env("BK_VOLUME", &world.volume);
    for words in ["verify", "verify --data"] {
        let ran = bk(words).run().code_is(&[exit::ERROR, exit::VOLUME, exit::INTEGRITY]);
        assert!(ran.said().contains(&name_of(&part)), "{}", ran.show());
    }
    let target = world.path("out");
    let ran = bk("restore t/1 --target").arg(&target).run();
    assert!((1..128).contains(&ran.code()), "{}", ran.show());
    let found = inventory(&target);
    for (path, record) in &before {
        let good = found.get(path).is_some_and(|f| f.content == record.content);
        let shown = String::from_utf8_lossy(path);
        assert!(good || ran.said().contains(&*shown), "{shown} is not good, and not named\n{}", ran.show());
    }
    assert!(found.len() * 2 > before.len(), "{} of {} came", found.len(), before.len());
    world.bk("verify --data").run().ok();
}

#[test]
fn a_target_that_fills_up_is_said() {
    let me = "a_target_that_fills_up_is_said";
    if !need(me, &["mount"]) || !need_root(me) {
        return;
    }
    let world = World::new("fulltarget");
    for n in 0..40 {
        fs::write(world.src.join(format!("f{n:02}")), Rng::new(n).noise(100_000)).unwrap();
    }
    world.snapshot("t", "").ok();
    let Some(mounted) = Mounted::tmpfs(&world.path("disk"), "2m") else {
        skip(me, "cannot mount a tmpfs");
        return;
    };
    let target = mounted.at.join("out");
    world.bk("restore t/1 --target").arg(&target).run().code_is(&[exit::INCOMPLETE, exit::NO_SPACE]);
    shell_ok(r#"mount -o remount,size=16m "$1""#, &[&mounted.at]);
    world.bk("restore t/1 --target").arg(&target).run().ok();
    assert_same(&inventory(&world.src), &inventory(&target), &crate::roundtrip::exact(), "with more room");
}

#[test]
fn a_stream_goes_back_onto_a_device() {
    let world = World::new("todevice");
    let disk = [Rng::new(162).noise(700_000), vec![0; 300_000]].concat();
    world.bk("snapshot --job vm --stdin disk --frame-size 256KiB").stdin(disk.clone()).run().ok();
    let image = world.path("image");
    fs::write(&image, vec![0xaa; 1_000_000]).unwrap();
    world.bk("restore vm/1 --stream disk --to-device").arg(&image).run().ok();
    assert!(fs::read(&image).unwrap() == disk);
    // A device too small is refused, or at least said.
    let me = "a_stream_goes_back_onto_a_device";
    if !need(me, &["losetup"]) || !need_root(me) {
        return;
    }
    for (name, len, fits) in [("small", 512 * 1024, false), ("large", 2 << 20, true)] {
        let image = world.path(name);
        fs::write(&image, vec![0x55; len]).unwrap();
        let found = shell_ok(r#"losetup -f --show "$1""#, &[&image]);
        let device = String::from_utf8_lossy(&found.stdout).trim().to_owned();
        let ran = world.bk("restore vm/1 --stream disk --to-device").arg(&device).run();
        shell_ok(r#"losetup -d "$1""#, &[device.as_ref()]);
        assert_eq!(ran.code() == 0, fits, "{name}: {}", ran.show());
        assert!(!fits || fs::read(&image).unwrap()[..disk.len()] == disk);
    }
}

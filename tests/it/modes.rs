//! Restore in its modes: a rerun, what is overwritten, a part of the tree, dry and safe runs.

use std::fs;
use std::path::Path;

use crate::roundtrip::exact;
use crate::support::inventory::{Inventory, assert_same, inventory};
use crate::support::tools::need_root;
use crate::support::tree::{DEEP, LARGE, Tree, touch};
use crate::support::{World, exit, sorted};

fn world(seed: u64) -> (World, Inventory) {
    let world = World::new("modes");
    Tree::new(seed).without(DEEP | LARGE).build(&world.src);
    world.snapshot("tree", "--part-size 256KiB --frame-size 64KiB").ok();
    let before = inventory(&world.src);
    (world, before)
}

#[test]
fn a_rerun_completes_what_is_missing() {
    let (world, before) = world(20);
    let (target, ran) = world.restore("tree/1", "out");
    ran.ok();
    for path in ["plain/size-4096", "links/m", "special/fifo", "names/-rf", "locked-0000/file"] {
        fs::remove_file(target.join(path)).unwrap();
    }
    fs::remove_dir_all(target.join("many/2")).unwrap();
    fs::OpenOptions::new().write(true).open(target.join("plain/size-262144")).unwrap().set_len(1000).unwrap();
    fs::write(target.join("xattr/big"), "").unwrap();
    let (_, ran) = world.restore("tree/1", "out");
    ran.ok();
    assert_same(&before, &inventory(&target), &exact(), "after the rerun");
}

#[test]
fn a_rerun_over_a_whole_tree_changes_nothing() {
    let (world, before) = world(21);
    for _ in 0..2 {
        let (target, ran) = world.restore("tree/1", "out");
        ran.ok();
        assert_same(&before, &inventory(&target), &exact(), "restored");
    }
}

#[test]
fn a_rerun_after_a_kill_completes() {
    let (world, before) = world(22);
    let target = world.path("out");
    for n in [3, 20, 90, 200] {
        let inject = format!("inject=openat,linkat,mkdirat,mknodat,renameat2,renameat:signal=SIGKILL:when={n}");
        let strace = [
            "strace",
            "-qq",
            "-f",
            "-o",
            "/dev/null",
            "-e",
            "trace=openat,linkat,mkdirat,mknodat,renameat2,renameat",
            "-e",
            &inject,
        ];
        if !crate::support::tools::need("a_rerun_after_a_kill_completes", &["strace"]) {
            return;
        }
        let strace: Vec<&std::ffi::OsStr> = strace.iter().map(AsRef::as_ref).collect();
        let bk = crate::support::Bk::under(&strace, "restore tree/1 --target").arg(&target);
        bk.env("BK_VOLUME", &world.volume).run().code_is(&[137, 0]);
    }
    let (_, ran) = world.restore("tree/1", "out");
    ran.ok();
    assert_same(&before, &inventory(&target), &exact(), "after four kills and a rerun");
}

#[test]
fn overwrite_never_keeps_what_is_there() {
    let (world, _) = world(23);
    let target = world.path("out");
    fs::create_dir_all(target.join("plain")).unwrap();
    fs::write(target.join("plain/size-512"), "mine").unwrap();
    let ran = world.bk("restore tree/1 --overwrite never --target").arg(&target).run();
    ran.code_is(&[0, exit::INCOMPLETE]);
    assert_eq!(fs::read(target.join("plain/size-512")).unwrap(), b"mine");
    assert_eq!(fs::read(target.join("plain/size-513")).unwrap(), fs::read(world.src.join("plain/size-513")).unwrap());
}

#[test]
fn overwrite_if_changed_goes_by_size_and_time() {
    let (world, before) = world(24);
    let (target, ran) = world.restore("tree/1", "out");
    ran.ok();
    fs::write(target.join("plain/size-512"), "other").unwrap();
    fs::write(target.join("plain/size-513"), vec![b'z'; 513]).unwrap();
    touch(&target.join("plain/size-513"), 1_234_567_890, 5);
    world.bk("restore tree/1 --overwrite if-changed --target").arg(&target).run().ok();
    assert_same(&before, &inventory(&target), &exact(), "if-changed");
}

#[test]
fn overwrite_always_looks_at_nothing() {
    let (world, before) = world(25);
    let (target, ran) = world.restore("tree/1", "out");
    ran.ok();
    let path = target.join("plain/size-4097");
    let time = before[&b"plain/size-4097"[..]].mtime_ns;
    fs::write(&path, vec![b'z'; 4097]).unwrap();
    touch(&path, (time / 1_000_000_000) as i64, (time % 1_000_000_000) as i64);
    world.bk("restore tree/1 --overwrite always --target").arg(&target).run().ok();
    assert_same(&before, &inventory(&target), &exact(), "always");
}

fn only(all: &Inventory, keep: impl Fn(&str) -> bool) -> Vec<Vec<u8>> {
    all.keys().filter(|k| keep(&String::from_utf8_lossy(k))).cloned().collect()
}

fn files(tree: &Path) -> Vec<Vec<u8>> {
    let all = inventory(tree);
    all.iter().filter(|(_, r)| r.kind != rustix::fs::FileType::Directory).map(|(k, _)| k.clone()).collect()
}

#[test]
fn one_path_brings_its_tree_and_nothing_else() {
    let (world, before) = world(26);
    let target = world.path("out");
    world.bk("restore tree/1 many/1 --target").arg(&target).run().ok();
    let found = inventory(&target);
    let expected = only(&before, |p| p == "many" || p == "many/1" || p.starts_with("many/1/"));
    assert_eq!(found.keys().cloned().collect::<Vec<_>>(), expected);
    let wanted = before.into_iter().filter(|(k, _)| expected.contains(k)).collect();
    assert_same(&wanted, &found, &exact(), "one path");
}

#[test]
fn one_file_and_a_name_that_is_not_there() {
    let (world, before) = world(27);
    let target = world.path("out");
    world.bk("restore tree/1 links/z-other/across --target").arg(&target).run().ok();
    // The data of a hard link is with another name: it must come all the same.
    assert_eq!(fs::read(target.join("links/z-other/across")).unwrap(), fs::read(world.src.join("links/m")).unwrap());
    assert_eq!(files(&target), [b"links/z-other/across".to_vec()]);
    assert!(before.contains_key(&b"links/m"[..]));
    let other = world.path("none");
    world.bk("restore tree/1 no/such/path --target").arg(&other).run().code_is(&[exit::USAGE]).says("no/such/path");
}

#[test]
fn include_and_exclude_pick_files() {
    let (world, before) = world(28);
    let target = world.path("in");
    world.bk("restore tree/1 --include many/0/** --include plain/size-5* --target").arg(&target).run().ok();
    let expected = only(&before, |p| p.starts_with("many/0/") || p.starts_with("plain/size-5"));
    assert_eq!(files(&target), expected);
    let target = world.path("ex");
    world.bk("restore tree/1 --exclude many/** --exclude **/*.txt --target").arg(&target).run().ok();
    let found = files(&target);
    assert!(!found.iter().any(|p| p.starts_with(b"many/") || p.ends_with(b".txt")));
    assert!(found.contains(&b"plain/size-512".to_vec()) && found.contains(&b"links/m".to_vec()));
}

#[test]
fn a_dry_run_writes_nothing() {
    let (world, _) = world(29);
    let target = world.path("out");
    world.bk("restore tree/1 --dry-run --target").arg(&target).run().ok();
    assert!(sorted(&target).is_empty());
}

#[test]
fn a_safe_restore_drops_what_could_harm() {
    if !need_root("a_safe_restore_drops_what_could_harm") {
        return;
    }
    let (world, before) = world(30);
    let target = world.path("out");
    world.bk("restore tree/1 --safe --target").arg(&target).run().code_is(&[0, exit::INCOMPLETE]);
    for (path, record) in inventory(&target) {
        let shown = path.escape_ascii().to_string();
        assert!(record.mode & 0o6000 == 0 || record.kind == rustix::fs::FileType::Symlink, "{shown} has a setuid bit");
        assert!(record.rdev == 0, "{shown} is a device");
        assert!(!record.xattrs.contains_key(&b"security.capability"[..]), "{shown} has a capability");
        if record.kind == rustix::fs::FileType::RegularFile {
            assert_eq!(record.content, before[&path].content, "{shown}");
        }
    }
    assert!(target.join("meta/mode-6711").is_file());
}

#[test]
fn a_link_in_the_way_is_not_followed() {
    let (world, before) = world(31);
    let (target, outside) = (world.path("out"), world.path("outside"));
    fs::create_dir_all(&target).unwrap();
    fs::create_dir_all(outside.join("1")).unwrap();
    fs::write(outside.join("f"), "untouched").unwrap();
    std::os::unix::fs::symlink(&outside, target.join("many")).unwrap();
    fs::create_dir(target.join("plain")).unwrap();
    std::os::unix::fs::symlink(outside.join("f"), target.join("plain/size-512")).unwrap();
    let ran = world.bk("restore tree/1 --overwrite always --target").arg(&target).run();
    let code = ran.code_is(&[0, exit::ERROR, exit::INCOMPLETE]).code();
    assert_eq!(fs::read(outside.join("f")).unwrap(), b"untouched");
    assert_eq!(sorted(&outside).len(), 2, "something came out of the target");
    assert!(sorted(&outside.join("1")).is_empty(), "something came out of the target");
    if code == 0 {
        assert_same(&before, &inventory(&target), &exact(), "links replaced");
    }
}

//! What goes in comes out: snapshot, restore, compare, for trees of every kind and for every codec and cut.

use std::fs;

use crate::support::inventory::{Compare, assert_same, inventory};
use crate::support::tools::{need, need_root, shell, shell_ok};
use crate::support::tree::{DEEP, SOCKETS, Tree};
use crate::support::{World, is_root};

/// Owners can only be given back by root.
pub fn exact() -> Compare {
    Compare { owner: is_root(), ..Compare::EXACT }
}

/// Snapshots a full tree of `seed` with `options`, restores it and compares.
fn round_trip(seed: u64, options: &str) {
    let world = World::new("round");
    Tree::new(seed).build(&world.src);
    let before = inventory(&world.src);
    world.snapshot("tree", options).ok();
    world.bk("verify tree/1 --data").run().ok();
    let (target, ran) = world.restore("tree/latest", "out");
    ran.ok();
    assert_same(&before, &inventory(&target), &exact(), &format!("seed {seed}, {options:?}"));
    assert_same(&before, &inventory(&world.src), &exact(), "the source is as it was");
}

#[test]
fn every_kind_with_the_defaults() {
    round_trip(1, "");
}

#[test]
fn every_kind_on_one_thread() {
    round_trip(2, "--threads 1 --verify-write");
}

#[test]
fn every_kind_in_tiny_frames_and_parts() {
    round_trip(3, "--frame-size 4KiB --part-size 64KiB --verify-write");
}

#[test]
fn every_kind_with_bzip2() {
    round_trip(4, "--compression bzip2:9");
}

#[test]
fn every_kind_with_bzip2_in_small_parts() {
    round_trip(5, "--compression bzip2:1 --frame-size 64KiB --part-size 256KiB");
}

#[test]
fn every_kind_stored_plain() {
    round_trip(6, "--compression none --frame-size 16KiB --part-size 128KiB");
}

#[test]
fn every_kind_at_high_and_low_levels() {
    round_trip(7, "--compression zstd:1 --frame-size 256KiB --threads 7");
    round_trip(8, "--compression zstd:12 --frame-size 1MiB");
}

#[test]
fn an_empty_tree() {
    let world = World::new("empty");
    world.snapshot("tree", "").ok();
    world.bk("verify").run().ok();
    let (target, ran) = world.restore("tree/1", "out");
    ran.ok();
    assert_same(&inventory(&world.src), &inventory(&target), &exact(), "an empty tree");
}

#[test]
fn rsync_finds_nothing_to_do() {
    let me = "rsync_finds_nothing_to_do";
    if !need(me, &["rsync"]) || !need_root(me) {
        return;
    }
    let world = World::new("rsync");
    Tree::new(9).without(DEEP).build(&world.src);
    world.snapshot("tree", "--part-size 1MiB").ok();
    let (target, ran) = world.restore("tree/1", "out");
    ran.ok();
    let compare = r#"rsync -naHAX --numeric-ids --checksum --delete --itemize-changes "$1/" "$2/""#;
    let output = shell_ok(compare, &[&world.src, &target]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    // The check is able to fail.
    fs::write(target.join("plain/a.txt"), "changed").unwrap();
    let output = shell(compare, &[&world.src, &target]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("plain/a.txt"));
}

#[test]
fn names_without_a_base_are_absolute_paths() {
    let world = World::new("absolute");
    Tree::new(10).without(DEEP).build(&world.src);
    world.bk("snapshot --job abs --part-size 256KiB").small().arg(&world.src).run().ok();
    let (target, ran) = world.restore("abs/1", "out");
    ran.ok();
    let inside = target.join(world.src.strip_prefix("/").unwrap());
    assert_same(&inventory(&world.src), &inventory(&inside), &exact(), "below the absolute name");
    // Ancestors are entries of their own.
    let text = world.bk("ls abs/1 -R --json").run().ok();
    let names = text.json().len();
    assert!(names > inventory(&world.src).len() + 2, "only {names} lines");
}

#[test]
fn several_roots_in_one_snapshot() {
    let world = World::new("roots");
    for name in ["b", "a", "c/deeper"] {
        fs::create_dir_all(world.src.join(name)).unwrap();
        fs::write(world.src.join(name).join("file"), name).unwrap();
    }
    fs::write(world.src.join("left-out"), "x").unwrap();
    world.bk("snapshot --job two -C").arg(&world.src).words("c/deeper a b/file").run().ok();
    let (target, ran) = world.restore("two/1", "out");
    ran.ok();
    let found = inventory(&target);
    let files: Vec<String> = found.keys().map(|k| String::from_utf8_lossy(k).into_owned()).collect();
    assert_eq!(files, ["a", "a/file", "b", "b/file", "c", "c/deeper", "c/deeper/file"]);
}

#[test]
fn a_second_snapshot_does_not_disturb_the_first() {
    let world = World::new("second");
    Tree::new(11).build(&world.src);
    let first = inventory(&world.src);
    world.snapshot("tree", "--part-size 512KiB").ok();
    fs::remove_dir_all(world.src.join("many")).unwrap();
    fs::write(world.src.join("plain/size-1"), "grown since").unwrap();
    let second = inventory(&world.src);
    world.snapshot("tree", "--part-size 512KiB --compression bzip2:3").ok();
    assert_eq!(world.list(), ["tree/1", "tree/2"]);
    for (name, expected) in [("tree/latest~1", &first), ("tree/1", &first), ("tree/latest", &second)] {
        let (target, ran) = world.restore(name, &name.replace('/', "-"));
        ran.ok();
        assert_same(expected, &inventory(&target), &exact(), name);
    }
}

#[test]
fn sockets_come_back() {
    let world = World::new("socket");
    Tree::new(12).without(!SOCKETS).build(&world.src);
    world.snapshot("tree", "").ok();
    let (target, ran) = world.restore("tree/1", "out");
    ran.ok();
    let found = inventory(&target);
    assert_eq!(found[&b"special/socket"[..]].kind, rustix::fs::FileType::Socket);
}

#[test]
fn many_entries_in_one_directory() {
    let world = World::new("wide");
    let dir = world.src.join("wide");
    fs::create_dir(&dir).unwrap();
    for n in 0..20_000u32 {
        fs::write(dir.join(format!("entry-{:05}", n.wrapping_mul(7919) % 20_000)), n.to_le_bytes()).unwrap();
    }
    let before = inventory(&world.src);
    world.snapshot("wide", "--frame-size 16KiB --part-size 1MiB").ok();
    let (target, ran) = world.restore("wide/1", "out");
    ran.ok();
    assert_same(&before, &inventory(&target), &exact(), "a wide directory");
}

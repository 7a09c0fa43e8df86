//! What a mount shows is what was stored: for trees of every kind, at every level, seen by our own walker and by stock tools.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use super::{Mount, can_mount};
use crate::support::inventory::{Compare, assert_same, inventory};
use crate::support::rng::Rng;
use crate::support::tools::{need, shell, shell_ok, skip};
use crate::support::tree::{DEEP, SOCKETS, Tree, chmod, touch};
use crate::support::{World, exit};

const KERNEL: &str = "/usr/src/linux-source-6.1.tar.xz";

/// What stock tools find different between a tree and its mount; all of them at a time.
fn tools_agree(src: &Path, shown: &Path) {
    let lines = [
        // diff has no way to compare FIFOs and devices.
        r#"diff -r --no-dereference -x special "$1" "$2""#,
        r#"rsync -naHAX --numeric-ids --checksum --delete --itemize-changes "$1/" "$2/""#,
        r#"tar -C "$1" --numeric-owner -cf - . 2>/dev/null | tar -C "$2" --numeric-owner --compare -f -"#,
    ];
    std::thread::scope(|scope| {
        for line in lines {
            scope.spawn(move || {
                let output = shell_ok(line, &[src, shown]);
                assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{line}");
            });
        }
    });
}

#[test]
fn every_kind_is_shown_as_it_was() {
    let me = "every_kind_is_shown_as_it_was";
    if !can_mount(me) || !need(me, &["diff", "rsync", "tar"]) {
        return;
    }
    for (seed, options) in [
        (500, ""),
        (501, "--frame-size 4KiB --part-size 64KiB"),
        (502, "--compression bzip2:1 --frame-size 64KiB"),
        (503, "--compression none --frame-size 16KiB"),
    ] {
        let world = World::new("mount");
        Tree::new(seed).build(&world.src);
        let before = inventory(&world.src);
        world.snapshot("tree", options).ok();
        let all = Mount::new(&world, "all", "");
        let one = Mount::new(&world, "one", "tree/1");
        for shown in [all.path("tree/latest/"), one.at.clone()] {
            assert_same(&before, &inventory(&shown), &Compare::EXACT, &format!("{options:?} {}", shown.display()));
        }
        // Again from the kernel's memory, and again by another bk: with the same inode numbers.
        let numbers = inode_numbers(&one.at);
        assert_same(&before, &inventory(&one.at), &Compare::EXACT, "once more");
        assert_eq!(one.count("faults"), 0);
        one.end().ok();
        let one = Mount::new(&world, "one", "tree/1");
        assert_eq!(inode_numbers(&one.at), numbers);
        // The root, too.
        let (root, shown) = (world.src.metadata().unwrap(), one.at.metadata().unwrap());
        assert_eq!((root.mode(), root.mtime(), root.mtime_nsec()), (shown.mode(), shown.mtime(), shown.mtime_nsec()));
        one.end().ok();
        all.end().ok();
    }
}

#[test]
fn stock_tools_find_no_difference() {
    let me = "stock_tools_find_no_difference";
    if !can_mount(me) || !need(me, &["diff", "rsync", "tar"]) {
        return;
    }
    let world = World::new("mount");
    Tree::new(504).without(DEEP | SOCKETS).build(&world.src);
    world.snapshot("tree", "--frame-size 256KiB").ok();
    let one = Mount::new(&world, "one", "tree/1");
    tools_agree(&world.src, &one.at);
    let all = Mount::new(&world, "all", "");
    tools_agree(&world.src, &all.path("tree/latest/."));
    // The tools see a change when there is one.
    fs::write(world.src.join("plain/a.txt"), "other").unwrap();
    let output = shell(r#"diff -r --no-dereference -x special "$1" "$2""#, &[&world.src, &one.at]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("a.txt"));
}

fn inode_numbers(root: &Path) -> BTreeMap<Vec<u8>, u64> {
    use std::os::unix::ffi::OsStringExt;
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        // Paths past PATH_MAX are seen by the inventory, which goes by descriptors.
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
            let entry = entry.unwrap();
            let Ok(meta) = entry.path().symlink_metadata() else { continue };
            if meta.is_dir() {
                todo.push(entry.path());
            }
            found.insert(entry.path().into_os_string().into_vec(), meta.ino());
        }
    }
    found
}

#[test]
fn hard_links_share_an_inode_and_nothing_else_does() {
    if !can_mount("hard_links_share_an_inode_and_nothing_else_does") {
        return;
    }
    let world = World::new("mount");
    Tree::new(505).without(DEEP).build(&world.src);
    world.snapshot("tree", "").ok();
    world.snapshot("tree", "").ok();
    let all = Mount::new(&world, "all", "");
    let dir = all.path("tree/latest/links");
    let ino = |name: &str| dir.join(name).symlink_metadata().unwrap().ino();
    assert_eq!(ino("m"), ino("z-other/across"));
    assert_eq!(ino("m"), ino("a-first/sorts-before"));
    assert_eq!(dir.join("m").metadata().unwrap().nlink(), 4);
    assert_ne!(ino("m"), ino("outside-group"));
    // No two paths of two snapshots share a number, but for names of one file and `latest`.
    let mut seen: BTreeMap<u64, (Vec<u8>, u64)> = BTreeMap::new();
    for (path, ino) in inode_numbers(&all.at) {
        use std::os::unix::ffi::OsStrExt;
        let nlink = Path::new(std::ffi::OsStr::from_bytes(&path)).symlink_metadata().unwrap().nlink();
        if let Some((other, links)) = seen.insert(ino, (path.clone(), nlink)) {
            let both = format!("{} and {}", other.escape_ascii(), path.escape_ascii());
            assert!(nlink > 1 && links == nlink, "{both} share number {ino:x}");
        }
    }
    assert!(seen.len() > 1500);
}

#[test]
fn numbers_stay_when_other_snapshots_come_and_go() {
    if !can_mount("numbers_stay_when_other_snapshots_come_and_go") {
        return;
    }
    let world = World::new("mount");
    Tree::new(509).without(DEEP).build(&world.src);
    for (job, options) in [("tree", "--level 0"), ("other", "--level 0"), ("tree", "--level 1"), ("other", "--level 0")]
    {
        fs::write(world.src.join(format!("new-{job}")), options).unwrap();
        world.snapshot(job, options).ok();
    }
    let numbers = || {
        let mount = Mount::new(&world, "mnt", "");
        // The older of the job's snapshots and the newer, in another order each time.
        let mut dirs = crate::support::sorted(&mount.path("tree"));
        dirs.retain(|dir| !dir.ends_with("latest"));
        let found: Vec<_> = dirs.iter().rev().take(2).map(|dir| inode_numbers(dir)).collect();
        mount.end().ok();
        found
    };
    let before = numbers();
    assert!(before.iter().all(|found| found.len() > 500));
    // Others come, one goes, a new job does, too.
    world.snapshot("other", "--level 0").ok();
    world.snapshot("a-new-job", "--level 0").ok();
    world.bk("expire --set other/1 2020-01-01T00:00:00Z").run().ok();
    world.bk("expire other --yes").run().ok();
    assert_eq!(numbers(), before);
    // One of the two by itself shows the same, but for the root.
    let one = Mount::new(&world, "mnt", "tree/2");
    let tail = |path: &[u8], root: &Path| path[root.as_os_str().len()..].to_vec();
    let alone: Vec<_> = inode_numbers(&one.at).into_iter().map(|(path, n)| (tail(&path, &one.at), n)).collect();
    let root = world.path("mnt/tree").join(dir_of(&before[0]));
    let among: Vec<_> = before[0].iter().map(|(path, n)| (tail(path, &root), *n)).collect();
    assert_eq!(alone, among);
}

/// The name of the snapshot's directory in paths of a mount of all.
fn dir_of(found: &BTreeMap<Vec<u8>, u64>) -> String {
    let path = String::from_utf8_lossy(found.keys().next().unwrap()).into_owned();
    path.split("/mnt/tree/").nth(1).unwrap().split('/').next().unwrap().to_owned()
}

/// Changes a tree in every way a level can hold.
fn change(src: &Path, rng: &mut Rng, step: u64) {
    let at = |name: &str| src.join(name);
    fs::write(at(&format!("new-{step}")), rng.content(5000)).unwrap();
    fs::create_dir_all(at(&format!("dir-{step}/deeper"))).unwrap();
    fs::write(at(&format!("dir-{step}/deeper/file")), rng.content(70_000)).unwrap();
    fs::hard_link(at(&format!("new-{step}")), at(&format!("dir-{step}/linked"))).unwrap();
    symlink(format!("../new-{step}"), at(&format!("dir-{step}/symlink"))).unwrap();
    if step > 1 {
        let last = step - 1;
        // Renamed, replaced by another kind, removed, grown, only touched.
        fs::rename(at(&format!("dir-{last}/deeper/file")), at(&format!("renamed-{step}"))).unwrap();
        fs::remove_dir_all(at(&format!("dir-{last}"))).unwrap();
        match step % 3 {
            0 => fs::write(at(&format!("dir-{last}")), "a file now").unwrap(),
            1 => symlink("nowhere", at(&format!("dir-{last}"))).unwrap(),
            _ => {}
        }
        chmod(&at(&format!("new-{last}")), 0o4711);
        touch(&at("plain/size-1"), 1_000_000 + step as i64, 7);
    }
    if step == 5 {
        // What was a file is a directory again.
        fs::remove_file(at("dir-2")).unwrap();
        fs::create_dir(at("dir-2")).unwrap();
        fs::write(at("dir-2/again"), "here").unwrap();
    }
    let mut large = fs::read(at("large/prose")).unwrap();
    let from = rng.below(large.len() as u64 - 4000) as usize;
    large[from..from + 3000].copy_from_slice(&rng.noise(3000));
    large.extend_from_slice(&rng.prose(1000));
    fs::write(at("large/prose"), large).unwrap();
}

#[test]
fn every_level_of_a_chain_of_ten_is_whole() {
    let me = "every_level_of_a_chain_of_ten_is_whole";
    if !can_mount(me) || !need(me, &["rsync", "diff", "tar"]) {
        return;
    }
    let world = World::new("mount");
    Tree::new(506).without(DEEP).build(&world.src);
    let mut rng = Rng::new(506);
    let mut states = Vec::new();
    for level in 0..10 {
        if level > 0 {
            change(&world.src, &mut rng, level);
        }
        world.snapshot("tree", &format!("--level {level} --frame-size 64KiB --part-size 1MiB")).ok();
        states.push(inventory(&world.src));
    }
    let all = Mount::new(&world, "all", "");
    let dirs: Vec<String> =
        crate::support::sorted(&all.path("tree")).iter().map(|p| crate::support::name_of(p)).collect();
    assert_eq!(dirs.len(), 11, "{dirs:?}");
    for (n, state) in states.iter().enumerate() {
        let name = dirs.iter().find(|name| name.starts_with(&format!("{}-L{n}-", n + 1))).unwrap();
        let shown = all.path("tree").join(name);
        assert_same(state, &inventory(&shown), &Compare::EXACT, name);
    }
    let newest = fs::read_link(all.path("tree/latest")).unwrap();
    assert!(newest.to_str().unwrap().starts_with("10-L9-2"), "{newest:?}");
    assert_eq!(all.count("faults"), 0);
    let one = Mount::new(&world, "one", "tree/latest");
    tools_agree_without_special(&world, &one.at);
}

fn tools_agree_without_special(world: &World, shown: &Path) {
    for name in ["special", "locked-0000"] {
        assert_eq!(world.src.join(name).exists(), shown.join(name).exists());
    }
    let line = r#"rsync -naHAX --numeric-ids --checksum --delete --itemize-changes "$1/" "$2/""#;
    let output = shell_ok(line, &[&world.src, shown]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}

#[test]
fn streams_are_files_of_their_size() {
    if !can_mount("streams_are_files_of_their_size") {
        return;
    }
    let world = World::new("mount");
    let mut rng = Rng::new(507);
    let mut dump = rng.prose(3_000_000);
    let put = |dump: &[u8], level: u8| {
        let options = format!("--level {level} --frame-size 64KiB --part-size 1MiB");
        world.bk("snapshot --job db --stdin shop.sql").words(&options).small().stdin(dump).run().ok();
    };
    put(&dump, 0);
    let older = dump.clone();
    dump[1_000_000..1_003_000].copy_from_slice(&rng.noise(3000));
    dump.extend_from_slice(&rng.prose(100_000));
    put(&dump, 1);
    fs::write(world.src.join("file"), "a tree beside").unwrap();
    let all = Mount::new(&world, "all", "");
    let first = crate::support::sorted(&all.path("db")).remove(0);
    for (dir, content) in [(first, &older), (all.path("db/latest/"), &dump)] {
        let names: Vec<_> = crate::support::sorted(&dir).iter().map(|p| crate::support::name_of(p)).collect();
        assert_eq!(names, ["shop.sql"]);
        let path = dir.join("shop.sql");
        let meta = path.metadata().unwrap();
        assert_eq!((meta.len(), meta.mode() & 0o777), (content.len() as u64, 0o400));
        assert_eq!(blake3::hash(&fs::read(path).unwrap()), blake3::hash(content));
    }
    // With a tree beside them they have a directory whose name the tree has not.
    fs::create_dir(world.src.join(".bk-streams")).unwrap();
    fs::write(world.src.join(".bk-streams/own"), "of the tree").unwrap();
    let ran =
        world.bk("snapshot --job both --stdin dump").small().stdin("dumped").arg("-C").arg(&world.src).arg(".").run();
    if ran.code() == exit::USAGE {
        skip("streams_are_files_of_their_size (a tree and a stream together)", "snapshot takes one or the other");
        return;
    }
    ran.ok();
    let dir = all.path("both/latest");
    super::wait_for("the new job", || dir.join("file").exists());
    assert_eq!(fs::read(dir.join(".bk-streams~/dump")).unwrap(), b"dumped");
    assert_eq!(fs::read(dir.join(".bk-streams/own")).unwrap(), b"of the tree");
    let names: Vec<_> = crate::support::sorted(&dir).iter().map(|p| crate::support::name_of(p)).collect();
    assert_eq!(names, [".bk-streams", ".bk-streams~", "file"]);
}

#[test]
fn directories_of_any_width_are_listed_whole() {
    if !can_mount("directories_of_any_width_are_listed_whole") {
        return;
    }
    let world = World::new("mount");
    for width in [0usize, 1, 2, 24, 25, 127, 128, 129, 1000, 5000] {
        let dir = world.src.join(format!("w{width}"));
        fs::create_dir(&dir).unwrap();
        for n in 0..width {
            fs::write(dir.join(format!("{n}-{}", "x".repeat(n % 200))), b"").unwrap();
        }
    }
    world.snapshot("wide", "--level 0").ok();
    for n in (0..5000).step_by(7) {
        let dir = world.src.join("w5000");
        fs::remove_file(dir.join(format!("{n}-{}", "x".repeat(n % 200)))).unwrap();
        fs::write(dir.join(format!("later-{n}")), b"").unwrap();
    }
    world.snapshot("wide", "--level 1").ok();
    for name in ["wide/1", "wide/2"] {
        let one = Mount::new(&world, "one", name);
        let listed = |dir: &Path| {
            let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
            let count = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count, "{}: a name came twice", dir.display());
            names
        };
        for dir in crate::support::sorted(&world.src) {
            let shown = one.at.join(dir.file_name().unwrap());
            if name == "wide/2" {
                assert_eq!(listed(&shown), listed(&dir), "{}", dir.display());
            }
            assert_eq!(listed(&shown).len().to_string(), crate::support::name_of(&dir)[1..]);
        }
        one.end().ok();
    }
}

#[test]
fn the_kernel_tree_is_shown_as_it_was() {
    let me = "the_kernel_tree_is_shown_as_it_was";
    if !can_mount(me) || !need(me, &["xz", "tar", "diff", "rsync"]) {
        return;
    }
    if !Path::new(KERNEL).exists() {
        skip(me, &format!("no {KERNEL}"));
        return;
    }
    let world = World::new("mount");
    let whole = std::env::var("BK_TEST_KERNEL").is_ok_and(|v| v == "whole");
    let members = if whole { "" } else { "linux-source-6.1/drivers/net/wireless" };
    shell_ok(&format!("tar -C \"$1\" -xJf {KERNEL} {members}"), &[&world.src]);
    world.snapshot("kernel", "--part-size 16MiB").ok();
    let one = Mount::new(&world, "one", "--cache-memory 256MiB kernel/1");
    // Files come before directories in a list, as they are stored: whoever goes down depth first decodes each frame once.
    shell_ok(r#"tar -C "$1" -cf - . | cat >/dev/null"#, &[&one.at]);
    let before = inventory(&world.src);
    let bytes: u64 = before.values().map(|record| record.size.next_multiple_of(512) + 1536).sum();
    let (decoded, frames) = (one.count("decoded"), bytes / (3 << 20) + 4);
    assert!(decoded <= frames, "{decoded} frames were decoded for {bytes} bytes");
    // Of the whole tree more went through the cache than it holds.
    let peak = one.peak();
    assert!(peak <= (64 + 256) << 10, "{peak} KiB for a cache of 256 MiB");
    // What was read, and what was given unasked.
    assert_same(&before, &inventory(&one.at), &Compare::EXACT, "the kernel tree");
    tools_agree(&world.src, &one.at);
    assert_eq!(one.count("faults"), 0);
}

#[test]
fn a_volume_on_s3_is_shown_as_it_was() {
    let me = "a_volume_on_s3_is_shown_as_it_was";
    if !can_mount(me) {
        return;
    }
    let world = World::on_s3("mount");
    Tree::new(508).without(DEEP).build(&world.src);
    world.snapshot("tree", "--level 0 --frame-size 64KiB --part-size 1MiB").ok();
    let first = inventory(&world.src);
    fs::write(world.src.join("plain/new"), "new").unwrap();
    fs::remove_dir_all(world.src.join("many/2")).unwrap();
    world.snapshot("tree", "--level 1 --frame-size 64KiB --part-size 1MiB").ok();
    let second = inventory(&world.src);
    let all = Mount::new(&world, "all", "");
    let older = crate::support::sorted(&all.path("tree")).remove(0);
    assert_same(&first, &inventory(&older), &Compare::EXACT, "level 0 on S3");
    assert_same(&second, &inventory(&all.path("tree/latest/")), &Compare::EXACT, "level 1 on S3");
    assert_eq!(all.count("faults"), 0);
    all.end().ok();
}

//! Increments are restored by tools that know nothing of bk: level 0 by GNU tar, each level after it by GNU tar or,
//! where it holds deltas, by `docs/apply-level.py`; and the trees are equal.
//!
//! What tar cannot do: sockets are left out of every comparison, and paths near 4,095 bytes out of the trees
//! (`interop.rs` says why). GNU tar alone leaves the attributes that a directory lost.
//!
//! Seen to fail: a directory's list of names written in another order than their bytes' (GNU tar then deletes what lives) fails six of these tests.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, XattrFlags};
use serde_json::Value;

use crate::support::history::change;
use crate::support::inventory::{Compare, Inventory, assert_same, inventory};
use crate::support::rng::Rng;
use crate::support::tools::{need, need_root, shell, shell_ok};
use crate::support::tree::{DEEP, LARGE, MANY, SOCKETS, SPARSE, Tree, XATTRS, chmod, touch};
use crate::support::{World, name_of, sorted};

const TOOLS: [&str; 5] = ["tar", "zstd", "bzip2", "python3", "sed"];
const TAR: &str = "tar -p --numeric-owner --xattrs --xattrs-include='*' --acls -C \"$2\" -f -";
const SMALL: &str = "--frame-size 4KiB --part-size 64KiB";

fn usable(me: &str) -> bool {
    need(me, &TOOLS) && need_root(me)
}

/// The tree without its sockets.
fn seen(root: &Path) -> Inventory {
    let mut all = inventory(root);
    all.retain(|_, record| record.kind != FileType::Socket);
    all
}

fn runs(world: &World) -> Vec<PathBuf> {
    sorted(&world.volume.join("data/tree"))
}

fn record(world: &World, seq: usize) -> Value {
    let text = fs::read_to_string(world.volume.join(format!("log/tree/{seq:020}.json"))).unwrap();
    serde_json::from_str(text.lines().next().unwrap()).unwrap()
}

fn deltas(world: &World, seq: usize) -> u64 {
    record(world, seq)["totals"]["deltas"].as_u64().unwrap_or(0)
}

fn decoder(run: &Path) -> &'static str {
    match name_of(&sorted(run).into_iter().find(|p| name_of(p).starts_with("tree-")).unwrap()) {
        name if name.ends_with(".zst") => "zstd -dc",
        name if name.ends_with(".bz2") => "bzip2 -dc",
        _ => "cat",
    }
}

fn by_tar(run: &Path, target: &Path, how: &str) {
    shell_ok(&format!("{} \"$1\"/tree-* | {TAR} {how}", decoder(run)), &[run, target]);
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/apply-level.py")
}

fn by_script(run: &Path, target: &Path) {
    shell_ok("python3 \"$3\" \"$1\"/tree-* \"$2\"", &[run, target, &script()]);
}

/// Level 0 of `world`, by GNU tar.
fn base(world: &World) -> PathBuf {
    let target = world.path("by-hand");
    fs::create_dir(&target).unwrap();
    by_tar(&runs(world)[0], &target, "-x");
    target
}

fn level(world: &World, level: usize, options: &str) {
    world.snapshot("tree", &format!("--level {level} --no-promote {options}")).ok();
}

/// Snapshots level `n`, applies it to `target` and compares.
fn next(world: &World, n: usize, target: &Path, alone: bool, options: &str, about: &str) {
    level(world, n, options);
    let run = &runs(world)[n];
    if alone {
        assert_eq!(deltas(world, n + 1), 0, "{about}: level {n} has deltas");
        by_tar(run, target, "-x -G --anchored --exclude=.bk/deleted");
    } else {
        by_script(run, target);
    }
    assert_same(&seen(&world.src), &seen(target), &Compare::EXACT, &format!("{about}, level {n}"));
    assert_eq!(root_time(target), root_time(&world.src), "{about}, level {n}");
}

fn root_time(root: &Path) -> i128 {
    let stat = rustix::fs::stat(root).unwrap();
    i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec)
}

/// More names than a PAX header has room for.
fn crowd(dir: &Path) {
    fs::create_dir(dir).unwrap();
    for n in 0..500 {
        fs::write(dir.join(format!("{n:03}-{}", "x".repeat(150))), "").unwrap();
    }
}

fn raw(dir: &Path, name: &[u8]) -> PathBuf {
    dir.join(OsString::from_vec(name.to_vec()))
}

/// What can be told without deltas: new, changed and deleted things, other types, short files' metadata.
fn plain_changes(src: &Path, round: usize) {
    let at = |name: &str| src.join(name);
    match round {
        1 => {
            fs::write(at("plain/a.txt"), "another content").unwrap();
            fs::write(at("plain/size-65535"), "shorter").unwrap();
            fs::remove_file(at("plain/size-513")).unwrap();
            // Other changes may have moved it.
            let _ = fs::remove_dir_all(at("plain/a"));
            fs::remove_dir(at("plain/empty-dir")).unwrap();
            fs::create_dir(at("plain/new-empty")).unwrap();
            fs::remove_file(at("plain/a-b")).unwrap();
            fs::create_dir_all(at("plain/a-b/was/a file")).unwrap();
            fs::remove_dir_all(at("meta/private")).unwrap();
            symlink("sticky", at("meta/private")).unwrap();
            fs::remove_dir_all(at("meta/sticky")).unwrap();
            fs::write(at("meta/sticky"), "a file now").unwrap();
            fs::remove_file(at("links/to-dir")).unwrap();
            fs::create_dir(at("links/to-dir")).unwrap();
            fs::write(at("links/to-dir/inside"), "x").unwrap();
            fs::remove_file(at("links/dangling")).unwrap();
            fs::write(at("links/dangling"), "no link").unwrap();
            fs::remove_file(at("special/fifo-0000")).unwrap();
            drop(UnixListener::bind(at("special/fifo-0000")).unwrap());
            chmod(&at("meta/mode-0644"), 0o600);
            chmod(&at("meta/setgid"), 0o711);
            touch(&at("meta/time-epoch"), 5, 6);
            std::os::unix::fs::lchown(at("meta/owner-1"), Some(9), Some(10)).unwrap();
            rustix::fs::lsetxattr(at("meta/mode-0400"), "user.new", b"1", XattrFlags::empty()).unwrap();
            // A further name; a group of several parts with one of them.
            fs::hard_link(at("links/m"), at("links/n-new-name")).unwrap();
            fs::remove_file(at("links/z-other/across")).unwrap();
            fs::write(at("links/z-other/across"), "broken off").unwrap();
            fs::write(raw(src, b"new\xff name\n"), "raw").unwrap();
            fs::create_dir(raw(src, b"dir \xfe")).unwrap();
            fs::write(raw(src, b"dir \xfe/file"), "in it").unwrap();
            crowd(&at("crowd"));
            touch(&at("locked-0000"), 7, 8);
            fs::write(at("locked-0555/more"), "more").unwrap();
        }
        2 => {
            fs::remove_dir_all(at("plain/a-b")).unwrap();
            fs::write(at("plain/a-b"), "a file again").unwrap();
            fs::remove_file(at("meta/private")).unwrap();
            fs::create_dir(at("meta/private")).unwrap();
            fs::remove_file(raw(src, b"new\xff name\n")).unwrap();
            fs::remove_dir_all(raw(src, b"dir \xfe")).unwrap();
            fs::remove_dir_all(at("names")).unwrap();
            for n in (0..500).step_by(7) {
                fs::remove_file(at("crowd").join(format!("{n:03}-{}", "x".repeat(150)))).unwrap();
            }
            fs::write(at("crowd/one more"), "1").unwrap();
            fs::create_dir(at("crowd/0 dir")).unwrap();
            touch(&at("crowd"), 1_234_567_890, 1);
            fs::remove_dir_all(at("locked-0111")).unwrap();
            fs::write(at("plain/new-empty/filled"), "1").unwrap();
            fs::remove_file(at("links/n-new-name")).unwrap();
        }
        _ => unreachable!(),
    }
}

/// What is told by deltas: renames, changes of long files, long files' metadata, names of them.
fn delta_changes(src: &Path, round: usize) {
    let at = |name: &str| src.join(name);
    let write = |name: &str, offset: u64, text: &str| {
        File::options().write(true).open(src.join(name)).unwrap().write_all_at(text.as_bytes(), offset).unwrap();
    };
    match round {
        1 => {
            write("plain/size-1048577", 500_000, "changed in the middle");
            chmod(&at("plain/size-262144"), 0o4755);
            touch(&at("plain/size-65536"), 44, 55);
            std::os::unix::fs::lchown(at("plain/size-10240"), Some(70_000), Some(3)).unwrap();
            rustix::fs::lsetxattr(at("plain/size-4096"), "user.new", b"a\0b", XattrFlags::empty()).unwrap();
            fs::rename(at("plain/zeros-written"), at("zz moved\n")).unwrap();
            let _ = fs::rename(at("plain/a"), raw(src, b"moved \xff dir"));
            fs::rename(at("xattr"), at("aa-before")).unwrap();
            // Two long files swap their names, and one takes the other's place.
            fs::rename(at("meta/owner-0"), at("aside")).unwrap();
            fs::rename(at("meta/owner-1"), at("meta/owner-0")).unwrap();
            fs::rename(at("aside"), at("meta/owner-1")).unwrap();
            fs::rename(at("plain/size-4097"), at("plain/size-4095")).unwrap();
            // The first name goes; the others stay, one of them elsewhere.
            fs::remove_file(at("links/m")).unwrap();
            fs::rename(at("links/z-same-dir"), at("links/z-other/renamed")).unwrap();
            // A changed long file gets a second name, before and after it.
            fs::hard_link(at("plain/size-262144"), at("a-name")).unwrap();
            fs::hard_link(at("plain/size-262144"), at("z-name")).unwrap();
            fs::remove_dir_all(at("plain/b")).ok();
            write("sparse/middle", 2_000_000, "in the hole");
            write("sparse/trailing", 60_000, "over data");
            fs::rename(at("sparse/leading"), at("sparse/moved")).unwrap();
            File::options().write(true).open(at("sparse/data-to-end")).unwrap().set_len(1_950_000).unwrap();
        }
        2 => {
            write("plain/size-1048577", 0, "and at its begin");
            File::options().append(true).open(at("plain/size-1048577")).unwrap().set_len(900_001).unwrap();
            fs::rename(at("zz moved\n"), at("plain/zeros-written")).unwrap();
            let _ = fs::rename(raw(src, b"moved \xff dir"), at("plain/a"));
            // A directory takes a file's name and a file a directory's.
            fs::rename(at("plain/size-65536"), at("aside")).unwrap();
            fs::rename(at("aa-before"), at("plain/size-65536")).unwrap();
            fs::rename(at("aside"), at("aa-before")).unwrap();
            fs::remove_file(at("a-name")).unwrap();
            write("z-name", 100_000, "both names see this");
            fs::remove_dir_all(at("sparse")).unwrap();
            symlink("plain", at("sparse")).unwrap();
        }
        _ => unreachable!(),
    }
}

#[test]
fn gnu_tar_alone_applies_levels_without_deltas() {
    if !usable("gnu_tar_alone_applies_levels_without_deltas") {
        return;
    }
    for (n, codec) in ["zstd:3", "bzip2:1", "none"].into_iter().enumerate() {
        let world = World::new("alone");
        Tree::new(200 + n as u64).without(SOCKETS | DEEP | MANY | LARGE).build(&world.src);
        let options = format!("--compression {codec} --frame-size 4MiB --part-size 256KiB");
        level(&world, 0, &options);
        let target = base(&world);
        for round in 1..=2 {
            plain_changes(&world.src, round);
            next(&world, round, &target, true, &options, codec);
        }
        // Nothing changed: nothing is done.
        next(&world, 3, &target, true, &options, codec);
    }
}

/// What a level without deltas removes is also told in `.bk/deleted`, for a tar that knows no lists of names.
#[test]
fn levels_apply_by_the_list_of_what_is_deleted() {
    if !usable("levels_apply_by_the_list_of_what_is_deleted") {
        return;
    }
    let world = World::new("deleted");
    Tree::new(205).without(SOCKETS | DEEP | MANY | LARGE).build(&world.src);
    fs::create_dir_all(world.src.join("- dir \n/-rf")).unwrap();
    fs::write(world.src.join("-v"), "a name like an option").unwrap();
    let options = "--frame-size 4MiB --part-size 256KiB";
    level(&world, 0, options);
    let target = base(&world);
    for round in 1..=3 {
        match round {
            3 => {
                fs::remove_dir_all(world.src.join("- dir \n")).unwrap();
                fs::remove_file(world.src.join("-v")).unwrap();
            }
            _ => plain_changes(&world.src, round),
        }
        level(&world, round, options);
        let run = &runs(&world)[round];
        assert_eq!(deltas(&world, round + 1), 0);
        let decode = decoder(run);
        let list = shell_ok(&format!("{decode} \"$1\"/tree-* | tar -x -O -f - .bk/deleted"), &[run]).stdout;
        assert!(list.ends_with(b"\0"), "round {round}");
        let remove = "tar -x -O -f - .bk/deleted | (cd \"$2\" && xargs -0 rm -rf --)";
        shell_ok(&format!("{decode} \"$1\"/tree-* | {remove}"), &[run, &target]);
        by_tar(run, &target, "-x --anchored --exclude=.bk/deleted");
        assert_same(&seen(&world.src), &seen(&target), &Compare::EXACT, &format!("by hand, level {round}"));
        assert_eq!(root_time(&target), root_time(&world.src), "level {round}");
    }
    // Nothing is deleted: there is no list.
    level(&world, 4, options);
    let none =
        shell(&format!("{} \"$1\"/tree-* | tar -t -f - .bk/deleted", decoder(&runs(&world)[4])), &[&runs(&world)[4]]);
    assert!(!none.status.success());
}

/// A million paths removed one by one are no million paths in memory: more than fits there is told all the same.
#[test]
fn a_list_of_deletions_longer_than_memory() {
    if !usable("a_list_of_deletions_longer_than_memory") {
        return;
    }
    let world = World::new("long-list");
    let dir = world.src.join("d");
    fs::create_dir(&dir).unwrap();
    for n in 0..12_000 {
        fs::write(dir.join(format!("{n:0200}")), "").unwrap();
    }
    fs::write(dir.join("stays"), "1").unwrap();
    level(&world, 0, SMALL);
    for n in 0..12_000 {
        fs::remove_file(dir.join(format!("{n:0200}"))).unwrap();
    }
    level(&world, 1, SMALL);
    let run = &runs(&world)[1];
    let list = shell_ok(&format!("{} \"$1\"/tree-* | tar -x -O -f - .bk/deleted", decoder(run)), &[run]).stdout;
    let expected: Vec<u8> = (0..12_000).flat_map(|n| format!("d/{n:0200}\0").into_bytes()).collect();
    assert!(list == expected, "{} bytes, not {}", list.len(), expected.len());
    world.bk("verify --data tree/2").run().ok();
}

#[test]
fn the_script_applies_levels_with_deltas() {
    if !usable("the_script_applies_levels_with_deltas") {
        return;
    }
    let cases = ["--compression zstd:3", "--compression bzip2:1", "--compression none --frame-size 64KiB"];
    for (n, more) in cases.into_iter().enumerate() {
        let world = World::new("script");
        Tree::new(210 + n as u64).without(SOCKETS | DEEP | MANY | LARGE).build(&world.src);
        // Long contents are compared by the chunk.
        let options = if more.contains("frame") { more.to_owned() } else { format!("{SMALL} {more}") };
        level(&world, 0, &options);
        let target = base(&world);
        for round in 1..=2 {
            plain_changes(&world.src, round);
            delta_changes(&world.src, round);
            next(&world, round, &target, false, &options, more);
            assert!(deltas(&world, round + 1) > 10, "{more}: {}", deltas(&world, round + 1));
        }
    }
}

#[test]
fn files_that_are_known_without_a_look_inside() {
    if !usable("files_that_are_known_without_a_look_inside") {
        return;
    }
    let world = World::new("known");
    Tree::new(220).without(SOCKETS | DEEP | MANY | LARGE).build(&world.src);
    // What changed less than two seconds before a run is read again by the next.
    let settle = || std::thread::sleep(std::time::Duration::from_secs(3));
    settle();
    level(&world, 0, SMALL);
    let target = base(&world);
    for round in 1..=2 {
        settle();
        delta_changes(&world.src, round);
        settle();
        next(&world, round, &target, false, SMALL, "known");
    }
}

#[test]
fn random_histories() {
    if !usable("random_histories") {
        return;
    }
    for seed in 300..332 {
        let mut rng = Rng::new(seed);
        let world = World::new("random");
        let kinds = (rng.next() as u32) & !(SOCKETS | DEEP | LARGE | MANY) | SOCKETS | DEEP | LARGE | MANY;
        let kinds = if seed % 4 == 0 { kinds & !SPARSE } else { kinds | SPARSE };
        Tree::new(seed).without(kinds).build(&world.src);
        let frame = ["4KiB", "16KiB", "64KiB", "4MiB"][rng.below(4) as usize];
        let options = format!("--frame-size {frame} --part-size 64KiB");
        let mut about = format!("seed {seed}, {frame}");
        level(&world, 0, &options);
        let target = base(&world);
        for n in 1..=3 {
            let count = [1, 3, 10, 40][rng.below(4) as usize];
            change(&mut rng, &world.src, count);
            about.push_str(&format!(", {count} changes"));
            next(&world, n, &target, false, &options, &about);
            let (restored, ran) = world.restore(&format!("tree/{}", n + 1), &format!("out-{n}"));
            ran.ok();
            assert_same(&seen(&restored), &seen(&target), &Compare::EXACT, &format!("{about}, against bk restore"));
            fs::remove_dir_all(restored).unwrap();
        }
    }
}

#[test]
fn streams_through_levels() {
    if !usable("streams_through_levels") {
        return;
    }
    for (n, codec) in ["zstd:3", "bzip2:9", "none"].into_iter().enumerate() {
        let world = World::new("levels");
        let mut rng = Rng::new(230 + n as u64);
        let mut dump = [rng.prose(400_000), rng.noise(300_000)].concat();
        for level in 0..3 {
            let ran = world.bk(&format!("snapshot --job tree --level {level} --stdin d --compression {codec} {SMALL}"));
            ran.small().stdin(dump.clone()).run().ok();
            let run = &runs(&world)[level];
            let (old, new) = (world.path(&format!("d{}", level.max(1) - 1)), world.path(&format!("d{level}")));
            let read = format!("{} \"$1\"/stream-d-*", decoder_of(codec));
            if level == 0 {
                shell_ok(&format!("{read} > \"$2\""), &[run, &new]);
            } else {
                shell_ok(&format!("{read} | python3 \"$2\" --stream \"$3\" \"$4\""), &[run, &script(), &old, &new]);
            }
            assert!(fs::read(&new).unwrap() == dump, "{codec}, level {level}");
            // Inserted, overwritten, moved, cut.
            let at = rng.below(200_000) as usize;
            let insert = rng.prose(1_234);
            dump.splice(at..at, insert);
            let noise = rng.noise(5_000);
            dump[300_000..305_000].copy_from_slice(&noise);
            dump.rotate_left(100_000);
            dump.truncate(650_000 - 1_000 * level);
        }
        // What it cannot do, it says.
        let run = &runs(&world)[2];
        let (old, new) = (world.path("d0"), world.path("wrong"));
        fs::write(&old, "short").unwrap();
        let line = format!("{} \"$1\"/stream-d-* | python3 \"$2\" --stream \"$3\" \"$4\"", decoder_of(codec));
        let output = shell(&line, &[run, &script(), &old, &new]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("too short") && !new.exists(), "{said}");
    }
}

fn decoder_of(codec: &str) -> &'static str {
    match codec {
        "none" => "cat",
        codec if codec.starts_with("zstd") => "zstd -dc",
        _ => "bzip2 -dc",
    }
}

/// The indented lines of a section, from the line that begins with `title` to the next that is neither indented nor empty.
pub fn commands(text: &str, title: &str) -> String {
    let from = text.lines().skip_while(|l| !l.starts_with(title)).skip(1);
    let lines = from.take_while(|l| l.is_empty() || l.starts_with("    "));
    lines.filter_map(|l| l.strip_prefix("    ")).filter(|l| l.contains(' ')).collect::<Vec<_>>().join("\n")
}

#[test]
fn restore_txt_of_a_chain_says_what_works() {
    if !usable("restore_txt_of_a_chain_says_what_works") {
        return;
    }
    for (case, codecs) in
        [["zstd:3"; 3], ["bzip2:9"; 3], ["none"; 3], ["bzip2:1", "none", "zstd:1"]].into_iter().enumerate()
    {
        let world = World::new("chain");
        let mut rng = Rng::new(240 + case as u64);
        Tree::new(240 + case as u64).without(SOCKETS | DEEP | MANY | LARGE).build(&world.src);
        let mut dump = rng.prose(300_000);
        for (level, codec) in codecs.into_iter().enumerate() {
            if level == 1 {
                plain_changes(&world.src, 1);
            } else if level == 2 {
                delta_changes(&world.src, 1);
            }
            // Level 1 has no deltas in its tree where frames are long.
            let frames = if case % 2 == 0 { "--frame-size 4MiB --part-size 64KiB" } else { SMALL };
            let line =
                format!("snapshot --job tree --level {level} --no-promote --stdin dump {frames} --compression {codec}");
            let ran = world.bk(&line).small().stdin(dump.clone()).arg("-C").arg(&world.src).arg(".").run().ok();
            assert!(ran.said().contains(&format!("level {level}")), "{}", ran.show());
            if case % 2 == 0 {
                assert_eq!(deltas(&world, level + 1) > 0, level == 2, "{:?}", record(&world, level + 1)["totals"]);
            }
            if level < 2 {
                dump[150_000 * level..][..3].copy_from_slice(b"new");
            }
        }
        let run = &runs(&world)[2];
        let text = fs::read_to_string(run.join("RESTORE.txt")).unwrap();
        let before = sorted(run);
        let get = commands(&text, "Levels that hold deltas");
        let tree = commands(&text, "The tree (");
        let stream = commands(&text, "The stream `dump`");
        assert_eq!((tree.lines().count(), stream.lines().count()), (4, 4), "{text}");
        if case % 2 == 0 {
            assert!(tree.lines().nth(2).unwrap().contains("tar -x -G"), "{tree}");
        }
        let target = world.path("out");
        let lines = format!("set -e\ncd \"$1\"\n{get}\n{tree}\n{stream}\n").replace("TARGET", "\"$2\"");
        let file = world.path("commands");
        fs::write(&file, &lines).unwrap();
        shell_ok("sh \"$3\" \"$1\" \"$2\"", &[run, &target, &file]);
        assert_same(&seen(&world.src), &seen(&target), &Compare::EXACT, &lines);
        assert!(fs::read(run.join("dump")).unwrap() == dump, "{lines}");
        fs::remove_file(run.join("dump")).unwrap();
        assert_eq!(sorted(run), before);
    }
}

#[test]
fn other_tools_list_each_level() {
    let me = "other_tools_list_each_level";
    if !usable(me) || !need(me, &["bsdtar"]) {
        return;
    }
    let world = World::new("list");
    Tree::new(250).without(SOCKETS | DEEP | MANY | LARGE | SPARSE).build(&world.src);
    // Not compressed, a level of this size has several parts.
    let options = format!("{SMALL} --compression none");
    level(&world, 0, &options);
    for round in 1..=2 {
        plain_changes(&world.src, round);
        delta_changes_but_sparse(&world.src, round);
        level(&world, round, &options);
        let run = &runs(&world)[round];
        let list = "import sys, tarfile; print(len(tarfile.open(fileobj=sys.stdin.buffer, mode='r|').getnames()))";
        let python = format!("cat \"$1\"/tree-* | python3 -c \"{list}\"");
        let counted: usize = String::from_utf8_lossy(&shell_ok(&python, &[run]).stdout).trim().parse().unwrap();
        let lines = |line: &str, path: &Path| {
            let output = shell_ok(line, &[path]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let strange: Vec<&str> = said.lines().filter(|l| !l.contains("hdrcharset")).collect();
            assert!(strange.is_empty(), "{line} said {strange:?}");
            output.stdout.split(|b| *b == b'\n').count() - 1
        };
        let by_tar = lines("cat \"$1\"/tree-* | tar -t --quoting-style=escape", run);
        assert_eq!((by_tar, by_tar > 50), (counted, true), "level {round}");
        let by_bsdtar = lines("cat \"$1\"/tree-* | bsdtar -tf -", run);
        // bsdtar writes some control characters as they are.
        assert!((counted..counted + 20).contains(&by_bsdtar), "level {round}: {by_bsdtar} of {counted}");
        let parts: Vec<PathBuf> = sorted(run).into_iter().filter(|p| name_of(p).starts_with("tree-")).collect();
        assert!(parts.len() > 1, "{parts:?}");
        let alone: usize = parts.iter().map(|part| lines("tar -tf \"$1\" --quoting-style=escape", part)).sum();
        assert_eq!(alone, counted, "level {round}, part by part");
        for part in &parts {
            lines("bsdtar -tf \"$1\"", part);
        }
    }
}

/// A long member runs on over parts, which then do not list alone.
fn delta_changes_but_sparse(src: &Path, round: usize) {
    if round == 1 {
        for name in ["middle", "trailing", "leading", "data-to-end"] {
            fs::create_dir_all(src.join("sparse")).unwrap();
            fs::write(src.join("sparse").join(name), vec![7; 100]).unwrap();
        }
    }
    delta_changes(src, round);
}

#[test]
fn what_takes_the_place_of_a_file_without_a_member() {
    let me = "what_takes_the_place_of_a_file_without_a_member";
    if !usable(me) {
        return;
    }
    let world = World::new("socket");
    for name in ["d/file", "d/other", "e/link"] {
        fs::create_dir_all(world.src.join(name).parent().unwrap()).unwrap();
        fs::write(world.src.join(name), name).unwrap();
    }
    level(&world, 0, "");
    let target = base(&world);
    fs::remove_file(world.src.join("d/file")).unwrap();
    drop(UnixListener::bind(world.src.join("d/file")).unwrap());
    next(&world, 1, &target, true, "", "a socket where a file was");
    fs::remove_file(world.src.join("d/file")).unwrap();
    fs::write(world.src.join("d/file"), "again").unwrap();
    next(&world, 2, &target, true, "", "a file where a socket was");
}

#[test]
fn gnu_tar_alone_leaves_lost_attributes_of_directories() {
    if !usable("gnu_tar_alone_leaves_lost_attributes_of_directories") {
        return;
    }
    let world = World::new("attributes");
    Tree::new(260).without(!XATTRS).build(&world.src);
    level(&world, 0, "");
    let (target, other) = (base(&world), world.path("other"));
    shell_ok("cp -a \"$1\" \"$2\"", &[&target, &other]);
    rustix::fs::lremovexattr(world.src.join("xattr/on-dir"), "user.dir").unwrap();
    level(&world, 1, "");
    by_tar(&runs(&world)[1], &other, "-x -G");
    by_script(&runs(&world)[1], &target);
    assert_same(&seen(&world.src), &seen(&target), &Compare::EXACT, "the script");
    let differ = crate::support::inventory::differences(&seen(&world.src), &seen(&other), &Compare::EXACT);
    assert_eq!(differ.lines().collect::<Vec<_>>(), ["xattr/on-dir: xattr found    user.dir=yes"]);
}

#[test]
fn the_script_goes_on_where_it_was_stopped() {
    if !usable("the_script_goes_on_where_it_was_stopped") {
        return;
    }
    let world = World::new("stopped");
    Tree::new(270).without(SOCKETS | DEEP | MANY | LARGE).build(&world.src);
    level(&world, 0, SMALL);
    let clean = base(&world);
    let before = seen(&clean);
    plain_changes(&world.src, 1);
    delta_changes(&world.src, 1);
    level(&world, 1, SMALL);
    let run = &runs(&world)[1];
    let after = seen(&world.src);
    // Each system call that changes something fails in turn; the next attempt ends well.
    let stop = r#"
import os, runpy, shutil, subprocess, sys
left, ready = int(sys.argv[1]), False
def stops(real):
    def call(*a, **k):
        global left, ready
        # The last three calls remove what it would go on by.
        if ready and not os.path.exists(".bk/ready"): return real(*a, **k)
        ready = os.path.exists(".bk/ready")
        left -= 1
        if left < 0: raise OSError("stopped here")
        return real(*a, **k)
    return call
for name in ["mkdir", "chown", "rename", "unlink", "link", "sync", "utime", "removexattr", "remove", "rmdir"]:
    setattr(os, name, stops(getattr(os, name)))
subprocess.run = stops(subprocess.run)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"#;
    let stopper = world.path("stop.py");
    fs::write(&stopper, stop).unwrap();
    let mut ended = false;
    let mut rng = Rng::new(271);
    let mut at = 0;
    while !ended {
        let target = world.path(&format!("t{at}"));
        shell_ok("cp -a \"$1\" \"$2\"", &[&clean, &target]);
        let line = format!("python3 \"$1\" {at} \"$2\" \"$3\"/tree-* \"$4\"");
        let output = shell(&line, &[&stopper, &script(), run, &target]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ended = output.status.success();
        if !ended {
            assert!(said.contains("stopped here"), "{at}: {said}");
            if said.contains("nothing was changed") {
                let mut now = seen(&target);
                now.retain(|path, _| !path.starts_with(b".bk"));
                assert_same(&before, &now, &Compare::EXACT, &format!("stopped at {at}"));
            } else {
                assert!(said.contains("between two levels"), "{at}: {said}");
                let output = shell("python3 \"$3\" \"$1\"/tree-* \"$2\"", &[&runs(&world)[0], &target, &script()]);
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(said.contains("another level was begun"), "{at}: {said}");
            }
            by_script(run, &target);
        }
        assert_same(&after, &seen(&target), &Compare::EXACT, &format!("stopped at {at}, then again"));
        fs::remove_dir_all(&target).unwrap();
        at += 1 + rng.below(at / 4 + 1);
    }
    assert!(at > 20, "{at}");
}

#[test]
fn a_tree_that_is_not_the_base_is_refused() {
    if !usable("a_tree_that_is_not_the_base_is_refused") {
        return;
    }
    let world = World::new("refused");
    Tree::new(280).without(SOCKETS | DEEP | MANY | LARGE).build(&world.src);
    level(&world, 0, SMALL);
    let target = base(&world);
    delta_changes(&world.src, 1);
    level(&world, 1, SMALL);
    let refused = |why: &str, run: &Path| {
        let before = seen(&target);
        let output = shell("python3 \"$3\" \"$1\"/tree-* \"$2\"", &[run, &target, &script()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why) && said.contains("nothing was changed"), "{said}");
        let mut now = seen(&target);
        now.retain(|path, _| !path.starts_with(b".bk"));
        assert_same(&before, &now, &Compare::EXACT, why);
        let _ = fs::remove_dir_all(target.join(".bk"));
    };
    let run = runs(&world)[1].clone();
    let old = target.join("plain/size-1048577");
    let content = fs::read(&old).unwrap();
    fs::write(&old, &content[..1000]).unwrap();
    refused("too short", &run);
    fs::remove_file(&old).unwrap();
    refused("No such file", &run);
    fs::write(&old, content).unwrap();
    let part = sorted(&run).into_iter().rfind(|p| name_of(p).starts_with("tree-")).unwrap();
    let bytes = fs::read(&part).unwrap();
    fs::write(&part, &bytes[..bytes.len() / 2]).unwrap();
    refused("", &run);
}

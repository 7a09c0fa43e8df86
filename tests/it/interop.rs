//! A level 0 snapshot is restored by tools that know nothing of bk, and the trees are equal.
//!
//! What a tool cannot do is left out of its tree, not out of the comparison, and is said where the tree is made.
//! For all of them: tar has no sockets.

use std::fs;
use std::path::PathBuf;

use crate::support::inventory::{Compare, Inventory, assert_same, inventory};
use crate::support::tools::{need, need_root, shell, shell_ok};
use crate::support::tree::{ACLS, DEEP, LARGE, ODD_NAMES, ODD_XATTRS, OLD_FRACTIONS, RAW_NAMES, SOCKETS, SPARSE, Tree};
use crate::support::{World, files_below, name_of};

/// With `--acls` GNU tar goes by `/proc/self/fd/N/PATH`, which no path near 4,095 bytes fits into: those go by
/// a run without it.
const GNU_TAR: &str = "tar -xpf - -C \"$2\" --numeric-owner --xattrs --xattrs-include='*' --acls";
const BSDTAR: &str = "bsdtar -xpf - -C \"$2\" --numeric-owner --acls --xattrs";

/// Snapshots a tree without `left_out`, extracts it by `line` (`$1` the run's directory, `$2` the target).
fn extracted_by(line: &str, options: &str, seed: u64, left_out: u32) -> (World, Inventory, PathBuf) {
    let world = World::new("interop");
    Tree::new(seed).without(left_out | SOCKETS).build(&world.src);
    let before = inventory(&world.src);
    world.snapshot("tree", options).ok();
    let run = world.parts("tree", "tree-")[0].parent().unwrap().to_owned();
    let target = world.path("out");
    fs::create_dir(&target).unwrap();
    let output = shell_ok(line, &[&run, &target]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let strange: Vec<&str> = said.lines().filter(|l| !l.contains("hdrcharset") && !old_time(l)).collect();
    assert!(strange.is_empty(), "{line} said {strange:?}");
    (world, before, target)
}

/// GNU tar finds a time before 1970 or in the future worth a word.
fn old_time(line: &str) -> bool {
    line.contains("implausibly old time stamp") || line.contains("in the future")
}

fn same_by(me: &str, tools: &[&str], line: &str, options: &str, seed: u64, left_out: u32, how: &Compare) {
    if !need(me, tools) || !need_root(me) {
        return;
    }
    let (_world, before, target) = extracted_by(line, options, seed, left_out);
    assert_same(&before, &inventory(&target), how, line);
}

#[test]
fn zstd_then_gnu_tar() {
    let line = format!("cat \"$1\"/tree-* | zstd -dc | {GNU_TAR}");
    same_by("zstd_then_gnu_tar", &["zstd", "tar"], &line, "", 60, DEEP, &Compare::EXACT);
}

#[test]
fn zstd_then_gnu_tar_from_many_parts() {
    let line = format!("cat \"$1\"/tree-* | zstd -dc | {GNU_TAR}");
    let options = "--frame-size 4KiB --part-size 64KiB";
    same_by("zstd_then_gnu_tar_from_many_parts", &["zstd", "tar"], &line, options, 61, DEEP, &Compare::EXACT);
}

#[test]
fn gnu_tar_on_the_longest_paths() {
    let line = format!("cat \"$1\"/tree-* | zstd -dc | {}", GNU_TAR.replace(" --acls", ""));
    same_by("gnu_tar_on_the_longest_paths", &["zstd", "tar"], &line, "", 59, ACLS, &Compare::EXACT);
}

#[test]
fn gnu_tar_by_itself_on_one_file() {
    let line =
        format!("cat \"$1\"/tree-* > \"$2\".tar.zst && {}", GNU_TAR.replace("-xpf -", "--zstd -xpf \"$2\".tar.zst"));
    let options = "--frame-size 256KiB --part-size 1MiB";
    same_by("gnu_tar_by_itself_on_one_file", &["zstd", "tar"], &line, options, 62, DEEP, &Compare::EXACT);
}

#[test]
fn bzip2_then_gnu_tar() {
    let line = format!("cat \"$1\"/tree-* | bzip2 -dc | {GNU_TAR}");
    let options = "--compression bzip2:9 --frame-size 64KiB --part-size 512KiB";
    same_by("bzip2_then_gnu_tar", &["bzip2", "tar"], &line, options, 63, DEEP, &Compare::EXACT);
}

#[test]
fn lbzip2_then_gnu_tar() {
    let line = format!("cat \"$1\"/tree-* | lbzip2 -dc | {GNU_TAR}");
    same_by("lbzip2_then_gnu_tar", &["lbzip2", "tar"], &line, "--compression bzip2:6", 64, DEEP, &Compare::EXACT);
}

#[test]
fn gnu_tar_on_plain_parts() {
    let line = format!("cat \"$1\"/tree-* | {GNU_TAR}");
    let options = "--compression none --frame-size 64KiB --part-size 512KiB";
    same_by("gnu_tar_on_plain_parts", &["tar"], &line, options, 65, DEEP, &Compare::EXACT);
}

#[test]
fn bsdtar_takes_the_parts() {
    // libarchive 3.6 adds a fraction to a negative second with the wrong sign, and does not decode `%3D` in the
    // names of SCHILY.xattr.
    let line = format!("cat \"$1\"/tree-* | {BSDTAR}");
    let left_out = OLD_FRACTIONS | ODD_XATTRS;
    same_by("bsdtar_takes_the_parts", &["bsdtar"], &line, "--part-size 1MiB", 66, left_out, &Compare::EXACT);
}

#[test]
fn bsdtar_takes_bzip2() {
    let line = format!("cat \"$1\"/tree-* | {BSDTAR}");
    let left_out = OLD_FRACTIONS | ODD_XATTRS;
    same_by("bsdtar_takes_bzip2", &["bsdtar"], &line, "--compression bzip2:9", 67, left_out, &Compare::EXACT);
}

/// Python's tarfile has no xattrs and no ACLs, sets no times on links, keeps times as floats, and makes all zeros of
/// a hole as it writes (it seeks over them, so holes come out; their grain is its own).
fn python() -> Compare {
    Compare { xattrs: false, link_mtime: false, mtime_slack_ns: 2_000, sparse: false, ..Compare::EXACT }
}

const PYTHON: &str = r#"python3 -c '
import os, sys, tarfile
os.chdir(sys.argv[1])
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|", errorlevel=2) as archive:
    archive.extractall(path="", numeric_owner=True, **({"filter": "fully_trusted"} if hasattr(tarfile, "data_filter") else {}))
' "$2""#;

#[test]
fn python_tarfile_after_zstd() {
    let line = format!("cat \"$1\"/tree-* | zstd -dc | {PYTHON}");
    same_by("python_tarfile_after_zstd", &["python3", "zstd"], &line, "", 68, 0, &python());
}

#[test]
fn python_tarfile_reads_bzip2_streams_itself() {
    let open = PYTHON.replace("fileobj=sys.stdin.buffer, mode=\"r|\"", "sys.argv[1] + \".tar.bz2\", \"r:bz2\"");
    let line = format!("cat \"$1\"/tree-* > \"$2\".tar.bz2 && {open}");
    let options = "--compression bzip2:9 --frame-size 64KiB --part-size 512KiB";
    same_by("python_tarfile_reads_bzip2_streams_itself", &["python3"], &line, options, 69, 0, &python());
}

#[test]
fn restore_txt_says_what_works() {
    let me = "restore_txt_says_what_works";
    if !need(me, &["zstd", "bzip2", "tar"]) || !need_root(me) {
        return;
    }
    for (n, codec) in ["zstd:3", "bzip2:9", "none"].into_iter().enumerate() {
        let world = World::new("by-hand");
        Tree::new(70 + n as u64).without(SOCKETS | LARGE | DEEP).build(&world.src);
        world.snapshot("tree", &format!("--part-size 256KiB --frame-size 64KiB --compression {codec}")).ok();
        let run = world.parts("tree", "tree-")[0].parent().unwrap().to_owned();
        let text = fs::read_to_string(run.join("RESTORE.txt")).unwrap();
        let commands: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("    ")).take(2).collect();
        let target = world.path("out");
        let script = commands.join("\n").replace("TARGET", "\"$2\"");
        assert!(script.contains("tar"), "{text}");
        shell_ok(&format!("cd \"$1\"\n{script}"), &[&run, &target]);
        assert_same(&inventory(&world.src), &inventory(&target), &Compare::EXACT, &script);
    }
}

#[test]
fn each_part_alone_lists_without_a_word() {
    let me = "each_part_alone_lists_without_a_word";
    if !need(me, &["zstd", "bzip2", "tar", "bsdtar"]) {
        return;
    }
    // No member larger than a part, and, but in the last tree, no name or link target outside UTF-8.
    let whole = LARGE | SPARSE;
    let cases = [
        ("zstd:3", whole | RAW_NAMES),
        ("bzip2:9", whole | RAW_NAMES),
        ("none", whole | RAW_NAMES),
        ("zstd:3", whole | ODD_NAMES | DEEP),
    ];
    for (n, (codec, left_out)) in cases.into_iter().enumerate() {
        let world = World::new("alone");
        Tree::new(80 + n as u64).without(left_out).build(&world.src);
        fs::remove_file(world.src.join("plain/size-1048577")).unwrap();
        world.snapshot("tree", &format!("--frame-size 16KiB --part-size 512KiB --compression {codec}")).ok();
        let parts = world.parts("tree", "tree-");
        assert!(parts.len() >= 2, "{codec}: {parts:?}");
        let decode = match codec {
            "none" => "cat",
            "zstd:3" => "zstd -dc",
            _ => "bzip2 -dc",
        };
        let mut listed = 0;
        for part in &parts {
            for line in [format!("{decode} < \"$1\" | tar -tf -"), "tar -tf \"$1\"".into(), "bsdtar -tf \"$1\"".into()]
            {
                let output = shell_ok(&line, &[part]);
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                let strange: Vec<&str> =
                    said.lines().filter(|l| left_out & RAW_NAMES != 0 || !l.contains("hdrcharset")).collect();
                assert!(strange.is_empty(), "{line} on {} of {codec}: {strange:?}", name_of(part));
                listed += output.stdout.split(|b| *b == b'\n').count() - 1;
            }
        }
        let whole = shell_ok(&format!("cat \"$1\"/tree-* | {decode} | tar -tf -"), &[parts[0].parent().unwrap()]);
        let expected = whole.stdout.split(|b| *b == b'\n').count() - 1;
        // bsdtar writes some control characters as they are: a name with a line feed may count twice.
        assert!(listed >= 3 * expected && listed <= 3 * expected + 20, "{codec}: {listed} of 3 × {expected}");
    }
}

#[test]
fn export_is_one_tar() {
    let me = "export_is_one_tar";
    if !need(me, &["tar", "bsdtar"]) || !need_root(me) {
        return;
    }
    for (n, codec) in ["zstd:3", "bzip2:1", "none"].into_iter().enumerate() {
        let world = World::new("export");
        Tree::new(90 + n as u64).without(SOCKETS | DEEP).build(&world.src);
        world.snapshot("tree", &format!("--part-size 256KiB --frame-size 64KiB --compression {codec}")).ok();
        let (archive, target) = (world.path("all.tar"), world.path("out"));
        fs::write(&archive, world.bk("export tree/1").run().ok().stdout).unwrap();
        fs::create_dir(&target).unwrap();
        shell_ok(&format!("{GNU_TAR} < \"$1\""), &[&archive, &target]);
        assert_same(&inventory(&world.src), &inventory(&target), &Compare::EXACT, codec);
        shell_ok("bsdtar -tf \"$1\"", &[&archive]);
        // A second opinion: the tar crate counts what GNU tar counts.
        let entries = tar::Archive::new(fs::File::open(&archive).unwrap()).entries().unwrap().count();
        let listed = shell_ok("tar -tf \"$1\" --quoting-style=escape", &[&archive]).stdout;
        assert_eq!(entries, listed.split(|b| *b == b'\n').count() - 1, "{codec}");
    }
}

#[test]
fn a_cut_archive_is_not_taken_for_whole() {
    let me = "a_cut_archive_is_not_taken_for_whole";
    if !need(me, &["zstd", "tar"]) {
        return;
    }
    // The instruments of this module see a missing end.
    let world = World::new("cut");
    Tree::new(95).without(SOCKETS | LARGE).build(&world.src);
    world.snapshot("tree", "--part-size 256KiB --frame-size 64KiB").ok();
    let parts = world.parts("tree", "tree-");
    let last = fs::read(&parts[1]).unwrap();
    fs::write(&parts[1], &last[..last.len() / 2]).unwrap();
    let output = shell("cat \"$1\"/tree-* | zstd -dc | tar -tf - > /dev/null", &[parts[0].parent().unwrap()]);
    assert!(!output.status.success());
    assert!(!files_below(&world.volume).is_empty());
}

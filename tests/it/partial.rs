//! Restores of a part of a snapshot, of a damaged one, and again after one that did not end.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use crate::support::tools::{need, need_root, shell_ok, skip};
use crate::support::tree::{chmod, touch};
use crate::support::{World, exit, files_below};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// `a/b/x.txt` in directories with modes and times of their own, taken as `j/1`.
fn world(name: &str) -> World {
    let world = World::new(name);
    fs::create_dir_all(world.src.join("a/b")).unwrap();
    fs::write(world.src.join("a/b/x.txt"), "stored").unwrap();
    for (dir, bits) in [("a/b", 0o750), ("a", 0o711)] {
        chmod(&world.src.join(dir), bits);
        touch(&world.src.join(dir), 1_000_000_000, 5);
    }
    world.snapshot("j", "").ok();
    world
}

/// A restore that is killed leaves directories that only it may enter; the next one makes them what they are, whatever it was asked for.
#[test]
fn directories_above_what_is_taken_are_finished_by_the_next_restore() {
    let world = world("partial-again");
    for (n, words) in ["a/b/x.txt", "a/b", "--include *.txt", "--overwrite never a/b/x.txt"].into_iter().enumerate() {
        let target = world.path(&format!("out{n}"));
        for dir in ["a", "a/b"] {
            fs::create_dir_all(target.join(dir)).unwrap();
            chmod(&target.join(dir), 0o1700);
        }
        world.bk("restore j/1 --target").arg(&target).words(words).run().ok();
        assert_eq!(fs::read(target.join("a/b/x.txt")).unwrap(), b"stored");
        for (dir, bits) in [("a", 0o711), ("a/b", 0o750)] {
            let found = fs::metadata(target.join(dir)).unwrap();
            assert_eq!((mode(&target.join(dir)), found.mtime()), (bits, 1_000_000_000), "{words}: {dir}");
        }
    }
    // A directory of the user's own stays as it is.
    let target = world.path("own");
    fs::create_dir_all(target.join("a/b")).unwrap();
    chmod(&target.join("a"), 0o700);
    world.bk("restore j/1 --target").arg(&target).arg("a/b/x.txt").run().ok();
    assert_eq!(mode(&target.join("a")), 0o700);
}

#[test]
fn what_is_there_counts_in_directories_that_are_not_taken() {
    let world = world("partial-over");
    for words in ["a/b/x.txt", "--include *.txt"] {
        let target = world.path("out");
        let file = target.join("a/b/x.txt");
        fs::create_dir_all(target.join("a/b")).unwrap();
        fs::write(&file, "the user's own").unwrap();
        let restore =
            |how: &str| world.bk("restore j/1 --json --target").arg(&target).words(how).words(words).run().ok();
        restore("--overwrite never");
        assert_eq!(fs::read(&file).unwrap(), b"the user's own");
        restore("--overwrite if-changed");
        assert_eq!(fs::read(&file).unwrap(), b"stored");
        // What is the same is not written again.
        let inode = fs::metadata(&file).unwrap().ino();
        restore("--overwrite if-changed");
        assert_eq!(fs::metadata(&file).unwrap().ino(), inode);
        fs::remove_dir_all(&target).unwrap();
    }
}

/// Rows of an increment that are lost: what older snapshots have in their place is out of date, or was deleted.
#[test]
fn a_damaged_increment_brings_nothing_old_back() {
    let world = World::new("partial-rows");
    if world.server.is_some() {
        skip(
            "a_damaged_increment_brings_nothing_old_back",
            "an index of S3 is kept near by, and this one is damaged on the server",
        );
        return;
    }
    let name = |n: usize| format!("d/f{n:05}");
    fs::create_dir(world.src.join("d")).unwrap();
    let text = |n: usize, what: &str| format!("{what} {n}");
    for n in 0..3000 {
        fs::write(world.src.join(name(n)), text(n, "old")).unwrap();
    }
    fs::write(world.src.join("d/stays"), "as it was").unwrap();
    world.snapshot("j", "").ok();
    let is_gone = |n: usize| (1500..1600).contains(&n);
    let mut expected = BTreeMap::from([("stays".to_owned(), "as it was".to_owned())]);
    for n in 0..3000 {
        if is_gone(n) {
            fs::remove_file(world.src.join(name(n))).unwrap();
        } else {
            fs::write(world.src.join(name(n)), text(n, "newer")).unwrap();
            expected.insert(format!("f{n:05}"), text(n, "newer"));
        }
    }
    world.snapshot("j", "--level 1").ok();
    let index = world.parts("j", "index").pop().unwrap();
    let good = fs::read(&index).unwrap();
    let mut cut = 0;
    for eighth in 0..8 {
        let at = good.len() * (2 * eighth + 1) / 16;
        let file = fs::OpenOptions::new().write(true).open(&index).unwrap();
        file.write_all_at(&[good[at] ^ 0x55, good[at + 1] ^ 0x55], at as u64).unwrap();
        let (target, ran) = world.restore("j/2", &format!("out{eighth}"));
        file.write_all_at(&good[at..at + 2], at as u64).unwrap();
        let ran = ran.code_is(&[0, exit::INCOMPLETE, exit::INTEGRITY]);
        let found = files_below(&target);
        for path in &found {
            let name = path.file_name().unwrap().to_str().unwrap();
            let content = fs::read_to_string(path).unwrap();
            assert_eq!(expected.get(name), Some(&content), "byte {at}: {name}\n{}", ran.show());
        }
        assert!(ran.code() != 0 || found.len() == expected.len(), "byte {at}: {}", ran.show());
        cut += usize::from(ran.code() == exit::INCOMPLETE && !found.is_empty() && found.len() < expected.len());
    }
    assert!(cut > 0, "no rows were lost");
}

#[test]
fn verify_of_a_snapshot_looks_at_what_it_needs() {
    let world = world("partial-verify");
    fs::write(world.src.join("new"), "new").unwrap();
    world.snapshot("j", "--level 1").ok();
    let runs = crate::support::sorted(&world.volume.join("data/j"));
    let part =
        crate::support::sorted(&runs[0]).into_iter().rfind(|path| path.to_str().unwrap().contains("tree-")).unwrap();
    let away = world.path("away");
    world.bk("verify j/2").run().ok();
    fs::rename(&part, &away).unwrap();
    for words in ["verify --quick j/2", "verify j/2", "verify --data j/2"] {
        world.bk(words).run().code_is(&[exit::INTEGRITY]).says("tree-00000");
    }
    fs::rename(&away, &part).unwrap();
    world.bk("verify --data j/2").run().ok();
}

#[test]
fn export_says_when_it_is_not_all() {
    let me = "export_says_when_it_is_not_all";
    if !need(me, &["strace", "tar"]) || !need_root(me) {
        return;
    }
    let world = world("partial-export");
    let bad = world.src.join("bad");
    fs::write(&bad, "cannot be read").unwrap();
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=read", "-e", "inject=read:error=EIO", "-P"];
    let strace: Vec<&std::ffi::OsStr> = strace.iter().map(std::ffi::OsStr::new).chain([bad.as_os_str()]).collect();
    for level in 0..2 {
        // Read again at every level: its time is new.
        fs::write(&bad, format!("cannot be read at {level}")).unwrap();
        let words = format!("snapshot --job k --level {level} -C");
        world.bk_under(&strace, &words).arg(&world.src).arg(".").run().code_is(&[exit::INCOMPLETE]);
        let ran = world.bk(&format!("export k/{}", level + 1)).run().code_is(&[exit::INCOMPLETE]);
        let tar = world.path("all.tar");
        fs::write(&tar, &ran.stdout).unwrap();
        let listed = shell_ok(r#"tar -xOf "$1" .bk/incomplete"#, &[&tar]);
        assert!(String::from_utf8_lossy(&listed.stdout).contains("bad"), "level {level}: {listed:?}");
    }
    world.bk("export j/1").run().ok();
}

//! Looking without restoring (`list`, `ls`, `cat`, `diff`, `volume info`), and choosing what goes in.

use std::fs;

use crate::support::inventory::inventory;
use crate::support::tree::{DEEP, Tree};
use crate::support::{Bk, World, exit, files_below};

#[test]
fn list_shows_every_snapshot_of_every_job() {
    let world = World::new("list");
    fs::write(world.src.join("f"), "1").unwrap();
    for job in ["b", "a", "b"] {
        world.snapshot(job, "").ok();
    }
    assert_eq!(world.list(), ["a/1", "b/1", "b/2"]);
    let only = world.bk("list b --json").run().ok();
    let shown: Vec<_> = only.json().into_iter().filter(|v| v["type"] == "snapshot").collect();
    assert_eq!(shown.len(), 2);
    world.bk("list").run().ok().says("a/1").says("b/2");
    world.bk("volume info --json").arg(&world.volume).run().ok().json();
}

#[test]
fn the_volume_is_laid_out_as_designed() {
    let world = World::new("layout");
    Tree::new(40).without(DEEP).build(&world.src);
    world.snapshot("tree", "--part-size 256KiB").ok();
    world.bk("snapshot --job tree --stdin dump.sql").stdin("select 1;").run().ok();
    let names: Vec<String> = files_below(&world.volume)
        .iter()
        .map(|p| p.strip_prefix(&world.volume).unwrap().to_string_lossy().into_owned())
        .filter(|p| !p.starts_with("data/") && !p.starts_with("leases/"))
        .collect();
    assert_eq!(names, ["bk-volume.json", "log/tree/00000000000000000001.json", "log/tree/00000000000000000002.json"]);
    for name in &names {
        let bytes = fs::read(world.volume.join(name)).unwrap();
        let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
        assert_eq!(lines.len(), 2, "{name}");
        serde_json::from_slice::<serde_json::Value>(lines[0]).unwrap();
        let said: String = serde_json::from_slice(lines[1]).unwrap();
        let first = lines[0].strip_suffix(b"\n").unwrap();
        let hashes = [blake3::hash(first).to_hex().to_string(), blake3::hash(lines[0]).to_hex().to_string()];
        assert!(hashes.contains(&said), "{name}: {said} is not the hash of the first line");
    }
    // Of the leases, the last one given back stays.
    assert_eq!(files_below(&world.volume.join("leases")).len(), 1);
    let runs = crate::support::sorted(&world.volume.join("data/tree"));
    assert_eq!(runs.len(), 2);
    assert!(runs.iter().all(|run| run.join("index-00000.bki").is_file() && run.join("RESTORE.txt").is_file()));
    assert!(runs[0].join("tree-00001.tar.zst").is_file());
    assert!(runs[1].join("stream-dump.sql-00000.zst").is_file());
    use std::os::unix::fs::PermissionsExt;
    for path in files_below(&world.volume) {
        let mode = path.metadata().unwrap().permissions().mode() & 0o7777;
        assert!(mode & 0o077 == 0 || world.server.is_some(), "{} has mode {mode:o}", path.display());
    }
}

#[test]
fn ls_shows_every_entry_and_cat_gives_its_bytes() {
    let world = World::new("ls");
    Tree::new(41).build(&world.src);
    world.snapshot("tree", "--frame-size 16KiB --part-size 1MiB").ok();
    let before = inventory(&world.src);
    let all = world.bk("ls tree/1 -R --json").run().ok();
    let lines = all.json().len();
    let expected = before.len();
    assert!((expected + 1..=expected + 2).contains(&lines), "{lines} lines for {expected} entries");
    let text = world.bk("ls tree/1 plain").run().ok().text();
    assert!(text.contains("size-4097") && text.contains("1048577") && !text.contains("nested-0"), "{text}");
    let text = world.bk("ls tree/1 -R names").run().ok().text();
    assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "control characters reach the terminal");
    world.bk("ls tree/1 no/such").run().code_is(&[exit::USAGE]).says("no/such");
    for name in [
        "plain/size-0",
        "plain/size-4097",
        "plain/size-1048577",
        "large/noise",
        "sparse/middle",
        "links/z-other/across",
    ] {
        let ran = world.bk("cat tree/1").arg(name).run().ok();
        assert_eq!(blake3::hash(&ran.stdout), blake3::hash(&fs::read(world.src.join(name)).unwrap()), "{name}");
    }
    for name in ["plain", "no-such", "special/fifo"] {
        let ran = world.bk("cat tree/1").arg(name).run().code_is(&[exit::ERROR, exit::USAGE]);
        assert!(ran.stdout.is_empty(), "{name}");
    }
}

#[test]
fn diff_names_what_came_went_and_changed() {
    let world = World::new("diff");
    Tree::new(42).without(DEEP).build(&world.src);
    world.snapshot("tree", "").ok();
    fs::write(world.src.join("plain/new-file"), "new").unwrap();
    fs::remove_file(world.src.join("plain/size-513")).unwrap();
    fs::write(world.src.join("plain/size-4096"), "changed").unwrap();
    crate::support::tree::chmod(&world.src.join("plain/size-4095"), 0o4700);
    world.snapshot("tree", "").ok();
    for options in ["", "--json"] {
        let ran = world.bk("diff tree/1 tree/2").words(options).run().ok();
        let text = ran.text();
        for name in ["plain/new-file", "plain/size-513", "plain/size-4096", "plain/size-4095"] {
            assert!(text.contains(name), "{name} is not in\n{text}");
        }
        assert!(!text.contains("plain/size-512") && !text.contains("many/"), "{text}");
    }
    let same = world.bk("diff tree/2 tree/2").run().ok().text();
    assert!(!same.contains("plain/"), "{same}");
}

#[test]
fn excludes_leave_out_what_they_name() {
    let world = World::new("exclude");
    for path in
        ["a/keep.txt", "a/drop.o", "b/cache/x", "b/cache/y/z", "b/keep", "c/private/secret", "c/open", "d/tmp/t", "e/f"]
    {
        let path = world.src.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    fs::write(world.src.join("b/cache/CACHEDIR.TAG"), "Signature: 8a477f597d28d172789f06886806bc55\n# c").unwrap();
    fs::write(world.src.join("b/CACHEDIR.TAG"), "not the signature").unwrap();
    fs::write(world.src.join("c/private/.nobackup"), "").unwrap();
    let list = world.path("excludes");
    fs::write(&list, "# a comment\n\nd/tmp\n").unwrap();
    let ran = world
        .bk("snapshot --job x --exclude **/*.o --exclude-caches --exclude-if-present .nobackup --exclude-file")
        .arg(&list)
        .arg("-C")
        .arg(&world.src)
        .arg(".")
        .run();
    ran.ok();
    let (target, ran) = world.restore("x/1", "out");
    ran.ok();
    let found: Vec<String> = files_below(&target)
        .iter()
        .map(|p| p.strip_prefix(&target).unwrap().to_string_lossy().into_owned())
        .filter(|p| !p.ends_with("CACHEDIR.TAG") && !p.ends_with(".nobackup"))
        .collect();
    assert_eq!(found, ["a/keep.txt", "b/keep", "c/open", "e/f"]);
    // Without the options all of it is there.
    world.snapshot("all", "").ok();
    let (target, ran) = world.restore("all/1", "all");
    ran.ok();
    assert_eq!(files_below(&target).len(), files_below(&world.src).len());
}

#[test]
fn one_file_system_stops_at_a_mount() {
    let me = "one_file_system_stops_at_a_mount";
    if !crate::support::tools::need_root(me) {
        return;
    }
    let world = World::new("onefs");
    fs::write(world.src.join("here"), "h").unwrap();
    let Some(_mount) = crate::support::tools::Mounted::tmpfs(&world.src.join("mnt"), "1m") else {
        crate::support::tools::skip(me, "cannot mount");
        return;
    };
    fs::write(world.src.join("mnt/there"), "t").unwrap();
    world.snapshot("one", "--one-file-system").ok();
    world.snapshot("both", "").ok();
    let names = |s: &str| world.bk("ls -R --json").arg(s).run().ok().text();
    let (one, both) = (names("one/1"), names("both/1"));
    assert!(one.contains("here") && one.contains("mnt") && !one.contains("there"), "{one}");
    assert!(both.contains("there"), "{both}");
}

#[test]
fn the_volume_inside_the_source_is_not_its_own_content() {
    let world = World::new("inside");
    let volume = world.src.join("volume");
    Bk::new("volume create").arg(&volume).run().ok();
    fs::write(world.src.join("f"), vec![7; 100_000]).unwrap();
    for _ in 0..2 {
        // Either the volume is left out, or it goes in as files that are quiet enough; never a failure or a loop.
        let ran = Bk::new("snapshot --job in --volume").arg(&volume).arg("-C").arg(&world.src).arg(".").run();
        ran.code_is(&[0, exit::INCOMPLETE]);
    }
    Bk::new("verify --data --volume").arg(&volume).run().ok();
}

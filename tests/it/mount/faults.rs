//! What goes wrong in the volume stays there: an I/O error for what it concerns, a line that names it, never other bytes.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use super::{Mount, can_mount};
use crate::hostile::write_volumes;
use crate::support::inventory::{Compare, assert_same, inventory};
use crate::support::rng::Rng;
use crate::support::tree::{DEEP, Tree};
use crate::support::{Bk, World, temp_dir};

#[test]
fn a_damaged_frame_is_an_error_for_what_it_holds() {
    if !can_mount("a_damaged_frame_is_an_error_for_what_it_holds") {
        return;
    }
    let world = World::new("mount");
    for n in 0..30 {
        fs::write(world.src.join(format!("f{n:02}")), Rng::new(n).noise(30_000)).unwrap();
    }
    fs::write(world.src.join("large"), Rng::new(99).noise(1_000_000)).unwrap();
    world.snapshot("tree", "--frame-size 64KiB --part-size 64MiB").ok();
    let part = world.parts("tree", "tree-").remove(0);
    let whole = fs::read(&part).unwrap();
    let mut rng = Rng::new(514);
    for _ in 0..6 {
        let mut bytes = whole.clone();
        let at = rng.below(bytes.len() as u64 - 5000) as usize;
        bytes[at] ^= 0x10;
        fs::write(&part, &bytes).unwrap();
        let mount = Mount::new(&world, "mnt", "tree/1");
        let mut failed = 0;
        for path in crate::support::sorted(&world.src) {
            let name = crate::support::name_of(&path);
            let truth = fs::read(&path).unwrap();
            let shown = File::open(mount.path(&name)).unwrap();
            for from in (0..truth.len()).step_by(16_384) {
                let mut buffer = vec![0; 16_384.min(truth.len() - from)];
                match shown.read_exact_at(&mut buffer, from as u64) {
                    Ok(()) => assert!(buffer == truth[from..from + buffer.len()], "{name} at {from}"),
                    Err(e) => {
                        assert_eq!(e.raw_os_error(), Some(5), "{name} at {from}: {e}");
                        failed += 1;
                    }
                }
            }
        }
        // One frame of 64 KiB, and at most what read-ahead of the kernel made fail with it.
        assert!((1..=16).contains(&failed), "{failed} reads failed for byte {at}");
        let ran = mount.end().ok();
        assert_eq!(ran.said().matches("digest differs").count(), 1, "{}", ran.show());
        ran.says("tree/1").says("cannot read part 0");
    }
    // A part that is gone altogether.
    fs::remove_file(&part).unwrap();
    let mount = Mount::new(&world, "mnt", "tree/1");
    assert_eq!(fs::read(mount.path("f00")).unwrap_err().raw_os_error(), Some(5));
    assert_eq!(fs::read_dir(&mount.at).unwrap().count(), 31);
    mount.end().ok().says("missing");
}

#[test]
fn a_damaged_index_is_an_error_for_what_it_holds() {
    if !can_mount("a_damaged_index_is_an_error_for_what_it_holds") {
        return;
    }
    let world = World::new("mount");
    Tree::new(515).without(DEEP).build(&world.src);
    world.snapshot("good", "").ok();
    world.snapshot("bad", "").ok();
    let index = world.parts("bad", "index-").remove(0);
    let whole = fs::read(&index).unwrap();
    let before = inventory(&world.src);
    for at in [0, whole.len() / 3, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&index, bytes).unwrap();
        // Else what was fetched before is at hand, and good.
        let _ = fs::remove_dir_all(world.path("cache"));
        let mount = Mount::new(&world, "mnt", "");
        // The job and its snapshot are seen, and the other job is whole.
        assert_eq!(crate::support::sorted(&mount.path("bad")).len(), 2);
        walk(&mount.path("bad"));
        assert_same(&before, &inventory(&mount.path("good/latest/")), &Compare::EXACT, "the good one");
        mount.end().ok().says("bad/1");
    }
    // Alone it is refused at once when it cannot be opened.
    let at = world.path("mnt");
    world.bk("mount bad/1").arg(at).run().code_is(&[crate::support::exit::INTEGRITY]).says("bad/1");
}

/// Looks at everything below a directory as far as it can be seen; gives how much there was.
fn walk(dir: &Path) -> usize {
    let (mut todo, mut seen) = (vec![dir.to_owned()], 0);
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        // A hostile tree is as large as it likes; a thousand entries show enough.
        for entry in entries.flatten().take(1000) {
            seen += 1;
            let path = entry.path();
            let Ok(meta) = path.symlink_metadata() else { continue };
            let _ = fs::read_link(&path);
            let _ = rustix::fs::llistxattr(&path, &mut [0u8; 65_536][..]);
            if meta.is_dir() && todo.len() < 1000 {
                todo.push(path);
            } else if meta.is_file()
                && let Ok(file) = File::open(&path)
            {
                let mut buffer = vec![0; 100_000];
                for at in [0, 4096, meta.len().saturating_sub(10), 1 << 40, i64::MAX as u64 - 200_000] {
                    let _ = file.read_at(&mut buffer, at);
                }
            }
        }
    }
    seen
}

#[test]
fn hostile_volumes_harm_no_mount() {
    if !can_mount("hostile_volumes_harm_no_mount") {
        return;
    }
    let dir = temp_dir("mount");
    let volumes = write_volumes(dir.path());
    let mut peak = 0;
    // Each is also walked without a kernel, see `core`.
    for (n, (name, _)) in volumes.iter().enumerate().step_by(9) {
        let volume = dir.path().join(format!("{n}/volume"));
        let at = dir.path().join(format!("{n}/mnt"));
        fs::create_dir(&at).unwrap();
        let mount = Mount::by(Bk::new("mount --json --cache-memory 16MiB --volume").arg(&volume).arg(&at), &at);
        walk(&at);
        peak = peak.max(mount.peak());
        let ran = mount.end();
        assert_eq!(ran.code(), 0, "{name}: {}", ran.show());
        assert!(!ran.said().contains("panic"), "{name}: {}", ran.show());
    }
    assert!(peak <= 256 << 10, "a hostile volume made bk use {peak} KiB");
}

#[test]
fn what_could_not_be_read_then_cannot_be_read_now() {
    let me = "what_could_not_be_read_then_cannot_be_read_now";
    if !can_mount(me) || !crate::support::tools::need(me, &["setpriv"]) {
        return;
    }
    let world = World::new("mount");
    fs::write(world.src.join("locked"), "secret").unwrap();
    fs::write(world.src.join("open"), "open").unwrap();
    for name in ["closed", "shut"] {
        fs::create_dir(world.src.join(name)).unwrap();
        fs::write(world.src.join(name).join("in"), "in").unwrap();
    }
    for (names, level) in [(&["locked", "closed"][..], 0), (&["shut"], 1)] {
        names.iter().for_each(|name| crate::support::tree::chmod(&world.src.join(name), 0));
        let ran = without_rights(&world, &format!("snapshot --job tree --level {level}"));
        if ran.code() != crate::support::exit::INCOMPLETE {
            crate::support::tools::skip(me, "this process can read everything");
            return;
        }
    }
    let mount = Mount::new(&world, "mnt", "tree/2");
    assert_eq!(fs::read(mount.path("open")).unwrap(), b"open");
    assert_eq!(fs::read(mount.path("locked")).unwrap_err().raw_os_error(), Some(5));
    // A directory of which nobody knows what was in it is not one with nothing in it.
    assert_eq!(mount.path("closed").metadata().unwrap().permissions().mode() & 0o7777, 0);
    assert_eq!(names(&mount.path("closed")), (vec![], Some(5)));
    assert_eq!(mount.path("closed/in").metadata().unwrap_err().raw_os_error(), Some(5));
    // One that could be read before shows what was in it then.
    assert_eq!(names(&mount.path("shut")), (vec!["in".to_owned()], Some(5)));
    assert_eq!(fs::read(mount.path("shut/in")).unwrap(), b"in");
    assert_eq!(mount.path("shut/other").metadata().unwrap_err().raw_os_error(), Some(5));
    assert_eq!(names(&mount.at).0, ["closed", "locked", "open", "shut"]);
    assert_eq!(mount.path("none").metadata().unwrap_err().raw_os_error(), Some(2));
    mount.end().ok();
}

/// Runs bk on the source without the right to pass over modes, as a user has it.
fn without_rights(world: &World, words: &str) -> crate::support::Ran {
    let under = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"];
    let under: Vec<&std::ffi::OsStr> = under.iter().map(std::ffi::OsStr::new).collect();
    world.bk_under(&under, words).arg("-C").arg(&world.src).arg(".").run()
}

/// What a directory lists, sorted, and the error it ends with.
fn names(dir: &Path) -> (Vec<String>, Option<i32>) {
    let (mut names, mut error) = (Vec::new(), None);
    for entry in fs::read_dir(dir).unwrap() {
        match entry {
            Ok(entry) => names.push(entry.file_name().into_string().unwrap()),
            Err(e) => error = e.raw_os_error(),
        }
    }
    names.sort();
    (names, error)
}

#[test]
fn a_hard_link_that_leads_nowhere_hides_no_other_name() {
    let me = "a_hard_link_that_leads_nowhere_hides_no_other_name";
    if !can_mount(me) || !crate::support::tools::need(me, &["setpriv"]) {
        return;
    }
    let world = World::new("mount");
    let at = |name: &str| world.src.join(name);
    fs::create_dir(at("sub")).unwrap();
    for name in ["a", "sub/b0", "sub/b2"] {
        fs::write(at(name), name).unwrap();
    }
    fs::create_dir(at("sub/dir")).unwrap();
    fs::hard_link(at("a"), at("sub/b1")).unwrap();
    world.bk("snapshot --job tree").arg("-C").arg(&world.src).arg(".").run().ok();
    // What `sub/b1` is cannot be seen any more, and `a` is another file now.
    fs::remove_file(at("a")).unwrap();
    fs::write(at("a"), "another").unwrap();
    fs::hard_link(at("a"), at("c")).unwrap();
    crate::support::tree::chmod(&at("sub"), 0o644);
    let ran = without_rights(&world, "snapshot --job tree --level 1");
    if ran.code() != crate::support::exit::INCOMPLETE {
        crate::support::tools::skip(me, "this process can read everything");
        return;
    }
    let mount = Mount::new(&world, "mnt", "tree/2");
    let sub = mount.path("sub");
    assert_eq!(names(&sub), (["b0", "b1", "b2", "dir"].map(str::to_owned).to_vec(), None));
    assert_eq!(sub.join("b1").metadata().unwrap_err().raw_os_error(), Some(5));
    assert_eq!(fs::read(sub.join("b1")).unwrap_err().raw_os_error(), Some(5));
    for name in ["b0", "b2"] {
        assert_eq!(fs::read(sub.join(name)).unwrap(), format!("sub/{name}").into_bytes());
    }
    assert_eq!(fs::read(mount.path("c")).unwrap(), b"another");
    let ran = mount.end().ok();
    assert_eq!(ran.said().matches("sub/b1").count(), 1, "{}", ran.show());
}

//! The walk of an increment looks ahead on several threads: whatever their number, what is stored and what is said is the same.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::World;
use crate::support::history::change;
use crate::support::rng::Rng;
use crate::support::tree::{DEEP, SOCKETS, Tree};
use crate::support::{name_of, sorted};

/// Directories of all widths around what is looked at ahead, deep ones and empty ones between them.
fn widths(root: &Path) {
    for (n, width) in [0, 1, 511, 512, 513, 1500, 0, 3].into_iter().enumerate() {
        for side in 0..8 {
            let dir = root.join(format!("wide-{n}/{side}"));
            fs::create_dir_all(dir.join("sub/sub")).unwrap();
            (0..width).for_each(|n| fs::write(dir.join(format!("f{n}")), format!("{side}")).unwrap());
        }
    }
    // More directories side by side than are asked for at once, and a way down longer than descriptors are kept.
    (0..300).for_each(|n| fs::create_dir_all(root.join(format!("many/{n}/a/b"))).unwrap());
    for side in ["x", "y"] {
        let deep: String = (0..150).map(|n| format!("{side}{n}/")).collect();
        fs::create_dir_all(root.join("down").join(&deep)).unwrap();
        fs::create_dir_all(root.join("down").join(deep).join("../../z")).unwrap();
    }
    for name in ["left out", "marked"] {
        fs::create_dir_all(root.join(name).join("below")).unwrap();
        fs::write(root.join(name).join("below/file"), "not wanted").unwrap();
    }
    fs::write(root.join("marked/.nobackup"), "").unwrap();
    fs::create_dir(root.join(".bk")).unwrap();
}

/// The bytes of all parts of a run, and the listing of its snapshot.
fn stored(world: &World, job: &str, seq: usize) -> (Vec<Vec<u8>>, String) {
    let run = sorted(&world.volume.join("data").join(job))[seq - 1].clone();
    let parts = sorted(&run).into_iter().filter(|path| name_of(path).starts_with("tree-"));
    (parts.map(|path| fs::read(path).unwrap()).collect(), world.bk(&format!("ls -R {job}/{seq}")).run().ok().text())
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let world = World::new("ahead");
    Tree::new(400).without(SOCKETS | DEEP).build(&world.src);
    widths(&world.src);
    // What changed less than two seconds before a run is read again by the next.
    let settle = || std::thread::sleep(Duration::from_secs(3));
    settle();
    let mut rng = Rng::new(401);
    let options = "--exclude /left* --exclude-if-present .nobackup --frame-size 64KiB --part-size 1MiB";
    for level in 0..4 {
        if level > 0 {
            change(&mut rng, &world.src, [0, 60, 300][level - 1]);
            settle();
        }
        let mut first = None;
        for threads in 1..=4 {
            let job = format!("t{threads}");
            let ran = world.snapshot(&job, &format!("--threads {threads} --level {level} --no-promote {options}"));
            let said: Vec<String> = String::from_utf8_lossy(&ran.stderr)
                .lines()
                .filter(|l| l.contains("warning"))
                .map(str::to_owned)
                .collect();
            let now = (stored(&world, &job, level + 1), said);
            assert!(now.1.iter().any(|line| line.contains(".bk")), "{:?}", now.1);
            match &first {
                None => first = Some(now),
                Some(first) => {
                    assert!(first.0.0 == now.0.0, "level {level}, {threads} threads: other bytes are stored");
                    assert_eq!(first.0.1, now.0.1, "level {level}, {threads} threads");
                    assert_eq!(first.1, now.1, "level {level}, {threads} threads");
                }
            }
        }
    }
}

//! Increments in single cases: what random histories found wrong once, and stays right.

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::World;
use crate::support::inventory::{assert_same, inventory};

/// Takes a snapshot of `level`, and looks whether it comes back as the tree is now.
fn taken(world: &World, level: u8) {
    world.snapshot("inc", &format!("--level {level} --frame-size 4KiB --part-size 64KiB")).ok();
    let name = world.list().last().unwrap().clone();
    world.bk("verify --data").arg(&name).run().ok();
    let (target, ran) = world.restore(&name, &name.replace('/', "-"));
    ran.ok();
    assert_same(&inventory(&world.src), &inventory(&target), &crate::roundtrip::exact(), &name);
}

#[test]
fn a_symlink_that_gets_a_second_name() {
    let world = World::new("second-name");
    symlink("somewhere", world.src.join("a")).unwrap();
    taken(&world, 0);
    fs::hard_link(world.src.join("a"), world.src.join("b")).unwrap();
    taken(&world, 1);
    fs::remove_file(world.src.join("a")).unwrap();
    taken(&world, 2);
}

/// More entries than a block of an index holds, and more than are sent on at once.
#[test]
fn wide_directories_change_here_and_there() {
    let world = World::new("wide-inc");
    let path = |dir: &str, n: usize| world.src.join(dir).join(format!("entry-{n:05}"));
    for (dir, count) in [("a", 2500), ("b", 9000), ("c", 3000)] {
        fs::create_dir(world.src.join(dir)).unwrap();
        for n in 0..count {
            fs::write(path(dir, n), n.to_le_bytes()).unwrap();
        }
    }
    taken(&world, 0);
    for n in (0..2500).step_by(97) {
        fs::remove_file(path("a", n)).unwrap();
        fs::write(path("a", n + 1), "another").unwrap();
        fs::write(world.src.join("a").join(format!("entry-{n:05}-new")), "new").unwrap();
    }
    fs::rename(world.src.join("c"), world.src.join("0")).unwrap();
    taken(&world, 1);
    // A whole block, and all but one of a directory.
    (1000..2200).filter(|n| n % 97 != 0).for_each(|n| fs::remove_file(path("a", n)).unwrap());
    (0..8999).for_each(|n| fs::remove_file(path("b", n)).unwrap());
    taken(&world, 2);
    fs::remove_dir_all(world.src.join("a")).unwrap();
    fs::write(world.src.join("a"), "a file now").unwrap();
    taken(&world, 3);
    fs::remove_file(world.src.join("a")).unwrap();
    fs::create_dir(world.src.join("a")).unwrap();
    (0..1500).for_each(|n| fs::write(path("a", n * 2), "again").unwrap());
    taken(&world, 4);
    taken(&world, 1);
    assert_eq!(world.list().len(), 6);
}

/// A long file and its places over several runs: what came from where is cut at the right bytes.
#[test]
fn a_long_file_patched_again_and_again() {
    let world = World::new("patched");
    let file = world.src.join("file");
    let mut rng = crate::support::rng::Rng::new(77);
    let mut bytes = rng.noise(300_000);
    for level in 0..10u8 {
        fs::write(&file, &bytes).unwrap();
        taken(&world, level);
        let (at, len) = (rng.below(290_000) as usize, rng.below(9000) as usize);
        match level % 3 {
            0 => bytes[at..at + len].copy_from_slice(&rng.noise(len)),
            1 => drop(bytes.splice(at..at, rng.noise(len))),
            // Moves a piece.
            _ => {
                let piece: Vec<u8> = bytes.drain(at..at + len).collect();
                bytes.splice(1000..1000, piece);
            }
        }
    }
    // It was compared, not stored again.
    let stored: u64 = world.parts("inc", "tree-").iter().map(|part| part.metadata().unwrap().len()).sum();
    assert!(stored < 100_000, "{stored} bytes for the last increment");
}

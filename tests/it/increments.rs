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

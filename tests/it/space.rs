//! A volume that runs full, at every stage of a run: exit 9, the old set whole.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use crate::support::rng::Rng;
use crate::support::tools::{Mounted, need, need_root, shell_ok, skip};
use crate::support::{Bk, Ran, World, exit, files_below, list};

const OPTIONS: &str = "--frame-size 64KiB --part-size 256KiB";

fn stored(volume: &Path) -> u64 {
    files_below(volume).iter().map(|p| p.metadata().unwrap().len().div_ceil(4096) * 4096).sum()
}

fn snapshot(world: &World, volume: &Path, program: &[&OsStr]) -> Ran {
    let bk = Bk::under(program, "snapshot --job s").words(OPTIONS).small().arg("--volume").arg(volume);
    bk.arg("-C").arg(&world.src).arg(".").run()
}

/// A volume with one small snapshot; the source then grows to 2 MB that no codec shrinks.
fn scene(name: &str) -> World {
    let world = World::new(name);
    let mut rng = Rng::new(120);
    fs::write(world.src.join("first"), rng.noise(100_000)).unwrap();
    snapshot(&world, &world.volume, &[]).ok();
    for n in 0..20 {
        fs::write(world.src.join(format!("more-{n}")), rng.noise(100_000)).unwrap();
    }
    world
}

#[test]
fn a_volume_that_fills_up_at_fifty_sizes() {
    let me = "a_volume_that_fills_up_at_fifty_sizes";
    if !need(me, &["mount", "cp"]) || !need_root(me) {
        return;
    }
    let world = scene("full");
    let old = stored(&world.volume);
    let trial = world.path("trial");
    shell_ok(r#"cp -a "$1" "$2""#, &[&world.volume, &trial]);
    snapshot(&world, &trial, &[]).ok();
    let whole = stored(&trial);
    let (mut full, mut done) = (0, 0);
    for n in 0..50 {
        // From hardly more than what is there to a third more than all of it.
        let size = old + 40_000 + (whole - old) * 4 / 3 * n / 49;
        let Some(mounted) = Mounted::tmpfs(&world.path("disk"), &size.to_string()) else {
            skip(me, "cannot mount a tmpfs");
            return;
        };
        let volume = mounted.at.join("volume");
        shell_ok(r#"cp -a "$1" "$2""#, &[&world.volume, &volume]);
        let ran = snapshot(&world, &volume, &[]).code_is(&[0, exit::NO_SPACE]);
        let listed = list(&volume);
        if ran.code() == 0 {
            assert_eq!(listed, ["s/1", "s/2"], "{size} bytes");
            done += 1;
        } else {
            assert_eq!(listed, ["s/1"], "{size} bytes\n{}", ran.show());
            full += 1;
        }
        Bk::new("verify --data --volume").arg(&volume).run().ok();
        let cat = Bk::new("cat s/1 first --volume").arg(&volume).run().ok();
        assert!(cat.stdout == fs::read(world.src.join("first")).unwrap());
    }
    assert!(full >= 20 && done >= 5, "{full} full, {done} done");
}

#[test]
fn a_file_size_limit_is_an_error_and_no_more() {
    let world = scene("limit");
    for blocks in [1, 40, 64, 128, 200, 250] {
        // `ulimit -f` counts in units of 1,024 bytes in bash; the signal is ignored so that the call fails instead.
        let line = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let ran = snapshot(&world, &world.volume, &["bash", "-c", &line].map(OsStr::new));
        assert!((1..128).contains(&ran.code()), "{blocks} KiB\n{}", ran.show());
        assert_eq!(world.list(), ["s/1"], "{blocks} KiB");
        world.bk("verify --data").run().ok();
    }
    snapshot(&world, &world.volume, &[]).ok();
    assert_eq!(world.list(), ["s/1", "s/2"]);
}

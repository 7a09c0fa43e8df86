//! Damage on the medium: `verify` finds it, says exit 8 and names the object; what is not hit still restores.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::support::inventory::{Inventory, inventory};
use crate::support::rng::Rng;
use crate::support::{Ran, World, exit, files_below, name_of};

/// A volume of one tree and one stream, in many small parts.
fn scene(codec: &str) -> World {
    let world = World::new("damage");
    let mut rng = Rng::new(130);
    for n in 0..60 {
        let dir = world.src.join(format!("d{}", n % 4));
        fs::create_dir_all(&dir).unwrap();
        let len = 2000 + rng.below(20_000) as usize;
        fs::write(dir.join(format!("file-{n:02}")), rng.noise(len)).unwrap();
    }
    fs::write(world.src.join("large"), rng.noise(400_000)).unwrap();
    world.snapshot("t", &format!("--frame-size 16KiB --part-size 64KiB --compression {codec}")).ok();
    let stream =
        world.bk("snapshot --job s --stdin dump --frame-size 16KiB --part-size 64KiB --compression").arg(codec);
    stream.small().stdin(rng.noise(200_000)).run().ok();
    world
}

/// All but the leases, which hold nothing to lose: who reads one that is damaged waits till it is not renewed.
fn objects(world: &World) -> Vec<PathBuf> {
    let mut all = files_below(&world.volume);
    all.retain(|path| !path.starts_with(world.volume.join("leases")));
    all
}

fn flip(path: &Path, at: u64, mask: u8) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ mask], at).unwrap();
}

/// `verify` fails with exit 8 and names the object; a damaged volume file may also count as no volume at all.
fn found(world: &World, options: &str, object: &Path, about: &str) -> Ran {
    let ran = world.bk("verify").words(options).run();
    let codes: &[i32] =
        if name_of(object) == "bk-volume.json" { &[exit::INTEGRITY, exit::VOLUME] } else { &[exit::INTEGRITY] };
    assert!(codes.contains(&ran.code()), "{about}: exit {}\n{}", ran.code(), ran.show());
    let shown = ran.said();
    // A record may be named by its snapshot.
    let record = object.to_string_lossy().contains("/log/");
    let named = shown.contains(&name_of(object)) || record && (shown.contains("t/1") || shown.contains("s/1"));
    assert!(named, "{about}: {} is not named\n{}", name_of(object), ran.show());
    ran
}

#[test]
fn a_flipped_bit_in_any_object_is_found() {
    for codec in ["zstd:3", "bzip2:1", "none"] {
        let world = scene(codec);
        world.bk("verify").run().ok();
        world.bk("verify --data").run().ok();
        let all = objects(&world);
        assert!(all.len() > 15, "{all:?}");
        let mut rng = Rng::new(131);
        for object in &all {
            let len = object.metadata().unwrap().len();
            for at in [0, len - 1, rng.below(len), rng.below(len)] {
                let mask = 1 << rng.below(8);
                let about = format!("{codec}: bit {mask:08b} of byte {at} of {len}");
                flip(object, at, mask);
                found(&world, "", object, &about);
                if at % 3 == 0 {
                    found(&world, "--data", object, &about);
                }
                flip(object, at, mask);
            }
        }
        world.bk("verify --data").run().ok();
    }
}

#[test]
fn a_wrong_length_is_found_even_quickly() {
    let world = scene("zstd:3");
    world.bk("verify --quick").run().ok();
    for object in objects(&world) {
        let bytes = fs::read(&object).unwrap();
        let cuts: [(&str, Option<Vec<u8>>); 5] = [
            ("last byte lost", Some(bytes[..bytes.len() - 1].to_vec())),
            ("half lost", Some(bytes[..bytes.len() / 2].to_vec())),
            ("empty", Some(Vec::new())),
            ("one byte more", Some([&bytes[..], b"\n"].concat())),
            ("deleted", None),
        ];
        for (about, damaged) in cuts {
            match damaged {
                Some(damaged) => fs::write(&object, damaged).unwrap(),
                None => fs::remove_file(&object).unwrap(),
            }
            let in_data = object.to_string_lossy().contains("/data/");
            // A missing newest record is a log that ends earlier: nothing tells it from one that was never written.
            if !(about == "deleted" && object.to_string_lossy().contains("/log/")) {
                found(&world, "", &object, about);
            }
            if in_data && name_of(&object) != "RESTORE.txt" {
                found(&world, "--quick", &object, about);
            }
            fs::write(&object, &bytes).unwrap();
        }
    }
    world.bk("verify --data").run().ok();
}

#[test]
fn swapped_and_stale_objects_are_found() {
    let world = scene("zstd:3");
    let parts = world.parts("t", "tree-");
    let (a, b) = (&parts[1], &parts[2]);
    let (bytes_a, bytes_b) = (fs::read(a).unwrap(), fs::read(b).unwrap());
    fs::write(a, &bytes_b).unwrap();
    fs::write(b, &bytes_a).unwrap();
    found(&world, "", a, "two parts swapped");
    found(&world, "--data", b, "two parts swapped");
    fs::write(a, &bytes_a).unwrap();
    fs::write(b, &bytes_b).unwrap();
    // Frames moved inside a part keep its length.
    let mut turned = bytes_a.clone();
    turned.rotate_left(5000);
    fs::write(a, turned).unwrap();
    found(&world, "", a, "a part turned round");
    fs::write(a, &bytes_a).unwrap();
    // Another snapshot's index in place of this one's.
    let index = world.parts("t", "index-").remove(0);
    let other = world.parts("s", "index-").remove(0);
    let bytes = fs::read(&index).unwrap();
    fs::write(&index, fs::read(other).unwrap()).unwrap();
    found(&world, "", &index, "another index");
    fs::write(&index, bytes).unwrap();
    // A record in another's place.
    let records = files_below(&world.volume.join("log"));
    let bytes = fs::read(&records[1]).unwrap();
    fs::write(&records[1], fs::read(&records[0]).unwrap()).unwrap();
    found(&world, "", &records[1], "another record");
    fs::write(&records[1], bytes).unwrap();
    world.bk("verify --data").run().ok();
}

/// Restores, and holds every file that came back to the source: whatever differs or is missing was named.
fn restores_the_rest(world: &World, before: &Inventory, target: &str, about: &str) -> usize {
    let (target, ran) = world.restore("t/1", target);
    assert!([exit::INCOMPLETE, exit::INTEGRITY].contains(&ran.code()), "{about}: {}", ran.show());
    let found: BTreeMap<_, _> = if target.exists() { inventory(&target) } else { BTreeMap::new() };
    let mut good = 0;
    for (path, record) in before.iter().filter(|(_, r)| r.content.is_some()) {
        let shown = String::from_utf8_lossy(path);
        if found.get(path).is_some_and(|f| f.content == record.content) {
            good += 1;
        } else {
            assert!(ran.said().contains(&*shown), "{about}: {shown} is not good, and not named\n{}", ran.show());
        }
    }
    good
}

#[test]
fn what_is_not_hit_still_restores() {
    for codec in ["zstd:3", "bzip2:9", "none"] {
        let world = scene(codec);
        let before = inventory(&world.src);
        let files = before.values().filter(|r| r.content.is_some()).count();
        let parts = world.parts("t", "tree-");
        let mut rng = Rng::new(132);
        for n in 0..6 {
            let part = &parts[n * 2 % parts.len()];
            let bytes = fs::read(part).unwrap();
            // Well inside the frames: behind the first header, before the seek table.
            let at = 600 + rng.below(bytes.len() as u64 * 3 / 4);
            flip(part, at, 0x10);
            let about = format!("{codec}: byte {at} of {}", name_of(part));
            let good = restores_the_rest(&world, &before, &format!("flip{n}"), &about);
            assert!(good < files && good + 12 >= files, "{about}: {good} of {files} are good");
            fs::write(part, bytes).unwrap();
        }
        let bytes = fs::read(&parts[1]).unwrap();
        fs::remove_file(&parts[1]).unwrap();
        let good = restores_the_rest(&world, &before, "lost", "a lost part");
        assert!(good < files && good >= files / 2, "a lost part: {good} of {files}");
        fs::write(&parts[1], bytes).unwrap();
        let (target, ran) = world.restore("t/1", "whole");
        ran.ok();
        assert_eq!(inventory(&target).len(), before.len());
    }
}

#[test]
fn damaged_bytes_are_never_given_out() {
    let world = scene("none");
    // Stored plain, a flipped bit would pass any decoder: only the digest tells.
    let run = world.parts("t", "tree-");
    let large = fs::read(world.src.join("large")).unwrap();
    let part = run.iter().find(|p| fs::read(p).unwrap().windows(64).any(|w| w == &large[200_000..200_064])).unwrap();
    let at = fs::read(part).unwrap().windows(64).position(|w| w == &large[200_000..200_064]).unwrap();
    flip(part, at as u64, 1);
    let ran = world.bk("cat t/1 large").run().code_is(&[exit::INTEGRITY]);
    assert!(large.starts_with(&ran.stdout), "damaged bytes came out");
    let ran = world.bk("cat t/1 large --range 0:1000").run().ok();
    assert!(ran.stdout == large[..1000]);
    world.bk("cat t/1 large --range 199990:100").run().code_is(&[exit::INTEGRITY]);
    world.bk("export t/1").run().code_is(&[exit::INTEGRITY]);
}

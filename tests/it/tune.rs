//! `bk tune`: what it predicts is what a snapshot comes to, it leaves nothing behind, and it writes what it recommends.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::inventory::inventory;
use crate::support::rng::Rng;
use crate::support::tools::{Mounted, need, shell_ok, skip};
use crate::support::{Bk, World, exit, files_below, list};

/// Many files of prose, as sources are.
fn sources(dir: &Path, seed: u64, count: u64) {
    for n in 0..count {
        let dir = dir.join(format!("d{}", n / 50));
        fs::create_dir_all(&dir).unwrap();
        let mut rng = Rng::new(seed * 100_000 + n);
        fs::write(dir.join(format!("f{n}.c")), rng.prose(2000 + (n as usize * 7919) % 30_000)).unwrap();
    }
}

/// Rows as a dump of a database has them.
fn dump(len: usize) -> Vec<u8> {
    let mut rng = Rng::new(77);
    let mut out = Vec::with_capacity(len + 200);
    let mut n = 0u64;
    while out.len() < len {
        n += 1;
        let word = rng.prose(24);
        out.extend_from_slice(format!("{n}\t{}\t", n * 7919 % 100_003).as_bytes());
        out.extend_from_slice(&word);
        out.extend_from_slice(b"\t2026-01-01 00:00:00\t\\N\n");
    }
    out.truncate(len);
    out
}

fn tuned(world: &World, words: &str) -> Value {
    let ran = world.bk(&format!("tune --json {words}")).arg(&world.src).run().ok();
    ran.json().last().unwrap().clone()
}

/// Stored bytes of a snapshot with the settings of `choice`.
fn stored(world: &World, choice: &Value) -> u64 {
    let job = format!("j{}", list(&world.volume).len());
    let words = format!(
        "snapshot --json --job {job} --level 0 --compression {} --frame-size {} --threads {} -C",
        choice["compression"].as_str().unwrap(),
        choice["frame_size"],
        choice["threads"]
    );
    let ran = world.bk(&words).arg(&world.src).arg(".").run().ok();
    let totals = ran.json().last().unwrap()["totals"].clone();
    totals["stored_bytes"].as_u64().unwrap() + totals["index_bytes"].as_u64().unwrap()
}

/// The prediction for a size holds within a tenth; gives the size.
fn holds(world: &World, choice: &Value) -> u64 {
    let (predicted, measured) = (choice["stored_bytes"].as_u64().unwrap(), stored(world, choice));
    let off = predicted.abs_diff(measured) as f64 / measured as f64;
    eprintln!("{}: predicted {predicted}, stored {measured}", choice["compression"]);
    assert!(off <= 0.1, "predicted {predicted}, stored {measured}: {choice}");
    measured
}

#[test]
fn sizes_of_sources_and_of_a_dump_are_as_predicted() {
    for kind in ["sources", "dump"] {
        let world = World::new("tune-kind");
        match kind {
            "sources" => sources(&world.src, 1, 200),
            _ => fs::write(world.src.join("dump.sql"), dump(4_000_000)).unwrap(),
        }
        // It ends when all is measured; on a machine that has other work, too, there is time for all.
        let found = tuned(&world, "--time 5min");
        assert!(found["source"]["is_all"].as_bool().unwrap(), "{found}");
        let present = holds(&world, &found["present"]);
        let smallest = holds(&world, &found["smallest"]);
        assert!(smallest < present, "{kind}: the smallest has {smallest} bytes, the default {present}");
        assert!(found["write_bytes_per_second"].as_f64().unwrap() > 0.0, "{found}");
        let seconds = |choice: &Value| choice["seconds"].as_f64().unwrap();
        // What is within 3 % is as fast.
        assert!(seconds(&found["fastest"]) <= seconds(&found["present"]) * 1.04, "{found}");
        for choice in found["choices"].as_array().unwrap() {
            assert!(seconds(choice) > 0.0 && choice["bottleneck"].as_str().is_some(), "{choice}");
        }
    }
}

#[test]
fn a_large_mixed_tree_is_sampled() {
    let world = World::new("tune-mixed");
    sources(&world.src, 2, 2500);
    fs::write(world.src.join("dump.sql"), dump(120_000_000)).unwrap();
    let media = world.src.join("media");
    fs::create_dir(&media).unwrap();
    let mut rng = Rng::new(300);
    for n in 0..40 {
        fs::write(media.join(format!("film{n}")), rng.noise(2_500_000 + n as usize * 100_000)).unwrap();
    }
    let found = tuned(&world, "--time 20s");
    let (all, sample) = (&found["source"]["content_bytes"], &found["sample_bytes"]);
    assert!(sample.as_u64().unwrap() < all.as_u64().unwrap() * 9 / 10, "all of it was the sample: {found}");
    holds(&world, &found["present"]);
    // What there was no time for is named, and nothing is said of it.
    let choices = found["choices"].as_array().unwrap();
    for codec in ["zstd:1", "none"] {
        choices.iter().find(|choice| choice["compression"] == codec).map(|choice| holds(&world, choice));
    }
}

#[test]
fn what_is_compressed_already_gains_nothing() {
    let world = World::new("tune-media");
    let mut rng = Rng::new(5);
    for n in 0..10 {
        fs::write(world.src.join(format!("film{n}")), rng.noise(1_500_000)).unwrap();
    }
    let found = tuned(&world, "--time 20s");
    let measured = holds(&world, &found["present"]);
    assert!(found["smallest"]["stored_bytes"].as_u64().unwrap() as f64 > measured as f64 * 0.97, "{found}");
}

#[test]
fn nothing_stays_on_the_volume() {
    for world in [World::new("tune-clean"), World::on_s3("tune-clean-s3")] {
        sources(&world.src, 3, 100);
        // Directories say nothing on S3, and are the server's there.
        let left = || match world.server {
            Some(_) => files_below(&world.volume),
            None => {
                inventory(&world.volume).into_keys().map(|key| Path::new(OsStr::from_bytes(&key)).to_owned()).collect()
            }
        };
        let before: Vec<PathBuf> = left();
        let ran = world.bk("tune --time 16s --check").arg(&world.src).run().ok();
        for word in ["fastest", "balanced", "smallest", "compression = \"", "check", "ratio"] {
            assert!(ran.text().contains(word), "{word}\n{}", ran.show());
        }
        assert_eq!(before, left());
        // The volume is written to within the first tenth.
        for millis in [30, 500, 3000] {
            let running = world.bk("tune --time 50s --limit-upload 256KiB").arg(&world.src).spawn();
            std::thread::sleep(std::time::Duration::from_millis(millis));
            running.signal(Signal::INT);
            let ran = running.finish();
            assert!([130, 0].contains(&ran.code()), "{}", ran.show());
            assert_eq!(before, left());
        }
    }
}

#[test]
fn the_head_of_a_stream_stands_for_all_of_it() {
    let world = World::new("tune-stdin");
    let bytes = dump(3_000_000);
    let ran = Bk::new("tune --json --time 30s --stdin --size 1GiB").stdin(bytes.clone()).run().ok();
    let found = ran.json().last().unwrap().clone();
    // All of it was there: what was told about its length does not count.
    assert_eq!(found["source"]["content_bytes"], 3_000_000, "{found}");
    assert!(found["write_bytes_per_second"].is_null(), "{found}");
    let ran = world.bk("snapshot --json --job s --level 0 --stdin dump").stdin(bytes).run().ok();
    let totals = ran.json().last().unwrap()["totals"].clone();
    let measured = totals["stored_bytes"].as_u64().unwrap() + totals["index_bytes"].as_u64().unwrap();
    let predicted = found["present"]["stored_bytes"].as_u64().unwrap();
    assert!(predicted.abs_diff(measured) * 10 <= measured, "{predicted} of {measured}");
    Bk::new("tune --time 5s --stdin").stdin("").run().code_is(&[exit::ERROR]).says("nothing to measure");
}

#[test]
fn settings_are_written_into_the_job_and_comments_stay() {
    let world = World::new("tune-write");
    sources(&world.src, 4, 60);
    let file = world.path("bk.toml");
    let text = format!(
        "# mine\n[volume.v]\nurl = \"{}\"\n\n[job.home] # the house\npaths = [\"{}\"]\ncompression = \"zstd:3\" # fair\n",
        world.volume.display(),
        world.src.display()
    );
    fs::write(&file, &text).unwrap();
    let bk = |words: &str| Bk::new(words).env("BK_CONFIG", &file);
    bk("tune home --time 2min --wish smallest --write home").run().ok().says("written to [job.home]");
    let after = fs::read_to_string(&file).unwrap();
    for kept in ["# mine\n", "[job.home] # the house\n", " # fair\n", "frame_size = \""] {
        assert!(after.contains(kept), "{kept:?} in\n{after}");
    }
    assert_ne!(after, text);
    bk("config check").run().ok();
    let shown = bk("config show home").run().ok().text();
    assert!(!shown.contains("compression = \"zstd:3\""), "{shown}");
    bk("snapshot home").run().ok();
    bk("tune home --time 5s --write away").run().code_is(&[exit::USAGE]).says("away");
    assert_eq!(fs::read_to_string(&file).unwrap(), after);
}

#[test]
fn of_a_sparse_file_what_is_there_is_sampled() {
    let world = World::new("tune-sparse");
    let image = fs::File::create(world.src.join("image")).unwrap();
    image.set_len(3 << 30).unwrap();
    // Nothing is there of this one.
    fs::File::create(world.src.join("hole")).unwrap().set_len(3 << 30).unwrap();
    let noise = Rng::new(78).noise(24 << 20);
    std::os::unix::fs::FileExt::write_all_at(&image, &noise, 2 << 30).unwrap();
    let found = tuned(&world, "--time 20s");
    assert_eq!(found["source"]["content_bytes"], 24 << 20, "{found}");
    holds(&world, &found["present"]);
    assert!(found["present"]["ratio"].as_f64().unwrap() < 1.1, "{found}");
}

#[test]
fn a_check_takes_no_more_than_its_share_of_a_volume() {
    let me = "a_check_takes_no_more_than_its_share_of_a_volume";
    let world = World::new("tune-room");
    let Some(mounted) = Mounted::tmpfs(&world.path("small"), "40m") else {
        skip(me, "cannot mount a tmpfs");
        return;
    };
    fs::write(world.src.join("noise"), Rng::new(79).noise(100 << 20)).unwrap();
    let volume = mounted.at.join("v");
    Bk::new("volume create").arg(&volume).run().ok();
    let before = files_below(&volume);
    let ran = Bk::new("tune --json --time 12s --check --wish fastest --volume").arg(&volume).arg(&world.src).run().ok();
    let found = ran.says("too little free space to check").json().last().unwrap().clone();
    assert!(found["check"].is_null() && found["fastest"].is_object(), "{found}");
    assert_eq!(before, files_below(&volume));
}

/// A configuration with a job of trees, with further lines.
fn configured(world: &World, more: &str) -> PathBuf {
    let file = world.path("bk.toml");
    let (volume, src) = (world.volume.display(), world.src.display());
    fs::write(&file, format!("[volume.v]\nurl = \"{volume}\"\n\n[job.home]\npaths = [\"{src}\"]\n{more}")).unwrap();
    file
}

#[test]
fn settings_that_were_not_measured_are_not_shown_as_others() {
    let world = World::new("tune-present");
    fs::write(world.src.join("prose"), Rng::new(80).prose(60 << 20)).unwrap();
    let file = configured(&world, "compression = \"zstd:19\"\nthreads = 1\n");
    let ran = Bk::new("tune home --json --time 4s").env("BK_CONFIG", &file).run();
    if ran.code() == exit::ERROR {
        // So busy a machine that nothing was measured.
        ran.says("too short");
        return;
    }
    let found = ran.ok().json().last().unwrap().clone();
    let (present, threads) = (&found["present"], &found["present"]["threads"]);
    assert!(present.is_null() || present["compression"] == "zstd:19" && *threads == 1, "{present}");
}

#[test]
fn streams_that_are_left_out_are_named() {
    let world = World::new("tune-streams");
    sources(&world.src, 5, 20);
    let file = configured(&world, "\n[job.home.stream.rows]\ncommand = [\"cat\", \"/dev/null\"]\n");
    Bk::new("tune home --time 5s").env("BK_CONFIG", &file).run().ok().says("left out: rows");
}

#[test]
fn who_may_read_the_configuration_stays() {
    let me = "who_may_read_the_configuration_stays";
    if !need(me, &["setfacl", "getfacl"]) {
        return;
    }
    let world = World::new("tune-acl");
    sources(&world.src, 6, 20);
    let file = configured(&world, "");
    shell_ok(r#"chmod 600 "$1"; setfacl -m u:nobody:r "$1""#, &[&file]);
    let rights = || shell_ok(r#"getfacl -cpn "$1"; stat -c %a "$1""#, &[&file]).stdout;
    let before = rights();
    // What a killed one left.
    let left = world.path("bk.toml.bk-new");
    fs::write(&left, "").unwrap();
    let write = || Bk::new("tune home --time 10s --write home").env("BK_CONFIG", &file).run();
    write().code_is(&[exit::USAGE]).says("bk.toml.bk-new is in the way");
    fs::remove_file(&left).unwrap();
    write().ok();
    assert!(fs::read_to_string(&file).unwrap().contains("frame_size"));
    assert_eq!(String::from_utf8_lossy(&before), String::from_utf8_lossy(&rights()));
}

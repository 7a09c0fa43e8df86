//! `bk copy`: what arrives is the same, whatever was in the way; what does not agree never arrives.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bk::clock::Clock;
use bk::engine::catalog::{self, Author};
use bk::error::{Kind, Result};
use bk::format::change::Expire;
use bk::format::record::Record;
use bk::model::ids::{Name, SnapshotName};
use bk::model::time::Instant;
use bk::monitor::Silent;
use bk::ops::copy::{self, Request, What};
use bk::ops::{expire, keep};
use bk::volume::local::LocalStore;
use bk::volume::{Store, Volume, open_on};
use serde_json::Value;

use crate::stock::commands;
use crate::support::between::Between;
use crate::support::inventory::{Inventory, assert_same, inventory};
use crate::support::rng::Rng;
use crate::support::tools::{need, shell_ok};
use crate::support::{Bk, World, exit, files_below, name_of, sorted};

const OPTIONS: &str = "--frame-size 16KiB --part-size 64KiB --threads 2";

/// bk on another volume than the world's.
fn on(world: &World, volume: &OsStr, words: &str) -> Bk {
    world.bk(words).env("BK_VOLUME", volume)
}

/// A second volume of the world: beside its own, of the same kind.
fn second(world: &World, name: &str) -> OsString {
    let place = match &world.server {
        Some(server) => server.url(&format!("{}-{name}", world.path("").file_name().unwrap().display())).into(),
        None => world.path(name).into_os_string(),
    };
    world.bk("volume create").arg(&place).run().ok();
    place
}

fn fill(world: &World) {
    let mut rng = Rng::new(500);
    for n in 0..20 {
        let dir = world.src.join(format!("d{}", n % 4));
        fs::create_dir_all(&dir).unwrap();
        let len = rng.below(20_000) as usize;
        fs::write(dir.join(format!("f{n}")), rng.content(len)).unwrap();
    }
    fs::write(world.src.join("big"), rng.noise(300_000)).unwrap();
}

/// Changes that are stored by reference to what earlier levels hold.
fn change(world: &World, round: u64) {
    let file = fs::File::options().write(true).open(world.src.join("big")).unwrap();
    file.write_all_at(format!("round {round}").as_bytes(), round * 70_000).unwrap();
    let (old, new) = (world.src.join(format!("d{}", round - 1)), world.src.join(format!("d{}-moved", round - 1)));
    fs::rename(old, new).unwrap();
    fs::write(world.src.join(format!("new{round}")), format!("new in {round}")).unwrap();
}

/// Takes a snapshot of a tree and a stream on `volume`.
fn take(world: &World, volume: &OsStr, level: u64, round: u64) {
    let mut dump = Rng::new(501).prose(200_000);
    dump[usize::try_from(round).unwrap() * 1000] = b'!';
    let line = format!("snapshot --job t --level {level} --no-promote --stdin dump");
    let bk = on(world, volume, &line).words(OPTIONS).small().stdin(dump);
    bk.arg("-C").arg(&world.src).arg(".").run().ok();
}

fn restored(world: &World, volume: &OsStr, snapshot: &str) -> Inventory {
    let target = world.path("restored");
    on(world, volume, "restore").arg(snapshot).arg("--target").arg(&target).run().ok();
    let found = inventory(&target);
    fs::remove_dir_all(target).unwrap();
    found
}

/// The tree and the stream of a snapshot are the same on both volumes.
#[track_caller]
fn is_same(world: &World, (a, name_a): (&OsStr, &str), (b, name_b): (&OsStr, &str)) {
    assert_same(&restored(world, a, name_a), &restored(world, b, name_b), &crate::roundtrip::exact(), name_b);
    let stream = |volume, name| on(world, volume, "cat --stream dump").arg(name).run().ok().stdout;
    assert!(stream(a, name_a) == stream(b, name_b), "{name_b}");
}

fn result(ran: &crate::support::Ran) -> Value {
    ran.json().pop().unwrap()
}

/// A chain goes to a second volume, more goes on top of it there, and all that goes to a third, and back.
fn goes_round(world: &World, [a, b, c]: [&OsStr; 3]) {
    fill(world);
    take(world, a, 0, 0);
    for round in 1..3 {
        change(world, round);
        take(world, a, round, round);
    }
    let ran = on(world, a, "copy t/latest --json --to").arg(b).run().ok();
    assert_eq!((result(&ran)["copied"].as_u64(), result(&ran)["there"].as_u64()), (Some(3), Some(0)), "{}", ran.show());
    for name in ["t/1", "t/2", "t/3"] {
        is_same(world, (a, name), (b, name));
    }
    on(world, b, "verify --data").run().ok();

    // What came since goes on top; what is there is not carried again.
    change(world, 3);
    take(world, a, 3, 3);
    let ran = on(world, a, "copy t/latest --json --to").arg(b).run().ok();
    assert_eq!(result(&ran)["copied"].as_u64(), Some(1), "{}", ran.show());
    let ran = on(world, a, "copy t t/2 --json --to").arg(b).run().ok();
    assert_eq!((result(&ran)["copied"].as_u64(), result(&ran)["there"].as_u64()), (Some(0), Some(5)), "{}", ran.show());
    is_same(world, (a, "t/4"), (b, "t/4"));

    // An increment of its own: over a copy, so its index names what it needs by the copy's numbers.
    change(world, 4);
    take(world, b, 4, 4);
    let native = inventory(&world.src);
    assert_same(&native, &restored(world, b, "t/5"), &crate::roundtrip::exact(), "on top of a copy");
    let ran = on(world, b, "verify --data --json").run().ok();
    assert_eq!(result(&ran)["snapshots"].as_u64(), Some(5), "{}", ran.show());

    // Numbers differ there from the first on.
    take(world, c, 0, 9);
    on(world, b, "copy t/latest --to").arg(c).run().ok();
    for (in_b, in_c) in [("t/1", "t/2"), ("t/3", "t/4"), ("t/5", "t/6")] {
        is_same(world, (b, in_b), (c, in_c));
    }
    on(world, c, "verify --data").run().ok();
    // Over the originals, which are known to be the same.
    let ran = on(world, c, "copy t/latest --json --to").arg(a).run().ok();
    assert_eq!(result(&ran)["copied"].as_u64(), Some(1), "{}", ran.show());
    is_same(world, (b, "t/5"), (a, "t/5"));
    take(world, a, 5, 5);
    assert_same(&native, &restored(world, a, "t/6"), &crate::roundtrip::exact(), "on top of what came back");
    on(world, a, "verify --data").run().ok();
}

#[test]
fn a_chain_goes_to_another_volume_and_on() {
    let world = World::new("copy");
    let (b, c) = (second(&world, "b"), second(&world, "c"));
    goes_round(&world, [&world.named(), &b, &c]);
}

#[test]
fn to_s3_and_from_it() {
    let world = World::on_s3("copy-s3");
    let (b, c) = (second(&world, "b"), world.path("c").into_os_string());
    world.bk("volume create").arg(&c).run().ok();
    // S3 to S3, S3 to a directory, and that to S3.
    goes_round(&world, [&world.named(), &b, &c]);
    let d = world.path("d").into_os_string();
    world.bk("volume create").arg(&d).run().ok();
    on(&world, &c, "copy t --to").arg(&d).run().ok();
    is_same(&world, (&c, "t/6"), (&d, "t/6"));
}

#[test]
fn a_copy_that_was_damaged_is_copied_again() {
    let world = World::new("copy-heals");
    let (a, b) = (world.named(), second(&world, "b"));
    let at_b = match &world.server {
        Some(_) => world.volume.with_file_name(format!("{}-b", name_of(&world.path("")))),
        None => PathBuf::from(&b),
    };
    fill(&world);
    take(&world, &a, 0, 0);
    change(&world, 1);
    take(&world, &a, 1, 1);
    let copy = |words: &str, copied: u64| {
        let ran = world.bk("copy --json").words(words).arg("--to").arg(&b).run().ok();
        assert_eq!(result(&ran)["copied"].as_u64(), Some(copied), "{}", ran.show());
    };
    copy("t/1", 1);
    // The base is damaged before its increment comes: it comes again, and the increment is put on that one.
    let run = |n: usize| sorted(&at_b.join("data/t")).remove(n);
    let (base, part) = (run(0), "tree-00000.tar.zst");
    fs::remove_file(base.join(part)).unwrap();
    copy("t/2", 2);
    is_same(&world, (&a, "t/2"), (&b, "t/3"));
    copy("t t/1 t/2", 0);
    // Of a chain the upper end, then the lower one.
    let (lower, upper) = (run(1), run(2));
    let index = upper.join("index-00000.bki");
    let bytes = fs::read(&index).unwrap();
    fs::write(&index, &bytes[..bytes.len() - 1]).unwrap();
    copy("t", 1);
    is_same(&world, (&a, "t/2"), (&b, "t/4"));
    fs::remove_file(lower.join(part)).unwrap();
    copy("t/latest", 2);
    is_same(&world, (&a, "t/1"), (&b, "t/5"));
    is_same(&world, (&a, "t/2"), (&b, "t/6"));
    copy("t", 0);
    // What expired there is not brought back by that.
    on(&world, &b, "expire --set t/6 2001-01-01T00:00:00Z").run().ok();
    on(&world, &b, "expire --set t/4 2001-01-01T00:00:00Z").run().ok();
    on(&world, &b, "expire --set t/3 2001-01-01T00:00:00Z").run().ok();
    on(&world, &b, "expire --yes").run().ok();
    copy("t", 0);
}

#[test]
fn the_objects_are_the_same_and_restore_without_bk() {
    let me = "the_objects_are_the_same_and_restore_without_bk";
    if !need(me, &["tar", "zstd", "python3"]) || std::env::var_os("BK_TEST_VOLUME").is_some() {
        return;
    }
    let world = World::new("copy-stock");
    let (a, b) = (world.named(), second(&world, "b"));
    fill(&world);
    take(&world, &a, 0, 0);
    change(&world, 1);
    take(&world, &a, 1, 1);
    take(&world, &b, 0, 7);
    world.bk("copy t/2 --as other.t --to").arg(&b).run().ok();
    let b = Path::new(&b);
    let runs = (sorted(&world.volume.join("data/t")), sorted(&b.join("data/other.t")));
    for (from, to) in runs.0.iter().zip(&runs.1) {
        let names = |dir: &Path| sorted(dir).iter().map(|path| name_of(path)).collect::<Vec<_>>();
        assert_eq!(names(from), names(to));
        for path in sorted(from).iter().filter(|path| !path.ends_with("RESTORE.txt")) {
            assert!(fs::read(path).unwrap() == fs::read(to.join(name_of(path))).unwrap(), "{}", path.display());
        }
    }
    // Nothing is left of what the copy noted for itself.
    assert_eq!(files_below(&b.join("runs")), Vec::<PathBuf>::new());
    let run = &runs.1[1];
    let text = fs::read_to_string(run.join("RESTORE.txt")).unwrap();
    let all = ["Levels that hold deltas", "The tree (", "The stream `dump`"].map(|title| commands(&text, title));
    let (file, target) = (world.path("commands"), world.path("out"));
    fs::write(&file, format!("set -e\ncd \"$1\"\n{}\n", all.join("\n")).replace("TARGET", "\"$2\"")).unwrap();
    shell_ok("sh \"$3\" \"$1\" \"$2\"", &[run, &target, &file]);
    assert_same(&inventory(&world.src), &inventory(&target), &crate::roundtrip::exact(), &text);
    assert!(fs::read(run.join("dump")).unwrap() == world.bk("cat t/2 --stream dump").run().ok().stdout);
}

#[test]
fn each_has_its_own_time_to_go() {
    let world = World::new("copy-expiry");
    let (a, b) = (world.named(), second(&world, "b"));
    fill(&world);
    take(&world, &a, 0, 0);
    take(&world, &a, 1, 1);
    world.bk("expire --set t/2 2099-01-01").run().ok();
    let expiry = |name: &str| {
        let lines = on(&world, &b, "list --json").run().ok().json();
        lines.into_iter().find(|line| line["snapshot"] == name).map(|line| line["expires_at"].clone())
    };
    world.bk("copy t/2 --to").arg(&b).run().ok();
    assert_eq!((expiry("t/1"), expiry("t/2")), (Some(Value::Null), Some("2099-01-01T00:00:00Z".into())));
    take(&world, &a, 1, 2);
    world.bk("copy t --expire 1w --to").arg(&b).run().ok().says("2 were there");
    assert!(expiry("t/3").unwrap().as_str().unwrap() < "2099");

    // What went there does not come back by itself; it does when it is named, with what it needs.
    on(&world, &b, "expire --set t/2 2001-01-01T00:00:00Z").run().ok();
    on(&world, &b, "expire --yes").run().ok();
    world.bk("copy t --to").arg(&b).run().ok().says("was there as t/2 and expired");
    assert_eq!(expiry("t/2"), None);
    for name in ["t/1", "t/3"] {
        on(&world, &b, "expire --set").arg(name).arg("2001-01-01T00:00:00Z").run().ok();
    }
    on(&world, &b, "expire --yes --allow-last").run().ok();
    world.bk("copy t/2 --to").arg(&b).run().ok().says("2 snapshots copied");
    let listed = on(&world, &b, "list --json").run().ok().json();
    let rows = listed.iter().filter(|line| line["type"] == "snapshot");
    assert_eq!(rows.map(|line| line["level"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1]);
    is_same(&world, (&a, "t/2"), (&b, "t/latest"));

    // What is not there to be copied.
    world.bk("expire --set t/2 2001-01-01T00:00:00Z").run().ok();
    world.bk("expire --yes").run().ok();
    world.bk("copy t/2 --to").arg(&b).run().code_is(&[exit::USAGE]).says("t/2 expired on");
    world.bk("copy t/9 --to").arg(&b).run().code_is(&[exit::USAGE]).says("there is no snapshot t/9");
    world.bk("copy no --to").arg(&b).run().code_is(&[exit::USAGE]).says("has no job no");
    world.bk("copy t/1 --to").arg(&a).run().code_is(&[exit::USAGE]).says("are one volume");
    let none = world.path("none");
    world.bk("copy t/1 --to").arg(&none).run().code_is(&[exit::VOLUME]).says("none");
}

#[test]
fn a_snapshot_is_copied_at_once() {
    let world = World::new("copy-to");
    let (b, none) = (second(&world, "b"), world.path("none"));
    fill(&world);
    let bk = |level: u64| {
        let line = format!("snapshot --json --job t --level {level} {OPTIONS} --copy-expire 1w");
        world.bk(&line).small().arg("-C").arg(&world.src).arg(".")
    };
    let ran = bk(0).arg("--copy-to").arg(&b).run().ok();
    let copies = &result(&ran)["copies"];
    assert_eq!((&copies[0]["outcome"], &copies[0]["snapshot"]), (&"copied".into(), &"t/1".into()), "{}", ran.show());
    change(&world, 1);
    // One volume is not there: the snapshot stays, the other copy is made, the exit code tells.
    let ran = bk(1).arg("--copy-to").arg(&none).arg("--copy-to").arg(&b).run().code_is(&[exit::VOLUME]);
    let copies = &result(&ran)["copies"];
    let outcomes = [&copies[0]["outcome"], &copies[1]["outcome"]];
    assert_eq!(outcomes, ["failed", "copied"], "{}", ran.show());
    assert!(copies[0]["error"].as_str().unwrap().contains("none"), "{}", ran.show());
    assert_eq!(result(&ran)["outcome"], "done");
    assert_eq!(world.list(), ["t/1", "t/2"]);
    assert_same(&inventory(&world.src), &restored(&world, &b, "t/2"), &crate::roundtrip::exact(), "t/2");
    world.bk("snapshot --job t --copy-to ftp://x").arg(&world.src).run().code_is(&[exit::USAGE]);
    assert_eq!(world.list().len(), 2);
}

#[test]
fn a_configured_job_is_copied_to_configured_volumes() {
    if std::env::var_os("BK_TEST_VOLUME").is_some() {
        return;
    }
    let world = World::new("copy-config");
    let b = second(&world, "b");
    fill(&world);
    let file = world.path("bk.toml");
    let text = format!(
        "[volume.first]\nurl = {:?}\n[volume.second]\nurl = {:?}\n[job.t]\nvolume = \"first\"\ncopy_to = [\"second\"]\npaths = [{:?}]\n",
        world.volume, b, world.src
    );
    fs::write(&file, text).unwrap();
    let bk = |words: &str| Bk::new(words).env("BK_CONFIG", &file);
    let ran = bk("snapshot t --json").run().ok();
    assert_eq!(result(&ran)["copies"][0]["outcome"], "copied", "{}", ran.show());
    bk("snapshot t").run().ok().says("copied to second as t/2");
    bk("copy t/latest --to second").run().ok().says("is there as t/2");
    bk("verify --volume second").run().ok();
    bk("check t").run().ok();
    bk("status t").run().ok();
    fs::remove_dir_all(&b).unwrap();
    let ran = bk("snapshot t --json").run().code_is(&[exit::VOLUME]);
    assert_eq!((&result(&ran)["outcome"], &result(&ran)["copies"][0]["outcome"]), (&"done".into(), &"failed".into()));
}

#[test]
fn what_is_damaged_does_not_arrive() {
    if std::env::var_os("BK_TEST_VOLUME").is_some() {
        return;
    }
    let world = World::new("copy-damage");
    let a = world.named();
    fill(&world);
    take(&world, &a, 0, 0);
    change(&world, 1);
    take(&world, &a, 1, 1);
    let runs = sorted(&world.volume.join("data/t"));
    let mut rng = Rng::new(502);
    let mut tried = 0;
    for path in files_below(&world.volume.join("data")) {
        let good = fs::read(&path).unwrap();
        let len = good.len() as u64;
        // Ends matter: trailers of parts, tail of the index. And it is shorter, longer, gone.
        let places = [0, len - 1, len - 20.min(len), rng.below(len), rng.below(len)];
        let damages = places.map(|at| {
            let mut bad = good.clone();
            bad[at as usize] ^= 1 << rng.below(8);
            Some(bad)
        });
        let (shorter, longer) = (good[..good.len() - 1].to_vec(), [&good[..], b"x"].concat());
        for damage in damages.into_iter().chain([Some(shorter), Some(longer), None]) {
            match &damage {
                Some(bad) => fs::write(&path, bad).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let b = second(&world, "b");
            let ran = world.bk("copy t/2 --threads 2 --to").arg(&b).run();
            let ran = ran.code_is(&[exit::INTEGRITY]).says(&name_of(&path));
            // Level 0 may be there when level 1 is hit; nothing else.
            let listed = crate::support::list(Path::new(&b));
            let is_base = path.starts_with(&runs[0]);
            assert_eq!(listed, if is_base { Vec::new() } else { vec!["t/1".to_owned()] }, "{}", ran.show());
            on(&world, &b, "verify").run().ok();
            tried += 1;
            if tried % 40 == 1 {
                // Healed, it goes on where it was.
                fs::write(&path, &good).unwrap();
                world.bk("copy t/2 --to").arg(&b).run().ok();
                on(&world, &b, "verify --data").run().ok();
            }
            fs::remove_dir_all(&b).unwrap();
        }
        fs::write(&path, &good).unwrap();
    }
    assert!(tried > 100, "{tried}");
}

/// Runs a copy under strace whose `when`-th `call` of a thread kills it; also says whether that came.
fn killed_at(world: &World, b: &OsStr, call: &str, when: usize) -> bool {
    let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=SIGKILL:when={when}"));
    let head = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject].map(OsStr::new);
    let ran = world.bk_under(&head, "copy t --threads 2 --to").arg(b).run().code_is(&[0, 137]);
    ran.code() == 137
}

#[test]
fn killed_anywhere_it_goes_on() {
    if !need("killed_anywhere_it_goes_on", &["strace"]) || std::env::var_os("BK_TEST_VOLUME").is_some() {
        return;
    }
    let world = World::new("copy-kill");
    let a = world.named();
    fill(&world);
    take(&world, &a, 0, 0);
    change(&world, 1);
    take(&world, &a, 1, 1);
    let (mut kills, mut kept) = (0, 0);
    for (call, step) in [("linkat", 1), ("fsync", 2), ("openat2", 9), ("pread64", 9), ("write", 9), ("mkdirat", 1)] {
        for when in (1..).step_by(step) {
            let b = second(&world, "b");
            // Killed, and killed once more where the second one is then.
            let came = killed_at(&world, &b, call, when);
            if came && when % 3 == 0 {
                killed_at(&world, &b, call, when);
            }
            on(&world, &b, "verify --data").run().ok();
            let ran = world.bk("copy t --json --to").arg(&b).run().ok();
            let rows = ran.json();
            let rows = rows.iter().filter(|row| row["type"] == "copy");
            kept += rows.map(|row| row["kept"].as_u64().unwrap()).sum::<u64>();
            kills += u64::from(came);
            assert_eq!(crate::support::list(Path::new(&b)), ["t/1", "t/2"]);
            on(&world, &b, "verify --data").run().ok();
            // One run for each: what was carried was not carried again elsewhere.
            assert_eq!(sorted(&Path::new(&b).join("data/t")).len(), 2, "{call} {when}");
            fs::remove_dir_all(&b).unwrap();
            if !came {
                break;
            }
        }
    }
    eprintln!("{kills} kills, {kept} objects kept");
    assert!(kills > 40 && kept > 100, "{kills} kills, {kept} objects kept");
}

fn local(path: &Path) -> Volume {
    open_on(Arc::new(LocalStore::open(path).unwrap()), path.display().to_string()).unwrap()
}

/// Copies `what` while, where [`Between`] meets `text`, `then` happens.
fn copied(from: &Path, to: &Path, what: &str, text: &'static str, then: impl FnOnce() + Send + 'static) -> Result<u64> {
    let inner: Arc<dyn Store> = Arc::new(LocalStore::open(to).unwrap());
    let store = Between::new(inner, text, then);
    let target = open_on(Arc::new(store), to.display().to_string()).unwrap();
    let what = vec![What::Snapshot(what.parse().unwrap())];
    let request = Request { what, to_job: None, keep: None, threads: 2 };
    let mut outcome = copy::run(&local(from), &target, &request, &bk::clock::System, &Silent)?;
    outcome.errors.pop().map_or(Ok(outcome.copied), Err)
}

/// A clock that is ahead.
struct Ahead(u64);

impl Clock for Ahead {
    fn unix_ms(&self) -> u64 {
        bk::clock::System.unix_ms() + self.0 * 1000
    }
}

fn expire(path: &Path, sweep_grace: u64, ahead: u64) -> expire::Outcome {
    let request = expire::Request {
        job: Some("t".parse::<Name>().unwrap()),
        node: "other".to_owned(),
        allow_last: true,
        yes: true,
        sweep_lost: false,
        dry_run: false,
        sweep_grace,
        threads: 1,
    };
    let outcome = expire::run(&local(path), &request, &Ahead(ahead), &Silent).unwrap();
    assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
    outcome
}

fn gone_now(path: &Path, name: &str) {
    let when = keep::When::At(Instant::from_second(1).unwrap());
    keep::set(&local(path), &name.parse::<SnapshotName>().unwrap(), when, "other", &bk::clock::System).unwrap();
    assert_eq!(expire(path, 86_400, 0).expired, 1);
}

/// Records that a snapshot is gone, whatever needs it.
fn torn_away(path: &Path, seq: u64) {
    let author = Author { node: "other".to_owned(), at: bk::clock::System.now().unwrap() };
    let change = |log: &catalog::JobLog| Ok(Some(Expire { snapshots: vec![log.state(seq).unwrap().named()] }));
    catalog::change(&local(path), &"t".parse().unwrap(), &author, change).unwrap();
}

/// Every key of a volume's log with its type.
fn records(path: &Path) -> Vec<String> {
    let read = |path: PathBuf| Record::decode(&fs::read(path).unwrap()).unwrap().kind().to_owned();
    sorted(&path.join("log/t")).into_iter().map(read).collect()
}

#[test]
fn who_is_swept_or_loses_its_base_meanwhile_has_lost() {
    if std::env::var_os("BK_TEST_VOLUME").is_some() {
        return;
    }
    let world = World::new("copy-races");
    let a = world.volume.clone();
    fill(&world);
    for level in 0..2 {
        take(&world, a.as_os_str(), level, level);
    }
    let keys = ["tree-00000", "tree-00002", "stream-dump", "index-", "RESTORE.txt", "log/t/"];
    for key in keys {
        // Swept: its record can not be made any more, and the next copy begins anew.
        let b = PathBuf::from(second(&world, "b"));
        let then = {
            let b = b.clone();
            move || assert!(key == "tree-00000" || expire(&b, 0, 5).swept == 1)
        };
        let ran = copied(&a, &b, "t/1", key, then);
        if key == "tree-00000" {
            assert_eq!(ran.unwrap(), 1, "nothing lies there yet");
        } else {
            // What was taken away may be missed before the record is tried.
            let error = ran.unwrap_err();
            assert!(matches!(error.kind(), Kind::Lost), "{key}: {error}");
            assert_eq!(records(&b), ["sweep"], "{key}");
            assert_eq!(copied(&a, &b, "t/1", "none", || {}).unwrap(), 1);
        }
        world.bk("verify --data --volume").arg(&b).run().ok();

        // Its base goes there while it is copied. It is small.
        if key == "tree-00002" {
            fs::remove_dir_all(&b).unwrap();
            continue;
        }
        let before = records(&b).len();
        let name = format!("t/{before}");
        let then = {
            let (b, name) = (b.clone(), name.clone());
            move || gone_now(&b, &name)
        };
        let error = copied(&a, &b, "t/2", key, then).unwrap_err();
        assert_eq!(error.kind(), Kind::Lost, "{key}: {error}");
        assert_eq!(records(&b)[before..], ["set-expiry", "expire"], "{key}");
        // By name both go there again.
        assert_eq!(copied(&a, &b, "t/2", "none", || {}).unwrap(), 2);
        world.bk("verify --data --volume").arg(&b).run().ok();
        fs::remove_dir_all(&b).unwrap();
    }
}

#[test]
fn a_base_that_goes_between_two_looks_at_the_log_is_missed() {
    if std::env::var_os("BK_TEST_VOLUME").is_some() {
        return;
    }
    let world = World::new("copy-base-goes");
    let a = world.volume.clone();
    fill(&world);
    for level in 0..2 {
        take(&world, a.as_os_str(), level, level);
    }
    // The log is read for the snapshot, for its base, and for itself.
    for key in ["list 2 of log/t/", "list 3 of log/t/"] {
        let b = PathBuf::from(second(&world, "b"));
        assert_eq!(copied(&a, &b, "t/1", "none", || {}).unwrap(), 1);
        let then = {
            let b = b.clone();
            move || gone_now(&b, "t/1")
        };
        match copied(&a, &b, "t/2", key, then) {
            Ok(count) => assert_eq!((count, key), (2, "list 2 of log/t/"), "the base was copied again"),
            Err(error) => {
                assert_eq!(error.kind(), Kind::Lost, "{key}: {error}");
                assert_eq!(records(&b), ["snapshot", "set-expiry", "expire"], "{key}");
                assert_eq!(copied(&a, &b, "t/2", "none", || {}).unwrap(), 2, "{key}");
            }
        }
        world.bk("verify --data --volume").arg(&b).run().ok();
        is_same(&world, (a.as_os_str(), "t/2"), (b.as_os_str(), "t/latest"));
        fs::remove_dir_all(&b).unwrap();
    }
}

#[test]
fn a_copy_without_its_base_is_not_there() {
    if std::env::var_os("BK_TEST_VOLUME").is_some() {
        return;
    }
    for what in ["copy t/2 --to", "copy t --to"] {
        let world = World::new("copy-no-base");
        let (a, b) = (world.named(), second(&world, "b"));
        fill(&world);
        for level in 0..2 {
            take(&world, &a, level, level);
        }
        world.bk("copy t --to").arg(&b).run().ok();
        torn_away(Path::new(&b), 1);
        on(&world, &b, "verify t/2").run().code_is(&[exit::INTEGRITY]);
        world.bk(what).arg(&b).run().ok();
        is_same(&world, (&a, "t/2"), (&b, "t/latest"));
        // Now it is there.
        world.bk(what).arg(&b).run().ok().says("there");
    }
}

#[test]
fn a_source_that_expires_meanwhile_is_not_damage() {
    if std::env::var_os("BK_TEST_VOLUME").is_some() {
        return;
    }
    for (key, is_whole) in [("tree-00002", false), ("index-", false), ("log/t/", true)] {
        let world = World::new("copy-source");
        fill(&world);
        take(&world, world.volume.as_os_str(), 0, 0);
        let b = PathBuf::from(second(&world, "b"));
        let a = world.volume.clone();
        let ran = copied(&world.volume, &b, "t/1", key, move || gone_now(&a, "t/1"));
        match ran {
            // All of it was read already: the copy is as good as any.
            Ok(count) => assert!(is_whole && count == 1 || key == "index-", "{key}"),
            Err(error) => {
                assert!(!is_whole, "{key}: {error}");
                assert_eq!(error.kind(), Kind::Lost, "{key}: {error}");
                assert!(error.to_string().contains("was expired on"), "{key}: {error}");
                assert_eq!(records(&b), Vec::<String>::new());
            }
        }
        world.bk("verify --data --volume").arg(&b).run().ok();
    }
}

#[test]
fn two_copies_at_once_make_one() {
    if std::env::var_os("BK_TEST_VOLUME").is_some() {
        return;
    }
    let world = World::new("copy-two");
    fill(&world);
    take(&world, world.volume.as_os_str(), 0, 0);
    for key in ["runs/t/", "tree-00001", "index-", "RESTORE.txt", "log/t/"] {
        let b = PathBuf::from(second(&world, "b"));
        let then = {
            let (a, b) = (world.volume.clone(), b.clone());
            move || assert_eq!(copied(&a, &b, "t/1", "none", || {}).unwrap(), 1)
        };
        let error = copied(&world.volume, &b, "t/1", key, then).unwrap_err();
        assert_eq!(error.kind(), Kind::Lost, "{key}: {error}");
        assert_eq!(records(&b), ["snapshot"], "{key}");
        world.bk("verify --data --volume").arg(&b).run().ok();
        // What is left over goes after a day, without a question, and takes nothing with it.
        expire(&b, 86_400, 90_000);
        world.bk("verify --data --volume").arg(&b).run().ok();
        assert_eq!(sorted(&b.join("data/t")).len(), 1, "{key}");
        assert_eq!(files_below(&b.join("runs")), Vec::<PathBuf>::new(), "{key}");
        fs::remove_dir_all(&b).unwrap();
    }
}

#[test]
fn an_old_copy_that_was_killed_is_swept_and_made_anew() {
    if std::env::var_os("BK_TEST_VOLUME").is_some() {
        return;
    }
    let world = World::new("copy-old");
    fill(&world);
    take(&world, world.volume.as_os_str(), 0, 0);
    // As old as the snapshot is, what counts is when the copy began.
    let b = PathBuf::from(second(&world, "b"));
    let death = || panic!("killed");
    let killed = {
        let (a, b) = (world.volume.clone(), b.clone());
        std::thread::spawn(move || copied(&a, &b, "t/1", "log/t/", death))
    };
    assert!(killed.join().is_err());
    assert_eq!(sorted(&b.join("data/t")).len(), 1);
    assert_eq!(expire(&b, 86_400, 3600).swept, 0);
    assert_eq!(sorted(&b.join("data/t")).len(), 1, "it is young");
    assert_eq!(expire(&b, 86_400, 90_000).swept, 1);
    assert_eq!(files_below(&b.join("data")), Vec::<PathBuf>::new());
    assert_eq!(files_below(&b.join("runs")), Vec::<PathBuf>::new());
}

/// Names of what lies in a run's directory and how long it is.
fn lying(dir: &Path) -> BTreeMap<String, u64> {
    sorted(dir).iter().map(|path| (name_of(path), path.metadata().unwrap().len())).collect()
}

#[test]
fn what_lies_there_and_is_wrong_is_left_alone() {
    if std::env::var_os("BK_TEST_VOLUME").is_some() {
        return;
    }
    let world = World::new("copy-wrong");
    fill(&world);
    take(&world, world.volume.as_os_str(), 0, 0);
    for (name, shorter) in [("tree-00001.tar.zst", false), ("tree-00001.tar.zst", true), ("RESTORE.txt", false)] {
        let b = PathBuf::from(second(&world, "b"));
        let killed = {
            let (a, b) = (world.volume.clone(), b.clone());
            std::thread::spawn(move || copied(&a, &b, "t/1", "log/t/", || panic!("killed")))
        };
        assert!(killed.join().is_err());
        let run = sorted(&b.join("data/t")).remove(0);
        let mut bytes = fs::read(run.join(name)).unwrap();
        bytes[5] ^= 1;
        if shorter {
            bytes.pop();
        }
        fs::write(run.join(name), &bytes).unwrap();
        let before = lying(&run);
        assert_eq!(copied(&world.volume, &b, "t/1", "none", || {}).unwrap(), 1);
        assert_eq!(lying(&run), before);
        assert_eq!(sorted(&b.join("data/t")).len(), 2, "the copy began anew");
        world.bk("verify --data --volume").arg(&b).run().ok();
        assert_eq!(expire(&b, 86_400, 90_000).swept, 1);
        world.bk("verify --data --volume").arg(&b).run().ok();
        fs::remove_dir_all(&b).unwrap();
    }
}

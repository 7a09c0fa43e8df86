//! A run that is killed, or whose disk fails, at any system call: the volume holds the old set, or the old set and
//! the new snapshot; all that is listed verifies; the next run needs nobody.
//!
//! strace counts calls for each thread by itself, so a point is (call, n): the first thread to make its n-th one.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::inventory::{assert_same, inventory};
use crate::support::rng::Rng;
use crate::support::tools::{need, shell_ok};
use crate::support::{Bk, Ran, World, exit, list, lost};

const CALLS: &str = "openat,openat2,write,pwrite64,writev,pwritev,fsync,fdatasync,sync_file_range,syncfs,linkat,link,\
                     mkdirat,renameat2,renameat,unlinkat,statx,newfstatat,getdents64,read,pread64,close,ftruncate,\
                     fallocate,fchmod,lseek,flock,mmap,futex,copy_file_range";
const OPTIONS: &str = "--frame-size 16KiB --part-size 64KiB --threads 2";

/// A volume with one snapshot, and a source that has changed since.
struct Scene {
    world: World,
    old: PathBuf,
}

impl Scene {
    fn new(name: &str) -> Self {
        let world = World::new(name);
        let mut rng = Rng::new(100);
        for n in 0..40 {
            let dir = world.src.join(format!("d{}", n % 5));
            fs::create_dir_all(&dir).unwrap();
            let len = rng.below(30_000) as usize;
            fs::write(dir.join(format!("f{n}")), rng.content(len)).unwrap();
        }
        fs::write(world.src.join("big"), rng.noise(300_000)).unwrap();
        world.snapshot("c", OPTIONS).ok();
        fs::write(world.src.join("since"), "new").unwrap();
        let old = world.path("old");
        fs::rename(&world.volume, &old).unwrap();
        Self { world, old }
    }

    /// A fresh copy of the volume as it was before the run.
    fn reset(&self) {
        let _ = fs::remove_dir_all(&self.world.volume);
        shell_ok(r#"cp -a "$1" "$2""#, &[&self.old, &self.world.volume]);
    }

    fn snapshot_under(&self, program: &[&OsStr]) -> Ran {
        let bk = Bk::under(program, "snapshot --job c").words(OPTIONS).small().env("BK_VOLUME", &self.world.volume);
        bk.arg("-C").arg(&self.world.src).arg(".").run()
    }

    /// Runs a snapshot whose `when`-th `call` of a thread meets `what`; also says whether it did.
    fn injected(&self, call: &str, what: &str, when: &str) -> (Ran, bool) {
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:{what}:when={when}"));
        let log = self.world.path("injected");
        let head = ["strace", "-f", "-qq", "-e", &trace, "-e", &inject, "-o"].map(OsStr::new);
        let ran = self.snapshot_under(&[&head[..], &[log.as_os_str()]].concat());
        let text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
        (ran, text.contains("(INJECTED)") || text.contains("+++ killed by SIGKILL"))
    }

    /// How often each call is made by the thread that makes it most.
    fn count(&self) -> BTreeMap<String, usize> {
        self.reset();
        let log = self.world.path("strace");
        let trace = format!("trace={CALLS}");
        let strace = [
            OsStr::new("strace"),
            "-f".as_ref(),
            "-qq".as_ref(),
            "-o".as_ref(),
            log.as_ref(),
            "-e".as_ref(),
            trace.as_ref(),
        ];
        self.snapshot_under(&strace).ok();
        let text = String::from_utf8_lossy(&fs::read(&log).unwrap()).into_owned();
        let mut by_thread: BTreeMap<(String, String), usize> = BTreeMap::new();
        for line in text.lines() {
            let Some((pid, rest)) = line.split_once(' ') else { continue };
            let Some((call, _)) = rest.trim_start().split_once('(') else { continue };
            if call.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                *by_thread.entry((pid.into(), call.into())).or_default() += 1;
            }
        }
        let mut most = BTreeMap::new();
        for ((_, call), count) in by_thread {
            let max = most.entry(call).or_insert(0);
            *max = count.max(*max);
        }
        most
    }

    /// What must hold whatever happened to the run.
    fn check(&self, ran: &Ran, about: &str) {
        let listed = list(&self.world.volume);
        let (old, both) = (vec!["c/1".to_owned()], vec!["c/1".to_owned(), "c/2".to_owned()]);
        assert!(listed == old || listed == both, "{about}: {listed:?}\n{}", ran.show());
        assert!(ran.code() != 0 || listed == both, "{about}: said done, but is not there\n{}", ran.show());
        self.verify(about);
        assert_eq!(lost(&self.world.volume, "c"), Vec::<String>::new(), "{about}: looks lost\n{}", ran.show());
        let next = self.snapshot_under(&[]);
        assert_eq!(next.code(), 0, "{about}: the next run\n{}", next.show());
        assert_eq!(list(&self.world.volume).len(), listed.len() + 1, "{about}: after the next run");
    }

    fn verify(&self, about: &str) {
        let ran = self.world.bk("verify --data").run();
        assert_eq!(ran.code(), 0, "{about}: verify\n{}", ran.show());
    }

    /// The newest snapshot holds the source as it is.
    fn restores(&self, about: &str) {
        let (target, ran) = self.world.restore("c/latest", "out");
        ran.ok();
        let exact = crate::roundtrip::exact();
        assert_same(&inventory(&self.world.src), &inventory(&target), &exact, about);
        fs::remove_dir_all(target).unwrap();
    }
}

/// Points spread over the run: all of the rare calls, evenly chosen ones of the others.
pub fn points(counts: &BTreeMap<String, usize>, wanted: usize) -> Vec<(String, usize)> {
    let mut counts: Vec<(&String, usize)> = counts.iter().map(|(c, n)| (c, *n)).collect();
    counts.sort_by_key(|(_, n)| *n);
    let mut points = Vec::new();
    for (n, (call, count)) in counts.iter().enumerate() {
        let share = (wanted - points.len()).div_ceil(counts.len() - n).min(*count);
        points.extend((0..share).map(|k| ((*call).clone(), k * count / share + 1)));
    }
    points
}

/// `share` of two takes every second point, so that the two halves run side by side.
fn killed(me: &str, half: usize) {
    if !need(me, &["strace", "cp"]) {
        return;
    }
    let scene = Scene::new("kill");
    let counts = scene.count();
    // Some more than asked for, since threads share the work differently each time and a point may not come.
    let all = points(&counts, 250);
    assert!(all.len() >= 200, "only {} points: {counts:?}", all.len());
    let (mut kills, mut kept) = (0, 0);
    for (call, when) in all.iter().skip(half).step_by(2) {
        let about = format!("kill -9 at {call} {when}");
        scene.reset();
        let (ran, came) = scene.injected(call, "signal=SIGKILL", &when.to_string());
        kills += usize::from(came);
        assert_eq!(ran.code(), if came { 137 } else { 0 }, "{about}\n{}", ran.show());
        kept += usize::from(list(&scene.world.volume).len() == 2);
        scene.check(&ran, &about);
        if kills % 20 == 1 {
            scene.restores(&about);
        }
    }
    eprintln!("{me}: {kills} kills, {kept} snapshots there all the same");
    assert!(kills >= 100, "only {kills} kills: {counts:?}");
}

#[test]
fn killed_at_a_hundred_calls() {
    killed("killed_at_a_hundred_calls", 0);
}

#[test]
fn killed_at_a_hundred_other_calls() {
    killed("killed_at_a_hundred_other_calls", 1);
}

#[test]
fn a_failing_call_fails_the_run_and_nothing_else() {
    let me = "a_failing_call_fails_the_run_and_nothing_else";
    if !need(me, &["strace", "cp"]) {
        return;
    }
    let scene = Scene::new("fsync");
    let counts = scene.count();
    let syncs: usize = ["fsync", "fdatasync"].iter().filter_map(|c| counts.get(*c)).sum();
    assert!(syncs >= 4, "parts, index, record and directories are synced: {counts:?}");
    let (mut tried, mut came_in_all) = (0, 0);
    for (call, error, share) in [
        ("fsync", "EIO", usize::MAX),
        ("fdatasync", "EIO", usize::MAX),
        ("linkat", "EIO", usize::MAX),
        ("mkdirat", "EIO", usize::MAX),
        ("renameat", "EIO", usize::MAX),
        ("renameat2", "EIO", usize::MAX),
        ("write", "EIO", 12),
        ("pwrite64", "EIO", 12),
        ("writev", "EIO", 12),
        ("write", "ENOSPC", 12),
        ("pwrite64", "ENOSPC", 12),
        ("writev", "ENOSPC", 12),
    ] {
        let Some(count) = counts.get(call) else { continue };
        let share = share.min(*count);
        for k in 0..share {
            let when = k * count / share + 1;
            let about = format!("{call} says {error} at {when} of {count}");
            scene.reset();
            let (ran, came) = scene.injected(call, &format!("error={error}"), &when.to_string());
            tried += 1;
            came_in_all += usize::from(came);
            // A failed sync must never be taken for done; a failed write may be that of the report, after the commit.
            let fatal = came && call.contains("sync");
            assert!(!fatal || ran.code() != 0, "{about}: done all the same\n{}", ran.show());
            assert!(ran.code() < 128, "{about}: died\n{}", ran.show());
            scene.check(&ran, &about);
        }
    }
    eprintln!("{me}: {came_in_all} of {tried} failures came");
    assert!(came_in_all * 2 > tried, "{came_in_all} of {tried}: {counts:?}");
}

#[test]
fn a_failed_sync_never_says_done() {
    let me = "a_failed_sync_never_says_done";
    if !need(me, &["strace", "cp"]) {
        return;
    }
    // From the k-th on all fail: so the point comes in every schedule of threads.
    let scene = Scene::new("sync");
    for call in ["fsync", "fdatasync"] {
        let Some(count) = scene.count().get(call).copied() else { continue };
        scene.reset();
        let (ran, came) = scene.injected(call, "error=EIO", "1+");
        assert!(came);
        assert!(ran.code() != 0, "all {count} of {call} fail, and it is done\n{}", ran.show());
        assert_eq!(list(&scene.world.volume), ["c/1"]);
        scene.check(&ran, call);
    }
}

/// Runs a snapshot in which every read of `path` from its `n`-th on fails.
fn unreadable(world: &World, calls: &str, path: &Path, when: &str) -> Ran {
    let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:error=EIO:when={when}"));
    let strace: Vec<&OsStr> = ["strace", "-f", "-qqq", "-o", "/dev/null", "-P"]
        .map(OsStr::new)
        .into_iter()
        .chain([path.as_os_str(), "-e".as_ref(), trace.as_ref(), "-e".as_ref(), inject.as_ref()])
        .collect();
    let bk = Bk::under(&strace, "snapshot --job e").words(OPTIONS).small().env("BK_VOLUME", &world.volume);
    bk.arg("-C").arg(&world.src).arg(".").run()
}

const READS: &str = "read,pread64,readv,preadv,preadv2,mmap,copy_file_range,sendfile,splice";

#[test]
fn a_source_that_cannot_be_read_is_named() {
    let me = "a_source_that_cannot_be_read_is_named";
    if !need(me, &["strace", "tar", "zstd"]) {
        return;
    }
    for (size, when) in [(5_000, "1+"), (500_000, "1+"), (500_000, "3+"), (500_000, "3")] {
        let world = World::new("eio");
        fs::create_dir(world.src.join("d")).unwrap();
        for name in ["a", "d/b", "z"] {
            fs::write(world.src.join(name), Rng::new(7).content(9000)).unwrap();
        }
        let bad = world.src.join("d/bad-file");
        fs::write(&bad, Rng::new(8).noise(size)).unwrap();
        let about = format!("{size} bytes, reads fail from {when}");
        let ran = unreadable(&world, READS, &bad, when);
        // One failure alone may be got over by reading again.
        let ran = ran.code_is(if when == "3" { &[0, exit::INCOMPLETE] } else { &[exit::INCOMPLETE] });
        if ran.code() == 0 {
            let cat = world.bk("cat e/1 d/bad-file").run().ok();
            assert!(cat.stdout == fs::read(&bad).unwrap(), "{about}");
            continue;
        }
        let ran = ran.says("bad-file");
        assert_eq!(list(&world.volume), ["e/1"], "{}", ran.show());
        world.bk("verify --data").run().ok();
        let run = world.parts("e", "tree-")[0].parent().unwrap().to_owned();
        shell_ok(r#"cat "$1"/tree-* | zstd -dc | tar -tf -"#, &[&run]);
        let (target, ran) = world.restore("e/1", "out");
        ran.code_is(&[0, exit::INCOMPLETE]).says("bad-file");
        for name in ["a", "d/b", "z"] {
            assert!(fs::read(target.join(name)).unwrap() == fs::read(world.src.join(name)).unwrap(), "{about}: {name}");
        }
        // Zeros never pass as data.
        let cat = world.bk("cat e/1 d/bad-file").run();
        assert!(cat.code() != 0 || cat.stdout == fs::read(&bad).unwrap(), "{about}: {}", cat.show());
    }
}

#[test]
fn a_directory_that_cannot_be_listed_is_named() {
    let me = "a_directory_that_cannot_be_listed_is_named";
    if !need(me, &["strace"]) {
        return;
    }
    let world = World::new("eio-dir");
    for dir in ["good", "bad-dir"] {
        fs::create_dir(world.src.join(dir)).unwrap();
        fs::write(world.src.join(dir).join("f"), dir).unwrap();
    }
    let bad = world.src.join("bad-dir");
    unreadable(&world, "getdents64", &bad, "1+").code_is(&[exit::INCOMPLETE]).says("bad-dir");
    assert_eq!(list(&world.volume), ["e/1"]);
    let (target, _) = world.restore("e/1", "out");
    assert_eq!(fs::read(target.join("good/f")).unwrap(), b"good");
    assert!(!target.join("bad-dir/f").exists());
}

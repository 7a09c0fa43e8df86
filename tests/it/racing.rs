//! A source that changes while it is read, and runs that race each other: the archive is well-formed in every case,
//! and one seq has one winner.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::inventory::inventory;
use crate::support::rng::Rng;
use crate::support::tools::{need, shell_ok};
use crate::support::{Ran, World, exit};

/// Takes `rounds` snapshots while `race` is called over and over; each must be a whole archive.
fn raced(name: &str, rounds: usize, race: impl Fn(&Path, u64) + Sync, check: impl Fn(&World, &Path, &Ran)) {
    if !need(name, &["zstd", "tar"]) {
        return;
    }
    let world = World::new(name);
    let mut rng = Rng::new(150);
    for n in 0..100 {
        fs::write(world.src.join(format!("still-{n:03}")), rng.content(20_000)).unwrap();
    }
    let live = world.src.join("live");
    fs::create_dir(&live).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                race(&live, n);
            }
        });
        // The scope waits for the racer: it must be told to stop also when an assertion ends the rounds.
        let rounds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for round in 1..=rounds {
                let ran =
                    world.snapshot("race", "--frame-size 64KiB --part-size 256KiB").code_is(&[0, exit::INCOMPLETE]);
                let run = world.parts("race", "tree-")[0].parent().unwrap().to_owned();
                shell_ok(r#"cat "$1"/tree-* | zstd -dc | tar -tf -"#, &[&run]);
                let (target, back) = world.restore(&format!("race/{round}"), &format!("out{round}"));
                back.code_is(&[0, exit::INCOMPLETE]);
                for n in 0..100 {
                    let name = format!("still-{n:03}");
                    assert!(
                        fs::read(target.join(&name)).unwrap() == fs::read(world.src.join(&name)).unwrap(),
                        "{name}"
                    );
                }
                check(&world, &target.join("live"), &ran);
                fs::remove_dir_all(target).unwrap();
            }
        }));
        stop.store(true, Ordering::Relaxed);
        rounds.unwrap_or_else(|cause| std::panic::resume_unwind(cause));
    });
    world.bk("verify --data").run().ok();
}

/// The n-th KiB of a file that only grows.
fn kib(n: u64) -> Vec<u8> {
    Rng::new(n).noise(1024)
}

#[test]
fn files_that_grow_are_a_prefix() {
    raced(
        "grow",
        6,
        |live, n| {
            for name in ["log-a", "log-b", "log-c"] {
                let mut file = OpenOptions::new().create(true).append(true).open(live.join(name)).unwrap();
                if n < 3000 {
                    file.write_all(&kib(n)).unwrap();
                }
            }
        },
        |_, live, _| {
            for path in crate::support::sorted(live) {
                let bytes = fs::read(&path).unwrap();
                for (n, piece) in bytes.chunks(1024).enumerate() {
                    assert!(kib(n as u64).starts_with(piece), "{}: KiB {n} of {}", path.display(), bytes.len());
                }
            }
        },
    );
}

#[test]
fn files_that_shrink_and_grow() {
    raced(
        "shrink",
        6,
        |live, n| {
            let mut rng = Rng::new(n);
            for name in ["a", "b", "c", "d"] {
                let file = OpenOptions::new().create(true).truncate(false).write(true).open(live.join(name)).unwrap();
                file.set_len(rng.below(400_000)).unwrap();
            }
        },
        |_, live, _| assert_eq!(crate::support::sorted(live).len(), 4),
    );
}

#[test]
fn files_that_are_rewritten_are_one_version_or_marked() {
    raced(
        "rewrite",
        6,
        |live, n| {
            // One is replaced whole, by a rename; one is rewritten in place, page by page.
            let byte = n as u8;
            fs::write(live.join("new"), vec![byte; 5000]).unwrap();
            fs::rename(live.join("new"), live.join("replaced")).unwrap();
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(live.join("in-place")).unwrap();
            for page in 0..PAGES {
                file.write_all_at(&[byte; 4096], page * 4096).unwrap();
            }
        },
        |world, live, ran| {
            let Ok(bytes) = fs::read(live.join("replaced")) else { return };
            assert!(bytes.iter().all(|b| *b == bytes[0]) && bytes.len() == 5000, "a mix of two versions");
            let Ok(bytes) = fs::read(live.join("in-place")) else { return };
            let marked = ran.code() == exit::INCOMPLETE || !has_fine_times(&world.path("clock"));
            assert!(marked || was_once(&bytes), "no instant had this content, and nothing is said\n{}", ran.show());
        },
    );
}

const PAGES: u64 = 75;

/// Whether the file had this content at some instant: a run of pages of one version, then only pages of the version
/// before. One page may be of either: it can be under way with the time of its write already set.
fn was_once(bytes: &[u8]) -> bool {
    let pages: Vec<u8> = bytes.chunks(4096).map(|page| page[0]).collect();
    let fits = |newest: u8, cut: usize| {
        let expected = |n: usize| if n < cut { newest } else { newest.wrapping_sub(1) };
        pages.iter().enumerate().filter(|(n, byte)| **byte != expected(*n)).count() <= 1
    };
    pages.iter().any(|newest| (0..=pages.len()).any(|cut| fits(*newest, cut)))
}

/// Whether two writes with a look between them have two times: else (kernels before 6.13) no reader can tell.
fn has_fine_times(path: &Path) -> bool {
    (0..20u8).all(|n| {
        fs::write(path, [n]).unwrap();
        let before = path.metadata().unwrap().modified().unwrap();
        fs::write(path, [n, n]).unwrap();
        path.metadata().unwrap().modified().unwrap() != before
    })
}

#[test]
fn the_eye_for_mixed_versions_sees() {
    let content = |pages: &[u8]| pages.iter().flat_map(|b| [*b; 4096]).collect::<Vec<u8>>();
    for good in [&[5, 5, 5, 5][..], &[6, 5, 5, 5], &[6, 6, 6, 5], &[0, 0, 255, 255], &[6, 5, 6, 5, 5]] {
        assert!(was_once(&content(good)), "{good:?}");
    }
    for bad in [&[5, 5, 6, 6][..], &[7, 7, 5, 5], &[6, 5, 5, 6, 6, 5], &[1, 2, 3]] {
        assert!(!was_once(&content(bad)), "{bad:?}");
    }
}

#[test]
fn files_that_come_and_go_and_change_type() {
    raced(
        "vanish",
        6,
        |live, n| {
            let mut rng = Rng::new(n);
            let path = live.join(format!("x{}", rng.below(40)));
            match rng.below(6) {
                0 => drop(fs::create_dir(&path)),
                1 => drop(std::os::unix::fs::symlink("elsewhere", &path)),
                2 => drop(fs::write(&path, rng.noise(50_000))),
                3 => drop(File::create(&path)),
                4 => drop(fs::remove_dir_all(&path)),
                _ => drop(fs::remove_file(&path)),
            }
        },
        |_, _, _| {},
    );
}

#[test]
fn directories_that_move_about() {
    raced(
        "move",
        6,
        |live, n| {
            let (a, b) = (live.join("a"), live.join(format!("b{}", n % 3)));
            let _ = fs::create_dir_all(a.join("deep/er"));
            let _ = fs::write(a.join("deep/er/file"), "x");
            let _ = fs::rename(&a, &b);
            let _ = fs::remove_dir_all(live.join(format!("b{}", (n + 1) % 3)));
        },
        |_, _, _| {},
    );
}

#[test]
fn two_runs_that_both_began_have_one_winner() {
    let world = World::new("two");
    world.bk("snapshot --job j --stdin d").stdin("first").run().ok();
    // The lease would keep the second from beginning: it is taken from the first, who is to notice only by the log.
    let slow = "600000";
    let mut pair = [0, 1].map(|n| {
        let mut running =
            world.bk("snapshot --job j --stdin d --frame-size 256KiB").env("BK_TEST_LEASE_MS", slow).spawn();
        // More than a pipe holds: when this returns, the run has begun and read its place in the log.
        running.child.stdin.as_mut().unwrap().write_all(&Rng::new(n).noise(2 << 20)).unwrap();
        world.bk("lease release j --yes").run().ok();
        Some(running)
    });
    let mut codes = pair.each_mut().map(|r| r.take().unwrap().finish().code_is(&[0, exit::LOST]).code());
    codes.sort_unstable();
    assert_eq!(codes, [0, exit::LOST]);
    assert_eq!(world.list(), ["j/1", "j/2"]);
    // Each finished in turn, so the first to end has won.
    let cat = world.bk("cat j/2 --stream d").run().ok();
    assert!(cat.stdout == Rng::new(0).noise(2 << 20));
    world.bk("verify --data").run().ok();
    world.bk("snapshot --job j --stdin d").stdin("third").run().ok();
    assert_eq!(world.list().len(), 3);
}

#[test]
fn runs_that_race_freely_agree() {
    let world = World::new("free");
    for n in 0..20 {
        fs::write(world.src.join(format!("f{n}")), Rng::new(n).noise(30_000)).unwrap();
    }
    let before = inventory(&world.src).len();
    let mut won = 0;
    for round in 0..8 {
        let start = || {
            let bk = world.bk("snapshot --json --job j --frame-size 16KiB --part-size 64KiB").small();
            bk.arg("-C").arg(&world.src).arg(".").spawn()
        };
        let runs = [start(), start(), start()];
        let outcome = |ran: Ran| match ran.code_is(&[0, exit::LOST]) {
            ran if ran.code() == 0 => ran.json().pop().unwrap()["outcome"].as_str().unwrap().to_owned(),
            ran => ran.code().to_string(),
        };
        let codes: Vec<String> = runs.into_iter().map(|run| outcome(run.finish())).collect();
        let winners = codes.iter().filter(|outcome| *outcome == "done").count();
        assert!(winners >= 1, "round {round}: {codes:?}");
        assert!(codes.iter().all(|outcome| ["done", "skipped-running"].contains(&outcome.as_str())), "{codes:?}");
        won += winners;
        let expected: Vec<String> = (1..=won).map(|n| format!("j/{n}")).collect();
        assert_eq!(world.list(), expected, "round {round}: {codes:?}");
    }
    world.bk("verify").run().ok();
    let (target, ran) = world.restore("j/latest", "out");
    ran.ok();
    assert_eq!(inventory(&target).len(), before);
}

#[test]
fn runs_of_two_jobs_do_not_meet() {
    let world = World::new("jobs");
    fs::write(world.src.join("f"), Rng::new(1).noise(500_000)).unwrap();
    let start = |job: &str| world.bk("snapshot --job").arg(job).arg("-C").arg(&world.src).arg(".").spawn();
    let runs = ["a", "b", "c", "d"].map(start);
    for run in runs {
        run.finish().ok();
    }
    assert_eq!(world.list(), ["a/1", "b/1", "c/1", "d/1"]);
}

/// Names come, go and move while increments are taken: every one of them is whole, and the first in a quiet tree is exact.
#[test]
fn names_that_come_and_go_under_increments() {
    let world = World::new("inc-race");
    for n in 0..40 {
        fs::create_dir(world.src.join(format!("d{n:02}"))).unwrap();
        for k in 0..20 {
            fs::write(world.src.join(format!("d{n:02}/file-{k}")), format!("{n} {k}")).unwrap();
        }
    }
    let snapshot = |level: u8| {
        let options = format!("--level {level} --frame-size 4KiB --part-size 64KiB");
        world.snapshot("race", &options).code_is(&[0, exit::INCOMPLETE]);
    };
    snapshot(0);
    let stop = AtomicBool::new(false);
    let race = || {
        let mut rng = Rng::new(151);
        while !stop.load(Ordering::Relaxed) {
            let mut at = |k: u64| world.src.join(format!("d{:02}/file-{}", rng.below(40), rng.below(k)));
            // What the other calls took away meanwhile is no matter.
            let (from, to) = (at(25), at(25));
            let _ = match from.as_os_str().len() + to.as_os_str().len() + rng.below(5) as usize {
                n if n % 5 == 0 => fs::remove_file(&from),
                n if n % 5 == 1 => fs::rename(&from, &to),
                n if n % 5 == 2 => fs::hard_link(&from, &to),
                n if n % 5 == 3 => fs::remove_file(&from).and_then(|()| fs::create_dir(&from)),
                _ => fs::remove_dir(&from).or_else(|_| fs::write(&from, rng.content(6000))),
            };
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(race);
        let rounds = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for (round, level) in [1, 2, 3, 4, 1, 2, 5, 9, 1, 1].into_iter().enumerate() {
                snapshot(level);
                let (_, ran) = world.restore(&format!("race/{}", round + 2), &format!("out{round}"));
                ran.code_is(&[0, exit::INCOMPLETE]);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        rounds.unwrap_or_else(|cause| std::panic::resume_unwind(cause));
    });
    world.bk("verify --data").run().ok();
    snapshot(2);
    let (target, ran) = world.restore("race/latest", "last");
    ran.ok();
    let how = crate::roundtrip::exact();
    crate::support::inventory::assert_same(&inventory(&world.src), &inventory(&target), &how, "the quiet tree");
}

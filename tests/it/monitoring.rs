//! Runs seen and stopped from another node, and what a monitoring system is told.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::rng::Rng;
use crate::support::tools::skip;
use crate::support::{Running, World, exit, files_below};

/// Only guards against hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Asks until the answer is there.
fn until<T>(what: &str, ask: impl Fn() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn runs(world: &World) -> Vec<Value> {
    let lines = world.bk("status --json").run().ok().json();
    lines.into_iter().filter(|line| line["type"] == "run").collect()
}

/// A run on node `far` that reads what never ends, and what feeds it.
fn endless(world: &World, job: &str) -> (Running, Arc<AtomicBool>) {
    let line = format!(
        "snapshot --json --job {job} --stdin dump --level 0 --comment nightly --frame-size 16KiB --part-size 64KiB"
    );
    let bk = world.bk(&line).small().env("BK_NODE", "far").env("BK_TEST_BEAT_MS", "200");
    let mut running = bk.spawn();
    let mut pipe = running.child.stdin.take().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    std::thread::spawn(move || {
        let mut rng = Rng::new(600);
        while !stopped.load(Ordering::Relaxed) && pipe.write_all(&rng.noise(10_000)).is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    (running, stop)
}

/// What lies on the volume below these names, where that can be seen.
fn lying(world: &World, names: &[&str]) -> Vec<PathBuf> {
    names.iter().flat_map(|name| files_below(&world.volume.join(name))).collect()
}

fn is_aborted(world: &World) {
    let (running, _feeding) = endless(world, "slow");
    let row = until("a run is shown", || runs(world).pop().filter(|row| row["bytes"].as_u64() > Some(100_000)));
    for (name, value) in [("node", "far"), ("job", "slow"), ("state", "running"), ("phase", "storing")] {
        assert_eq!(row[name], value, "{row}");
    }
    assert_eq!((&row["level"], &row["comment"]), (&0.into(), &"nightly".into()), "{row}");
    world.bk("status slow").run().ok().says("nightly").says("far");
    world.bk("status other").run().ok().says("no run goes on");
    world.bk("check slow").run().code_is(&[2]).says("goes on on far");
    world.bk("abort other").run().code_is(&[exit::ERROR]).says("no run of other is under way");

    let asked = Instant::now();
    world
        .bk("abort slow --comment")
        .arg("enough of it")
        .env("BK_NODE", "near")
        .run()
        .ok()
        .says("on far was asked to stop");
    let ran = running.finish().code_is(&[143]);
    println!("ended {:?} after it was asked", asked.elapsed());
    let error = ran.json().pop().unwrap();
    assert_eq!((&error["type"], &error["outcome"], &error["exit"]), (&"error".into(), &"aborted".into(), &143.into()));
    let ran = ran.says("aborted by node near").says("enough of it");
    assert_eq!(world.list(), Vec::<String>::new(), "{}", ran.show());
    assert_eq!(runs(world), Vec::<Value>::new());
    assert_eq!(lying(world, &["data", "runs", "log"]), Vec::<PathBuf>::new());
    // The next run is not stopped by it.
    world.bk("snapshot --job slow --stdin dump").stdin("short").run().ok();
    assert_eq!(world.list(), ["slow/1"]);
}

#[test]
fn a_run_is_aborted_from_another_node() {
    is_aborted(&World::new("abort"));
}

#[test]
fn a_run_on_s3_is_aborted_from_another_node() {
    is_aborted(&World::on_s3("abort-s3"));
}

#[test]
fn an_aborted_runs_command_ends_with_it() {
    let world = World::new("abort-command");
    let pid = world.path("pid");
    let script = format!("echo $$ > {}; while :; do echo line; sleep 0.02; done", pid.display());
    let bk = world.bk("snapshot --job c --json").env("BK_TEST_BEAT_MS", "200").words("-- sh -c").arg(script);
    let mut running = bk.spawn();
    drop(running.child.stdin.take());
    until("a run is shown", || runs(&world).pop());
    world.bk("abort c").run().ok();
    running.finish().code_is(&[143]).says("aborted by node");
    let pid = fs::read_to_string(pid).unwrap();
    let is_gone = || match fs::read_to_string(format!("/proc/{}/stat", pid.trim())) {
        Ok(stat) => stat.contains(") Z ").then_some(()),
        Err(_) => Some(()),
    };
    until("the command has ended", is_gone);
}

#[test]
fn what_a_killed_run_leaves_is_stalled_and_swept() {
    let world = World::new("stalled");
    world.bk("snapshot --job k --stdin dump").stdin("first").run().ok();
    let (running, feeding) = endless(&world, "k");
    until("a run is shown", || runs(&world).pop().filter(|row| row["bytes"].as_u64() > Some(200_000)));
    let notes = lying(&world, &["runs"]).len();
    assert!((1..=3).contains(&notes), "{notes} notes at most lie there at once");
    running.signal(rustix::process::Signal::KILL);
    running.finish().code_is(&[137]);
    feeding.store(true, Ordering::Relaxed);
    until("it stalls", || runs(&world).pop().filter(|row| row["state"] == "stalled"));
    world.bk("check k").run().code_is(&[1]).says("has said nothing for").says("BK WARNING");
    world.bk("abort k").run().ok().says("it has said nothing for a while");
    // It is young: an expiry leaves it alone.
    world.bk("expire").run().ok();
    assert_eq!(runs(&world).len(), 1);
    world.bk("expire --sweep-grace 0").run().ok().says("1 runs that never ended swept");
    assert_eq!(runs(&world), Vec::<Value>::new());
    assert_eq!(lying(&world, &["runs"]), Vec::<PathBuf>::new());
    world.bk("check k").run().ok().says("BK OK");
    assert_eq!(world.list(), ["k/1"]);
}

#[test]
fn status_follows_a_run_to_its_end() {
    let world = World::new("follow");
    let (running, feeding) = endless(&world, "f");
    until("a run is shown", || runs(&world).pop());
    let follow = world.bk("status --follow").spawn();
    until("it beats on", || runs(&world).pop().filter(|row| row["bytes"].as_u64() > Some(300_000)));
    feeding.store(true, Ordering::Relaxed);
    running.finish().ok();
    let shown = follow.finish().ok();
    assert!(shown.text().contains("far") && shown.said().contains("no run goes on"), "{}", shown.show());
    assert_eq!(world.list(), ["f/1"]);
    assert_eq!(lying(&world, &["runs"]), Vec::<PathBuf>::new());
}

#[test]
fn what_a_monitoring_system_is_told() {
    let world = World::new("check");
    let none = world.path("none");
    world.bk("check").env("BK_VOLUME", &none).run().code_is(&[3]).says("BK UNKNOWN");
    world.bk("check").run().code_is(&[3]).says("has no job");
    world.bk("check db").run().code_is(&[2]).says("BK CRITICAL - db: no snapshot");
    world.bk("check --warn-age soon").run().code_is(&[exit::USAGE]);
    world.bk("check --warn-age 12=1d").run().code_is(&[exit::USAGE]);
    world.bk("check --warn-age 1mo").run().code_is(&[exit::USAGE]);

    let take = |bytes: usize| {
        let bk = world.bk("snapshot --job db --stdin dump --level 0 --part-size 64KiB").small();
        bk.stdin(Rng::new(601).noise(bytes)).run().ok();
    };
    take(400_000);
    take(100_000);
    let free = world.server.is_none();
    for (options, code, says) in [
        ("--warn-drop 80", 0, "BK OK - db/2 of level 0 is "),
        ("--warn-drop 80 --warn-age 26h --crit-age 50h", 0, "'db_age_seconds'="),
        ("--warn-drop 80 --warn-age 0=8d --crit-age 1=9d", 0, "level 0: db/2 is "),
        ("", 1, "75 % less"),
        ("--crit-drop 75", 2, "75 % less"),
        ("--warn-drop 80 db gone", 2, "gone: no snapshot"),
    ] {
        let ran = world.bk("check").words(options).run().code_is(&[code]).says(says);
        let text = ran.text();
        let first = text.lines().next().unwrap();
        let (said, numbers) = first.split_once(" |").unwrap_or_else(|| panic!("{text}"));
        assert!(said.starts_with("BK "), "{text}");
        for number in numbers.split_whitespace() {
            let (name, value) = number.split_once('=').unwrap();
            assert!(name.starts_with('\'') && name.ends_with('\'') && value.starts_with(|c: char| c.is_ascii_digit()));
        }
    }
    if free {
        world.bk("check --warn-drop 80 --warn-free 1000TiB").run().code_is(&[1]).says("the volume has ");
        let ran = world.bk("check --warn-drop 80 --warn-free 2000TiB --crit-free 1000TiB").run().code_is(&[2]);
        ran.says(";2199023255552000:;1099511627776000:");
    }
    let ran = world.bk("check --warn-drop 80 --json").run().ok();
    let result = ran.json().pop().unwrap();
    assert_eq!((&result["status"], &result["findings"][0]["status"]), (&"ok".into(), &"ok".into()), "{result}");
    let prom = world.path("bk.prom");
    world.bk("check --prometheus").arg(&prom).run().code_is(&[1]);
    let text = fs::read_to_string(&prom).unwrap();
    for line in ["bk_content_bytes{job=\"db\"} 100000", "bk_snapshots{job=\"db\"} 2", "bk_check_status 1"] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }

    // What cannot be restored is no backup.
    if free {
        fs::remove_file(&world.parts("db", "stream-")[0]).unwrap();
        world.bk("check").run().code_is(&[2]).says("cannot be restored: db/2").says("db/1 of level 0 is ");
    }
}

/// Of a configured system all jobs are looked at, wherever their volumes are, those too that were never run.
#[test]
fn all_that_is_configured_is_looked_at() {
    let world = World::new("check-all");
    if world.server.is_some() {
        skip("all_that_is_configured_is_looked_at", "both volumes are directories");
        return;
    }
    let (second, config) = (world.path("second"), world.path("bk.toml"));
    world.bk("volume create").arg(&second).run().ok();
    let age = "[job.NAME.check]\nmax_age = '26h'\n";
    let mut text = format!(
        "node = 'n1'\n[defaults]\nvolume = 'main'\n[volume.main]\nurl = '{}'\n[volume.second]\nurl = '{}'\n",
        world.volume.display(),
        second.display()
    );
    for (job, more) in [("home", ""), ("away", "volume = 'second'\n"), ("own", "per_node = true\n")] {
        let (src, age) = (world.src.display(), age.replace("NAME", job));
        text += &format!("[job.{job}]\npaths = ['{src}']\n{more}{age}");
    }
    let bk = |words: &str| crate::support::Bk::new(words).env("BK_CONFIG", &config).without("BK_VOLUME");
    fs::write(&config, &text).unwrap();
    fs::write(world.src.join("f"), "f").unwrap();
    for job in ["home", "away", "own"] {
        bk("snapshot").arg(job).run().ok();
    }
    let said = bk("check").run().ok().says("home/1").says("away/1").says("own.n1/1").said();
    assert!(said.contains("'main_volume_free_bytes'") && said.contains("'second_volume_free_bytes'"), "{said}");
    bk("check away home").run().ok().says("away/1").says("home/1");
    // The configured name means this node's.
    for words in ["check own", "list own", "status own", "expire own --dry-run"] {
        bk(words).run().ok();
    }
    bk("check own").run().ok().says("own.n1/1");
    bk("list own").run().ok().says("own.n1/1");
    bk("abort own").run().code_is(&[1]).says("own.n1");
    // Without a default volume each job's own is enough, and a volume without jobs is no fault.
    let named = text.replace("[defaults]\nvolume = 'main'\n", "").replace("/src']\n", "/src']\nvolume = 'main'\n");
    let named = named.replace("volume = 'main'\nvolume = 'second'", "volume = 'second'");
    fs::write(&config, &named).unwrap();
    bk("check").run().ok().says("home/1").says("away/1");
    fs::write(&config, text.replace("volume = 'main'", "volume = 'third'") + "[volume.third]\nurl = '/'\n").unwrap();
    bk("check").run().code_is(&[2, 3]).says("away/1");
    let third = world.path("third");
    world.bk("volume create").arg(&third).run().ok();
    let only = format!(
        "[defaults]\nvolume = 'third'\n[volume.third]\nurl = '{}'\n[volume.second]\nurl = '{}'\n[job.away]\npaths = ['/x']\nvolume = 'second'\n",
        third.display(),
        second.display()
    );
    fs::write(&config, only).unwrap();
    bk("check").run().ok().says("away/1");
    // One that was never run: as its limits say, and a warning without any.
    fs::write(&config, format!("{text}[job.never]\npaths = ['/x']\n")).unwrap();
    bk("check").run().code_is(&[1]).says("never is configured and has no snapshot yet");
    fs::write(&config, format!("{text}[job.never]\npaths = ['/x']\n{}", age.replace("NAME", "never"))).unwrap();
    bk("check").run().code_is(&[2]).says("never: no snapshot");
    // What was found is told, though it cannot be written down.
    let unwritable = world.path("none/bk.prom");
    bk("check --prometheus").arg(&unwritable).run().code_is(&[2]).says("BK CRITICAL").says("cannot write");
    bk("check home --prometheus").arg(&unwritable).run().code_is(&[1]).says("BK WARNING");
    // A volume that is away keeps nobody from the others.
    fs::rename(&second, world.path("elsewhere")).unwrap();
    bk("check home away").run().code_is(&[3]).says("home/1");
    // A directory named by one word needs no configuration.
    fs::write(&config, "[").unwrap();
    bk("list").env("BK_VOLUME", &world.volume).run().ok().says("home/1");
}

#[test]
fn numbers_are_written_after_each_run() {
    let world = World::new("metrics");
    let path = world.path("bk.prom");
    let take = |command: &str| world.bk("snapshot --job m --metrics").arg(&path).words("-- ").words(command).run();
    let has = |line: &str| {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    };
    take("echo hello").ok();
    has("bk_run_exit_code{job=\"m\"} 0");
    has("bk_snapshots{job=\"m\"} 1");
    take("false").code_is(&[exit::ERROR]);
    has("bk_run_exit_code{job=\"m\"} 1");
    has("bk_snapshots{job=\"m\"} 1");
    // They are no reason for a run to fail.
    let nowhere = world.path("no/such/dir");
    let bk = world.bk("snapshot --job m --metrics").arg(nowhere).words("-- echo again");
    bk.run().ok().says("no metrics");
}

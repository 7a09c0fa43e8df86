//! What is typed for one run of a job on a cluster: the gate's keys, `--offline`, `--validate`, and how much is said.

use std::fs;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::gates::{Answers, cluster, patroni};
use crate::support::job::Job;
use crate::support::{Ran, exit};

/// A job behind Patroni's gate: `n1` leads, `n2` has less lag than `n3`.
fn clustered(paused: bool, lags: [&str; 2]) -> Job {
    let mut job = Job::new("typed");
    let answers: Answers = Arc::new(Mutex::new(cluster("n1", lags, paused)));
    job.keys = format!("gate = {{ kind = 'patroni', tries = 1, url = '{}' }}", patroni(&answers));
    job
}

fn result(ran: &Ran) -> Value {
    ran.json().pop().unwrap()
}

#[test]
fn the_gates_keys_can_be_typed() {
    for (paused, lags, words, code, datasource) in [
        (false, ["5", "9"], "", 0, "n2"),
        (false, ["5", "9"], "--datasource n3", 0, "n3"),
        (false, ["5", "9"], "--datasource n1", exit::GATE, ""),
        (false, ["5", "9"], "--datasource n1 --require-replica=false", 0, "n1"),
        (false, ["5", "9"], "--datasource n4", exit::GATE, ""),
        (false, ["-", "\"unknown\""], "--datasource n2 --require-replica", exit::GATE, ""),
        (true, ["5", "9"], "", 0, "n2"),
        (true, ["5", "9"], "--require-automatic-mode", exit::GATE, ""),
        (true, ["5", "9"], "--require-automatic-mode=false", 0, "n2"),
    ] {
        let job = clustered(paused, lags);
        let ran = job.bk().words(words).run();
        assert_eq!(ran.code(), code, "{words}\n{}", ran.show());
        if code == 0 {
            assert_eq!(result(&ran)["datasource"]["name"], datasource, "{words}");
        }
        assert_eq!(job.snapshots(), usize::from(code == 0), "{words}");
        assert_eq!(job.began().contains(&"tape enter".to_owned()), code == 0, "{words}");
    }
    // What the gate cannot know is said before anything is done.
    let mut job = Job::new("typed");
    job.keys = "gate = { kind = 'lease' }".to_owned();
    for words in ["--datasource n2", "--require-replica", "--require-automatic-mode"] {
        job.bk().words(words).run().code_is(&[exit::USAGE]).says("the job's gate cannot do what was typed");
    }
    job.bk().words("--require-replica=maybe").run().code_is(&[exit::USAGE]);
    job.bk().words("--offline").run().code_is(&[exit::USAGE]).says("no step that takes its datasource offline");
    assert!(job.began().is_empty() && job.snapshots() == 0);
}

#[test]
fn a_step_marked_offline_is_done_when_asked_for() {
    let mut job = Job::new("typed-offline");
    job.steps.insert("a", "offline = true".to_owned());
    job.bk().run().ok();
    assert!(!job.began().iter().any(|one| one.starts_with("a ")), "{:?}", job.began());
    job.bk().words("--offline").run().ok();
    assert_eq!((job.count("a enter"), job.count("a leave")), ((1, 1), (1, 1)));
    job.mode("run stream", "fail");
    job.bk().words("--offline").run().code_is(&[exit::ERROR]);
    assert_eq!((job.count("a enter"), job.count("a leave")), ((1, 1), (1, 1)));
}

/// Only looks: no step, no stream, no object, no lease; and says what would keep a run from its work.
#[test]
fn a_run_can_be_validated() {
    let mut job = Job::new("validate");
    let before = || crate::support::files_below(&job.world.volume);
    let files = before();
    // A medium comes before the volume: that is not looked at.
    let ran = job.bk().words("--validate").run().ok();
    let found = result(&ran);
    assert_eq!((&found["outcome"], &found["volume"], &found["exit"]), (&"valid".into(), &Value::Null, &0.into()));
    assert_eq!(job.began(), ["run gate"]);
    assert_eq!(before(), files);
    job.missing = Some("tape enter".to_owned());
    job.bk().words("--validate").run().code_is(&[7]).says("step tape").says("is not there");
    job.mode("run gate", "skip");
    job.missing = None;
    assert_eq!(result(&job.bk().words("--validate").run().ok())["outcome"], "skipped-gate");
    job.mode("run gate", "fail");
    job.bk().words("--validate").run().code_is(&[exit::GATE]).says("cannot run gate");

    // Without media steps: volume, sources, programs, level.
    let world = crate::support::World::new("validate");
    let file = world.path("bk.toml");
    let second = world.path("second");
    crate::support::Bk::new("volume create").arg(&second).run().ok();
    let configure = |more: &str| {
        let text = format!(
            "state_dir = '{}'\n[volume.main]\nurl = '{}'\n[volume.second]\nurl = '{}'\n[job.j]\nvolume = 'main'\n\
             copy_to = ['second']\n{more}\n",
            world.path("state").display(),
            world.named().display(),
            second.display()
        );
        fs::write(&file, text).unwrap();
    };
    let validate = || world.bk("snapshot j --validate --json").without("BK_VOLUME").env("BK_CONFIG", &file).run();
    let src = world.src.display().to_string();
    configure(&format!("paths = ['{src}']\nstream.s = {{ command = ['echo', 'x'] }}"));
    let found = result(&validate().ok());
    assert_eq!(
        (&found["outcome"], &found["level"], found["volume"].as_str().map(str::len)),
        (&"valid".into(), &0.into(), Some(32))
    );
    assert!(world.list().is_empty());
    for (more, code, says) in [
        (format!("paths = ['{src}/gone']"), exit::ERROR, "gone"),
        (
            format!("paths = ['{src}']\nstream.s = {{ command = ['no-such-program'] }}"),
            exit::ERROR,
            "not found in PATH",
        ),
        (format!("paths = ['{src}']\nstream.s = {{ device = '/dev/no-such-device' }}"), exit::ERROR, "no-such-device"),
        (format!("paths = ['{src}']\nrequire_mount = ['{src}']"), exit::ERROR, "nothing is mounted"),
        (format!("paths = ['{src}']\n[[job.j.step]]\nname = 's'\nleave = ['/no/such']"), 7, "is not there"),
    ] {
        configure(&more);
        let ran = validate();
        assert_eq!(ran.code(), code, "{more}\n{}", ran.show());
        let outcome = result(&ran.says(says))["outcome"].clone();
        assert!(outcome == "failed" || outcome == "invalid", "{more}: {outcome}");
    }
    configure(&format!("paths = ['{src}']"));
    fs::rename(&second, world.path("away")).unwrap();
    validate().code_is(&[exit::VOLUME]).says("copies to second");
    fs::rename(world.path("away"), &second).unwrap();
    validate().ok();
}

#[test]
fn as_much_is_said_as_is_asked_for() {
    let job = Job::new("loud");
    let config = job.configure();
    job.mode("a enter", "once");
    let run =
        |words: &str| crate::support::Bk::new("snapshot app --config").arg(&config).words(words).run().ok().said();
    let (mut lens, mut said) = (Vec::new(), Vec::new());
    for words in ["-q", "-n", "-i", "", "-v"] {
        job.mode("a enter", "once");
        let text = run(words);
        assert_eq!(text.contains("snapshot app/"), words != "-q", "{words}: {text}");
        assert_eq!(text.contains("warning: step a: enter"), words != "-q", "{words}: {text}");
        assert_eq!(text.contains("a enter: done"), !matches!(words, "-q" | "-n"), "{words}: {text}");
        assert_eq!(text.contains("on volume"), words == "-v", "{words}: {text}");
        lens.push(text.lines().count());
        said.push(text);
    }
    assert!(lens[0] == 0 && lens[1] < lens[2] && lens[2] == lens[3] && lens[3] < lens[4], "{lens:?}\n{said:?}");
    for words in ["-q -v", "-n -v", "-q -n", "-n -i"] {
        crate::support::Bk::new("snapshot app --config").arg(&config).words(words).run().code_is(&[exit::USAGE]);
    }
    // Code and messages as one object.
    job.mode("a enter", "once");
    let ran = crate::support::Bk::new("snapshot app --json --quiet --config").arg(&config).run().ok();
    let lines = ran.json();
    assert!(lines.len() == 1 && lines[0]["exit"] == 0, "{}", ran.show());
    let messages = lines[0]["messages"].as_array().unwrap();
    let of = |severity: &str| messages.iter().filter(|one| one["severity"] == severity).count();
    assert!(of("warning") == 1 && of("info") > 5 && of("error") == 0, "{messages:?}");
    job.mode("a enter", "fail");
    let ran = crate::support::Bk::new("snapshot app --json --quiet --config").arg(&config).run().code_is(&[7]);
    let lines = ran.json();
    let last = lines[0]["messages"].as_array().unwrap().last().unwrap().clone();
    assert!(lines.len() == 1 && lines[0]["exit"] == 7 && last["severity"] == "error", "{}", ran.show());
    assert!(last["text"].as_str().unwrap().contains("step a"), "{last}");
}

#[test]
fn numbers_are_written_where_the_job_says() {
    let mut job = Job::new("typed-metrics");
    let path = job.world.path("bk.prom");
    job.keys = format!("metrics = '{}'", path.display());
    job.bk().words("--validate").run().ok();
    assert!(!path.exists());
    job.bk().run().ok();
    assert!(fs::read_to_string(&path).unwrap().contains("bk_run_exit_code{job=\"app\"} 0"));
    job.mode("b enter", "fail");
    job.bk().run().code_is(&[7]);
    assert!(fs::read_to_string(&path).unwrap().contains("bk_run_exit_code{job=\"app\"} 7"));
}

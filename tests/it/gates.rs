//! Gates: who may act, by each kind of answer; the choice of a datasource; a role lost in the middle.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::job::Job;
use crate::support::tools::write_program;

fn say(job: &Job, text: &str) {
    std::fs::write(job.dir.join("say"), text).unwrap();
}

fn stream_env(job: &Job) -> String {
    std::fs::read_to_string(job.dir.join("env/run-stream")).unwrap_or_default()
}

#[test]
fn a_command_decides_and_never_by_accident() {
    let job = |keys: &str| {
        let mut job = Job::new("gate-command");
        let argv = format!("command = ['{}']", job.dir.join("gate").display());
        job.keys = format!("gate = {{ kind = 'command', tries = 1, {argv}{keys} }}");
        job
    };
    for (script, keys, code, outcome) in [
        ("exit 0", "", 0, "done"),
        ("exit 75", "", 0, "skipped-gate"),
        ("echo 'node 2 is it'; exit 75", "", 0, "node 2 is it"),
        ("exit 3", ", skip_codes = [3, 4]", 0, "skipped-gate"),
        ("exit 75", ", skip_codes = [3]", 5, "gate-error"),
        ("exit 1", "", 5, "gate-error"),
        ("exit 127", "", 5, "gate-error"),
        ("kill -9 $$", "", 5, "gate-error"),
        ("sleep 1000", ", timeout = '300ms'", 5, "took longer than"),
        ("echo skip", "", 0, "skipped-gate"),
        ("echo 'skip: the other site'", "", 0, "the other site"),
        ("echo '{\"role\": \"member\"}'", "", 0, "skipped-gate"),
        ("echo '{\"role\": \"coordinator\"}'", "", 0, "done"),
        ("echo '{\"role\": '", "", 5, "cannot be read"),
        ("echo '{\"roel\": \"member\"}'", "", 5, "cannot be read"),
        ("echo '{\"mode\": \"MAINTENANCE\"}'", ", require_automatic_mode = true", 5, "MAINTENANCE"),
        ("echo '{\"mode\": \"AUTOMATIC\"}'", ", require_automatic_mode = true", 0, "done"),
        ("exit 0", ", require_automatic_mode = true", 5, "does not tell"),
        ("exit 0", ", require_replica = true", 5, "there is no datasource"),
        ("yes | head -c 5000000", "", 0, "done"),
    ] {
        let job = job(keys);
        let path = job.dir.join("gate");
        write_program(&path, &format!("#!/bin/sh\n{script}\n"));
        let ran = job.bk().run();
        assert_eq!(ran.code(), code, "{script}{keys}\n{}", ran.show());
        let ran = ran.says(outcome);
        assert_eq!(job.began().iter().any(|one| one == "a enter"), outcome == "done", "{script}{keys}\n{}", ran.show());
        assert_eq!(job.snapshots(), usize::from(outcome == "done"), "{script}{keys}");
        // A skip is followed by nothing; an error is told.
        assert_eq!(job.began().iter().any(|one| one == "tell run"), code != 0, "{script}{keys}");
    }
}

#[test]
fn the_datasource_of_a_command_reaches_streams_and_steps() {
    let job = Job::new("gate-datasource");
    let member = |name: &str, role: &str, state: &str, lag: u32| {
        format!(
            "{{\"name\":\"{name}\",\"role\":\"{role}\",\"state\":\"{state}\",\"lag\":{lag},\"host\":\"10.0.0.{lag}\",\"port\":5432}}"
        )
    };
    let members = [
        member("db1", "primary", "ONLINE", 0),
        member("db2", "replica", "OFFLINE", 1),
        member("db3", "slave", "ONLINE", 7),
        member("db4", "replica", "online", 9),
    ];
    say(&job, &format!("{{\"datasources\":[{}]}}", members.join(",")));
    let ran = job.bk().run().ok();
    assert_eq!(ran.json().pop().unwrap()["datasource"]["name"], "db3");
    let leave = std::fs::read_to_string(job.dir.join("env/a-leave")).unwrap();
    for text in [stream_env(&job), leave] {
        for line in [
            "BK_DATASOURCE=db3",
            "BK_DATASOURCE_HOST=10.0.0.7",
            "BK_DATASOURCE_PORT=5432",
            "BK_DATASOURCE_ROLE=replica",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is not in {text}");
        }
    }
}

#[test]
fn a_role_that_is_lost_in_the_middle_keeps_nothing() {
    let job = Job::new("gate-lost");
    job.mode("run regate", "skip");
    let ran = job.bk().run().code_is(&[6]).says("lost-role");
    let result = ran.json().pop().unwrap();
    assert_eq!((&result["type"], &result["outcome"]), (&"error".into(), &"lost-role".into()));
    assert!(job.snapshots() == 0 && job.entered().is_empty());
    assert_eq!(crate::support::files_below(&job.world.volume.join("data")), Vec::<std::path::PathBuf>::new());
    // Without `regate` nobody asks.
    let mut job = Job::new("gate-once");
    job.keys =
        format!("gate = {{ kind = 'command', regate = false, command = ['{}'] }}", job.dir.join("act").display());
    job.mode("run regate", "skip");
    job.bk().run().ok();
    assert_eq!(job.count("run regate").0, 0);
}

#[test]
fn postgres_tells_whether_it_is_in_recovery() {
    for (first, then, keys, code, what) in [
        ("t", "t", "", 0, "done"),
        ("f", "f", "", 0, "skipped-gate"),
        ("f", "f", ", require_replica = false", 0, "done"),
        ("f", "f", ", coordinator = 'leader'", 0, "done"),
        ("t", "t", ", coordinator = 'leader'", 0, "skipped-gate"),
        ("t", "f", "", 6, "lost-role"),
        ("", "", "", 5, "neither t nor f"),
        ("psql: error", "", "", 5, "neither t nor f"),
    ] {
        let mut job = Job::new("gate-postgres");
        let script = format!("[ $BK_PHASE = gate ] && echo '{first}' || echo '{then}'");
        job.keys = format!("gate = {{ kind = 'postgres', shell = true, tries = 1, command = \"{script}\"{keys} }}");
        let ran = job.bk().run();
        assert_eq!(ran.code(), code, "{first} {then}{keys}\n{}", ran.show());
        ran.says(what);
    }
}

/// What a stand-in for Patroni answers: path and status and body.
pub type Answers = Arc<Mutex<Vec<(&'static str, u16, String)>>>;

/// Serves until the process ends; a path without an answer hangs.
pub fn patroni(answers: &Answers) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answers = Arc::clone(answers);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answers) = (stream.unwrap(), Arc::clone(&answers));
            std::thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                    head.push(byte[0]);
                }
                let path = String::from_utf8_lossy(&head).split(' ').nth(1).unwrap_or("").to_owned();
                let answer = answers.lock().unwrap().iter().find(|(one, ..)| *one == path).cloned();
                let Some((_, status, body)) = answer else { return std::thread::sleep(Duration::from_secs(600)) };
                let text =
                    format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
                drop(stream.write_all(text.as_bytes()));
            });
        }
    });
    url
}

/// A cluster of `n1` (leader), `n2` and `n3`, seen from `own`.
pub fn cluster(own: &str, lags: [&str; 2], pause: bool) -> Vec<(&'static str, u16, String)> {
    let role = if own == "n1" { "master" } else { "replica" };
    let members = format!(
        r#"{{"members":[{{"name":"n1","role":"leader","state":"running","host":"h1","port":5431,"timeline":1}},
        {{"name":"n2","role":"replica","state":"{}","host":"h2","port":5432,"lag":{}}},
        {{"name":"n3","role":"sync_standby","state":"streaming","host":"h3","port":5433,"lag":{}}}],"scope":"x"{}}}"#,
        if lags[0] == "-" { "starting" } else { "running" },
        if lags[0] == "-" { "\"unknown\"" } else { lags[0] },
        lags[1],
        if pause { ",\"pause\":true" } else { "" },
    );
    vec![
        ("/leader", if own == "n1" { 200 } else { 503 }, "{}".to_owned()),
        (
            "/patroni",
            200,
            format!(
                r#"{{"state":"running","role":"{role}","patroni":{{"version":"3.2.0","scope":"x","name":"{own}"}}}}"#
            ),
        ),
        ("/cluster", 200, members),
    ]
}

#[test]
fn patroni_tells_leader_replicas_and_pause() {
    let none = vec![
        ("/leader", 200, String::new()),
        ("/patroni", 200, "{}".to_owned()),
        ("/cluster", 200, r#"{"members":[]}"#.to_owned()),
    ];
    for (answers, keys, code, what, datasource) in [
        (cluster("n1", ["5", "9"], false), "", 0, "done", "h2"),
        (cluster("n1", ["9", "5"], false), "", 0, "done", "h3"),
        (cluster("n1", ["5", "5"], false), "", 0, "done", "h2"),
        (cluster("n1", ["-", "5"], false), "", 0, "done", "h3"),
        (cluster("n1", ["0", "\"unknown\""], false), ", datasource = 'n3'", 0, "done", "h3"),
        (cluster("n1", ["-", "5"], false), ", datasource = 'n2'", 5, "n2 is not online", ""),
        (cluster("n1", ["5", "9"], false), ", datasource = 'n1'", 5, "is no replica", ""),
        (cluster("n1", ["5", "9"], false), ", datasource = 'n1', require_replica = false", 0, "done", "h1"),
        (cluster("n2", ["5", "9"], false), "", 0, "skipped-gate", ""),
        (cluster("n2", ["5", "9"], false), ", coordinator = 'datasource'", 0, "done", "h2"),
        (cluster("n3", ["5", "9"], false), ", coordinator = 'datasource'", 0, "n2 is the datasource, not n3", ""),
        (cluster("n1", ["5", "9"], false), ", coordinator = 'datasource'", 0, "skipped-gate", ""),
        (cluster("n1", ["5", "9"], true), "", 0, "done", "h2"),
        (cluster("n1", ["5", "9"], true), ", require_automatic_mode = true", 5, "it is paused", ""),
        (cluster("n2", ["5", "9"], true), ", require_automatic_mode = true", 0, "skipped-gate", ""),
        (none, ", require_replica = true", 5, "no replica is online", ""),
        (vec![("/leader", 500, String::new())], "", 5, "status 500", ""),
        (
            vec![("/leader", 200, String::new()), ("/patroni", 200, "x".into()), ("/cluster", 200, "<html>".into())],
            "",
            5,
            "not an answer",
            "",
        ),
        (Vec::new(), ", timeout = '500ms'", 5, "no answer in time", ""),
    ] {
        let mut job = Job::new("gate-patroni");
        let answers: Answers = Arc::new(Mutex::new(answers));
        job.keys = format!("gate = {{ kind = 'patroni', tries = 1, url = '{}'{keys} }}", patroni(&answers));
        let ran = job.bk().run();
        assert_eq!(ran.code(), code, "{keys} {what}\n{}", ran.show());
        let ran = ran.says(what);
        assert_eq!(job.snapshots(), usize::from(what == "done"), "{keys}\n{}", ran.show());
        if what == "done" {
            let host = format!("BK_DATASOURCE_HOST={datasource}");
            assert!(stream_env(&job).lines().any(|line| line == host), "{keys}: {host}\n{}", stream_env(&job));
        }
    }
    let mut job = Job::new("gate-patroni");
    job.keys = "gate = { kind = 'patroni', tries = 2, url = 'http://127.0.0.1:1' }".to_owned();
    job.bk().run().code_is(&[5]).says("(try 1 of 2)");
}

#[test]
fn a_leader_that_changes_in_the_middle_keeps_nothing() {
    for (own, keys, then) in [
        ("n1", "", cluster("n2", ["5", "9"], false)),
        ("n2", ", coordinator = 'datasource'", cluster("n1", ["5", "9"], false)),
    ] {
        let mut job = Job::new("gate-switch");
        let answers: Answers = Arc::new(Mutex::new(cluster(own, ["5", "9"], false)));
        job.keys = format!("gate = {{ kind = 'patroni', tries = 1, url = '{}'{keys} }}", patroni(&answers));
        job.mode("run stream", "stop");
        let running = job.bk().spawn();
        job.wait_for_stop();
        *answers.lock().unwrap() = then;
        job.go();
        running.finish().code_is(&[6]).says("lost-role");
        assert!(job.snapshots() == 0 && job.entered().is_empty());
    }
}

//! The examples of `docs/examples`, each run from end to end with stand-ins for its commands: the exact order of all calls when it goes
//! well, when each of them fails in each way, and after a kill -9 at each of them.

use std::collections::BTreeSet;
use std::fs;
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};

use crate::gates::{Answers, cluster, patroni};
use crate::support::example::{Example, mount_point_of};
use crate::support::rng::Rng;
use crate::support::tools::write_program;
use crate::support::{Bk, list};

/// What is run and what it runs, in order.
struct Case {
    make: fn() -> Example,
    order: &'static [&'static str],
}

const CLUSTER: Case = Case {
    make: || {
        let mut example = Example::new("cluster.toml", "cluster", &[("s3://backups/db", "WORLD/volume")]);
        example.at(&["volume", "backups"]).unwrap().remove("endpoint");
        let answers: Answers = Arc::new(Mutex::new(cluster("n1", ["7", "3"], false)));
        example.at(&["job", "cluster", "gate"]).unwrap().insert("url".to_owned(), patroni(&answers).into());
        example.at(&["job", "cluster"]).unwrap().remove("min_interval");
        example.words = "--offline".to_owned();
        example
    },
    order: &[
        "offline enter: datasource offline",
        "run stream: pg_dump -h h3 -p 5433 -U backup shop",
        "offline leave: datasource online",
    ],
};

/// The tree of a control node, and what the configuration names of it.
fn control() -> Example {
    let mut example = Example::new("control-nodes.toml", "control", &[("/srv/bk", "WORLD/volume")]);
    let src = example.world.src.clone();
    for dir in [
        "var/log",
        "usr/lib/php4",
        "cassatt/images/CollageIdle",
        "cassatt/images/own",
        "cassatt/database/pgdata",
        "proc",
    ] {
        fs::create_dir_all(src.join(dir)).unwrap();
        fs::write(src.join(dir).join("file"), format!("in {dir}")).unwrap();
    }
    for name in ["base", "conf"] {
        fs::write(src.join("cassatt").join(name), name).unwrap();
    }
    let mounted = toml::Value::Array(vec![mount_point_of(&src).into()]);
    for path in [&["job", "control"][..], &["job", "control", "role", "active"]] {
        let job = example.at(path).unwrap();
        for one in job["paths"].as_array_mut().unwrap() {
            let relative = one.as_str().unwrap().trim_start_matches('/').to_owned();
            *one = if relative.is_empty() { ".".into() } else { relative.into() };
        }
        job.insert("directory".to_owned(), src.display().to_string().into());
    }
    let active = example.at(&["job", "control", "role", "active"]).unwrap();
    active.insert("require_mount".to_owned(), mounted);
    active.insert("min_files".to_owned(), 4.into());
    example.words = "--node n1".to_owned();
    example.on("active");
    example
}

const CONTROL: Case = Case {
    make: control,
    order: &[
        "run gate: control-role",
        "activities when: control-role --is-active",
        "activities enter: control-activities hold",
        "run stream: pg_dump -Ft -b collage",
        "run regate: control-role",
        "activities leave: control-activities release",
    ],
};

const CONTROL_RESTORE: Case = Case {
    make: || {
        let mut example = control();
        example.act().run().ok();
        let back = example.world.path("back").display().to_string();
        example.restores = true;
        example.set("files", "target", &back);
        example
    },
    order: &[
        "service enter: cccoreservice stop",
        "mount enter: mountpoint -q /cassatt",
        "mount enter: mount /cassatt",
        "database enter: pg_ctl start -w -D /cassatt/database/pgdata",
        "empty enter: dropdb --if-exists collage",
        "empty enter: createdb collage",
        "dump stream: pg_restore -d collage",
        "analyze enter: psql -d collage -c analyze",
        "database leave: pg_ctl stop -D /cassatt/database/pgdata -m fast",
        "service leave: cccoreservice start",
    ],
};

fn media() -> Example {
    let places = [("/srv/bk", "WORLD/volume"), ("/mnt/medium/bk", "WORLD/second/bk"), ("/var/lib/shop", "SRC")];
    let example = Example::new("database-and-media.toml", "shop", &places);
    fs::write(example.world.src.join("table"), "rows").unwrap();
    // The second volume is there only while the medium is.
    Bk::new("volume create").arg(example.world.path("second.away/bk")).run().ok();
    example
}

const MEDIA: Case = Case {
    make: media,
    order: &[
        "medium enter: medium load",
        "medium enter_until: mountpoint -q /mnt/medium",
        "service enter: systemctl stop shop",
        "service leave: systemctl start shop",
        "medium leave: medium unload",
    ],
};

fn storage(job: &str) -> Example {
    let places = [
        ("/srv/bk", "WORLD/volume"),
        ("/dev/mapper/shared-transaction-copy", "SRC/copy"),
        ("/dev/mapper/shared-transaction", "SRC/device"),
    ];
    let example = Example::new("shared-storage.toml", job, &places);
    let mut rng = Rng::new(7);
    for name in ["device", "copy"] {
        fs::write(example.world.src.join(name), rng.noise(1_500_000)).unwrap();
    }
    ["mounted", "online"].into_iter().for_each(|flag| example.on(flag));
    example
}

const STORAGE: Case = Case {
    make: || storage("transaction"),
    order: &[
        "run gate: app-is-online",
        "maintenance enter: hvutil -m on app",
        "transaction when: mountpoint -q /transaction",
        "transaction enter: umount /transaction",
        "transaction enter_until: hvassert -s transaction fs-transaction Offline",
        "run regate: app-is-online",
        "transaction leave: mount /transaction",
        "transaction leave_until: hvassert -s transaction fs-transaction Online",
        "maintenance leave: hvutil -m off app",
    ],
};

const STORAGE_STOPPED: Case = Case {
    make: || {
        let mut example = storage("transaction");
        example.set_state(&[]);
        example.words = "--agent stopped".to_owned();
        example
    },
    order: &[
        "run gate: app-is-stopped",
        "disk enter: shared-disk enable",
        "run regate: app-is-stopped",
        "disk leave: shared-disk disable",
    ],
};

const STORAGE_STOPPED_RESTORE: Case = Case {
    make: || {
        let mut example = (STORAGE_STOPPED.make)();
        example.act().run().ok();
        example.restores = true;
        example
    },
    order: &[
        "disk enter: shared-disk enable",
        "volume stream: dd of=/src/device bs=1M iflag=fullblock conv=fsync,nocreat",
        "disk leave: shared-disk disable",
    ],
};

const STORAGE_COPY: Case = Case {
    make: || {
        let example = storage("transaction-copy");
        example.on("synchronous");
        example
    },
    order: &[
        "run gate: app-is-online",
        "synchronous enter: swststartsync /src/device",
        "synchronous enter_until: is-equivalent /src/device",
        "maintenance enter: hvutil -m on app",
        "transaction when: mountpoint -q /transaction",
        "transaction enter: umount /transaction",
        "transaction enter_until: hvassert -s transaction fs-transaction Offline",
        "detached enter: copy-detach /src/device",
        "run regate: app-is-online",
        "detached leave: copy-resume /src/device",
        "transaction leave: mount /transaction",
        "transaction leave_until: hvassert -s transaction fs-transaction Online",
        "maintenance leave: hvutil -m off app",
    ],
};

const STORAGE_RESTORE: Case = Case {
    make: || {
        let mut example = storage("transaction");
        example.act().run().ok();
        example.restores = true;
        example
    },
    order: &[
        "maintenance enter: hvutil -m on app",
        "transaction when: mountpoint -q /transaction",
        "transaction enter: umount /transaction",
        "transaction enter_until: hvassert -s transaction fs-transaction Offline",
        "volume stream: dd of=/src/device bs=1M iflag=fullblock conv=fsync,nocreat",
        "transaction leave: mount /transaction",
        "transaction leave_until: hvassert -s transaction fs-transaction Online",
        "maintenance leave: hvutil -m off app",
    ],
};

fn levels() -> Example {
    let places = [
        ("s3://cloud-data/my-database", "WORLD/volume"),
        ("/archive/r0001", "WORLD/second"),
        ("/exa/data/my-database", "SRC"),
    ];
    let example = Example::new("database-levels.toml", "my-database", &places);
    fs::write(example.world.src.join("data"), "rows").unwrap();
    Bk::new("volume create").arg(example.world.path("second")).run().ok();
    example
}

const LEVELS: Case = Case {
    make: levels,
    order: &["suspended enter: db-suspend MY_DATABASE", "suspended leave: db-resume MY_DATABASE"],
};

fn key(line: &str) -> &str {
    line.split(':').next().unwrap()
}

fn name(line: &str) -> &str {
    line.split(' ').next().unwrap()
}

impl Case {
    fn keys(&self) -> Vec<&'static str> {
        let mut keys: Vec<&str> = self.order.iter().map(|line| key(line)).collect();
        keys.dedup();
        keys
    }

    /// Lines up to the first one of `at`.
    fn till(&self, at: &str) -> &'static [&'static str] {
        &self.order[..=self.order.iter().position(|line| key(line) == at).unwrap()]
    }

    /// Names of steps that are begun when `at` runs.
    fn begun(&self, at: &str) -> BTreeSet<&'static str> {
        let entered = |line: &&&str| key(line).ends_with(" enter") || key(line).ends_with(" enter_until");
        self.till(at).iter().filter(entered).map(|line| name(line)).collect()
    }

    /// What is run when `at` fails.
    fn failing(&self, at: &str) -> Vec<&'static str> {
        let mut order = self.till(at).to_vec();
        let begun = self.begun(at);
        let is_leave = |line: &str| key(line).ends_with(" leave") || key(line).ends_with(" leave_until");
        for line in &self.order[order.len()..] {
            // What follows a leave of the same step is not asked when that failed.
            let is_stuck = name(line) == name(at) && at.ends_with(" leave");
            if is_leave(line) && begun.contains(name(line)) && key(line) != at && !is_stuck {
                order.push(line);
            }
        }
        order
    }

    /// Everything but what the step `at` belongs to.
    fn without(&self, at: &str) -> Vec<&'static str> {
        self.order.iter().copied().filter(|line| name(line) != name(at) || key(line) == at).collect()
    }

    fn goes_well(&self) -> Example {
        let example = (self.make)();
        let before = example.state();
        let ran = example.act().run().ok();
        assert_eq!(example.order(), self.order, "{}", ran.show());
        assert_eq!(ran.json().pop().unwrap()["exit"], 0);
        assert!(example.journals() == 0 && example.watchers().is_empty());
        for flag in ["maintenance", "stopped", "held", "suspended", "offline", "detached", "database", "disk"] {
            assert!(!example.state().contains(&flag.to_owned()), "{flag} is left");
        }
        for flag in before {
            assert!(example.state().contains(&flag), "{flag} is gone");
        }
        example
    }

    fn each_fails(&self) {
        for at in self.keys() {
            for fault in ["fail", "kill", "hang", "missing"] {
                self.fails(at, fault);
            }
        }
    }

    fn fails(&self, at: &str, fault: &str) {
        let (step, phase) = at.split_once(' ').unwrap();
        // Both asks of a gate are one command.
        if (step, phase, fault) == ("run", "regate", "missing") {
            return;
        }
        let mut example = (self.make)();
        // What a snapshot before it left in the log is none of it.
        let before = example.snapshots();
        match fault {
            "missing" => example.take_away(at),
            _ => example.mode(at, fault),
        }
        if fault == "hang" {
            match (step, phase) {
                ("run", "stream") => example.each_stream(|stream| {
                    stream.insert("timeout".to_owned(), "2s".into());
                }),
                ("run", _) => {
                    _ = example.gate().insert("timeout".to_owned(), "500ms".into());
                }
                _ => example.set(step, "timeout", "1s"),
            }
        }
        let what = format!("{at}: {fault}");
        let ran = example.act().run();
        if fault == "missing" && phase.starts_with("leave") {
            // What cannot be left is not begun.
            let entered = format!("{step} enter");
            assert!(example.order().iter().all(|line| key(line) != entered), "{what}\n{}", ran.show());
            assert_eq!((example.journals(), example.snapshots()), (0, before), "{what}");
            assert_eq!(ran.code(), if !example.restores && example.is_media(step) { 4 } else { 7 }, "{what}");
            return;
        }
        let is_skip = phase == "when" && fault == "fail";
        let code = match (step, phase) {
            _ if is_skip => 0,
            ("run", "stream") => 1,
            ("run", _) => 5,
            _ if !example.restores && example.is_media(step) => 4,
            _ => 7,
        };
        assert_eq!(ran.code(), code, "{what}\n{}", ran.show());
        let mut order = if is_skip { self.without(at) } else { self.failing(at) };
        // `mountpoint … || mount …`: what cannot be asked is tried.
        if at == "mount enter" && matches!(fault, "fail" | "kill") {
            order.insert(self.till(at).len(), "mount enter: mount /cassatt");
        }
        if fault == "missing" {
            order.retain(|line| key(line) != at);
        }
        assert_eq!(example.order(), order, "{what}\n{}", ran.show());
        assert_eq!(ran.json().pop().unwrap()["exit"], code, "{what}");
        let is_stuck = phase.starts_with("leave");
        let is_taken = !example.restores && (is_stuck || is_skip);
        assert_eq!(example.snapshots(), before + usize::from(is_taken), "{what}");
        assert_eq!(example.journals(), usize::from(is_stuck), "{what}");
        if is_stuck {
            // It is told that it is not left, and left as soon as it can be.
            example.recover().run().code_is(&[7]).says("--forget");
            example.act().run().code_is(&[7]).says("what an earlier run had begun is not left");
        }
        example.well(at);
        if is_stuck {
            example.recover().run().ok();
        }
        assert_eq!(example.journals(), 0, "{what}");
        for flag in ["maintenance", "stopped", "held", "suspended", "offline", "detached", "database", "disk"] {
            assert!(!example.state().contains(&flag.to_owned()), "{what}: {flag} is left");
        }
    }

    /// Kills bk while `at` is at work, and its watcher too when `with_watcher`.
    fn killed(&self, at: &str, with_watcher: bool) -> Example {
        let example = (self.make)();
        example.mode(at, "stop");
        let mut running = example.act().spawn();
        example.wait_for_stop();
        // The one at work goes on waiting; what is run from now on does not.
        example.well(at);
        if with_watcher {
            for pid in example.watchers() {
                _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
            }
            running.signal(Signal::KILL);
            running.child.wait().unwrap();
        } else {
            running.signal(Signal::KILL);
            // The outputs are open as long as the watcher lives: this waits for it.
            running.finish().code_is(&[137]);
        }
        example
    }

    fn each_is_killed(&self) {
        for at in self.keys() {
            for with_watcher in [false, true] {
                let what = format!("{at}, {}", if with_watcher { "by recover" } else { "by the watcher" });
                let example = self.killed(at, with_watcher);
                for _ in 0..2 {
                    example.recover().run().ok();
                    self.is_left(&example, at, &what);
                }
                example.go();
                example.act_on().run().ok();
                let order = example.order();
                assert!(
                    order.ends_with(&self.order.iter().map(|&line| line.to_owned()).collect::<Vec<_>>())
                        || self.is_mounted(&order),
                    "{what}: {order:?}"
                );
            }
        }
    }

    /// A restore that is begun again finds mounted what the first one mounted.
    fn is_mounted(&self, order: &[String]) -> bool {
        let less: Vec<&str> =
            self.order.iter().copied().filter(|line| *line != "mount enter: mount /cassatt").collect();
        less.len() < self.order.len() && order.ends_with(&less.iter().map(|&line| line.to_owned()).collect::<Vec<_>>())
    }

    /// Each step that was begun is left, and once only when the end of that was noted.
    fn is_left(&self, example: &Example, at: &str, what: &str) {
        let begun = self.begun(at);
        for leave in self.keys().into_iter().filter(|key| key.ends_with(" leave")) {
            let step = name(leave);
            let expected = match begun.contains(step) {
                false => (0, 0),
                // It was begun, killed, and run again.
                true if leave == at => (2, 1),
                // A step is left when its waiting has ended, too: till then none of it is noted.
                true if at == format!("{leave}_until") => (2, 2),
                true => (1, 1),
            };
            assert_eq!(example.count(leave), expected, "{what}: {leave}: {:?}", example.order());
        }
        assert_eq!(example.journals(), 0, "{what}");
    }
}

#[test]
fn a_cluster_goes_well() {
    let example = CLUSTER.goes_well();
    let names = list(&example.world.volume);
    assert_eq!(names, ["cluster/1"]);
    // Without the option nothing is taken offline; with it in the configuration it need not be typed.
    let mut plain = (CLUSTER.make)();
    plain.words = String::new();
    plain.act().run().ok();
    assert_eq!(plain.order(), ["run stream: pg_dump -h h3 -p 5433 -U backup shop"]);
    plain.at(&["job", "cluster"]).unwrap().insert("offline".to_owned(), true.into());
    plain.act().run().ok();
    assert_eq!(plain.order(), CLUSTER.order);
    plain.words = "--offline=false --datasource n2".to_owned();
    plain.act().run().ok();
    assert_eq!(plain.order(), ["run stream: pg_dump -h h2 -p 5432 -U backup shop"]);
    plain.bk("check cluster").run().ok().says("cluster/3 of level 0");
    // A node that is not the leader leaves quietly; a paused cluster is an error, and nothing was touched.
    for (own, paused, code, says) in [("n2", false, 0, "skipped-gate"), ("n1", true, 5, "it is paused")] {
        let mut example = (CLUSTER.make)();
        let answers: Answers = Arc::new(Mutex::new(cluster(own, ["7", "3"], paused)));
        example.at(&["job", "cluster", "gate"]).unwrap().insert("url".to_owned(), patroni(&answers).into());
        example.act().run().code_is(&[code]).says(says);
        assert!(example.order().is_empty() && example.snapshots() == 0);
    }
}

#[test]
fn a_cluster_fails_and_is_killed() {
    CLUSTER.each_fails();
    CLUSTER.each_is_killed();
}

#[test]
fn control_nodes_go_well() {
    let mut example = CONTROL.goes_well();
    let names = example.bk("ls -R control.n1/latest").run().ok().text();
    assert!(names.contains("cassatt/conf") && names.contains("var/log/file"), "{names}");
    assert!(!names.contains("images/own") && !names.contains("pgdata/file") && !names.contains("proc/file"), "{names}");
    // The other node stores all but what is shared, under a name of its own, and no dump.
    example.set_state(&[]);
    example.words = "--node n2".to_owned();
    example.act().run().ok();
    assert_eq!(
        example.order(),
        ["run gate: control-role", "activities when: control-role --is-active", "run regate: control-role"]
    );
    let names = example.bk("ls -R control.n2/latest").run().ok().text();
    assert!(!names.contains("cassatt/conf") && names.contains("var/log/file"), "{names}");
}

#[test]
fn control_nodes_fail_and_are_killed() {
    CONTROL.each_fails();
    CONTROL.each_is_killed();
}

#[test]
fn control_nodes_are_restored() {
    let example = CONTROL_RESTORE.goes_well();
    let back = example.world.path("back");
    assert_eq!(fs::read_to_string(back.join("cassatt/conf")).unwrap(), "conf");
    assert!(!back.join("var").exists() && !back.join("cassatt/images/CollageIdle").exists());
    let given = fs::read(example.base.join("given")).unwrap();
    assert!(given.len() == 100_007 && given.starts_with(b"a dump\n"), "{}", given.len());
}

#[test]
fn a_restore_of_control_nodes_fails_and_is_killed() {
    CONTROL_RESTORE.each_fails();
    CONTROL_RESTORE.each_is_killed();
}

#[test]
fn a_database_and_its_medium_go_well() {
    let example = MEDIA.goes_well();
    // The copy was made while the medium was there.
    assert_eq!(list(&example.world.path("second.away/bk")), ["shop/1"]);
    // A copy that fails does not keep the medium from being unloaded, and is told.
    fs::rename(example.world.path("second.away/bk"), example.world.path("second.away/gone")).unwrap();
    example.act().run().code_is(&[4]).says("not copied to medium");
    assert_eq!(example.order(), MEDIA.order);
    assert_eq!(example.snapshots(), 2);
}

#[test]
fn a_database_and_its_medium_fail_and_are_killed() {
    MEDIA.each_fails();
    MEDIA.each_is_killed();
}

#[test]
fn shared_storage_goes_well() {
    let example = STORAGE.goes_well();
    let stored = example.bk("cat transaction/latest --stream transaction").run().ok().stdout;
    assert!(stored == fs::read(example.world.src.join("device")).unwrap(), "the device is not what was stored");
    // What is not mounted is neither unmounted nor mounted; where the application is not online nothing is done.
    example.set_state(&["online".to_owned()]);
    example.act().run().ok();
    let order = STORAGE.without("transaction when");
    assert_eq!(example.order(), order);
    example.set_state(&["mounted".to_owned()]);
    example.act().run().ok().says("skipped-gate");
    assert_eq!(example.order(), ["run gate: app-is-online"]);
    // The logical node continues the job, whichever machine it is on.
    let rows = example.bk("list --json").run().ok().json();
    let nodes: BTreeSet<String> =
        rows.iter().filter(|row| row["type"] == "snapshot").map(|row| row["node"].to_string()).collect();
    assert_eq!(nodes.into_iter().collect::<Vec<_>>(), ["\"app\""]);
}

#[test]
fn shared_storage_fails_and_is_killed() {
    STORAGE.each_fails();
    STORAGE.each_is_killed();
}

#[test]
fn a_stopped_clusters_storage_goes_well() {
    // Taken by the one machine while the cluster runs, and gone on with by the other one while it is stopped.
    let mut example = storage("transaction");
    example.act().run().ok();
    example.set_state(&[]);
    example.words = "--agent stopped".to_owned();
    let device = example.world.src.join("device");
    let mut bytes = fs::read(&device).unwrap();
    bytes[70_000] ^= 1;
    fs::write(&device, &bytes).unwrap();
    // The disk is enabled by the one that has the lease, and by no other.
    example.mode("disk enter", "stop");
    let first = example.act().arg("--level").arg("1").env("BK_NODE", "app").spawn();
    example.wait_for_stop();
    let second = example.act_on().env("BK_STATE_DIR", example.world.path("other-state")).run().ok();
    assert_eq!(second.json().pop().unwrap()["outcome"], "skipped-running", "{}", second.show());
    example.go();
    let result = first.finish().ok().json().pop().unwrap();
    assert_eq!((&result["level"], &result["base"]), (&1.into(), &1.into()), "{result}");
    assert_eq!(example.count("disk enter"), (1, 1));
    assert!(!example.state().contains(&"disk".to_owned()));
    let stored = example.bk("cat transaction/latest --stream transaction").run().ok().stdout;
    assert!(stored == bytes, "the device is not what was stored");
    // Where it is online again nothing is enabled.
    example.on("online");
    example.act().run().ok().says("skipped-gate");
    assert_eq!(example.order(), ["run gate: app-is-stopped"]);
}

#[test]
fn a_stopped_clusters_storage_fails_and_is_killed() {
    STORAGE_STOPPED.each_fails();
    STORAGE_STOPPED.each_is_killed();
    STORAGE_STOPPED_RESTORE.goes_well();
    STORAGE_STOPPED_RESTORE.each_fails();
    STORAGE_STOPPED_RESTORE.each_is_killed();
}

#[test]
fn each_cluster_of_several_has_its_own_backup() {
    let base = (CLUSTER.make)();
    let node = |cluster_name: &str, own: &str| {
        let answers: Answers = Arc::new(Mutex::new(cluster(own, ["7", "3"], false)));
        let mut table = base.table.clone();
        let jobs = table["job"].as_table_mut().unwrap();
        let mut job = jobs.remove("cluster").unwrap();
        job["gate"].as_table_mut().unwrap().insert("url".to_owned(), patroni(&answers).into());
        jobs.insert(format!("cluster-{cluster_name}"), job);
        table.insert("state_dir".to_owned(), base.world.path(&format!("state-{own}")).display().to_string().into());
        let file = base.world.path(&format!("{cluster_name}-{own}.toml"));
        fs::write(&file, toml::to_string(&table).unwrap()).unwrap();
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        base.bk(&format!("snapshot --json cluster-{cluster_name}")).env("BK_CONFIG", file).env("BK_NODE", own).spawn()
    };
    let running: Vec<_> =
        ["east", "west"].iter().flat_map(|name| ["n1", "n2", "n3"].map(|own| node(name, own))).collect();
    let ended: Vec<String> =
        running.into_iter().map(|one| one.finish().ok().json().pop().unwrap()["outcome"].to_string()).collect();
    assert_eq!(ended.iter().filter(|outcome| *outcome == "\"done\"").count(), 2, "{ended:?}");
    assert_eq!(list(&base.world.volume), ["cluster-east/1", "cluster-west/1"]);
}

#[test]
fn a_synchronous_copy_goes_well() {
    let example = STORAGE_COPY.goes_well();
    let stored = example.bk("cat transaction-copy/latest --stream transaction").run().ok().stdout;
    assert!(stored == fs::read(example.world.src.join("copy")).unwrap(), "the copy is not what was stored");
}

#[test]
fn a_synchronous_copy_fails_and_is_killed() {
    STORAGE_COPY.each_fails();
    STORAGE_COPY.each_is_killed();
}

#[test]
fn shared_storage_is_restored() {
    let example = (STORAGE_RESTORE.make)();
    let device = example.world.src.join("device");
    let before = fs::read(&device).unwrap();
    fs::write(&device, vec![0; before.len()]).unwrap();
    let ran = example.act().run().ok();
    assert_eq!(example.order(), STORAGE_RESTORE.order, "{}", ran.show());
    assert!(fs::read(&device).unwrap() == before, "the device is not what was stored");
}

#[test]
fn a_restore_of_shared_storage_fails_and_is_killed() {
    STORAGE_RESTORE.each_fails();
    STORAGE_RESTORE.each_is_killed();
}

#[test]
fn levels_and_expiry_are_administered() {
    let mut example = LEVELS.goes_well();
    let bk = |words: &str| example.bk(words);
    let shown = bk("config show").run().ok().text();
    assert!(shown.contains("volume r0001") && shown.contains("job my-database"), "{shown}");
    bk("volume info r0001").run().ok().says("id ");
    let rows = bk("volume list --json").run().ok().json();
    let id = |n: usize| rows[n]["id"].as_str().unwrap().len();
    assert_eq!((&rows[1]["name"], id(0), id(1), rows.len()), (&"r0001".into(), 32, 32, 3), "{rows:?}");
    bk("volume list").run().ok().says("r0001").says("the local archive volume");
    let taken = bk("snapshot my-database --volume r0001 --level 0 --expire").arg("1w 3d").run().ok();
    taken.says("my-database/1");
    bk("list my-database --volume r0001").run().ok().says("my-database/1");
    bk("snapshot my-database --level 1").run().ok();
    bk("expire --set my-database/2 4w").run().ok();
    bk("status").run().ok();
    bk("abort my-database").run().code_is(&[1]).says("no run of my-database");
    let rows = bk("list --json").run().ok().json();
    let levels: Vec<u64> = rows.iter().filter_map(|row| row["level"].as_u64()).collect();
    assert_eq!(levels, [0, 1]);
    // What is past its time goes after the next run, when the job says so.
    bk("expire --set my-database/2 2020-01-01").run().ok();
    example.at(&["job", "my-database"]).unwrap().insert("expire_after".to_owned(), true.into());
    let ran = example.bk("snapshot my-database --level 1 --json").run().ok();
    assert_eq!(ran.json().pop().unwrap()["expired"]["expired"], 1, "{}", ran.show());
    assert_eq!(example.snapshots(), 2);
}

#[test]
fn levels_fail_and_are_killed() {
    LEVELS.each_fails();
    LEVELS.each_is_killed();
}

/// Both users are told in the example: the dump's and the steps of the runbook.
#[test]
fn a_step_runs_as_its_user() {
    if !crate::support::tools::need_root("a_step_runs_as_its_user") {
        return;
    }
    let mut example = (LEVELS.make)();
    example.set("suspended", "user", "nobody");
    let who = example.base.join("state/who");
    let script = format!("#!/bin/sh\nid -un > {0}; echo \"$HOME $USER\" >> {0}; id -Gn >> {0}\n", who.display());
    let program = example.base.join("bin/db-suspend");
    fs::remove_file(&program).unwrap();
    write_program(&program, &script);
    example.act().run().ok();
    let said = fs::read_to_string(&who).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "nobody", "{said}");
    assert!(lines[1].ends_with(" nobody") && lines[2] == "nogroup", "{said}");
    // A user that is not there, and who is not root, are told before anything is run.
    example.set("suspended", "user", "no-such-user-at-all");
    example.act().run().code_is(&[2]).says("there is no user `no-such-user-at-all`");
    assert!(example.order().is_empty());
}

/// The README's way for a newcomer: its configuration and its commands, as they stand there.
#[test]
fn a_newcomer_gets_there_by_the_readme() {
    let text = fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let section = text.split_once("\n## A job in a file\n").unwrap().1.split("\n## ").next().unwrap();
    let (file, commands) = section.split_once("\nThen, as root:\n").unwrap();
    let block = |text: &str| -> String {
        text.lines()
            .filter_map(|line| line.strip_prefix("    ").or(line.is_empty().then_some("")))
            .map(|line| format!("{line}\n"))
            .collect()
    };
    let places = [("/srv/bk", "WORLD/first"), ("/mnt/second/bk", "WORLD/second"), ("/var/www", "SRC")];
    let example = Example::of(&block(file), "shop", &places);
    fs::write(example.world.src.join("index.html"), "a page").unwrap();
    example.on("active");
    let commands = block(commands);
    let lines = commands.lines().filter_map(|line| line.split('#').next().unwrap().trim().strip_prefix("bk "));
    let lines: Vec<&str> = lines.collect();
    assert!(lines.len() == 8, "{lines:?}");
    for line in lines {
        example.bk(line).run().ok();
    }
    let order = [
        "run gate: is-active",
        "service enter: systemctl stop shop",
        "run stream: pg_dump shop",
        "run regate: is-active",
        "service leave: systemctl start shop",
    ];
    assert_eq!(example.order(), order);
    for place in ["first", "second"] {
        assert_eq!(list(&example.world.path(place)), ["shop/1"], "{place}");
    }
    // The other node leaves quietly.
    example.set_state(&[]);
    example.bk("snapshot shop").run().ok().says("skipped-gate");
    assert_eq!(list(&example.world.path("first")), ["shop/1"]);
}

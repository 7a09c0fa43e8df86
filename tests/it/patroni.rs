//! Snapshots on a real Patroni cluster: `bk snapshot` from cron on every node, one snapshot for all of them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::patroni::{Cluster, wait};
use crate::support::{Bk, Ran, World, exit};

/// The job as each node has it, and one volume for all.
struct Cron {
    cluster: Cluster,
    world: World,
}

impl Cron {
    /// Two nodes and a table, on all of them.
    fn start(test: &str) -> Option<Self> {
        let cluster = Cluster::start(test, 2)?;
        let world = World::new("patroni-job");
        let leader = cluster.leader().unwrap();
        cluster
            .sql(leader.port, "create table goods as select n, md5(n::text) as what from generate_series(1, 5000) n");
        let cron = Self { cluster, world };
        cron.wait_for_replicas();
        Some(cron)
    }

    fn wait_for_replicas(&self) {
        let count = |port| self.cluster.sql(port, "select coalesce((select count(*) from goods), 0)");
        let leader = self.cluster.leader().unwrap();
        let expected = count(leader.port);
        for node in &self.cluster.nodes {
            wait("a replica to follow", || {
                self.cluster.sql(node.port, "select to_regclass('goods') is not null") == "t"
                    && count(node.port) == expected
            });
        }
    }

    /// The command line on one node: `extra` are keys of its gate, `dump` what the stream's shell does around `pg_dump`.
    fn bk(&self, node: &str, words: &str, extra: &str, before: &str) -> Bk {
        let (rest, dir) = (&self.cluster.node(node).rest, self.world.path(node));
        fs::create_dir_all(&dir).unwrap();
        let volume = self.world.path("volume");
        let text = format!(
            "state_dir = '{dir}/state'\n[volume.v]\nurl = '{volume}'\n\
             [job.shop]\nvolume = 'v'\n\
             [job.shop.gate]\nkind = 'patroni'\nurl = '{rest}'\n{extra}\n\
             [job.shop.stream.shop]\nshell = true\nend_line = '-- PostgreSQL database dump complete'\n\
             command = '''{before} exec pg_dump -h \"$BK_DATASOURCE_HOST\" -p \"$BK_DATASOURCE_PORT\" -U postgres postgres'''\n",
            dir = dir.display(),
            volume = volume.display(),
        );
        let config = dir.join("bk.toml");
        fs::write(&config, text).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
        Bk::new("--json snapshot shop").words(words).env("BK_CONFIG", config).env("BK_NODE", node)
    }

    /// All nodes at once, as from cron: the result of each.
    fn everywhere(&self, words: &str) -> Vec<Value> {
        let running: Vec<_> = ["n1", "n2"].iter().map(|node| self.bk(node, words, "", "").spawn()).collect();
        running.into_iter().map(|one| result(&one.finish().ok())).collect()
    }

    fn replica(&self) -> String {
        self.cluster.members("replica", "streaming").pop().unwrap()
    }

    fn count(&self) -> usize {
        let ran = self.world.bk("--json list").run().ok();
        ran.json().iter().filter(|line| line["type"] == "snapshot").count()
    }
}

fn result(ran: &Ran) -> Value {
    ran.json().pop().unwrap_or_else(|| panic!("no result: {}", ran.show()))
}

/// A dump without the lines that are another each time.
fn plain(dump: &[u8]) -> String {
    let text = String::from_utf8_lossy(dump);
    let lines = text.lines().filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    lines.collect::<Vec<_>>().join("\n")
}

fn dump(port: u16, database: &str) -> Vec<u8> {
    let mut command = Command::new("pg_dump");
    command.args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port.to_string(), database]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Exactly one of them took a snapshot, from the replica.
fn assert_one(results: &[Value], replica: &str, snapshot: &str, level: u64) {
    let of = |outcome: &str| results.iter().filter(|one| one["outcome"] == outcome).collect::<Vec<_>>();
    let (done, skipped) = (of("done"), of("skipped-gate"));
    assert_eq!((done.len(), skipped.len()), (1, results.len() - 1), "{results:?}");
    assert_eq!(done[0]["snapshot"], snapshot, "{results:?}");
    assert_eq!(done[0]["level"], level, "{results:?}");
    assert_eq!(done[0]["datasource"]["name"], replica, "{results:?}");
    assert_eq!(done[0]["datasource"]["role"], "replica", "{results:?}");
}

#[test]
fn one_snapshot_for_all_nodes_whoever_leads() {
    let Some(mut cron) = Cron::start("one_snapshot_for_all_nodes_whoever_leads") else { return };
    assert_one(&cron.everywhere("--level 0"), &cron.replica(), "shop/1", 0);

    // What was stored goes into a fresh PostgreSQL and is the same there.
    let (stored, leader) = (cron.world.bk("cat shop/1 --stream shop").run().ok(), cron.cluster.leader().unwrap().port);
    assert_eq!(plain(&stored.stdout), plain(&dump(leader, "postgres")));
    let fresh = cron.cluster.fresh();
    let mut psql = Command::new("psql");
    psql.args(["-h", "127.0.0.1", "-U", "postgres", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", "postgres", "-p"]);
    let mut psql = psql.arg(fresh.port.to_string()).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    psql.stdin.take().unwrap().write_all(&stored.stdout).unwrap();
    assert!(psql.wait().unwrap().success());
    assert_eq!(plain(&dump(fresh.port, "postgres")), plain(&stored.stdout));
    drop(fresh);

    // The leader dies, its replica takes over: without a replica there is no snapshot, unless the leader will do.
    let (was, now) = (cron.cluster.leader().unwrap().name.clone(), cron.replica());
    cron.cluster.kill(&was);
    wait("the failover", || cron.cluster.leader().is_some_and(|node| node.name == now));
    cron.bk(&now, "--level 1", "", "").run().code_is(&[exit::GATE]).says("no replica is online");
    cron.bk(&now, "--validate --require-replica=false", "", "").run().ok();
    assert_eq!(cron.count(), 1);
    // The old leader comes back as the new replica: it is read, and the chain goes on.
    cron.cluster.revive(&was);
    cron.cluster.sql(cron.cluster.node(&now).port, "insert into goods values (5001, 'new')");
    cron.wait_for_replicas();
    assert_one(&cron.everywhere("--level 1"), &was, "shop/2", 1);
    let stored = cron.world.bk("cat shop/2 --stream shop").run().ok();
    assert_eq!(plain(&stored.stdout), plain(&dump(cron.cluster.node(&now).port, "postgres")));
    assert_eq!(cron.count(), 2);
    cron.world.bk("verify --data").run().ok();
}

#[test]
fn a_paused_cluster_and_a_leader_that_changes_under_way() {
    let Some(cron) = Cron::start("a_paused_cluster_and_a_leader_that_changes_under_way") else { return };
    cron.cluster.pause();
    let leader = cron.cluster.leader().unwrap().name.clone();
    let ran = cron.bk(&leader, "", "require_automatic_mode = true", "").run().code_is(&[exit::GATE]).says("paused");
    assert_eq!(result(&ran)["exit"], exit::GATE);
    assert_eq!(cron.count(), 0);
    cron.bk(&leader, "--level 0", "", "").run().ok();
    cron.cluster.resume();

    // The leader changes while the dump is read: that run's role is lost, and the new leader's run counts.
    let go = cron.world.path("go");
    let at = cron.world.path("at");
    let before = format!("touch {}; while [ ! -e {} ]; do sleep 0.1; done;", at.display(), go.display());
    let running = cron.bk(&leader, "--level 1", "", &before).spawn();
    wait("the dump to begin", || PathBuf::from(&at).exists());
    let new = cron.replica();
    cron.cluster.switchover(&new);
    fs::write(&go, "").unwrap();
    let lost = running.finish().code_is(&[exit::LOST]);
    assert_eq!(result(&lost)["outcome"], "lost-role", "{}", lost.show());
    assert_eq!(cron.count(), 1);
    assert_one(&cron.everywhere("--level 1"), &leader, "shop/2", 1);
    assert_eq!(cron.count(), 2);
}

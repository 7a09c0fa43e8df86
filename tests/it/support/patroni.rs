//! A real PostgreSQL cluster on loopback: etcd, and Patroni nodes that each run a PostgreSQL, all started and stopped here.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::tools::skip;

const SCOPE: &str = "shop";
const BIN: &str = "/usr/lib/postgresql/15/bin";
/// A cluster that is not up after this long will not be, seconds.
const PATIENCE_S: u64 = 240;

/// One node.
pub struct Node {
    pub name: String,
    /// `http://127.0.0.1:PORT`, where Patroni answers.
    pub rest: String,
    pub port: u16,
    child: Option<Child>,
}

/// The cluster; it ends with this value.
pub struct Cluster {
    pub nodes: Vec<Node>,
    dir: TempDir,
    etcd: Child,
    etcd_port: u16,
}

/// A PostgreSQL of its own; it ends with this value.
pub struct Server {
    pub port: u16,
    child: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends its clients, and leaves no shared memory behind.
        if let Some(child) = self.child.take() {
            end(child, rustix::process::Signal::INT);
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Body of a GET, and its status.
pub fn get(url: &str) -> Option<(u16, String)> {
    let rest = url.strip_prefix("http://")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut socket = TcpStream::connect(host).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    write!(socket, "GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n").ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    let status = answer.split_whitespace().nth(1)?.parse().ok()?;
    Some((status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
}

/// Waits until `done`, else says what was waited for.
pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..PATIENCE_S * 5 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    panic!("waited in vain: {what}");
}

/// What every process of the cluster is run as: PostgreSQL refuses root.
fn as_postgres(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program.as_ref());
    command.env("HOME", "/var/lib/postgresql");
    command
}

impl Node {
    /// Whether its PostgreSQL takes connections.
    fn answers(&self) -> bool {
        let mut command = Command::new(format!("{BIN}/pg_isready"));
        command.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]).status().is_ok_and(|s| s.success())
    }
}

impl Cluster {
    /// A cluster of `count` nodes with a leader and streaming replicas; says `SKIP` where it cannot be had.
    pub fn start(test: &str, count: usize) -> Option<Self> {
        let means = [format!("{BIN}/postgres"), "/usr/bin/patroni".into(), "/usr/bin/etcd".into()];
        if let Some(absent) = means.iter().find(|path| !Path::new(path).exists()) {
            skip(test, &format!("{absent} is not installed"));
            return None;
        }
        if !rustix::process::geteuid().is_root() {
            skip(test, "needs root to become postgres");
            return None;
        }
        let dir = super::temp_dir("patroni");
        Command::new("chown").arg("postgres:postgres").arg(dir.path()).status().unwrap();
        let (etcd, etcd_port) = start_etcd(dir.path());
        let mut cluster = Self { nodes: Vec::new(), dir, etcd, etcd_port };
        for n in 1..=count {
            cluster.add(n);
            if n == 1 {
                wait("the first leader", || cluster.leader().is_some());
            }
        }
        wait("replicas that stream", || cluster.members("replica", "streaming").len() == count - 1);
        wait("all to answer", || cluster.nodes.iter().all(Node::answers));
        Some(cluster)
    }

    fn add(&mut self, number: usize) {
        let (rest_port, port) = (free_port(), free_port());
        let node =
            Node { name: format!("n{number}"), rest: format!("http://127.0.0.1:{rest_port}"), port, child: None };
        fs::write(self.config(&node.name), self.yaml(&node, rest_port)).unwrap();
        self.nodes.push(node);
        self.run(number - 1);
    }

    fn config(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.yml"))
    }

    fn yaml(&self, node: &Node, rest_port: u16) -> String {
        let (dir, name, port, etcd) = (self.dir.path().display(), &node.name, node.port, self.etcd_port);
        format!(
            "scope: {SCOPE}\nname: {name}\n\
             restapi: {{listen: '127.0.0.1:{rest_port}', connect_address: '127.0.0.1:{rest_port}'}}\n\
             etcd3: {{host: '127.0.0.1:{etcd}'}}\n\
             bootstrap:\n\
             \x20 dcs: {{ttl: 20, loop_wait: 2, retry_timeout: 5}}\n\
             \x20 initdb: [{{auth-local: trust}}, {{auth-host: trust}}, {{encoding: UTF8}}]\n\
             \x20 pg_hba: ['local all all trust', 'host all all 127.0.0.1/32 trust', 'host replication all 127.0.0.1/32 trust']\n\
             postgresql:\n\
             \x20 listen: '127.0.0.1:{port}'\n\
             \x20 connect_address: '127.0.0.1:{port}'\n\
             \x20 data_dir: '{dir}/{name}'\n\
             \x20 remove_data_directory_on_diverged_timelines: true\n\
             \x20 bin_dir: '{BIN}'\n\
             \x20 pgpass: '{dir}/{name}.pgpass'\n\
             \x20 authentication:\n\
             \x20   superuser: {{username: postgres, password: test}}\n\
             \x20   replication: {{username: replicator, password: test}}\n\
             \x20 parameters: {{unix_socket_directories: '{dir}', fsync: 'off', max_connections: 40}}\n"
        )
    }

    /// Starts a node that does not run.
    pub fn run(&mut self, number: usize) {
        let node = &self.nodes[number];
        let log = fs::File::create(self.dir.path().join(format!("{}.log", node.name))).unwrap();
        let mut command = as_postgres("/usr/bin/patroni");
        command.arg(self.config(&node.name)).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.nodes[number].child = Some(command.spawn().unwrap());
    }

    /// Stops a node: its Patroni, which stops its PostgreSQL.
    pub fn stop(&mut self, number: usize) {
        if let Some(child) = self.nodes[number].child.take() {
            end(child, rustix::process::Signal::TERM);
        }
    }

    /// Ends a node without a word to the others: Patroni is killed, PostgreSQL ends at once.
    pub fn kill(&mut self, name: &str) {
        let node = self.nodes.iter_mut().find(|node| node.name == name).unwrap();
        let mut patroni = node.child.take().unwrap();
        patroni.kill().unwrap();
        patroni.wait().unwrap();
        let pid = fs::read_to_string(self.dir.path().join(name).join("postmaster.pid")).unwrap();
        let pid = rustix::process::Pid::from_raw(pid.lines().next().unwrap().trim().parse().unwrap()).unwrap();
        // At once and without a checkpoint, but it takes its shared memory with it.
        rustix::process::kill_process(pid, rustix::process::Signal::QUIT).unwrap();
    }

    /// Starts a node again that was killed, and waits until it follows.
    pub fn revive(&mut self, name: &str) {
        let number = self.nodes.iter().position(|node| node.name == name).unwrap();
        self.run(number);
        let others = self.nodes.iter().filter(|node| node.child.is_some()).count() - 1;
        wait("the node to follow", || self.members("replica", "streaming").len() == others);
        wait("the node to answer", || self.nodes.iter().all(|node| node.child.is_none() || node.answers()));
    }

    /// A PostgreSQL that has nothing to do with the cluster, new and empty.
    pub fn fresh(&self) -> Server {
        let (data, port) = (self.dir.path().join("fresh"), free_port());
        let init = as_postgres(format!("{BIN}/initdb"))
            .args(["-A", "trust", "-E", "UTF8", "--no-sync", "-D"])
            .arg(&data)
            .output();
        let init = init.unwrap();
        assert!(init.status.success(), "initdb: {}", String::from_utf8_lossy(&init.stderr));
        let log = fs::File::create(self.dir.path().join("fresh.log")).unwrap();
        let mut command = as_postgres(format!("{BIN}/postgres"));
        command.arg("-D").arg(&data).arg("-k").arg(self.dir.path()).args([
            "-F",
            "-p",
            &port.to_string(),
            "-h",
            "127.0.0.1",
        ]);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let node = Node { name: "fresh".to_owned(), rest: String::new(), port, child: None };
        wait("the fresh server", || node.answers());
        Server { port, child: Some(child) }
    }

    /// The cluster as a node that answers sees it.
    pub fn view(&self) -> Option<Value> {
        let running = self.nodes.iter().filter(|node| node.child.is_some());
        running.into_iter().find_map(|node| {
            let (status, body) = get(&format!("{}/cluster", node.rest))?;
            (status == 200).then(|| serde_json::from_str(&body).ok()).flatten()
        })
    }

    /// Names of the members with this role and state.
    pub fn members(&self, role: &str, state: &str) -> Vec<String> {
        let view = self.view().unwrap_or_default();
        let members = view["members"].as_array().cloned().unwrap_or_default();
        let wanted = members.iter().filter(|m| {
            let is_state = m["state"] == state || state == "streaming" && m["state"] == "running";
            m["role"] == role && is_state
        });
        wanted.map(|m| m["name"].as_str().unwrap().to_owned()).collect()
    }

    /// The leader, when there is one that runs.
    pub fn leader(&self) -> Option<&Node> {
        let name = self.members("leader", "running").pop()?;
        self.nodes.iter().find(|node| node.name == name)
    }

    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).unwrap()
    }

    fn patronictl(&self, words: &[&str]) {
        let mut command = as_postgres("/usr/bin/patronictl");
        let output = command.arg("-c").arg(self.config("n1")).args(words).output().unwrap();
        assert!(output.status.success(), "patronictl {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn pause(&self) {
        self.patronictl(&["pause", "--wait", SCOPE]);
    }

    pub fn resume(&self) {
        self.patronictl(&["resume", "--wait", SCOPE]);
    }

    /// Makes `to` the leader, and waits until the old one follows.
    pub fn switchover(&self, to: &str) {
        let from = self.leader().unwrap().name.clone();
        self.patronictl(&["switchover", SCOPE, "--master", &from, "--candidate", to, "--force"]);
        wait("the new leader", || self.leader().is_some_and(|node| node.name == to));
        let others = self.nodes.iter().filter(|node| node.child.is_some()).count() - 1;
        wait("the old leader to answer", || self.nodes.iter().all(|node| node.child.is_none() || node.answers()));
        wait("the old leader to follow", || self.members("replica", "streaming").len() == others);
    }

    /// Runs SQL on a node; gives what it printed.
    pub fn sql(&self, port: u16, sql: &str) -> String {
        let mut command = Command::new(format!("{BIN}/psql"));
        command.args(["-h", "127.0.0.1", "-U", "postgres", "-XAtq", "-v", "ON_ERROR_STOP=1", "-p"]);
        let output = command.arg(port.to_string()).args(["-c", sql]).output().unwrap();
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

/// A store that answers. A port that was free can be another's by the time it is bound: then it is begun anew with others.
fn start_etcd(dir: &Path) -> (Child, u16) {
    loop {
        let (port, peer_port) = (free_port(), free_port());
        let mut etcd = run_etcd(dir, port, peer_port);
        let mut has_ended = false;
        let health = format!("http://127.0.0.1:{port}/health");
        wait("etcd", || {
            has_ended = etcd.try_wait().unwrap().is_some();
            has_ended || get(&health).is_some_and(|(status, _)| status == 200)
        });
        if !has_ended {
            return (etcd, port);
        }
        drop(fs::remove_dir_all(dir.join("etcd")));
    }
}

fn run_etcd(dir: &Path, port: u16, peer_port: u16) -> Child {
    let log = fs::File::create(dir.join("etcd.log")).unwrap();
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    let mut command = Command::new("/usr/bin/etcd");
    command.arg("--data-dir").arg(dir.join("etcd"));
    for (name, value) in [
        ("--listen-client-urls", &client),
        ("--advertise-client-urls", &client),
        ("--listen-peer-urls", &peer),
        ("--initial-advertise-peer-urls", &peer),
        ("--initial-cluster", &format!("default={peer}")),
    ] {
        command.arg(name).arg(value);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().unwrap()
}

fn end(mut child: Child, signal: rustix::process::Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
        let _ = rustix::process::kill_process(pid, signal);
    }
    drop(child.wait());
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.nodes {
                let log = fs::read_to_string(self.dir.path().join(format!("{}.log", node.name))).unwrap_or_default();
                let from = log.lines().count().saturating_sub(15);
                let last: Vec<&str> = log.lines().skip(from).collect();
                eprintln!("-- {}\n{}", node.name, last.join("\n"));
            }
        }
        for number in 0..self.nodes.len() {
            self.stop(number);
        }
        drop(self.etcd.kill());
        drop(self.etcd.wait());
    }
}

//! A configuration of `docs/examples` as it is shipped, with its places moved into a world and its commands played by one script.
//!
//! Only places, sizes, users and times are replaced; which commands there are, and in what order, is the example's own.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use toml::{Table, Value};

use super::tools::write_program;
use super::{Bk, World, is_root, name_of, sorted};

/// Every stand-in: notes that it begins, does as it is told, keeps the state of what it stands for, and notes that it has ended.
const SCRIPT: &str = r#"#!/bin/sh
me=$(basename "$0")
base=$(dirname "$(dirname "$0")")
state=$base/state
key="${BK_STEP:-run} $BK_PHASE"
echo "+ $key: $me $*" >> "$base/log"
case $(cat "$base/mode/$(echo "$key" | tr ' ' '-')" 2>/dev/null) in
fail) echo "cannot $me" >&2; exit 1 ;;
kill) kill -9 $$ ;;
hang) sleep 1000 ;;
skip) exit 75 ;;
stop) touch "$base/at"; while [ -d "$base" ] && [ ! -e "$base/go" ]; do sleep 0.05; done ;;
early) exit 0 ;;
half) head -c 1000 > /dev/null; exec <&-; sleep 1; exit 0 ;;
esac
on() { touch "$state/$1"; }
off() { rm -f "$state/$1"; }
is() { [ -e "$state/$1" ]; }
code=0
case "$me $1 $2" in
"hvutil -m on") on maintenance ;;
"hvutil -m off") off maintenance ;;
"hvassert -s "*) case $4 in Online) is mounted ;; Offline) ! is mounted ;; esac; code=$? ;;
"mountpoint -q "*) is mounted; code=$? ;;
"mount "*) on mounted ;;
"umount "*) is mounted && off mounted; code=$? ;;
"medium load "*) on mounted; mv "$base/../second.away" "$base/../second" 2>/dev/null ;;
"medium unload "*) off mounted; mv "$base/../second" "$base/../second.away" 2>/dev/null ;;
"systemctl stop "*|"cccoreservice stop "*) on stopped ;;
"systemctl start "*|"cccoreservice start "*) off stopped ;;
"control-activities hold "*) on held ;;
"control-activities release "*) off held ;;
"control-role --is-active "*) is active; code=$? ;;
"control-role "*) if is active; then echo '{"act": true, "role": "active"}'; else echo '{"act": true, "role": "standby"}'; fi ;;
"app-is-online "*) is online || code=75 ;;
"app-is-stopped "*) is online && code=75 ;;
"shared-disk enable "*) is disk && code=1; on disk ;;
"shared-disk disable "*) off disk ;;
"is-active "*) is active || code=75 ;;
"swststartsync "*) on synchronous ;;
"is-equivalent "*) is synchronous; code=$? ;;
"copy-detach "*) on detached ;;
"copy-resume "*) off detached ;;
"db-suspend "*) on suspended ;;
"db-resume "*) off suspended ;;
"datasource offline "*) on offline ;;
"datasource online "*) off offline ;;
"pg_ctl start "*) on database ;;
"pg_ctl stop "*) off database ;;
"pg_dump -Ft "*) printf 'a dump\n'; head -c 100000 /dev/zero ;;
"pg_dump "*) head -c 2000000 /dev/zero | tr '\0' x; printf '\n-- PostgreSQL database dump complete\n' ;;
"pg_restore "*) cat > "$base/given" ;;
"dd "*) /bin/dd "$@" 2>/dev/null; code=$? ;;
esac
[ $code = 0 ] && echo "- $key" >> "$base/log"
exit $code
"#;

/// Names the script has.
const COMMANDS: [&str; 23] = [
    "app-is-online",
    "cccoreservice",
    "control-activities",
    "control-role",
    "copy-detach",
    "copy-resume",
    "createdb",
    "datasource",
    "db-resume",
    "db-suspend",
    "dd",
    "dropdb",
    "hvassert",
    "hvutil",
    "is-equivalent",
    "medium",
    "mount",
    "mountpoint",
    "pg_ctl",
    "pg_dump",
    "pg_restore",
    "psql",
    "swststartsync",
];
const MORE_COMMANDS: [&str; 5] = ["app-is-stopped", "is-active", "shared-disk", "systemctl", "umount"];

/// An example, its world and its stand-ins.
pub struct Example {
    pub world: World,
    pub base: PathBuf,
    pub table: Table,
    /// The job that is run.
    pub job: String,
    /// Words after `bk snapshot JOB` and `bk restore --runbook JOB`.
    pub words: String,
    /// Whether `bk restore --runbook` is what is run, instead of `bk snapshot`.
    pub restores: bool,
}

impl Example {
    /// The example `file` with `replaced` strings; `SRC` and `WORLD` in them are the world's.
    pub fn new(file: &str, job: &str, replaced: &[(&str, &str)]) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples").join(file);
        Self::of(&fs::read_to_string(path).unwrap(), job, replaced)
    }

    /// The same, of a text.
    pub fn of(text: &str, job: &str, replaced: &[(&str, &str)]) -> Self {
        let world = World::new("example");
        let base = world.path("stand-in");
        for sub in ["bin", "mode", "state"] {
            fs::create_dir_all(base.join(sub)).unwrap();
        }
        // Steps of another user write here, too.
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode(base.parent().unwrap(), 0o755);
        for path in [base.clone(), base.join("state"), base.join("mode")] {
            mode(&path, 0o1777);
        }
        fs::write(base.join("log"), "").unwrap();
        mode(&base.join("log"), 0o666);
        let script = base.join("script");
        write_program(&script, SCRIPT);
        for name in COMMANDS.iter().chain(&MORE_COMMANDS) {
            fs::hard_link(&script, base.join("bin").join(name)).unwrap();
        }
        let mut table: Table = text.parse().unwrap();
        let bin = format!("{}/", base.join("bin").display());
        let world_dir = base.parent().unwrap().display().to_string();
        let src = world.src.display().to_string();
        let own = own_user();
        let exact: BTreeMap<&str, String> =
            BTreeMap::from([("postgres", own), ("1GiB", "1MiB".to_owned()), ("20GiB", "1MiB".to_owned())]);
        let replace = |text: &str| {
            if let Some(text) = exact.get(text) {
                return text.clone();
            }
            let mut text = text.replace("/usr/local/sbin/", &bin).replace("/opt/cassatt/bin/", &bin);
            for (from, to) in replaced {
                text = text.replace(from, &to.replace("WORLD", &world_dir).replace("SRC", &src));
            }
            text
        };
        table.iter_mut().for_each(|(_, value)| each_string(value, &replace));
        table.insert("state_dir".to_owned(), world.path("bk-state").display().to_string().into());
        let mounted = mount_point_of(&world.volume);
        if let Some(Value::Table(volumes)) = table.get_mut("volume") {
            for volume in volumes.iter_mut().filter_map(|(_, one)| one.as_table_mut()) {
                if volume.contains_key("require_mount") {
                    volume.insert("require_mount".to_owned(), mounted.clone().into());
                }
            }
        }
        let mut example = Self { world, base, table, job: job.to_owned(), words: String::new(), restores: false };
        for kind in ["step", "runbook"] {
            example.each_step(kind, |step| {
                if step.contains_key("restore") || step.contains_key("stream") {
                    return;
                }
                step.insert("interval".to_owned(), "20ms".into());
                if ["enter_until", "leave_until", "run_until"].iter().any(|key| step.contains_key(*key)) {
                    step.insert("max_wait".to_owned(), "100ms".into());
                }
            });
        }
        example
    }

    /// A table of the configuration by its path.
    pub fn at(&mut self, path: &[&str]) -> Option<&mut Table> {
        path.iter().try_fold(&mut self.table, |table, key| table.get_mut(*key)?.as_table_mut())
    }

    /// Changes what streams of commands the job has.
    pub fn each_stream(&mut self, mut change: impl FnMut(&mut Table)) {
        let job = self.job.clone();
        let paths = [
            vec!["job", &job, "stream"],
            vec!["job", &job, "role", "active", "stream"],
            vec!["agent", "pg-dump", "stream"],
        ];
        for path in paths {
            let Some(streams) = self.at(&path) else { continue };
            streams.iter_mut().filter_map(|(_, one)| one.as_table_mut()).for_each(&mut change);
        }
    }

    /// The table of its gate: the job's, or that of its agent.
    pub fn gate(&mut self) -> &mut Table {
        let job = self.job.clone();
        if self.at(&["job", &job, "gate"]).is_some() {
            return self.at(&["job", &job, "gate"]).unwrap();
        }
        let agent = match self.words.strip_prefix("--agent ") {
            Some(agent) => agent.to_owned(),
            None => self.at(&["job", &job]).unwrap()["agent"].as_str().unwrap().to_owned(),
        };
        self.at(&["agent", &agent, "gate"]).unwrap()
    }

    fn each_step(&mut self, kind: &str, mut change: impl FnMut(&mut Table)) {
        for section in ["job", "agent"] {
            let Some(Value::Table(jobs)) = self.table.get_mut(section) else { continue };
            for job in jobs.iter_mut().filter_map(|(_, job)| job.as_table_mut()) {
                let Some(Value::Array(steps)) = job.get_mut(kind) else { continue };
                steps.iter_mut().filter_map(Value::as_table_mut).for_each(&mut change);
            }
        }
    }

    /// Which of its tables of steps is run.
    fn kind(&self) -> &'static str {
        if self.restores { "runbook" } else { "step" }
    }

    /// Sets a key of the step `name`.
    pub fn set(&mut self, name: &str, key: &str, value: &str) {
        let kind = self.kind();
        self.each_step(kind, |step| {
            if step["name"].as_str() == Some(name) {
                step.insert(key.to_owned(), value.into());
            }
        });
    }

    /// Makes the command `STEP PHASE` a program that is not there.
    pub fn take_away(&mut self, key: &str) {
        let (name, phase) = key.split_once(' ').unwrap();
        let gone = || Value::Array(vec!["/not/there".into()]);
        let put = |table: &mut Table, key: &str| {
            let is_shell = table.get("shell").and_then(Value::as_bool) == Some(true);
            table.insert(key.to_owned(), if is_shell { "/not/there".into() } else { gone() });
        };
        match (name, phase) {
            ("run", "gate") => put(self.gate(), "command"),
            ("run", "stream") => self.each_stream(|one| put(one, "command")),
            _ => {
                let kind = self.kind();
                self.each_step(kind, |step| {
                    if step["name"].as_str() != Some(name) {
                        return;
                    }
                    let names: &[&str] = match phase {
                        "enter" => &["enter", "run"],
                        "enter_until" => &["enter_until", "run_until"],
                        "stream" => &["into"],
                        other => &[other],
                    };
                    let key = *names.iter().find(|key| step.contains_key(**key)).unwrap();
                    put(step, key);
                });
            }
        }
    }

    /// Whether a step of the job is a media step.
    pub fn is_media(&mut self, name: &str) -> bool {
        let mut found = false;
        self.each_step("step", |step| {
            found |= step["name"].as_str() == Some(name) && step.get("media").and_then(Value::as_bool) == Some(true);
        });
        found
    }

    /// Writes the configuration.
    pub fn configure(&self) -> PathBuf {
        let path = self.world.path("bk.toml");
        fs::write(&path, toml::to_string(&self.table).unwrap()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// bk with the configuration and the stand-ins before all else.
    pub fn bk(&self, words: &str) -> Bk {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut all = self.base.join("bin").into_os_string();
        all.push(":");
        all.push(path);
        Bk::new(words).env("PATH", all).env("BK_CONFIG", self.configure())
    }

    /// What the example is about, with an empty log.
    pub fn act(&self) -> Bk {
        self.log("");
        self.act_on()
    }

    /// The same, with the log going on.
    pub fn act_on(&self) -> Bk {
        let Self { job, words, restores, .. } = self;
        match restores {
            true => self.bk(&format!("restore --json --yes --runbook {job} {words}")),
            false => self.bk(&format!("snapshot --json {job} {words}")),
        }
    }

    fn log(&self, text: &str) {
        fs::write(self.base.join("log"), text).unwrap();
    }

    /// `bk recover`
    pub fn recover(&self) -> Bk {
        self.bk("recover --json --state-dir").arg(self.world.path("bk-state"))
    }

    /// How the command `STEP PHASE` behaves from now on.
    pub fn mode(&self, key: &str, mode: &str) {
        let path = self.base.join("mode").join(key.replace(' ', "-"));
        fs::write(&path, mode).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    /// As it was.
    pub fn well(&self, key: &str) {
        drop(fs::remove_file(self.base.join("mode").join(key.replace(' ', "-"))));
    }

    /// Puts a flag of the stand-ins' state there.
    pub fn on(&self, flag: &str) {
        fs::write(self.base.join("state").join(flag), "").unwrap();
        fs::set_permissions(self.base.join("state").join(flag), fs::Permissions::from_mode(0o666)).unwrap();
    }

    /// The flags that are there.
    pub fn state(&self) -> Vec<String> {
        sorted(&self.base.join("state")).iter().map(|path| name_of(path)).collect()
    }

    /// Back to these flags.
    pub fn set_state(&self, flags: &[String]) {
        for flag in self.state() {
            fs::remove_file(self.base.join("state").join(flag)).unwrap();
        }
        flags.iter().for_each(|flag| self.on(flag));
    }

    fn lines(&self, mark: &str) -> Vec<String> {
        let log = fs::read_to_string(self.base.join("log")).unwrap_or_default();
        let base = self.base.parent().unwrap().display().to_string();
        log.lines()
            .filter_map(|line| line.strip_prefix(mark))
            .map(|line| line.replace(&base, "").trim_end().to_owned())
            .collect()
    }

    /// The commands in the order they began, `STEP PHASE: NAME ARGUMENTS`, repeated ones once.
    pub fn order(&self) -> Vec<String> {
        let mut began = self.lines("+ ");
        began.dedup();
        began
    }

    /// How often a command of this key began, and how often one ended with 0.
    pub fn count(&self, key: &str) -> (usize, usize) {
        let begins = self.lines("+ ").iter().filter(|line| line.split(':').next() == Some(key)).count();
        (begins, self.lines("- ").iter().filter(|line| *line == key).count())
    }

    /// Journals of runs that are not ended.
    pub fn journals(&self) -> usize {
        let files = super::files_below(&self.world.path("bk-state"));
        files.iter().filter(|path| name_of(path).ends_with(".journal")).count()
    }

    /// Snapshots on the volume.
    pub fn snapshots(&self) -> usize {
        self.world.list().len()
    }

    /// Waits till a command in mode `stop` has come to its place.
    pub fn wait_for_stop(&self) {
        let end = Instant::now() + Duration::from_secs(120);
        while !self.base.join("at").exists() {
            assert!(Instant::now() < end, "nothing stops: {:?}", self.order());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Lets what stops go on.
    pub fn go(&self) {
        fs::write(self.base.join("go"), "").unwrap();
    }

    /// Ids of the watchers of this world's runs.
    pub fn watchers(&self) -> Vec<i32> {
        let needle = self.world.path("bk-state").display().to_string();
        let is_watcher = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains("--watch") && line.contains(&needle)
        };
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_watcher).collect()
    }
}

fn each_string(value: &mut Value, replace: &dyn Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = replace(text),
        Value::Array(array) => array.iter_mut().for_each(|one| each_string(one, replace)),
        Value::Table(table) => table.iter_mut().for_each(|(_, one)| each_string(one, replace)),
        _ => {}
    }
}

/// As root somebody else, so that `user` means something; else who runs the tests.
fn own_user() -> String {
    if is_root() {
        return "nobody".to_owned();
    }
    let output = std::process::Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Where the file system of `path` is mounted.
pub fn mount_point_of(path: &Path) -> String {
    let path = path.canonicalize().unwrap();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    let found = points.filter(|point| path.starts_with(point)).max_by_key(|point| point.components().count());
    found.unwrap().display().to_string()
}

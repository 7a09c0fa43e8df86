//! A configured job whose commands are all one recording script, told by files beside it how to behave.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::tools::write_program;
use super::{Bk, World, list};

/// Notes that it begins, does as it is told, keeps its step's state, and notes that it has ended.
const SCRIPT: &str = r#"#!/bin/sh
dir=$(dirname "$0")
me="${BK_STEP:-run} $BK_PHASE"
echo "+ $me" >> "$dir/log"
env > "$dir/env/${BK_STEP:-run}-$BK_PHASE"
[ "$BK_PHASE" = run ] && cat > "$dir/env/${BK_STEP}.json"
case $(cat "$dir/mode/${BK_STEP:-run}-$BK_PHASE" 2>/dev/null) in
fail) echo "cannot $me" >&2; exit 1 ;;
once) rm "$dir/mode/${BK_STEP:-run}-$BK_PHASE"; exit 1 ;;
kill) kill -9 $$ ;;
hang) echo "$me" >> "$dir/hanging"; sleep 1000 ;;
skip) exit 75 ;;
ignore) trap '' TERM; echo "$me" >> "$dir/ignoring"; while :; do sleep 0.05; done ;;
fork) (trap '' TERM; sleep 20) & ;;
room) rm -f "$dir/../bk-state/fill" ;;
flood) yes 'a flood of output' | head -c 30000000 ;;
stop) touch "$dir/at"; while [ -d "$dir" ] && [ ! -e "$dir/go" ]; do sleep 0.05; done ;;
esac
case $BK_PHASE in
enter) touch "$dir/state/$BK_STEP" ;;
leave) rm -f "$dir/state/$BK_STEP" ;;
stream) echo "a dump" ;;
gate) cat "$dir/say" 2>/dev/null ;;
esac
echo "- $me" >> "$dir/log"
exit 0
"#;

/// The job, its world and its script.
pub struct Job {
    pub world: World,
    pub dir: PathBuf,
    /// Keys of the job, as TOML.
    pub keys: String,
    /// More of its paths, each after a comma.
    pub paths: String,
    /// More keys of its stream.
    pub stream: String,
    /// Keys of steps by name, over what they have.
    pub steps: BTreeMap<&'static str, String>,
    /// `STEP PHASE` whose command is a program that is not there.
    pub missing: Option<String>,
}

impl Job {
    /// Gate, media step `tape`, steps `a` and `b`, a tree, a stream, and a step after either end.
    pub fn new(name: &str) -> Self {
        Self::on(World::new(name))
    }

    /// The same in a world that is there already.
    pub fn on(world: World) -> Self {
        let dir = world.path("stand-in");
        for sub in ["mode", "state", "env"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        write_program(&dir.join("act"), SCRIPT);
        fs::write(world.src.join("file"), "content").unwrap();
        Self {
            world,
            dir,
            keys: String::new(),
            paths: String::new(),
            stream: String::new(),
            steps: BTreeMap::new(),
            missing: None,
        }
    }

    /// How the command `STEP PHASE` behaves from now on; `run gate`, `run regate` and `run stream` belong to no step.
    pub fn mode(&self, command: &str, mode: &str) {
        fs::write(self.dir.join("mode").join(command.replace(' ', "-")), mode).unwrap();
    }

    /// As it was.
    pub fn well(&self, command: &str) {
        drop(fs::remove_file(self.dir.join("mode").join(command.replace(' ', "-"))));
    }

    fn argv(&self, command: &str) -> String {
        let program = if self.missing.as_deref() == Some(command) { "not-there" } else { "act" };
        format!("['{}']", self.dir.join(program).display())
    }

    fn step(&self, name: &str, phases: &[&str], more: &str) -> String {
        let lines = phases.iter().map(|phase| format!("{phase} = {}\n", self.argv(&format!("{name} {phase}"))));
        let own = self.steps.get(name).map_or("", String::as_str);
        format!(
            "[[job.app.step]]\nname = '{name}'\ntries = 2\ninterval = '20ms'\n{more}\n{own}\n{}",
            lines.collect::<String>()
        )
    }

    /// Writes the configuration.
    pub fn configure(&self) -> PathBuf {
        let volume = match &self.world.server {
            Some(_) => self.world.named().into_string().unwrap(),
            None => self.world.volume.display().to_string(),
        };
        let (src, state) = (self.world.src.display(), self.state().display().to_string());
        let gate = if self.keys.contains("gate") {
            String::new()
        } else {
            format!("gate = {{ kind = 'command', tries = 2, command = {} }}\n", self.argv("run gate"))
        };
        let text = format!(
            "state_dir = '{state}'\n[volume.main]\nurl = '{volume}'\n[job.app]\nvolume = 'main'\npaths = ['{src}'{}]\n\
             {gate}{}\nstream.dump = {{ command = {}{} }}\n{}{}{}{}{}",
            self.paths,
            self.keys,
            self.argv("run stream"),
            self.stream,
            self.step("tape", &["enter", "leave"], "media = true"),
            self.step("a", &["enter", "enter_until", "leave", "leave_until"], "max_wait = '100ms'"),
            self.step("b", &["enter", "leave"], ""),
            self.step("tell", &["run"], "on = 'failure'"),
            self.step("glad", &["run"], "on = 'success'"),
        );
        let path = self.world.path("bk.toml");
        fs::write(&path, text).unwrap();
        path
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.world.path("bk-state")
    }

    /// `bk snapshot app`
    pub fn bk(&self) -> Bk {
        self.bk_under(&[])
    }

    /// The same as the argument of another program.
    pub fn bk_under(&self, program: &[&OsStr]) -> Bk {
        drop(fs::remove_file(self.dir.join("log")));
        Bk::under(program, "snapshot app --json --config").arg(self.configure())
    }

    /// `bk recover`
    pub fn recover(&self) -> Bk {
        Bk::new("recover --json --state-dir").arg(self.state())
    }

    fn lines(&self, mark: &str) -> Vec<String> {
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        log.lines().filter_map(|line| line.strip_prefix(mark)).map(str::to_owned).collect()
    }

    /// The commands in the order they began.
    pub fn began(&self) -> Vec<String> {
        self.lines("+ ")
    }

    /// The same, tries of one command after each other as one.
    pub fn order(&self) -> Vec<String> {
        let mut began = self.began();
        began.dedup();
        began
    }

    /// How often a command began, and how often it ended by itself with 0.
    pub fn count(&self, command: &str) -> (usize, usize) {
        let of = |mark| self.lines(mark).iter().filter(|line| *line == command).count();
        (of("+ "), of("- "))
    }

    /// Whether a command had this line in its environment when it ran last.
    pub fn had(&self, command: &str, line: &str) -> bool {
        let env = fs::read_to_string(self.dir.join("env").join(command.replace(' ', "-"))).unwrap_or_default();
        env.lines().any(|one| one == line)
    }

    /// Steps whose stand-in is in its entered state.
    pub fn entered(&self) -> Vec<String> {
        super::sorted(&self.dir.join("state")).iter().map(|path| super::name_of(path)).collect()
    }

    /// Snapshots on the volume.
    pub fn snapshots(&self) -> usize {
        list(&self.world.volume).len()
    }

    /// Journals of runs that are not ended.
    pub fn journals(&self) -> usize {
        super::sorted(&self.state().join("runs/app"))
            .iter()
            .filter(|path| super::name_of(path).ends_with(".journal"))
            .count()
    }

    /// Waits till a command in mode `stop` has come to its place.
    pub fn wait_for_stop(&self) {
        self.wait_for("a command that stops", || self.dir.join("at").exists());
    }

    /// Waits till it is so.
    pub fn wait_for(&self, what: &str, is_so: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(120);
        while !is_so() {
            assert!(Instant::now() < end, "no {what} in two minutes: {:?}", self.began());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Lets what stops go on, now and later.
    pub fn go(&self) {
        fs::write(self.dir.join("go"), "").unwrap();
    }

    /// Ids of the watchers of this job's runs.
    pub fn watchers(&self) -> Vec<i32> {
        let needle = self.state().display().to_string();
        let is_watcher = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains("--watch") && line.contains(&needle)
        };
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_watcher).collect()
    }
}

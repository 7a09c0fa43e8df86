//! The journal: what a run has begun and not yet left, on this machine, so that somebody leaves it when the run cannot.
//!
//! One file a run, `runs/<job>/<run id>.journal` in the state directory, one JSON object a line. A step's line is durable before the
//! step begins, and holds the step whole. The run holds `runs/<job>/lock` as long as it lives; whoever gets the lock may leave what
//! the journals beside it tell, and so may the watcher of a run that was killed and cannot end: so each journal is locked, too, by
//! whoever leaves what it tells. A journal with nothing left to do is removed.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{Phase, trust::Account};
use crate::{
    config::step::Step,
    error::{Error, Kind, Result},
    model::{
        ids::{Name, RunId},
        processes,
    },
};

/// A longer journal is none of bk's.
const JOURNAL_LEN_MAX: u64 = 64 << 20;
const ENDING: &str = ".journal";

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "what", deny_unknown_fields)]
enum Line {
    /// The run, or who leaves its steps in its place: the boot and the session its commands belong to.
    Run { boot_id: String, session: i32 },
    /// A step is about to begin, with these values in its environment, as this user. Older versions noted no user.
    Begin {
        step: Box<Step>,
        values: BTreeMap<String, String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        account: Option<Account>,
    },
    /// Its entering has ended well.
    Entered { step: Name },
    /// A step's leaving is about to begin.
    Leave { step: Name },
    /// What leaves it has ended well; that it is left is yet to be seen.
    Awaited { step: Name },
    /// A step could not be left.
    Stuck { step: Name },
    /// A step was left.
    Left { step: Name },
}

pub(super) fn failed(what: &str, path: &Path, e: std::io::Error) -> Error {
    let error = Error::io(format!("cannot {what} {}", path.display()), e);
    if error.kind() == Kind::NoSpace { error } else { error.with_kind(Kind::Step) }
}

/// A job whose journals nobody else touches.
pub struct Locked {
    dir: PathBuf,
    _lock: Option<File>,
}

impl Locked {
    /// The directory of a job, whose lock is held as long as this lives.
    pub(super) fn new(dir: PathBuf, lock: Option<File>) -> Self {
        Self { dir, _lock: lock }
    }

    /// Steps that are noted as begun and not left, and those of them that could not be; nothing is changed.
    pub(super) fn told(&self) -> Result<(Vec<Name>, Vec<Name>)> {
        let (mut begun, mut stuck) = (Vec::new(), Vec::new());
        for run_id in self.runs()? {
            let path = self.path(run_id);
            match std::fs::read(&path) {
                Ok(bytes) => {
                    let replayed = understood(&path, &bytes)?.1;
                    begun.extend(replayed.begun.into_iter().map(|begun| begun.step.name));
                    stuck.extend(replayed.stuck);
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed("read", &path, e)),
            }
        }
        Ok((begun, stuck))
    }

    /// Begins the journal of a run.
    pub fn begin(&self, run_id: RunId) -> Result<Journal> {
        let path = self.path(run_id);
        let mut options = OpenOptions::new();
        let file =
            options.append(true).create_new(true).mode(0o600).open(&path).map_err(|e| failed("make", &path, e))?;
        let mut journal = Journal { file, path };
        journal.run()?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(|e| failed("make durable", &self.dir, e))?;
        Ok(journal)
    }

    /// Runs of this job that did not end, the oldest first; of one run only, or of all.
    pub fn unfinished(&self, only: Option<RunId>) -> Result<Vec<Unfinished>> {
        let runs = self.runs()?.into_iter().filter(|run_id| only.is_none_or(|only| only == *run_id));
        runs.filter_map(|run_id| self.read(run_id).transpose()).collect()
    }

    /// Removes the journals of all runs.
    pub fn forget(&self) -> Result<Vec<RunId>> {
        let runs = self.runs()?;
        for run_id in &runs {
            let path = self.path(*run_id);
            std::fs::remove_file(&path).map_err(|e| failed("remove", &path, e))?;
        }
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(|e| failed("make durable", &self.dir, e))?;
        Ok(runs)
    }

    fn path(&self, run_id: RunId) -> PathBuf {
        self.dir.join(format!("{run_id}{ENDING}"))
    }

    fn runs(&self) -> Result<Vec<RunId>> {
        let entries = std::fs::read_dir(&self.dir).map_err(|e| failed("read", &self.dir, e))?;
        let mut runs = Vec::new();
        for entry in entries {
            let name = entry.map_err(|e| failed("read", &self.dir, e))?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(ENDING)?.parse::<RunId>().ok());
            runs.extend(id);
        }
        runs.sort();
        Ok(runs)
    }

    /// Reads the journal of a run, when nobody else leaves what it tells any more; `None` when that was done meanwhile.
    fn read(&self, run_id: RunId) -> Result<Option<Unfinished>> {
        let path = self.path(run_id);
        let mut options = OpenOptions::new();
        let file = match options.append(true).read(true).open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|e| failed("open", &path, e))?,
        };
        while let Err(e) = flock(&file, FlockOperation::LockExclusive) {
            if e != rustix::io::Errno::INTR {
                return Err(failed("lock", &path, e.into()));
            }
        }
        let meta = file.metadata().map_err(|e| failed("look at", &path, e))?;
        if meta.nlink() == 0 {
            return Ok(None);
        }
        if meta.len() > JOURNAL_LEN_MAX {
            return Err(Error::new(Kind::Step, format!("{} is too long for a journal", path.display())));
        }
        let bytes = std::fs::read(&path).map_err(|e| failed("read", &path, e))?;
        let (whole, Replayed { boot_id: boot, session, begun, running, stuck: _ }) = understood(&path, &bytes)?;
        // What follows the last whole line was not durable, so what it would tell has not begun.
        file.set_len(whole as u64).map_err(|e| failed("write", &path, e))?;
        let session = (!boot.is_empty() && boot == boot_id()).then_some(session);
        Ok(Some(Unfinished { run_id, session, begun, running, journal: Journal { file, path } }))
    }
}

/// What a journal tells, and how much of it are whole lines.
fn understood(path: &Path, bytes: &[u8]) -> Result<(usize, Replayed)> {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let replayed = replay(&bytes[..whole]).map_err(|why| {
        Error::new(Kind::Step, format!("{} cannot be read: {why}", path.display()))
            .with_hint("see by hand what its run had begun, then `bk recover --forget`")
    })?;
    Ok((whole, replayed))
}

/// A step that was begun and not left.
#[derive(Debug)]
pub struct Begun {
    /// The step.
    pub step: Step,
    /// The values its commands get.
    pub values: BTreeMap<String, String>,
    /// Who its user was when it was begun.
    pub account: Option<Account>,
}

#[derive(Default)]
struct Replayed {
    boot_id: String,
    session: i32,
    begun: Vec<Begun>,
    stuck: Vec<Name>,
    running: Option<Running>,
}

/// What was running when a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// The step.
    pub step: Name,
    /// Only this one of its commands, when the others had ended.
    pub phase: Option<Phase>,
}

/// Reads whole lines.
fn replay(bytes: &[u8]) -> Result<Replayed, String> {
    let mut run = Replayed::default();
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line).map_err(|e| e.to_string())? {
            Line::Run { boot_id, session } => (run.boot_id, run.session) = (boot_id, session),
            Line::Begin { step, values, account } => {
                run.running = Some(Running { step: step.name.clone(), phase: None });
                run.begun.push(Begun { step: *step, values, account });
            }
            Line::Entered { .. } => run.running = None,
            Line::Leave { step } => run.running = Some(Running { step, phase: None }),
            Line::Awaited { step } => run.running = Some(Running { step, phase: Some(Phase::LeaveUntil) }),
            Line::Stuck { step } => {
                run.running = None;
                run.stuck.retain(|one| *one != step);
                run.stuck.push(step);
            }
            Line::Left { step } => {
                run.running = None;
                run.stuck.retain(|one| *one != step);
                run.begun.retain(|one| one.step.name != step);
            }
        }
    }
    Ok(run)
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// A run that did not end.
pub struct Unfinished {
    /// The run.
    pub run_id: RunId,
    /// The session of its commands, when the machine was not started since.
    pub session: Option<i32>,
    /// What it began and did not leave, in the order it was begun.
    pub begun: Vec<Begun>,
    /// Whose command was running.
    pub running: Option<Running>,
    /// Its journal, to be written on.
    pub journal: Journal,
}

/// A run's journal.
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// What runs from here on is of this process's session.
    pub fn run(&mut self) -> Result<()> {
        self.write(&Line::Run { boot_id: boot_id(), session: processes::session() })
    }

    /// `step` is about to begin, as this user.
    pub fn begin(&mut self, step: &Step, values: &BTreeMap<String, String>, account: Option<&Account>) -> Result<()> {
        self.write(&Line::Begin { step: Box::new(step.clone()), values: values.clone(), account: account.cloned() })
    }

    /// `step` is entered.
    pub fn entered(&mut self, step: &Name) -> Result<()> {
        self.write(&Line::Entered { step: step.clone() })
    }

    /// `step` is about to be left.
    pub fn leave(&mut self, step: &Name) -> Result<()> {
        self.write(&Line::Leave { step: step.clone() })
    }

    /// `step` is left, but for the waiting.
    pub fn awaited(&mut self, step: &Name) -> Result<()> {
        self.write(&Line::Awaited { step: step.clone() })
    }

    /// `step` could not be left.
    pub fn stuck(&mut self, step: &Name) -> Result<()> {
        self.write(&Line::Stuck { step: step.clone() })
    }

    /// `step` is left.
    pub fn left(&mut self, step: &Name) -> Result<()> {
        self.write(&Line::Left { step: step.clone() })
    }

    /// Nothing is left to do.
    pub fn finish(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|e| failed("remove", &self.path, e))?;
        let Some(dir) = self.path.parent() else { return Ok(()) };
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| failed("make durable", dir, e))
    }

    fn write(&mut self, line: &Line) -> Result<()> {
        let mut bytes = serde_json::to_vec(line)
            .map_err(|e| Error::new(Kind::Step, format!("cannot write {}: {e}", self.path.display())))?;
        bytes.push(b'\n');
        self.append(&bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let len = self.file.metadata().map_err(|e| failed("look at", &self.path, e))?.len();
        self.file.write_all(bytes).and_then(|()| self.file.sync_data()).map_err(|e| {
            // Half a line, of a full disk, would spoil the next one.
            let _ = self.file.set_len(len);
            failed("write", &self.path, e)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    fn step(name: &str) -> Step {
        toml::from_str(&format!("name = '{name}'\nenter = ['true']\nleave = ['true']")).unwrap()
    }

    #[test]
    fn a_journal_tells_what_is_begun_wherever_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::new(&dir.path().join("state"));
        let job: Name = "db".parse().unwrap();
        assert!(!state.knows(&job) && state.jobs().unwrap().is_empty());
        let locked = state.lock(&job).unwrap().unwrap();
        assert!(state.lock(&job).unwrap().is_none());
        let run_id = RunId::new(1).unwrap();
        let mut journal = locked.begin(run_id).unwrap();
        let values = BTreeMap::from([("BK_JOB".to_owned(), "db".to_owned())]);
        journal.begin(&step("a"), &values, None).unwrap();
        journal.begin(&step("b"), &values, None).unwrap();
        journal.leave(&"b".parse().unwrap()).unwrap();
        journal.left(&"b".parse().unwrap()).unwrap();
        let whole = std::fs::read(&journal.path).unwrap();
        let names = |lines: usize| -> Vec<String> {
            let end = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).nth(lines);
            let run = replay(&whole[..end.unwrap_or(0)]).unwrap();
            run.begun.iter().map(|begun| begun.step.name.to_string()).collect()
        };
        for (lines, expected) in [&[][..], &["a"], &["a", "b"], &["a", "b"], &["a"]].into_iter().enumerate() {
            assert_eq!(names(lines), expected, "{lines}");
        }
        // The next line, cut after any byte, is not there, and what is written after it is.
        for len in [1, 20, 60] {
            use std::os::unix::fs::FileExt;
            let torn = OpenOptions::new().write(true).open(&journal.path).unwrap();
            torn.write_all_at(&whole[..len], whole.len() as u64).unwrap();
            let begun = locked.unfinished(None).unwrap().pop().unwrap().begun;
            assert_eq!((begun.len(), begun[0].step.name.as_str()), (1, "a"));
            assert_eq!(std::fs::read(&journal.path).unwrap(), whole);
        }
        assert!(replay(b"{\"what\":\"x\"}\n").is_err());
        assert!(locked.unfinished(Some(RunId::new(2).unwrap())).unwrap().is_empty());
        let unfinished = locked.unfinished(Some(run_id)).unwrap().pop().unwrap();
        assert_eq!((unfinished.run_id, unfinished.session), (run_id, Some(processes::session())));
        assert_eq!(unfinished.begun[0].values, values);
        // Who reads it, too, waits till that is left, and finds nothing to do.
        let other = std::thread::spawn({
            let locked = state.of_killed(&job);
            move || locked.unfinished(None).unwrap().len()
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!other.is_finished());
        unfinished.journal.finish().unwrap();
        assert_eq!(other.join().unwrap(), 0);
        assert!(locked.unfinished(None).unwrap().is_empty());
        drop(locked);
        assert!(state.lock(&job).unwrap().is_some());
    }
}

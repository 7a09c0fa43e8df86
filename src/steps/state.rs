//! The state directory: which jobs have journals there, the lock a run of a job holds as long as it lives, and who holds it.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::Write,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

use super::journal::{Locked, failed};
use crate::{
    error::{Error, Kind, Result},
    model::{ids::Name, processes},
};

/// A process that was killed ends in this time, or waits for a device. Tests set `BK_TEST_ENDING_MS`.
const ENDING_MAX: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_millis(50);

/// The state directory.
pub struct State {
    dir: PathBuf,
}

impl State {
    /// `dir`, which need not be there yet.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    fn job_dir(&self, job: &Name) -> PathBuf {
        self.dir.join("runs").join(job.as_str())
    }

    /// Jobs that may have journals.
    pub fn jobs(&self) -> Result<Vec<Name>> {
        let dir = self.dir.join("runs");
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed("read", &dir, e)),
        };
        let mut jobs = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| failed("read", &dir, e))?;
            jobs.extend(entry.file_name().to_str().and_then(|name| name.parse::<Name>().ok()));
        }
        jobs.sort();
        Ok(jobs)
    }

    /// Whether a run of this job may have left something: cheap, and without making anything.
    pub fn knows(&self, job: &Name) -> bool {
        self.job_dir(job).is_dir()
    }

    /// Makes the directories and takes the job's lock; `None` when another run of the job lives on this machine.
    pub fn lock(&self, job: &Name) -> Result<Option<Locked>> {
        let dir = self.job_dir(job);
        for (path, above) in [(self.dir.clone(), self.dir.parent()), (self.dir.join("runs"), Some(&*self.dir))] {
            make_dir(&path, above)?;
        }
        make_dir(&dir, dir.parent())?;
        let path = dir.join("lock");
        let mut options = OpenOptions::new();
        let lock = options
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| failed("open", &path, e))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(e) => return Err(failed("lock", &path, e.into())),
        }
        // Only for who asks why it is locked.
        let _ = lock.set_len(0).and_then(|()| (&lock).write_all(format!("{}\n", std::process::id()).as_bytes()));
        Ok(Some(Locked::new(dir, Some(lock))))
    }

    /// The same for the watcher of a run that was killed: that one still has the lock, and can do no more.
    pub fn of_killed(&self, job: &Name) -> Locked {
        Locked::new(self.job_dir(job), None)
    }

    /// Takes the job's lock, or says what whoever has it has not left. One that was killed has some time to end.
    pub fn lock_or_holder(&self, job: &Name) -> Result<Result<Locked, Holder>> {
        let set = std::env::var("BK_TEST_ENDING_MS").ok().and_then(|text| text.parse::<u64>().ok());
        let give_up_at = Instant::now() + set.map_or(ENDING_MAX, Duration::from_millis);
        loop {
            if let Some(locked) = self.lock(job)? {
                return Ok(Ok(locked));
            }
            let is_killed = self.is_holder_ending(job);
            if !is_killed || Instant::now() >= give_up_at {
                return self.holder(job, is_killed).map(Err);
            }
            std::thread::sleep(TICK);
        }
    }

    fn is_holder_ending(&self, job: &Name) -> bool {
        let holder = std::fs::read_to_string(self.job_dir(job).join("lock")).unwrap_or_default();
        holder.trim().parse().is_ok_and(processes::is_ending)
    }

    fn holder(&self, job: &Name, is_killed: bool) -> Result<Holder> {
        let (begun, stuck) = self.of_killed(job).told()?;
        Ok(Holder { is_killed, begun, stuck })
    }
}

/// Who has a job's lock.
pub struct Holder {
    /// It was killed, and does not end.
    is_killed: bool,
    /// Steps that are noted as begun.
    begun: Vec<Name>,
    /// Those of them that could not be left.
    stuck: Vec<Name>,
}

impl Holder {
    /// That it was killed and leaves nothing any more; none when there is nothing to leave, or it lives.
    pub fn killed(&self) -> Option<Error> {
        if !self.is_killed || self.begun.is_empty() {
            return None;
        }
        let names = listed(&self.begun);
        let what = format!("its run was killed and waits for a device that does not answer; not left yet: {names}");
        // Its watcher sees to that; one that was killed, too, cannot.
        let hint = "its watcher leaves them in a few seconds; if it does not, leave them by hand";
        Some(Error::new(Kind::Step, what).with_hint(hint))
    }

    /// That it lives and could not leave something.
    pub fn stuck(&self) -> Option<Error> {
        if self.is_killed || self.stuck.is_empty() {
            return None;
        }
        let what = format!("its run is at work and could not leave: {}", listed(&self.stuck));
        Some(Error::new(Kind::Step, what).with_hint("see why: what its commands say is in the log of that run"))
    }
}

fn listed(names: &[Name]) -> String {
    names.iter().map(Name::as_str).collect::<Vec<_>>().join(", ")
}

fn make_dir(path: &Path, above: Option<&Path>) -> Result<()> {
    match DirBuilder::new().mode(0o700).recursive(true).create(path) {
        Ok(()) => {}
        Err(e) => {
            return Err(failed("make", path, e)
                .with_hint("steps want a directory that outlives the run: --state-dir DIR or BK_STATE_DIR"));
        }
    }
    let meta = path.metadata().map_err(|e| failed("look at", path, e))?;
    // What lies here is run by bk.
    if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
        let what =
            format!("{} is not bk's alone: user {}, mode {:o}", path.display(), meta.uid(), meta.mode() & 0o7777);
        return Err(Error::new(Kind::Step, what).with_hint(format!("chmod 700 {}", path.display())));
    }
    match above {
        Some(above) if !above.as_os_str().is_empty() => {
            File::open(above).and_then(|dir| dir.sync_all()).map_err(|e| failed("make durable", above, e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_others_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = State::new(dir.path()).lock(&"db".parse().unwrap()).err().unwrap();
        assert!(error.to_string().contains("is not bk's alone"), "{error}");
    }
}

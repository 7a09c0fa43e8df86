//! The run book of `bk check`: read logs, listings, leases and notes, judge them, and write the numbers down. No lock, any node.

use std::{fmt::Write as _, io::Write as _, path::Path};

use serde::Serialize;

use super::{drill, expire::unusable, lease, orphans, status};
use crate::{
    clock::{Clock, System},
    engine::catalog::{self, State},
    error::{Error, Result},
    model::ids::Name,
    plan::health::{self, Drilled, Health, Limit, Limits, Metric, Status},
    volume::Volume,
};

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The worst of all.
    pub status: Status,
    /// What was looked at, and numbers.
    #[serde(flatten)]
    pub health: Health,
}

/// Which jobs of a volume are looked at.
#[derive(Clone, Debug)]
pub enum Jobs {
    /// These; one without a snapshot is critical.
    Named(Vec<Name>),
    /// All there are on the volume.
    All,
    /// Those that are configured.
    Expected {
        /// Their names on the volume, and whether they ought to be there.
        names: Vec<(Name, bool)>,
        /// When set, all others on the volume, too, but these.
        others_but: Option<Vec<Name>>,
    },
}

/// Looks at `jobs`; `limits` tells those of a job.
pub fn run(
    volume: &Volume,
    jobs: &Jobs,
    limits: &dyn Fn(&Name) -> Result<Limits>,
    clock: &dyn Clock,
) -> Result<Outcome> {
    let now = clock.now()?;
    let there = match jobs {
        Jobs::Named(_) => Vec::new(),
        Jobs::All | Jobs::Expected { .. } => catalog::jobs(volume)?,
    };
    let mut all = match jobs {
        Jobs::Named(names) => names.clone(),
        Jobs::All => there.clone(),
        Jobs::Expected { names, others_but } => {
            let wanted = names.iter().filter(|(name, must)| *must || there.contains(name)).map(|(name, _)| name);
            let others = there.iter().filter(|name| others_but.as_ref().is_some_and(|but| !but.contains(name)));
            wanted.chain(others).cloned().collect()
        }
    };
    if !matches!(jobs, Jobs::Named(_)) {
        all.sort();
        all.dedup();
    }
    let mut health = Health::default();
    if all.is_empty() && !matches!(jobs, Jobs::Expected { .. }) {
        health.find(Status::Unknown, format!("{} has no job", volume.shown));
    }
    let mut space = Limits::default();
    for job in &all {
        let limits = limits(job)?;
        if matches!(jobs, Jobs::Expected { .. }) && !there.contains(job) && !limits.has_age() {
            health.find(Status::Warning, format!("{job} is configured and has no snapshot yet"));
            continue;
        }
        // Of several jobs the one that wants most room.
        space.free.warn = space.free.warn.max(limits.free.warn);
        space.free.crit = space.free.crit.max(limits.free.crit);
        let log = catalog::read(volume, job)?;
        let items = volume.store.list(&format!("data/{job}/"))?;
        let lying = catalog::runs(&items, job);
        let mut damaged = unusable(&log, &lying);
        if !damaged.is_empty() {
            // What has gone since the log was read is not missing.
            let after = catalog::read(volume, job)?;
            damaged.retain(|seq| after.state(*seq).is_none_or(State::is_live));
        }
        let found = health::job(&log, &damaged, &limits, now);
        health.findings.extend(found.findings);
        health.metrics.extend(found.metrics);
        for run in orphans::lost(volume, &log, &lying, clock.unix_ms().saturating_sub(orphans::YOUNG_MS))? {
            health.find(Status::Warning, orphans::told(job, &[run]));
        }
        match drill::last(volume, job) {
            Ok(last) => {
                let last = last.map(|one| Drilled {
                    seq: one.seq,
                    ended_at: one.ended_at,
                    why: (!one.passed).then(|| one.why.unwrap_or_default()),
                });
                health::drill(&mut health, job, last.as_ref(), &limits, now);
            }
            Err(e) => health.find(Status::Warning, format!("the last drill of {job} cannot be read: {e}")),
        }
        at_work(volume, job, &mut health, clock)?;
    }
    health::space(&mut health, volume.store.free_bytes()?, &space);
    Ok(Outcome { status: health.status(), health })
}

/// Who works on a job: its lease, and runs that go on or say nothing any more.
fn at_work(volume: &Volume, job: &Name, health: &mut Health, clock: &dyn Clock) -> Result<()> {
    let of = (Some(job), None);
    let leases = lease::list(volume, Some(job))?;
    let held = leases.iter().find(|row| row.state == "held");
    health.measure("lease_held", of, i64::from(held.is_some()), Limit::default());
    if let Some(row) = leases.iter().find(|row| row.state == "unreadable") {
        health.find(Status::Warning, format!("the lease of {job} (epoch {}) cannot be read", row.epoch));
    }
    let (mut running, mut stalled) = (0, 0);
    for row in status::run(volume, Some(job), clock)? {
        let node = &row.progress.node;
        if row.state == "stalled" {
            stalled += 1;
            let what = format!("a run of {job} on {node} has said nothing for {} s", row.silent_seconds);
            health.find(Status::Warning, what);
        } else {
            running += 1;
            health.find(Status::Ok, format!("a run of {job} goes on on {node}"));
        }
    }
    health.measure("running", of, running, Limit::default());
    health.measure("stalled", of, stalled, Limit::default());
    Ok(())
}

/// How a run of a job ended, for the numbers that are written after it.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The job.
    pub job: Name,
    /// Its exit code.
    pub exit: u8,
    /// How long it took, seconds.
    pub seconds: f64,
    /// When it ended, seconds since 1970.
    pub ended_at: i64,
}

impl Ran {
    /// A run that ends now.
    pub fn now(job: &Name, exit: u8, seconds: f64) -> Result<Self> {
        Ok(Self { job: job.clone(), exit, seconds, ended_at: System.now()?.as_second() })
    }
}

/// The numbers in the text format of Prometheus.
pub fn prometheus(outcome: Option<&Outcome>, ran: Option<&Ran>) -> String {
    let mut text = String::new();
    let mut names: Vec<&str> = Vec::new();
    let mut metrics: Vec<Metric> = outcome.map_or_else(Vec::new, |outcome| outcome.health.metrics.clone());
    for metric in &mut metrics {
        metric.job = metric.job.take().or_else(|| ran.map(|ran| ran.job.clone()));
        if !names.contains(&metric.name) {
            names.push(metric.name);
        }
    }
    for name in names {
        let _ = writeln!(text, "# TYPE bk_{name} gauge");
        for metric in metrics.iter().filter(|metric| metric.name == name) {
            let job = metric.job.iter().map(|job| format!("job=\"{job}\""));
            let level = metric.level.iter().map(|level| format!("level=\"{level}\""));
            let volume = metric.volume.iter().map(|volume| format!("volume=\"{volume}\""));
            let labels = job.chain(level).chain(volume).collect::<Vec<_>>().join(",");
            let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
            let _ = writeln!(text, "bk_{name}{labels} {}", metric.value);
        }
    }
    if let Some(outcome) = outcome {
        let code = match outcome.status {
            Status::Ok => 0,
            Status::Warning => 1,
            Status::Critical => 2,
            Status::Unknown => 3,
        };
        // Files of several jobs lie in one directory: no two may have the same number.
        let label = ran.map_or_else(String::new, |ran| format!("{{job=\"{}\"}}", ran.job));
        let _ = writeln!(text, "# TYPE bk_check_status gauge\nbk_check_status{label} {code}");
    }
    if let Some(Ran { job, exit, seconds, ended_at }) = ran {
        let mut one = |name: &str, value: String| {
            let _ = writeln!(text, "# TYPE bk_{name} gauge\nbk_{name}{{job=\"{job}\"}} {value}");
        };
        one("run_exit_code", exit.to_string());
        one("run_seconds", format!("{seconds:.3}"));
        one("run_ended_at_seconds", ended_at.to_string());
    }
    text
}

/// Puts a text in the place of a file, whole or not at all: who reads it meanwhile reads the old one.
pub fn replace(path: &Path, text: &str) -> Result<()> {
    let failed = |e: std::io::Error| Error::io(format!("cannot write {}", path.display()), e);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let name = path.file_name().ok_or_else(|| Error::usage(format!("{} names no file", path.display())))?;
    // The node exporter reads `*.prom`: what is being written has another ending.
    let mut temp = std::ffi::OsString::from(".");
    temp.push(name);
    temp.push(format!(".{}.new", std::process::id()));
    let temp = dir.join(temp);
    let written = std::fs::File::create(&temp).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.and_then(|()| std::fs::rename(&temp, path)).map_err(|e| {
        let _ = std::fs::remove_file(&temp);
        failed(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_prometheus() {
        let mut health = Health::default();
        let job: Name = "db".parse().unwrap();
        health.find(Status::Warning, "x");
        health.measure("age_seconds", (Some(&job), None), 5, Limit::default());
        health.measure("level_age_seconds", (Some(&job), Some(0)), 6, Limit::default());
        health.measure("volume_free_bytes", (None, None), 7, Limit::default());
        health.measure("age_seconds", (Some(&"home".parse().unwrap()), None), 8, Limit::default());
        let outcome = Outcome { status: health.status(), health };
        let ran = Ran { job, exit: 3, seconds: 1.5, ended_at: 9 };
        let expected = "# TYPE bk_age_seconds gauge\nbk_age_seconds{job=\"db\"} 5\nbk_age_seconds{job=\"home\"} 8\n\
                        # TYPE bk_level_age_seconds gauge\nbk_level_age_seconds{job=\"db\",level=\"0\"} 6\n\
                        # TYPE bk_volume_free_bytes gauge\nbk_volume_free_bytes{job=\"db\"} 7\n\
                        # TYPE bk_check_status gauge\nbk_check_status{job=\"db\"} 1\n\
                        # TYPE bk_run_exit_code gauge\nbk_run_exit_code{job=\"db\"} 3\n\
                        # TYPE bk_run_seconds gauge\nbk_run_seconds{job=\"db\"} 1.500\n\
                        # TYPE bk_run_ended_at_seconds gauge\nbk_run_ended_at_seconds{job=\"db\"} 9\n";
        assert_eq!(prometheus(Some(&outcome), Some(&ran)), expected);
        let check = prometheus(Some(&outcome), None);
        assert!(check.contains("\nbk_volume_free_bytes 7\n") && check.contains("\nbk_check_status 1\n"), "{check}");
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bk.prom");
        replace(&path, "one\n").unwrap();
        replace(&path, "two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        std::fs::create_dir(dir.path().join("is-dir")).unwrap();
        assert!(replace(&dir.path().join("is-dir"), "x").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left of it");
    }
}

//! Whether a job is healthy: how old its newest good snapshots are, whether they shrank, and whether all that is there is whole.
//!
//! A good snapshot is a live one whose chain is whole and whose objects are all there. Limits that nobody set are not looked at.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{interval::is_ahead, log::JobLog};
use crate::{
    format::record::Snapshot,
    model::{
        ids::Name,
        time::Instant,
        units::{show_age, show_size},
    },
};

/// What a monitoring system is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All is well.
    Ok,
    /// It cannot be told.
    Unknown,
    /// Somebody should look at it.
    Warning,
    /// Somebody must look at it now.
    Critical,
}

/// A limit: to warn from here on, and to call it critical.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// A warning from here on.
    pub warn: Option<u64>,
    /// Critical from here on.
    pub crit: Option<u64>,
}

impl Limits {
    /// Whether any age is too old.
    pub fn has_age(&self) -> bool {
        self.age != Limit::default() || self.level_age.iter().any(|limit| *limit != Limit::default())
    }
}

impl Limit {
    fn over(self, value: u64) -> Status {
        match self {
            Self { crit: Some(crit), .. } if value >= crit => Status::Critical,
            Self { warn: Some(warn), .. } if value >= warn => Status::Warning,
            _ => Status::Ok,
        }
    }

    fn under(self, value: u64) -> Status {
        match self {
            Self { crit: Some(crit), .. } if value <= crit => Status::Critical,
            Self { warn: Some(warn), .. } if value <= warn => Status::Warning,
            _ => Status::Ok,
        }
    }
}

/// What is too old, too small, too full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Age of the newest good snapshot, seconds.
    pub age: Limit,
    /// By level: age of the newest good one of that level or a lower one, seconds.
    pub level_age: [Limit; 10],
    /// How much less the newest holds than the one of its level before, percent.
    pub drop: Limit,
    /// Free space on the volume, bytes: too little from here down.
    pub free: Limit,
    /// Age of the newest drill, seconds.
    pub drill: Limit,
}

/// The newest drill of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drilled {
    /// The snapshot that was restored.
    pub seq: u64,
    /// When.
    pub ended_at: Instant,
    /// Why it failed, when it did.
    pub why: Option<String>,
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it is.
    pub status: Status,
    /// In words.
    pub text: String,
}

/// A number for graphs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Metric {
    /// `age_seconds`
    pub name: &'static str,
    /// Of which job; none for the volume.
    pub job: Option<Name>,
    /// Of which level.
    pub level: Option<u8>,
    /// On which volume, by its configured name, where several were looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume: Option<Name>,
    /// The value.
    pub value: i64,
    /// What its limits are.
    #[serde(skip)]
    pub limit: Limit,
}

/// What was found of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Health {
    /// What was looked at; the first one is in short.
    pub findings: Vec<Finding>,
    /// Numbers.
    pub metrics: Vec<Metric>,
}

impl Health {
    /// Notes what was found.
    pub fn find(&mut self, status: Status, text: impl Into<String>) {
        self.findings.push(Finding { status, text: text.into() });
    }

    /// Notes a number.
    pub fn measure(&mut self, name: &'static str, of: (Option<&Name>, Option<u8>), value: i64, limit: Limit) {
        self.metrics.push(Metric { name, job: of.0.cloned(), level: of.1, volume: None, value, limit });
    }

    /// The worst of all.
    pub fn status(&self) -> Status {
        self.findings.iter().map(|finding| finding.status).max().unwrap_or(Status::Unknown)
    }
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn age(snapshot: &Snapshot, now: Instant) -> u64 {
    u64::try_from(now.as_second().saturating_sub(snapshot.taken_at.as_second())).unwrap_or(0)
}

/// Looks at a job. `unusable` are live snapshots whose objects are not all there.
pub fn job(log: &JobLog, unusable: &BTreeSet<u64>, limits: &Limits, now: Instant) -> Health {
    let mut health = Health::default();
    let whole = |snapshot: &&Snapshot| {
        log.chain(snapshot).is_ok_and(|chain| !chain.iter().any(|member| unusable.contains(&member.seq)))
    };
    let good: Vec<&Snapshot> = log.live().filter(whole).collect();
    ages(&mut health, log, &good, limits, now);
    sizes(&mut health, log, &good, limits);
    let broken: Vec<String> =
        log.live().filter(|snapshot| !whole(snapshot)).map(|one| format!("{}/{}", log.job, one.seq)).collect();
    if !broken.is_empty() {
        health.find(Status::Critical, format!("cannot be restored: {}", broken.join(" ")));
    }
    if let Some(fault) = log.faults.first() {
        health.find(Status::Critical, format!("the log of {} is damaged: {fault}", log.job));
    }
    if let Some(last) = good.last().filter(|last| last.totals.incomplete > 0) {
        let what = format!("{} entries of {}/{} are incomplete", last.totals.incomplete, log.job, last.seq);
        health.find(Status::Warning, what);
    }
    let of = (Some(&log.job), None);
    health.measure("snapshots", of, signed(log.live().count() as u64), Limit::default());
    health.measure("broken_snapshots", of, signed(broken.len() as u64), Limit::default());
    health.measure("log_faults", of, signed(log.faults.len() as u64), Limit::default());
    health
}

fn ages(health: &mut Health, log: &JobLog, good: &[&Snapshot], limits: &Limits, now: Instant) {
    let job = &log.job;
    // The newest by the log may be a copy of an older one.
    let believed = || good.iter().filter(|one| !is_ahead(one.taken_at, now));
    let newest = |level: u8| believed().filter(|one| one.level <= level).max_by_key(|one| one.taken_at.as_second());
    let ahead = good.len() - believed().count();
    if let Some(one) = good.iter().rfind(|one| is_ahead(one.taken_at, now)) {
        let (seq, at) = (one.seq, one.taken_at);
        let what = format!("{job}/{seq} has a stamp of {at}, and it is {now} now: a clock is wrong, or was then");
        health.find(Status::Warning, what);
    }
    let Some(last) = newest(9) else {
        let count = log.live().count();
        let what = match (count, ahead) {
            (0, _) => "no snapshot".to_owned(),
            (_, 0) => format!("none of {count} snapshots can be restored"),
            _ => "no snapshot whose age is known".to_owned(),
        };
        return health.find(Status::Critical, format!("{job}: {what}"));
    };
    let old = age(last, now);
    let status = limits.age.over(old);
    health.find(status, format!("{job}/{} of level {} is {} old", last.seq, last.level, show_age(old)));
    health.measure("age_seconds", (Some(job), None), signed(old), limits.age);
    for level in 0..10u8 {
        let limit = limits.level_age[usize::from(level)];
        let is_asked = limit != Limit::default();
        match newest(level) {
            None if is_asked => {
                health.find(Status::Critical, format!("{job} has no snapshot of level {level} or below"))
            }
            None => {}
            Some(one) => {
                let old = age(one, now);
                if is_asked {
                    let status = limit.over(old);
                    health.find(status, format!("level {level}: {job}/{} is {} old", one.seq, show_age(old)));
                }
                if is_asked || one.level == level {
                    health.measure("level_age_seconds", (Some(job), Some(level)), signed(old), limit);
                }
            }
        }
    }
}

fn sizes(health: &mut Health, log: &JobLog, good: &[&Snapshot], limits: &Limits) {
    let Some((last, before)) = good.split_last() else { return };
    let of = (Some(&log.job), None);
    let totals = &last.totals;
    health.measure("content_bytes", of, signed(totals.content_bytes), Limit::default());
    health.measure("stored_bytes", of, signed(totals.stored_bytes + totals.index_bytes), Limit::default());
    health.measure("incomplete_entries", of, signed(totals.incomplete), Limit::default());
    let Some(before) = before.iter().rev().find(|one| one.level == last.level) else { return };
    let (now, then) = (totals.content_bytes, before.totals.content_bytes);
    let less = then.saturating_sub(now);
    let percent = u64::try_from(u128::from(less) * 100 / u128::from(then.max(1))).unwrap_or(100);
    health.measure("drop_percent", of, signed(percent), limits.drop);
    let status = limits.drop.over(percent);
    if status != Status::Ok {
        let (job, now, then) = (&log.job, show_size(now), show_size(then));
        health.find(
            status,
            format!("{job}/{} holds {now}, {job}/{} held {then}: {percent} % less", last.seq, before.seq),
        );
    }
}

/// Looks at the newest drill of a job. One that failed is critical, however old: what is stored could not be restored then.
pub fn drill(health: &mut Health, job: &Name, last: Option<&Drilled>, limits: &Limits, now: Instant) {
    let of = (Some(job), None);
    let Some(last) = last else {
        let missing = match limits.drill {
            Limit { crit: Some(_), .. } => Status::Critical,
            Limit { warn: Some(_), .. } => Status::Warning,
            _ => return,
        };
        return health.find(missing, format!("{job} was never restored by a drill"));
    };
    let old = u64::try_from(now.as_second().saturating_sub(last.ended_at.as_second())).unwrap_or(0);
    let (seq, shown) = (last.seq, show_age(old));
    match &last.why {
        Some(why) => health.find(Status::Critical, format!("the drill of {job}/{seq}, {shown} ago, failed: {why}")),
        None => health.find(limits.drill.over(old), format!("a drill of {job}/{seq} passed {shown} ago")),
    }
    health.measure("drill_age_seconds", of, signed(old), limits.drill);
    health.measure("drill_passed", of, i64::from(last.why.is_none()), Limit::default());
}

/// Looks at the space of a volume, when that is known.
pub fn space(health: &mut Health, free_bytes: Option<u64>, limits: &Limits) {
    let Some(free) = free_bytes else { return };
    health.measure("volume_free_bytes", (None, None), signed(free), limits.free);
    let status = limits.free.under(free);
    if status != Status::Ok {
        health.find(status, format!("the volume has {} free", show_size(free)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Error,
        plan::log::tests::{Made, day},
    };

    const DAY: u64 = 86_400;

    fn over(warn: u64, crit: u64) -> Limit {
        Limit { warn: Some(warn), crit: Some(crit) }
    }

    /// Level 0 on day 1, level 1 on day 2.
    fn made() -> Made {
        let mut made = Made::new();
        made.snapshot(0, None, None);
        made.snapshot(1, Some(1), None);
        made
    }

    #[test]
    fn every_limit_has_its_status() {
        use Status::{Critical, Ok, Warning};
        let ages = |warn: u64, crit: u64| Limits { age: over(warn * DAY, crit * DAY), ..Limits::default() };
        let level = |level: usize, warn: u64, crit: u64| {
            let mut limits = Limits::default();
            limits.level_age[level] = over(warn * DAY, crit * DAY);
            limits
        };
        for (limits, on, expected) in [
            (Limits::default(), 1000, Ok),
            (ages(3, 5), 4, Ok),
            (ages(3, 5), 5, Warning),
            (ages(3, 5), 7, Critical),
            (level(0, 3, 5), 4, Warning),
            (level(0, 3, 5), 6, Critical),
            (level(0, 30, 50), 6, Ok),
            (level(1, 3, 5), 4, Ok),
            (level(9, 3, 5), 5, Warning),
        ] {
            let health = job(&made().log, &BTreeSet::new(), &limits, day(on));
            assert_eq!(health.status(), expected, "{limits:?} on day {on}: {health:?}");
        }
    }

    /// One stamp far ahead hides neither how old the others are, nor itself.
    #[test]
    fn a_stamp_that_is_ahead_says_nothing_of_age() {
        let limits = Limits { age: over(3 * DAY, 5 * DAY), ..Limits::default() };
        let mut made = made();
        made.log.states[0].snapshot.taken_at = day(400);
        for (on, expected) in [(3, Status::Warning), (5, Status::Warning), (7, Status::Critical)] {
            let health = job(&made.log, &BTreeSet::new(), &limits, day(on));
            let text = health.findings.iter().map(|f| f.text.clone()).collect::<Vec<_>>().join("\n");
            assert_eq!(health.status(), expected, "day {on}: {text}");
            assert!(text.contains("db/1 has a stamp of") && text.contains("db/2 of level 1 is"), "{text}");
        }
        made.log.states[1].snapshot.taken_at = day(400);
        assert_eq!(job(&made.log, &BTreeSet::new(), &limits, day(3)).status(), Status::Critical);
    }

    #[test]
    fn what_cannot_be_restored_is_critical_and_no_backup() {
        let made = made();
        let limits = Limits { age: over(3 * DAY, 5 * DAY), ..Limits::default() };
        let looked = |unusable: &[u64], on| job(&made.log, &unusable.iter().copied().collect(), &limits, day(on));
        let text = |health: &Health| health.findings.iter().map(|f| f.text.clone()).collect::<Vec<_>>().join("\n");
        let health = looked(&[2], 4);
        assert_eq!(health.status(), Status::Critical);
        assert!(
            text(&health).contains("db/1 of level 0 is 3 d old") && text(&health).contains("restored: db/2"),
            "{health:?}"
        );
        let health = looked(&[1], 4);
        assert!(text(&health).contains("none of 2 snapshots") && text(&health).contains("db/1 db/2"), "{health:?}");
        assert!(text(&job(&Made::new().log, &BTreeSet::new(), &limits, day(1))).contains("no snapshot"));
        let mut made = self::made();
        made.log.push(3, Err(Error::integrity("torn")));
        assert_eq!(job(&made.log, &BTreeSet::new(), &limits, day(3)).status(), Status::Critical);
    }

    #[test]
    fn a_snapshot_that_shrank_is_told() {
        let mut made = Made::new();
        for _ in 0..2 {
            made.snapshot(0, None, None);
        }
        made.snapshot(1, Some(2), None);
        let limits = Limits { drop: over(50, 90), ..Limits::default() };
        let mut with = |sizes: [u64; 3]| {
            for (state, size) in made.log.states.iter_mut().zip(sizes) {
                state.snapshot.totals.content_bytes = size;
            }
            job(&made.log, &BTreeSet::new(), &limits, day(4)).status()
        };
        assert_eq!(with([1000, 1000, 1]), Status::Ok, "of another level");
        let expire = |made: &mut Made| made.expire(&[3]);
        expire(&mut made);
        let mut with = |sizes: [u64; 3]| {
            for (state, size) in made.log.states.iter_mut().zip(sizes) {
                state.snapshot.totals.content_bytes = size;
            }
            job(&made.log, &BTreeSet::new(), &limits, day(4)).status()
        };
        for (sizes, expected) in [
            ([1000, 1000, 0], Status::Ok),
            ([1000, 501, 0], Status::Ok),
            ([1000, 500, 0], Status::Warning),
            ([1000, 5000, 0], Status::Ok),
            ([1000, 100, 0], Status::Critical),
            ([0, 0, 0], Status::Ok),
        ] {
            assert_eq!(with(sizes), expected, "{sizes:?}");
        }
    }

    #[test]
    fn drills_have_an_age_and_a_result() {
        let job: Name = "db".parse().unwrap();
        let limits = Limits { drill: over(3 * DAY, 5 * DAY), ..Limits::default() };
        let warns = Limits { drill: Limit { warn: Some(DAY), crit: None }, ..Limits::default() };
        let passed = Drilled { seq: 7, ended_at: day(1), why: None };
        let failed = Drilled { why: Some("digest differs".to_owned()), ..passed.clone() };
        for (last, limits, on, expected) in [
            (None, &Limits::default(), 9, Status::Unknown),
            (None, &warns, 9, Status::Warning),
            (None, &limits, 9, Status::Critical),
            (Some(&passed), &limits, 2, Status::Ok),
            (Some(&passed), &limits, 5, Status::Warning),
            (Some(&passed), &limits, 7, Status::Critical),
            (Some(&passed), &Limits::default(), 900, Status::Ok),
            (Some(&failed), &Limits::default(), 2, Status::Critical),
        ] {
            let mut health = Health::default();
            drill(&mut health, &job, last, limits, day(on));
            assert_eq!(health.status(), expected, "{last:?} on day {on}: {health:?}");
        }
    }

    #[test]
    fn a_full_volume_is_told() {
        let limits = Limits { free: over(100, 10), ..Limits::default() };
        for (free, expected) in
            [(Some(101), Status::Ok), (Some(100), Status::Warning), (Some(10), Status::Critical), (None, Status::Ok)]
        {
            let mut health = Health::default();
            health.find(Status::Ok, "x");
            space(&mut health, free, &limits);
            assert_eq!(health.status(), expected, "{free:?}");
        }
    }
}

//! `bk check`, and the numbers of `bk snapshot --metrics`

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
};

pub use crate::ops::health::Ran;

use super::{Context, Ended};
use crate::{
    clock::System,
    config::{
        job::{Chosen, Job},
        keys::CheckText,
        meaning::Named,
        typed::CheckArgs,
        volume::Target,
    },
    error::{Error, Result},
    model::{ids::Name, show, span::Span, time::Lifetime, units::parse_size},
    ops::health::{self, Jobs, Outcome},
    plan::health::{Finding, Health, Limit, Limits, Metric, Status},
};

/// A snapshot that holds so many percent less than the one of its level before is worth a warning.
const WARN_DROP: u64 = 50;

pub fn run(context: &Context<'_>, args: &CheckArgs) -> Result<Ended> {
    // What is typed wrongly is said in the way of every verb; all else in the way of a monitoring system.
    let typed = limits(args)?;
    let jobs = args.jobs.iter().map(|job| job.parse()).collect::<Result<Vec<Name>>>()?;
    let mut health = Health::default();
    let groups = groups(context, &jobs).unwrap_or_else(|e| {
        health.find(Status::Unknown, e.to_string());
        Vec::new()
    });
    let is_one = groups.len() == 1;
    for (name, jobs) in groups {
        let volume = context.target(name.map(Named::Volume)).and_then(|target| super::open(&target));
        match volume.and_then(|volume| health::run(&volume, &jobs, &|job| of_job(context, job, &typed), &System)) {
            Ok(mut outcome) => {
                let of_volume = outcome.health.metrics.iter_mut().filter(|metric| metric.job.is_none());
                of_volume.for_each(|metric| metric.volume = name.filter(|_| !is_one).cloned());
                health.findings.extend(outcome.health.findings);
                health.metrics.extend(outcome.health.metrics);
            }
            Err(e) => health.find(Status::Unknown, e.to_string()),
        }
    }
    if health.findings.is_empty() {
        health.find(Status::Unknown, "there is no job");
    }
    let mut outcome = Outcome { status: health.status(), health };
    if let Some(path) = &args.prometheus
        && let Err(e) = health::replace(path, &health::prometheus(Some(&outcome), None))
    {
        // Whatever was found is told all the same.
        outcome.health.find(Status::Warning, e.to_string());
        outcome.status = outcome.health.status();
    }
    if context.out.is_json() {
        context.out.object("result", &outcome)?;
    } else {
        context.out.line(&text(&outcome))?;
    }
    Ok(Ended::Health(outcome.status))
}

/// What is to be looked at, by volume: as typed (none where that is no configured name), or all that is configured.
fn groups<'c>(context: &'c Context<'_>, typed: &[Name]) -> Result<Vec<(Option<&'c Name>, Jobs)>> {
    let jobs = typed.iter().map(|job| context.stored(job)).collect::<Result<Vec<Name>>>()?;
    if context.has_typed_volume() {
        return Ok(vec![(None, if jobs.is_empty() { Jobs::All } else { Jobs::Named(jobs) })]);
    }
    let config = context.config()?;
    let default = config.default_volume();
    if !jobs.is_empty() {
        let mut groups: BTreeMap<Option<&Name>, Vec<Name>> = BTreeMap::new();
        for job in jobs {
            groups.entry(config.volume_of(&job).or(default)).or_default().push(job);
        }
        return Ok(groups.into_iter().map(|(volume, jobs)| (volume, Jobs::Named(jobs))).collect());
    }
    let mut groups: BTreeMap<Option<&Name>, Vec<(Name, bool)>> = BTreeMap::new();
    if default.is_some() || config.text.job.is_empty() {
        groups.insert(default, Vec::new());
    }
    let mut elsewhere = Vec::new();
    for (name, text) in &config.text.job {
        let job = context.stored(name)?;
        let own = config.volume_of(&job).or(default);
        let by_role: BTreeSet<&Name> = text.role.iter().flatten().filter_map(|(_, set)| set.volume.as_ref()).collect();
        // Where it lies depends on the role: it is looked at wherever it is.
        let must = by_role.is_empty();
        let volumes: BTreeSet<Option<&Name>> = by_role.into_iter().map(Some).chain([own]).collect();
        if !volumes.contains(&default) {
            elsewhere.push(job.clone());
        }
        for volume in volumes {
            groups.entry(volume).or_default().push((job.clone(), must));
        }
    }
    // Others on the default volume are other nodes' jobs, or were configured once; copies of jobs of other volumes are not looked at here.
    let expected = |volume: Option<&Name>, names| {
        let others_but = (volume == default).then(|| elsewhere.clone());
        Jobs::Expected { names, others_but }
    };
    Ok(groups.into_iter().map(|(volume, names)| (volume, expected(volume, names))).collect())
}

/// `BK OK - home/17 of level 1 is 3 h old | 'home_age_seconds'=10800s;93600;180000`, then what else there is to say.
fn text(outcome: &Outcome) -> String {
    let word = match outcome.status {
        Status::Ok => "OK",
        Status::Warning => "WARNING",
        Status::Critical => "CRITICAL",
        Status::Unknown => "UNKNOWN",
    };
    // The bar begins the numbers.
    let plain = |finding: &Finding| show::name(finding.text.as_bytes()).replace('|', "/");
    let mut findings: Vec<&Finding> = outcome.health.findings.iter().collect();
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.status));
    let first = findings.first().map_or_else(String::new, |first| plain(first));
    let mut text = format!("BK {word} - {first} |");
    for metric in &outcome.health.metrics {
        let _ = write!(text, " {}", performance(metric));
    }
    for finding in findings.iter().skip(1) {
        let _ = write!(text, "\n{}", plain(finding));
    }
    text
}

/// `'home_age_seconds'=10800s;93600;180000`; where little is too little, limits are ranges that end in nothing.
fn performance(metric: &Metric) -> String {
    let job = metric.job.as_ref().or(metric.volume.as_ref()).map_or_else(String::new, |name| format!("{name}_"));
    let level = metric.level.map_or_else(String::new, |level| format!("_{level}"));
    let unit = match metric.name.rsplit('_').next() {
        Some("seconds") => "s",
        Some("bytes") => "B",
        Some("percent") => "%",
        _ => "",
    };
    let after = if metric.name == "volume_free_bytes" { ":" } else { "" };
    let limit = |limit: Option<u64>| limit.map_or_else(String::new, |limit| format!("{limit}{after}"));
    let Limit { warn, crit } = metric.limit;
    let limits = match (warn, crit) {
        (None, None) => String::new(),
        (warn, None) => format!(";{}", limit(warn)),
        (warn, crit) => format!(";{};{}", limit(warn), limit(crit)),
    };
    format!("'{job}{}{level}'={}{unit}{limits}", metric.name, metric.value)
}

fn limits(args: &CheckArgs) -> Result<Limits> {
    let mut limits = Limits::default();
    for (texts, is_crit) in [(&args.warn_age, false), (&args.crit_age, true)] {
        for text in texts {
            let (level, time) = match text.split_once('=') {
                Some((level, time)) => (Some(level.trim()), time),
                None => (None, text.as_str()),
            };
            let limit = match level.map(str::parse::<usize>) {
                None => &mut limits.age,
                Some(Ok(level @ 0..=9)) => &mut limits.level_age[level],
                Some(_) => return Err(Error::usage(format!("`{text}` does not begin with a level from 0 to 9"))),
            };
            let seconds = Some(seconds(time)?);
            *(if is_crit { &mut limit.crit } else { &mut limit.warn }) = seconds;
        }
    }
    limits.drop = Limit { warn: args.warn_drop, crit: args.crit_drop };
    let time = |text: &Option<String>| text.as_ref().map(|text| seconds(text)).transpose();
    limits.drill = Limit { warn: time(&args.warn_drill)?, crit: time(&args.crit_drill)? };
    let size = |text: &Option<String>| text.as_ref().map(|text| parse_size(text)).transpose();
    limits.free = Limit { warn: size(&args.warn_free)?, crit: size(&args.crit_free)? };
    Ok(limits)
}

/// What was typed, and for what was not, what the job's `check` says.
fn of_job(context: &Context<'_>, stored: &Name, typed: &Limits) -> Result<Limits> {
    let config = context.config()?;
    let text = match config.job_of(stored) {
        Some(name) => {
            let open = Chosen { is_open: true, ..Chosen::default() };
            Job::resolve(config, name, &open)?.text.check.unwrap_or_default()
        }
        None => CheckText::default(),
    };
    let span = |span: Option<Span>| span.map(|span| span.0.as_secs());
    let (mut limits, size) = (typed.clone(), text.min_free.map(|size| size.0));
    limits.age.warn = typed.age.warn.or(span(text.warn_age));
    limits.age.crit = typed.age.crit.or(span(text.max_age));
    limits.level_age[0].crit = typed.level_age[0].crit.or(span(text.max_age_full));
    limits.drop.warn = typed.drop.warn.or(text.max_drop.map(|percent| u64::from(percent.0))).or(Some(WARN_DROP));
    limits.free.warn = typed.free.warn.or(size);
    limits.drill.warn = typed.drill.warn.or(span(text.max_drill_age));
    Ok(limits)
}

/// A span of weeks, days, hours, minutes.
fn seconds(text: &str) -> Result<u64> {
    match text.parse::<Lifetime>()? {
        Lifetime::For { months: 0, seconds } => Ok(u64::try_from(seconds).unwrap_or(0)),
        _ => Err(Error::usage(format!("`{text}` is no fixed time")).with_hint("write 26h, 8d or `1w 12h`")),
    }
}

/// After a run: how the job is, and how the run ended. What goes wrong here is only warned of.
pub fn after_run(context: &Context<'_>, path: &Path, target: &Target, ran: Result<Ran>) {
    let written = ran.and_then(|ran| {
        // A volume that cannot be reached is told by the exit code.
        let outcome = super::open(target).and_then(|volume| {
            let limits = |job: &Name| of_job(context, job, &Limits::default());
            health::run(&volume, &Jobs::Named(vec![ran.job.clone()]), &limits, &System)
        });
        health::replace(path, &health::prometheus(outcome.ok().as_ref(), Some(&ran)))
    });
    if let Err(e) = written {
        context.out.warn(&format!("no metrics: {e}"));
    }
}

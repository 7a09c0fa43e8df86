//! One command of a step: tried as often as the step says, or asked until it agrees.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{
    Values,
    process::{self, Call, End, Ran},
};
use crate::{
    config::step::Step,
    error::{Error, Kind, Result},
    monitor::Monitor,
};

/// Exit codes from here on are a shell's: not executable, not found, ended by a signal.
const SHELL_CODE_MIN: i32 = 126;
/// How often a pause looks whether the run is stopped.
const TICK: Duration = Duration::from_millis(50);

/// Which of a step's commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "named as in the configuration")]
pub enum Phase {
    When,
    Enter,
    EnterUntil,
    Leave,
    LeaveUntil,
    Run,
    /// A stream of a snapshot that a command of a runbook reads.
    Stream,
}

impl Phase {
    /// As in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::When => "when",
            Self::Enter => "enter",
            Self::EnterUntil => "enter_until",
            Self::Leave => "leave",
            Self::LeaveUntil => "leave_until",
            Self::Run => "run",
            Self::Stream => "stream",
        }
    }
}

/// What a command of a step came to.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The step.
    pub step: String,
    /// Which of its commands.
    pub phase: Phase,
    /// `done`, `failed`, or `skipped` for a condition that does not hold.
    pub result: &'static str,
    /// How often it was run.
    pub tries: u32,
    /// How long that took, pauses included.
    pub seconds: f64,
    /// How the last try ended.
    #[serde(flatten)]
    pub end: End,
}

struct One<'a> {
    step: &'a Step,
    phase: Phase,
    argv: &'a [String],
    values: Values,
    input: Option<&'a [u8]>,
    monitor: &'a dyn Monitor,
    stop: &'a dyn Fn() -> bool,
}

impl One<'_> {
    fn run(&self, timeout: Duration) -> Ran {
        let call = Call {
            argv: self.argv,
            user: self.step.user.as_deref(),
            values: &[&self.step.env, &self.values],
            timeout,
            input: self.input,
            is_kept: false,
        };
        let (step, phase) = (&self.step.name, self.phase.name());
        process::run(&call, self.stop, &mut |line| self.monitor.note(&format!("{step} {phase}: {line}")))
    }

    /// Waits before the next try; `false` when the run is stopped.
    fn pause(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        while Instant::now() < end && !(self.stop)() {
            std::thread::sleep(TICK.min(end.saturating_duration_since(Instant::now())));
        }
        !(self.stop)()
    }

    fn report(&self, result: &'static str, tries: u32, since: Instant, end: End) -> Report {
        let seconds = (since.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        self.monitor.note(&format!("{} {}: {result} in {seconds} s", self.step.name, self.phase.name()));
        Report { step: self.step.name.to_string(), phase: self.phase, result, tries, seconds, end }
    }

    fn failed(&self, ran: &Ran, how: &str) -> Error {
        let what = format!("step {}: {}: {}{how}", self.step.name, self.phase.name(), ran.why);
        match self.monitor.interrupted() {
            Some(signal) if ran.end == End::Stopped => Error::new(Kind::Signal(signal), what),
            _ => Error::new(Kind::Step, what),
        }
    }
}

fn one<'a>(
    step: &'a Step,
    phase: Phase,
    argv: &'a [String],
    values: &Values,
    input: Option<&'a [u8]>,
    monitor: &'a dyn Monitor,
    stop: &'a dyn Fn() -> bool,
) -> One<'a> {
    let mut values = values.clone();
    values.insert("BK_STEP".to_owned(), step.name.to_string());
    values.insert("BK_PHASE".to_owned(), phase.name().to_owned());
    One { step, phase, argv, values, input, monitor, stop }
}

/// Runs a command until it exits with 0, as often as the step says.
#[expect(clippy::too_many_arguments, reason = "what it runs, and where it tells of it")]
pub fn attempt(
    step: &Step,
    phase: Phase,
    argv: &[String],
    values: &Values,
    input: Option<&[u8]>,
    monitor: &dyn Monitor,
    stop: &dyn Fn() -> bool,
    reports: &mut Vec<Report>,
) -> Result<()> {
    let (one, since) = (one(step, phase, argv, values, input, monitor, stop), Instant::now());
    for n in 1.. {
        let ran = one.run(step.timeout);
        if ran.is_ok() {
            reports.push(one.report("done", n, since, ran.end));
            break;
        }
        if n < step.tries && ran.end != End::Stopped {
            monitor.warn(&format!("step {}: {}: {} (try {n} of {})", step.name, phase.name(), ran.why, step.tries));
            if one.pause(step.interval) {
                continue;
            }
        }
        reports.push(one.report("failed", n, since, ran.end));
        let ran = if stop() { Ran { end: End::Stopped, ..ran } } else { ran };
        return Err(one.failed(&ran, if n > 1 { " (the last of all tries)" } else { "" }));
    }
    Ok(())
}

/// Asks a command again and again until it exits with 0.
pub fn until(
    step: &Step,
    phase: Phase,
    argv: &[String],
    values: &Values,
    monitor: &dyn Monitor,
    stop: &dyn Fn() -> bool,
    reports: &mut Vec<Report>,
) -> Result<()> {
    let (one, since) = (one(step, phase, argv, values, None, monitor, stop), Instant::now());
    let mut tries = 0;
    loop {
        tries += 1;
        // An ask that has begun has its own time: one that waits itself is not cut short.
        let ran = one.run(step.timeout);
        if ran.is_ok() {
            reports.push(one.report("done", tries, since, ran.end));
            return Ok(());
        }
        let is_hopeless = matches!(ran.end, End::NotStarted | End::Stopped);
        let is_over = since.elapsed() + step.interval > step.max_wait;
        if !is_hopeless && !is_over && one.pause(step.interval) {
            continue;
        }
        reports.push(one.report("failed", tries, since, ran.end));
        let how = if is_over { format!(", for {}", crate::model::span::Span(step.max_wait)) } else { String::new() };
        let ran = if stop() { Ran { end: End::Stopped, ..ran } } else { ran };
        return Err(one.failed(&ran, &how));
    }
}

/// Asks a step's condition: 0 is yes, 1 to 125 no, anything else a failure.
pub fn applies(
    step: &Step,
    argv: &[String],
    values: &Values,
    monitor: &dyn Monitor,
    stop: &dyn Fn() -> bool,
    reports: &mut Vec<Report>,
) -> Result<bool> {
    let (one, since) = (one(step, Phase::When, argv, values, None, monitor, stop), Instant::now());
    let ran = one.run(step.timeout);
    match ran.end {
        End::Exited(0) => Ok(true),
        End::Exited(code) if code < SHELL_CODE_MIN => {
            reports.push(one.report("skipped", 1, since, ran.end));
            Ok(false)
        }
        end => {
            reports.push(one.report("failed", 1, since, end));
            Err(one.failed(&ran, ""))
        }
    }
}

//! Steps as configured: a user's commands around the work. [`Step`] is what the text means; it reads and writes as that text,
//! so that a journal holds a step whole and needs no configuration to leave it.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use crate::model::{ids::Name, span::Span};

/// Tries of each command.
const TRIES: u32 = 3;
const TRIES_MAX: u32 = 100;
/// How long one try of a command may take.
const TIMEOUT: Duration = Duration::from_secs(600);
/// How often an `…_until` command is asked, and how long at most.
const INTERVAL: Duration = Duration::from_secs(5);
const MAX_WAIT: Duration = Duration::from_secs(600);

/// A command as typed: an array, or with `shell = true` a line for `/bin/sh`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a command is an array of strings, or with `shell = true` one string")]
pub enum CommandText {
    /// Program and arguments.
    Argv(Vec<String>),
    /// A line for the shell.
    Line(String),
}

/// Program and arguments, at least the program; no shell reads it, unless it is one.
pub type Argv = Vec<String>;

impl CommandText {
    /// What is to be run. `what` names it in an error.
    pub fn argv(self, shell: bool, what: &str) -> Result<Argv, String> {
        match self {
            Self::Argv(argv) if argv.first().is_none_or(String::is_empty) => Err(format!("`{what}` names no program")),
            Self::Argv(argv) if argv.iter().any(|word| word.contains('\0')) => {
                Err(format!("`{what}` holds a zero byte"))
            }
            // A path may have spaces; a program that is looked for in PATH has none.
            Self::Argv(argv) if argv.len() == 1 && argv[0].contains(' ') && !argv[0].contains('/') => {
                let is_line = argv[0].contains(['|', '>', '<', ';', '&', '$']);
                let way =
                    if is_line { "a line for the shell wants `shell = true`" } else { "write each word by itself" };
                Err(format!("`{what} = [\"{}\"]` names one program with spaces: {way}", argv[0]))
            }
            Self::Argv(argv) => Ok(argv),
            Self::Line(line) if shell && !line.trim().is_empty() && !line.contains('\0') => {
                Ok(vec!["/bin/sh".to_owned(), "-c".to_owned(), line])
            }
            Self::Line(_) if shell => Err(format!("`{what}` is not a line for the shell")),
            Self::Line(line) => Err(format!(
                "`{what} = \"{line}\"` is one string: write an array, one word each, or add `shell = true`"
            )),
        }
    }
}

/// When a step that neither enters nor leaves is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum On {
    /// After a run that failed.
    Failure,
    /// After a run that took its snapshot.
    Success,
    /// After every run that began.
    End,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StepText", into = "StepText")]
pub struct Step {
    /// Its name, one of a kind in its job.
    pub name: Name,
    /// Brings the application to a safe state.
    pub enter: Option<Argv>,
    /// Asked until it exits with 0, after `enter`.
    pub enter_until: Option<Argv>,
    /// Opens the application again. Run whatever happened, so it should succeed when there is nothing to do.
    pub leave: Option<Argv>,
    /// Asked until it exits with 0, after `leave`.
    pub leave_until: Option<Argv>,
    /// The step is skipped when this exits with 1 to 125.
    pub when: Option<Argv>,
    /// A command after the run, and when; such a step has no other.
    pub after: Option<(On, Argv)>,
    /// Tries of `enter`, `leave` and `run`.
    pub tries: u32,
    /// How long one try may take.
    pub timeout: Duration,
    /// Between two askings of an `…_until`.
    pub interval: Duration,
    /// How long an `…_until` is asked.
    pub max_wait: Duration,
    /// Goes before all that are not, and before the volume is looked at.
    pub media: bool,
    /// May be left while the snapshot still goes on, when the job's `max_hold` is over.
    pub leave_early: bool,
    /// Takes the datasource offline: done only by runs that are to do so.
    pub offline: bool,
    /// Who runs it; bk's user when `None`.
    pub user: Option<String>,
    /// Added to the environment.
    pub env: BTreeMap<String, String>,
}

/// A step as typed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepText {
    pub(super) name: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) enter: Option<CommandText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) enter_until: Option<CommandText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) leave: Option<CommandText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) leave_until: Option<CommandText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) when: Option<CommandText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) on: Option<On>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) run: Option<CommandText>,
    #[serde(default)]
    pub(super) shell: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tries: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timeout: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) interval: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_wait: Option<Span>,
    #[serde(default)]
    pub(super) media: bool,
    #[serde(default)]
    pub(super) leave_early: bool,
    #[serde(default)]
    pub(super) offline: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) env: BTreeMap<String, String>,
}

impl TryFrom<StepText> for Step {
    type Error = String;

    fn try_from(text: StepText) -> Result<Self, String> {
        let name = text.name.ok_or("a step has no `name`")?;
        let shell = text.shell;
        let argv = |command: Option<CommandText>, what: &str| {
            command.map(|one| one.argv(shell, what)).transpose().map_err(|e| format!("step {name}: {e}"))
        };
        let step = Self {
            enter: argv(text.enter, "enter")?,
            enter_until: argv(text.enter_until, "enter_until")?,
            leave: argv(text.leave, "leave")?,
            leave_until: argv(text.leave_until, "leave_until")?,
            when: argv(text.when, "when")?,
            after: match (text.on, argv(text.run, "run")?) {
                (Some(on), Some(run)) => Some((on, run)),
                (None, None) => None,
                (Some(_), None) => return Err(format!("step {name}: `on` wants `run`, the command")),
                (None, Some(_)) => {
                    return Err(format!("step {name}: `run` wants `on`: \"failure\", \"success\" or \"end\""));
                }
            },
            tries: text.tries.unwrap_or(TRIES),
            timeout: text.timeout.map_or(TIMEOUT, |span| span.0),
            interval: text.interval.map_or(INTERVAL, |span| span.0),
            max_wait: text.max_wait.map_or(MAX_WAIT, |span| span.0),
            media: text.media,
            leave_early: text.leave_early,
            offline: text.offline,
            user: text.user,
            env: text.env,
            name,
        };
        step.check().map_err(|e| format!("step {}: {e}", step.name))?;
        Ok(step)
    }
}

impl Step {
    fn check(&self) -> Result<(), String> {
        let around = [&self.enter, &self.enter_until, &self.leave, &self.leave_until];
        let is_around = around.iter().any(|command| command.is_some());
        match &self.after {
            None if !is_around => Err("it has no command: `enter`, `leave`, or `run` with `on`".to_owned()),
            Some(_) if is_around => {
                Err("`run` stands alone: `enter` and `leave` belong to a step of their own".to_owned())
            }
            Some(_) if self.media || self.leave_early || self.offline => {
                Err("`media`, `leave_early` and `offline` are for steps with `enter` and `leave`".to_owned())
            }
            _ if self.media && self.leave_early => Err("media steps are never left early".to_owned()),
            _ if !(1..=TRIES_MAX).contains(&self.tries) => {
                Err(format!("`tries = {}` is not 1 to {TRIES_MAX}", self.tries))
            }
            _ if self.timeout.is_zero() || self.interval.is_zero() => {
                Err("`timeout` and `interval` are longer than nothing".to_owned())
            }
            _ => check_env(&self.env),
        }
    }
}

/// Names an environment can hold, and none of those bk sets itself.
pub(super) fn check_env(env: &BTreeMap<String, String>) -> Result<(), String> {
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(format!("`env`: `{}` cannot be in an environment", name.escape_default()));
        }
        if name.starts_with("BK_") {
            return Err(format!("`env`: names that begin with BK_ are bk's own: {name}"));
        }
    }
    Ok(())
}

impl From<Step> for StepText {
    fn from(step: Step) -> Self {
        let text = |argv: Option<Argv>| argv.map(CommandText::Argv);
        let (on, run) = step.after.unzip();
        Self {
            name: Some(step.name),
            enter: text(step.enter),
            enter_until: text(step.enter_until),
            leave: text(step.leave),
            leave_until: text(step.leave_until),
            when: text(step.when),
            on,
            run: text(run),
            shell: false,
            tries: Some(step.tries),
            timeout: Some(Span(step.timeout)),
            interval: Some(Span(step.interval)),
            max_wait: Some(Span(step.max_wait)),
            media: step.media,
            leave_early: step.leave_early,
            offline: step.offline,
            user: step.user,
            env: step.env,
        }
    }
}

/// Names are one of a kind in a job.
pub fn check_steps(steps: &[Step]) -> Result<(), String> {
    let mut names: Vec<&Name> = steps.iter().map(|step| &step.name).collect();
    names.sort();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("two steps have the name {}", pair[0])),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Step, String> {
        toml::from_str(text).map_err(|e| e.message().to_owned())
    }

    #[test]
    fn a_step_reads_as_it_was_written() {
        let step = read(
            "name = 'maintenance'\nenter = ['hvutil', '-m', 'on', 'app']\nenter_until = ['hvassert', 'Offline']\n\
             leave = 'hvutil -m off app'\nshell = true\ntimeout = '90s'\nenv = { SWSTGNODE = 'n1' }\nuser = 'root'",
        )
        .unwrap();
        assert_eq!(step.leave, Some(vec!["/bin/sh".into(), "-c".into(), "hvutil -m off app".into()]));
        assert_eq!((step.tries, step.timeout), (3, Duration::from_secs(90)));
        let json = serde_json::to_string(&step).unwrap();
        assert_eq!(serde_json::from_str::<Step>(&json).unwrap(), step);
        let note = read("name = 'tell'\non = 'failure'\nrun = ['mail']").unwrap();
        assert_eq!(serde_json::from_str::<Step>(&serde_json::to_string(&note).unwrap()).unwrap(), note);
    }

    #[test]
    fn what_is_no_step() {
        for (text, why) in [
            ("enter = ['x']", "no `name`"),
            ("name = 'a'", "no command"),
            ("name = 'a'\nenter = 'x y'", "one string"),
            ("name = 'a'\nenter = []", "names no program"),
            ("name = 'a'\nenter = 7", "a command is an array"),
            ("name = 'a'\nrun = ['x']", "wants `on`"),
            ("name = 'a'\non = 'failure'", "wants `run`"),
            ("name = 'a'\non = 'failure'\nrun = ['x']\nleave = ['x']", "stands alone"),
            ("name = 'a'\nenter = ['x']\ntries = 0", "not 1 to 100"),
            ("name = 'a'\nenter = ['x']\ntimeout = '5m'", "write 5min"),
            ("name = 'a'\nenter = ['x']\nenv = { BK_JOB = 'x' }", "bk's own"),
            ("name = 'a'\nenter = ['x']\nentre = ['x']", "unknown field `entre`"),
            ("name = 'A'\nenter = ['x']", "not a name"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}

//! A restore runbook as configured: actions in their order, each one a step, one restore of paths, or one stream into a command.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::step::{Argv, CommandText, On, Step, StepText, check_env};
use crate::model::{ids::Name, span::Span};

/// Tries of `run`. One: a command that changes what is there is not repeated unless that was said.
const RUN_TRIES: u32 = 1;

/// What an action does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Enters a step, which is left at the end.
    Step(Box<Step>),
    /// Restores paths of the snapshot's tree; all of them when none is named.
    Restore {
        /// The paths.
        paths: Vec<String>,
        /// What is left out.
        exclude: Vec<String>,
        /// Where to.
        target: PathBuf,
    },
    /// Feeds a stream of the snapshot into a command.
    Stream {
        /// The stream's name.
        stream: Name,
        /// The command.
        into: Argv,
        /// How long it may take; for ever when `None`.
        timeout: Option<Duration>,
        /// Who runs the command.
        user: Option<String>,
        /// Added to its environment.
        env: BTreeMap<String, String>,
    },
}

/// One action.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "ActionText")]
pub struct Action {
    /// Its name, one of a kind in its runbook.
    pub name: Name,
    /// What it does.
    pub deed: Deed,
}

/// An action as typed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ActionText {
    name: Option<Name>,
    enter: Option<CommandText>,
    enter_until: Option<CommandText>,
    leave: Option<CommandText>,
    leave_until: Option<CommandText>,
    when: Option<CommandText>,
    on: Option<On>,
    run: Option<CommandText>,
    run_until: Option<CommandText>,
    restore: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
    target: Option<PathBuf>,
    stream: Option<Name>,
    into: Option<CommandText>,
    #[serde(default)]
    shell: bool,
    tries: Option<u32>,
    timeout: Option<Span>,
    interval: Option<Span>,
    max_wait: Option<Span>,
    user: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

const ONE: &str = "it wants one of `run`, `run_until`, `enter` and `leave`, `restore`, or `stream` with `into`";

impl TryFrom<ActionText> for Action {
    type Error = String;

    fn try_from(text: ActionText) -> Result<Self, String> {
        let name = text.name.clone().ok_or("an action of a runbook has no `name`")?;
        let deed = text.deed().map_err(|e| match e.strip_prefix("step ") {
            Some(rest) => format!("action {rest}"),
            None => format!("action {name}: {e}"),
        })?;
        Ok(Self { name, deed })
    }
}

impl ActionText {
    fn deed(self) -> Result<Deed, String> {
        let around = [&self.enter, &self.enter_until, &self.leave, &self.leave_until];
        let is_around = around.iter().any(|command| command.is_some());
        let is_step = is_around || self.run.is_some() || self.run_until.is_some();
        if self.restore.is_none() && (self.exclude.is_some() || self.target.is_some()) {
            return Err("`exclude` and `target` belong to `restore`".to_owned());
        }
        match (is_step, self.restore.is_some(), self.stream.is_some() || self.into.is_some()) {
            (true, false, false) => self.step(is_around),
            (false, true, false) => self.restore(),
            (false, false, true) => self.stream(),
            _ => Err(ONE.to_owned()),
        }
    }

    fn step(self, is_around: bool) -> Result<Deed, String> {
        let is_run = self.run.is_some() || self.run_until.is_some();
        if is_around && is_run || self.run.is_some() && self.run_until.is_some() {
            return Err(ONE.to_owned());
        }
        if self.on.is_some() && self.run.is_none() {
            return Err("`on` wants `run`, the command".to_owned());
        }
        let mut text = StepText {
            name: self.name,
            enter: self.enter,
            enter_until: self.enter_until,
            leave: self.leave,
            leave_until: self.leave_until,
            when: self.when,
            on: self.on,
            shell: self.shell,
            tries: self.tries,
            timeout: self.timeout,
            interval: self.interval,
            max_wait: self.max_wait,
            user: self.user,
            env: self.env,
            ..StepText::default()
        };
        match (self.on, self.run, self.run_until) {
            (Some(_), run, _) => text.run = run,
            (None, run, until) if is_run => {
                (text.enter, text.enter_until) = (run, until);
                text.tries = text.tries.or(Some(RUN_TRIES));
            }
            _ => {}
        }
        Step::try_from(text).map(|step| Deed::Step(Box::new(step)))
    }

    fn restore(self) -> Result<Deed, String> {
        self.is_plain("restore")?;
        if self.timeout.is_some() || self.user.is_some() || !self.env.is_empty() || self.shell {
            return Err("`timeout`, `user`, `env` and `shell` are for commands".to_owned());
        }
        let target = self.target.unwrap_or_else(|| PathBuf::from("/"));
        if target.is_relative() {
            return Err(format!("`target`: {} is not an absolute path", target.display()));
        }
        let (paths, exclude) = (self.restore.unwrap_or_default(), self.exclude.unwrap_or_default());
        Ok(Deed::Restore { paths, exclude, target })
    }

    fn stream(self) -> Result<Deed, String> {
        self.is_plain("stream")?;
        check_env(&self.env)?;
        match (self.stream, self.into) {
            (Some(stream), Some(into)) => Ok(Deed::Stream {
                stream,
                into: into.argv(self.shell, "into")?,
                timeout: self.timeout.map(|span| span.0),
                user: self.user,
                env: self.env,
            }),
            (None, _) => Err("`into` wants `stream`, the name of what it reads".to_owned()),
            _ => Err("`stream` wants `into`, the command that reads it".to_owned()),
        }
    }

    /// Keys of steps have no place in what restores.
    fn is_plain(&self, what: &str) -> Result<(), String> {
        let keys = [
            ("when", self.when.is_some()),
            ("on", self.on.is_some()),
            ("tries", self.tries.is_some()),
            ("interval", self.interval.is_some()),
            ("max_wait", self.max_wait.is_some()),
        ];
        match keys.iter().find(|(_, is)| *is) {
            Some((key, _)) => Err(format!("`{key}` does not go with `{what}`")),
            None => Ok(()),
        }
    }
}

/// Names are one of a kind in a runbook.
pub fn check_actions(actions: &[Action]) -> Result<(), String> {
    let mut names: Vec<&Name> = actions.iter().map(|action| &action.name).collect();
    names.sort();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("two actions have the name {}", pair[0])),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions() {
        let read = |text: &str| toml::from_str::<Action>(text).map_err(|e| e.message().to_owned());
        let restore = read("name = 'files'\nrestore = []\nexclude = ['/a/b']").unwrap();
        assert!(matches!(&restore.deed, Deed::Restore { target, .. } if target.as_os_str() == "/"));
        let stream = read("name = 'db'\nstream = 'shop'\ninto = ['pg_restore', '-d', 'shop']").unwrap();
        assert!(matches!(stream.deed, Deed::Stream { .. }));
        let Deed::Step(run) = read("name = 'a'\nrun = ['x']").unwrap().deed else { panic!() };
        assert_eq!((run.enter.is_some(), run.leave.is_some(), run.tries), (true, false, 1));
        let Deed::Step(step) = read("name = 'a'\nenter = ['x']\nleave = ['y']").unwrap().deed else { panic!() };
        assert_eq!((step.leave.is_some(), step.tries), (true, 3));
        let Deed::Step(after) = read("name = 'a'\non = 'success'\nrun = ['x']").unwrap().deed else { panic!() };
        assert!(after.enter.is_none() && after.after.is_some());
        for (text, why) in [
            ("run = ['x']", "no `name`"),
            ("name = 'a'", "wants one of"),
            ("name = 'a'\nrun = ['x']\nrestore = []", "wants one of"),
            ("name = 'a'\nrun = ['x']\nenter = ['x']", "wants one of"),
            ("name = 'a'\nrun = ['x']\ntarget = '/'", "belong to `restore`"),
            ("name = 'a'\nrestore = []\ntarget = 'x'", "not an absolute path"),
            ("name = 'a'\nrestore = []\nwhen = ['x']", "`when` does not go with `restore`"),
            ("name = 'a'\nrestore = []\nuser = 'x'", "are for commands"),
            ("name = 'a'\nstream = 'x'", "wants `into`"),
            ("name = 'a'\ninto = ['x']", "wants `stream`"),
            ("name = 'a'\nstream = 'x'\ninto = ['x']\ntries = 2", "`tries` does not go with `stream`"),
            ("name = 'a'\nleave = ['x']\non = 'success'", "wants `run`"),
            ("name = 'a'\nrun = 'x y'", "one string"),
            ("name = 'a'\nrun = ['x']\ntries = 0", "1 to 100"),
        ] {
            assert!(read(text).is_err_and(|e| e.contains(why)), "{text}: {:?}", read(text));
        }
        assert!(check_actions(&[stream.clone(), stream]).is_err());
    }
}

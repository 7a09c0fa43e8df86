//! A restore runbook as configured: actions in their order, each one command, one restore of paths, or one stream into a command.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::step::{Argv, CommandText, check_env};
use crate::model::{ids::Name, span::Span};

/// How long one try of a command may take; a restore has no end but its own.
const TIMEOUT: Duration = Duration::from_secs(600);
/// How often, and how long at most, a command is asked that is run until it succeeds.
const INTERVAL: Duration = Duration::from_secs(5);
const MAX_WAIT: Duration = Duration::from_secs(600);
/// Tries of a command. One: a command that changes what is there is not repeated unless that was said.
const TRIES: u32 = 1;
const TRIES_MAX: u32 = 100;

/// What an action does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Runs a command.
    Run(Argv),
    /// Asks a command until it exits with 0.
    RunUntil(Argv),
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
    /// It is done even when one before it failed.
    pub always: bool,
    /// Tries of a command.
    pub tries: u32,
    /// How long one try may take; not for what restores.
    pub timeout: Duration,
    /// Between two askings.
    pub interval: Duration,
    /// How long is asked.
    pub max_wait: Duration,
    /// Who runs the command.
    pub user: Option<String>,
    /// Added to its environment.
    pub env: BTreeMap<String, String>,
}

/// An action as typed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ActionText {
    name: Option<Name>,
    run: Option<CommandText>,
    run_until: Option<CommandText>,
    restore: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
    target: Option<PathBuf>,
    stream: Option<Name>,
    into: Option<CommandText>,
    #[serde(default)]
    shell: bool,
    #[serde(default)]
    always: bool,
    tries: Option<u32>,
    timeout: Option<Span>,
    interval: Option<Span>,
    max_wait: Option<Span>,
    user: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

impl TryFrom<ActionText> for Action {
    type Error = String;

    fn try_from(mut text: ActionText) -> Result<Self, String> {
        let name = text.name.take().ok_or("an action of a runbook has no `name`")?;
        let deed = text.deed().map_err(|e| format!("action {name}: {e}"))?;
        check_env(&text.env).map_err(|e| format!("action {name}: {e}"))?;
        let tries = text.tries.unwrap_or(TRIES);
        if !(1..=TRIES_MAX).contains(&tries) {
            return Err(format!("action {name}: `tries = {tries}` is not 1 to {TRIES_MAX}"));
        }
        let span = |span: Option<Span>, default| span.map_or(default, |span| span.0);
        Ok(Self {
            deed,
            always: text.always,
            tries,
            timeout: span(text.timeout, TIMEOUT),
            interval: span(text.interval, INTERVAL),
            max_wait: span(text.max_wait, MAX_WAIT),
            user: text.user,
            env: text.env,
            name,
        })
    }
}

impl ActionText {
    fn deed(&mut self) -> Result<Deed, String> {
        const ONE: &str = "it wants one of `run`, `run_until`, `restore`, or `stream` with `into`";
        let shell = self.shell;
        let argv = |command: CommandText, what: &str| command.argv(shell, what);
        let (exclude, target) = (self.exclude.take(), self.target.take());
        if self.restore.is_none() && (exclude.is_some() || target.is_some()) {
            return Err("`exclude` and `target` belong to `restore`".to_owned());
        }
        match (self.run.take(), self.run_until.take(), self.restore.take(), self.stream.take(), self.into.take()) {
            (Some(run), None, None, None, None) => argv(run, "run").map(Deed::Run),
            (None, Some(run), None, None, None) => argv(run, "run_until").map(Deed::RunUntil),
            (None, None, Some(paths), None, None) => Ok(Deed::Restore {
                paths,
                exclude: exclude.unwrap_or_default(),
                target: target.unwrap_or_else(|| PathBuf::from("/")),
            }),
            (None, None, None, Some(stream), Some(into)) => Ok(Deed::Stream { stream, into: argv(into, "into")? }),
            (None, None, None, Some(_), None) => Err("`stream` wants `into`, the command that reads it".to_owned()),
            _ => Err(ONE.to_owned()),
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
        for (text, why) in [
            ("run = ['x']", "no `name`"),
            ("name = 'a'", "wants one of"),
            ("name = 'a'\nrun = ['x']\nrestore = []", "wants one of"),
            ("name = 'a'\nrun = ['x']\ntarget = '/'", "belong to `restore`"),
            ("name = 'a'\nstream = 'x'", "wants `into`"),
            ("name = 'a'\nrun = 'x y'", "one string"),
            ("name = 'a'\nrun = ['x']\ntries = 0", "1 to 100"),
        ] {
            assert!(read(text).is_err_and(|e| e.contains(why)), "{text}");
        }
        assert!(check_actions(&[stream.clone(), stream]).is_err());
    }
}

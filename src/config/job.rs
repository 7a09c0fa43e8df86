//! What a configured job means: its tables laid over each other, and its keys checked against each other.
//!
//! The order, first wins: `[job.NAME.role.ROLE]`, `[job.NAME]`, `[agent.NAME]`, `[defaults]`.

use std::{collections::BTreeMap, path::PathBuf};

use super::{
    file::Config,
    keys::{JobText, StreamText},
    meaning::{self, Storing, StoringText},
    runbook::check_actions,
    step::{Argv, Step, check_env, check_steps},
    value::Keep,
};
use crate::{
    error::{Error, Kind, Result},
    model::{ids::Name, time::Lifetime},
};

/// A job.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name in the configuration.
    pub name: Name,
    /// Its keys.
    pub text: JobText,
    /// Its streams.
    pub streams: Vec<(Name, Stream)>,
    /// It has sets by role, and the role is yet to be told.
    pub is_open: bool,
    /// The tables its keys come from, first wins.
    layers: Vec<Vec<String>>,
}

/// A stream of a job.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Where it comes from.
    pub from: From,
    /// What it must look like.
    pub text: StreamText,
}

/// Where a stream comes from.
#[derive(Clone, Debug)]
pub enum From {
    /// A command's output.
    Command(Argv),
    /// A block device.
    Device(PathBuf),
}

/// What chooses among a job's sets.
#[derive(Clone, Debug, Default)]
pub struct Chosen {
    /// The role of this node, when it is known.
    pub role: Option<Name>,
    /// The agent, when it was typed.
    pub agent: Option<Name>,
    /// The role will be told later: what does not depend on it holds till then.
    pub is_open: bool,
}

impl Job {
    /// The job `name`, with the keys that hold for this role and agent.
    pub fn resolve(config: &Config, name: &Name, chosen: &Chosen) -> Result<Self> {
        let Some(own) = config.job(name) else {
            return Err(Config::no_such("job", name.as_str(), config.text.job.keys()));
        };
        let mut layers = Vec::new();
        let mut text = JobText::default();
        let mut own = own.clone();
        let roles = own.role.take();
        let is_open = chosen.is_open && chosen.role.is_none() && roles.is_some();
        if let Some(roles) = roles.filter(|_| !is_open) {
            let role = chosen.role.as_ref().ok_or_else(|| needs_role(name, &roles))?;
            let other = || "other".parse::<Name>().ok().and_then(|other| roles.get_key_value(&other));
            let (key, set) = roles.get_key_value(role).or_else(other).ok_or_else(|| {
                let known = roles.keys().map(Name::as_str).collect::<Vec<_>>().join(", ");
                Error::usage(format!("job {name} has no set for the role {role}"))
                    .with_hint(format!("it has sets for {known}; `[job.{name}.role.other]` would be for all others"))
            })?;
            layers.push(["job", name.as_str(), "role", key.as_str()].map(str::to_owned).to_vec());
            text = text.over(set);
        }
        layers.push(["job", name.as_str()].map(str::to_owned).to_vec());
        text = text.over(&own);
        let agent = chosen.agent.clone().or_else(|| text.agent.clone()).or_else(|| config.text.defaults.agent.clone());
        if let Some(agent) = agent {
            let set = config.text.agent.get(&agent).ok_or_else(|| {
                let error = Config::no_such("agent", agent.as_str(), config.text.agent.keys());
                match chosen.agent {
                    Some(_) => error,
                    None => config.wrong(&["job", name.as_str(), "agent"], error),
                }
            })?;
            layers.push(["agent", agent.as_str()].map(str::to_owned).to_vec());
            text = text.over(set);
        }
        layers.push(vec!["defaults".to_owned()]);
        text = text.over(&config.text.defaults);
        let mut job = Self { name: name.clone(), text, streams: Vec::new(), is_open, layers };
        job.check(config)?;
        Ok(job)
    }

    /// Every set of the job, each resolved: what `config check` looks at.
    pub fn resolve_all(config: &Config, name: &Name) -> Result<Vec<Self>> {
        let roles: Vec<Name> =
            config.job(name).and_then(|own| own.role.as_ref()).into_iter().flat_map(BTreeMap::keys).cloned().collect();
        let one = |role: Option<Name>| Self::resolve(config, name, &Chosen { role, ..Chosen::default() });
        if roles.is_empty() { Ok(vec![one(None)?]) } else { roles.into_iter().map(|role| one(Some(role))).collect() }
    }

    /// The table a key comes from, with the key: its path in the configuration.
    pub fn path_of<'a>(&'a self, config: &Config, key: &'a str) -> Vec<&'a str> {
        let path = |layer: &'a Vec<String>| layer.iter().map(String::as_str).chain([key]).collect::<Vec<_>>();
        let found = self.layers.iter().map(path).find(|keys| config.value(keys).is_some());
        found.unwrap_or_else(|| vec!["job", self.name.as_str(), key])
    }

    /// An error of one of its keys.
    pub fn wrong(&self, config: &Config, key: &str, error: Error) -> Error {
        config.wrong(&self.path_of(config, key), error)
    }

    /// Its name on the volume: with `per_node`, each node's own.
    pub fn stored_name(&self, node: &str) -> Result<Name> {
        if self.text.per_node != Some(true) {
            return Ok(self.name.clone());
        }
        let node: Name = node
            .to_lowercase()
            .parse()
            .map_err(|e: Error| e.context("with `per_node` the node's name is part of the job's"))?;
        format!("{}.{node}", self.name).parse()
    }

    /// How it is stored; what was typed goes before what is configured.
    pub fn storing(&self, config: &Config, typed: &StoringText) -> Result<Storing> {
        let text = &self.text;
        let (frame_size, part_size) = (text.frame_size.map(|size| size.0), text.part_size.map(|size| size.0));
        for (key, alone) in [
            ("compression", StoringText { compression: text.compression.clone(), ..StoringText::default() }),
            ("frame_size", StoringText { frame_size, ..StoringText::default() }),
            ("part_size", StoringText { part_size, ..StoringText::default() }),
        ] {
            meaning::storing(&alone).map_err(|e| self.wrong(config, key, e))?;
        }
        meaning::storing(&StoringText {
            compression: typed.compression.clone().or_else(|| text.compression.clone()),
            frame_size: typed.frame_size.or(frame_size),
            part_size: typed.part_size.or(part_size),
        })
    }

    fn check(&mut self, config: &Config) -> Result<()> {
        let text = &self.text;
        for (role, set) in config.job(&self.name).and_then(|own| own.role.as_ref()).into_iter().flatten() {
            let keys =
                [("gate", set.gate.is_some()), ("node", set.node.is_some()), ("per_node", set.per_node.is_some())];
            if let Some((key, _)) = keys.iter().find(|(_, is_set)| *is_set) {
                let what = format!("`{key}` stands in the job: it holds before the role is known");
                return Err(config.wrong(&["job", self.name.as_str(), "role", role.as_str(), key], Error::usage(what)));
            }
        }
        let wrong = |key: &str, what: String| self.wrong(config, key, Error::usage(what));
        for (key, name) in text
            .volume
            .iter()
            .map(|name| ("volume", name))
            .chain(text.copy_to.iter().flatten().map(|name| ("copy_to", name)))
        {
            if config.volume(name).is_none() {
                let error = Config::no_such("volume", name.as_str(), config.text.volume.keys());
                return Err(self.wrong(config, key, error));
            }
        }
        if !self.is_open && text.volume.is_none() && config.text.volume.len() > 1 {
            let names = config.text.volume.keys().map(Name::as_str).collect::<Vec<_>>().join(", ");
            return Err(wrong("volume", format!("the job names no volume, and there are several: {names}")));
        }
        let own = text.volume.as_ref().or_else(|| config.text.volume.keys().next());
        if let Some(twice) = text.copy_to.iter().flatten().find(|copy| Some(*copy) == own) {
            return Err(wrong("copy_to", format!("{twice} is the job's own volume")));
        }
        if text.level.is_some_and(|level| level > 9) {
            return Err(wrong("level", format!("{} is not 0 to 9", text.level.unwrap_or_default())));
        }
        if text.level.is_some() && text.levels.is_some() {
            return Err(wrong("levels", "`level` and `levels` exclude each other".to_owned()));
        }
        let is_deep = config.job(&self.name).and_then(|own| own.role.as_ref()).into_iter().flat_map(BTreeMap::values);
        let is_deep =
            is_deep.chain(config.text.agent.values()).chain([&config.text.defaults]).any(|set| set.role.is_some());
        if is_deep {
            return Err(Error::usage(format!(
                "{}: sets by role stand in a job only",
                config.place(&["job", self.name.as_str(), "role"])
            )));
        }
        if text.min_interval == Some(Keep(Lifetime::Never)) {
            return Err(wrong("min_interval", "no snapshot would ever be taken".to_owned()));
        }
        if text.max_hold.is_some_and(|span| span.0.is_zero()) {
            return Err(wrong("max_hold", "no snapshot is taken in no time".to_owned()));
        }
        let is_offline = |steps: &Vec<Step>| steps.iter().any(|step| step.offline);
        if !self.is_open && text.offline == Some(true) && !text.step.as_ref().is_some_and(is_offline) {
            return Err(wrong("offline", "no step of the job is marked `offline = true`".to_owned()));
        }
        if let Some(metrics) = text.metrics.as_ref().filter(|path| path.is_relative() && !path.as_os_str().is_empty()) {
            return Err(wrong("metrics", format!("{} is not an absolute path", metrics.display())));
        }
        if let Some(steps) = &text.step {
            check_steps(steps).map_err(|e| wrong("step", e))?;
        }
        if let Some(actions) = &text.runbook {
            check_actions(actions).map_err(|e| wrong("runbook", e))?;
        }
        if let Some(drill) = &text.drill {
            check_env(&drill.env).map_err(|e| wrong("drill", e))?;
            if let Some(command) = &drill.command {
                command.clone().argv(drill.shell, "command").map_err(|e| wrong("drill", e))?;
            }
            if let Some(scratch) = drill.scratch.as_ref().filter(|dir| dir.is_relative()) {
                return Err(wrong("drill", format!("`scratch`: {} is not an absolute path", scratch.display())));
            }
        }
        self.streams = self.read_streams(config)?;
        if !self.is_open && self.text.paths.as_ref().is_none_or(Vec::is_empty) && self.streams.is_empty() {
            return Err(Error::usage(format!(
                "{}: job {} has nothing to store",
                config.place(&["job", self.name.as_str()]),
                self.name
            ))
            .with_hint("`paths` names trees, `[job.NAME.stream.NAME]` a command"));
        }
        Ok(())
    }

    fn read_streams(&self, config: &Config) -> Result<Vec<(Name, Stream)>> {
        let mut streams = Vec::new();
        for (name, text) in self.text.stream.iter().flatten() {
            let bad = |what: String| {
                let mut keys = self.path_of(config, "stream");
                keys.push(name.as_str());
                config.wrong(&keys, Error::usage(what))
            };
            check_env(&text.env).map_err(bad)?;
            let from = match (text.command.clone(), &text.device) {
                (Some(command), None) => From::Command(command.argv(text.shell, "command").map_err(bad)?),
                (None, Some(device)) => From::Device(device.clone()),
                _ => return Err(bad("it wants `command` or `device`, one of them".to_owned())),
            };
            if text.end_line.as_ref().is_some_and(|line| line.contains('\n') || line.is_empty()) {
                return Err(bad("`end_line` is one line".to_owned()));
            }
            let is_device = matches!(from, From::Device(_));
            let has_env = !text.env.is_empty() || !text.pass_env.is_empty();
            if is_device && (text.shell || text.user.is_some() || text.timeout.is_some() || has_env) {
                return Err(bad("`shell`, `user`, `timeout`, `env` and `pass_env` are for a `command`".to_owned()));
            }
            if text.timeout.is_some_and(|span| span.0.is_zero()) {
                return Err(bad("`timeout` is longer than nothing".to_owned()));
            }
            streams.push((name.clone(), Stream { from, text: text.clone() }));
        }
        Ok(streams)
    }
}

fn needs_role(name: &Name, roles: &BTreeMap<Name, JobText>) -> Error {
    let known = roles.keys().map(Name::as_str).collect::<Vec<_>>().join(", ");
    Error::new(Kind::Usage, format!("job {name} has sets by role, and this node's role is not known"))
        .with_hint(format!("its gate tells the role, or --role NAME does; there are sets for {known}"))
}

//! `bk config check`, `bk config show`, `bk config init`

use std::{io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use super::{
    Context, Ended,
    job::{self, Configured},
};
use crate::{
    config::{file::DEFAULT_FILE, job::Job, typed::ConfigCommand, volume::Target},
    error::{Error, Kind, Result},
    model::ids::Name,
};

/// What `bk config init` writes.
const EXAMPLE: &str = include_str!("../../docs/examples/bk.toml");

pub fn run(context: &Context<'_>, command: &ConfigCommand) -> Result<Ended> {
    match command {
        ConfigCommand::Check => check(context),
        ConfigCommand::Show { job: None, .. } => list(context),
        ConfigCommand::Show { job: Some(name), role, agent } => {
            let chosen = job::chosen(role.as_ref(), agent.as_ref())?;
            show(context, &Job::resolve(context.config()?, &name.parse()?, &chosen)?)
        }
        ConfigCommand::Init { file } => init(context, file.as_deref()),
    }
}

/// Says all that is wrong, and fails with the first.
fn check(context: &Context<'_>) -> Result<Ended> {
    let config = context.config()?;
    if config.files().next().is_none() {
        return Err(Error::usage("there is no configuration").with_hint("`bk config init` writes a first one"));
    }
    let access = context.access()?;
    let mut errors = Vec::new();
    for name in config.text.volume.keys() {
        errors.extend(Target::configured(config, name, &access).err());
    }
    for name in config.text.job.keys() {
        match Job::resolve_all(config, name) {
            Err(e) => errors.push(e),
            Ok(jobs) => errors.extend(jobs.iter().find_map(|job| Configured { config, job }.check().err())),
        }
    }
    let mut errors = errors.into_iter();
    let first = errors.next();
    errors.for_each(|e| {
        let hint = e.hint().map_or_else(String::new, |hint| format!(" ({hint})"));
        context.out.fault(&format!("error: {e}{hint}"));
    });
    match first {
        Some(e) => Err(e),
        None => {
            let (volumes, jobs) = (config.text.volume.len(), config.text.job.len());
            let files: Vec<String> = config.files().map(|path| path.display().to_string()).collect();
            if context.out.is_json() {
                context
                    .out
                    .object("result", &serde_json::json!({ "files": files, "volumes": volumes, "jobs": jobs }))?;
            } else {
                context.out.say(&format!("{}: {volumes} volumes, {jobs} jobs, no errors", files.join(", ")));
            }
            Ok(Ended::Done)
        }
    }
}

fn list(context: &Context<'_>) -> Result<Ended> {
    let config = context.config()?;
    let out = context.out;
    if out.is_json() {
        let names = |names: Vec<&Name>| names.into_iter().map(Name::as_str).collect::<Vec<_>>().join(" ");
        let volumes = names(config.text.volume.keys().collect());
        let jobs = names(config.text.job.keys().collect());
        out.object("result", &serde_json::json!({ "volumes": volumes, "jobs": jobs }))?;
        return Ok(Ended::Done);
    }
    for (name, volume) in &config.text.volume {
        let place = config.place(&["volume", name.as_str()]);
        let comment = volume.comment.as_ref().map_or_else(String::new, |text| format!("  {text}"));
        out.line(&format!("volume {name}  {}{comment}  # {place}", volume.url))?;
        for key in config.keys_of(&["volume", name.as_str()]) {
            let path = ["volume", name.as_str(), key.as_str()];
            if !matches!(key.as_str(), "url" | "comment") {
                out.line(&format!(
                    "    {key} = {}  # {}",
                    config.value(&path).unwrap_or_default(),
                    config.place(&path)
                ))?;
            }
        }
    }
    for (name, job) in &config.text.job {
        let place = config.place(&["job", name.as_str()]);
        let volume = config.volume_of(name).or_else(|| config.default_volume());
        let volume = volume.map_or_else(String::new, |volume| format!("  on {volume}"));
        let comment = job.comment.as_ref().map_or_else(String::new, |text| format!("  {text}"));
        out.line(&format!("job {name}{volume}{comment}  # {place}"))?;
    }
    Ok(Ended::Done)
}

fn show(context: &Context<'_>, job: &Job) -> Result<Ended> {
    let config = context.config()?;
    Configured { config, job }.check()?;
    for key in job.text.keys() {
        let path = job.path_of(config, key);
        let (value, place) = (config.value(&path).unwrap_or_default(), config.place(&path));
        if context.out.is_json() {
            let row = serde_json::json!({ "key": key, "value": value, "from": path.join("."), "place": place });
            context.out.object("key", &row)?;
        } else {
            context.out.line(&format!("{key} = {value}  # {place}, {}", path[..path.len() - 1].join(".")))?;
        }
    }
    if context.out.is_json() {
        context.out.object("result", &serde_json::json!({ "job": job.name }))?;
    }
    Ok(Ended::Done)
}

fn init(context: &Context<'_>, file: Option<&Path>) -> Result<Ended> {
    let named = context.global.config.as_deref().filter(|path| !path.as_os_str().is_empty());
    let path = file.or(named).unwrap_or(Path::new(DEFAULT_FILE));
    let failed = |e: std::io::Error| {
        let is_there = e.kind() == std::io::ErrorKind::AlreadyExists;
        let error = Error::io(format!("cannot write {}", path.display()), e).with_kind(Kind::Usage);
        if is_there { error.with_hint("what is there stays: name another file, or move it away") } else { error }
    };
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let mut open = std::fs::OpenOptions::new();
    let mut made = open.write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    made.write_all(EXAMPLE.as_bytes()).and_then(|()| made.sync_all()).map_err(failed)?;
    context.out.say(&format!("{} written: change it, then `bk config check`", path.display()));
    Ok(Ended::Done)
}

/// The example is one that passes.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::Config;

    #[test]
    fn the_example_passes() {
        let config = Config::of(Path::new("bk.toml"), EXAMPLE.to_owned()).unwrap();
        for name in config.text.job.keys() {
            for job in Job::resolve_all(&config, name).unwrap() {
                Configured { config: &config, job: &job }.check().unwrap();
            }
        }
    }
}

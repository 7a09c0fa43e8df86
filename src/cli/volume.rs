//! `bk volume create`, `bk volume list`, `bk volume info`, `bk volume check`

use std::path::Path;

use super::{Context, Ended, list::table};
use crate::{
    clock::{Clock, System},
    config::{meaning::Named, typed::VolumeCommand, volume::Target},
    error::{Kind, Result},
    model::{place::Access, units::show_size},
    ops::list,
    volume::{self, Volume, mount, probe},
};

pub fn run(context: &Context<'_>, command: &VolumeCommand) -> Result<Ended> {
    match command {
        VolumeCommand::Create { place, exclusive_writer } => create(context, place, *exclusive_writer),
        VolumeCommand::List => all(context),
        VolumeCommand::Info { place } => info(context, place.as_deref()),
        VolumeCommand::Check { place } => check(context, place.as_deref()),
    }
}

/// The volume named by the verb, or by `--volume`.
fn named(context: &Context<'_>, place: Option<&Path>) -> Result<Volume> {
    match place {
        Some(place) => super::open(&context.target(Some(Named::Place(place)))?),
        None => context.volume(),
    }
}

fn create(context: &Context<'_>, place: &Path, exclusive_writer: bool) -> Result<Ended> {
    let target = context.target(Some(Named::Place(place)))?;
    // A mount that is missing would put the volume where it was not meant to be.
    if let Some(mount_point) = &target.expected.mount_point {
        mount::require(mount_point).map_err(|e| e.with_kind(Kind::Volume))?;
    }
    let exclusive_writer = exclusive_writer || target.access.exclusive_writer;
    let access = Access { exclusive_writer, ..target.access };
    let volume = volume::create(&target.place, &access, System.now()?)?;
    if context.out.is_json() {
        context.out.object("result", &list::info(&volume, &System)?)?;
    } else {
        context.out.say(&format!("volume {} made in {}", volume.file.id.as_str(), volume.shown));
        if volume.file.exclusive_writer {
            context.out.say("it knows no conditional create: never let two processes write to it at the same time");
        }
    }
    Ok(Ended::Done)
}

/// The volumes of the configuration. One that cannot be reached is listed, too, and told.
fn all(context: &Context<'_>) -> Result<Ended> {
    let (config, access, out) = (context.config()?, context.access()?, context.out);
    let (mut lines, mut worst) = (vec![["NAME", "ID", "PLACE", "COMMENT"].map(str::to_owned)], None);
    for (name, text) in &config.text.volume {
        let opened = Target::configured(config, name, &access).and_then(|target| super::open(&target));
        let id = opened.as_ref().ok().map(|volume| volume.file.id.as_str().to_owned());
        if out.is_json() {
            let row = serde_json::json!({ "name": name, "id": id, "url": text.url, "comment": text.comment });
            out.object("volume", &row)?;
        }
        let comment = text.comment.clone().unwrap_or_default();
        lines.push([name.to_string(), id.unwrap_or_else(|| "-".to_owned()), text.url.clone(), comment]);
        if let Err(e) = opened {
            out.warn(&format!("volume {name}: {e}"));
            worst = worst.or(Some(e.kind()));
        }
    }
    if out.is_json() {
        out.object("result", &serde_json::json!({ "volumes": lines.len() - 1 }))?;
    } else {
        table(&lines, &[]).iter().try_for_each(|line| out.line(line))?;
    }
    Ok(worst.map_or(Ended::Done, |kind| Ended::Code(kind.exit_code())))
}

fn info(context: &Context<'_>, place: Option<&Path>) -> Result<Ended> {
    let info = list::info(&named(context, place)?, &System)?;
    if context.out.is_json() {
        context.out.object("result", &info)?;
        return Ok(Ended::Done);
    }
    let free = info.free_bytes.map_or_else(|| "not known".to_owned(), show_size);
    for (name, value) in [
        ("volume", info.volume),
        ("id", info.id),
        ("format", info.format_version.to_string()),
        ("created", info.created_at.to_string()),
        ("jobs", info.jobs.to_string()),
        ("snapshots", info.snapshots.to_string()),
        ("stored", show_size(info.stored_bytes)),
        ("free", free),
    ] {
        context.out.line(&format!("{name:<10} {value}"))?;
    }
    Ok(Ended::Done)
}

fn check(context: &Context<'_>, place: Option<&Path>) -> Result<Ended> {
    let volume = named(context, place)?;
    let found = probe::run(&*volume.store)?;
    if context.out.is_json() {
        found.require(&volume.shown, volume.file.exclusive_writer)?;
        context.out.object("result", &found)?;
        return Ok(Ended::Done);
    }
    for (what, holds) in found.rows() {
        let holds = holds.map_or("not tried", |holds| if holds { "yes" } else { "NO" });
        context.out.line(&format!("{what:<27} {holds}"))?;
    }
    found.require(&volume.shown, volume.file.exclusive_writer)?;
    Ok(Ended::Done)
}

//! `bk lease`

use super::{Context, Ended};
use crate::{
    clock::System,
    config::typed::{LeaseCommand, LeaseReleaseArgs},
    error::Result,
    model::ids::Name,
    ops::lease,
};

pub fn run(context: &Context<'_>, command: &LeaseCommand) -> Result<Ended> {
    match command {
        LeaseCommand::List { job } => list(context, job.as_deref()),
        LeaseCommand::Release(args) => release(context, args),
    }
}

fn list(context: &Context<'_>, job: Option<&str>) -> Result<Ended> {
    let job: Option<Name> = job.map(|job| context.stored(&job.parse()?)).transpose()?;
    let volume = match &job {
        Some(job) => context.volume_itself_of(job)?,
        None => context.volume_itself()?,
    };
    let rows = lease::list(&volume, job.as_ref())?;
    if context.out.is_json() {
        rows.iter().try_for_each(|row| context.out.object("lease", row))?;
        context.out.object("result", &serde_json::json!({ "leases": rows.len() }))?;
        return Ok(Ended::Done);
    }
    for row in rows {
        let process = row.pid.map_or_else(String::new, |pid| format!(" process {pid}"));
        let node = row.node.map_or_else(String::new, |node| format!("  node {node}{process}"));
        let at = row.written_at.map_or_else(String::new, |at| format!("  {at}"));
        context.out.line(&format!("{}  epoch {}  {}{node}{at}", row.job, row.epoch, row.state))?;
    }
    Ok(Ended::Done)
}

fn release(context: &Context<'_>, args: &LeaseReleaseArgs) -> Result<Ended> {
    let job = context.stored(&args.job.parse()?)?;
    let volume = context.volume_itself_of(&job)?;
    let progress = context.progress("lease release");
    let node = context.node(args.node.as_ref())?;
    let released = lease::release(&volume, &job, &node, args.yes, &System, &progress)?;
    drop(progress);
    if context.out.is_json() {
        context.out.object("result", &released)?;
    } else {
        match released.epoch {
            Some(epoch) => context.out.say(&format!("released epoch {epoch} of {job}")),
            None => context.out.say(&format!("nobody holds a lease of {job}")),
        }
    }
    Ok(Ended::Done)
}

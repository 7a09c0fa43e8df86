//! `bk copy`, and the copies of `bk snapshot --copy-to`

use std::path::PathBuf;

use serde::Serialize;

use super::{Context, Ended, exit::worse};
use crate::{
    clock::System,
    config::{
        meaning,
        typed::{CopyArgs, SnapshotArgs},
    },
    error::{Error, Kind, Result},
    model::{ids::SnapshotName, place::Place, time::Lifetime, units::show_size},
    ops::copy::{self, Outcome, Request, Row, What},
    volume::Volume,
};

pub fn run(context: &Context<'_>, args: &CopyArgs) -> Result<Ended> {
    let what = args.what.iter().map(|text| match text.contains('/') {
        true => text.parse().map(What::Snapshot),
        false => text.parse().map(What::Job),
    });
    let request = Request {
        what: what.collect::<Result<_>>()?,
        to_job: args.r#as.as_ref().map(|name| name.parse()).transpose()?,
        keep: args.expire.as_ref().map(|text| text.parse::<Lifetime>()).transpose()?,
        threads: meaning::threads(context.global)?,
    };
    let (source, target) = (context.volume_itself()?, context.other(&args.to)?);
    let progress = context.progress("copy");
    let outcome = copy::run(&source, &target, &request, &System, &progress)?;
    drop(progress);
    let out = context.out;
    for row in &outcome.rows {
        if out.is_json() {
            out.object("copy", row)?;
        } else if !context.global.quiet {
            out.line(&line(row))?;
        }
    }
    if out.is_json() {
        out.object("result", &outcome)?;
    } else {
        out.say(&summary(&outcome));
    }
    outcome.errors.iter().for_each(|e| out.fault(&format!("error: {e}")));
    Ok(worst(&outcome).map_or(Ended::Done, Ended::But))
}

fn worst(outcome: &Outcome) -> Option<Kind> {
    outcome.errors.iter().map(Error::kind).reduce(worse)
}

fn line(row: &Row) -> String {
    let there = row.snapshot.as_deref().unwrap_or("-");
    let expires = row.expires_at.map_or_else(|| "never expires".to_owned(), |at| format!("expires {at}"));
    match row.outcome {
        "copied" => format!("{}  copied as {there}, {}, {expires}", row.source, show_size(row.bytes)),
        "there" => format!("{}  is there as {there}, {expires}", row.source),
        "expired" => format!("{}  was there as {there} and expired", row.source),
        _ => format!("{}  failed", row.source),
    }
}

fn summary(outcome: &Outcome) -> String {
    let Outcome { copied, there, failed, bytes, .. } = outcome;
    format!("{copied} snapshots copied, {}; {there} were there already, {failed} failed", show_size(*bytes))
}

/// The copies that follow a snapshot.
pub struct After {
    places: Vec<PathBuf>,
    keep: Option<Lifetime>,
    threads: usize,
}

/// What became of the copy to one volume.
#[derive(Serialize)]
pub struct Copied {
    volume: String,
    outcome: &'static str,
    snapshot: Option<String>,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    kind: Option<Kind>,
}

impl After {
    /// Reads what was typed: what is wrong with it is said before a snapshot is taken.
    pub fn new(context: &Context<'_>, args: &SnapshotArgs) -> Result<Self> {
        args.copy_to.iter().try_for_each(|place| Place::parse(place.clone()).map(drop))?;
        Ok(Self {
            places: args.copy_to.clone(),
            keep: args.copy_expire.as_ref().map(|text| text.parse::<Lifetime>()).transpose()?,
            threads: meaning::threads(context.global)?,
        })
    }

    /// Copies a snapshot that was just taken to every volume, whatever becomes of the others.
    pub fn run(&self, context: &Context<'_>, source: &Volume, snapshot: &str) -> Result<Vec<Copied>> {
        let name: SnapshotName = snapshot.parse()?;
        let copies = self.places.iter().map(|place| {
            let volume = place.display().to_string();
            let ran = context.other(place).and_then(|target| {
                let (what, to_job) = (vec![What::Snapshot(name.clone())], None);
                let request = Request { what, to_job, keep: self.keep, threads: self.threads };
                copy::run(source, &target, &request, &System, &context.progress("copy"))
            });
            let failed = |error: &Error| Copied {
                volume: volume.clone(),
                outcome: "failed",
                snapshot: None,
                bytes: 0,
                error: Some(error.to_string()),
                kind: Some(error.kind()),
            };
            match &ran {
                Err(e) => failed(e),
                Ok(outcome) => match (outcome.errors.first(), outcome.rows.last()) {
                    (Some(e), _) => failed(e),
                    (None, Some(row)) => Copied {
                        volume: volume.clone(),
                        outcome: row.outcome,
                        snapshot: row.snapshot.clone(),
                        bytes: outcome.bytes,
                        error: None,
                        kind: None,
                    },
                    (None, None) => failed(&Error::new(Kind::Other, "nothing was copied")),
                },
            }
        });
        Ok(copies.collect())
    }
}

/// Says what became of the copies, and how the run ends for them.
pub fn told(context: &Context<'_>, copies: &[Copied], ended: Ended) -> Ended {
    for copy in copies {
        match (&copy.error, &copy.snapshot) {
            (Some(error), _) => context.out.fault(&format!("error: not copied to {}: {error}", copy.volume)),
            (None, snapshot) => {
                let name = snapshot.as_deref().unwrap_or("-");
                context.out.say(&format!("copied to {} as {name}, {}", copy.volume, show_size(copy.bytes)));
            }
        }
    }
    let first = if matches!(ended, Ended::Incomplete) { Some(Kind::Incomplete) } else { None };
    match copies.iter().filter_map(|copy| copy.kind).chain(first).reduce(worse) {
        None | Some(Kind::Incomplete) => ended,
        Some(kind) => Ended::But(kind),
    }
}

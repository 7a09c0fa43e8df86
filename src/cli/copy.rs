//! `bk copy`, and the copies of `bk snapshot --copy-to`

use std::path::PathBuf;

use serde::Serialize;

use super::{Context, Ended, progress::Progress};
use crate::{
    clock::System,
    config::{
        meaning,
        typed::{CopyArgs, SnapshotArgs},
        volume::Target,
    },
    error::{Error, Kind, Result},
    model::{ids::SnapshotName, place::Place, time::Lifetime, units::show_size},
    ops::{
        copy::{self, Outcome, Request, Row, What},
        run::weight,
    },
};

pub fn run(context: &Context<'_>, args: &CopyArgs) -> Result<Ended> {
    let what = args.what.iter().map(|text| match text.contains('/') {
        true => text.parse().map(What::Snapshot),
        false => context.stored(&text.parse()?).map(What::Job),
    });
    let request = Request {
        what: what.collect::<Result<_>>()?,
        to_job: args.r#as.as_ref().map(|name| name.parse()).transpose()?,
        keep: args.expire.as_ref().map(|text| text.parse::<Lifetime>()).transpose()?,
        threads: meaning::threads(context.global)?,
    };
    let job = request.what.first().map(|what| match what {
        What::Snapshot(name) => &name.job,
        What::Job(job) => job,
    });
    let source = job.map_or_else(|| context.volume_itself(), |job| context.volume_itself_of(job))?;
    let target = context.other(&args.to)?;
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
    outcome.errors.iter().for_each(|e| out.told(&e.to_string(), e.hint(), e.kind().exit_code()));
    let worst = outcome.errors.iter().map(Error::kind).max_by_key(|kind| weight(*kind));
    Ok(worst.map_or(Ended::Done, |kind| Ended::Code(kind.exit_code())))
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
    #[serde(rename = "error", skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip)]
    error: Option<Error>,
}

impl Copied {
    fn failed(volume: String, error: Error) -> Self {
        let text = Some(error.to_string());
        let error = Some(error.context(format!("not copied to {volume}")));
        Self { volume, outcome: "failed", snapshot: None, bytes: 0, text, error }
    }

    /// Why it failed, once.
    pub fn take_error(&mut self) -> Option<Error> {
        self.error.take()
    }

    /// Says that it was made.
    pub fn say(&self, context: &Context<'_>) {
        if let Some(name) = &self.snapshot {
            context.out.say(&format!("copied to {} as {name}, {}", self.volume, show_size(self.bytes)));
        }
    }
}

impl After {
    /// To the volumes that were typed, else to `configured` ones. What is typed wrongly is said before a snapshot is taken.
    pub fn new(args: &SnapshotArgs, configured: Vec<PathBuf>, threads: usize) -> Result<Self> {
        let places = if args.copy_to.is_empty() { configured } else { args.copy_to.clone() };
        places.iter().try_for_each(|place| Place::parse(place.clone()).map(drop))?;
        let keep = args.copy_expire.as_ref().map(|text| text.parse::<Lifetime>()).transpose()?;
        Ok(Self { places, keep, threads })
    }

    /// What is wrong with the volumes it would be copied to.
    pub fn check(&self, context: &Context<'_>) -> Vec<Error> {
        let wrong = |place: &PathBuf| {
            let checked = context.other(place).and_then(|volume| volume.store.check_writable());
            checked.err().map(|e| e.context(format!("copies to {}", place.display())))
        };
        self.places.iter().filter_map(wrong).collect()
    }

    /// Copies a snapshot that was just taken to every volume, whatever becomes of the others.
    pub fn run(&self, context: &Context<'_>, source: &Target, snapshot: &str, progress: &Progress<'_>) -> Vec<Copied> {
        if !self.places.is_empty() {
            progress.turn_to("copy");
        }
        let one = |place: &PathBuf| {
            let volume = place.display().to_string();
            let copied = || -> Result<Copied> {
                let (source, target) = (super::open(source)?, context.other(place)?);
                let (what, to_job) = (vec![What::Snapshot(snapshot.parse::<SnapshotName>()?)], None);
                let request = Request { what, to_job, keep: self.keep, threads: self.threads };
                let mut outcome = copy::run(&source, &target, &request, &System, progress)?;
                if let Some(e) = outcome.errors.pop() {
                    return Err(e);
                }
                let row = outcome.rows.pop().ok_or_else(|| Error::new(Kind::Other, "nothing was copied"))?;
                let (outcome, bytes) = (row.outcome, outcome.bytes);
                Ok(Copied { volume: volume.clone(), outcome, snapshot: row.snapshot, bytes, text: None, error: None })
            };
            copied().unwrap_or_else(|e| Copied::failed(volume.clone(), e))
        };
        self.places.iter().map(one).collect()
    }
}

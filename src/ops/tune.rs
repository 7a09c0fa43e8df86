//! `bk tune`: measures the user's own data on this machine, and says what a full backup would come to with which settings.
//!
//! Everything is measured through what a snapshot itself uses: the walk, the tree and stream writers, the pipeline with its
//! coders, the volume's uploads. A trial runs the sample to nowhere; the volume is measured alone. What a full run would take follows
//! from the time of each stage ([`predict`]), so that a sample of a few frames is enough.

pub mod measure;
pub mod predict;
pub mod sample;
mod trials;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    clock::Clock,
    engine::write::pipeline::Settings,
    error::{Error, Kind, Result},
    format::codec::Codec,
    monitor::Monitor,
    source::{command::Watched, roots, select::Selection, walk::Walk},
    volume::Volume,
};
use measure::Corner;
use predict::{Choice, Wish};
use sample::{Census, Sample, Totals, WINDOW_LEN};
use trials::{Trials, fitting};

/// The beginning of a stream that is kept in memory, at most, bytes.
const HEAD_LEN_MAX: usize = 128 << 20;
/// Shares of the time: for counting or reading the beginning of a stream, for the volume, and for a check.
const CENSUS_SHARE: f64 = 0.2;
const VOLUME_SHARE: f64 = 0.12;
const CHECK_SHARE: f64 = 0.25;
/// What is sampled.
#[derive(Clone, Debug)]
pub enum Source {
    /// Trees.
    Tree {
        /// As of a snapshot.
        base: Option<PathBuf>,
        /// As of a snapshot.
        paths: Vec<PathBuf>,
        /// As of a snapshot.
        selection: Selection,
    },
    /// Standard input, of this length when it is known.
    Stdin(Option<u64>),
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The data.
    pub source: Source,
    /// The settings as they are now.
    pub present: Settings,
    /// More workers are not tried.
    pub threads_max: usize,
    /// The volume's own directory (device, inode), which is never stored in itself.
    pub volume_dir: Option<(u64, u64)>,
    /// What is to stay free on the volume, bytes.
    pub free_bytes_min: u64,
    /// How long all of it may take.
    pub time: Duration,
    /// Run the settings for this wish, and compare.
    pub check: Option<Wish>,
}

/// A prediction held against what was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Codec.
    pub compression: Codec,
    /// Content that was stored, bytes.
    pub content_bytes: u64,
    /// Seconds as predicted for that much.
    pub predicted_seconds: f64,
    /// Seconds it took.
    pub measured_seconds: f64,
    /// Stored bytes as predicted for that much.
    pub predicted_bytes: u64,
    /// Stored bytes.
    pub measured_bytes: u64,
}

/// What a tune found.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// All there is.
    pub source: Totals,
    /// Content bytes of it that were measured, at most.
    pub sample_bytes: u64,
    /// Content bytes a second that the source gives when it is read for the first time.
    pub read_bytes_per_second: f64,
    /// Content bytes a second that one thread hashes and chunks.
    pub hash_bytes_per_second: f64,
    /// Bytes a second that the volume takes.
    pub write_bytes_per_second: Option<f64>,
    /// All that was measured.
    pub choices: Vec<Choice>,
    /// What there was no time for.
    pub skipped: Vec<String>,
    /// The settings as they are now; none when there was no time for them.
    pub present: Option<Choice>,
    /// Frames most were measured in: those of the settings as they are now, bytes.
    pub frame_size: u64,
    /// The least time.
    pub fastest: Choice,
    /// Small, for little more time.
    pub balanced: Choice,
    /// The fewest bytes.
    pub smallest: Choice,
    /// Predicted against measured; none when there was no time for it.
    pub check: Option<Check>,
    /// How long it took.
    pub seconds: f64,
}

impl Outcome {
    /// The settings for a wish.
    pub fn of(&self, wish: Wish) -> &Choice {
        match wish {
            Wish::Fastest => &self.fastest,
            Wish::Balanced => &self.balanced,
            Wish::Smallest => &self.smallest,
        }
    }
}

/// Measures; `volume` is where it would be stored to.
pub fn run(volume: Option<&Volume>, request: &Request, clock: &dyn Clock, monitor: &dyn Monitor) -> Result<Outcome> {
    let started_at = Instant::now();
    let (sample, totals) = look(request, started_at + request.time.mul_f64(CENSUS_SHARE), monitor)?;
    if totals.content_bytes == 0 {
        return Err(Error::new(Kind::Other, "there is nothing to measure: no content was found"));
    }
    let corner = || volume.map(|volume| Corner::new(&volume.store, request.free_bytes_min, clock)).transpose();
    let mut write_rate = None;
    if let (Some(volume), Some(corner)) = (volume, corner()?) {
        volume.store.check_writable()?;
        write_rate = corner.write_rate(request.time.mul_f64(VOLUME_SHARE), monitor)?;
        corner.clear()?;
        if write_rate.is_none() {
            monitor.warn(&format!("{} has too little free space to be measured", volume.shown));
        }
    }
    let share = if request.check.is_some() { 1.0 - CHECK_SHARE } else { 1.0 };
    let mut trials = Trials::new(&sample, request, started_at + request.time.mul_f64(share * 0.95), monitor);
    trials.first()?;
    if let (Some(corner), Some(rate)) = (corner()?, &mut write_rate) {
        trials.writing(rate, &corner, request.time.mul_f64(VOLUME_SHARE))?;
    }
    trials.all()?;
    trials.again()?;
    let mut found = trials.outcome(totals, write_rate)?;
    if let Some(wish) = request.check {
        // Its share is its own, even where a last trial took longer than its time.
        let time = request.time.mul_f64(CHECK_SHARE);
        found.check = match check(&sample, (found.of(wish), &found), time, corner()?.as_ref(), monitor) {
            // What was measured before is not lost with it.
            Err(e) if !matches!(e.kind(), Kind::Signal(_)) => {
                monitor.warn(&e.context("the check").to_string());
                None
            }
            check => check?,
        };
    }
    found.seconds = started_at.elapsed().as_secs_f64();
    Ok(found)
}

/// The sample, and how much there is in all.
fn look(request: &Request, until: Instant, monitor: &dyn Monitor) -> Result<(Sample, Totals)> {
    match &request.source {
        Source::Stdin(told) => {
            let mut input = Watched::stdin(monitor)?;
            let (head, is_all, seconds) = sample::head(&mut input, HEAD_LEN_MAX, until, monitor)?;
            let len = if is_all { head.len() as u64 } else { told.unwrap_or(head.len() as u64) };
            let is_all = is_all || told.is_some();
            let totals = Totals { entries: 0, files: 0, content_bytes: len, plain_bytes: len, is_all };
            Ok((Sample::Head { bytes: head, seconds }, totals))
        }
        Source::Tree { base, paths, selection } => {
            let roots = roots::resolve(base.as_deref(), paths)?;
            if let Some(device) = roots.devices.first() {
                let what = format!("{} is a block device", device.display());
                return Err(Error::usage(what).with_hint("bk tune --stdin --size SIZE < DEVICE"));
            }
            roots.warnings.iter().for_each(|text| monitor.warn(text));
            roots.missing.iter().for_each(|path| monitor.warn(&format!("no such source: {path}")));
            let mut census = Census::new(until, monitor);
            match Walk::new(&roots, selection, request.volume_dir, 1).run(&mut census) {
                Ok(()) => census.totals.is_all = true,
                Err(_) if census.is_late() => {}
                Err(e) => return Err(e),
            }
            let totals = census.totals;
            Ok((Sample::Tree { base: roots.base, windows: census.windows() }, totals))
        }
    }
}

/// Stores as much of the sample as there is time for with the settings of `choice`, on the volume where there is one.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "predictions")]
fn check(
    sample: &Sample,
    (choice, found): (&Choice, &Outcome),
    time: Duration,
    corner: Option<&Corner<'_>>,
    monitor: &dyn Monitor,
) -> Result<Option<Check>> {
    let frame_len = usize::try_from(choice.frame_size).unwrap_or(usize::MAX);
    let settings = Settings { threads: choice.threads, codec: choice.compression, frame_len, verify_all: false };
    let until = Instant::now() + time;
    let a_plain_byte = choice.seconds / found.source.plain_bytes.max(1) as f64;
    let most = fitting(time.as_secs_f64() * 0.8, a_plain_byte * WINDOW_LEN as f64).min(sample.step_count());
    let room = corner.map_or(Ok(u64::MAX), Corner::room)?;
    let Some(count) = (1..=most).rev().find(|count| sample.bytes(*count).0 <= room) else {
        if most > 0 {
            monitor.warn("the volume has too little free space to check there");
        }
        return Ok(None);
    };
    let trial = match corner {
        None => measure::trial(sample, count, settings, (monitor, until)),
        Some(corner) => {
            let trial = measure::store(sample, count, settings, (corner.store, &corner.dir()), (monitor, until));
            corner.clear()?;
            trial
        }
    };
    let trial = match trial {
        Err(e) if measure::is_late(&e) => return Ok(None),
        trial => trial?,
    };
    let share = trial.plain_bytes as f64 / found.source.plain_bytes.max(1) as f64;
    Ok(Some(Check {
        compression: choice.compression,
        content_bytes: trial.content_bytes,
        predicted_seconds: choice.seconds * share,
        measured_seconds: trial.profile.seconds,
        predicted_bytes: (choice.stored_bytes as f64 * share) as u64,
        measured_bytes: trial.stored_bytes,
    }))
}

//! The run books of `bk status` and `bk abort`: what runs say of themselves on the volume, and asking one to stop.

use serde::Serialize;

use crate::{
    clock::Clock,
    engine::catalog,
    error::{Error, Kind, Result},
    format::{
        envelope,
        layout::runs_dir,
        notes::{self, Abort, COMMENT_LEN_MAX, Note, Progress},
        volume::FORMAT_VERSION,
    },
    model::ids::{Name, RunId},
    volume::{Created, Item, Volume},
};

/// A run that says nothing for so many times its beat, and this long, stalls: seconds.
const SILENT_BEATS: i64 = 3;
const SILENT_SECONDS_MIN: i64 = 5;

/// A run as it was when it last said so.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What it makes: `snapshot`.
    pub makes: &'static str,
    /// Id of the volume.
    pub volume: String,
    /// Its run.
    pub run_id: String,
    /// `running`; `stalled`: it has not said anything for a while; `stopping`: it was asked to.
    pub state: &'static str,
    /// Whole percent of what is expected.
    pub percent: Option<u64>,
    /// Seconds since it last said something, by this node's clock.
    pub silent_seconds: u64,
    /// What it said.
    #[serde(flatten)]
    pub progress: Progress,
}

/// The runs of one job, or of all, that go on as far as the volume tells.
pub fn run(volume: &Volume, job: Option<&Name>, clock: &dyn Clock) -> Result<Vec<Row>> {
    let prefix = job.map_or_else(|| "runs/".to_owned(), runs_dir);
    let items = volume.store.list(&prefix)?;
    let jobs = match job {
        Some(job) => vec![job.clone()],
        None => catalog::jobs_of(&items),
    };
    let now = clock.now()?.as_second();
    let mut rows = Vec::new();
    for job in jobs {
        let runs = catalog::notes(&items, &job);
        if runs.is_empty() {
            continue;
        }
        let log = catalog::read(volume, &job)?;
        for (run_id, notes) in runs {
            // Recorded or swept: what is left of it says nothing any more.
            if let Some(progress) = newest(volume, &notes)?.filter(|_| !log.knows(run_id)) {
                rows.push(row(volume, run_id, &notes, progress, now));
            }
        }
    }
    Ok(rows)
}

fn row(volume: &Volume, run_id: RunId, items: &[Item], progress: Progress, now: i64) -> Row {
    let silent = now.saturating_sub(progress.written_at.as_second()).max(0);
    let every = i64::try_from(progress.every_ms / 1000).unwrap_or(i64::MAX);
    let is_stalled = silent > every.saturating_mul(SILENT_BEATS).max(SILENT_SECONDS_MIN);
    let is_asked = items.iter().any(|item| notes::number(&item.key, "abort").is_some());
    Row {
        makes: "snapshot",
        volume: volume.file.id.as_str().to_owned(),
        run_id: run_id.to_string(),
        state: match (is_stalled, is_asked) {
            (true, _) => "stalled",
            (false, true) => "stopping",
            (false, false) => "running",
        },
        percent: progress.bytes_expected.map(|all| (progress.bytes.saturating_mul(100) / all.max(1)).min(100)),
        silent_seconds: u64::try_from(silent).unwrap_or(0),
        progress,
    }
}

/// The newest word of a run; none when it ended meanwhile.
pub(super) fn newest(volume: &Volume, items: &[Item]) -> Result<Option<Progress>> {
    let numbered = items.iter().filter_map(|item| Some((notes::number(&item.key, "progress")?, item)));
    let Some((_, item)) = numbered.max_by_key(|(n, _)| *n) else { return Ok(None) };
    match volume.store.read(&item.key, envelope::JSON_LEN_MAX) {
        Ok(bytes) => match Note::decode(&bytes).map_err(|e| e.context(&item.key))? {
            Note::Progress(progress) => Ok(Some(progress)),
            _ => Err(Error::integrity(format!("{} is no progress", item.key))),
        },
        Err(e) if volume.store.head(&item.key)?.is_some() => Err(e),
        Err(_) => Ok(None),
    }
}

/// What a run was asked.
#[derive(Clone, Debug, Serialize)]
pub struct Asked {
    /// The run.
    pub run_id: String,
    /// Where it goes on.
    pub node: String,
    /// As in [`Row`], before it was asked.
    pub state: &'static str,
}

/// Asks all runs of a job to stop: each sees it with its next beat.
pub fn abort(
    volume: &Volume,
    job: &Name,
    (node, comment): (&str, Option<&str>),
    clock: &dyn Clock,
) -> Result<Vec<Asked>> {
    if comment.is_some_and(|text| text.len() > COMMENT_LEN_MAX) {
        return Err(Error::usage(format!("a comment is at most {COMMENT_LEN_MAX} bytes long")));
    }
    let rows = run(volume, Some(job), clock)?;
    if rows.is_empty() {
        let what = format!("no run of {job} is under way on {}", volume.shown);
        return Err(Error::new(Kind::Other, what)
            .with_hint("a run shows itself a few seconds after its start; `bk status` lists them"));
    }
    let note = Note::Abort(Abort {
        format_version: FORMAT_VERSION,
        job: job.clone(),
        node: node.to_owned(),
        written_at: clock.now()?,
        comment: comment.map(str::to_owned),
    });
    let bytes = note.encode()?;
    for row in &rows {
        let run_id: RunId = row.run_id.parse()?;
        // Who asked before has asked the same.
        match volume.store.put_new(&notes::key(job, run_id, "abort", 0), &bytes)? {
            Created::New | Created::Exists => {}
        }
    }
    Ok(rows.into_iter().map(|row| Asked { run_id: row.run_id, node: row.progress.node, state: row.state }).collect())
}

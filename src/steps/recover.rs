//! Leaving what another run had begun: one that was killed, or ended by a power cut.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde::Serialize;

use super::{
    Closed, Report, Values,
    journal::{Locked, Unfinished},
    leave_one, trust,
};
use crate::{
    error::{Error, Result},
    model::{
        ids::RunId,
        processes::{group_lives, groups_with, signal_group},
    },
    monitor::Monitor,
};

/// From TERM to KILL.
const GRACE: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(50);

/// A run that was recovered.
#[derive(Debug, Serialize)]
pub struct Recovered {
    /// The run.
    pub run_id: String,
    /// What was run to leave its steps.
    pub steps: Vec<Report>,
    /// Steps that could not be left: they stay noted.
    #[serde(skip)]
    pub errors: Vec<Error>,
}

/// Leaves what runs of this job began and did not leave; of one run only, or of all. Meanwhile `closed` keeps this process.
pub fn recover(locked: &Locked, only: Option<RunId>, closed: &Closed, monitor: &dyn Monitor) -> Result<Vec<Recovered>> {
    closed.set_leaving(true);
    let recovered = locked.unfinished(only).and_then(|runs| runs.into_iter().map(|run| one(run, monitor)).collect());
    closed.set_leaving(false);
    recovered
}

/// Forgets them: nothing is run.
pub fn forget(locked: &Locked) -> Result<Vec<RunId>> {
    locked.forget()
}

fn one(run: Unfinished, monitor: &dyn Monitor) -> Result<Recovered> {
    let Unfinished { run_id, session, begun, running, mut journal } = run;
    if let Some(session) = session {
        let id = ("BK_RUN_ID".to_owned(), run_id.to_string());
        end_groups(session, &BTreeMap::from([id.clone(), ("BK_PHASE".to_owned(), "stream".to_owned())]));
        if let Some(running) = running {
            let mut values = BTreeMap::from([id, ("BK_STEP".to_owned(), running.step.to_string())]);
            values.extend(running.phase.map(|phase| ("BK_PHASE".to_owned(), phase.name().to_owned())));
            end_groups(session, &values);
        }
    }
    // Should this process be killed, too, the next one ends what it left running.
    if let Err(e) = journal.run() {
        monitor.warn(&format!("run {run_id}: {e}"));
    }
    let (mut steps, mut errors) = (Vec::new(), Vec::new());
    for begun in begun.iter().rev() {
        if let (Some(user), Some(account)) = (&begun.step.user, &begun.account) {
            trust::know(user, account);
        }
        let mut values = begun.values.clone();
        values.insert("BK_RESULT".to_owned(), "killed".to_owned());
        monitor.note(&format!("step {} of run {run_id} is left", begun.step.name));
        errors.extend(leave_one(&begun.step, &values, Some(&mut journal), monitor, &mut steps).err());
    }
    if errors.is_empty() {
        journal.finish()?;
    }
    Ok(Recovered { run_id: run_id.to_string(), steps, errors })
}

/// Ends what the killed run left running: TERM, ten seconds, KILL.
fn end_groups(session: i32, values: &Values) {
    let groups = groups_with(session, values);
    for group in &groups {
        signal_group(*group, Signal::TERM);
    }
    let kill_at = Instant::now() + GRACE;
    while groups.iter().any(|group| group_lives(*group)) && Instant::now() < kill_at {
        std::thread::sleep(TICK);
    }
    for group in groups.into_iter().filter(|group| group_lives(*group)) {
        signal_group(group, Signal::KILL);
    }
}

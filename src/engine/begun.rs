//! A run's word on the volume that it has begun, from before it stores anything till its end is certain.
//!
//! It tells apart what else looks the same: a run that looks whole, has no record and has left its word was killed or does not
//! know whether it was recorded; one that has taken it back was recorded, so that its record was lost. Where nothing may be
//! deleted, a second word says that it was recorded.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    error::Result,
    format::{
        notes::{BEGUN_NAME, Note, RECORDED_NAME, Word, dir},
        volume::FORMAT_VERSION,
    },
    model::{
        ids::{Name, RunId},
        time::Instant,
    },
    volume::Store,
};

/// What is known of a run's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing of it lies there, and it has no record.
    Nothing,
    /// Something may lie there, and whether it has a record is not known.
    Unsure,
    /// It has a record.
    Recorded,
    /// As before, and its word was taken back.
    Told,
}

/// The word of a run that has begun.
pub struct Begun {
    store: Arc<dyn Store>,
    dir: String,
    word: Word,
    end: Mutex<End>,
}

impl Begun {
    /// Says that a run of this node begins: before it stores anything.
    pub fn say(store: &Arc<dyn Store>, (job, run_id): (&Name, RunId), node: &str, at: Instant) -> Result<Self> {
        let word = Word { format_version: FORMAT_VERSION, job: job.clone(), node: node.to_owned(), written_at: at };
        let dir = dir(job, run_id);
        store.put_new(&format!("{dir}{BEGUN_NAME}"), &Note::Begun(word.clone()).encode()?)?;
        Ok(Self { store: Arc::clone(store), dir, word, end: Mutex::new(End::Nothing) })
    }

    /// What is known from now on.
    pub fn turn_to(&self, end: End) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }

    /// Takes the word back when the run's end is certain. What fails here is left to the next expiry.
    pub fn take_back(&self) {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*end, End::Unsure | End::Told) {
            return;
        }
        let deleted = self.store.delete(&format!("{}{BEGUN_NAME}", self.dir));
        if deleted.is_err()
            && *end == End::Recorded
            && let Ok(bytes) = Note::Recorded(self.word.clone()).encode()
        {
            let _ = self.store.put_new(&format!("{}{RECORDED_NAME}", self.dir), &bytes);
        }
        *end = End::Told;
    }
}

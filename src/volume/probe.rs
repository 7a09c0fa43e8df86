//! What a store can do, found out by doing it: nothing a store says of itself is believed.
//!
//! bk relies on four things: a create that only one can win, reading what was written, listing what was written, and
//! deleting. The keys it tries them on begin with `bk-probe-` and are removed again.

use serde::Serialize;

use super::{Created, Store};
use crate::{
    error::{Error, Kind, Result},
    model::ids::Nonce,
};

/// Keys that two writers race for.
const RACE_COUNT: usize = 8;
/// Writers that race for each.
const RACER_COUNT: usize = 4;
const PREFIX: &str = "bk-probe-";

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// A second create of a key is refused and changes nothing.
    pub creates_once: bool,
    /// Of creates at the same time exactly one is told that it won, and its bytes lie there.
    pub racing_creates: bool,
    /// What was written is read, whole and in part.
    pub reads_after_write: bool,
    /// What was written is listed.
    pub lists_after_write: bool,
    /// What was deleted is gone, from listings too.
    pub deletes: bool,
}

/// Whether a key is one that a probe may have left behind.
pub fn is_of_probe(key: &str) -> bool {
    key.starts_with(PREFIX)
}

impl Findings {
    /// Each with its name; `None` was not tried, as what comes before does not hold.
    pub fn rows(&self) -> [(&'static str, Option<bool>); 5] {
        let tried = |holds| self.creates_once.then_some(holds);
        [
            ("a key is created once", Some(self.creates_once)),
            ("of racing creates one wins", tried(self.racing_creates)),
            ("what was written is read", Some(self.reads_after_write)),
            ("what was written is listed", tried(self.lists_after_write)),
            ("what was deleted is gone", tried(self.deletes)),
        ]
    }

    /// Whether many may write to it.
    pub fn is_for_many(&self) -> bool {
        self.creates_once && self.racing_creates
    }

    /// Refuses a store that lacks any of them; `shown` is its name in messages. One that a single process writes to
    /// need not stand races.
    pub fn require(&self, shown: &str, is_exclusive: bool) -> Result<()> {
        let mut needed = self.clone();
        needed.racing_creates |= is_exclusive;
        let lacks: Vec<&str> =
            needed.rows().iter().filter(|(_, holds)| *holds == Some(false)).map(|(what, _)| *what).collect();
        if lacks.is_empty() {
            return Ok(());
        }
        let what = format!("{shown} cannot hold a volume; this does not hold there: {}", lacks.join(", "));
        let hint = if self.creates_once && self.racing_creates {
            "bk needs a store that reads and lists what was written: see docs/s3.md"
        } else {
            "bk needs conditional create (If-None-Match), so that two runs never write the same record; where only one \
             process at a time will ever write, --exclusive-writer does without: see docs/s3.md"
        };
        Err(Error::new(Kind::Volume, what).with_hint(hint))
    }
}

/// Tries all of it. An error is a store that could not be asked, not one that lacks something.
pub fn run(store: &dyn Store) -> Result<Findings> {
    let dir = format!("{PREFIX}{}/", Nonce::new()?.as_str());
    let found = tried(store, &dir);
    // Whatever was found, nothing stays; what could not be removed is no harm.
    let left: Vec<String> = store.list(&dir).unwrap_or_default().into_iter().map(|item| item.key).collect();
    let _ = store.delete_all(&left);
    found
}

fn tried(store: &dyn Store, dir: &str) -> Result<Findings> {
    let mut found = Findings::default();
    let key = format!("{dir}once");
    let (first, second) = (b"the first of two\n".as_slice(), b"another of two..\n".as_slice());
    let is_new = store.put_new(&key, first)? == Created::New;
    let mut part = [0; 5];
    store.read_at(&key, 4, &mut part)?;
    found.reads_after_write = store.read(&key, 64)? == first && part == *b"first" && store.head(&key)? == Some(17);
    let is_refused = store.put_new(&key, second)? == Created::Exists;
    found.creates_once = is_new && is_refused && store.read(&key, 64)? == first;
    if !found.creates_once {
        return Ok(found);
    }
    found.racing_creates = true;
    for n in 0..RACE_COUNT {
        found.racing_creates &= race(store, &format!("{dir}race-{n}"))?;
    }
    let keys = || Ok::<_, Error>(store.list(dir)?.into_iter().map(|item| item.key).collect::<Vec<_>>());
    let mut wanted: Vec<String> = (0..RACE_COUNT).map(|n| format!("{dir}race-{n}")).collect();
    wanted.insert(0, key.clone());
    let listed = keys()?;
    found.lists_after_write = listed == wanted;
    store.delete(&key)?;
    store.delete_all(&wanted[1..])?;
    found.deletes = store.head(&key)?.is_none() && store.head(&wanted[1])?.is_none() && keys()?.is_empty();
    Ok(found)
}

/// Several writers create one key at the same time; true when one was told that it won, and won.
fn race(store: &dyn Store, key: &str) -> Result<bool> {
    let start = std::sync::Barrier::new(RACER_COUNT);
    let text = |n: usize| format!("written by {n}\n").into_bytes();
    let results: Vec<Result<Created>> = std::thread::scope(|scope| {
        let racer = |n| {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                store.put_new(key, &text(n))
            })
        };
        let racers: Vec<_> = (0..RACER_COUNT).map(racer).collect();
        let panicked = |_| Err(Error::new(Kind::Other, "a probing thread panicked"));
        racers.into_iter().map(|racer| racer.join().unwrap_or_else(panicked)).collect()
    });
    let results = results.into_iter().collect::<Result<Vec<_>>>()?;
    let winners: Vec<usize> = (0..RACER_COUNT).filter(|n| results[*n] == Created::New).collect();
    Ok(matches!(winners[..], [one] if store.read(key, 64)? == text(one)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::memory::MemoryStore;

    #[test]
    fn a_store_that_keeps_its_word_and_leaves_nothing() {
        let store = MemoryStore::default();
        let found = run(&store).unwrap();
        assert!(found.rows().iter().all(|(_, holds)| *holds == Some(true)), "{found:?}");
        found.require("here", false).unwrap();
        assert!(store.list("").unwrap().is_empty());
    }
}

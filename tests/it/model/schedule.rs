//! The store that schedules: one actor holds the baton at a time, and hands it on only at a call others can see.
//!
//! Reading a record hands nothing on: records never change, so it matters only when the log was listed.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bk::error::{Error, Kind, Result};
use bk::volume::memory::MemoryStore;
use bk::volume::{Created, Item, Store, Upload};

use super::check::Checker;
use crate::support::rng::Rng;

/// Where choices come from.
pub enum Choices {
    /// A seed; the one who goes stays on for about `stickiness` steps.
    Random { rng: Rng, stickiness: u64 },
    /// What was chosen before, and the first option after that. At most `crashes` actors die.
    Script { script: Vec<usize>, at: usize, crashes: usize },
}

/// How often a call goes wrong.
#[derive(Clone, Copy)]
pub struct Faults {
    /// One call in this many; never when 0.
    pub one_in: u64,
}

impl Faults {
    pub const NONE: Self = Self { one_in: 0 };
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Done,
    /// Not done, and an error.
    Failed,
    /// Done, and an error.
    DoneButFailed,
    /// An error; done later.
    Late,
    /// Sent twice: done, and the answer is that of the second.
    Twice,
    /// The actor is no more.
    Crash,
}

pub struct Sched {
    inner: Mutex<Inner>,
    turns: Vec<Condvar>,
    pub memory: MemoryStore,
}

struct Inner {
    turn: usize,
    runnable: Vec<bool>,
    choices: Choices,
    chosen: Vec<(usize, usize)>,
    faults: Faults,
    /// Creates on their way.
    late: Vec<(String, Vec<u8>)>,
    checker: Checker,
    steps: u64,
    trace: Vec<String>,
}

impl Inner {
    fn choose(&mut self, of: usize) -> usize {
        match &mut self.choices {
            Choices::Random { rng, .. } => rng.below(of as u64) as usize,
            Choices::Script { script, at, .. } => {
                let took = script.get(*at).copied().unwrap_or(0);
                *at += 1;
                self.chosen.push((took, of));
                took
            }
        }
    }

    /// Who goes on: `me`, or another.
    fn next(&mut self, me: Option<usize>) -> Option<usize> {
        let runnable: Vec<usize> = (0..self.runnable.len()).filter(|&n| self.runnable[n]).collect();
        if runnable.len() < 2 {
            return runnable.first().copied();
        }
        if let (Some(me), Choices::Random { rng, stickiness }) = (me, &mut self.choices)
            && rng.below(*stickiness) != 0
        {
            return Some(me);
        }
        let took = self.choose(runnable.len());
        Some(runnable[took])
    }

    fn fate(&mut self, is_create: bool, is_write: bool) -> Fate {
        match &mut self.choices {
            Choices::Script { crashes: 0, .. } => Fate::Done,
            Choices::Script { .. } => {
                let took = self.choose(2);
                if let (1, Choices::Script { crashes, .. }) = (took, &mut self.choices) {
                    *crashes -= 1;
                    return Fate::Crash;
                }
                Fate::Done
            }
            Choices::Random { rng, .. } => {
                if self.faults.one_in == 0 || rng.below(self.faults.one_in) != 0 {
                    return Fate::Done;
                }
                let all = [Fate::Failed, Fate::Crash, Fate::DoneButFailed, Fate::Late, Fate::Twice];
                let count = if is_create {
                    5
                } else if is_write {
                    3
                } else {
                    2
                };
                all[rng.below(count) as usize]
            }
        }
    }
}

impl Sched {
    pub fn new(actors: usize, choices: Choices, faults: Faults, memory: MemoryStore, checker: Checker) -> Self {
        let inner = Inner {
            turn: usize::MAX,
            runnable: vec![true; actors],
            choices,
            chosen: Vec::new(),
            faults,
            late: Vec::new(),
            checker,
            steps: 0,
            trace: Vec::new(),
        };
        Self { inner: Mutex::new(inner), turns: (0..actors).map(|_| Condvar::new()).collect(), memory }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the baton to the first.
    pub fn start(&self) {
        let mut inner = self.lock();
        let next = inner.next(None).unwrap();
        inner.turn = next;
        self.turns[next].notify_one();
    }

    /// Waits for the first turn of `me`.
    pub fn begin(&self, me: usize) {
        let inner = self.lock();
        drop(self.turns[me].wait_while(inner, |inner| inner.turn != me).unwrap());
    }

    /// `me` is done.
    pub fn end(&self, me: usize) {
        let mut inner = self.lock();
        inner.runnable[me] = false;
        if let Some(next) = inner.next(None) {
            inner.turn = next;
            self.turns[next].notify_one();
        }
    }

    /// What a run was told.
    pub fn told(&self, nonce: &str, won: bool) {
        let mut inner = self.lock();
        inner.trace.push(format!("told {}", if won { "won" } else { "lost" }));
        inner.checker.told(nonce, won);
        self.check(&mut inner);
    }

    /// Someone begins or ends to hold the lease.
    pub fn holds(&self, epoch: u64, holds: bool) {
        let mut inner = self.lock();
        inner.trace.push(format!("epoch {epoch} {}", if holds { "is held" } else { "ends" }));
        inner.checker.holds_lease(epoch, holds);
    }

    /// `me` panicked: bk must not, whatever the store does.
    pub fn panicked(&self, me: usize) {
        let mut inner = self.lock();
        inner.checker.violation.get_or_insert_with(|| format!("actor {me} panicked"));
    }

    fn check(&self, inner: &mut Inner) {
        inner.checker.check(&self.memory);
    }

    /// Lands what is still on its way, and gives the end.
    pub fn finish(&self) -> (Option<String>, u64, Vec<(usize, usize)>) {
        let mut inner = self.lock();
        while let Some((key, bytes)) = inner.late.pop() {
            self.memory.put_new(&key, &bytes).unwrap();
            self.check(&mut inner);
        }
        self.check(&mut inner);
        let violation = inner.checker.violation.take().map(|what| format!("{what}\n{}", inner.trace.join("\n")));
        (violation, inner.steps, std::mem::take(&mut inner.chosen))
    }

    /// A call of `me`: others may go first, then `act` is done, or not.
    fn step<T>(
        &self,
        me: usize,
        what: &str,
        key: &str,
        create: Option<&[u8]>,
        act: impl Fn() -> Result<T>,
    ) -> Result<T> {
        let mut inner = self.lock();
        let next = inner.next(Some(me)).unwrap_or(me);
        if next != me {
            inner.turn = next;
            self.turns[next].notify_one();
            inner = self.turns[me].wait_while(inner, |inner| inner.turn != me).unwrap();
        }
        if inner.checker.violation.is_some() {
            inner.runnable[me] = false;
            return Err(Error::new(Kind::Other, "over"));
        }
        inner.steps += 1;
        self.land(&mut inner);
        let is_write = create.is_some() || what == "delete";
        let fate = inner.fate(create.is_some(), is_write);
        inner.trace.push(format!(
            "{me} {what} {key}{}",
            if fate == Fate::Done { String::new() } else { format!(" {fate:?}") }
        ));
        let failed = || Err(Error::new(Kind::Other, format!("{what} {key} failed")));
        let result = match fate {
            Fate::Done => act(),
            Fate::Failed => failed(),
            Fate::Crash => {
                inner.runnable[me] = false;
                failed()
            }
            Fate::DoneButFailed => act().and_then(|_| failed()),
            Fate::Late => {
                inner.late.extend(create.map(|bytes| (key.to_owned(), bytes.to_vec())));
                failed()
            }
            Fate::Twice => {
                let _ = act();
                act()
            }
        };
        if is_write {
            self.check(&mut inner);
        }
        result
    }

    /// Something that was on its way may arrive now.
    fn land(&self, inner: &mut Inner) {
        let Choices::Random { rng, .. } = &mut inner.choices else { return };
        if inner.late.is_empty() || rng.below(4) != 0 {
            return;
        }
        let at = rng.below(inner.late.len() as u64) as usize;
        let (key, bytes) = inner.late.swap_remove(at);
        let created = self.memory.put_new(&key, &bytes).unwrap();
        inner.trace.push(format!("- late {key} {created:?}"));
        self.check(inner);
    }

    fn is_dead(&self, me: usize) -> bool {
        !self.lock().runnable[me]
    }
}

/// The store as one actor has it.
#[derive(Clone)]
pub struct ActorStore {
    pub sched: Arc<Sched>,
    pub me: usize,
    /// A listing that fails is answered as an empty one.
    pub list_error_is_empty: bool,
    /// A create of what is there is answered as if it had been made.
    pub exists_is_new: bool,
}

impl ActorStore {
    fn step<T>(&self, what: &str, key: &str, create: Option<&[u8]>, act: impl Fn() -> Result<T>) -> Result<T> {
        if self.sched.is_dead(self.me) {
            return Err(Error::new(Kind::Other, "dead"));
        }
        self.sched.step(self.me, what, key, create, act)
    }
}

struct ActorUpload {
    store: ActorStore,
    key: String,
    bytes: Vec<u8>,
}

impl Upload for ActorUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let memory = &self.store.sched.memory;
        self.store.step("create", &self.key, Some(&self.bytes), || memory.put_new(&self.key, &self.bytes).map(|_| ()))
    }
}

impl Store for ActorStore {
    fn create(&self, key: &str) -> Result<Box<dyn Upload>> {
        Ok(Box::new(ActorUpload { store: self.clone(), key: key.to_owned(), bytes: Vec::new() }))
    }

    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Created> {
        let put = self.step("put", key, Some(bytes), || self.sched.memory.put_new(key, bytes));
        if self.exists_is_new { put.map(|_| Created::New) } else { put }
    }

    fn read_at(&self, _: &str, _: u64, _: &mut [u8]) -> Result<()> {
        Err(Error::new(Kind::Other, "not in this model"))
    }

    fn read(&self, key: &str, len_max: u64) -> Result<Vec<u8>> {
        self.sched.memory.read(key, len_max)
    }

    fn head(&self, key: &str) -> Result<Option<u64>> {
        self.step("head", key, None, || self.sched.memory.head(key))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Item>> {
        let listed = self.step("list", prefix, None, || self.sched.memory.list(prefix));
        if self.list_error_is_empty && !self.sched.is_dead(self.me) {
            return Ok(listed.unwrap_or_default());
        }
        listed
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.step("delete", key, None, || self.sched.memory.delete(key))
    }

    /// Nothing happens, but others may go on.
    fn free_bytes(&self) -> Result<Option<u64>> {
        self.step("wait", "", None, || Ok(None))
    }

    fn scratch(&self) -> Result<std::fs::File> {
        self.sched.memory.scratch()
    }

    fn check_writable(&self) -> Result<()> {
        Ok(())
    }
}

//! Objects on their way: collected in memory as they are written, sent whole, while the next one is written. What is
//! written as long as the run lasts is collected in a file, and sent from there.
//!
//! Invariant: all bytes held for uploads are counted in one [`Budget`]; a writer waits while it is used up and an upload
//! is under way that will give some back. Only an object that is longer than the budget goes over it, and alone.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use object_store::PutPayload;
use ring::digest;
use tokio::task::JoinHandle;

use super::{
    Inner, Threads,
    body::{Body, Spooled},
    scratch_file, wait,
    watch::LOOK,
};
use crate::{
    error::{Error, Kind, Result},
    volume::{Created, Pending, Upload},
};

/// Small writes are collected to this many bytes.
const CHUNK_LEN: usize = 64 << 10;
/// No chunk is longer: how far an object was sent is known by chunks, each of them memory of its own.
const CHUNK_LEN_MAX: usize = 256 << 10;

/// Bytes that may be held for uploads.
#[derive(Debug)]
pub(super) struct Budget {
    max: u64,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    /// Uploads under way.
    flying: usize,
}

impl Budget {
    pub fn new(max: u64) -> Self {
        Self { max, state: Mutex::default(), freed: Condvar::new() }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A share of the budget, given back when dropped.
struct Held {
    budget: Arc<Budget>,
    len: u64,
    is_flying: bool,
}

impl Held {
    fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), len: 0, is_flying: false }
    }

    /// Takes `len` bytes, or gives up with what `stopped` says.
    fn take(&mut self, len: u64, stopped: impl Fn() -> Option<Error>) -> Result<()> {
        let mut state = self.budget.locked();
        while state.used + len > self.budget.max && state.flying > 0 {
            if let Some(error) = stopped() {
                return Err(error);
            }
            state = self.budget.freed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.used += len;
        self.len += len;
        Ok(())
    }

    fn fly(&mut self) {
        self.budget.locked().flying += 1;
        self.is_flying = true;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.budget.locked();
        state.used -= self.len;
        state.flying -= usize::from(self.is_flying);
        self.budget.freed.notify_all();
    }
}

pub(super) struct S3Upload {
    inner: Arc<Inner>,
    threads: Arc<Threads>,
    key: String,
    chunks: Vec<Bytes>,
    buffer: Vec<u8>,
    held: Held,
    spool: Option<Spool>,
}

/// A file that an object is collected in.
struct Spool {
    file: File,
    len: u64,
    sha256: digest::Context,
}

impl Spool {
    fn new() -> Result<Self> {
        Ok(Self { file: scratch_file()?, len: 0, sha256: digest::Context::new(&digest::SHA256) })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(spool_failed)?;
        self.sha256.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }
}

impl S3Upload {
    pub fn new(inner: Arc<Inner>, threads: Arc<Threads>, key: &str, is_spooled: bool) -> Result<Self> {
        let held = Held::new(&inner.budget);
        let spool = is_spooled.then(Spool::new).transpose()?;
        Ok(Self { inner, threads, key: key.to_owned(), chunks: Vec::new(), buffer: Vec::new(), held, spool })
    }

    fn chunk(&mut self, bytes: Bytes) -> Result<()> {
        self.held.take(bytes.len() as u64, || self.inner.watch.signal())?;
        self.chunks.push(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let full = std::mem::take(&mut self.buffer);
        match &mut self.spool {
            Some(spool) => spool.write(&full),
            None => self.chunk(full.into()),
        }
    }

    /// All that was written, as it is sent: from its file what is long, all else from memory.
    fn body(&mut self) -> Result<Body> {
        self.flush()?;
        if let Some(Spool { mut file, len, sha256 }) = self.spool.take() {
            if len > self.inner.in_memory_len_max {
                let sha256 = sha256.finish().as_ref().try_into().map_err(|_| Error::new(Kind::Other, "no SHA-256"))?;
                return Ok(Body::File(Spooled::new(file, len, sha256)));
            }
            file.rewind().map_err(spool_failed)?;
            loop {
                let mut chunk = Vec::new();
                (&mut file).take(CHUNK_LEN_MAX as u64).read_to_end(&mut chunk).map_err(spool_failed)?;
                if chunk.is_empty() {
                    break;
                }
                self.chunk(chunk.into())?;
            }
        }
        Ok(Body::Memory(PutPayload::from_iter(std::mem::take(&mut self.chunks))))
    }
}

fn spool_failed(e: std::io::Error) -> Error {
    Error::io("cannot use a temporary file", e).with_hint("TMPDIR says where they are")
}

impl Upload for S3Upload {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() < CHUNK_LEN {
            self.buffer.extend_from_slice(bytes);
            return if self.buffer.len() < CHUNK_LEN { Ok(()) } else { self.flush() };
        }
        self.flush()?;
        match &mut self.spool {
            Some(spool) => spool.write(bytes),
            None => bytes.chunks(CHUNK_LEN_MAX).try_for_each(|some| self.chunk(Bytes::copy_from_slice(some))),
        }
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.start()?.wait()
    }

    fn start(mut self: Box<Self>) -> Result<Box<dyn Pending>> {
        let body = self.body()?;
        let Self { inner, threads, key, mut held, .. } = *self;
        held.fly();
        let name = key.clone();
        let shared = Arc::clone(&inner);
        let task = threads.spawn(async move {
            let created = shared.create_object(&name, body).await;
            drop(held);
            created
        });
        let task = task.ok_or_else(|| stopped(&key))?;
        Ok(Box::new(S3Pending { inner, threads, key, task }))
    }
}

fn stopped(key: &str) -> Error {
    Error::new(Kind::Other, format!("the upload of {key} was stopped"))
}

struct S3Pending {
    inner: Arc<Inner>,
    threads: Arc<Threads>,
    key: String,
    task: JoinHandle<Result<Created>>,
}

impl Pending for S3Pending {
    fn wait(mut self: Box<Self>) -> Result<()> {
        let (task, key) = (&mut self.task, &self.key);
        let ended = async { task.await.unwrap_or_else(|_| Err(stopped(key))) };
        match wait(&self.inner, &self.threads, Duration::ZERO, ended)? {
            Created::New => Ok(()),
            Created::Exists => Err(Error::new(Kind::Lost, format!("{key} exists already"))),
        }
    }
}

impl Drop for S3Pending {
    /// Only tidies: nobody waits for it any more.
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_waits_for_uploads_and_never_for_itself() {
        let budget = Arc::new(Budget::new(100));
        let mut one = Held::new(&budget);
        one.take(60, || None).unwrap();
        // Nothing is under way that could give bytes back.
        one.take(60, || None).unwrap();
        one.fly();
        let (sender, receiver) = std::sync::mpsc::channel();
        let shared = Arc::clone(&budget);
        let waiting = std::thread::spawn(move || {
            let mut two = Held::new(&shared);
            two.take(50, || None).unwrap();
            sender.send(()).unwrap();
        });
        assert!(receiver.recv_timeout(std::time::Duration::from_millis(50)).is_err());
        let signal = || Some(Error::new(Kind::Signal(15), "interrupted"));
        assert!(Held::new(&budget).take(50, signal).is_err());
        drop(one);
        receiver.recv().unwrap();
        waiting.join().unwrap();
        assert_eq!(budget.locked().used, 0);
    }
}

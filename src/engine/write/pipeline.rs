//! The threads of a snapshot: one fills frames, workers hash and compress them, one stores them in order.
//!
//! Memory is a fixed number of buffers, plain and stored, that go round. A worker takes a stored buffer before it takes a
//! frame, so the oldest frame in flight always has one and the order can always be kept.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{
    framer::{self, Framer, Plain, Role},
    part::{Content, PartWriter, Sealed, Stored},
    profile::{Profile, Ran, Spent, Stage, Watch},
};
use crate::{
    error::{Error, Kind, Result},
    format::{
        codec::{Codec, Decoder, Encoder},
        index::Extent,
    },
    model::digest::{Digest, Piece},
};

/// Without [`Settings::verify_all`], one frame in this many is decoded again before it counts.
const VERIFY_ONE_IN: u64 = 64;

/// With more workers than this the reading thread leaves all hashing to them.
const HASHING_READER_THREADS_MAX: usize = 4;

/// How a pipeline runs.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Workers.
    pub threads: usize,
    /// The codec.
    pub codec: Codec,
    /// Content of a frame, bytes; a power of two.
    pub frame_len: usize,
    /// Decode every frame again.
    pub verify_all: bool,
}

/// Runs `fill`, which puts everything into the framer, and stores what it put through `writer`; tells where the time went.
///
/// The calling thread counts as one of the workers: when no buffer is free to fill, it compresses a frame itself. So there
/// are as many busy threads as processors, and none is put aside in the middle of a frame.
pub fn run<T>(
    settings: Settings,
    writer: PartWriter,
    fill: impl FnOnce(&mut Framer<'_>) -> Result<T>,
) -> Result<(T, Stored, Profile)> {
    let (started_at, ran_before) = (Instant::now(), Ran::of_thread());
    let ledger = Ledger::default();
    let buffers = settings.threads + 2;
    let (plain_free, plain_pool) = bounded(buffers);
    let (stored_free, stored_pool) = bounded(buffers);
    for _ in 0..buffers {
        // The channels hold exactly this many: sending cannot fail or wait.
        let _ = plain_free.send(vec![0u8; settings.frame_len]);
        let _ = stored_free.send(Vec::new());
    }
    let (plain_out, plain_in) = bounded::<Plain>(buffers);
    let (sealed_out, sealed_in) = bounded::<(u64, Sealed)>(buffers);
    let failure = Failure::default();
    let worker = || Worker::new(settings, &plain_in, &stored_pool, &plain_free, &sealed_out);
    let mut own = worker()?;
    let others = (1..settings.threads).map(|_| worker()).collect::<Result<Vec<_>>>()?;
    drop((plain_in, stored_pool, plain_free, sealed_out));
    let (filled, stored) = thread::scope(|scope| {
        let (failure, ledger) = (&failure, &ledger);
        for mut worker in others {
            scope.spawn(move || {
                failure.keep(worker.run());
                ledger.note(worker.watch.spent(), Ran::of_thread());
            });
        }
        let storing = scope.spawn(move || {
            let stored = store(writer, &sealed_in, &stored_free, failure).map(|stored| {
                stored.map(|(stored, spent)| {
                    ledger.note(spent, Ran::of_thread());
                    stored
                })
            });
            stored.map_err(|e| failure.keep::<()>(Err(e)))
        });
        let mut help = || {
            if failure.is_set() { Err(framer::stopped()) } else { own.step() }
        };
        let framer = Framer::new(settings.frame_len, plain_out, plain_pool, &mut help);
        let few = settings.threads <= HASHING_READER_THREADS_MAX;
        let filled = framer.and_then(|framer| {
            let mut framer = framer.hashing_small(few);
            let filled = fill(&mut framer);
            ledger.note(framer.spent(), Ran::default());
            filled
        });
        let filled = filled.map_err(|e| failure.keep::<()>(Err(e)));
        if filled.is_ok() {
            failure.keep(own.run());
        }
        let mut watch = std::mem::replace(&mut own.watch, Watch::new(Stage::Away));
        drop(own);
        // Till the last part is durable.
        watch.turn(Stage::Wait);
        let stored = storing.join();
        ledger.note(watch.spent(), Ran::of_thread().since(ran_before));
        (filled, stored)
    });
    let profile = ledger.profile(started_at.elapsed().as_secs_f64(), settings.threads);
    match (failure.into_first(), filled, stored) {
        (Some(error), _, _) => Err(error),
        (None, Ok(filled), Ok(Ok(Some(stored)))) => Ok((filled, stored, profile)),
        (None, _, _) => Err(Error::new(Kind::Other, "a thread of the pipeline ended early")),
    }
}

/// The first error of any thread.
#[derive(Default)]
struct Failure {
    first: Mutex<Option<Error>>,
    set: AtomicBool,
}

impl Failure {
    fn keep<T>(&self, result: Result<T>) {
        if let Err(error) = result {
            if let Ok(mut first) = self.first.lock() {
                first.get_or_insert(error);
            }
            self.set.store(true, Ordering::Release);
        }
    }

    fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    fn into_first(self) -> Option<Error> {
        self.first.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What all threads have spent.
#[derive(Default)]
struct Ledger(Mutex<(Spent, Ran)>);

impl Ledger {
    fn note(&self, spent: Spent, ran: Ran) {
        let mut sum = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sum.0.add(spent);
        sum.1.add(ran);
    }

    fn profile(self, seconds: f64, threads: usize) -> Profile {
        let (spent, ran) = self.0.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        Profile::new(&spent, ran, seconds, threads)
    }
}

/// Hashes and compresses frames.
struct Worker {
    settings: Settings,
    encoder: Encoder,
    decoder: Decoder,
    again: Vec<u8>,
    /// A stored buffer taken when there was no frame for it.
    spare: Option<Vec<u8>>,
    frames: Receiver<Plain>,
    pool: Receiver<Vec<u8>>,
    free: Sender<Vec<u8>>,
    out: Sender<(u64, Sealed)>,
    watch: Watch,
}

impl Worker {
    fn new(
        settings: Settings,
        frames: &Receiver<Plain>,
        pool: &Receiver<Vec<u8>>,
        free: &Sender<Vec<u8>>,
        out: &Sender<(u64, Sealed)>,
    ) -> Result<Self> {
        Ok(Self {
            settings,
            encoder: Encoder::new(settings.codec)?,
            decoder: Decoder::new()?,
            again: Vec::new(),
            spare: None,
            frames: frames.clone(),
            pool: pool.clone(),
            free: free.clone(),
            out: out.clone(),
            watch: Watch::new(Stage::Away),
        })
    }

    /// Works until all frames are done, or another thread stopped: it tells why.
    fn run(&mut self) -> Result<()> {
        self.watch.turn(Stage::Wait);
        while let Some(stored) = self.spare.take().or_else(|| self.pool.recv().ok()) {
            let Ok(frame) = self.frames.recv() else { break };
            if !self.seal(frame, stored)? {
                break;
            }
        }
        Ok(())
    }

    /// Does one frame if there is one to do now; false when there is none. Like [`Self::run`] it has a stored buffer before it
    /// takes a frame.
    fn step(&mut self) -> Result<bool> {
        let Some(stored) = self.spare.take().or_else(|| self.pool.try_recv().ok()) else { return Ok(false) };
        match self.frames.try_recv() {
            Ok(frame) => {
                self.watch.turn(Stage::Wait);
                let sealed = self.seal(frame, stored);
                self.watch.turn(Stage::Away);
                sealed
            }
            Err(_) => {
                self.spare = Some(stored);
                Ok(false)
            }
        }
    }

    fn seal(&mut self, frame: Plain, mut stored: Vec<u8>) -> Result<bool> {
        let Self { settings, again, .. } = self;
        self.watch.turn(Stage::Hash);
        let plain = &frame.buf[..frame.len];
        let contents = frame.slices.iter().map(|slice| {
            let bytes = &plain[slice.start..slice.start + slice.len];
            let (offset, len) = (frame.offset + slice.start as u64, slice.len as u64);
            match slice.role {
                Role::Hashed(digest) => Content::Whole(Extent { stream: frame.stream, offset, len, digest }),
                Role::Whole => Content::Whole(Extent { stream: frame.stream, offset, len, digest: Digest::of(bytes) }),
                Role::Piece { offset: at, last } => Content::Piece(offset, len, Piece::of(bytes, at), last),
            }
        });
        let contents = contents.collect();
        self.watch.turn(Stage::Compress);
        stored.clear();
        if frame.len > 0 {
            self.encoder.encode(plain, &mut stored)?;
            if settings.verify_all || frame.number.is_multiple_of(VERIFY_ONE_IN) {
                self.decoder.decode(settings.codec, &stored, plain.len(), again)?;
                if again != plain {
                    return Err(Error::integrity(format!("frame {} does not decode to what was read", frame.number))
                        .with_hint("memory or processor may be faulty; nothing was recorded"));
                }
            }
        }
        self.watch.turn(Stage::Seal);
        let digest = Digest::of(&stored);
        self.watch.turn(Stage::Wait);
        let len = u32::try_from(frame.len).map_err(|_| Error::integrity("a frame is too long"))?;
        let Plain {
            number, stream, offset, buf, starts_member, runs_on, rows, chunks, ends_stream, stream_end, ..
        } = frame;
        let _ = self.free.send(buf);
        let sealed = Sealed {
            stream,
            offset,
            len,
            stored,
            digest,
            starts_member,
            runs_on,
            contents,
            rows,
            chunks,
            ends_stream,
            stream_end,
        };
        Ok(self.out.send((number, sealed)).is_ok())
    }
}

/// Stores frames in their order. `None` when another has failed: all that is stored goes then, and no more is worth waiting for.
fn store(
    mut writer: PartWriter,
    frames: &Receiver<(u64, Sealed)>,
    free: &Sender<Vec<u8>>,
    failure: &Failure,
) -> Result<Option<(Stored, Spent)>> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    while let Ok((number, sealed)) = frames.recv() {
        early.insert(number, sealed);
        while let Some(sealed) = early.remove(&next) {
            if failure.is_set() {
                return Ok(None);
            }
            let buffer = writer.frame(sealed)?;
            let _ = free.send(buffer);
            next += 1;
        }
    }
    if failure.is_set() || !early.is_empty() {
        return Ok(None);
    }
    writer.finish().map(Some)
}

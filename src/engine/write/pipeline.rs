//! The threads of a snapshot: one fills frames, workers hash and compress them, one stores them in order.
//!
//! Memory is a fixed number of buffers, plain and stored, that go round. A worker takes a stored buffer before it takes a
//! frame, so the oldest frame in flight always has one and the order can always be kept.

use std::{collections::BTreeMap, sync::Mutex, thread};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{
    framer::{Framer, Plain, Role},
    part::{Content, PartWriter, Sealed, Stored},
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

/// Runs `fill`, which puts everything into the framer, and stores what it put through `writer`.
pub fn run<T>(settings: Settings, writer: PartWriter, fill: impl FnOnce(&mut Framer) -> Result<T>) -> Result<(T, Stored)> {
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
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let keep = |error: Error| {
        if let Ok(mut first) = failure.lock() {
            first.get_or_insert(error);
        }
    };
    let (filled, stored) = thread::scope(|scope| {
        for _ in 0..settings.threads {
            let (frames, pool, free, out) = (plain_in.clone(), stored_pool.clone(), plain_free.clone(), sealed_out.clone());
            let keep = &keep;
            scope.spawn(move || {
                if let Err(e) = work(settings, &frames, &pool, &free, &out) {
                    keep(e);
                }
            });
        }
        drop((plain_in, stored_pool, plain_free, sealed_out));
        let keep_stored = &keep;
        let storing = scope.spawn(move || store(writer, &sealed_in, &stored_free).map_err(keep_stored));
        let filled = Framer::new(settings.frame_len, plain_out, plain_pool).and_then(|mut framer| fill(&mut framer));
        (filled, storing.join())
    });
    let first = failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    match (first, filled, stored) {
        (Some(error), _, _) | (None, Err(error), _) => Err(error),
        (None, Ok(filled), Ok(Ok(Some(stored)))) => Ok((filled, stored)),
        (None, Ok(_), _) => Err(Error::new(Kind::Other, "a thread of the pipeline ended early")),
    }
}

fn work(settings: Settings, frames: &Receiver<Plain>, pool: &Receiver<Vec<u8>>, free: &Sender<Vec<u8>>, out: &Sender<(u64, Sealed)>) -> Result<()> {
    let mut encoder = Encoder::new(settings.codec)?;
    let mut decoder = Decoder::new()?;
    let mut again = Vec::new();
    // Ends when another thread stopped: it tells why.
    while let Ok(mut stored) = pool.recv() {
        let Ok(frame) = frames.recv() else { break };
        let plain = &frame.buf[..frame.len];
        let contents = frame.slices.iter().map(|slice| {
            let bytes = &plain[slice.start..slice.start + slice.len];
            let (offset, len) = (frame.offset + slice.start as u64, slice.len as u64);
            match slice.role {
                Role::Whole => Content::Whole(Extent { stream: frame.stream, offset, len, digest: Digest::of(bytes) }),
                Role::Piece { offset: at, last } => Content::Piece(offset, len, Piece::of(bytes, at), last),
            }
        });
        let contents = contents.collect();
        stored.clear();
        if frame.len > 0 {
            encoder.encode(plain, &mut stored)?;
            if settings.verify_all || frame.number % VERIFY_ONE_IN == 0 {
                decoder.decode(settings.codec, &stored, plain.len(), &mut again)?;
                if again != plain {
                    return Err(Error::integrity(format!("frame {} does not decode to what was read", frame.number))
                        .with_hint("memory or processor may be faulty; nothing was recorded"));
                }
            }
        }
        let digest = Digest::of(&stored);
        let len = u32::try_from(frame.len).map_err(|_| Error::integrity("a frame is too long"))?;
        let Plain { number, stream, offset, buf, starts_member, runs_on, rows, ends_stream, .. } = frame;
        let _ = free.send(buf);
        let sealed = Sealed { stream, offset, len, stored, digest, starts_member, runs_on, contents, rows, ends_stream };
        if out.send((number, sealed)).is_err() {
            break;
        }
    }
    Ok(())
}

/// Stores frames in their order. `None` when the others ended before their end was reached.
fn store(mut writer: PartWriter, frames: &Receiver<(u64, Sealed)>, free: &Sender<Vec<u8>>) -> Result<Option<Stored>> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    while let Ok((number, sealed)) = frames.recv() {
        early.insert(number, sealed);
        while let Some(sealed) = early.remove(&next) {
            let buffer = writer.frame(sealed)?;
            let _ = free.send(buffer);
            next += 1;
        }
    }
    if early.is_empty() { writer.finish().map(Some) } else { Ok(None) }
}

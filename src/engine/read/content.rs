//! Contents in order: frames decoded in parallel, a bounded number of them in flight, handed over one after another.

use std::{collections::VecDeque, io::Write};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{
    frame::FrameReader,
    index::{IndexReader, Row},
};
use crate::{
    error::{Error, Kind, Result},
    format::index::{Extent, Frame},
    model::{digest::Digest, entry::Run, show},
    monitor::Monitor,
};

/// Decoded bytes in flight are at most this many, or two frames.
const IN_FLIGHT_LEN_MAX: u64 = 64 << 20;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Fails when the run should stop.
pub fn check_interrupted(monitor: &dyn Monitor) -> Result<()> {
    match monitor.interrupted() {
        Some(signal) => Err(Error::new(Kind::Signal(signal), "interrupted")),
        None => Ok(()),
    }
}

type Job = (Frame, Sender<Result<Vec<u8>>>);

/// Frames being decoded, in order.
pub struct Ordered<'a> {
    index: &'a IndexReader,
    frames: Box<dyn Iterator<Item = Result<Frame>> + 'a>,
    jobs: Option<Sender<Job>>,
    own: FrameReader,
    waiting: VecDeque<(Frame, Receiver<Result<Vec<u8>>>)>,
    in_flight: usize,
    pool: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
}

impl Ordered<'_> {
    /// The next frame with its content, or with what is wrong with it; an error of the index ends the run.
    pub fn next_frame(&mut self) -> Result<Option<(Frame, Result<Vec<u8>>)>> {
        let Some(jobs) = &self.jobs else { return self.next_here() };
        while self.waiting.len() < self.in_flight {
            let Some(frame) = self.frames.next().transpose()? else { break };
            let (done, result) = bounded(1);
            self.waiting.push_back((frame, result));
            if jobs.send((frame, done)).is_err() {
                return Err(Error::new(Kind::Other, "the decoders stopped"));
            }
        }
        let Some((frame, result)) = self.waiting.pop_front() else { return Ok(None) };
        let result = result.recv().unwrap_or_else(|_| Err(Error::new(Kind::Other, "a decoder stopped")));
        Ok(Some((frame, result)))
    }

    fn next_here(&mut self) -> Result<Option<(Frame, Result<Vec<u8>>)>> {
        let Some(frame) = self.frames.next().transpose()? else { return Ok(None) };
        let mut plain = self.pool.1.try_recv().unwrap_or_default();
        let result = self.own.read(self.index, &frame, &mut plain);
        Ok(Some((frame, result.map(|()| plain))))
    }

    /// Gives a buffer back.
    pub fn recycle(&self, buffer: Vec<u8>) {
        let _ = self.pool.0.try_send(buffer);
    }
}

/// Runs `work` over `frames`, decoded by `threads` threads when there is more than one frame.
pub fn ordered<'a, T>(
    index: &'a IndexReader,
    mut frames: impl Iterator<Item = Result<Frame>> + 'a,
    threads: usize,
    work: impl FnOnce(&mut Ordered<'_>) -> Result<T>,
) -> Result<T> {
    let first: Vec<_> = frames.by_ref().take(2).collect();
    let frame_len = first.iter().flatten().map(|frame| u64::from(frame.len)).max().unwrap_or(1).max(1);
    let single = first.len() < 2 || threads < 2;
    let by_memory = usize::try_from(IN_FLIGHT_LEN_MAX / frame_len).unwrap_or(usize::MAX);
    let in_flight = threads.saturating_mul(2).min(by_memory).max(2);
    let (jobs, taken) = bounded::<Job>(in_flight);
    let mut ordered = Ordered {
        index,
        frames: Box::new(first.into_iter().chain(frames)),
        jobs: (!single).then_some(jobs),
        own: FrameReader::new()?,
        waiting: VecDeque::new(),
        in_flight,
        pool: bounded(in_flight),
    };
    if single {
        return work(&mut ordered);
    }
    std::thread::scope(|scope| {
        for _ in 0..threads.min(in_flight) {
            let (taken, pool) = (taken.clone(), ordered.pool.1.clone());
            scope.spawn(move || decode(index, &taken, &pool));
        }
        drop(taken);
        let result = work(&mut ordered);
        // Without jobs the decoders end.
        drop(ordered);
        result
    })
}

fn decode(index: &IndexReader, jobs: &Receiver<Job>, pool: &Receiver<Vec<u8>>) {
    let mut reader = FrameReader::new();
    for (frame, done) in jobs {
        let result = match &mut reader {
            Ok(reader) => {
                let mut plain = pool.try_recv().unwrap_or_default();
                reader.read(index, &frame, &mut plain).map(|()| plain)
            }
            Err(e) => Err(Error::new(e.kind(), e.to_string())),
        };
        // Nobody waits for it when the run ended early.
        let _ = done.send(result);
    }
}

/// Hands the plain bytes `offset..offset + len` of `stream` to `sink`, in order.
pub fn each_slice(
    index: &IndexReader,
    (stream, offset, len): (u32, u64, u64),
    threads: usize,
    monitor: &dyn Monitor,
    mut sink: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let end = offset.checked_add(len).ok_or_else(|| Error::integrity("a range out of bounds"))?;
    let frames =
        index.frames_from(stream, offset)?.take_while(move |frame| frame.as_ref().map_or(true, |f| f.offset < end));
    let mut at = offset;
    ordered(index, frames, threads, |ordered| {
        while at < end {
            check_interrupted(monitor)?;
            let Some((frame, plain)) = ordered.next_frame()? else { break };
            let plain = plain?;
            let skip = at.checked_sub(frame.offset).filter(|&skip| skip <= u64::from(frame.len));
            let skip = skip.ok_or_else(|| Error::integrity("frames do not follow each other"))?;
            let want = (end - at).min(u64::from(frame.len) - skip);
            let range = usize::try_from(skip).unwrap_or(0)..usize::try_from(skip + want).unwrap_or(0);
            sink(&plain[range])?;
            at += want;
            ordered.recycle(plain);
        }
        Ok(())
    })?;
    if at < end {
        return Err(Error::integrity(format!(
            "stream {stream} of snapshot {} ends at {at}, before {end}",
            index.shown()
        )));
    }
    Ok(())
}

fn output(e: std::io::Error) -> Error {
    Error::io("cannot write the output", e)
}

/// Writes the bytes `start..end` of a file to `out`; holes are zeros. A content inside one frame is held against its
/// digest first; frames of longer ones have their own.
pub fn write_file(
    index: &IndexReader,
    row: &Row,
    (start, end): (u64, u64),
    threads: usize,
    monitor: &dyn Monitor,
    out: &mut dyn Write,
) -> Result<()> {
    let Some(extent) = index.extent_of(row)? else { return zeros(out, end - start, monitor) };
    let runs = row.entry.data_runs();
    let content_before = |at: u64| -> u64 { runs.iter().map(|run| run.len.min(at.saturating_sub(run.offset))).sum() };
    let (from, to) = (content_before(start), content_before(end));
    let mut spread = Spread { next: runs.partition_point(|run| run.end() <= start), runs: &runs, at: start };
    let frame = index.frame_at(0, extent.offset)?;
    if extent.offset.saturating_add(extent.len) <= frame.end() {
        let content = read_checked(index, &extent, &frame, &row.entry.path)?;
        let range = usize::try_from(from).unwrap_or(0)..usize::try_from(to).unwrap_or(0);
        spread.put(&content[range], monitor, out)?;
    } else if from < to {
        each_slice(index, (0, extent.offset + from, to - from), threads, monitor, |bytes| {
            spread.put(bytes, monitor, out)
        })?;
    }
    zeros(out, end - spread.at, monitor)
}

/// The content of `extent`, which lies inside `frame`, checked.
fn read_checked(index: &IndexReader, extent: &Extent, frame: &Frame, path: &[u8]) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    FrameReader::new()?.read(index, frame, &mut plain)?;
    let start = usize::try_from(extent.offset - frame.offset).unwrap_or(usize::MAX);
    let len = usize::try_from(extent.len).unwrap_or(usize::MAX);
    let range = plain
        .get(start..)
        .and_then(|rest| rest.get(..len))
        .ok_or_else(|| Error::integrity("a content outside its frame"))?;
    check_digest(index, extent, range, path)?;
    plain.truncate(start + len);
    plain.drain(..start);
    Ok(plain)
}

/// Holds a whole content against the digest in its extent.
pub fn check_digest(index: &IndexReader, extent: &Extent, content: &[u8], path: &[u8]) -> Result<()> {
    let read = Digest::of(content);
    if read == extent.digest {
        return Ok(());
    }
    Err(Error::integrity(format!(
        "cannot read `{}` of snapshot {}: digest differs (stored {}…, read {}…)",
        show::name(path),
        index.shown(),
        extent.digest.short(),
        read.short()
    )))
}

/// Puts content where it belongs in a sparse file, zeros between.
struct Spread<'a> {
    runs: &'a [Run],
    next: usize,
    at: u64,
}

impl Spread<'_> {
    fn put(&mut self, mut bytes: &[u8], monitor: &dyn Monitor, out: &mut dyn Write) -> Result<()> {
        while !bytes.is_empty() {
            let run = self.runs.get(self.next).ok_or_else(|| Error::integrity("more content than its map says"))?;
            if self.at < run.offset {
                zeros(out, run.offset - self.at, monitor)?;
                self.at = run.offset;
            }
            let take = usize::try_from(run.end() - self.at).unwrap_or(usize::MAX).min(bytes.len());
            out.write_all(&bytes[..take]).map_err(output)?;
            bytes = &bytes[take..];
            self.at += take as u64;
            if self.at == run.end() {
                self.next += 1;
            }
        }
        Ok(())
    }
}

fn zeros(out: &mut dyn Write, mut len: u64, monitor: &dyn Monitor) -> Result<()> {
    while len > 0 {
        check_interrupted(monitor)?;
        let take = usize::try_from(len).unwrap_or(usize::MAX).min(ZEROS.len());
        out.write_all(&ZEROS[..take]).map_err(output)?;
        len -= take as u64;
    }
    Ok(())
}

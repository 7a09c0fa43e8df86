//! Contents in order: frames decoded in parallel, a bounded number of them in flight, handed over one after another.

use std::{collections::VecDeque, io::Write};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{
    ahead,
    chain::{Chain, Located, Source},
    frame::FrameReader,
    index::{IndexReader, Row},
};
use crate::{
    error::{Error, Kind, Result},
    format::index::Frame,
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

type Job = (usize, Frame, Sender<Result<Vec<u8>>>);

/// A frame and which snapshot of the chain stores it.
type Next = (usize, Frame);

/// Frames being decoded, in order.
pub struct Ordered<'a> {
    runs: &'a [IndexReader],
    frames: Box<dyn Iterator<Item = Result<Next>> + 'a>,
    jobs: Option<Sender<Job>>,
    own: FrameReader,
    waiting: VecDeque<(Next, Receiver<Result<Vec<u8>>>)>,
    in_flight: usize,
    pool: (Sender<Vec<u8>>, Receiver<Vec<u8>>),
}

impl Ordered<'_> {
    /// The next frame with its content, or with what is wrong with it; an error of the index ends the run.
    pub fn next_frame(&mut self) -> Result<Option<(Next, Result<Vec<u8>>)>> {
        let Some(jobs) = &self.jobs else { return self.next_here() };
        while self.waiting.len() < self.in_flight {
            let Some((run, frame)) = self.frames.next().transpose()? else { break };
            let (done, result) = bounded(1);
            self.waiting.push_back(((run, frame), result));
            if jobs.send((run, frame, done)).is_err() {
                return Err(Error::new(Kind::Other, "the decoders stopped"));
            }
        }
        let Some((next, result)) = self.waiting.pop_front() else { return Ok(None) };
        let result = result.recv().unwrap_or_else(|_| Err(Error::new(Kind::Other, "a decoder stopped")));
        Ok(Some((next, result)))
    }

    fn next_here(&mut self) -> Result<Option<(Next, Result<Vec<u8>>)>> {
        let Some((run, frame)) = self.frames.next().transpose()? else { return Ok(None) };
        let mut plain = self.pool.1.try_recv().unwrap_or_default();
        let result = self.own.read(&self.runs[run], &frame, &mut plain);
        Ok(Some(((run, frame), result.map(|()| plain))))
    }

    /// Gives a buffer back.
    pub fn recycle(&self, buffer: Vec<u8>) {
        let _ = self.pool.0.try_send(buffer);
    }
}

/// Runs `work` over `frames` of the snapshots `runs`, decoded by `threads` threads when there is more than one frame.
pub fn ordered<'a, T>(
    runs: &'a [IndexReader],
    mut frames: impl Iterator<Item = Result<Next>> + 'a,
    threads: usize,
    work: impl FnOnce(&mut Ordered<'_>) -> Result<T>,
) -> Result<T> {
    let first: Vec<_> = frames.by_ref().take(2).collect();
    let frame_len = first.iter().flatten().map(|(_, frame)| u64::from(frame.len)).max().unwrap_or(1).max(1);
    let single = first.len() < 2 || threads < 2;
    let by_memory = usize::try_from(IN_FLIGHT_LEN_MAX / frame_len).unwrap_or(usize::MAX);
    let in_flight = threads.saturating_mul(2).min(by_memory).max(2);
    let (jobs, taken) = bounded::<Job>(in_flight);
    let mut ordered = Ordered {
        runs,
        frames: Box::new(ahead::told(runs, 1, first.into_iter().chain(frames))),
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
            scope.spawn(move || decode(runs, &taken, &pool));
        }
        drop(taken);
        let result = work(&mut ordered);
        // Without jobs the decoders end.
        drop(ordered);
        result
    })
}

fn decode(runs: &[IndexReader], jobs: &Receiver<Job>, pool: &Receiver<Vec<u8>>) {
    let mut reader = FrameReader::new();
    for (run, frame, done) in jobs {
        let result = match &mut reader {
            Ok(reader) => {
                let mut plain = pool.try_recv().unwrap_or_default();
                reader.read(&runs[run], &frame, &mut plain).map(|()| plain)
            }
            Err(e) => Err(Error::new(e.kind(), e.to_string())),
        };
        // Nobody waits for it when the run ended early.
        let _ = done.send(result);
    }
}

/// The frames that hold `sources`, in order; one that is still at hand from the source before in its snapshot does not come again.
fn frames_of<'a>(
    runs: &'a [IndexReader],
    sources: impl Iterator<Item = Result<Source>> + 'a,
) -> impl Iterator<Item = Result<Next>> + 'a {
    let mut last: Vec<Option<(u32, u64)>> = vec![None; runs.len()];
    sources
        .flat_map(move |source| -> Box<dyn Iterator<Item = Result<Next>> + 'a> {
            let frames = source.and_then(|source| {
                let index = runs.get(source.run).ok_or_else(|| Error::integrity("a source outside its chain"))?;
                Ok((source, index.frames_from(source.stream, source.offset)?))
            });
            match frames {
                Err(e) => Box::new(std::iter::once(Err(e))),
                Ok((source, frames)) => Box::new(
                    frames
                        .take_while(move |frame| frame.as_ref().map_or(true, |frame| frame.offset < source.end()))
                        .map(move |frame| Ok((source.run, frame?))),
                ),
            }
        })
        .filter(move |next| match next {
            Ok((run, frame)) => {
                let new = last[*run] != Some((frame.stream, frame.offset));
                last[*run] = Some((frame.stream, frame.offset));
                new
            }
            Err(_) => true,
        })
}

/// Hands the bytes of `sources`, one after another, to `sink`. Each frame is decoded once as long as sources of one snapshot ascend.
pub fn each_source(
    runs: &[IndexReader],
    sources: &[Source],
    threads: usize,
    monitor: &dyn Monitor,
    mut sink: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let frames = frames_of(runs, sources.iter().copied().map(Ok));
    ordered(runs, frames, threads, |ordered| {
        let mut held = Held::new(runs.len());
        for source in sources {
            held.each(ordered, *source, monitor, &mut sink)?;
        }
        Ok(())
    })
}

/// Reads many short contents one after another. The last frame of each snapshot stays at hand, so contents that come in the order
/// they lie in cost one decoding a frame, not one each.
pub struct Contents<'a> {
    runs: &'a [IndexReader],
    frames: FrameReader,
    held: Held,
}

impl<'a> Contents<'a> {
    /// Of the snapshots `runs`; nothing is at hand.
    pub fn new(runs: &'a [IndexReader]) -> Result<Self> {
        Ok(Self { runs, frames: FrameReader::new()?, held: Held::new(runs.len()) })
    }

    /// Hands the bytes of `sources`, one after another, to `sink`; long ones are decoded by `threads` threads.
    pub fn each(
        &mut self,
        sources: &[Source],
        threads: usize,
        monitor: &dyn Monitor,
        mut sink: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let [source] = *sources else { return each_source(self.runs, sources, threads, monitor, sink) };
        let index = self.runs.get(source.run).ok_or_else(|| Error::integrity("a source outside its chain"))?;
        let held = &mut self.held.0[source.run];
        let holds = |frame: &Frame| {
            frame.stream == source.stream && frame.offset <= source.offset && source.offset < frame.end()
        };
        if !held.as_ref().is_some_and(|(frame, _)| holds(frame)) {
            let frame = index.frame_at(source.stream, source.offset)?;
            let mut plain = held.take().map(|(_, plain)| plain).unwrap_or_default();
            self.frames.read(index, &frame, &mut plain)?;
            *held = Some((frame, plain));
        }
        let Some((frame, plain)) = held.as_ref().filter(|(frame, _)| source.end() <= frame.end()) else {
            return each_source(self.runs, sources, threads, monitor, sink);
        };
        let at = |offset: u64| usize::try_from(offset - frame.offset).unwrap_or(usize::MAX);
        let bytes = plain.get(at(source.offset)..at(source.end()));
        sink(bytes.ok_or_else(|| Error::integrity("a frame is shorter than its index says"))?)
    }
}

/// The frame at hand of each snapshot of a chain.
struct Held(Vec<Option<(Frame, Vec<u8>)>>);

impl Held {
    fn new(runs: usize) -> Self {
        Self((0..runs).map(|_| None).collect())
    }

    fn each(
        &mut self,
        ordered: &mut Ordered<'_>,
        source: Source,
        monitor: &dyn Monitor,
        sink: &mut impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let Source { run, stream, offset: mut at, .. } = source;
        let ends = || {
            let shown = ordered.runs[run].shown();
            Error::integrity(format!("stream {stream} of snapshot {shown} ends before {}", source.end()))
        };
        if source.offset.checked_add(source.len).is_none() {
            return Err(ends());
        }
        let ends = ends();
        while at < source.end() {
            check_interrupted(monitor)?;
            let covers =
                |(frame, _): &(Frame, Vec<u8>)| frame.stream == stream && frame.offset <= at && at < frame.end();
            if !self.0[run].as_ref().is_some_and(covers) {
                let Some(((own, frame), plain)) = ordered.next_frame()? else { return Err(ends) };
                if let Some((_, before)) = self.0[own].replace((frame, plain?)) {
                    ordered.recycle(before);
                }
                if own != run || !self.0[run].as_ref().is_some_and(covers) {
                    return Err(Error::integrity("frames do not follow each other"));
                }
            }
            let Some((frame, plain)) = &self.0[run] else { return Err(ends) };
            let to = source.end().min(frame.end());
            let index = |offset: u64| usize::try_from(offset - frame.offset).unwrap_or(usize::MAX);
            let bytes = plain.get(index(at)..index(to));
            sink(bytes.ok_or_else(|| Error::integrity("a frame is shorter than its index says"))?)?;
            at = to;
        }
        Ok(())
    }
}

fn output(e: std::io::Error) -> Error {
    Error::io("cannot write the output", e)
}

/// Writes the bytes `start..end` of a file to `out`; holes are zeros. A content inside one frame is held against its
/// digest first; frames of longer ones have their own, and one put together from several places is held against it at the end.
pub fn write_file(
    chain: &Chain,
    row: &Row,
    (start, end): (u64, u64),
    threads: usize,
    monitor: &dyn Monitor,
    out: &mut dyn Write,
) -> Result<()> {
    let Some(content) = chain.locate(row)? else { return zeros(out, end - start, monitor) };
    let entry = &row.entry;
    let runs = entry.data_runs();
    let content_before = |at: u64| -> u64 { runs.iter().map(|run| run.len.min(at.saturating_sub(run.offset))).sum() };
    let (from, to) = (content_before(start), content_before(end));
    let mut spread = Spread { next: runs.partition_point(|run| run.end() <= start), runs: &runs, at: start };
    if is_in_one_frame(chain, &content)? {
        let mut bytes = Vec::new();
        each_source(chain.runs(), &content.sources, threads, monitor, |slice| {
            bytes.extend_from_slice(slice);
            Ok(())
        })?;
        check_digest(chain.shown(), &content.digest, &bytes, &entry.path)?;
        let range = usize::try_from(from).unwrap_or(0)..usize::try_from(to).unwrap_or(0);
        spread.put(&bytes[range], monitor, out)?;
    } else if from < to {
        let mut hasher = (!content.own && to - from == entry.stored_len).then(blake3::Hasher::new);
        each_source(chain.runs(), &content.cut(from, to - from), threads, monitor, |bytes| {
            if let Some(hasher) = &mut hasher {
                hasher.update(bytes);
            }
            spread.put(bytes, monitor, out)
        })?;
        if hasher.is_some_and(|hasher| *hasher.finalize().as_bytes() != content.digest.0) {
            return Err(chain.blame(&entry.path, "its digest differs"));
        }
    }
    zeros(out, end - spread.at, monitor)
}

fn is_in_one_frame(chain: &Chain, content: &Located) -> Result<bool> {
    let [source] = content.sources[..] else { return Ok(false) };
    Ok(source.end() <= chain.run(source.run).frame_at(source.stream, source.offset)?.end())
}

/// Holds a whole content against its digest.
pub fn check_digest(shown: &str, digest: &Digest, content: &[u8], path: &[u8]) -> Result<()> {
    let read = Digest::of(content);
    if read == *digest {
        return Ok(());
    }
    Err(Error::integrity(format!(
        "cannot read `{}` of snapshot {shown}: digest differs (stored {}…, read {}…)",
        show::name(path),
        digest.short(),
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

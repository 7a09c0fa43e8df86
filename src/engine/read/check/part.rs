//! Parts: their order, their frames and trailers, each byte under its digest.

use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::bounded;

use super::{Check, Checked, Depth, Fault, PATH_COUNT_MAX, differs, has_len, is_fault};
use crate::{
    engine::read::{
        ahead::{self, Reads},
        content::check_interrupted,
        frame::FrameReader,
        index::IndexReader,
    },
    error::{Error, Result},
    format::index::{Extent, Frame, Part},
    model::{digest::Digest, text::PathText},
    monitor::Monitor,
};

/// A part has at most this many frames; see `PART_LEN_MAX` of a writer and the smallest frame.
const PART_FRAME_COUNT_MAX: usize = 1 << 20;

/// A frame, and whether its stored bytes were held against its digest already.
#[derive(Clone, Copy)]
struct Stored {
    frame: Frame,
    is_fetched: bool,
}

impl Reads for Stored {
    fn frame(&self) -> Option<(usize, Frame)> {
        (!self.is_fetched).then_some((0, self.frame))
    }
}

type PartFaults = Vec<(Option<Frame>, Fault, Error)>;

/// What ends the check of a part, and of all that are left.
fn ends(faults: &PartFaults) -> bool {
    faults.iter().any(|(.., error)| !is_fault(error))
}

impl Check<'_> {
    /// Parts in order: numbers, lengths, frames without a gap, digests.
    pub(super) fn parts(&mut self, index: &IndexReader) -> Result<()> {
        let mut frames = index.frames().enumerate().peekable();
        let threads = if self.depth == Depth::Quick { 1 } else { self.threads };
        let depth = self.depth;
        let (jobs, taken) = bounded::<(Part, String, Vec<Stored>)>(threads);
        let (results, found) = crossbeam_channel::unbounded();
        let (monitor, ended) = (self.monitor, AtomicBool::new(false));
        let fed = std::thread::scope(|scope| {
            for _ in 0..threads {
                let (taken, results) = (taken.clone(), results.clone());
                let ended = &ended;
                scope.spawn(move || {
                    for (part, key, frames) in taken {
                        if ended.load(Ordering::Relaxed) {
                            continue;
                        }
                        let result = check_part(index, depth, &part, &key, (&frames, threads), monitor);
                        ended.fetch_or(ends(&result.1), Ordering::Relaxed);
                        // Nobody listens when the check ended early.
                        let _ = results.send(result);
                    }
                });
            }
            drop((taken, results));
            let mut last: Option<Part> = None;
            let mut plain = 0;
            for n in 0..index.part_count() {
                check_interrupted(self.monitor)?;
                if ended.load(Ordering::Relaxed) {
                    return Ok(());
                }
                self.checked.objects += 1;
                let place = || Fault::new(index.key(), format!("part row {n}"), "");
                let (part, key) = match index.part(n).and_then(|part| Ok((part, index.part_key(&part)?))) {
                    Ok(found) => found,
                    // Without its row the parts that follow are not known either.
                    Err(e) => {
                        self.fault_or(place(), e)?;
                        break;
                    }
                };
                if last.is_none_or(|last| last.stream != part.stream) {
                    plain = 0;
                }
                let follows = match last {
                    Some(last) if last.stream == part.stream => last.number.checked_add(1) == Some(part.number),
                    Some(last) => last.stream < part.stream && part.number == 0,
                    None => part.number == 0,
                };
                if !follows {
                    self.fault_or(place(), Error::integrity("parts are not in order"))?;
                }
                last = Some(part);
                let mut own = Vec::new();
                if depth != Depth::Quick {
                    while own.len() < PART_FRAME_COUNT_MAX
                        && let Some((nth, Ok(frame))) =
                            frames.next_if(|(_, frame)| frame.as_ref().is_ok_and(|frame| u64::from(frame.part) == n))
                    {
                        own.push(Stored { frame, is_fetched: self.fetched.has(nth, &frame) });
                    }
                    if let Err(e) = frames_tile(&part, own.iter().map(|stored| &stored.frame), plain) {
                        self.fault_or(place(), e)?;
                    }
                }
                plain += part.plain_len;
                if jobs.send((part, key, own)).is_err() {
                    break;
                }
            }
            drop(jobs);
            if depth != Depth::Quick
                && let Some((_, frame)) = frames.next()
            {
                let place = Fault::new(index.key(), "frames", "");
                self.fault_or(
                    place,
                    frame.err().unwrap_or_else(|| Error::integrity("frames that belong to no part, or out of order")),
                )?;
            }
            Ok(())
        });
        for (sums, faults) in found {
            self.checked.add(sums);
            for (frame, fault, error) in faults {
                let mut fault = fault;
                if let Some(frame) = frame {
                    affected(index, &frame, &mut fault);
                }
                self.fault_or(fault, error)?;
            }
        }
        fed
    }
}

/// Whether a part's frames follow each other from its start to its trailer, and its content the part before.
pub fn frames_tile<'a>(part: &Part, frames: impl Iterator<Item = &'a Frame>, plain: u64) -> Result<()> {
    let (mut stored, mut content, mut count) = (0u64, plain, 0);
    for frame in frames {
        count += 1;
        if frame.stream != part.stream || frame.stored_offset != stored || frame.offset != content {
            return Err(Error::integrity(format!("its frames have a gap at byte {stored}")));
        }
        stored = stored.saturating_add(u64::from(frame.stored_len));
        content = frame.end();
    }
    let whole = stored.saturating_add(u64::from(part.trailer_len)) == part.stored_len;
    if !whole || content - plain != part.plain_len || count != part.frames {
        return Err(Error::integrity("its frames do not add up to it"));
    }
    Ok(())
}

fn check_part(
    index: &IndexReader,
    depth: Depth,
    part: &Part,
    key: &str,
    (frames, readers): (&[Stored], usize),
    monitor: &dyn Monitor,
) -> (Checked, PartFaults) {
    let (mut checked, mut faults) = (Checked::default(), Vec::new());
    let object = |place: String| Fault::new(key, place, "");
    if let Err(e) = index.store().head(key).and_then(|found| has_len(found, part.stored_len)) {
        faults.push((None, object("object".to_owned()), e));
    }
    if depth == Depth::Quick {
        return (checked, faults);
    }
    let mut reader = match FrameReader::new() {
        Ok(reader) => reader,
        Err(e) => return (checked, vec![(None, object("object".to_owned()), e)]),
    };
    let mut hasher = blake3::Hasher::new();
    for Stored { frame, is_fetched } in ahead::told(std::slice::from_ref(index), readers, frames.iter().copied()) {
        if let Err(e) = check_interrupted(monitor) {
            faults.push((None, object("object".to_owned()), e));
        } else if !is_fetched && let Err(e) = reader.fetch(index, &frame) {
            faults.push((Some(frame), object(format!("frame at byte {}", frame.stored_offset)), e));
        }
        if ends(&faults) {
            return (checked, faults);
        }
        hasher.update(&frame.digest.0);
        checked.frames += 1;
        checked.stored_bytes += u64::from(frame.stored_len);
        if !is_fetched {
            monitor.advance(0, u64::from(frame.stored_len), b"");
        }
    }
    if part.trailer_len > 0 {
        let at = part.stored_len.saturating_sub(u64::from(part.trailer_len));
        match trailer(index, key, at, part.trailer_len) {
            Ok(digest) => {
                hasher.update(&digest.0);
            }
            Err(e) => faults.push((None, object(format!("trailer at byte {at}")), e)),
        }
        checked.stored_bytes += u64::from(part.trailer_len);
    }
    let read = Digest(*hasher.finalize().as_bytes());
    if read != part.digest {
        let at = part.stored_len.saturating_sub(u64::from(part.trailer_len));
        faults.push((None, object(format!("trailer at byte {at}")), differs(&part.digest, &read)));
    }
    (checked, faults)
}

/// The digest of what follows a part's frames, read in pieces.
fn trailer(index: &IndexReader, key: &str, at: u64, len: u32) -> Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut buf = vec![0; 64 << 10];
    let (mut at, end) = (at, at.saturating_add(u64::from(len)));
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buf.len());
        index.store().read_at(key, at, &mut buf[..want])?;
        hasher.update(&buf[..want]);
        at += want as u64;
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// Which entries have content in a frame. What the index itself cannot tell is left out.
fn affected(index: &IndexReader, frame: &Frame, fault: &mut Fault) {
    if let Some(name) = frame.stream.checked_sub(1).and_then(|n| index.streams().get(n as usize)) {
        fault.affected = 1;
        fault.paths = vec![PathText(name.as_str().as_bytes().to_vec())];
        return;
    }
    let first = index.extents_before(frame.offset).ok();
    let end = index.extents_before(frame.end()).ok();
    let (Some(first), Some(mut end)) = (first, end) else { return };
    // A content that begins in the frame and ends behind it.
    let runs_on = |extent: Result<Extent>| extent.is_ok_and(|extent| extent.offset < frame.end());
    end += u64::from(end < index.tree_extent_count() && runs_on(index.extent(end)));
    fault.affected = end - first;
    fault.paths = index.owners(first, end, PATH_COUNT_MAX).unwrap_or_default().into_iter().map(PathText).collect();
}

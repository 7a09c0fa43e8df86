//! Files on their way to the workers, collected by frame.

use std::sync::Arc;

use crossbeam_channel::Sender;

use crate::{
    engine::read::{
        ahead::Told,
        chain::Source,
        content,
        worker::{Batch, Large, Shared, Task, Work},
    },
    error::Result,
    format::index::Frame,
};

/// Collects files by frame and sends each frame once. The files of each snapshot of the chain come in the order they lie in it,
/// so one frame of each is collected; contents that follow no header of their own are kept apart, for they come in any order.
pub(super) struct Feeder<'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) batches: Sender<Batch>,
    pub(super) slots: Vec<Slot>,
    pub(super) told: Told<'a, Batch>,
}

/// A frame, and the work in it so far.
#[derive(Default)]
pub(super) struct Slot {
    frame: Option<Frame>,
    work: Vec<Work>,
}

impl Feeder<'_> {
    pub(super) fn file(&mut self, task: Task) -> Result<()> {
        let own = task.content.own;
        if let [source] = task.content.sources[..] {
            let slot = self.slot(source, own)?;
            if slot.frame.is_some_and(|frame| source.end() <= frame.end()) {
                slot.work.push(Work::Whole(Box::new(task)));
                return Ok(());
            }
        }
        let sources = task.content.sources.clone();
        let large = Arc::new(Large::new(task));
        let mut before = 0;
        for source in sources {
            let mut rest = source;
            while rest.len > 0 {
                let slot = self.slot(rest, own)?;
                slot.work.push(Work::Piece(Arc::clone(&large), source, before));
                let at = slot.frame.map_or(source.end(), |frame| frame.end()).min(source.end());
                (rest.offset, rest.len) = (at, source.end() - at);
                if self.shared.stopped() {
                    return Ok(());
                }
                content::check_interrupted(self.shared.monitor)?;
            }
            before += source.len;
        }
        Ok(())
    }

    /// The slot with the frame that holds the start of `source`.
    fn slot(&mut self, source: Source, own: bool) -> Result<&mut Slot> {
        let n = source.run * 2 + usize::from(own);
        let holds = |frame: &Frame| {
            frame.stream == source.stream && frame.offset <= source.offset && source.offset < frame.end()
        };
        if !self.slots[n].frame.as_ref().is_some_and(holds) {
            self.flush(n);
            let frame = self.shared.chain.run(source.run).frame_at(source.stream, source.offset)?;
            self.slots[n].frame = Some(frame);
        }
        Ok(&mut self.slots[n])
    }

    fn flush(&mut self, n: usize) {
        let Slot { frame, work } = std::mem::take(&mut self.slots[n]);
        if let Some(frame) = frame.filter(|_| !work.is_empty()) {
            self.told.put(Batch { run: n / 2, own: n % 2 == 1, frame, work });
            while !self.told.has_room() {
                self.send();
            }
        }
    }

    fn send(&mut self) -> bool {
        // The workers outlive the sender.
        self.told.take().map(|batch| self.batches.send(batch)).is_some()
    }

    pub(super) fn finish(mut self) {
        (0..self.slots.len()).for_each(|n| self.flush(n));
        while self.send() {}
    }
}

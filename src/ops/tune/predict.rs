//! From trials on a sample to a full backup, and to what is best for each of three wishes. Pure.

use serde::Serialize;

use super::{
    measure::{Cost, Trial, WriteRate},
    sample::Totals,
};
use crate::{
    engine::write::profile::{STAGES, Stage},
    format::codec::Codec,
};

/// How a trial's stored bytes and time are told from another's of the same steps: a few steps are not quite like all of them.
#[derive(Clone, Copy, Debug)]
pub struct Likeness {
    /// Stored bytes a plain byte of the reference on all steps.
    pub of_all: f64,
    /// The same on the steps of the trial.
    pub of_these: f64,
    /// What the reference takes to compress a byte of all steps, by what it takes on those of the trial.
    pub pace: f64,
}

impl Likeness {
    /// Stored bytes a plain byte on all steps, of what stored `these` on its own: the same power of the reference's. So what stores
    /// all as it is does so on any steps, and what does as well as the reference follows it.
    fn of(self, these: f64) -> f64 {
        // Where the reference saves next to nothing, it says nothing of others.
        if self.of_these > 0.99 || self.of_all <= 0.0 || self.of_these <= 0.0 {
            return these;
        }
        self.of_all.powf(these.ln() / self.of_these.ln())
    }

    /// What `cost` comes to on all steps. Only a codec of the reference's kind is slow where that is.
    fn work(self, cost: &Cost, codec: Codec) -> f64 {
        match codec {
            Codec::Zstd(_) => cost.work + cost.compress * (self.pace - 1.0),
            Codec::Bzip2(_) | Codec::None => cost.work,
        }
    }
}

/// What else is known.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// All there is to store.
    pub totals: Totals,
    /// Seconds the reader needs for a plain byte it meets for the first time.
    pub read_a_byte: f64,
    /// What the volume takes.
    pub write_rate: Option<WriteRate>,
    /// Processors there are.
    pub processors: f64,
}

/// One way to store all of it, and what that would come to.
#[derive(Clone, Debug, Serialize)]
pub struct Choice {
    /// Codec.
    pub compression: Codec,
    /// Content of a frame, bytes.
    pub frame_size: u64,
    /// Workers.
    pub threads: usize,
    /// Seconds for all of it.
    pub seconds: f64,
    /// Content bytes a second.
    pub bytes_per_second: f64,
    /// Parts and index.
    pub stored_bytes: u64,
    /// Content bytes for each stored one.
    pub ratio: f64,
    /// What would hold it up.
    pub bottleneck: &'static str,
    /// Plain bytes it was measured on.
    pub measured_bytes: u64,
}

/// What the user wants most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// The least time; of equals the smallest.
    Fastest,
    /// The smallest of those that take at most half as long again as the one with the least product of time and size.
    Balanced,
    /// The fewest bytes; of equals the fastest.
    Smallest,
}

/// Times within this factor are the same: what is measured is no more exact.
const SAME_TIME: f64 = 1.03;
/// Sizes within this factor are the same.
const SAME_SIZE: f64 = 1.002;
/// What balance may cost in time.
const BALANCE: f64 = 1.5;

/// What storing all of it like `trial` would come to.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a prediction, not a count"
)]
pub fn predict(trial: &Trial, like: Likeness, facts: &Facts) -> Choice {
    let plain = facts.totals.plain_bytes as f64;
    let a_byte = |seconds: f64| seconds / trial.plain_bytes.max(1) as f64;
    let stored_a_byte = like.of(a_byte(trial.stored_bytes as f64));
    let stored = stored_a_byte * plain;
    let (cost, threads) = (trial.cost(), trial.settings.threads as f64);
    let work = like.work(&cost, trial.settings.codec);
    let waits = (facts.read_a_byte - cost.read).max(0.0);
    // Who waits for the source does nothing else meanwhile.
    let workers = (work + waits) * plain / threads.min(facts.processors);
    // The writer is a thread of its own, and takes a processor's time like the others.
    let writing = facts.write_rate.map_or(0.0, |rate| rate.work_a_byte);
    let processors = (work * plain + writing * stored) / facts.processors.min(threads + 1.0);
    let workers = workers.max(processors);
    let reader = (cost.read + waits + cost.tar) * plain;
    let volume = facts.write_rate.map_or(0.0, |rate| stored / rate.bytes_per_second.max(1.0));
    let seconds = workers.max(reader).max(volume).max(1e-6);
    let largest =
        STAGES[1..5].iter().max_by(|a, b| trial.profile.seconds_of(**a).total_cmp(&trial.profile.seconds_of(**b)));
    let bottleneck = if volume >= workers.max(reader) {
        Stage::Write
    } else if reader >= workers || (cost.read + waits) * 2.0 > work + waits {
        Stage::Read
    } else {
        *largest.unwrap_or(&Stage::Compress)
    };
    Choice {
        compression: trial.settings.codec,
        frame_size: trial.settings.frame_len as u64,
        threads: trial.settings.threads,
        seconds,
        bytes_per_second: facts.totals.content_bytes as f64 / seconds,
        stored_bytes: stored as u64,
        ratio: facts.totals.content_bytes as f64 / stored.max(1.0),
        bottleneck: bottleneck.as_bottleneck(),
        measured_bytes: trial.plain_bytes,
    }
}

/// The best of `choices` for a wish. `frame_size` is what stays unless size alone counts: long frames make reading a single file slow.
pub fn best(choices: &[Choice], wish: Wish, frame_size: u64) -> Option<&Choice> {
    let usual = || choices.iter().filter(move |choice| choice.frame_size == frame_size);
    let fastest = usual().map(|choice| choice.seconds).min_by(f64::total_cmp)?;
    #[expect(clippy::cast_precision_loss, reason = "compared, not counted")]
    let product = |choice: &Choice| choice.seconds * choice.stored_bytes as f64;
    let by_size =
        |a: &&Choice, b: &&Choice| a.stored_bytes.cmp(&b.stored_bytes).then_with(|| a.seconds.total_cmp(&b.seconds));
    match wish {
        Wish::Fastest => usual().filter(|choice| choice.seconds <= fastest * SAME_TIME).min_by(by_size),
        Wish::Balanced => {
            // Not of the fastest: where a volume is as fast as memory, that is to store everything as it is.
            let middle = usual().min_by(|a, b| product(a).total_cmp(&product(b)))?.seconds;
            usual().filter(|choice| choice.seconds <= middle * BALANCE).min_by(by_size)
        }
        Wish::Smallest => {
            let smallest = choices.iter().map(|choice| choice.stored_bytes).min()?;
            #[expect(clippy::cast_precision_loss, reason = "compared within a factor")]
            let is_small = |choice: &&Choice| choice.stored_bytes as f64 <= smallest as f64 * SAME_SIZE;
            choices.iter().filter(is_small).min_by(|a, b| a.seconds.total_cmp(&b.seconds))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::write::{
        pipeline::Settings,
        profile::{Part, Profile},
    };

    fn choice(level: i32, frame_mib: u64, seconds: f64, stored_bytes: u64) -> Choice {
        Choice {
            compression: Codec::Zstd(level),
            frame_size: frame_mib << 20,
            threads: 2,
            seconds,
            bytes_per_second: 0.0,
            stored_bytes,
            ratio: 0.0,
            bottleneck: "",
            measured_bytes: 0,
        }
    }

    #[test]
    fn a_few_steps_are_held_against_all() {
        let like = |of_all, of_these| Likeness { of_all, of_these, pace: 1.0 };
        // What stores all as it is does so on any steps.
        is_near(like(0.6, 0.5).of(1.0), 1.0);
        is_near(like(0.6, 0.5).of(0.5), 0.6);
        is_near(like(1.0, 1.0).of(1.001), 1.001);
        // Also where the reference shrinks it a lot.
        is_near(like(0.12, 0.18).of(1.0), 1.0);
        is_near(like(0.12, 0.10).of(0.10), 0.12);
        is_near(like(0.04, 0.20).of(0.04), 0.0016);
    }

    /// A gigabyte on two threads, stored as it is: 2 s of processors, of them 0.2 s of reading.
    fn trial(read: f64, compress: f64, delayed_seconds: f64) -> Trial {
        let part = |stage, seconds| Part { stage, seconds, busy: 0.0 };
        let stages = vec![part(Stage::Read, read), part(Stage::Compress, compress)];
        let profile = Profile { bottleneck: "", seconds: 9.0, cpu_seconds: 2.0, delayed_seconds, threads: 2, stages };
        let settings = Settings { threads: 2, codec: Codec::None, frame_len: 4 << 20, verify_all: false };
        let (plain_bytes, content_bytes, stored_bytes) = (GB, GB, GB);
        Trial { settings, count: 1, plain_bytes, content_bytes, stored_bytes, profile }
    }

    const GB: u64 = 1_000_000_000;

    fn seconds(trial: &Trial, write_rate: Option<WriteRate>, processors: f64) -> f64 {
        let totals = Totals { entries: 1, files: 1, content_bytes: 2 * GB, plain_bytes: 2 * GB, is_all: true };
        let facts = Facts { totals, read_a_byte: trial.cost().read + trial.cost().waited, write_rate, processors };
        predict(trial, Likeness { of_all: 1.0, of_these: 1.0, pace: 1.0 }, &facts).seconds
    }

    fn is_near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }

    #[test]
    fn the_writer_needs_a_processor_too() {
        let fast = WriteRate { bytes_per_second: 1e12, work_a_byte: 1e-9 };
        is_near(seconds(&trial(0.2, 1.8, 0.0), None, 2.0), 2.0);
        is_near(seconds(&trial(0.2, 1.8, 0.0), Some(fast), 2.0), 3.0);
        is_near(seconds(&trial(0.2, 1.8, 0.0), Some(fast), 4.0), 2.0);
        is_near(seconds(&trial(0.2, 1.8, 0.0), Some(WriteRate { bytes_per_second: 1e8, ..fast }), 4.0), 20.0);
    }

    #[test]
    fn other_work_meanwhile_does_not_count_and_a_slow_source_does() {
        is_near(seconds(&trial(0.4, 3.6, 2.0), None, 2.0), 2.0);
        // 3 s of waiting for each gigabyte: the reader is what takes longest.
        is_near(seconds(&trial(3.2, 1.8, 0.0), None, 2.0), 6.4);
        is_near(trial(3.2, 1.8, 0.0).cost().waited * 1e9, 3.0);
    }

    #[test]
    fn steps_that_are_slow_to_compress_are_held_against_all() {
        let trial = trial(0.2, 1.8, 0.0);
        let like = Likeness { of_all: 1.0, of_these: 1.0, pace: 0.5 };
        let work = |codec| like.work(&trial.cost(), codec) * 1e9;
        is_near(work(Codec::Zstd(5)), 0.2 + 0.9);
        is_near(work(Codec::None), 2.0);
    }

    #[test]
    fn three_wishes() {
        let choices = [
            choice(1, 4, 10.0, 1200),
            choice(2, 4, 10.2, 1100),
            choice(3, 4, 14.0, 1000),
            choice(9, 4, 40.0, 900),
            choice(18, 4, 200.0, 800),
            choice(19, 4, 300.0, 799),
            choice(3, 1, 9.0, 1050),
            choice(18, 16, 210.0, 780),
        ];
        let of = |wish| best(&choices, wish, 4 << 20).map(|choice| (choice.compression, choice.frame_size >> 20));
        // As fast as the fastest, and smaller; of the usual frames.
        assert_eq!(of(Wish::Fastest), Some((Codec::Zstd(2), 4)));
        assert_eq!(of(Wish::Balanced), Some((Codec::Zstd(3), 4)));
        assert_eq!(of(Wish::Smallest), Some((Codec::Zstd(18), 16)));
        let of_usual = best(&choices[..6], Wish::Smallest, 4 << 20).map(|choice| choice.compression);
        assert_eq!(of_usual, Some(Codec::Zstd(18)), "a byte in a thousand is not worth half the time again");
        assert!(best(&[], Wish::Fastest, 4 << 20).is_none());
    }

    #[test]
    fn balance_is_not_to_store_all_as_it_is_where_that_is_fastest() {
        let as_it_is = Choice { compression: Codec::None, ..choice(0, 4, 1.3, 1_300) };
        let of = |choices: &[Choice]| best(choices, Wish::Balanced, 4 << 20).map(|choice| choice.compression);
        // A source tree, and what cannot be compressed.
        let tree = [as_it_is.clone(), choice(1, 4, 2.2, 230), choice(3, 4, 2.9, 206), choice(5, 4, 5.6, 190)];
        assert_eq!(of(&tree), Some(Codec::Zstd(3)));
        assert_eq!(of(&[as_it_is, choice(1, 4, 2.2, 1_290), choice(3, 4, 2.9, 1_280)]), Some(Codec::None));
    }
}

//! Content-defined chunks: where a stream is cut so that equal contents give equal chunks, wherever they moved to.
//!
//! A chunk ends where a cheap hash of the [`WINDOW`] bytes before the cut is smallest among all cuts that [`Lengths`]
//! allows; of equal ones the last counts (the scheme known as `MinCDC`). So a cut depends on the bytes from the last
//! cut on and on nothing else: two streams that share one cut share all that follow, as long as their bytes agree.
//!
//! [`Cutter`] finds the cuts and gives each chunk in one piece; a [`Key`] names it by its contents. No contents are
//! kept: where a chunk straddles two slices, fewer than [`Lengths::max`] bytes are carried over.
//!
//! The hash comes in two halves of 16 bits. SSE2 has both a multiplication and a minimum for lanes of 16 bits, but
//! neither for 32, and one register holds twice as many of them; the second half is only computed in blocks where the
//! first one ties. The loops below are plain ones which the compiler turns into vector instructions; `fearless_simd`
//! compiles them for several sets of those and picks the widest that the processor has. Which one it is moves no cut.

use fearless_simd::{Level, dispatch};
use twox_hash::XxHash3_128;

/// How many bytes before a cut decide how good it is.
///
/// Eight bytes hold the digits in which neighbouring rows of a dump differ. Where most windows repeat in every row, all
/// cuts tie, and those of a changed dump need not fall into step again.
pub const WINDOW: usize = 8;

/// How many cuts are compared at once; a block's minimum is kept until the best block is known.
///
/// Even, so that every block has as many windows at even places as at odd ones, and half of it fits 16 bits.
const BLOCK: usize = 1024;

/// Odd factors for the four words of a window: arbitrary but for mixing well, and fixed, or no cut would be found again.
const FIRST: [i16; 4] = factors([0x9e37, 0x79b9, 0x7f4b, 0xb5c3]);

/// The factors of the second half, which settles ties of the first.
const SECOND: [i16; 4] = factors([0xc2b3, 0x3c6f, 0xd1b5, 0x27d5]);

/// How long chunks are, in bytes: every one but the last of a stream has `min..=max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// The shortest chunk; at least [`WINDOW`]. With `max` above it, chunks are at least one byte longer.
    pub min: usize,
    /// The longest chunk, an even number of bytes above `min`; equal to it for chunks of one length, which need no look
    /// at the contents.
    pub max: usize,
}

impl Lengths {
    /// Cuts by content: 56 KiB on average.
    ///
    /// Of a dump with 500 random overwrites of 4 KiB in 1 GiB, this finds 5 % new, and 32 to 96 KiB would find 5.6 %;
    /// a narrower range with the same mean falls into step more slowly.
    pub const CONTENT: Self = Self { min: 28 << 10, max: 84 << 10 };
    /// Cuts every 64 KiB, for contents that change in place.
    pub const FIXED: Self = Self { min: 64 << 10, max: 64 << 10 };
}

/// Cuts a stream into chunks. Where it cuts does not depend on how the stream was sliced.
#[derive(Debug)]
pub struct Cutter {
    lengths: Lengths,
    level: Level,
    /// Bytes since the last cut, from earlier slices: fewer than `lengths.max` between calls.
    carried: Vec<u8>,
    /// Each block's smallest first half.
    minima: Vec<i16>,
}

impl Cutter {
    /// Starts a stream.
    ///
    /// # Panics
    ///
    /// When `lengths` are not as [`Lengths`] says.
    #[must_use]
    pub fn new(lengths: Lengths) -> Self {
        let Lengths { min, max } = lengths;
        assert!(
            WINDOW <= min && min <= max && (max - min).is_multiple_of(2),
            "no chunks have such lengths: {lengths:?}"
        );
        Self { lengths, level: Level::new(), carried: Vec::new(), minima: Vec::new() }
    }

    /// Takes the next bytes of the stream and gives every chunk that ends in them, or before.
    pub fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8])) {
        let max = self.lengths.max;
        while !self.carried.is_empty() {
            let held = self.carried.len();
            let (more, _) = bytes.split_at(bytes.len().min(max - held));
            self.carried.extend_from_slice(more);
            if self.carried.len() < max {
                return;
            }
            let len = self.cut_carried();
            each(&self.carried[..len]);
            if len < held {
                // What came from `bytes` is still there: only what is older stays carried.
                self.carried.truncate(held);
                self.carried.drain(..len);
            } else {
                self.carried.clear();
                bytes = &bytes[len - held..];
            }
        }
        while bytes.len() >= max {
            let (chunk, rest) = bytes.split_at(self.cut(bytes));
            each(chunk);
            bytes = rest;
        }
        self.carried.extend_from_slice(bytes);
    }

    /// Ends the stream: gives what is left as its last chunk, and is ready for another stream.
    pub fn finish(&mut self, each: impl FnOnce(&[u8])) {
        if !self.carried.is_empty() {
            each(&self.carried);
            self.carried.clear();
        }
    }

    fn cut_carried(&mut self) -> usize {
        let carried = std::mem::take(&mut self.carried);
        let len = self.cut(&carried);
        self.carried = carried;
        len
    }

    /// The length of the chunk at the start of `bytes`, which hold at least one of the greatest length.
    fn cut(&mut self, bytes: &[u8]) -> usize {
        let Lengths { min, max } = self.lengths;
        if min == max {
            return max;
        }
        let windows = &bytes[min + 1 - WINDOW..max];
        let minima = &mut self.minima;
        min + 1 + dispatch!(self.level, _ => best(windows, minima))
    }
}

/// The place of the best window; of equal ones the last. Compiled once for each set of instructions, with all it calls.
#[inline(always)]
fn best(windows: &[u8], minima: &mut Vec<i16>) -> usize {
    let count = windows.len() - (WINDOW - 1);
    let block = |at: usize| &windows[at * BLOCK..((at + 1) * BLOCK).min(count) + WINDOW - 1];

    minima.clear();
    let mut first = i16::MAX;
    for at in 0..count.div_ceil(BLOCK) {
        let least = first_min(block(at));
        minima.push(least);
        first = first.min(least);
    }

    let (mut second, mut best) = (i16::MAX, 0);
    for (at, &least) in minima.iter().enumerate() {
        if least == first {
            let least = second_min(block(at), first);
            if least <= second {
                (second, best) = (least, at);
            }
        }
    }
    best * BLOCK + position(block(best), first, second)
}

/// The smallest first half in a block.
#[inline(always)]
fn first_min(block: &[u8]) -> i16 {
    let [even, odd] = fold(block, i16::MAX, |least, _, words| least.min(hash(words, FIRST)));
    even.min(odd)
}

/// The smallest second half in a block, of the windows whose first half is `first`.
#[inline(always)]
fn second_min(block: &[u8], first: i16) -> i16 {
    let [even, odd] = fold(block, i16::MAX, |least, _, words| {
        let second = if hash(words, FIRST) == first { hash(words, SECOND) } else { i16::MAX };
        least.min(second)
    });
    even.min(odd)
}

/// The last window in a block which has both halves.
#[inline(always)]
fn position(block: &[u8], first: i16, second: i16) -> usize {
    let [even, odd] = fold(block, -1, |last, at, words| {
        let hit = (hash(words, FIRST) == first) & (hash(words, SECOND) == second);
        last.max(if hit { at } else { -1 })
    });
    usize::try_from((2 * even).max(2 * odd + 1)).unwrap_or(0)
}

/// Folds over the windows at even places of a block and over those at odd ones: the words of either lie side by side.
#[inline(always)]
fn fold(block: &[u8], start: i16, step: impl Fn(i16, i16, [i16; 4]) -> i16) -> [i16; 2] {
    let count = (block.len() - (WINDOW - 1)) / 2;
    let words = |offset: usize| &block[offset..offset + 2 * count].as_chunks::<2>().0[..count];
    let (a, b, c, d) = (words(0), words(2), words(4), words(6));
    let (e, f, g, h) = (words(1), words(3), words(5), words(7));
    let word = |of: &[[u8; 2]], at: usize| i16::from_le_bytes(of[at]);
    let (mut even, mut odd) = (start, start);
    let mut place = 0i16;
    for at in 0..count {
        even = step(even, place, [word(a, at), word(b, at), word(c, at), word(d, at)]);
        odd = step(odd, place, [word(e, at), word(f, at), word(g, at), word(h, at)]);
        place = place.wrapping_add(1);
    }
    [even, odd]
}

#[inline(always)]
fn hash(words: [i16; 4], factors: [i16; 4]) -> i16 {
    let [a, b, c, d] = words;
    let [p, q, r, s] = factors;
    let left = a.wrapping_mul(p).wrapping_add(b.wrapping_mul(q));
    left.wrapping_add(c.wrapping_mul(r).wrapping_add(d.wrapping_mul(s)))
}

const fn factors(of: [u16; 4]) -> [i16; 4] {
    let [p, q, r, s] = of;
    [p.cast_signed(), q.cast_signed(), r.cast_signed(), s.cast_signed()]
}

/// What identities depend on besides the contents: XXH3's secret, grown from 32 random bytes.
#[derive(Clone)]
pub struct Key([u8; 192]);

impl Key {
    /// Grows a key from 32 random bytes, which whoever chooses the contents must not know.
    #[must_use]
    pub fn new(random: &[u8; 32]) -> Self {
        let mut secret = [0; 192];
        blake3::Hasher::new_derive_key("bk 2026 identity of a chunk").update(random).finalize_xof().fill(&mut secret);
        Self(secret)
    }

    /// What names the contents of a chunk: equal contents have equal identities under one key.
    ///
    /// Not a digest: it tells contents apart that differ by chance, or by the will of someone who knows neither the key
    /// nor any identity. Whether what was stored is right is for BLAKE3 to say.
    #[must_use]
    #[expect(clippy::expect_used, reason = "XXH3 refuses secrets below 136 bytes only")]
    pub fn identify(&self, chunk: &[u8]) -> [u8; 16] {
        let hash = XxHash3_128::oneshot_with_secret(&self.0, chunk).expect("the secret has 192 bytes");
        hash.to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const SMALL: Lengths = Lengths { min: 256, max: 768 };

    fn random(len: usize, seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Lengths and identities.
    type Chunks = Vec<(usize, [u8; 16])>;

    /// Chunks of `data` in slices of these lengths, over and over.
    fn cut(cutter: &mut Cutter, data: &[u8], slices: &[usize]) -> Chunks {
        let key = Key::new(&[1; 32]);
        let mut found = Vec::new();
        let mut rest = data;
        for &len in slices.iter().cycle() {
            let (slice, after) = rest.split_at(len.min(rest.len()));
            cutter.feed(slice, |chunk| found.push((chunk.len(), key.identify(chunk))));
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        cutter.finish(|chunk| found.push((chunk.len(), key.identify(chunk))));
        found
    }

    fn chunks(lengths: Lengths, data: &[u8], slices: &[usize]) -> Chunks {
        cut(&mut Cutter::new(lengths), data, slices)
    }

    fn lens(lengths: Lengths, data: &[u8]) -> Vec<usize> {
        chunks(lengths, data, &[data.len()]).iter().map(|(len, _)| *len).collect()
    }

    /// The best cut as the module's header defines it, with no blocks and no lanes.
    fn plain(lengths: Lengths, data: &[u8]) -> Vec<usize> {
        let mut found = Vec::new();
        let mut rest = data;
        while rest.len() >= lengths.max {
            let halves = |len: &usize| {
                let window = &rest[len - WINDOW..*len];
                let words = [0, 2, 4, 6].map(|at| i16::from_le_bytes([window[at], window[at + 1]]));
                (hash(words, FIRST), hash(words, SECOND))
            };
            let len = (lengths.min + 1..=lengths.max).rev().min_by_key(halves).unwrap();
            found.push(len);
            rest = &rest[len..];
        }
        found.extend(Some(rest.len()).filter(|len| *len > 0));
        found
    }

    /// How many bytes of `new` are in chunks that `old` does not have.
    fn new_bytes(lengths: Lengths, old: &[u8], new: &[u8]) -> usize {
        let known: HashSet<_> = chunks(lengths, old, &[4096]).into_iter().collect();
        chunks(lengths, new, &[4096]).iter().filter(|chunk| !known.contains(*chunk)).map(|(len, _)| len).sum()
    }

    /// Contents with much, some and no repetition.
    fn contents() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            (0..20_000usize, any::<u64>()).prop_map(|(len, seed)| random(len, seed)),
            (0..20_000usize, any::<u64>())
                .prop_map(|(len, seed)| random(len, seed).iter().map(|byte| byte & 1).collect()),
            (0..20_000usize, 1..300usize, any::<u64>()).prop_map(|(len, period, seed)| random(period, seed)
                .iter()
                .copied()
                .cycle()
                .take(len)
                .collect()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn cuts_are_where_the_plain_search_puts_them(data in contents(), min in WINDOW..700, more in 0..1500usize) {
            let lengths = Lengths { min, max: min + 2 * more };
            if more > 0 {
                prop_assert_eq!(lens(lengths, &data), plain(lengths, &data));
            }
        }

        #[test]
        fn slices_move_no_cut(data in contents(), slices in prop::collection::vec(1..3000usize, 1..20)) {
            for lengths in [SMALL, Lengths { min: 512, max: 512 }] {
                prop_assert_eq!(chunks(lengths, &data, &slices), chunks(lengths, &data, &[data.len()]));
            }
        }

        #[test]
        fn chunks_lie_end_to_end_within_the_lengths(data in contents()) {
            let found = lens(SMALL, &data);
            prop_assert_eq!(found.iter().sum::<usize>(), data.len());
            if let Some((last, others)) = found.split_last() {
                prop_assert!(others.iter().all(|len| (SMALL.min..=SMALL.max).contains(len)));
                prop_assert!((1..=SMALL.max).contains(last));
            }
        }

        #[test]
        fn an_edit_changes_few_chunks(
            seed in any::<u64>(), at in 0..200_000usize, cut in 0..2000usize, put in 0..2000usize,
        ) {
            let old = random(200_000, seed);
            let mut new = old.clone();
            new.splice(at..(at + cut).min(old.len()), random(put, !seed));
            let changed = new_bytes(SMALL, &old, &new);
            prop_assert!(changed <= put + 16 * SMALL.max, "{changed} bytes are new");
        }
    }

    #[test]
    fn every_set_of_instructions_cuts_alike() {
        let data = random(3 << 20, 5);
        let cuts = |level| {
            let mut found = Vec::new();
            let mut cutter = Cutter { level, ..Cutter::new(Lengths::CONTENT) };
            cutter.feed(&data, |chunk| found.push(chunk.len()));
            found
        };
        assert_eq!(cuts(Level::new()), cuts(Level::baseline()));
    }

    #[test]
    fn zeros_give_chunks_of_the_greatest_length() {
        let found = chunks(Lengths::CONTENT, &vec![0; 10 * Lengths::CONTENT.max], &[4096]);
        assert!(found.iter().all(|chunk| *chunk == found[0] && chunk.0 == Lengths::CONTENT.max));
    }

    #[test]
    fn short_periods_give_stable_chunks() {
        for period in [2, 3, 97, 512] {
            let data: Vec<u8> = random(period, 9).iter().copied().cycle().take(1 << 20).collect();
            let found = lens(Lengths::CONTENT, &data);
            let (_, steady) = found[1..].split_last().unwrap();
            assert!(steady.iter().all(|len| len % period == 0 && *len == steady[0]), "period {period}: {found:?}");
            assert!(steady[0] > Lengths::CONTENT.max - period);
        }
    }

    #[test]
    fn chunks_are_as_long_as_said_on_average() {
        let found = lens(Lengths::CONTENT, &random(32 << 20, 4));
        let mean = (32 << 20) / found.len();
        assert!((54 << 10..58 << 10).contains(&mean), "{mean}");
    }

    #[test]
    fn identities_depend_on_contents_and_key() {
        let (one, other) = (Key::new(&[1; 32]), Key::new(&[2; 32]));
        assert_eq!(one.identify(b"abc"), one.identify(b"abc"));
        assert_ne!(one.identify(b"abc"), one.identify(b"abd"));
        assert_ne!(one.identify(b"abc"), other.identify(b"abc"));
    }

    #[test]
    fn a_cutter_begins_anew_after_the_end() {
        let (data, mut cutter) = (random(5000, 3), Cutter::new(SMALL));
        let mut once = || cut(&mut cutter, &data, &[data.len()]);
        assert_eq!(once(), once());
        assert_eq!(chunks(SMALL, &[], &[1]), []);
    }
}

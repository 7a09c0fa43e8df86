//! Frames: independently decodable pieces of a stream, compressed by one of three codecs.
//!
//! A coder is one worker's: its context is reused from frame to frame. What cannot be compressed is noticed on a
//! sample and stored raw inside a valid frame, so that stock tools read it all the same.

use std::str::FromStr;

use zstd_safe::{CCtx, CParameter, DCtx, DParameter};

use crate::error::{Error, Result};

/// Smallest and largest frame, bytes of content.
pub const FRAME_LEN_MIN: u64 = 256 << 10;
/// See [`FRAME_LEN_MIN`].
pub const FRAME_LEN_MAX: u64 = 64 << 20;
/// The decoder refuses larger windows: 128 MiB (2^27).
const WINDOW_LOG_MAX: u32 = 27;
/// A zstd block holds at most this many bytes.
const BLOCK_LEN: usize = 128 << 10;
/// Samples looked at before a frame is compressed; see [`looks_incompressible`].
const SAMPLE_LEN: usize = 4 << 10;

/// Level 3's window, as long as a usual frame: zstd's own is half of it. What that wins (0.4 % of a kernel tree) pays for what frames lose that start
/// without history, and for a short hash table of half the size, with which all tables stay in a processor's second cache.
const LEVEL_3_WINDOW_LOG: u32 = 22;
/// Its table of short matches.
const LEVEL_3_CHAIN_LOG: u32 = 15;

/// How frames are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// zstd at this level, 1 to 19.
    Zstd(i32),
    /// bzip2 with this block size, 1 to 9 times 100 kB.
    Bzip2(u32),
    /// No compression.
    None,
}

impl Codec {
    /// What follows `.tar` in a part's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Codec::Zstd(_) => ".zst",
            Codec::Bzip2(_) => ".bz2",
            Codec::None => "",
        }
    }
}

impl FromStr for Codec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::usage(format!("not a compression: `{text}`"))
                .with_hint("one of zstd:1 to zstd:19, bzip2:1 to bzip2:9, none")
        };
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level.parse::<u32>().map_err(|_| bad())?)),
            None => (text, None),
        };
        match (name, level) {
            ("zstd", None) => Ok(Codec::Zstd(3)),
            ("zstd", Some(level @ 1..=19)) => Ok(Codec::Zstd(level.cast_signed())),
            ("bzip2", None) => Ok(Codec::Bzip2(9)),
            ("bzip2", Some(level @ 1..=9)) => Ok(Codec::Bzip2(level)),
            ("none", None) => Ok(Codec::None),
            _ => Err(bad()),
        }
    }
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Codec::Zstd(level) => write!(f, "zstd:{level}"),
            Codec::Bzip2(level) => write!(f, "bzip2:{level}"),
            Codec::None => f.write_str("none"),
        }
    }
}

impl serde::Serialize for Codec {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Codec {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Compresses frames.
pub struct Encoder {
    codec: Codec,
    zstd: Option<CCtx<'static>>,
    light: Option<Light>,
}

/// The quickest search for matches, where it does about as well as the one that was asked for: in tables of numbers and padding, such as
/// the dump of a database. A short piece of a frame is tried both ways now and then.
struct Light {
    zstd: CCtx<'static>,
    tried: Tried,
    /// Frames until the next trial.
    wait: u32,
    out: Vec<u8>,
}

/// What pieces came to, each trial counting half as much as the one after it: what is as good either way would go to and fro by single
/// trials, and with it a run's time, tenfold at high levels.
#[derive(Clone, Copy, Debug, Default)]
struct Tried {
    plain: usize,
    quick: usize,
    asked: usize,
}

impl Tried {
    fn add(&mut self, plain: usize, quick: usize, asked: usize) {
        let add = |sum: &mut usize, len: usize| *sum = *sum / 2 + len;
        add(&mut self.plain, plain);
        add(&mut self.quick, quick);
        add(&mut self.asked, asked);
    }

    fn is_for_quick(self) -> bool {
        self.plain > 0 && self.quick * 100 <= self.asked * LIGHT_PERCENT_MAX + self.plain / 5
    }
}

/// Frames between two trials.
const TRIAL_PERIOD: u32 = 16;
/// How much of a frame is tried, bytes.
const TRIAL_LEN: usize = 256 << 10;
/// The quick search is taken when pieces come to at most this much of the other one's, percent, and two in a thousand of their plain bytes: what
/// shrinks a hundredfold need not shrink a hundred and twentyfold. A longer window favours the other: at 98, whole frames of a dump come out 0.8 % longer
/// in two thirds of the time, and none of a source tree is taken.
const LIGHT_PERCENT_MAX: usize = 98;

fn compressor(level: i32) -> Result<CCtx<'static>> {
    let mut ctx = CCtx::create();
    let usual = [CParameter::CompressionLevel(level), CParameter::ChecksumFlag(true)];
    let own = [CParameter::WindowLog(LEVEL_3_WINDOW_LOG), CParameter::ChainLog(LEVEL_3_CHAIN_LOG)];
    for parameter in usual.into_iter().chain(own.into_iter().filter(|_| level == 3)) {
        ctx.set_parameter(parameter).map_err(zstd_error)?;
    }
    Ok(ctx)
}

impl Light {
    /// Whether this frame is for the quick search; `asked` is the other one.
    fn takes(&mut self, asked: &mut CCtx<'static>, plain: &[u8]) -> Result<bool> {
        if self.wait > 0 || plain.len() < TRIAL_LEN {
            self.wait = self.wait.saturating_sub(1);
            return Ok(self.tried.is_for_quick());
        }
        self.wait = TRIAL_PERIOD;
        // From the middle: a frame may begin with a header.
        let start = (plain.len() - TRIAL_LEN) / 2;
        let piece = &plain[start..start + TRIAL_LEN];
        let mut len = |ctx: &mut CCtx<'static>| {
            self.out.clear();
            self.out.reserve(zstd_safe::compress_bound(piece.len()));
            ctx.compress2(&mut self.out, piece).map_err(zstd_error)
        };
        let (quick, asked) = (len(&mut self.zstd)?, len(asked)?);
        self.tried.add(piece.len(), quick, asked);
        Ok(self.tried.is_for_quick())
    }
}

impl Encoder {
    /// A coder for `codec`.
    pub fn new(codec: Codec) -> Result<Self> {
        let (zstd, light) = match codec {
            Codec::Zstd(level @ 2..) => {
                let light = Light { zstd: compressor(1)?, tried: Tried::default(), wait: 0, out: Vec::new() };
                (Some(compressor(level)?), Some(light))
            }
            Codec::Zstd(level) => (Some(compressor(level)?), None),
            _ => (None, None),
        };
        Ok(Self { codec, zstd, light })
    }

    /// Compresses `plain` into `out` (cleared first) as one frame.
    pub fn encode(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        match (self.codec, &mut self.zstd) {
            (Codec::Zstd(_), _) if looks_incompressible(plain) => raw_zstd_frame(plain, out),
            (Codec::Zstd(_), Some(ctx)) => {
                out.reserve(zstd_safe::compress_bound(plain.len()));
                let is_light = match &mut self.light {
                    Some(light) => light.takes(ctx, plain)?,
                    None => false,
                };
                let ctx = self.light.as_mut().filter(|_| is_light).map_or(ctx, |light| &mut light.zstd);
                ctx.compress2(out, plain).map_err(zstd_error)?;
            }
            (Codec::Bzip2(level), _) => bzip2_frame(level, plain, out)?,
            (Codec::None | Codec::Zstd(_), _) => out.extend_from_slice(plain),
        }
        Ok(())
    }
}

fn bzip2_frame(level: u32, plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let mut coder = bzip2::Compress::new(bzip2::Compression::new(level), 0);
    // bzip2 grows its input by at most 1 % and 600 bytes (its manual, section 3.5.1).
    out.reserve(plain.len() + plain.len() / 100 + 601);
    loop {
        #[expect(clippy::cast_possible_truncation, reason = "a frame is at most 64 MiB")]
        let done = coder.total_in() as usize;
        match coder.compress_vec(&plain[done..], out, bzip2::Action::Finish) {
            Ok(bzip2::Status::StreamEnd) => return Ok(()),
            Ok(_) => out.reserve(plain.len() / 8 + 601),
            Err(e) => return Err(Error::integrity(format!("bzip2 cannot compress a frame: {e}"))),
        }
    }
}

/// Whether `plain` is not worth compressing: in every sample (4 KiB in each 64 KiB) all byte values are about as frequent
/// as chance would have them. True for random, encrypted, gzip and JPEG data; false for text, source, binaries, tar headers.
///
/// The bound: for n bytes drawn evenly from 256 values, the sum of squared counts has mean n + n(n-1)/256, which is
/// 69,616 for 4 KiB, with a deviation of about 360; what zstd can shrink by a few percent lies far above.
fn looks_incompressible(plain: &[u8]) -> bool {
    if plain.len() < 64 << 10 {
        return false;
    }
    let step = (64 << 10).min(plain.len() / 8);
    plain.chunks(step).filter(|chunk| chunk.len() >= SAMPLE_LEN).all(|chunk| {
        let mut counts = [0u32; 256];
        for &byte in &chunk[..SAMPLE_LEN] {
            counts[usize::from(byte)] += 1;
        }
        let squares: u64 = counts.iter().map(|&n| u64::from(n) * u64::from(n)).sum();
        squares < 72_000
    })
}

/// A zstd frame of raw blocks: magic, single segment with content size, blocks, xxh64 checksum left out.
/// Source: RFC 8878, sections 3.1.1.1 and 3.1.1.2.
fn raw_zstd_frame(plain: &[u8], out: &mut Vec<u8>) {
    let len = u32::try_from(plain.len()).unwrap_or(u32::MAX);
    out.reserve(plain.len() + plain.len() / BLOCK_LEN * 3 + 16);
    out.extend_from_slice(&0xFD2F_B528_u32.to_le_bytes());
    // Frame content size in 4 bytes (flag 2), single segment, no checksum, no dictionary.
    out.push(0b1010_0000);
    out.extend_from_slice(&len.to_le_bytes());
    let mut blocks = plain.chunks(BLOCK_LEN).peekable();
    while let Some(block) = blocks.next() {
        let last = u32::from(blocks.peek().is_none());
        let header = (u32::try_from(block.len()).unwrap_or(0) << 3) | last;
        out.extend_from_slice(&header.to_le_bytes()[..3]);
        out.extend_from_slice(block);
    }
}

/// Decompresses frames.
pub struct Decoder {
    zstd: DCtx<'static>,
}

impl Decoder {
    /// A decoder for any codec.
    pub fn new() -> Result<Self> {
        let mut zstd = DCtx::create();
        zstd.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(zstd_error)?;
        Ok(Self { zstd })
    }

    /// Decodes one whole frame into `out` (cleared first). It must give exactly `plain_len` bytes and use all of `stored`.
    pub fn decode(&mut self, codec: Codec, stored: &[u8], plain_len: usize, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        if plain_len as u64 > FRAME_LEN_MAX {
            return Err(Error::integrity(format!("a frame of {plain_len} bytes is above the limit")));
        }
        // One byte more than needed: bzip2 sees its end only with room left.
        out.reserve(plain_len + 1);
        match codec {
            Codec::None => out.extend_from_slice(stored),
            Codec::Zstd(_) => {
                if zstd_safe::find_frame_compressed_size(stored) != Ok(stored.len()) {
                    return Err(Error::integrity("not one whole zstd frame"));
                }
                self.zstd.decompress(out, stored).map_err(zstd_error)?;
            }
            Codec::Bzip2(_) => {
                let mut coder = bzip2::Decompress::new(false);
                let status = coder.decompress_vec(stored, out).map_err(|e| Error::integrity(format!("bzip2: {e}")))?;
                if status != bzip2::Status::StreamEnd || coder.total_in() != stored.len() as u64 {
                    return Err(Error::integrity("not one whole bzip2 stream of the expected length"));
                }
            }
        }
        if out.len() != plain_len {
            return Err(Error::integrity(format!("decodes to {} bytes, not {plain_len}", out.len())));
        }
        Ok(())
    }
}

fn zstd_error(code: usize) -> Error {
    Error::integrity(format!("zstd: {}", zstd_safe::get_error_name(code)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new().finalize_xof();
        let mut out = vec![0; len];
        hasher.fill(&mut out);
        out
    }

    #[test]
    fn frames_round_trip_and_refuse_damage() {
        let text: Vec<u8> = (0..100_000).flat_map(|n: u32| n.to_string().into_bytes()).collect();
        for codec in [Codec::Zstd(3), Codec::Bzip2(9), Codec::None] {
            for plain in [&b""[..], b"x", &text, &noise(300_000), &noise(3_000_000)] {
                let mut stored = Vec::new();
                Encoder::new(codec).unwrap().encode(plain, &mut stored).unwrap();
                let mut decoder = Decoder::new().unwrap();
                let mut out = Vec::new();
                decoder.decode(codec, &stored, plain.len(), &mut out).unwrap();
                assert!(out == plain, "{codec} {}", plain.len());
                assert!(decoder.decode(codec, &stored, plain.len() + 1, &mut out).is_err());
                if !plain.is_empty() {
                    assert!(decoder.decode(codec, &stored, plain.len() - 1, &mut out).is_err());
                    stored.push(0);
                    assert!(decoder.decode(codec, &stored, plain.len(), &mut out).is_err());
                }
            }
        }
    }

    #[test]
    fn the_quick_search_is_for_dumps_and_not_for_text() {
        let dump: Vec<u8> = (0..20_000u32)
            .flat_map(|n| format!("{n}\t1\t{}\t{:84}\n", n.wrapping_mul(2_654_435_761) >> 19, "").into_bytes())
            .collect();
        let words = ["backup", "of", "clusters", "volume", "the", "snapshot", "and", "level", "tar", "index"];
        let text: Vec<u8> = (0..200_000u64)
            .flat_map(|n| {
                let pick = (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as usize;
                [words[pick % 10].as_bytes(), if pick.is_multiple_of(7) { b".\n" } else { b" " }].concat()
            })
            .collect();
        for (plain, wins) in [(dump, true), (text, false)] {
            let mut encoder = Encoder::new(Codec::Zstd(3)).unwrap();
            let (mut stored, mut out) = (Vec::new(), Vec::new());
            for _ in 0..3 {
                encoder.encode(&plain, &mut stored).unwrap();
                assert_eq!(encoder.light.as_ref().unwrap().tried.is_for_quick(), wins);
                Decoder::new().unwrap().decode(Codec::Zstd(3), &stored, plain.len(), &mut out).unwrap();
                assert!(out == plain);
            }
        }
    }

    #[test]
    fn single_trials_do_not_turn_the_search() {
        // Pieces of 256 KiB of a dump as level 19 and level 1 left them.
        let pieces = [(2341, 2814), (2610, 2678), (2322, 2794), (2631, 2568)];
        let mut tried = Tried::default();
        assert!(!tried.is_for_quick());
        tried.add(TRIAL_LEN, 2598, 2873);
        for (asked, quick) in pieces {
            tried.add(TRIAL_LEN, quick, asked);
            assert!(tried.is_for_quick(), "{tried:?}");
        }
        // Other data turns it at once, or after one more.
        tried.add(TRIAL_LEN, 60_000, 55_000);
        assert!(!tried.is_for_quick());
        let mut level = Tried::default();
        level.add(TRIAL_LEN, 50_600, 50_000);
        assert!(!level.is_for_quick(), "a source tree");
    }

    #[test]
    fn only_noise_is_taken_as_noise() {
        assert!(looks_incompressible(&noise(1 << 20)));
        let mut mixed = noise(1 << 20);
        mixed[500_000..600_000].fill(b'x');
        assert!(!looks_incompressible(&mixed));
        let base64: Vec<u8> = noise(1 << 20)
            .iter()
            .map(|b| b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[usize::from(b & 63)])
            .collect();
        assert!(!looks_incompressible(&base64));
    }

    #[test]
    fn codecs_by_name() {
        for good in ["zstd:3", "zstd:19", "bzip2:9", "none"] {
            assert_eq!(good.parse::<Codec>().unwrap().to_string(), good);
        }
        for bad in ["zstd:0", "zstd:20", "bzip2:10", "none:1", "gzip", "zstd:x", ""] {
            assert!(bad.parse::<Codec>().is_err(), "{bad}");
        }
    }
}

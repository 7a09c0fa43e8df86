//! What it means: typed text checked and turned into values.

use std::time::Duration;

use super::typed::{Global, SnapshotArgs};
use crate::{
    error::{Error, Result},
    format::{
        codec::{Codec, FRAME_LEN_MAX, FRAME_LEN_MIN},
        notes::COMMENT_LEN_MAX,
    },
    model::{
        ids::Name,
        place::{Access, Place},
        time::Lifetime,
        units::parse_size,
    },
};

/// Parts are at least and at most this long, stored bytes.
const PART_LEN_MIN: u64 = 16 << 20;
const PART_LEN_MAX: u64 = 1 << 30;
/// Decoded content a mount keeps: a few frames at least.
const CACHE_LEN_MIN: u64 = 16 << 20;
const CACHE_LEN_DEFAULT: u64 = 256 << 20;
/// More workers than this are refused.
const THREAD_COUNT_MAX: usize = 256;
/// In tests small frames and parts make small volumes that still have many of them.
const SMALL_FRAME_LEN_MIN: u64 = 4 << 10;
const SMALL_PART_LEN_MIN: u64 = 64 << 10;

/// How a snapshot is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storing {
    /// The codec.
    pub codec: Codec,
    /// Content of a frame, bytes.
    pub frame_len: usize,
    /// Stored bytes of a part.
    pub part_len: u64,
}

/// Where the volume is.
pub fn volume(global: &Global) -> Result<Place> {
    let typed = global.volume.clone().filter(|path| !path.as_os_str().is_empty());
    let typed = typed.ok_or_else(|| {
        Error::usage("no volume is named").with_hint("--volume DIR, or BK_VOLUME=DIR in the environment")
    })?;
    Place::parse(typed)
}

/// How an S3 volume is reached.
pub fn access(global: &Global) -> Access {
    Access {
        endpoint: global.endpoint.clone().filter(|text| !text.is_empty()),
        region: global.region.clone().filter(|text| !text.is_empty()),
        path_style: global.path_style,
        ca_file: global.ca_file.clone().filter(|path| !path.as_os_str().is_empty()),
        no_cache: global.no_cache,
    }
}

/// Worker threads: as asked, or one for each processor.
pub fn threads(global: &Global) -> Result<usize> {
    match global.threads {
        None => Ok(std::thread::available_parallelism().map_or(1, usize::from).min(16)),
        Some(count @ 1..=THREAD_COUNT_MAX) => Ok(count),
        Some(count) => Err(Error::usage(format!("--threads {count} is not between 1 and {THREAD_COUNT_MAX}"))),
    }
}

/// The job's name.
pub fn job(args: &SnapshotArgs) -> Result<Name> {
    match &args.job {
        Some(name) => name.parse(),
        None => Err(Error::usage("no job is named").with_hint("--job NAME says which job the snapshot belongs to")),
    }
}

/// The interval within which a job has one snapshot.
pub fn min_interval(args: &SnapshotArgs) -> Result<Option<Lifetime>> {
    let Some(text) = args.min_interval.as_ref().filter(|text| !text.is_empty()) else { return Ok(None) };
    match text.parse().map_err(|e: Error| e.context("--min-interval"))? {
        Lifetime::Never => Err(Error::usage("--min-interval never: no snapshot would ever be taken")),
        interval => Ok(Some(interval)),
    }
}

/// Codec, frames and parts.
pub fn storing(args: &SnapshotArgs) -> Result<Storing> {
    let small = std::env::var_os("BK_TEST_SMALL").is_some();
    let frame_min = if small { SMALL_FRAME_LEN_MIN } else { FRAME_LEN_MIN };
    let frame_len = parse_size(&args.frame_size)?;
    if !frame_len.is_power_of_two() || !(frame_min..=FRAME_LEN_MAX).contains(&frame_len) {
        return Err(Error::usage(format!(
            "--frame-size {} is not a power of two from 256KiB to 64MiB",
            args.frame_size
        )));
    }
    let part_min = if small { SMALL_PART_LEN_MIN } else { PART_LEN_MIN };
    let part_len = parse_size(&args.part_size)?;
    if !(part_min..=PART_LEN_MAX).contains(&part_len) {
        return Err(Error::usage(format!("--part-size {} is not between 16MiB and 1GiB", args.part_size)));
    }
    let frame_len = usize::try_from(frame_len).map_err(|_| Error::usage("--frame-size is too large"))?;
    Ok(Storing { codec: args.compression.parse()?, frame_len, part_len })
}

/// Bytes of decoded content a mount keeps: as asked for, or a tenth of the memory, at most 256 MiB.
pub fn cache_len(typed: Option<&String>) -> Result<u64> {
    let info = rustix::system::sysinfo();
    let memory = u64::from(info.mem_unit).saturating_mul(info.totalram);
    match typed {
        None => Ok((memory / 10).clamp(CACHE_LEN_MIN, CACHE_LEN_DEFAULT)),
        Some(text) => match parse_size(text)? {
            len @ CACHE_LEN_MIN.. => Ok(len),
            _ => Err(Error::usage(format!("--cache-size {text} is less than 16MiB"))),
        },
    }
}

/// How often a run says how far it is, when a test says so, and what the user says of it.
pub fn beat(args: &SnapshotArgs) -> Result<(Option<Duration>, Option<String>)> {
    let set = std::env::var("BK_TEST_BEAT_MS").ok().and_then(|text| text.parse::<u64>().ok());
    let comment = args.comment.clone().filter(|text| !text.is_empty());
    if comment.as_ref().is_some_and(|text| text.len() > COMMENT_LEN_MAX) {
        return Err(Error::usage(format!("--comment is longer than {COMMENT_LEN_MAX} bytes")));
    }
    Ok((set.map(Duration::from_millis), comment))
}

/// This node's name: as given, or the host's.
pub fn node(typed: Option<&String>) -> String {
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    typed.cloned().filter(|name| !name.is_empty()).unwrap_or_else(host)
}

/// `OFFSET:LEN` or `OFFSET`; a length of `None` is to the end.
pub fn range(text: &str) -> Result<(u64, Option<u64>)> {
    let bad = || Error::usage(format!("not a range: `{text}`")).with_hint("write OFFSET:LEN, both in bytes");
    let number = |digits: &str| digits.parse::<u64>().map_err(|_| bad());
    match text.split_once(':') {
        None => Ok((number(text)?, None)),
        Some((offset, "")) => Ok((number(offset)?, None)),
        Some((offset, len)) => Ok((number(offset)?, Some(number(len)?))),
    }
}

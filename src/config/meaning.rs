//! What it means: typed text checked and turned into values.

use std::path::{Path, PathBuf};

use super::{file::Config, typed::Global, volume::Target};
use crate::{
    error::{Error, Result},
    format::codec::{Codec, FRAME_LEN_MAX, FRAME_LEN_MIN},
    model::{
        ids::Name,
        place::{Access, Place},
        stop::Stop,
        time::Lifetime,
        units::{parse_size, show_size},
    },
};

/// Content of a frame and stored bytes of a part, when nothing else is said.
const FRAME_LEN: u64 = 4 << 20;
const PART_LEN: u64 = 64 << 20;
/// Parts are at least and at most this long, stored bytes.
const PART_LEN_MIN: u64 = 16 << 20;
const PART_LEN_MAX: u64 = 1 << 30;
/// Slower transfers are refused: nothing would come to an end.
const RATE_MIN: u64 = 1 << 10;
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

/// The volume: as typed, or in the environment; else that of the job, or the only one there is.
/// The configuration is asked for only where it is needed, so that a broken one never keeps `--volume DIR` from a restore.
pub fn target<'c>(
    global: &Global,
    access: &Access,
    config: &dyn Fn() -> Result<&'c Config>,
    named: Option<Named<'_>>,
) -> Result<Target> {
    let typed = global.volume.clone().filter(|path| !path.as_os_str().is_empty());
    let typed = match (&typed, named) {
        (_, Some(Named::Place(place))) => Some(place.to_owned()),
        _ => typed,
    };
    if let Some(path) = typed {
        let Some(name) = path.to_str().and_then(|text| text.parse::<Name>().ok()) else {
            return typed_place(path, access.clone());
        };
        // A directory of this name is meant when there is one, unless the configuration has the name, too.
        let is_dir = path.is_dir();
        return match config() {
            Ok(config) if config.volume(&name).is_some() => Target::configured(config, &name, access),
            Ok(config) if !is_dir && !config.text.volume.is_empty() => Target::configured(config, &name, access),
            Err(e) if !is_dir => Err(e),
            Ok(_) | Err(_) => typed_place(path, access.clone()),
        };
    }
    let config = config()?;
    let meant = match named {
        Some(Named::Job(job)) => config.volume_of(job),
        Some(Named::Volume(name)) => Some(name),
        _ => None,
    };
    match meant.or_else(|| config.default_volume()) {
        Some(name) => Target::configured(config, name, access),
        None => Err(no_volume(config)),
    }
}

/// What a volume is looked for by, when none was typed; or what was typed in another place than --volume.
#[derive(Clone, Copy, Debug)]
pub enum Named<'a> {
    /// The volume of this job, by its name on the volume.
    Job(&'a Name),
    /// The configured volume of this name.
    Volume(&'a Name),
    /// This one.
    Place(&'a Path),
}

fn typed_place(path: PathBuf, access: Access) -> Result<Target> {
    Place::parse(path).map(|place| Target::typed(place, access))
}

fn no_volume(config: &Config) -> Error {
    let names = config.text.volume.keys().map(Name::as_str).collect::<Vec<_>>().join(", ");
    let hint = match names.as_str() {
        "" => "--volume DIR, or BK_VOLUME=DIR in the environment".to_owned(),
        names => format!("--volume NAME; there are {names}, and [defaults] may say which one is meant"),
    };
    Error::usage("no volume is named").with_hint(hint)
}

/// How an S3 volume is reached.
pub fn access(global: &Global) -> Result<Access> {
    Ok(Access {
        endpoint: global.endpoint.clone().filter(|text| !text.is_empty()),
        region: global.region.clone().filter(|text| !text.is_empty()),
        path_style: global.path_style,
        ca_file: global.ca_file.clone().filter(|path| !path.as_os_str().is_empty()),
        no_cache: global.no_cache,
        cache_len: cache_size(global)?,
        exclusive_writer: false,
        limit_upload: rate(global.limit_upload.as_deref(), "--limit-upload")?,
        limit_download: rate(global.limit_download.as_deref(), "--limit-download")?,
        in_flight: None,
        keys: None,
        stop: Stop::default(),
    })
}

/// Bytes a second; none is no limit.
fn rate(typed: Option<&str>, option: &str) -> Result<Option<u64>> {
    let Some(text) = typed.filter(|text| !text.is_empty()) else { return Ok(None) };
    let rate = parse_size(text).map_err(|e| e.context(option))?;
    check_rate(rate, option).map(Some)
}

/// Refuses a rate at which nothing would come to an end; `what` names it.
pub fn check_rate(rate: u64, what: &str) -> Result<u64> {
    if rate < RATE_MIN {
        return Err(Error::usage(format!("{what}: {rate} is below {RATE_MIN} bytes a second")));
    }
    Ok(rate)
}

fn cache_size(global: &Global) -> Result<Option<u64>> {
    let typed = global.cache_size.as_ref().filter(|text| !text.is_empty());
    typed.map(|text| parse_size(text).map_err(|e| e.context("--cache-size"))).transpose()
}

/// Worker threads: as asked, or one for each processor.
pub fn threads(global: &Global) -> Result<usize> {
    thread_count(global.threads)
}

/// The same, of what was typed or configured.
pub fn thread_count(count: Option<usize>) -> Result<usize> {
    match count {
        None => Ok(std::thread::available_parallelism().map_or(1, usize::from).min(16)),
        Some(count @ 1..=THREAD_COUNT_MAX) => Ok(count),
        Some(count) => Err(Error::usage(format!("--threads {count} is not between 1 and {THREAD_COUNT_MAX}"))),
    }
}

/// The job's name.
pub fn job(typed: Option<&String>) -> Result<Name> {
    match typed {
        Some(name) => name.parse(),
        None => Err(Error::usage("no job is named").with_hint("--job NAME says which job the snapshot belongs to")),
    }
}

/// The interval within which a job has one snapshot.
pub fn min_interval(typed: Option<&String>) -> Result<Option<Lifetime>> {
    let Some(text) = typed.filter(|text| !text.is_empty()) else { return Ok(None) };
    match text.parse().map_err(|e: Error| e.context("--min-interval"))? {
        Lifetime::Never => Err(Error::usage("--min-interval never: no snapshot would ever be taken")),
        interval => Ok(Some(interval)),
    }
}

/// Where steps are noted: as typed or configured, else below `/var/lib`, else, of who may not write there, below the home.
pub fn state_dir(typed: Option<&PathBuf>, configured: Option<&PathBuf>) -> Result<PathBuf> {
    if let Some(dir) = typed.filter(|dir| !dir.as_os_str().is_empty()).or(configured) {
        return std::path::absolute(dir).map_err(|e| Error::io(format!("cannot use {}", dir.display()), e));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/bk"));
    }
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let below = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
    below
        .map(|dir| dir.join("bk"))
        .ok_or_else(|| Error::usage("no state directory: there is no HOME").with_hint("--state-dir DIR"))
}

/// Codec, frames and parts as typed.
#[derive(Clone, Debug, Default)]
pub struct StoringText {
    /// `zstd:3`
    pub compression: Option<String>,
    /// Bytes.
    pub frame_size: Option<u64>,
    /// Bytes.
    pub part_size: Option<u64>,
}

/// Codec, frames and parts.
pub fn storing(typed: &StoringText) -> Result<Storing> {
    let small = std::env::var_os("BK_TEST_SMALL").is_some();
    let frame_min = if small { SMALL_FRAME_LEN_MIN } else { FRAME_LEN_MIN };
    let frame_len = typed.frame_size.unwrap_or(FRAME_LEN);
    if !frame_len.is_power_of_two() || !(frame_min..=FRAME_LEN_MAX).contains(&frame_len) {
        let shown = show_size(frame_len);
        return Err(Error::usage(format!("a frame of {shown} is not a power of two from 256KiB to 64MiB")));
    }
    let part_min = if small { SMALL_PART_LEN_MIN } else { PART_LEN_MIN };
    let part_len = typed.part_size.unwrap_or(PART_LEN);
    if !(part_min..=PART_LEN_MAX).contains(&part_len) {
        return Err(Error::usage(format!("a part of {} is not between 16MiB and 1GiB", show_size(part_len))));
    }
    let frame_len = usize::try_from(frame_len).map_err(|_| Error::usage("the frame is too large"))?;
    let codec = typed.compression.as_deref().unwrap_or("zstd:3").parse()?;
    Ok(Storing { codec, frame_len, part_len })
}

/// Bytes of decoded content a mount keeps: as asked for, or a tenth of the memory, at most 256 MiB.
pub fn cache_len(typed: Option<&String>) -> Result<u64> {
    let info = rustix::system::sysinfo();
    let memory = u64::from(info.mem_unit).saturating_mul(info.totalram);
    match typed {
        None => Ok((memory / 10).clamp(CACHE_LEN_MIN, CACHE_LEN_DEFAULT)),
        Some(text) => match parse_size(text)? {
            len @ CACHE_LEN_MIN.. => Ok(len),
            _ => Err(Error::usage(format!("--cache-memory {text} is less than 16MiB"))),
        },
    }
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

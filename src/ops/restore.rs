//! The run book of `bk restore`: a tree into a directory, or a stream onto a device.

use std::{
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    engine::read::{
        chain::Chain,
        content,
        extract::{self, extract},
        select::Taken,
    },
    error::{Error, Kind, Result},
    model::{
        entry::Entry,
        ids::{Name, SnapshotName},
    },
    monitor::Monitor,
    volume::Volume,
};

pub use crate::engine::read::{
    extract::{Action, Overwrite},
    outcome::{Fault, Outcome},
};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// Restore below this directory; made when it is missing.
    pub target: PathBuf,
    /// Only these paths, with all below them.
    pub paths: Vec<Vec<u8>>,
    /// Only what matches, with all below it.
    pub include: Vec<String>,
    /// Not what matches, nor what lies below it.
    pub exclude: Vec<String>,
    /// What happens to what is there already.
    pub overwrite: Overwrite,
    /// Leave out what could harm.
    pub safe: bool,
    /// Worker threads.
    pub threads: usize,
}

/// Restores a tree. [`Outcome::is_incomplete`] says whether something is missing: exit 3.
pub fn run(volume: &Volume, options: &Options, monitor: &dyn Monitor) -> Result<Outcome> {
    let (snapshot, chain) = Chain::find(volume, &options.snapshot)?;
    let asked = asked(&chain, options)?;
    if asked.taken.is_all() {
        let streams: u64 = snapshot.streams.iter().map(|stream| stream.content_bytes).sum();
        monitor.expect(snapshot.totals.entries, snapshot.totals.content_bytes.saturating_sub(streams));
    }
    extract(&chain, &options.target, &asked, monitor)
}

/// Tells `planned` what [`run`] would do with each entry, and does nothing.
pub fn plan(
    volume: &Volume,
    options: &Options,
    monitor: &dyn Monitor,
    planned: &mut dyn FnMut(&Entry, Action) -> Result<()>,
) -> Result<()> {
    let (_, chain) = Chain::find(volume, &options.snapshot)?;
    extract::plan(&chain, &options.target, &asked(&chain, options)?, monitor, planned)
}

fn asked(chain: &Chain, options: &Options) -> Result<extract::Options> {
    if !chain.has_tree() {
        return Err(Error::usage(format!("snapshot {} has no tree", chain.shown()))
            .with_hint(format!("`bk cat {} --stream NAME` writes a stream", chain.shown())));
    }
    Ok(extract::Options {
        taken: Taken::new(chain, &options.paths, &options.include, &options.exclude)?,
        overwrite: options.overwrite,
        safe: options.safe,
        threads: options.threads,
    })
}

/// A stream to write onto a device.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// The stream.
    pub stream: Name,
    /// A block device, or a file that is there already; at least as long as the stream.
    pub device: PathBuf,
    /// Threads that decode.
    pub threads: usize,
}

/// What was written onto a device.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceOutcome {
    /// Bytes.
    pub bytes: u64,
}

/// Writes a stream onto a device and makes it durable.
pub fn to_device(volume: &Volume, options: &DeviceOptions, monitor: &dyn Monitor) -> Result<DeviceOutcome> {
    let (_, chain) = Chain::find(volume, &options.snapshot)?;
    let number = super::cat::stream_number(&chain, &options.stream)?;
    let len = chain.last().stream_extent(number)?.len;
    let content = chain.locate_stream(number)?;
    let shown = options.device.display();
    let device = open_device(&options.device, len)?;
    monitor.expect(0, len);
    let (mut at, mut hasher) = (0, blake3::Hasher::new());
    content::each_source(chain.runs(), &content.sources, options.threads, monitor, |bytes| {
        hasher.update(bytes);
        device.write_all_at(bytes, at).map_err(|e| Error::io(format!("cannot write {shown} at {at}"), e))?;
        at += bytes.len() as u64;
        monitor.advance(0, bytes.len() as u64, b"");
        Ok(())
    })?;
    device.sync_all().map_err(|e| Error::io(format!("cannot make {shown} durable"), e))?;
    if *hasher.finalize().as_bytes() != content.digest.0 {
        let what = format!("stream {} of snapshot {}: its digest differs", options.stream, chain.shown());
        return Err(Error::integrity(what).with_hint(format!("what {shown} holds now is not what was stored")));
    }
    Ok(DeviceOutcome { bytes: at })
}

/// Opens what is there, never makes it; a block device in use (mounted) is refused.
fn open_device(path: &Path, len: u64) -> Result<std::fs::File> {
    use std::os::unix::fs::FileTypeExt;
    let shown = path.display();
    let failed = |e| Error::io(format!("cannot open {shown}"), e);
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    if !kind.is_block_device() && !kind.is_file() {
        return Err(Error::usage(format!("{shown} is neither a block device nor a file")));
    }
    let flags = if kind.is_block_device() { rustix::fs::OFlags::EXCL } else { rustix::fs::OFlags::empty() };
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let mut file = std::fs::OpenOptions::new().write(true).custom_flags(flags).open(path).map_err(failed)?;
    let size = std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).map_err(failed)?;
    if size < len {
        return Err(Error::new(Kind::NoSpace, format!("{shown} has {size} bytes, the stream has {len}")));
    }
    Ok(file)
}

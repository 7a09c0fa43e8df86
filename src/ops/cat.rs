//! The run book of `bk cat`: find the file or stream, write its bytes in order.

use std::io::Write;

use serde::Serialize;

use crate::{
    engine::read::{chain::Chain, content, export, select},
    error::{Error, Kind, Result},
    model::{
        entry::{EntryKind, Status},
        ids::{Name, SnapshotName},
        show,
    },
    monitor::Monitor,
    volume::Volume,
};

/// What is wanted.
#[derive(Clone, Debug)]
pub enum What {
    /// A file, by its path.
    Path(Vec<u8>),
    /// A named stream.
    Stream(Name),
    /// The stream of a snapshot that has one.
    Only,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// The file or stream.
    pub what: What,
    /// Offset and, unless all the rest is wanted, length; what passes the end is cut off.
    pub range: Option<(u64, Option<u64>)>,
    /// Threads that decode.
    pub threads: usize,
}

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Bytes.
    pub bytes: u64,
    /// Why the file is not what was there, when it is not: exit 3.
    pub incomplete: Option<String>,
}

/// Writes the bytes asked for to `out`.
pub fn run(volume: &Volume, options: &Options, monitor: &dyn Monitor, out: &mut dyn Write) -> Result<Outcome> {
    let (_, chain) = Chain::find(volume, &options.snapshot)?;
    let stream = match &options.what {
        What::Path(path) => return write_file(&chain, &select::find(&chain, path)?, options, monitor, out),
        What::Stream(name) => stream_number(&chain, name)?,
        What::Only if chain.streams().len() == 1 => 1,
        What::Only => return Err(Error::usage("name a PATH or --stream NAME").with_hint(streams_of(&chain))),
    };
    let range = cut(options.range, chain.last().stream_extent(stream)?.len);
    let bytes = export::write_stream(&chain, stream, range, options.threads, monitor, out)?;
    Ok(Outcome { bytes, incomplete: None })
}

fn write_file(
    chain: &Chain,
    path: &[u8],
    options: &Options,
    monitor: &dyn Monitor,
    out: &mut dyn Write,
) -> Result<Outcome> {
    let shown = show::name(path);
    let none = || Error::integrity(format!("`{shown}` is not in the index of snapshot {}", chain.shown()));
    let mut row = chain.lookup(path)?;
    if let Some(link) = row.as_ref().filter(|row| row.entry.kind == EntryKind::HardLink) {
        let first = chain.lookup(&link.entry.link)?;
        if first.as_ref().is_none_or(|first| !link.entry.is_name_of(&first.entry)) {
            let first = show::name(&link.entry.link);
            let what = format!(
                "`{shown}` could not be looked at when the snapshot was taken, and its first name `{first}` is gone or another file"
            );
            return Err(Error::new(Kind::Incomplete, what));
        }
        row = first;
    }
    let row = row.ok_or_else(none)?;
    if row.entry.kind != EntryKind::File {
        let what = format!("`{shown}` is a {} and has no content", super::ls::kind_name(row.entry.kind));
        return Err(Error::usage(what).with_hint(format!("`bk ls {}` shows what is in it", chain.shown())));
    }
    let status = row.entry.status;
    if status.has(Status::UNREADABLE) {
        return Err(Error::new(Kind::Incomplete, format!("`{shown}` could not be read when the snapshot was taken")));
    }
    let (start, end) = cut(options.range, row.entry.size);
    content::write_file(chain, &row, (start, end), options.threads, monitor, out)?;
    Ok(Outcome { bytes: end - start, incomplete: status.is_incomplete().then(|| status.show()) })
}

/// The number of a stream by its name.
pub fn stream_number(chain: &Chain, name: &Name) -> Result<u32> {
    let at = chain.streams().iter().position(|own| own == name);
    let number = at.and_then(|at| u32::try_from(at + 1).ok());
    number.ok_or_else(|| {
        Error::usage(format!("there is no stream {name} in snapshot {}", chain.shown())).with_hint(streams_of(chain))
    })
}

fn streams_of(chain: &Chain) -> String {
    let names: Vec<&str> = chain.streams().iter().map(Name::as_str).collect();
    if names.is_empty() { "it has no streams".to_owned() } else { format!("its streams: {}", names.join(", ")) }
}

fn cut(range: Option<(u64, Option<u64>)>, size: u64) -> (u64, u64) {
    let (offset, len) = range.unwrap_or((0, None));
    let start = offset.min(size);
    (start, len.map_or(size, |len| start.saturating_add(len).min(size)))
}

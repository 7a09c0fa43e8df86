//! `bk ls`, `bk cat`, `bk export`, `bk diff`

use std::{
    ffi::OsStr,
    io::{BufWriter, Write},
    os::unix::ffi::OsStrExt,
};

use super::{Context, Ended};
use crate::{
    config::{
        meaning,
        typed::{CatArgs, DiffArgs, ExportArgs, LsArgs},
    },
    error::{Error, Result},
    model::{
        entry::{Entry, EntryKind},
        show,
        units::show_size,
    },
    ops::{
        cat, diff, export,
        ls::{self, Stream},
    },
};

/// Standard output is written in pieces of this length.
const BUFFER_LEN: usize = 256 << 10;

/// Runs `write` with buffered standard output and flushes it.
fn with_stdout<T>(write: impl FnOnce(&mut dyn Write) -> Result<T>) -> Result<T> {
    let mut out = BufWriter::with_capacity(BUFFER_LEN, std::io::stdout().lock());
    let result = write(&mut out)?;
    out.flush().map_err(|e| Error::io("cannot write to standard output", e))?;
    Ok(result)
}

fn bytes(path: &OsStr) -> Vec<u8> {
    path.as_bytes().to_vec()
}

pub fn ls(context: &Context<'_>, args: &LsArgs) -> Result<Ended> {
    let options = ls::Options {
        snapshot: args.snapshot.parse()?,
        path: args.path.as_deref().map(bytes).unwrap_or_default(),
        recursive: args.recursive,
    };
    let volume = context.volume_of(&options.snapshot.job)?;
    with_stdout(|out| {
        let mut put =
            |text: String| writeln!(out, "{text}").map_err(|e| Error::io("cannot write to standard output", e));
        let outcome = ls::run(&volume, &options, &mut |row| {
            put(if context.out.is_json() {
                context.out.json("entry", row)?
            } else {
                long(&row.entry, options.recursive)
            })
        })?;
        if context.out.is_json() {
            put(context.out.json("result", &outcome)?)?;
        }
        for Stream { name, size } in &outcome.streams {
            let (size, snapshot) = (show_size(*size), &args.snapshot);
            context.out.say(&format!("stream {name}, {size}: `bk cat {snapshot} --stream {name}` gives it"));
        }
        Ok(Ended::Done)
    })
}

/// A line as `ls -l` has it; the whole path when `recursive`.
fn long(entry: &Entry, recursive: bool) -> String {
    let name = if recursive { &entry.path[..] } else { crate::model::path::split(&entry.path).1 };
    let size = match entry.kind {
        EntryKind::CharDevice | EntryKind::BlockDevice => format!("{},{}", entry.rdev.0, entry.rdev.1),
        _ => entry.size.to_string(),
    };
    let mut line = format!(
        "{} {:>5} {:>5} {size:>12} {} {}",
        ls::mode_text(entry),
        entry.uid,
        entry.gid,
        entry.mtime.show(),
        show::name(name)
    );
    match entry.kind {
        EntryKind::Symlink => line += &format!(" -> {}", show::name(&entry.link)),
        EntryKind::HardLink => line += &format!(" link to {}", show::name(&entry.link)),
        _ => {}
    }
    let status = entry.status.show();
    if !status.is_empty() {
        line += &format!("  ({status})");
    }
    line
}

pub fn cat(context: &Context<'_>, args: &CatArgs) -> Result<Ended> {
    let what = match (&args.stream, &args.path) {
        (Some(name), _) => cat::What::Stream(name.parse()?),
        (None, Some(path)) => cat::What::Path(bytes(path)),
        (None, None) => cat::What::Only,
    };
    let options = cat::Options {
        snapshot: args.snapshot.parse()?,
        what,
        range: args.range.as_deref().map(meaning::range).transpose()?,
        threads: meaning::threads(context.global)?,
    };
    let (volume, progress) = (context.volume_of(&options.snapshot.job)?, context.progress("cat"));
    let outcome = with_stdout(|out| cat::run(&volume, &options, &progress, out))?;
    Ok(match outcome.incomplete {
        None => Ended::Done,
        Some(why) => {
            context.out.fault(&format!("warning: this file was not stored as it was: {why}"));
            Ended::Incomplete
        }
    })
}

pub fn export(context: &Context<'_>, args: &ExportArgs) -> Result<Ended> {
    let options = export::Options { snapshot: args.snapshot.parse()?, threads: meaning::threads(context.global)? };
    let (volume, progress) = (context.volume_of(&options.snapshot.job)?, context.progress("export"));
    let outcome = with_stdout(|out| export::run(&volume, &options, &progress, out))?;
    if outcome.incomplete == 0 {
        return Ok(Ended::Done);
    }
    let what =
        format!("warning: {} entries were not stored as they were: see .bk/incomplete in the tar", outcome.incomplete);
    context.out.fault(&what);
    Ok(Ended::Incomplete)
}

pub fn diff(context: &Context<'_>, args: &DiffArgs) -> Result<Ended> {
    let options = diff::Options { older: args.a.parse()?, newer: args.b.parse()? };
    let volume = context.volume_of(&options.newer.job)?;
    with_stdout(|out| {
        let mut put =
            |text: String| writeln!(out, "{text}").map_err(|e| Error::io("cannot write to standard output", e));
        let outcome = diff::run(&volume, &options, &mut |found| {
            if context.out.is_json() {
                return put(context.out.json("difference", found)?);
            }
            let sign = match found.change {
                "added" => '+',
                "removed" => '-',
                _ => 'M',
            };
            let stream = if found.stream { "stream:" } else { "" };
            let what = if found.what.is_empty() { String::new() } else { format!("  ({})", found.what.join(", ")) };
            put(format!("{sign} {stream}{}{what}", found.path))
        })?;
        if context.out.is_json() {
            put(context.out.json("result", &outcome)?)?;
        } else {
            context
                .out
                .say(&format!("{} added, {} removed, {} changed", outcome.added, outcome.removed, outcome.changed));
        }
        Ok(Ended::Done)
    })
}

//! Whether what was read can be what was meant: mounts that must be there, a dump's size and ending. What is not sane is no
//! snapshot: the run ends with an error before its commit.

use std::{collections::BTreeMap, io::Read, path::PathBuf};

use crate::{
    error::{Error, Kind, Result},
    format::record::Totals,
    model::{ids::Name, units::show_size},
    plan::log::JobLog,
    volume::mount,
};

/// The end of a stream that is looked through for a line, bytes: more than the longest epilogue of a dump.
const TAIL_LEN: usize = 4 << 10;

/// What must hold of the sources.
#[derive(Clone, Debug, Default)]
pub struct Guards {
    /// Mount points, when sources are read.
    pub mounts: Vec<PathBuf>,
    /// Fewer files than this are too few.
    pub files_min: Option<u64>,
    /// What must hold of streams.
    pub streams: BTreeMap<Name, Sanity>,
    /// Less free space in the volume is an error before anything is read, bytes.
    pub free_bytes_min: u64,
}

/// What must hold of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sanity {
    /// Shorter is an error, bytes.
    pub len_min: u64,
    /// Shorter than the last one of the same level by more than this is an error, percent.
    pub drop_max: Option<u8>,
    /// A whole line near the end.
    pub end_line: Option<String>,
    /// The last bytes.
    pub end_bytes: Option<String>,
}

impl Guards {
    /// Every mount point is one.
    pub(super) fn check_mounts(&self) -> Result<()> {
        self.mounts.iter().try_for_each(|path| mount::require(path).map_err(|e| e.context("a source is not there")))
    }

    /// There are files enough.
    pub(super) fn check_files(&self, totals: &Totals) -> Result<()> {
        match self.files_min {
            Some(min) if totals.files < min => Err(Error::new(
                Kind::Other,
                format!("there are {} files, and at least {min} are expected: nothing was stored", totals.files),
            )
            .with_hint("is a source not mounted, or left out by a pattern? `min_files` is the limit")),
            _ => Ok(()),
        }
    }
}

/// Reads a stream and remembers its end.
pub(super) struct Tailed<'a> {
    input: &'a mut dyn Read,
    tail: Vec<u8>,
    len: u64,
}

impl<'a> Tailed<'a> {
    pub(super) fn new(input: &'a mut dyn Read) -> Self {
        Self { input, tail: Vec::new(), len: 0 }
    }

    /// Whether all of it is what it must be. `before` is the length of the last one of the same level.
    pub(super) fn check(&self, name: &Name, sanity: &Sanity, before: Option<(u64, String)>) -> Result<()> {
        let refuse =
            |what: String| Err(Error::new(Kind::Other, format!("the stream {name} {what}: nothing was stored")));
        if self.len < sanity.len_min {
            return refuse(format!(
                "has {}, and at least {} are expected",
                show_size(self.len),
                show_size(sanity.len_min)
            ));
        }
        if let (Some(drop), Some((before, snapshot))) = (sanity.drop_max, before) {
            let least = u128::from(before) * u128::from(100 - drop.min(100)) / 100;
            if u128::from(self.len) < least {
                let lost = (before - self.len) * 100 / before.max(1);
                let (now, then) = (show_size(self.len), show_size(before));
                return refuse(format!("has {now}, {lost} % less than the {then} of {snapshot}; {drop} % may be lost"));
            }
        }
        let shown = || crate::model::show::name(&self.tail[self.tail.len().saturating_sub(60)..]);
        if let Some(line) = &sanity.end_line
            && !lines(&self.tail, self.len > self.tail.len() as u64).any(|found| found == line.as_bytes())
        {
            return refuse(format!("does not end with the line `{line}` (it ends with `{}`)", shown()));
        }
        if let Some(bytes) = &sanity.end_bytes
            && !self.tail.ends_with(bytes.as_bytes())
        {
            let bytes = crate::model::show::name(bytes.as_bytes());
            return refuse(format!("does not end with `{bytes}` (it ends with `{}`)", shown()));
        }
        Ok(())
    }
}

/// The lines of a stream's end; the first one is left out when it may be the rest of a longer one.
fn lines(tail: &[u8], is_cut: bool) -> impl Iterator<Item = &[u8]> {
    let lines = tail.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.skip(usize::from(is_cut))
}

impl Read for Tailed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let len = self.input.read(buf)?;
        self.len += len as u64;
        let new = &buf[..len];
        if new.len() >= TAIL_LEN {
            self.tail.clear();
        } else {
            let spare = (self.tail.len() + new.len()).saturating_sub(TAIL_LEN);
            self.tail.drain(..spare);
        }
        self.tail.extend_from_slice(&new[new.len().saturating_sub(TAIL_LEN)..]);
        Ok(len)
    }
}

/// The length of the stream `name` in the newest snapshot of `level`, and that snapshot.
pub(super) fn before(log: &JobLog, level: u8, name: &Name) -> Option<(u64, String)> {
    let last = log.live().rev().find(|one| one.level == level)?;
    let stream = last.streams.iter().find(|stream| stream.name == *name)?;
    Some((stream.content_bytes, format!("{}/{}", last.job, last.seq)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], piece: usize, check: impl FnOnce(&Tailed<'_>) -> Result<()>) -> Result<()> {
        let mut input = bytes;
        let mut tailed = Tailed::new(&mut input);
        let mut buf = vec![0; piece];
        while tailed.read(&mut buf).unwrap() > 0 {}
        check(&tailed)
    }

    #[test]
    fn the_end_of_a_stream() {
        let name: Name = "shop".parse().unwrap();
        let end = "-- PostgreSQL database dump complete";
        let whole = format!("{}--\n{end}\n--\n\n\\unrestrict x\n", "insert\n".repeat(5000));
        let sanity = |line: Option<&str>, bytes: Option<&str>| Sanity {
            end_line: line.map(str::to_owned),
            end_bytes: bytes.map(str::to_owned),
            ..Sanity::default()
        };
        for piece in [1, 7, 4096, 100_000] {
            let check = |text: &str, sanity: &Sanity| read(text.as_bytes(), piece, |t| t.check(&name, sanity, None));
            check(&whole, &sanity(Some(end), Some("unrestrict x\n"))).unwrap();
            assert!(check(&whole[..whole.len() - 40], &sanity(Some(end), None)).is_err());
            assert!(
                check(&whole, &sanity(Some("PostgreSQL database dump complete"), None)).is_err(),
                "a part of a line"
            );
            assert!(check(&whole, &sanity(None, Some("x"))).is_err());
            check("one\n", &sanity(Some("one"), None)).unwrap();
        }
    }

    #[test]
    fn a_size_that_fell() {
        let name: Name = "shop".parse().unwrap();
        let sanity = Sanity { len_min: 10, drop_max: Some(50), ..Sanity::default() };
        let check = |len: usize, before: u64| {
            read(&vec![b'x'; len], 64, |t| t.check(&name, &sanity, Some((before, "db/1".to_owned()))))
        };
        check(50, 100).unwrap();
        check(10, 0).unwrap();
        assert!(check(49, 100).unwrap_err().to_string().contains("51 % less than the 100 B of db/1"));
        assert!(check(9, 0).unwrap_err().to_string().contains("at least 10 B"));
    }
}

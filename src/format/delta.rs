//! A delta as stored: how a file or stream of an increment is put together from its previous version and what follows.
//!
//! A short text that ends in an empty line, then the new bytes. Paths are percent-encoded, numbers decimal, so a few lines of any
//! scripting language apply it (`docs/apply-level.py`).

use std::fmt::Write;

use crate::model::entry::Run;

/// The first line of every delta.
const MAGIC: &str = "bk-delta 1";

/// A run of the new version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// As it was in the old version.
    Copy {
        /// Offset in the new version.
        offset: u64,
        /// Length, bytes.
        len: u64,
        /// Offset in the old version.
        from: u64,
    },
    /// New bytes, which follow the text in this order.
    Data {
        /// Offset in the new version.
        offset: u64,
        /// Length, bytes.
        len: u64,
    },
}

impl Line {
    /// Its length, bytes.
    pub fn content_len(&self) -> u64 {
        match self {
            Self::Copy { len, .. } | Self::Data { len, .. } => *len,
        }
    }

    /// Adds a run that follows `last`: as one line when it can be.
    pub fn push(lines: &mut Vec<Self>, line: Self) {
        match (lines.last_mut(), line) {
            (Some(Self::Copy { offset, len, from }), Self::Copy { offset: next, len: more, from: old })
                if *offset + *len == next && *from + *len == old =>
            {
                *len += more
            }
            (Some(Self::Data { offset, len }), Self::Data { offset: next, len: more }) if *offset + *len == next => {
                *len += more;
            }
            _ => lines.push(line),
        }
    }
}

/// Appends `path` with everything but letters, digits and `/._-` as `%XX`.
fn put_path(out: &mut String, path: &[u8]) {
    for &byte in path {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

/// The text of a delta: the file `path` of `size` bytes, put together by `lines` from the file `old` and what follows the text.
pub fn text(path: &[u8], size: u64, old: &[u8], lines: &[Line]) -> Vec<u8> {
    let mut out = format!("{MAGIC}\npath ");
    put_path(&mut out, path);
    let _ = write!(out, "\nsize {size}\nold ");
    put_path(&mut out, old);
    out.push('\n');
    for line in lines {
        let _ = match line {
            Line::Copy { offset, len, from } => writeln!(out, "copy {offset} {len} {from}"),
            Line::Data { offset, len } => writeln!(out, "data {offset} {len}"),
        };
    }
    out.push('\n');
    out.into_bytes()
}

/// The text that makes `path` a further name of `first`.
pub fn link(path: &[u8], first: &[u8]) -> Vec<u8> {
    let mut out = format!("{MAGIC}\npath ");
    put_path(&mut out, path);
    out.push_str("\nlink ");
    put_path(&mut out, first);
    out.push_str("\n\n");
    out.into_bytes()
}

/// Lines in offsets of content (the data runs of a sparse file joined) as lines in offsets of the files.
pub fn in_files(lines: &[Line], new: Option<&[Run]>, old: Option<&[Run]>) -> Vec<Line> {
    if new.is_none() && old.is_none() {
        return lines.to_vec();
    }
    let mut out = Vec::new();
    for line in lines {
        let (mut offset, mut left) = match line {
            Line::Copy { offset, len, .. } | Line::Data { offset, len } => (*offset, *len),
        };
        let mut from = if let Line::Copy { from, .. } = line { Some(*from) } else { None };
        while left > 0 {
            let (at, room) = place(new, offset);
            let mut len = left.min(room);
            let line = match from {
                None => Line::Data { offset: at, len },
                Some(old_offset) => {
                    let (old_at, old_room) = place(old, old_offset);
                    len = len.min(old_room);
                    from = Some(old_offset + len);
                    Line::Copy { offset: at, len, from: old_at }
                }
            };
            out.push(line);
            (offset, left) = (offset + len, left - len);
        }
    }
    out
}

/// Where byte `at` of the content lies in the file, and how many bytes lie there in one run.
fn place(runs: Option<&[Run]>, at: u64) -> (u64, u64) {
    let mut before = 0;
    for run in runs.unwrap_or_default() {
        if at < before + run.len {
            return (run.offset + (at - before), run.len - (at - before));
        }
        before += run.len;
    }
    (at, u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_delta() {
        let mut lines = Vec::new();
        for line in [
            Line::Copy { offset: 0, len: 4, from: 8 },
            Line::Copy { offset: 4, len: 4, from: 12 },
            Line::Data { offset: 8, len: 3 },
            Line::Copy { offset: 11, len: 1, from: 0 },
        ] {
            Line::push(&mut lines, line);
        }
        let text = text(b"a b/\xffc", 12, b"old", &lines);
        let expected = "bk-delta 1\npath a%20b/%FFc\nsize 12\nold old\ncopy 0 8 8\ndata 8 3\ncopy 11 1 0\n\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        assert_eq!(link(b"x", b"y z"), b"bk-delta 1\npath x\nlink y%20z\n\n");
    }

    #[test]
    fn lines_of_sparse_files() {
        let runs = [Run { offset: 10, len: 4 }, Run { offset: 100, len: 6 }];
        let lines = [Line::Copy { offset: 0, len: 10, from: 0 }];
        let split = in_files(&lines, Some(&runs), None);
        assert_eq!(split, [Line::Copy { offset: 10, len: 4, from: 0 }, Line::Copy { offset: 100, len: 6, from: 4 }]);
        let split = in_files(&lines, None, Some(&runs));
        assert_eq!(split, [Line::Copy { offset: 0, len: 4, from: 10 }, Line::Copy { offset: 4, len: 6, from: 100 }]);
        assert_eq!(in_files(&[Line::Data { offset: 2, len: 4 }], Some(&runs), None).len(), 2);
    }
}

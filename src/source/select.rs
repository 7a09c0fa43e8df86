//! What is left out of a tree: globs, marker files, other file systems.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::error::{Error, Result};

/// The signature a `CACHEDIR.TAG` begins with. Source: Cache Directory Tagging Specification 0.6.
pub const CACHEDIR_SIGNATURE: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";

/// Globs as in a `.gitignore`: without a slash a pattern matches any name; with one at its start, from the root of the
/// snapshot; with one inside, at any depth. A slash at the end matches only directories. `**` passes slashes, `*` does not.
#[derive(Clone, Debug, Default)]
pub struct Globs {
    all: GlobSet,
    dirs: GlobSet,
    has_any: bool,
}

impl Globs {
    /// Compiles patterns.
    pub fn new(patterns: &[String]) -> Result<Self> {
        let (mut all, mut dirs) = (GlobSetBuilder::new(), GlobSetBuilder::new());
        for pattern in patterns {
            let bad = |e: globset::Error| {
                Error::usage(format!("not a pattern: `{pattern}`: {}", e.kind()))
                    .with_hint("`\\` makes the next character plain")
            };
            let (body, only_dirs) = pattern.strip_suffix('/').map_or((pattern.as_str(), false), |body| (body, true));
            let anchored = match body.strip_prefix('/') {
                Some(rest) => rest.to_owned(),
                None => format!("**/{body}"),
            };
            if body.trim_matches('/').is_empty() {
                return Err(Error::usage(format!("not a pattern: `{pattern}`: it is empty")));
            }
            let glob =
                GlobBuilder::new(&anchored).literal_separator(true).backslash_escape(true).build().map_err(bad)?;
            if only_dirs { &mut dirs } else { &mut all }.add(glob);
        }
        let build = |set: GlobSetBuilder| set.build().map_err(|e| Error::usage(format!("too many patterns: {e}")));
        Ok(Self { all: build(all)?, dirs: build(dirs)?, has_any: !patterns.is_empty() })
    }

    /// Whether there is no pattern.
    pub fn is_empty(&self) -> bool {
        !self.has_any
    }

    /// Whether a pattern matches `path` itself (relative to the root of the snapshot).
    pub fn matches(&self, path: &[u8], is_dir: bool) -> bool {
        if !self.has_any {
            return false;
        }
        let path = OsStr::from_bytes(path);
        self.all.is_match(path) || is_dir && self.dirs.is_match(path)
    }

    /// Whether a pattern matches `path` or a directory above it.
    pub fn matches_within(&self, path: &[u8], is_dir: bool) -> bool {
        if !self.has_any {
            return false;
        }
        let above = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &path[..at]);
        self.matches(path, is_dir) || above.into_iter().any(|dir| self.matches(dir, true))
    }
}

/// The patterns of an exclude file: one a line, `#` begins a comment, empty lines are skipped.
pub fn parse_exclude_file(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.trim_end_matches('\r'));
    lines.filter(|line| !line.trim().is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

/// What a walk leaves out.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Entries that are left out, with all below them.
    pub exclude: Globs,
    /// Directories marked by a valid `CACHEDIR.TAG` are stored empty.
    pub exclude_caches: bool,
    /// Directories that hold a file of one of these names are stored empty.
    pub exclude_if_present: Vec<String>,
    /// Directories on another file system than their source are stored empty.
    pub one_file_system: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_as_in_gitignore() {
        let globs = |p: &str| Globs::new(&[p.to_owned()]).unwrap();
        for (pattern, path, is_dir, expected) in [
            ("*.o", "a/b.o", false, true),
            ("*.o", "b.o", false, true),
            ("*.o", "b.o/c", false, false),
            ("/home/*/tmp", "home/x/tmp", true, true),
            ("/home/*/tmp", "home/x/y/tmp", true, false),
            ("/home/**/tmp", "home/x/y/tmp", true, true),
            ("x/tmp", "a/x/tmp", true, true),
            ("cache/", "a/cache", false, false),
            ("cache/", "a/cache", true, true),
            ("[ab]?", "q/bx", false, true),
        ] {
            assert_eq!(globs(pattern).matches(path.as_bytes(), is_dir), expected, "{pattern} {path}");
        }
        assert!(globs("cache/").matches_within(b"a/cache/x/y", false));
        assert!(globs("x*").matches(b"a/x\xff", false));
        assert!(Globs::new(&["[".into()]).is_err());
        assert_eq!(parse_exclude_file("# no\n\n*.o\r\n /x\n"), ["*.o", " /x"]);
    }
}

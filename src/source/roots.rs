//! The sources a user names, as one tree below a base directory.

use std::{
    collections::BTreeMap,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use crate::error::{Error, Result};

/// A node of the tree of sources: either all that is there, or just the names on the way to a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Whether everything below belongs to the snapshot.
    pub whole: bool,
    /// The names on the way, when it is not whole.
    pub children: BTreeMap<Vec<u8>, Node>,
}

/// Sources below a base directory.
#[derive(Clone, Debug)]
pub struct Roots {
    /// The directory paths are relative to, canonical: `/` by default.
    pub base: PathBuf,
    /// The tree of sources.
    pub tree: Node,
    /// The sources as absolute paths, sorted.
    pub shown: Vec<String>,
    /// Block devices among the sources: they are streams, not trees.
    pub devices: Vec<PathBuf>,
    /// What the user should know: sources that are missing or are symbolic links.
    pub warnings: Vec<String>,
    /// Sources that are missing.
    pub missing: Vec<String>,
}

/// Resolves `sources` against `base` (`/` when `None`). Symbolic links in the directories above a source are resolved; a source that is one
/// itself is stored as a link, unless it ends in a slash. A source that is missing is noted; when all are, that is an error.
pub fn resolve(base: Option<&Path>, sources: &[PathBuf]) -> Result<Roots> {
    use std::os::unix::fs::FileTypeExt;
    let bad =
        |path: &Path, e| Error::io(format!("cannot use {}", path.display()), e).with_kind(crate::error::Kind::Usage);
    let canonical = match base {
        Some(base) => base.canonicalize().map_err(|e| bad(base, e))?,
        None => PathBuf::from("/"),
    };
    let mut roots = Roots {
        base: canonical.clone(),
        tree: Node::default(),
        shown: Vec::new(),
        devices: Vec::new(),
        warnings: Vec::new(),
        missing: Vec::new(),
    };
    for source in sources {
        if source.as_os_str().is_empty() {
            return Err(Error::usage("a source is an empty path"));
        }
        let full = if base.is_some() {
            canonical.join(source)
        } else {
            std::path::absolute(source).map_err(|e| bad(source, e))?
        };
        let shown = crate::model::show::name(source.as_os_str().as_bytes());
        let found = match locate(&full, source) {
            Ok(found) => found,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                roots.missing.push(shown);
                continue;
            }
            Err(e) => return Err(bad(source, e)),
        };
        let meta = found.symlink_metadata().map_err(|e| bad(source, e))?;
        if meta.file_type().is_block_device() {
            roots.devices.push(found);
            continue;
        }
        if meta.is_symlink() {
            roots
                .warnings
                .push(format!("{shown} is a symbolic link and is stored as one; `{shown}/` is what it points to"));
        }
        let relative = found.strip_prefix(&canonical).map_err(|_| {
            Error::usage(format!("{shown} is not below {}", canonical.display()))
                .with_hint("-C names the directory all sources lie below")
        })?;
        let mut node = &mut roots.tree;
        for name in relative.components() {
            node = node.children.entry(name.as_os_str().as_bytes().to_vec()).or_default();
        }
        node.whole = true;
        roots.shown.push(crate::model::show::name(found.as_os_str().as_bytes()));
    }
    if !roots.missing.is_empty() && roots.missing.len() == sources.len() {
        return Err(Error::new(crate::error::Kind::Other, format!("no such source: {}", roots.missing.join(", "))));
    }
    roots.shown.sort();
    roots.shown.dedup();
    Ok(roots)
}

/// The canonical path of a source: all but its last component resolved, and that too when it ends in a slash or in dots.
fn locate(full: &Path, typed: &Path) -> std::io::Result<PathBuf> {
    let whole = typed.as_os_str().as_bytes().ends_with(b"/")
        || matches!(
            typed.components().next_back(),
            Some(Component::CurDir | Component::ParentDir | Component::RootDir)
        );
    match (full.parent(), full.file_name()) {
        (Some(parent), Some(name)) if !whole => {
            let found = parent.canonicalize()?.join(name);
            found.symlink_metadata()?;
            Ok(found)
        }
        _ => full.canonicalize(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_become_one_tree() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("a/b")).unwrap();
        std::fs::create_dir_all(base.join("c")).unwrap();
        std::os::unix::fs::symlink("a", base.join("l")).unwrap();
        let names = |sources: &[&str]| {
            let sources: Vec<PathBuf> = sources.iter().map(PathBuf::from).collect();
            resolve(Some(&base), &sources)
        };
        let roots = names(&["a/b", "c", "l/b", "l"]).unwrap();
        assert!(roots.tree.children[&b"a"[..]].children[&b"b"[..]].whole);
        assert!(!roots.tree.children[&b"a"[..]].whole && roots.tree.children[&b"l"[..]].whole);
        assert_eq!(roots.warnings.len(), 1);
        assert!(names(&["."]).unwrap().tree.whole);
        assert!(names(&[".."]).is_err() && names(&["nothing"]).is_err());
        assert_eq!(names(&["nothing", "a"]).unwrap().missing, ["nothing"]);
        assert!(names(&["l/"]).unwrap().tree.children.contains_key(&b"a"[..]));
    }
}

//! The run book of `bk ls`: find the snapshot, open its index, list a range of it.

use serde::{Serialize, Serializer};

use crate::{
    engine::read::{chain::Chain, select},
    error::Result,
    model::{
        entry::{Entry, EntryKind},
        ids::{Name, SnapshotName},
        text::PathText,
    },
    volume::Volume,
};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// A path in it; empty is its root.
    pub path: Vec<u8>,
    /// Everything below, too.
    pub recursive: bool,
}

/// One entry as it is listed. In JSON: its fields beside `path`.
pub struct Row {
    /// The entry.
    pub entry: Entry,
}

#[derive(Serialize)]
struct Fields<'a> {
    #[serde(flatten)]
    path: PathText,
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: String,
    nlink: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<PathText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<(u32, u32)>,
    sparse: bool,
    xattrs: usize,
    #[serde(skip_serializing_if = "str::is_empty")]
    status: &'a str,
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let entry = &self.entry;
        let device = matches!(entry.kind, EntryKind::CharDevice | EntryKind::BlockDevice);
        let fields = Fields {
            path: PathText(entry.path.clone()),
            kind: kind_name(entry.kind),
            mode: format!("{:04o}", entry.mode),
            uid: entry.uid,
            gid: entry.gid,
            size: entry.size,
            mtime: format!("{}.{:09}", entry.mtime.sec, entry.mtime.nsec),
            nlink: entry.nlink,
            link: (!entry.link.is_empty()).then(|| PathText(entry.link.clone())),
            device: device.then_some(entry.rdev),
            sparse: entry.sparse.is_some(),
            xattrs: entry.xattrs.len(),
            status: &entry.status.show(),
        };
        fields.serialize(s)
    }
}

/// The word for a kind.
pub fn kind_name(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::File => "file",
        EntryKind::Dir => "directory",
        EntryKind::Symlink => "symlink",
        EntryKind::HardLink => "hard-link",
        EntryKind::CharDevice => "char-device",
        EntryKind::BlockDevice => "block-device",
        EntryKind::Fifo => "fifo",
        EntryKind::Socket => "socket",
        EntryKind::Removed => "removed",
    }
}

/// `-rwxr-xr-x` as `ls -l` has it.
pub fn mode_text(entry: &Entry) -> String {
    let mut text: Vec<char> = vec![entry.kind.letter()];
    for shift in [6, 3, 0] {
        for (bit, letter) in [(4, 'r'), (2, 'w'), (1, 'x')] {
            text.push(if entry.mode >> shift & bit != 0 { letter } else { '-' });
        }
    }
    for (bit, at, low, high) in [(0o4000, 3, 's', 'S'), (0o2000, 6, 's', 'S'), (0o1000, 9, 't', 'T')] {
        if entry.mode & bit != 0 {
            text[at] = if text[at] == 'x' { low } else { high };
        }
    }
    text.into_iter().collect()
}

/// What was listed.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Entries told.
    pub entries: u64,
    /// The streams beside the tree, when all of the snapshot was asked for.
    pub streams: Vec<Stream>,
}

/// A stream of a snapshot.
#[derive(Clone, Debug, Serialize)]
pub struct Stream {
    /// Its name.
    pub name: Name,
    /// Length, bytes.
    pub size: u64,
}

/// Tells `found` each entry in order.
pub fn run(volume: &Volume, options: &Options, found: &mut dyn FnMut(&Row) -> Result<()>) -> Result<Outcome> {
    let (snapshot, chain) = Chain::find(volume, &options.snapshot)?;
    let path = select::find(&chain, &options.path)?;
    let mut entries = 0;
    let mut tell = |row: Result<crate::engine::read::index::Row>| {
        entries += 1;
        found(&Row { entry: row?.entry })
    };
    match chain.lookup(&path)? {
        Some(row) if !row.entry.is_dir() => tell(Ok(row))?,
        _ if options.recursive => chain.subtree(&path).try_for_each(tell)?,
        _ => chain.list(&path).try_for_each(tell)?,
    }
    let streams = match path.is_empty() {
        true => snapshot.streams.into_iter().map(|one| Stream { name: one.name, size: one.content_bytes }).collect(),
        false => Vec::new(),
    };
    Ok(Outcome { entries, streams })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_as_ls_shows_them() {
        let mut entry = Entry::new(b"x".to_vec(), EntryKind::File);
        for (mode, text) in
            [(0o644, "-rw-r--r--"), (0o4755, "-rwsr-xr-x"), (0o2644, "-rw-r-Sr--"), (0o1777, "-rwxrwxrwt")]
        {
            entry.mode = mode;
            assert_eq!(mode_text(&entry), text);
        }
    }
}

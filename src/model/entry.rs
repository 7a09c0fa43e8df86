//! One entry of a tree: everything tar, the index and a restore know about a path.

use super::{digest::Digest, time::Time};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// A regular file.
    File = 0,
    /// A directory.
    Dir = 1,
    /// A symbolic link; `link` is its target.
    Symlink = 2,
    /// A further name of a file: `link` is the path of the first one, which holds data and metadata.
    HardLink = 3,
    /// A character device.
    CharDevice = 4,
    /// A block device.
    BlockDevice = 5,
    /// A FIFO.
    Fifo = 6,
    /// A socket; only in the index, tar has no word for it.
    Socket = 7,
    /// Only in the index of an increment: what the base had at this path is gone, with all below it.
    Removed = 8,
}

impl EntryKind {
    /// The kind with this number in the index.
    pub fn from_u8(n: u8) -> Option<Self> {
        use EntryKind::*;
        [File, Dir, Symlink, HardLink, CharDevice, BlockDevice, Fifo, Socket, Removed].get(usize::from(n)).copied()
    }

    /// The letter of `ls -l` (`h` for a hard link).
    pub fn letter(self) -> char {
        ['-', 'd', 'l', 'h', 'c', 'b', 'p', 's', '!'][self as usize]
    }
}

/// How well an entry was saved; bits, because several can hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status(pub u8);

impl Status {
    /// The file grew while it was read: what was there at its start is stored. A warning.
    pub const GREW: Status = Status(1);
    /// The file shrank or was rewritten while it was read: what is stored is a mixture.
    pub const CHANGED: Status = Status(2);
    /// Some of the file could not be read: see `damaged`.
    pub const IO_ERROR: Status = Status(4);
    /// Nothing could be read (no permission, I/O error): the entry has no data in the archive.
    pub const UNREADABLE: Status = Status(8);
    /// Extended attributes are not all saved in the tar (too large, or not readable).
    pub const XATTRS: Status = Status(16);

    /// Whether `other`'s bits are all set.
    pub fn has(self, other: Status) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub fn with(self, other: Status) -> Self {
        Status(self.0 | other.0)
    }

    /// Whether the entry is not what was there: the run ends with exit 3.
    pub fn is_incomplete(self) -> bool {
        self.0 & !Self::GREW.0 != 0
    }

    /// Shown names of the set bits.
    pub fn show(self) -> String {
        let names = [
            (Self::GREW, "grew"),
            (Self::CHANGED, "changed"),
            (Self::IO_ERROR, "io-error"),
            (Self::UNREADABLE, "unreadable"),
            (Self::XATTRS, "xattrs"),
        ];
        let set: Vec<_> = names.iter().filter(|(bit, _)| self.has(*bit)).map(|(_, n)| *n).collect();
        set.join(",")
    }
}

/// A run of bytes in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it begins, bytes.
    pub offset: u64,
    /// How long it is, bytes.
    pub len: u64,
}

impl Run {
    /// The first byte after it.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// A run of content somewhere in a chain of snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The `seq` of the snapshot that stores it; 0 is the one that holds the row.
    pub seq: u64,
    /// 0 is the tree, 1… the named streams of that snapshot.
    pub stream: u32,
    /// Offset in the plain stream.
    pub offset: u64,
    /// Length, bytes; never 0.
    pub len: u64,
}

/// Where the content of an entry of an increment lies when it is not one run of the snapshot's own tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// BLAKE3 of the content (of a sparse file: of its data runs joined).
    pub digest: Digest,
    /// Its first row in the index's section of places.
    pub first: u64,
    /// How many rows; together they are `stored_len` long.
    pub count: u64,
    /// The rows themselves on their way to the index; empty when it was read from one.
    pub places: Vec<Place>,
}

/// An extended attribute: name (`user.x`, `system.posix_acl_access`, …) and raw value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative path, see [`super::path`]; `""` is the root.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky: `mode & 0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Change time of the inode, to see later what changed.
    pub ctime: Time,
    /// Inode number.
    pub ino: u64,
    /// File system id (`f_fsid`), the same on another node and after a reboot where the file system has one.
    pub fsid: u64,
    /// Link count as it was.
    pub nlink: u32,
    /// Device numbers (major, minor) of a device.
    pub rdev: (u32, u32),
    /// Logical length of a file, bytes: what `stat` shows after a restore.
    pub size: u64,
    /// Target of a symbolic link; path of the first name for a hard link.
    pub link: Vec<u8>,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<Xattr>,
    /// The runs that hold data, ascending and apart, when the file is sparse.
    pub sparse: Option<Vec<Run>>,
    /// How well it was saved.
    pub status: Status,
    /// Runs of the file that could not be read; zeros stand there in the tar.
    pub damaged: Vec<Run>,
    /// Bytes of this file in the tar stream (without a sparse map): 0 when it has no extent.
    pub stored_len: u64,
    /// Where its content lies, when that is not a run of its own in this snapshot's tree.
    pub map: Option<Box<Map>>,
}

impl Entry {
    /// An entry of `kind` at `path` with nothing else known.
    pub fn new(path: impl Into<Vec<u8>>, kind: EntryKind) -> Self {
        Self {
            path: path.into(),
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            ctime: Time::default(),
            ino: 0,
            fsid: 0,
            nlink: 1,
            rdev: (0, 0),
            size: 0,
            link: Vec::new(),
            xattrs: Vec::new(),
            sparse: None,
            status: Status::default(),
            damaged: Vec::new(),
            stored_len: 0,
            map: None,
        }
    }

    /// Whether its content is a run of its own in its snapshot's tree: a row of the section of extents.
    pub fn owns_extent(&self) -> bool {
        self.stored_len > 0 && self.map.is_none()
    }

    /// Whether this row of a further name is of the same file as the row of its first one. An increment that could not look at
    /// this name keeps it as it was, and the first one may have become another file since.
    pub fn is_name_of(&self, first: &Self) -> bool {
        let seen = |entry: &Self| (entry.mtime, entry.mode, entry.uid, entry.gid);
        (self.fsid, self.ino) == (first.fsid, first.ino) || seen(self) == seen(first)
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == EntryKind::Dir
    }

    /// The runs of the file that hold data: its sparse map, or all of it.
    pub fn data_runs(&self) -> Vec<Run> {
        match &self.sparse {
            Some(runs) => runs.clone(),
            None if self.stored_len == 0 => Vec::new(),
            None => vec![Run { offset: 0, len: self.stored_len }],
        }
    }
}

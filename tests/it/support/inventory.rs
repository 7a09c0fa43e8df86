//! What a tree is, as a value: every path with all that a backup must bring back, and a readable difference of two.
//!
//! Walks by directory descriptors (paths of 4,095 bytes, names of any bytes), never follows a link, and does not touch
//! access times that anything compares. Extended attributes go by `/proc/self/fd/N/name`, which has no length trouble.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};

/// All that one path has.
#[derive(Clone, Debug)]
pub struct Record {
    pub kind: FileType,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_ns: i128,
    pub size: u64,
    pub rdev: u64,
    pub target: Option<Vec<u8>>,
    /// The first path of its hard-link group, when the group has more than one path in this tree.
    pub group: Option<Vec<u8>>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub content: Option<String>,
    pub sparse: bool,
}

pub type Inventory = BTreeMap<Vec<u8>, Record>;

/// Everything below `root`; `root` itself is not in it.
pub fn inventory(root: &Path) -> Inventory {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, root, flags, Mode::empty()).unwrap_or_else(|e| panic!("{root:?}: {e}"));
    let mut found = Inventory::new();
    let mut groups: BTreeMap<(u64, u64), Vec<Vec<u8>>> = BTreeMap::new();
    let mut todo: Vec<(Rc<OwnedFd>, Vec<u8>)> = vec![(Rc::new(top), Vec::new())];
    while let Some((dir, prefix)) = todo.pop() {
        for name in names(&dir) {
            let mut path = prefix.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let stat = rustix::fs::statat(&*dir, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW).unwrap();
            let record = look(&dir, &name, &stat);
            if record.kind == FileType::Directory {
                let flags = flags | OFlags::NOFOLLOW;
                let fd = rustix::fs::openat(&*dir, name.as_slice(), flags, Mode::empty()).unwrap();
                todo.push((Rc::new(fd), path.clone()));
            } else if stat.st_nlink > 1 {
                groups.entry((stat.st_dev, stat.st_ino)).or_default().push(path.clone());
            }
            found.insert(path, record);
        }
    }
    for group in groups.values_mut().filter(|g| g.len() > 1) {
        group.sort();
        for path in group.iter() {
            found.get_mut(path).unwrap().group = Some(group[0].clone());
        }
    }
    found
}

fn names(dir: &OwnedFd) -> Vec<Vec<u8>> {
    let entries = Dir::read_from(dir).unwrap();
    let names = entries.map(|e| e.unwrap().file_name().to_bytes().to_vec());
    names.filter(|n| n != b"." && n != b"..").collect()
}

fn look(dir: &OwnedFd, name: &[u8], stat: &Stat) -> Record {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let (mut target, mut content) = (None, None);
    if kind == FileType::Symlink {
        target = Some(rustix::fs::readlinkat(dir, name, Vec::new()).unwrap().into_bytes());
    }
    if kind == FileType::RegularFile {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).unwrap();
        content = Some(digest(File::from(fd)));
    }
    Record {
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_ns: i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec),
        size: if kind == FileType::RegularFile { stat.st_size as u64 } else { 0 },
        rdev: if matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) { stat.st_rdev } else { 0 },
        target,
        group: None,
        xattrs: xattrs(dir, name),
        content,
        sparse: kind == FileType::RegularFile && (stat.st_blocks as u64) * 512 < (stat.st_size as u64) / 4096 * 4096,
    }
}

fn digest(mut file: File) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => return hasher.finalize().to_hex()[..16].to_owned(),
            n => hasher.update(&buffer[..n]),
        };
    }
}

fn xattrs(dir: &OwnedFd, name: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    let mut buffer = vec![0; 1 << 16];
    let Ok(len) = rustix::fs::llistxattr(path.as_slice(), &mut buffer[..]) else { return BTreeMap::new() };
    let keys: Vec<Vec<u8>> = buffer[..len].split(|b| *b == 0).filter(|k| !k.is_empty()).map(<[u8]>::to_vec).collect();
    keys.into_iter()
        .map(|key| {
            let len = rustix::fs::lgetxattr(path.as_slice(), key.as_slice(), &mut buffer[..]).unwrap();
            (key, buffer[..len].to_vec())
        })
        .collect()
}

/// What counts as equal.
#[derive(Clone, Copy, Debug)]
pub struct Compare {
    pub owner: bool,
    /// Instants count when they differ by more than this.
    pub mtime_slack_ns: i128,
    pub mtime: bool,
    pub link_mtime: bool,
    pub xattrs: bool,
    pub sparse: bool,
    pub groups: bool,
}

impl Compare {
    /// What bk itself must give.
    pub const EXACT: Self = Self {
        owner: true,
        mtime_slack_ns: 0,
        mtime: true,
        link_mtime: true,
        xattrs: true,
        sparse: true,
        groups: true,
    };
}

fn fields(record: &Record, how: &Compare) -> Vec<(&'static str, String)> {
    let escape = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let mut all = vec![
        ("kind", format!("{:?}", record.kind)),
        ("size", record.size.to_string()),
        ("content", format!("{:?}", record.content)),
        ("rdev", format!("{:x}", record.rdev)),
        ("target", record.target.as_deref().map(escape).unwrap_or_default()),
    ];
    if record.kind != FileType::Symlink {
        all.push(("mode", format!("{:04o}", record.mode)));
    }
    if how.owner {
        all.push(("owner", format!("{}:{}", record.uid, record.gid)));
    }
    if how.groups {
        all.push(("hard link to", record.group.as_deref().map(escape).unwrap_or_default()));
    }
    if how.sparse {
        all.push(("sparse", record.sparse.to_string()));
    }
    if how.xattrs {
        for (key, value) in &record.xattrs {
            all.push(("xattr", format!("{}={}", escape(key), escape(value))));
        }
    }
    all
}

/// The differences of two trees, one a line; empty when there are none.
pub fn differences(expected: &Inventory, found: &Inventory, how: &Compare) -> String {
    let mut out = String::new();
    for (path, want) in expected {
        let shown = path.escape_ascii();
        let Some(have) = found.get(path) else {
            let _ = writeln!(out, "{shown}: missing ({:?})", want.kind);
            continue;
        };
        let (a, b) = (fields(want, how), fields(have, how));
        for field in a.iter().filter(|f| !b.contains(f)) {
            let _ = writeln!(out, "{shown}: {} expected {}", field.0, field.1);
        }
        for field in b.iter().filter(|f| !a.contains(f)) {
            let _ = writeln!(out, "{shown}: {} found    {}", field.0, field.1);
        }
        let timed = how.mtime && (how.link_mtime || want.kind != FileType::Symlink);
        if timed && (want.mtime_ns - have.mtime_ns).abs() > how.mtime_slack_ns {
            let _ = writeln!(out, "{shown}: mtime expected {} found {}", want.mtime_ns, have.mtime_ns);
        }
    }
    for (path, have) in found.iter().filter(|(p, _)| !expected.contains_key(*p)) {
        let _ = writeln!(out, "{}: not expected ({:?})", path.escape_ascii(), have.kind);
    }
    out
}

#[track_caller]
pub fn assert_same(expected: &Inventory, found: &Inventory, how: &Compare, about: &str) {
    let found = differences(expected, found, how);
    let count = found.lines().count();
    let head: Vec<&str> = found.lines().take(40).map(|l| &l[..l.floor_char_boundary(400)]).collect();
    assert!(count == 0, "{about}: {count} differences\n{}", head.join("\n"));
}

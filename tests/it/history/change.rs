//! Changes of a small tree, each drawn from a seed against what is there, so that a history with steps left out still makes sense.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, XattrFlags};

use crate::support::is_root;
use crate::support::rng::Rng;
use crate::support::tree::{chmod, touch};

/// What is done to the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Write,
    Patch,
    Insert,
    Cut,
    Resize,
    Append,
    Sparse,
    Punch,
    Directory,
    Symlink,
    Special,
    Link,
    Rename,
    RenameDirectory,
    Rotate,
    Swap,
    Remove,
    RemoveDirectory,
    OtherType,
    /// By another file of the same content and times, as `cp -a` makes it.
    ReplaceByCopy,
    /// By another file of the same length and times, but not the same content.
    ReplaceUnseen,
    /// In place; length and times are as they were.
    PatchUnseen,
    /// In place; length and times are as they were; then it gets another name.
    PatchUnseenAndRename,
    /// Another file of the same length and times takes the name, this one gets another.
    RenameAndReplaceUnseen,
    Mode,
    Owner,
    Attribute,
    Time,
    DirectoryMetadata,
}

/// The changes and how often each comes.
pub const CHANGES: [(u64, Change); 29] = [
    (8, Change::Write),
    (6, Change::Patch),
    (3, Change::Insert),
    (2, Change::Cut),
    (2, Change::Resize),
    (3, Change::Append),
    (3, Change::Sparse),
    (1, Change::Punch),
    (4, Change::Directory),
    (2, Change::Symlink),
    (2, Change::Special),
    (6, Change::Link),
    (5, Change::Rename),
    (4, Change::RenameDirectory),
    (2, Change::Rotate),
    (2, Change::Swap),
    (4, Change::Remove),
    (2, Change::RemoveDirectory),
    (4, Change::OtherType),
    (3, Change::ReplaceByCopy),
    (3, Change::ReplaceUnseen),
    (3, Change::PatchUnseen),
    (2, Change::PatchUnseenAndRename),
    (2, Change::RenameAndReplaceUnseen),
    (3, Change::Mode),
    (2, Change::Owner),
    (3, Change::Attribute),
    (3, Change::Time),
    (3, Change::DirectoryMetadata),
];

const NAMES: [&str; 11] = ["a", "a b", "a.b", "b", "c", "log", "log.1", "log.2", "x.skip", "zz", "\u{e9}"];
/// More entries than this are not made.
const ENTRY_COUNT_MAX: usize = 30;
/// More bytes than this are not made.
const TREE_LEN_MAX: u64 = 1 << 20;

/// A tree and what may still be done to it.
pub struct Tree {
    root: PathBuf,
    /// Paths below the root, directories before what is in them.
    all: Vec<(PathBuf, fs::Metadata)>,
}

impl Tree {
    pub fn look(root: &Path) -> Self {
        let mut all = Vec::new();
        let mut todo = vec![root.to_owned()];
        while let Some(dir) = todo.pop() {
            for path in crate::support::sorted(&dir) {
                let meta = path.symlink_metadata().unwrap();
                if meta.is_dir() {
                    todo.push(path.clone());
                }
                all.push((path, meta));
            }
        }
        Self { root: root.to_owned(), all }
    }

    fn pick(&self, rng: &mut Rng, wanted: impl Fn(&fs::Metadata) -> bool) -> Option<PathBuf> {
        let fit: Vec<&PathBuf> = self.all.iter().filter(|(_, meta)| wanted(meta)).map(|(path, _)| path).collect();
        (!fit.is_empty()).then(|| fit[rng.below(fit.len() as u64) as usize].clone())
    }

    fn file(&self, rng: &mut Rng) -> Option<PathBuf> {
        // Long ones are few: they are asked for on purpose.
        let long = rng.below(3) == 0;
        let found = if long { self.pick(rng, |meta| meta.is_file() && meta.len() > 4096) } else { None };
        found.or_else(|| self.pick(rng, fs::Metadata::is_file))
    }

    fn any(&self, rng: &mut Rng) -> Option<PathBuf> {
        self.pick(rng, |_| true)
    }

    fn dir(&self, rng: &mut Rng) -> PathBuf {
        let found = if rng.below(3) == 0 { None } else { self.pick(rng, fs::Metadata::is_dir) };
        found.unwrap_or_else(|| self.root.clone())
    }

    fn place(&self, rng: &mut Rng) -> PathBuf {
        self.dir(rng).join(NAMES[rng.below(NAMES.len() as u64) as usize])
    }

    fn is_full(&self) -> bool {
        let len: u64 = self.all.iter().map(|(_, meta)| if meta.is_file() { meta.len() } else { 0 }).sum();
        self.all.len() >= ENTRY_COUNT_MAX || len > TREE_LEN_MAX
    }
}

/// A length around what frames, chunks and blocks are, seldom long.
pub fn length(rng: &mut Rng) -> usize {
    const BORDERS: [usize; 16] =
        [0, 1, 63, 64, 65, 511, 512, 513, 1024, 3583, 3584, 3585, 4096, 16_384, 65_536, 131_072];
    match rng.below(20) {
        0..=5 => BORDERS[rng.below(BORDERS.len() as u64) as usize] + rng.below(2) as usize,
        6..=10 => rng.below(600) as usize,
        11..=14 => rng.below(6000) as usize,
        15..=18 => rng.below(40_000) as usize,
        _ => rng.below(300_000) as usize,
    }
}

/// Removes what is there, whatever it is.
pub fn clear(path: &Path) {
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// The path free to be made anew; never a directory above or the same as `but`.
fn cleared(path: &Path, but: &Path) -> bool {
    let fine = !but.starts_with(path) && !path.starts_with(but);
    if fine {
        clear(path);
    }
    fine
}

fn stamp(path: &Path, rng: &mut Rng) {
    touch(path, rng.below(1_700_000_000) as i64, rng.below(1_000_000_000) as i64);
}

fn stamp_as(path: &Path, meta: &fs::Metadata) {
    touch(path, meta.mtime(), meta.mtime_nsec());
}

fn special(path: &Path, rng: &mut Rng) {
    let kinds = [FileType::Fifo, FileType::Socket, FileType::CharacterDevice];
    let kind = kinds[rng.below(if is_root() { 3 } else { 2 }) as usize];
    let dev = if kind == FileType::CharacterDevice { rustix::fs::makedev(1, 3 + rng.below(4) as u32) } else { 0 };
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), dev).unwrap();
}

fn patch(path: &Path, len: u64, rng: &mut Rng) {
    if len == 0 {
        return;
    }
    let at = rng.below(len);
    let count = (1 + rng.below(600)).min(len - at);
    // Another byte for sure.
    let mut bytes = vec![0; count as usize];
    let file = File::options().read(true).write(true).open(path).unwrap();
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1 + (rng.next() & 0x7f) as u8));
    file.write_all_at(&bytes, at).unwrap();
}

fn sparse(path: &Path, rng: &mut Rng) {
    let file = File::create(path).unwrap();
    let len = 4096 * (1 + rng.below(40)) + rng.below(2) * rng.below(4096);
    file.set_len(len).unwrap();
    for _ in 0..rng.below(4) {
        let at = rng.below(len);
        let count = rng.below(20_000).min(len - at);
        file.write_all_at(&rng.content(count as usize), at).unwrap();
    }
}

fn splice(path: &Path, at: usize, remove: usize, insert: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    let at = at.min(bytes.len());
    let end = (at + remove).min(bytes.len());
    bytes.splice(at..end, insert.iter().copied());
    fs::write(path, bytes).unwrap();
}

fn beside(path: &Path, more: &str) -> PathBuf {
    let mut name: OsString = path.into();
    name.push(more);
    name.into()
}

/// Makes the change, if there is what it needs; gives what was done.
pub fn apply(change: Change, root: &Path, rng: &mut Rng) -> Option<String> {
    let tree = Tree::look(root);
    let short = |path: &Path| path.strip_prefix(root).unwrap_or(path).display().to_string();
    let grows = matches!(
        change,
        Change::Write
            | Change::Insert
            | Change::Append
            | Change::Sparse
            | Change::Directory
            | Change::Symlink
            | Change::Special
            | Change::Link
    );
    let change = if grows && tree.is_full() { Change::Remove } else { change };
    let path = match change {
        Change::Write | Change::Directory | Change::Symlink | Change::Special => tree.place(rng),
        Change::Sparse if rng.below(2) == 0 => tree.place(rng),
        Change::RenameDirectory | Change::RemoveDirectory => tree.pick(rng, fs::Metadata::is_dir)?,
        Change::DirectoryMetadata => tree.dir(rng),
        Change::Rename | Change::Remove | Change::OtherType | Change::Mode | Change::Owner | Change::Time => {
            tree.any(rng)?
        }
        Change::Attribute => tree.pick(rng, |meta| meta.is_file() || meta.is_dir())?,
        Change::Link if rng.below(3) == 0 => tree.pick(rng, |meta| meta.nlink() > 1 && !meta.is_dir())?,
        Change::Link => tree.pick(rng, |meta| !meta.is_dir() && !meta.file_type().is_socket_like())?,
        _ => tree.file(rng)?,
    };
    let meta = path.symlink_metadata().ok();
    let len = meta.as_ref().map_or(0, fs::Metadata::len);
    let mut to = None;
    match change {
        Change::Write => {
            let is_dir = meta.is_some_and(|meta| !meta.is_file());
            if is_dir {
                clear(&path);
            }
            let bytes = length(rng);
            fs::write(&path, rng.content(bytes)).unwrap();
        }
        Change::Patch => patch(&path, len, rng),
        Change::Insert => {
            let bytes = 1 + rng.below(3000) as usize;
            splice(&path, rng.below(len + 1) as usize, 0, &rng.content(bytes));
        }
        Change::Cut => splice(&path, rng.below(len + 1) as usize, 1 + rng.below(3000) as usize, b""),
        Change::Resize => {
            let new = if rng.below(2) == 0 { rng.below(len + 1) } else { length(rng) as u64 };
            File::options().write(true).open(&path).unwrap().set_len(new).unwrap();
        }
        Change::Append => {
            let bytes = 1 + rng.below(5000) as usize;
            splice(&path, usize::MAX, 0, &rng.content(bytes));
        }
        Change::Sparse => {
            clear(&path);
            sparse(&path, rng);
        }
        Change::Punch => {
            let file = File::options().write(true).open(&path).unwrap();
            let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            let from = rng.below(len + 1);
            let _ = rustix::fs::fallocate(&file, flags, from, 1 + rng.below(20_000));
        }
        Change::Directory => {
            if meta.is_none() {
                fs::create_dir(&path).unwrap();
                if rng.below(2) == 0 {
                    fs::write(path.join("a"), rng.content(700)).unwrap();
                }
            }
        }
        Change::Symlink => {
            clear(&path);
            let target = ["a", "log.1", "../b", "no/such"][rng.below(4) as usize];
            symlink(target, &path).unwrap();
        }
        Change::Special => {
            clear(&path);
            special(&path, rng);
        }
        Change::Link => {
            let new = tree.place(rng);
            if cleared(&new, &path) {
                fs::hard_link(&path, &new).unwrap();
            }
            to = Some(new);
        }
        Change::Rename | Change::RenameDirectory => {
            let new = tree.place(rng);
            if cleared(&new, &path) {
                fs::rename(&path, &new).unwrap();
            }
            to = Some(new);
        }
        Change::Rotate => {
            let dir = path.parent()?;
            for (from, to) in [("log.1", "log.2"), ("log", "log.1")] {
                if dir.join(from).symlink_metadata().is_ok() {
                    clear(&dir.join(to));
                    fs::rename(dir.join(from), dir.join(to)).unwrap();
                }
            }
            clear(&dir.join("log"));
            fs::write(dir.join("log"), rng.content(1000)).unwrap();
        }
        Change::Swap => {
            let other = tree.file(rng)?;
            if other != path {
                let middle = beside(&path, ".swap");
                fs::rename(&path, &middle).unwrap();
                fs::rename(&other, &path).unwrap();
                fs::rename(&middle, &other).unwrap();
            }
            to = Some(other);
        }
        Change::Remove | Change::RemoveDirectory => clear(&path),
        Change::OtherType => {
            clear(&path);
            match rng.below(5) {
                0 => symlink("a", &path).unwrap(),
                1 => special(&path, rng),
                2 => fs::write(&path, rng.content(2000)).unwrap(),
                3 => sparse(&path, rng),
                _ => {
                    fs::create_dir(&path).unwrap();
                    let bytes = length(rng);
                    fs::write(path.join("b"), rng.content(bytes)).unwrap();
                }
            }
        }
        Change::ReplaceByCopy | Change::ReplaceUnseen | Change::RenameAndReplaceUnseen => {
            let meta = meta?;
            let mut bytes = fs::read(&path).unwrap();
            if change != Change::ReplaceByCopy && !bytes.is_empty() {
                let at = rng.below(len) as usize;
                bytes[at] ^= 0x55;
            }
            let new = beside(&path, ".new");
            fs::write(&new, bytes).unwrap();
            chmod(&new, meta.mode() & 0o7777);
            if is_root() {
                std::os::unix::fs::lchown(&new, Some(meta.uid()), Some(meta.gid())).unwrap();
                chmod(&new, meta.mode() & 0o7777);
            }
            stamp_as(&new, &meta);
            if change == Change::RenameAndReplaceUnseen {
                let other = tree.place(rng);
                if other != path && cleared(&other, &path) {
                    fs::rename(&path, &other).unwrap();
                }
                to = Some(other);
            }
            fs::rename(&new, &path).unwrap();
        }
        Change::PatchUnseen | Change::PatchUnseenAndRename => {
            patch(&path, len, rng);
            stamp_as(&path, &meta?);
            if change == Change::PatchUnseenAndRename {
                let new = tree.place(rng);
                if cleared(&new, &path) {
                    fs::rename(&path, &new).unwrap();
                }
                to = Some(new);
            }
        }
        Change::Mode => {
            if !meta?.is_symlink() {
                chmod(&path, [0o600, 0o644, 0o755, 0o4711, 0o1777, 0o700][rng.below(6) as usize]);
            }
        }
        Change::Owner => {
            if is_root() {
                let (uid, gid) = (rng.below(3) as u32 * 1000, rng.below(70_000) as u32);
                std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).unwrap();
            }
        }
        Change::Attribute => {
            let key = ["user.a", "user.bb"][rng.below(2) as usize];
            if rng.below(3) == 0 {
                let _ = rustix::fs::lremovexattr(&path, key);
            } else {
                let bytes = rng.below(60) as usize;
                // Not every file system has them.
                let _ = rustix::fs::lsetxattr(&path, key, &rng.prose(bytes), XattrFlags::empty());
            }
        }
        Change::Time => stamp(&path, rng),
        Change::DirectoryMetadata => match rng.below(3) {
            0 => stamp(&path, rng),
            1 => chmod(&path, [0o700, 0o755, 0o1777, 0o2775][rng.below(4) as usize]),
            _ => {
                let bytes = rng.below(60) as usize;
                let _ = rustix::fs::lsetxattr(&path, "user.d", &rng.prose(bytes), XattrFlags::empty());
            }
        },
    }
    let to = to.map_or_else(String::new, |to| format!(" → {}", short(&to)));
    Some(format!("{change:?} {:?}{to} (was {len} bytes)", short(&path)))
}

/// Empties `dir` and makes a small tree in it.
pub fn plant(dir: &Path, rng: &mut Rng) {
    for change in [Change::Directory, Change::Directory, Change::Write, Change::Write, Change::Write, Change::Link] {
        apply(change, dir, rng);
    }
    let _ = rustix::fs::utimensat(
        CWD,
        dir,
        &rustix::fs::Timestamps {
            last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 },
            last_modification: rustix::fs::Timespec { tv_sec: 1_000_000, tv_nsec: 1 },
        },
        AtFlags::empty(),
    );
}

trait SocketLike {
    fn is_socket_like(&self) -> bool;
}

impl SocketLike for fs::FileType {
    /// Links of sockets cannot be stored.
    fn is_socket_like(&self) -> bool {
        std::os::unix::fs::FileTypeExt::is_socket(self)
    }
}

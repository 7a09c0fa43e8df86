//! Changes to a tree, from a seed: what happens to files between two snapshots.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use super::rng::Rng;
use super::tree::{chmod, touch};

/// Makes `count` random changes below `root`.
pub fn change(rng: &mut Rng, root: &Path, count: u64) {
    let mut change = Change { rng, root };
    for _ in 0..count {
        change.one();
    }
}

struct Change<'a> {
    rng: &'a mut Rng,
    root: &'a Path,
}

impl Change<'_> {
    /// A path below the root for which `wanted` holds, if there is one.
    fn any(&mut self, wanted: impl Fn(&fs::Metadata) -> bool) -> Option<PathBuf> {
        let mut found = Vec::new();
        let mut todo = vec![self.root.to_owned()];
        while let Some(dir) = todo.pop() {
            for path in super::sorted(&dir) {
                let meta = path.symlink_metadata().unwrap();
                if meta.is_dir() {
                    todo.push(path.clone());
                }
                if wanted(&meta) {
                    found.push(path);
                }
            }
        }
        let n = self.rng.below(found.len() as u64) as usize;
        found.into_iter().nth(n)
    }

    fn file(&mut self) -> Option<PathBuf> {
        // Names of one inode, and long files, are rare and have their own ways to go wrong.
        let found = match self.rng.below(4) {
            0 => self.any(|m| m.is_file() && m.nlink() > 1),
            1 => self.any(|m| m.is_file() && m.len() > 20_000),
            _ => None,
        };
        found.or_else(|| self.any(fs::Metadata::is_file))
    }

    fn dir(&mut self) -> Option<PathBuf> {
        self.any(fs::Metadata::is_dir)
    }

    /// A name that does not exist, in any directory.
    fn free(&mut self) -> PathBuf {
        let dir = self.dir().filter(|_| self.rng.below(8) > 0).unwrap_or_else(|| self.root.to_owned());
        let mut name = self.rng.below(1 << 40).to_string().into_bytes();
        match self.rng.below(6) {
            0 => name.push(b'\n'),
            1 => name.splice(0..0, *b" -%=\\").for_each(drop),
            2 => name.push(0xff),
            _ => {}
        }
        dir.join(OsString::from_vec(name))
    }

    fn content(&mut self) -> Vec<u8> {
        let len = [0, 30, 3_000, 70_000, 300_000][self.rng.below(5) as usize];
        let len = self.rng.below(len + 1) as usize;
        self.rng.content(len)
    }

    fn remove(&mut self, path: &Path) {
        if path.symlink_metadata().unwrap().is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }

    /// Something new of any type where nothing is.
    fn make(&mut self, path: &Path) {
        match self.rng.below(7) {
            0 => fs::create_dir(path).unwrap(),
            1 => {
                fs::create_dir(path).unwrap();
                for name in ["a", "b", "c"] {
                    let content = self.content();
                    fs::write(path.join(name), content).unwrap();
                }
                fs::create_dir(path.join("empty")).unwrap();
            }
            2 => symlink("some/where", path).unwrap(),
            3 => rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap(),
            // A socket's own path is short.
            4 if path.as_os_str().len() < 100 => drop(UnixListener::bind(path).unwrap()),
            _ => {
                let content = self.content();
                fs::write(path, content).unwrap();
            }
        }
    }

    fn one(&mut self) {
        let Some(path) = (match self.rng.below(5) {
            0 => self.dir(),
            1 => self.any(|m| !m.is_dir()),
            _ => self.file(),
        }) else {
            return;
        };
        let meta = path.symlink_metadata().unwrap();
        let is_file = meta.is_file();
        match self.rng.below(20) {
            0 | 1 => {
                let free = self.free();
                self.make(&free);
            }
            2 => self.remove(&path),
            3 | 4 => {
                // Another type, or the same type again.
                self.remove(&path);
                self.make(&path);
            }
            5..=7 => {
                let to = self.free();
                if !to.starts_with(&path) {
                    fs::rename(&path, to).unwrap();
                }
            }
            8 => {
                // Two things swap their names.
                if let Some(other) = self.any(|m| m.is_dir() == meta.is_dir())
                    && !other.starts_with(&path)
                    && !path.starts_with(&other)
                {
                    let aside = self.root.join("aside");
                    fs::rename(&path, &aside).unwrap();
                    fs::rename(&other, &path).unwrap();
                    fs::rename(&aside, &other).unwrap();
                }
            }
            9 if !meta.is_symlink() => chmod(&path, [0o600, 0o755, 0o4711, 0o2750][self.rng.below(4) as usize]),
            10 => {
                let id = self.rng.below(70_000) as u32;
                std::os::unix::fs::lchown(&path, Some(id), Some(id / 2)).unwrap();
            }
            11 => touch(&path, self.rng.below(1_700_000_000) as i64, self.rng.below(1_000_000_000) as i64),
            12 if is_file || meta.is_dir() => {
                let _ = rustix::fs::lsetxattr(&path, "user.new", b"\0\xffnew", XattrFlags::empty());
            }
            13 if is_file || meta.is_dir() => {
                for name in ["user.new", "user.note", "user.dir"] {
                    let _ = rustix::fs::lremovexattr(&path, name);
                }
            }
            14 | 15 if is_file => {
                let to = self.free();
                fs::hard_link(&path, to).unwrap();
            }
            16 if is_file => self.copied_over(&path, &meta),
            17 if is_file => {
                // A hole, then something after it.
                let file = OpenOptions::new().write(true).open(&path).unwrap();
                file.set_len(meta.len() / 2).unwrap();
                file.write_all_at(b"after a hole", meta.len() + 40_000).unwrap();
            }
            18 if is_file => {
                let more = self.content();
                File::options().write(true).open(&path).unwrap().write_all_at(&more, meta.len()).unwrap();
            }
            _ if is_file && meta.len() > 0 => {
                let at = self.rng.below(meta.len());
                let len = self.rng.below(5_000) as usize + 1;
                let bytes = self.rng.noise(len);
                File::options().write(true).open(&path).unwrap().write_all_at(&bytes, at).unwrap();
            }
            _ => {}
        }
    }

    /// The same content, mode, owner and time as another inode: breaks a hard link so that nothing shows it.
    fn copied_over(&mut self, path: &Path, meta: &fs::Metadata) {
        let aside = self.root.join("aside");
        fs::copy(path, &aside).unwrap();
        std::os::unix::fs::lchown(&aside, Some(meta.uid()), Some(meta.gid())).unwrap();
        chmod(&aside, meta.mode() & 0o7777);
        touch(&aside, meta.mtime(), meta.mtime_nsec());
        fs::rename(&aside, path).unwrap();
    }
}

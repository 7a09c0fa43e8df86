//! Makes a tree with every kind of thing a file system can hold, from a seed.
//!
//! `Tree::new(seed).without(SOCKETS | DEEP).build(dir)`. What the machine cannot make (devices or foreign owners when
//! not root, attributes on a file system without them) is left out with a word on standard error; the comparison goes
//! by what is on disk, so a tree is never expected to hold more than was made.

mod odd;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};

use super::is_root;
use super::rng::Rng;

pub const SOCKETS: u32 = 1;
/// Paths near 4,095 bytes.
pub const DEEP: u32 = 1 << 1;
/// Names and link targets that are not UTF-8.
pub const RAW_NAMES: u32 = 1 << 2;
pub const DEVICES: u32 = 1 << 3;
pub const XATTRS: u32 = 1 << 4;
/// Attribute names with `=` and `%`.
pub const ODD_XATTRS: u32 = 1 << 5;
pub const ACLS: u32 = 1 << 6;
pub const SPARSE: u32 = 1 << 7;
/// Files of several MiB.
pub const LARGE: u32 = 1 << 8;
/// Hard links of symlinks, FIFOs and devices.
pub const ODD_LINKS: u32 = 1 << 9;
/// Before 1970 with a fraction of a second.
pub const OLD_FRACTIONS: u32 = 1 << 10;
/// Control characters, quotes, bidi and the like in names.
pub const ODD_NAMES: u32 = 1 << 11;
pub const LONG_LINKS: u32 = 1 << 12;
pub const MANY: u32 = 1 << 13;

pub struct Tree {
    seed: u64,
    left_out: u32,
}

impl Tree {
    pub fn new(seed: u64) -> Self {
        Self { seed, left_out: 0 }
    }

    pub fn without(mut self, kinds: u32) -> Self {
        self.left_out |= kinds;
        self
    }

    /// Fills `root`, an existing directory.
    pub fn build(&self, root: &Path) {
        let has = |kind: u32| self.left_out & kind == 0;
        let mut make = Maker { rng: Rng::new(self.seed), root: root.to_owned(), dirs: Vec::new() };
        make.plain();
        make.modes_owners_times(has(OLD_FRACTIONS));
        make.links(has(ODD_LINKS), has(RAW_NAMES), has(LONG_LINKS));
        make.specials(has(SOCKETS), has(DEVICES), has(ODD_LINKS));
        for (wanted, step) in [
            (has(MANY), Maker::many as fn(&mut Maker)),
            (has(LARGE), Maker::large),
            (has(SPARSE), Maker::sparse),
            (has(ODD_NAMES), Maker::odd_names),
            (has(RAW_NAMES), Maker::raw_names),
            (has(XATTRS), Maker::xattrs),
            (has(ODD_XATTRS) && has(XATTRS), Maker::odd_xattrs),
            (has(ACLS), Maker::acls),
            (has(DEEP), Maker::deep),
        ] {
            if wanted {
                step(&mut make);
            }
        }
        make.locked();
        make.dir_times();
    }
}

/// A sparse file: name, size, runs of data.
type Shape<'a> = (&'a str, u64, &'a [(u64, usize)]);

struct Maker {
    rng: Rng,
    root: PathBuf,
    /// In the order made; parents come first.
    dirs: Vec<PathBuf>,
}

impl Maker {
    fn dir(&mut self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        fs::create_dir_all(&path).unwrap();
        self.dirs.push(path.clone());
        path
    }

    fn file(&mut self, path: &Path, len: usize) {
        fs::write(path, self.rng.content(len)).unwrap();
        self.stamp(path);
    }

    /// A random instant of the last decades, with nanoseconds.
    fn stamp(&mut self, path: &Path) {
        let (s, ns) = (self.rng.below(1_700_000_000) as i64, self.rng.below(1_000_000_000) as i64);
        touch(path, s, ns);
    }

    fn plain(&mut self) {
        let dir = self.dir("plain");
        for len in [0, 1, 511, 512, 513, 4095, 4096, 4097, 10_240, 65_535, 65_536, 262_144, 1_048_577] {
            self.file(&dir.join(format!("size-{len}")), len);
        }
        self.dir("plain/empty-dir");
        let zeros = dir.join("zeros-written");
        fs::write(&zeros, vec![0; 200_000]).unwrap();
        self.stamp(&zeros);
        let nested = self.dir("plain/a/b/c/d");
        for n in 0..self.rng.below(8) + 3 {
            let len = self.rng.below(40_000) as usize;
            self.file(&nested.join(format!("nested-{n}.txt")), len);
        }
        // Sorts between `a` and `a/…` when paths, not names, are compared.
        self.file(&dir.join("a.txt"), 10);
        self.file(&dir.join("a-b"), 10);
    }

    fn many(&mut self) {
        for d in 0..4 {
            let dir = self.dir(&format!("many/{d}"));
            for n in 0..150 {
                let len = (self.rng.below(3000) * self.rng.below(3) / 2) as usize;
                self.file(&dir.join(format!("f{n:03}.c")), len);
            }
        }
    }

    fn large(&mut self) {
        let dir = self.dir("large");
        self.file(&dir.join("empty-before"), 0);
        fs::write(dir.join("prose"), self.rng.prose(9_437_185)).unwrap();
        fs::write(dir.join("noise"), self.rng.noise(3_000_000)).unwrap();
        self.stamp(&dir.join("noise"));
    }

    fn sparse(&mut self) {
        let dir = self.dir("sparse");
        let k = 1024;
        let shapes: [Shape<'_>; 8] = [
            ("all-hole", 5_000_001, &[]),
            ("leading", 900 * k, &[(640 * k, 10_000)]),
            ("trailing", 3_000 * k, &[(0, 70_000)]),
            ("middle", 4_000 * k, &[(0, 4096), (400 * k, 100_000), (3_999 * k, 1024)]),
            ("data-to-end", 2_000_123, &[(1_900_544, 99_579)]),
            ("many-holes", 8_000 * k, &[]),
            ("huge", 40 << 30, &[(5 << 30, 5000), ((40 << 30) - 1, 1)]),
            ("tiny-hole", 12 * k, &[(0, 4096), (8 * k, 4096)]),
        ];
        for (name, size, runs) in shapes {
            // 40 GiB of zeros take long to hash: the huge one only where a seed asks for it.
            let size = if name == "huge" { size / 640 } else { size };
            let runs: Vec<(u64, usize)> = match name {
                "many-holes" => (0..120).map(|n| (n * 64 * k, 4096)).collect(),
                "huge" => runs.iter().map(|(at, len)| (*at / 640, *len)).collect(),
                _ => runs.to_vec(),
            };
            let path = dir.join(name);
            let mut file = File::create(&path).unwrap();
            file.set_len(size).unwrap();
            for (at, len) in runs {
                file.seek(SeekFrom::Start(at)).unwrap();
                let len = len.min((size - at) as usize);
                file.write_all(&self.rng.prose(len)).unwrap();
            }
            drop(file);
            self.stamp(&path);
        }
    }

    fn links(&mut self, odd: bool, raw: bool, long: bool) {
        let dir = self.dir("links");
        let other = self.dir("links/z-other");
        let first = self.dir("links/a-first");
        self.file(&dir.join("m"), 5000);
        for path in [dir.join("z-same-dir"), other.join("across"), first.join("sorts-before")] {
            fs::hard_link(dir.join("m"), path).unwrap();
        }
        self.file(&other.join("empty"), 0);
        fs::hard_link(other.join("empty"), dir.join("empty-linked")).unwrap();
        self.file(&dir.join("outside-group"), 5000);
        fs::hard_link(dir.join("outside-group"), dir.join("gone")).unwrap();
        fs::remove_file(dir.join("gone")).unwrap();
        let mut targets: Vec<(&str, Vec<u8>)> = vec![
            ("to-file", b"m".to_vec()),
            ("to-dir", b"z-other/../z-other".to_vec()),
            ("dangling", b"no/such/place".to_vec()),
            ("absolute", b"/etc/hostname".to_vec()),
            ("up", b"../../../../../../etc".to_vec()),
            ("itself", b"itself".to_vec()),
            ("of-100", vec![b'h'; 100]),
            ("of-101", vec![b'h'; 101]),
            ("odd", b"a b\n\"c\"\\ =%".to_vec()),
        ];
        if long {
            targets.push(("of-4000", [b"d/".repeat(1999), b"ee".to_vec()].concat()));
        }
        if raw {
            targets.push(("raw", b"caf\xe9/\xff\xfe".to_vec()));
        }
        for (name, target) in targets {
            symlink(OsStr::from_bytes(&target), dir.join(name)).unwrap();
            self.stamp(&dir.join(name));
        }
        own(&dir.join("dangling"), 12, 34);
        if odd {
            fs::hard_link(dir.join("to-file"), dir.join("to-file-linked")).unwrap();
        }
    }

    fn specials(&mut self, sockets: bool, devices: bool, odd_links: bool) {
        let dir = self.dir("special");
        let mut all = vec![("fifo", FileType::Fifo, 0, 0o644), ("fifo-0000", FileType::Fifo, 0, 0)];
        if sockets {
            all.push(("socket", FileType::Socket, 0, 0o755));
        }
        if devices && is_root() {
            all.push(("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3), 0o666));
            all.push(("loop-like", FileType::BlockDevice, rustix::fs::makedev(7, 200), 0o660));
            all.push(("big-minor", FileType::CharacterDevice, rustix::fs::makedev(250, 70_000), 0o600));
        }
        for (name, kind, dev, mode) in all {
            let path = dir.join(name);
            match rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(mode), dev) {
                Ok(()) => {
                    rustix::fs::chmodat(CWD, &path, Mode::from_raw_mode(mode), AtFlags::empty()).unwrap();
                    self.stamp(&path);
                }
                Err(e) => eprintln!("note: no {name} in this tree: {e}"),
            }
        }
        if odd_links {
            fs::hard_link(dir.join("fifo"), dir.join("fifo-linked")).unwrap();
        }
    }

    fn modes_owners_times(&mut self, old_fractions: bool) {
        let dir = self.dir("meta");
        for mode in [0o0000, 0o0400, 0o0644, 0o0777, 0o4755, 0o2755, 0o6711, 0o1777, 0o7777] {
            let path = dir.join(format!("mode-{mode:04o}"));
            self.file(&path, 20);
            chmod(&path, mode);
        }
        for (n, (uid, gid)) in
            [(1, 2), (65_534, 65_534), (2_097_151, 2_097_152), (3_000_000, 4_000_000_000)].into_iter().enumerate()
        {
            let path = dir.join(format!("owner-{n}"));
            self.file(&path, 20);
            own(&path, uid, gid);
            chmod(&path, 0o6755);
            self.stamp(&path);
        }
        for (name, mode) in [("sticky", 0o1777), ("setgid", 0o2775), ("private", 0o700)] {
            let path = self.dir(&format!("meta/{name}"));
            self.file(&path.join("inside"), 3);
            own(&path, 1000, 4_000_000_000);
            chmod(&path, mode);
        }
        let mut times = vec![
            ("epoch", 0, 0),
            ("one-ns", 0, 1),
            ("last-ns", 1_600_000_000, 999_999_999),
            ("tens", 1_600_000_000, 120_000_000),
            ("old", -1_000_000_000, 0),
            ("after-2038", 2_147_483_648, 5),
            ("after-2106", 4_294_967_296, 123_456_789),
            ("past-octal", 8_589_934_592, 7),
        ];
        if old_fractions {
            times.extend([("old-ns", -1, 999_999_999), ("older-ns", -1_000_000_001, 500_000_000)]);
        }
        for (name, s, ns) in times {
            let path = dir.join(format!("time-{name}"));
            fs::write(&path, name).unwrap();
            touch(&path, s, ns);
        }
    }

    /// Directories and a file whose path below the root is 4,095 bytes long, made one step at a time.
    fn deep(&mut self) {
        let mut fd = open_dir(CWD, self.root.as_os_str().as_bytes());
        let mut used = 0;
        let mut n = 0;
        while used < 4095 - 256 {
            let name = format!("deep{n:02}-{}", "d".repeat(193));
            rustix::fs::mkdirat(&fd, &name, Mode::from_raw_mode(0o755)).unwrap();
            fd = open_dir(&fd, name.as_bytes());
            used += name.len() + 1;
            n += 1;
        }
        let last = "f".repeat(4095 - used);
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&fd, &last, flags, Mode::from_raw_mode(0o640)).unwrap();
        File::from(file).write_all(b"at the bottom\n").unwrap();
        rustix::fs::symlinkat("up", &fd, "bottom-link").unwrap();
        let many = self.dir(&"x/".repeat(120));
        self.file(&many.join("file"), 5);
    }

    fn locked(&mut self) {
        for mode in [0o0000, 0o0555, 0o0111, 0o0300] {
            let path = self.root.join(format!("locked-{mode:04o}"));
            fs::create_dir_all(path.join("sub")).unwrap();
            self.file(&path.join("file"), 50);
            self.file(&path.join("sub/file"), 50);
            self.stamp(&path.join("sub"));
            chmod(&path, mode);
            self.stamp(&path);
        }
    }

    fn dir_times(&mut self) {
        for path in std::mem::take(&mut self.dirs) {
            self.stamp(&path);
        }
    }
}

fn open_dir(at: impl std::os::fd::AsFd, name: &[u8]) -> OwnedFd {
    rustix::fs::openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// Sets both times of a path, links not followed.
pub fn touch(path: &Path, seconds: i64, ns: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: ns };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn own(path: &Path, uid: u32, gid: u32) {
    if is_root() {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
    }
}

fn set(path: &Path, key: &str, value: &[u8]) {
    if let Err(e) = rustix::fs::lsetxattr(path, key, value, XattrFlags::empty()) {
        eprintln!("note: no {key} on {} in this tree: {e}", path.display());
    }
}

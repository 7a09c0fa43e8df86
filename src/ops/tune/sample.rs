//! Which part of the user's data is measured: windows of equal length, evenly spread over the stream a full backup would be.
//!
//! One walk counts everything and picks the windows: it begins with windows side by side, and whenever there are too many,
//! every other one goes and the distance doubles. So the choice depends on the data alone, memory is bounded, and neighbours
//! stay together, as they do in a frame. Of files longer than a window only the pieces in windows are read.

use std::{
    collections::HashSet,
    fs::File,
    io::Read,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use serde::Serialize;

use crate::{
    error::{Error, Kind, Result},
    format::tar::{BLOCK_LEN, padded},
    model::entry::{Entry, Run},
    monitor::Monitor,
    source::{
        meta,
        roots::{Node, Roots},
        walk::{Leaf, Names, Visitor},
    },
};

/// A window is this long, bytes of the plain stream.
pub const WINDOW_LEN: u64 = STEP_LEN as u64;
/// A step of a stream's beginning, too.
const STEP_LEN: usize = 8 << 20;
/// So many windows are too many; half of them stay.
const WINDOW_COUNT_MAX: usize = 32;
/// Names kept of a window: one of tiny files would hold many.
const NAME_COUNT_MAX: usize = 4096;
/// Files with several names are counted once, as long as they are no more than this.
const LINK_COUNT_MAX: usize = 1 << 20;
/// Longer files are read in pieces.
const WHOLE_LEN_MAX: u64 = 4 << 20;

/// What there is.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Totals {
    /// Entries.
    pub entries: u64,
    /// Files with content.
    pub files: u64,
    /// Their bytes.
    pub content_bytes: u64,
    /// With the headers of tar.
    pub plain_bytes: u64,
    /// All was counted, or the length was told; else there is more.
    pub is_all: bool,
}

/// A run of neighbours.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// Its number, at the present distance.
    number: u64,
    /// Paths below the base.
    pub files: Vec<Vec<u8>>,
    /// Pieces of long files: path, offset, length.
    pub pieces: Vec<(Vec<u8>, u64, u64)>,
    /// Bytes of the plain stream it stands for.
    pub plain_bytes: u64,
    /// Content in it.
    pub content_bytes: u64,
}

/// What is measured.
pub enum Sample {
    /// Of trees.
    Tree {
        /// Directory the paths are below.
        base: PathBuf,
        /// Windows, so ordered that the first few are spread over all of it, too.
        windows: Vec<Window>,
    },
    /// The beginning of a stream.
    Head {
        /// What came.
        bytes: Vec<u8>,
        /// How long it took to come, from the first byte on.
        seconds: f64,
    },
}

impl Sample {
    /// So many steps it can be cut to.
    pub fn step_count(&self) -> usize {
        match self {
            Self::Tree { windows, .. } => windows.len(),
            Self::Head { bytes, .. } => bytes.len().div_ceil(STEP_LEN),
        }
    }

    /// Plain and content bytes of the first `count` steps.
    pub fn bytes(&self, count: usize) -> (u64, u64) {
        match self {
            Self::Tree { windows, .. } => {
                windows.iter().take(count).fold((0, 0), |sum, one| (sum.0 + one.plain_bytes, sum.1 + one.content_bytes))
            }
            Self::Head { bytes, .. } => {
                let len = self.head_len(bytes, count) as u64;
                (len, len)
            }
        }
    }

    /// Of a stream, the seconds a byte took to come.
    #[expect(clippy::cast_precision_loss, reason = "a speed")]
    pub fn came_a_byte(&self) -> Option<f64> {
        match self {
            Self::Tree { .. } => None,
            Self::Head { bytes, seconds } => Some(seconds / bytes.len().max(1) as f64),
        }
    }

    fn head_len(&self, head: &[u8], count: usize) -> usize {
        head.len().min(count.saturating_mul(STEP_LEN))
    }

    /// The short files of the first `count` steps as a tree to be walked.
    pub fn roots(&self, count: usize) -> Option<Roots> {
        let Self::Tree { base, windows } = self else { return None };
        let mut tree = Node::default();
        for path in windows.iter().take(count).flat_map(|window| &window.files) {
            let names = path.split(|byte| *byte == b'/');
            names.fold(&mut tree, |node, name| node.children.entry(name.to_vec()).or_default()).whole = true;
        }
        let none = Roots {
            base: base.clone(),
            tree,
            shown: Vec::new(),
            devices: Vec::new(),
            warnings: Vec::new(),
            missing: Vec::new(),
        };
        Some(none).filter(|roots| roots.tree != Node::default())
    }

    /// The rest of the first `count` steps, to be read as a stream.
    pub fn stream(&self, count: usize) -> Option<Box<dyn Read + '_>> {
        match self {
            Self::Head { bytes, .. } => Some(Box::new(&bytes[..self.head_len(bytes, count)])),
            Self::Tree { base, windows } => {
                let pieces: Vec<_> = windows.iter().take(count).flat_map(|window| &window.pieces).collect();
                if pieces.is_empty() {
                    None
                } else {
                    Some(Box::new(Pieces { base, pieces, next: 0, at: 0, open: None }))
                }
            }
        }
    }
}

/// Pieces of files, one after the other; what cannot be read is left out.
struct Pieces<'a> {
    base: &'a Path,
    pieces: Vec<&'a (Vec<u8>, u64, u64)>,
    next: usize,
    at: u64,
    open: Option<File>,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        while let Some((path, offset, len)) = self.pieces.get(self.next) {
            if self.open.is_none() {
                self.at = 0;
                self.open = File::open(self.base.join(std::ffi::OsStr::from_bytes(path))).ok();
            }
            let want = buf.len().min(usize::try_from(len - self.at).unwrap_or(usize::MAX));
            let got = match &self.open {
                Some(file) if want > 0 => file.read_at(&mut buf[..want], offset + self.at).unwrap_or(0),
                _ => 0,
            };
            if got > 0 {
                self.at += got as u64;
                return Ok(got);
            }
            self.next += 1;
            self.open = None;
        }
        Ok(0)
    }
}

/// Reads the beginning of a stream, at most `len_max` bytes and till `until`; whether that is all of it, and the seconds it was waited
/// for after its first bytes.
pub fn head(
    input: &mut dyn Read,
    len_max: usize,
    until: Instant,
    monitor: &dyn Monitor,
) -> Result<(Vec<u8>, bool, f64)> {
    let (mut head, mut spent) = (Vec::new(), Duration::ZERO);
    let mut buf = vec![0; 1 << 20];
    while head.len() < len_max && Instant::now() < until {
        go_on(monitor)?;
        let want = buf.len().min(len_max - head.len());
        let asked_at = Instant::now();
        match input.read(&mut buf[..want]) {
            Ok(0) => return Ok((head, true, spent.as_secs_f64())),
            Ok(len) => {
                // What comes before a program's first output comes once.
                if !head.is_empty() {
                    spent += asked_at.elapsed();
                }
                head.extend_from_slice(&buf[..len]);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => {
                go_on(monitor)?;
                return Err(Error::io("cannot read standard input", e).with_kind(Kind::Other));
            }
        }
    }
    Ok((head, false, spent.as_secs_f64()))
}

/// An error when the user wants an end.
pub fn go_on(monitor: &dyn Monitor) -> Result<()> {
    match monitor.interrupted() {
        Some(signal) => Err(Error::new(Kind::Signal(signal), "interrupted")),
        None => Ok(()),
    }
}

/// Counts what a walk finds and picks the windows.
pub struct Census<'a> {
    /// What was found so far.
    pub totals: Totals,
    windows: Vec<Window>,
    distance: u64,
    links: HashSet<(u64, u64)>,
    until: Instant,
    monitor: &'a dyn Monitor,
}

impl<'a> Census<'a> {
    /// Ends the walk at `until`.
    pub fn new(until: Instant, monitor: &'a dyn Monitor) -> Self {
        let (windows, links) = (Vec::new(), HashSet::new());
        Self { totals: Totals::default(), windows, distance: WINDOW_LEN, links, until, monitor }
    }

    /// Whether the walk was ended by time, and by nothing worse.
    pub fn is_late(&self) -> bool {
        Instant::now() >= self.until && self.monitor.interrupted().is_none()
    }

    /// The windows: the first one, the one in the middle, those between them, and so on.
    pub fn windows(self) -> Vec<Window> {
        let mut windows = self.windows;
        let bits = windows.len().next_power_of_two().trailing_zeros();
        let reversed = |number: u64| number.reverse_bits().checked_shr(64 - bits).unwrap_or(0);
        windows.sort_by_key(|window| reversed(window.number));
        windows
    }

    /// An entry of so much content, of a sparse file what is in `runs`.
    fn add(&mut self, path: &[u8], content: u64, runs: Option<&[Run]>) {
        // A header, and another pair for a name that is too long for it.
        let header = if path.len() > 100 { 3 } else { 1 } * BLOCK_LEN as u64;
        let plain = header + padded(content);
        let begins_at = self.totals.plain_bytes;
        let ends_at = begins_at + plain;
        self.totals.entries += 1;
        self.totals.files += u64::from(content > 0);
        self.totals.content_bytes += content;
        self.totals.plain_bytes = ends_at;
        if plain <= WHOLE_LEN_MAX {
            if let Some(window) = self.window(begins_at).filter(|window| window.files.len() < NAME_COUNT_MAX) {
                window.files.push(path.to_vec());
                window.plain_bytes += plain;
                window.content_bytes += content;
            }
            return;
        }
        let mut at = begins_at;
        while at < ends_at {
            let distance = self.distance;
            let within = at % distance;
            let Some(window) = self.window(at) else {
                at += distance - within;
                continue;
            };
            let len = (WINDOW_LEN - within).min(ends_at - at);
            let begins_in = |at: u64| at.saturating_sub(begins_at + header).min(content);
            let offset = begins_in(at);
            let content = begins_in(at + len) - offset;
            let places = in_file(runs, Run { offset, len: content });
            window.pieces.extend(places.map(|place| (path.to_vec(), place.offset, place.len)));
            window.plain_bytes += len;
            window.content_bytes += content;
            at += len;
        }
    }

    /// The window in which this place of the plain stream lies, if there is one.
    fn window(&mut self, at: u64) -> Option<&mut Window> {
        let number = at / self.distance;
        if at % self.distance >= WINDOW_LEN {
            return None;
        }
        if self.windows.last().is_none_or(|last| last.number != number) {
            if self.windows.len() == WINDOW_COUNT_MAX {
                self.windows.retain(|window| window.number.is_multiple_of(2));
                self.windows.iter_mut().for_each(|window| window.number /= 2);
                self.distance *= 2;
                return self.window(at);
            }
            self.windows.push(Window { number, ..Window::default() });
        }
        self.windows.last_mut()
    }
}

/// Where in a file a piece of its content lies, of which there is what is in `runs`, or all of it.
fn in_file(runs: Option<&[Run]>, piece: Run) -> impl Iterator<Item = Run> {
    let all = runs.is_none().then_some(piece);
    let mut begins_at = 0;
    let some = runs.unwrap_or_default().iter().filter_map(move |run| {
        let from = piece.offset.max(begins_at);
        let to = piece.end().min(begins_at + run.len);
        let offset = run.offset + from.saturating_sub(begins_at);
        begins_at += run.len;
        (from < to).then(|| Run { offset, len: to - from })
    });
    all.into_iter().chain(some)
}

/// The runs of a file that may have holes, or be stored compressed; `None` where it has no hole or does not say.
fn runs_of(leaf: &Leaf<'_>, size: u64) -> Option<Vec<Run>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(leaf.dir, leaf.name, flags, Mode::empty());
    opened.and_then(|fd| meta::sparse_runs(fd, size)).ok().flatten()
}

impl Visitor for Census<'_> {
    fn enter(&mut self, _: Names<'_>) -> Result<()> {
        Ok(())
    }

    fn begins(&mut self, _: usize, _: &[u8]) -> Result<bool> {
        Ok(true)
    }

    fn ends(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn listed(&mut self) -> Result<()> {
        Ok(())
    }

    fn directory(&mut self, _: Entry) -> Result<bool> {
        self.totals.entries += 1;
        self.totals.plain_bytes += BLOCK_LEN as u64;
        Ok(true)
    }

    fn leaf(&mut self, leaf: Leaf<'_>) -> Result<Option<Stat>> {
        let Ok(stat) = rustix::fs::statat(leaf.dir, leaf.name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(None) };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Ok(Some(stat)),
            FileType::RegularFile => {
                let known = stat.st_nlink > 1
                    && (self.links.len() < LINK_COUNT_MAX || self.links.contains(&(stat.st_dev, stat.st_ino)))
                    && !self.links.insert((stat.st_dev, stat.st_ino));
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                let on_disk = u64::try_from(stat.st_blocks).unwrap_or(u64::MAX).saturating_mul(512);
                let may_be_sparse = !known && on_disk < size && size > 4096;
                let runs = if may_be_sparse { runs_of(&leaf, size) } else { None };
                let content = runs.as_ref().map_or(size, |runs| runs.iter().map(|run| run.len).sum());
                self.add(leaf.path, if known { 0 } else { content }, runs.as_deref());
            }
            _ => self.add(leaf.path, 0, None),
        }
        Ok(None)
    }

    fn unseen(&mut self) {}

    fn warn(&mut self, _: &[u8], _: &str) {}

    fn incomplete(&mut self, _: &[u8], _: &str) {}

    fn go_on(&self) -> Result<()> {
        go_on(self.monitor)?;
        if self.is_late() { Err(Error::new(Kind::Other, "counting took too long")) } else { Ok(()) }
    }

    fn looks_first(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Silent;

    fn census(files: &[(usize, u64)]) -> Census<'static> {
        let mut census = Census::new(Instant::now(), &Silent);
        let mut n = 0;
        for &(count, len) in files {
            for _ in 0..count {
                n += 1;
                census.add(format!("f{n}").as_bytes(), len, None);
            }
        }
        census
    }

    #[test]
    fn windows_are_few_and_spread() {
        for files in [&[(100_000, 20_000)][..], &[(1, 1 << 40)], &[(3000, 100), (2, 3 << 30), (50_000, 5000)]] {
            let census = census(files);
            let (all, distance) = (census.totals.plain_bytes, census.distance);
            let windows = census.windows();
            assert!(windows.len() > WINDOW_COUNT_MAX / 2 && windows.len() <= WINDOW_COUNT_MAX, "{}", windows.len());
            let sampled: u64 = windows.iter().map(|window| window.plain_bytes).sum();
            let (share, expected) = (sampled as f64 / all as f64, WINDOW_LEN as f64 / distance as f64);
            assert!((share / expected - 1.0).abs() < 0.1, "{share} of {expected}");
            // The first four lie in four different quarters.
            let quarter = |window: &Window| window.number * 4 / windows.iter().map(|w| w.number + 1).max().unwrap();
            let mut quarters: Vec<u64> = windows.iter().take(4).map(quarter).collect();
            quarters.sort_unstable();
            quarters.dedup();
            assert!(quarters.len() >= 3, "{quarters:?}");
        }
    }

    #[test]
    fn what_is_small_is_taken_whole() {
        let census = census(&[(10, 1000), (1, 5 << 20)]);
        let windows = census.windows();
        assert_eq!(windows.len(), 1);
        assert_eq!(windows[0].content_bytes, 10_000 + (5 << 20));
        assert_eq!((windows[0].files.len(), windows[0].pieces.len()), (10, 1));
    }

    #[test]
    fn pieces_of_sparse_files_lie_where_there_is_data() {
        let runs = [Run { offset: 100, len: 10 }, Run { offset: 500, len: 5 }, Run { offset: 900, len: 50 }];
        let of = |offset, len| {
            in_file(Some(&runs), Run { offset, len }).map(|run| (run.offset, run.len)).collect::<Vec<_>>()
        };
        assert_eq!(of(0, 65), [(100, 10), (500, 5), (900, 50)]);
        assert_eq!(of(3, 10), [(103, 7), (500, 3)]);
        assert_eq!(of(12, 20), [(502, 3), (900, 17)]);
        assert_eq!(of(15, 1), [(900, 1)]);
        assert!(of(7, 0).is_empty());
        assert_eq!(in_file(None, Run { offset: 7, len: 9 }).collect::<Vec<_>>(), [Run { offset: 7, len: 9 }]);
        assert_eq!(in_file(Some(&[]), Run { offset: 7, len: 0 }).count(), 0);
        let mut census = Census::new(Instant::now(), &Silent);
        let runs = [Run { offset: 1 << 30, len: 6 << 20 }, Run { offset: 2 << 30, len: 6 << 20 }];
        census.add(b"image", 12 << 20, Some(&runs));
        let windows = census.windows();
        let pieces: Vec<_> = windows.iter().flat_map(|window| &window.pieces).collect();
        assert!(pieces.iter().all(|(_, at, len)| runs.iter().any(|run| run.offset <= *at && at + len <= run.end())));
        assert_eq!(pieces.iter().map(|(_, _, len)| len).sum::<u64>(), 12 << 20);
    }
}

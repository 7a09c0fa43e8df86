//! Whether a directory holds what a snapshot holds: every entry of the index is looked for there, and its content read and hashed.
//!
//! It believes nothing of the restore that made it: bytes are read back from the files.

use std::{
    ffi::OsStr,
    io::Read,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use crossbeam_channel::bounded;

use super::{chain::Chain, content::check_interrupted, filled::content_digest, outcome::Fault};
use crate::{
    error::{Error, Kind, Result},
    model::{
        digest::Digest,
        entry::{Entry, EntryKind, Status},
    },
    monitor::Monitor,
};

/// So many differences are kept with their text; more are only counted.
const FAULT_COUNT_MAX: usize = 100;
const BUFFER_LEN: usize = 1 << 20;

/// What was compared.
#[derive(Clone, Debug, Default)]
pub struct Compared {
    /// Entries, streams included.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// How many differ.
    pub differ: u64,
    /// The first of them.
    pub faults: Vec<Fault>,
}

impl Compared {
    fn fault(&mut self, path: &[u8], why: String) {
        self.differ += 1;
        if self.faults.len() < FAULT_COUNT_MAX {
            self.faults.push(Fault { path: crate::model::text::PathText(path.to_vec()), why });
        }
    }
}

struct Task {
    entry: Entry,
    digest: Option<Digest>,
}

/// Holds all that lies below `root` against the tree of a snapshot. `has_devices` is false where none were made.
pub fn compare(
    chain: &Chain,
    root: &Path,
    has_devices: bool,
    threads: usize,
    monitor: &dyn Monitor,
) -> Result<Compared> {
    let compared = Mutex::new(Compared::default());
    let (tasks, taken) = bounded::<Task>(256);
    let fed = std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let (taken, compared) = (taken.clone(), &compared);
            scope.spawn(move || {
                for task in taken {
                    let looked = if monitor.interrupted().is_some() { Ok(0) } else { look(&task, root, monitor) };
                    let mut sums = compared.lock().unwrap_or_else(PoisonError::into_inner);
                    sums.entries += 1;
                    match looked {
                        Ok(len) => {
                            sums.bytes += len;
                            monitor.advance(1, len, &task.entry.path);
                        }
                        Err(why) => sums.fault(&task.entry.path, why),
                    }
                }
            });
        }
        drop(taken);
        let feed = || -> Result<()> {
            for row in chain.rows() {
                check_interrupted(monitor)?;
                let row = row?;
                let is_device = matches!(row.entry.kind, EntryKind::CharDevice | EntryKind::BlockDevice);
                if row.entry.status.has(Status::UNREADABLE) || is_device && !has_devices {
                    continue;
                }
                let digest = chain.digest(&row)?;
                let gone = |_| Error::new(Kind::Other, "a thread that compares has ended");
                tasks.send(Task { entry: row.entry, digest }).map_err(gone)?;
            }
            Ok(())
        };
        let fed = feed();
        drop(tasks);
        fed
    });
    fed?;
    check_interrupted(monitor)?;
    Ok(compared.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Holds a file against a stream of a snapshot.
pub fn compare_stream(chain: &Chain, number: u32, path: &Path, compared: &mut Compared) -> Result<()> {
    let (len, digest) = (chain.last().stream_extent(number)?.len, chain.locate_stream(number)?.digest);
    compared.entries += 1;
    let name = path.file_name().unwrap_or_default().as_bytes();
    match std::fs::File::open(path).map_err(|e| e.to_string()).and_then(|mut file| hash(&mut file)) {
        Err(why) => compared.fault(name, why),
        Ok((found, _)) if found != len => compared.fault(name, format!("it has {found} bytes, not {len}")),
        Ok((_, found)) if found != digest => compared.fault(name, differs(&digest, &found)),
        Ok(_) => compared.bytes += len,
    }
    Ok(())
}

fn differs(stored: &Digest, read: &Digest) -> String {
    format!("digest differs (stored {}…, read {}…)", stored.short(), read.short())
}

fn place(root: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() { root.to_owned() } else { root.join(OsStr::from_bytes(path)) }
}

/// One entry; what is wrong, or the length of its content.
fn look(task: &Task, root: &Path, monitor: &dyn Monitor) -> Result<u64, String> {
    let entry = &task.entry;
    let path = place(root, &entry.path);
    let meta = path.symlink_metadata().map_err(|e| e.to_string())?;
    let kind = meta.file_type();
    let is_kind = match entry.kind {
        EntryKind::File => kind.is_file(),
        EntryKind::Dir => kind.is_dir(),
        EntryKind::Symlink => kind.is_symlink(),
        EntryKind::CharDevice => kind.is_char_device(),
        EntryKind::BlockDevice => kind.is_block_device(),
        EntryKind::Fifo => kind.is_fifo(),
        EntryKind::Socket => kind.is_socket(),
        // An index read as a whole has no such row.
        EntryKind::Removed => true,
        EntryKind::HardLink => {
            let first = place(root, &entry.link).symlink_metadata().map_err(|e| format!("its first name: {e}"))?;
            (first.dev(), first.ino()) == (meta.dev(), meta.ino())
        }
    };
    if !is_kind {
        return Err("it is of another kind".to_owned());
    }
    match entry.kind {
        EntryKind::Symlink => {
            let link = std::fs::read_link(&path).map_err(|e| e.to_string())?;
            let is_same = link.as_os_str().as_bytes() == entry.link;
            if is_same { Ok(0) } else { Err("it leads elsewhere".to_owned()) }
        }
        EntryKind::File if meta.len() != entry.size => Err(format!("it has {} bytes, not {}", meta.len(), entry.size)),
        EntryKind::File => content(task, &path, monitor),
        _ => Ok(0),
    }
}

fn content(task: &Task, path: &Path, monitor: &dyn Monitor) -> Result<u64, String> {
    let Some(digest) = &task.digest else { return Ok(0) };
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let found = content_digest(&file, &task.entry, monitor).map_err(|e| e.to_string())?;
    if found == *digest { Ok(task.entry.stored_len) } else { Err(differs(digest, &found)) }
}

fn hash(file: &mut std::fs::File) -> Result<(u64, Digest), String> {
    let mut hasher = blake3::Hasher::new();
    let (mut buf, mut len) = (vec![0; BUFFER_LEN], 0);
    loop {
        match file.read(&mut buf).map_err(|e| e.to_string())? {
            0 => return Ok((len, Digest(*hasher.finalize().as_bytes()))),
            read => {
                hasher.update(&buf[..read]);
                len += read as u64;
            }
        }
    }
}

//! The tree stream as a tar, held against the index member by member.

use std::io::Read;

use super::{Check, Fault, differs};
use crate::{
    engine::read::{
        content::{self, Ordered, check_interrupted},
        index::IndexReader,
    },
    error::{Error, Result},
    format::{
        index::Frame,
        tar::{
            PRIVATE_DIR,
            read::{Member, TarReader},
        },
    },
    model::{
        digest::Digest,
        entry::{Entry, EntryKind, Status},
        path, show,
        text::PathText,
    },
    monitor::Monitor,
};

impl Check<'_> {
    /// The tree stream as a tar, member by member against the index.
    pub(super) fn tree(&mut self, index: &IndexReader, is_increment: bool) -> Result<()> {
        if index.entry_count() == 0 {
            return Ok(());
        }
        let is_tree = |frame: &Result<Frame>| frame.as_ref().map_or(true, |frame| frame.stream == 0);
        let frames = index.frames().take_while(is_tree).map(|frame| Ok((0, frame?)));
        let threads = self.threads;
        let (members, broken) = content::ordered(std::slice::from_ref(index), frames, threads, |ordered| {
            let mut stream = TreeStream {
                ordered,
                monitor: self.monitor,
                plain: Vec::new(),
                at: 0,
                offset: 0,
                broken: false,
                fatal: None,
                fetched: Vec::new(),
            };
            let found = self.members(index, is_increment, &mut stream);
            self.fetched.tree = stream.fetched;
            found
        })?;
        self.checked.members += members;
        let mut expected = 0;
        for row in index.rows() {
            let entry = row?.entry;
            if is_increment {
                // Some entries are only in the index, and some directories only in the tar: what has content must be in both.
                expected += u64::from(entry.owns_extent());
                continue;
            }
            let absent = matches!(entry.kind, EntryKind::Socket | EntryKind::Removed)
                || entry.map.is_some()
                || entry.kind == EntryKind::File && entry.status.has(Status::UNREADABLE);
            expected += u64::from(!absent);
        }
        if !broken && members != expected {
            let what = format!("the tar has {members} members, the index {expected} entries");
            self.fault(Fault::new(index.key(), "entries", what));
        }
        Ok(())
    }

    fn members(
        &mut self,
        index: &IndexReader,
        is_increment: bool,
        stream: &mut TreeStream<'_, '_>,
    ) -> Result<(u64, bool)> {
        let (mut count, mut lost) = (0, false);
        let mut last: Option<Entry> = None;
        let mut buf = vec![0; 256 << 10];
        'resync: loop {
            let start = stream.offset;
            let mut reader = TarReader::new(&mut *stream, start);
            loop {
                check_interrupted(self.monitor)?;
                let step = reader.next_member().and_then(|member| match member {
                    None => Ok(None),
                    Some(member) => Ok(Some((digest_of(&mut reader, &member, &mut buf)?, member))),
                });
                match step {
                    Ok(None) => {
                        return Ok((count, lost || stream.broken));
                    }
                    Ok(Some((digest, member))) => {
                        let private = path::is_within(&member.entry.path, PRIVATE_DIR)
                            && index.lookup(&member.entry.path)?.is_none();
                        if private {
                            continue;
                        }
                        if is_increment && member.entry.is_dir() && index.lookup(&member.entry.path)?.is_none() {
                            continue;
                        }
                        count += u64::from(!is_increment || member.entry.stored_len > 0);
                        self.checked.content_bytes += member.entry.stored_len;
                        if let Err(e) = agrees(index, &member, &digest, last.as_ref()) {
                            let mut fault = Fault::new(index.key(), show::name(&member.entry.path), "");
                            fault.affected = 1;
                            fault.paths = vec![PathText(member.entry.path.clone())];
                            self.fault_or(fault, e)?;
                        }
                        last = Some(member.entry);
                    }
                    Err(e) => {
                        if let Some(fatal) = stream.fatal.take() {
                            return Err(fatal);
                        }
                        // A frame that cannot be read was told with its part; a tar that does not parse is a fault of its own.
                        if !stream.broken {
                            self.fault_or(Fault::new(index.key(), format!("tar near byte {}", stream.offset), ""), e)?;
                        }
                        lost = true;
                        if !stream.resync()? {
                            return Ok((count, true));
                        }
                        continue 'resync;
                    }
                }
            }
        }
    }
}

/// The tree stream as it is decoded.
struct TreeStream<'a, 'b> {
    ordered: &'a mut Ordered<'b>,
    monitor: &'a dyn Monitor,
    plain: Vec<u8>,
    at: usize,
    /// Where the next byte lies in the stream.
    offset: u64,
    /// A frame could not be read: the stream ends before it.
    broken: bool,
    /// The index itself could not be read on.
    fatal: Option<Error>,
    /// Of each frame that came, whether it came whole.
    fetched: Vec<bool>,
}

impl TreeStream<'_, '_> {
    /// The next frame; false at the end, or before one that cannot be read.
    fn load(&mut self) -> Result<bool> {
        self.ordered.recycle(std::mem::take(&mut self.plain));
        self.at = 0;
        let Some((_, plain)) = self.next_frame()? else { return Ok(false) };
        match plain {
            Some(plain) => self.plain = plain,
            None => self.broken = true,
        }
        Ok(!self.broken)
    }

    /// Goes on at the next frame that begins a member; false when there is none.
    fn resync(&mut self) -> Result<bool> {
        self.broken = false;
        self.ordered.recycle(std::mem::take(&mut self.plain));
        self.at = 0;
        while let Some((starts_member, plain)) = self.next_frame()? {
            match plain {
                Some(plain) if starts_member => {
                    self.plain = plain;
                    return Ok(true);
                }
                plain => self.ordered.recycle(plain.unwrap_or_default()),
            }
        }
        Ok(false)
    }

    /// Whether a member begins in the next frame, and its content when that is whole.
    fn next_frame(&mut self) -> Result<Option<(bool, Option<Vec<u8>>)>> {
        let Some(((_, frame), plain)) = self.ordered.next_frame()? else { return Ok(None) };
        self.offset = frame.offset;
        self.fetched.push(plain.is_ok());
        if plain.is_ok() {
            self.monitor.advance(0, u64::from(frame.stored_len), b"");
        }
        Ok(Some((frame.starts_member, plain.ok())))
    }
}

impl Read for TreeStream<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.plain.len() {
            if self.broken {
                return Err(std::io::Error::other("a frame is damaged"));
            }
            match self.load() {
                Ok(true) => {}
                Ok(false) if self.broken => {}
                Ok(false) => return Ok(0),
                Err(e) => {
                    let text = e.to_string();
                    self.fatal = Some(e);
                    return Err(std::io::Error::other(text));
                }
            }
        }
        let take = buf.len().min(self.plain.len() - self.at);
        buf[..take].copy_from_slice(&self.plain[self.at..self.at + take]);
        self.at += take;
        self.offset += take as u64;
        Ok(take)
    }
}

/// Reads a member's content and hashes it.
fn digest_of<R: Read>(reader: &mut TarReader<R>, member: &Member, buf: &mut [u8]) -> Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut left = member.entry.stored_len;
    while left > 0 {
        let len = reader.read_data(buf)?;
        if len == 0 {
            return Err(Error::integrity("the member ends too early"));
        }
        hasher.update(&buf[..len]);
        left = left.saturating_sub(len as u64);
    }
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// Tar's order: a directory, what is in it but directories by name, then each directory in it.
fn in_order(last: &Entry, now: &Entry) -> bool {
    let key = |entry: &Entry| -> (Vec<u8>, bool, Vec<u8>) {
        let (dir, name) = path::split(&entry.path);
        if entry.is_dir() { (entry.path.clone(), false, Vec::new()) } else { (dir.to_vec(), true, name.to_vec()) }
    };
    let (a, b) = (key(last), key(now));
    path::cmp_dirs(&a.0, &b.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))).is_lt()
}

fn agrees(index: &IndexReader, member: &Member, digest: &Digest, last: Option<&Entry>) -> Result<()> {
    let said = &member.entry;
    let row = index.lookup(&said.path)?.ok_or_else(|| Error::integrity("the tar has it, the index has not"))?;
    let entry = &row.entry;
    if last.is_some_and(|last| !in_order(last, said)) {
        return Err(Error::integrity("it is not in order in the tar"));
    }
    let fields = [
        ("type", said.kind == entry.kind),
        ("mode", said.mode == entry.mode),
        ("owner", (said.uid, said.gid) == (entry.uid, entry.gid)),
        ("time", said.mtime == entry.mtime),
        ("link", said.link == entry.link),
        ("device", said.rdev == entry.rdev),
        ("size", said.size == entry.size && said.stored_len == entry.stored_len),
        ("sparse map", said.sparse == entry.sparse),
    ];
    if let Some((name, _)) = fields.iter().find(|(_, same)| !same) {
        return Err(Error::integrity(format!("tar header and index do not agree on its {name}")));
    }
    if !entry.status.has(Status::XATTRS) && entry.kind != EntryKind::HardLink {
        let plain = |e: &Entry| {
            let mut xattrs = e.xattrs.clone();
            xattrs.retain(|(name, _)| !name.starts_with(b"system.posix_acl_"));
            xattrs.sort();
            xattrs
        };
        if plain(said) != plain(entry) {
            return Err(Error::integrity("tar header and index do not agree on its attributes"));
        }
    }
    if let Some(extent) = index.extent_of(&row)? {
        if extent.offset != member.data_offset {
            return Err(Error::integrity("its content is not where the index says"));
        }
        if extent.digest != *digest {
            return Err(differs(&extent.digest, digest));
        }
    }
    Ok(())
}

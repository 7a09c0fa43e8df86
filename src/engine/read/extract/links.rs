//! Hard links: further names of what was restored.

use std::{collections::HashMap, os::fd::AsFd};

use rustix::fs::FileType;

use super::{Decision, Overwrite, Pass, is_kind, rows, same_size_and_time};
use crate::{
    engine::read::{
        chain::Located,
        content,
        filled::put_content,
        index::Row,
        target,
        worker::{Writer, failed},
    },
    error::{Error, Kind, Result},
    model::{
        entry::{Entry, EntryKind},
        path, show,
    },
};

impl Pass<'_> {
    /// Gives files their further names. They lead to what this run wrote or found to be the same, and nowhere else.
    pub(super) fn links(&mut self) -> Result<()> {
        if !self.has_links {
            return Ok(());
        }
        // Files whose first name is not taken: the name that stands for it.
        let mut stand_ins: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
        let (chain, options) = (self.shared.chain, self.options);
        for row in rows(chain, &options.taken) {
            content::check_interrupted(self.shared.monitor)?;
            let Ok(row) = row else { continue };
            if row.entry.kind != EntryKind::HardLink {
                continue;
            }
            if let Err(e) = self.link(&row.entry, &mut stand_ins) {
                self.shared.fault(&row.entry, e);
            }
            if self.shared.stopped() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn link(&mut self, entry: &Entry, stand_ins: &mut HashMap<Vec<u8>, Vec<u8>>) -> Result<()> {
        let shared = self.shared;
        let first = shared
            .chain
            .lookup(&entry.link)?
            .filter(|row| !matches!(row.entry.kind, EntryKind::Dir | EntryKind::HardLink));
        let first = first.ok_or_else(|| {
            Error::integrity(format!("its first name `{}` is no file of the snapshot", show::name(&entry.link)))
        })?;
        if !entry.is_name_of(&first.entry) {
            let what = format!("its first name `{}` has become another file", show::name(&entry.link));
            return Err(Error::new(Kind::Incomplete, what));
        }
        let source = if self.options.taken.wants_anywhere(&entry.link, false) {
            if shared.is_unlinkable(&entry.link) || first.entry.nlink < 2 {
                return Err(Error::new(
                    Kind::Other,
                    format!("its first name `{}` was not restored", show::name(&entry.link)),
                ));
            }
            entry.link.clone()
        } else if let Some(other) = stand_ins.get(&entry.link) {
            other.clone()
        } else {
            self.stand_in(entry, first)?;
            stand_ins.insert(entry.link.clone(), entry.path.clone());
            return Ok(());
        };
        let (dir, name) = path::split(&source);
        let dir = shared.target.dir(dir).map_err(|e| failed("open the directory of its first name", e))?;
        let inode = target::open_inode(dir.as_fd(), name).map_err(|e| failed("open its first name", e))?;
        let stat = rustix::fs::fstat(&inode).map_err(|e| failed("stat its first name", e))?;
        // Under --overwrite never what stands there need not be the file meant.
        if !is_kind(&first.entry, &stat)
            || first.entry.kind == EntryKind::File && !same_size_and_time(&first.entry, &stat)
        {
            return Err(Error::new(Kind::Other, format!("its first name `{}` is another file", show::name(&source))));
        }
        let overwrite = self.options.overwrite;
        let name = path::split(&entry.path).1;
        let fd = self.parent(&entry.path)?;
        let found = target::stat(fd.as_fd(), name).map_err(|e| failed("stat what has its name", e))?;
        match found {
            Some(found)
                if (found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino) || overwrite == Overwrite::Never =>
            {
                self.kept(entry);
                return Ok(());
            }
            Some(found) if FileType::from_raw_mode(found.st_mode) == FileType::Directory => {
                rustix::fs::unlinkat(fd, name, rustix::fs::AtFlags::REMOVEDIR)
                    .map_err(|e| failed("remove the directory in its place", e))?;
                shared.target.link(inode.as_fd(), fd.as_fd(), name)
            }
            Some(_) => shared.target.replace_by_link(inode.as_fd(), fd.as_fd(), name),
            None => shared.target.link(inode.as_fd(), fd.as_fd(), name),
        }
        .map_err(|e| failed("link it", e))?;
        shared.outcome().hard_links += 1;
        shared.monitor.advance(1, 0, &entry.path);
        Ok(())
    }

    /// Restores a file under a further name, since its first one is not taken.
    fn stand_in(&mut self, entry: &Entry, first: Row) -> Result<()> {
        let content = self.shared.chain.locate(&first)?;
        let mut own = first.entry;
        own.path.clone_from(&entry.path);
        let replace = match self.decide(&own)? {
            Decision::Keep => {
                self.kept(&own);
                return Ok(());
            }
            Decision::Fix(stat) => return self.fix(&own, &stat),
            Decision::Write(replace) => replace,
        };
        let Some(Located { sources, digest, .. }) = content else { return self.without_content(&own, replace) };
        let shared = self.shared;
        let left = Writer::new(shared).place(&own, replace, &mut |file| {
            let (mut at, mut hasher) = (0, blake3::Hasher::new());
            content::each_source(shared.chain.runs(), &sources, 1, shared.monitor, |bytes| {
                put_content(file, &own, at, bytes)?;
                hasher.update(bytes);
                at += bytes.len() as u64;
                Ok(())
            })?;
            if *hasher.finalize().as_bytes() == digest.0 { Ok(()) } else { Err(Error::integrity("its digest differs")) }
        })?;
        shared.written(&own, left);
        shared.monitor.advance(1, own.stored_len, &own.path);
        Ok(())
    }
}

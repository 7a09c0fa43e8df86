//! Inodes with several names: the first one is stored, the others are hard links to it.

use rustix::fs::{AtFlags, Stat};

use super::Tree;
use crate::{
    engine::write::links::First,
    error::Result,
    format,
    model::entry::{Entry, EntryKind},
    source::walk::Leaf,
};

impl Tree<'_, '_> {
    /// A name of an inode with several, which is as the base says: whether it is the first one stored, or a further one, as before.
    pub(super) fn is_linked_as_before(&mut self, leaf: &Leaf<'_>) -> Result<bool> {
        let (Some(increment), Some(old)) = (&self.increment, &self.now.old) else { return Ok(false) };
        let Ok(stat) = rustix::fs::statat(leaf.dir, leaf.name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(false) };
        let fsid = leaf.systems.known_fsid(stat.st_dev);
        if !fsid.is_some_and(|fsid| increment.base.is_same(old, &stat, fsid)) {
            return Ok(false);
        }
        let inode = (stat.st_dev, stat.st_ino);
        let same = match self.links.get(inode)? {
            None => old.entry.kind != EntryKind::HardLink,
            Some(first) => old.entry.kind == EntryKind::HardLink && first.path == old.entry.link && first.is(&stat),
        };
        if same {
            let entry = old.entry.clone();
            if entry.kind != EntryKind::HardLink {
                self.links.insert(inode, &First::new(&entry.path, &stat, false))?;
            }
            self.unchanged(&entry);
        }
        Ok(same)
    }

    /// An entry with several names: a hard link when one is stored already. True when that was all.
    pub(super) fn is_link(&mut self, entry: &mut Entry, stat: &Stat) -> Result<bool> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        let inode = (stat.st_dev, stat.st_ino);
        let Some(first) = self.links.get(inode)?.filter(|first| first.is(stat)) else {
            if entry.kind != EntryKind::File && entry.kind != EntryKind::Socket {
                self.links.insert(inode, &First::new(&entry.path, stat, false))?;
            }
            return Ok(false);
        };
        let mut link = entry.clone();
        (link.kind, link.link, link.size, link.stored_len, link.rdev) = (EntryKind::HardLink, first.path, 0, 0, (0, 0));
        link.xattrs.clear();
        if first.is_delta {
            let text = format::delta::link(&link.path, &link.link);
            self.delta_member(&link, &text, &[])?;
        } else {
            self.member(&link)?;
        }
        self.row(link)?;
        Ok(true)
    }
}

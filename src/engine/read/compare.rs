//! What differs between two snapshots: their entries side by side, in one pass.

use std::cmp::Ordering;

use super::{chain::Chain, index::Row};
use crate::{
    error::Result,
    model::{entry::EntryKind, path},
};

/// How an entry differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Only the newer one has it.
    pub added: bool,
    /// Only the older one has it.
    pub removed: bool,
    /// It is of another type.
    pub r#type: bool,
    /// Its content, target or device differs.
    pub content: bool,
    /// Its mode, owner, time or attributes differ.
    pub metadata: bool,
}

/// Tells `found` each entry that differs, in order; the row is the newer one unless it was removed.
pub fn compare(older: &Chain, newer: &Chain, found: &mut dyn FnMut(&Row, Change) -> Result<()>) -> Result<()> {
    let (mut old_rows, mut new_rows) = (older.rows(), newer.rows());
    let (mut old, mut new) = (old_rows.next().transpose()?, new_rows.next().transpose()?);
    loop {
        let order = match (&old, &new) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => path::cmp_rows(&a.entry.path, &b.entry.path),
        };
        match (order, &old, &new) {
            (Ordering::Less, Some(a), _) => found(a, Change { removed: true, ..Change::default() })?,
            (Ordering::Greater, _, Some(b)) => found(b, Change { added: true, ..Change::default() })?,
            (_, Some(a), Some(b)) => {
                let change = changed(older, a, newer, b)?;
                if change != Change::default() {
                    found(b, change)?;
                }
            }
            _ => return Ok(()),
        }
        if order != Ordering::Greater {
            old = old_rows.next().transpose()?;
        }
        if order != Ordering::Less {
            new = new_rows.next().transpose()?;
        }
    }
}

fn changed(older: &Chain, a: &Row, newer: &Chain, b: &Row) -> Result<Change> {
    let (x, y) = (&a.entry, &b.entry);
    let r#type = x.kind != y.kind;
    let mut content = !r#type && (x.size != y.size || x.link != y.link || x.rdev != y.rdev);
    if !r#type && !content && x.kind == EntryKind::File {
        // The digest of a sparse file is that of its runs joined, so the runs count too.
        content = older.digest(a)? != newer.digest(b)? || x.sparse != y.sparse;
    }
    let meta = |e: &crate::model::entry::Entry| (e.mode, e.uid, e.gid, e.mtime);
    let metadata = x.kind != EntryKind::HardLink && (meta(x) != meta(y) || x.xattrs != y.xattrs);
    Ok(Change { r#type, content, metadata, ..Change::default() })
}

//! Whether something is mounted where it should be: an empty mount point looks like a directory that lost all it had.

use std::{os::fd::AsFd, path::Path};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};

use super::local::LocalStore;
use crate::error::{Error, Kind, Result};

/// Fails when `path` is not the root of a mounted file system.
pub fn require(path: &Path) -> Result<()> {
    mounted(path).map(|_| ())
}

/// Fails when nothing is mounted at `path`, or when what is held of the volume is on another file system.
pub fn require_of(store: &LocalStore, path: &Path) -> Result<()> {
    let wrong = |what: String| Error::new(Kind::Volume, what).with_hint("is it mounted?");
    let mounted = mounted(path).map_err(|e| e.with_kind(Kind::Volume))?;
    let held = statx(store.root().as_fd(), "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
        .map_err(|e| Error::io("cannot look at the volume", e).with_kind(Kind::Volume))?;
    if (held.stx_dev_major, held.stx_dev_minor) != mounted {
        return Err(wrong(format!("the volume does not lie in what is mounted at {}", path.display())));
    }
    Ok(())
}

/// The device that is mounted at `path`.
fn mounted(path: &Path) -> Result<(u32, u32)> {
    let shown = path.display();
    let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS)
        .map_err(|e| Error::io(format!("cannot look at {shown}"), e).with_kind(Kind::Other))?;
    if !stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Error::new(Kind::Other, format!("this system does not tell whether {shown} is a mount point"))
            .with_hint("it takes Linux 5.8; leave `require_mount` out"));
    }
    if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(Error::new(Kind::Other, format!("nothing is mounted at {shown}"))
            .with_hint(format!("`require_mount` asks for it: mount {shown}")));
    }
    Ok((stat.stx_dev_major, stat.stx_dev_minor))
}

//! A volume: a store whose `bk-volume.json` was read and is one this bk knows.

use std::{path::Path, sync::Arc};

use super::{Created, Store, copies::Copies, limit::Limited, local::LocalStore, near::Near, probe, s3::S3Store};
use crate::{
    error::{Error, Kind, Result},
    format::{
        layout::VOLUME_KEY,
        volume::{FORMAT_VERSION, VolumeFile, VolumeTag},
    },
    model::{
        ids::Nonce,
        place::{Access, Bucket, Place},
        time::Instant,
    },
};

/// A volume that was found to be one.
#[derive(Clone)]
pub struct Volume {
    /// Its objects.
    pub store: Arc<dyn Store>,
    /// Its own document.
    pub file: VolumeFile,
    /// Where it is, for messages: `/srv/bk`.
    pub shown: String,
}

/// Longest `bk-volume.json`, bytes.
const VOLUME_FILE_MAX: u64 = 64 << 10;
/// What copies of records and indexes take on this machine, when nothing else is said, bytes.
const CACHE_LEN: u64 = 1 << 30;

/// Makes a volume at a place that is empty, or not there yet.
pub fn create(place: &Place, access: &Access, now: Instant) -> Result<Volume> {
    match place {
        Place::Dir(_) if access.exclusive_writer => {
            Err(Error::usage("a directory knows conditional create: --exclusive-writer is for stores that do not"))
        }
        Place::Dir(path) => create_local(path, now),
        Place::S3(bucket) => create_s3(bucket, access, now),
    }
}

/// Opens the volume at a place.
pub fn open(place: &Place, access: &Access) -> Result<Volume> {
    match place {
        Place::Dir(path) => {
            let mut volume = open_local(path)?;
            volume.store = limited(volume.store, access);
            Ok(volume)
        }
        Place::S3(bucket) => {
            let store = S3Store::open(bucket, access)?;
            let mut volume = open_on(Arc::new(store.clone()), bucket.to_string()).map_err(unreachable)?;
            if volume.file.exclusive_writer {
                store.set_exclusive();
            }
            volume.store = limited(volume.store, access);
            let copies = if access.no_cache {
                None
            } else {
                Copies::of(volume.file.id.as_str(), access.cache_len.unwrap_or(CACHE_LEN))
            };
            volume.store = Arc::new(Near::new(volume.store, copies));
            Ok(volume)
        }
    }
}

fn limited(store: Arc<dyn Store>, access: &Access) -> Arc<dyn Store> {
    Limited::over(store, access.limit_upload, access.limit_download, &access.stop)
}

/// A store that cannot be asked whether it is a volume is none that can be used.
fn unreachable(error: Error) -> Error {
    if error.kind() == Kind::Other { error.with_kind(Kind::Volume) } else { error }
}

/// Makes a prefix a volume: nothing may lie below it, and the store must keep what bk relies on.
fn create_s3(bucket: &Bucket, access: &Access, now: Instant) -> Result<Volume> {
    let (store, shown) = (S3Store::open(bucket, access)?, bucket.to_string());
    if store.head(VOLUME_KEY).map_err(unreachable)?.is_some() {
        return Err(Error::new(Kind::Volume, format!("{shown} is a volume already"))
            .with_hint(format!("`bk volume info {shown}` shows it")));
    }
    let found = store.list("").map_err(unreachable)?;
    if let Some(item) = found.iter().find(|item| !probe::is_of_probe(&item.key)) {
        let name = crate::model::show::name(item.key.as_bytes());
        return Err(Error::new(Kind::Volume, format!("{shown} is not empty: it holds `{name}`"))
            .with_hint("a volume wants a prefix of its own"));
    }
    let found = probe::run(&store);
    let is_shared = found.as_ref().is_ok_and(probe::Findings::is_for_many);
    if access.exclusive_writer && !is_shared {
        store.set_exclusive();
        probe::run(&store).map_err(unreachable)?.require(&shown, true)?;
    } else {
        found.map_err(unreachable)?.require(&shown, false)?;
    }
    create_as(Arc::new(store), shown, now, access.exclusive_writer && !is_shared)
}

/// Makes `path` a volume: the directory is created when it is missing and must be empty otherwise.
fn create_local(path: &Path, now: Instant) -> Result<Volume> {
    use std::os::unix::fs::DirBuilderExt;
    let shown = path.display().to_string();
    let volume_error = |what: &str, e: std::io::Error| {
        let error = Error::io(format!("cannot {what} {shown}"), e);
        if error.kind() == Kind::NoSpace { error } else { error.with_kind(Kind::Volume) }
    };
    match std::fs::DirBuilder::new().mode(0o700).recursive(true).create(path) {
        Ok(()) => {}
        Err(e) => return Err(volume_error("make", e)),
    }
    let store = LocalStore::open(path)?;
    if store.head(VOLUME_KEY)?.is_some() {
        return Err(Error::new(Kind::Volume, format!("{shown} is a volume already"))
            .with_hint(format!("`bk volume info {shown}` shows it")));
    }
    let mut found = std::fs::read_dir(path).map_err(|e| volume_error("read", e))?;
    if let Some(Ok(entry)) = found.find(|e| !matches!(e, Ok(e) if e.file_name() == "lost+found")) {
        let name = crate::model::show::name(entry.file_name().as_encoded_bytes());
        return Err(Error::new(Kind::Volume, format!("{shown} is not empty: it holds `{name}`"))
            .with_hint("a volume wants a directory of its own"));
    }
    let volume = create_as(Arc::new(store), shown.clone(), now, false)?;
    // The directory's own name must survive a power cut too.
    let parent = std::path::absolute(path).ok().and_then(|p| p.parent().map(Path::to_owned));
    if let Some(parent) = parent {
        std::fs::File::open(&parent).and_then(|dir| dir.sync_all()).map_err(|e| volume_error("make durable", e))?;
    }
    Ok(volume)
}

/// Makes an empty store a volume; `shown` is its name in messages.
pub fn create_on(store: Arc<dyn Store>, shown: String, now: Instant) -> Result<Volume> {
    create_as(store, shown, now, false)
}

fn create_as(store: Arc<dyn Store>, shown: String, now: Instant, exclusive_writer: bool) -> Result<Volume> {
    let file = VolumeFile {
        r#type: VolumeTag::Volume,
        format_version: FORMAT_VERSION,
        id: Nonce::new()?,
        created_at: now,
        exclusive_writer,
    };
    match store.put_new(VOLUME_KEY, &file.encode()?)? {
        Created::New => Ok(Volume { store, file, shown }),
        Created::Exists => Err(Error::new(Kind::Volume, format!("{shown} was made a volume meanwhile"))),
    }
}

/// What a directory that is no volume makes one ask.
const IS_MOUNTED: &str = "is it mounted? ";

/// Opens the volume at `path`.
fn open_local(path: &Path) -> Result<Volume> {
    let shown = path.display().to_string();
    let store = LocalStore::open(path)
        .map_err(|e| e.with_hint(format!("{IS_MOUNTED}`bk volume create {shown}` makes a new one")))?;
    open_or(Arc::new(store), shown, IS_MOUNTED)
}

/// Opens the volume in a store; `shown` is its name in messages.
pub fn open_on(store: Arc<dyn Store>, shown: String) -> Result<Volume> {
    open_or(store, shown, "")
}

/// The same; where there is none, `first` is asked in the hint.
fn open_or(store: Arc<dyn Store>, shown: String, first: &str) -> Result<Volume> {
    let Some(bytes) = store.find(VOLUME_KEY, VOLUME_FILE_MAX)? else {
        return Err(Error::new(Kind::Volume, format!("{shown} is not a volume: it has no {VOLUME_KEY}"))
            .with_hint(format!("{first}`bk volume create {shown}` makes a new one")));
    };
    let file = VolumeFile::decode(&bytes).map_err(|e| e.context(format!("{VOLUME_KEY} in {shown}")))?;
    Ok(Volume { store, file, shown })
}

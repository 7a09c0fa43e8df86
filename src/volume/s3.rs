//! A volume below a prefix of an S3 bucket.
//!
//! The store is synchronous like every other: each call runs on a small runtime of its own, from whatever thread. Objects
//! are single PUTs that only create (`If-None-Match: *`), never multipart uploads, so nothing half done can lie about.
//! An answer that leaves open whether the server did it (no answer, 5xx, 409, 412) is settled by reading the object back:
//! the same bytes are ours, others are another's, none means try again. What was created is looked at once more before it
//! counts. A listing is whole or an error.

mod ahead;
mod body;
mod open;
mod read;
mod retry;
mod upload;
mod watch;
mod wire;

use std::{
    future::Future,
    ops::Range,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{
    StreamExt, TryStreamExt,
    future::{Either, select},
    stream,
};
use object_store::{
    ObjectStore, ObjectStoreExt, PutMode,
    aws::{AmazonS3, AmazonS3Builder},
    list::{PaginatedListOptions, PaginatedListStore},
    path::Path,
};
use tokio::{runtime::Runtime, task::JoinHandle, time::Instant};

use super::{Created, Item, Requests, Store, Upload};
use crate::{
    error::{Error, Kind, Result},
    format::{envelope, layout::check_key},
    model::{ids::Nonce, place::Bucket},
};
use ahead::Ahead;
use body::Body;
use retry::{Failure, Fault, Limits, once, pause, until_done, while_moving};
use upload::{Budget, S3Upload};
use watch::{GRACE, Watch};
use wire::Counts;

/// Objects are compared with what was sent in ranges of this many bytes.
const COMPARE_LEN: usize = 8 << 20;
/// Keys a bulk delete names at most; S3 allows no more.
const DELETE_COUNT_MAX: usize = 1000;
/// Single deletes at the same time, where there is no bulk delete.
const DELETES_AT_ONCE: usize = 16;
/// Pages of one listing at most: 100 million keys.
const PAGE_COUNT_MAX: usize = 100_000;

/// A prefix of a bucket as a store.
#[derive(Clone)]
pub struct S3Store {
    inner: Arc<Inner>,
    threads: Arc<Threads>,
}

/// The threads that wait for the network. They are left behind when the store goes: a name that is being looked up
/// cannot be called off, and nobody is to wait for it.
struct Threads(Option<Runtime>);

impl Threads {
    fn block_on<F: Future>(&self, doing: F) -> Option<F::Output> {
        self.0.as_ref().map(|runtime| runtime.block_on(doing))
    }

    fn spawn<T: Send + 'static>(&self, doing: impl Future<Output = T> + Send + 'static) -> Option<JoinHandle<T>> {
        self.0.as_ref().map(|runtime| runtime.spawn(doing))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

struct Inner {
    client: AmazonS3,
    /// The same with bulk delete, made when it is first needed.
    bulk: OnceLock<AmazonS3>,
    /// Whether the store was found to know no bulk delete.
    has_no_bulk: AtomicBool,
    /// Whether nobody else writes at the same time, and the store knows no conditional create.
    is_exclusive: AtomicBool,
    builder: AmazonS3Builder,
    bucket: Bucket,
    patience: Limits,
    is_in_a_hurry: AtomicBool,
    counts: Arc<Counts>,
    budget: Arc<Budget>,
    watch: Watch,
    ahead: Ahead,
    /// What is spooled and longer is sent from its file.
    in_memory_len_max: u64,
}

impl Inner {
    fn limits(&self) -> Limits {
        if self.is_in_a_hurry.load(Ordering::Relaxed) { self.patience.in_a_hurry() } else { self.patience }
    }

    fn full(&self, key: &str) -> String {
        match self.bucket.prefix.as_str() {
            "" => key.to_owned(),
            prefix => format!("{prefix}/{key}"),
        }
    }

    fn path(&self, key: &str) -> Result<Path> {
        check_key(key)?;
        Path::parse(self.full(key)).map_err(|e| Error::usage(format!("not a key of a volume: {e}")))
    }

    fn failed<'a>(&'a self, doing: &'a str, key: &'a str) -> impl Fn(Failure) -> Error + 'a {
        move |failure| failure.into_error(format!("cannot {doing} {key} in {}", self.bucket))
    }

    /// Creates an object, unless another has its key. One of the same bytes is taken for ours: keys are never used twice.
    async fn create_object(&self, key: &str, body: Body) -> Result<Created> {
        let path = self.path(key)?;
        let len = body.len();
        let started = Instant::now();
        // How long the longest try moved.
        let mut longest = Duration::ZERO;
        // Whether a try may have reached the store and not been answered: it may still be done there, later.
        let mut is_on_its_way = false;
        for tries in 1.. {
            let mode = if self.is_exclusive.load(Ordering::Relaxed) {
                // No condition keeps another's object from being replaced: it is looked for.
                if let Some(created) = self.settle(key, &path, &body).await? {
                    return Ok(created);
                }
                PutMode::Overwrite
            } else {
                PutMode::Create
            };
            let put = body.put(&self.client, &path, mode);
            let (moved, ended) = while_moving(self.limits(), &body, put).await;
            longest = longest.max(moved);
            let failure = match ended {
                Ok(()) => return self.confirm(key, &path, len).await,
                Err(failure) => failure,
            };
            let failure = match failure.fault {
                // Ours, of a try that was not answered or was sent twice, or another's.
                Fault::Taken => match self.settle(key, &path, &body).await? {
                    Some(created) => return Ok(created),
                    None => failure,
                },
                Fault::Again => failure,
                // No plain no: what is done later would be called done by nobody.
                Fault::Full if is_on_its_way => {
                    return match self.settle(key, &path, &body).await {
                        Ok(Some(Created::New)) => Ok(Created::New),
                        _ => Err(self.failed("store", key)(failure).with_kind(Kind::Volume)),
                    };
                }
                _ if failure.status == Some(501) => return Err(self.is_unconditional(&failure)),
                _ => return Err(self.failed("store", key)(failure)),
            };
            is_on_its_way |=
                failure.fault == Fault::Again && failure.was_sent && failure.status.is_none_or(|status| status >= 500);
            let one = longest.max(self.limits().attempt(len));
            if let Err(spent) = pause(self.limits(), (started, one), tries, failure).await {
                // The last look: what is there is not called failed.
                return match self.settle(key, &path, &body).await {
                    Ok(Some(Created::New)) => Ok(Created::New),
                    _ => Err(self.failed("store", key)(spent)),
                };
            }
        }
        Err(Error::new(Kind::Other, format!("cannot store {key}: tried too often")))
    }

    fn is_unconditional(&self, failure: &Failure) -> Error {
        let what = format!("{} has no conditional create (If-None-Match): {}", self.bucket, failure.text);
        Error::new(Kind::Volume, what)
            .with_hint("bk needs it, so that two runs never write the same record: see docs/s3.md")
    }

    /// Looks at an object the server says it has created: some have said so and kept nothing.
    async fn confirm(&self, key: &str, path: &Path, len: u64) -> Result<Created> {
        match self.len(path).await.map_err(self.failed("look at", key))? {
            Some(found) if found == len => Ok(Created::New),
            Some(found) => Err(Error::integrity(format!("{key} has {found} bytes in {}, not {len}", self.bucket))),
            None => Err(Error::integrity(format!("{key} was stored in {}, but is not there", self.bucket))),
        }
    }

    /// Whose object lies at a key: ours, another's, or none.
    async fn settle(&self, key: &str, path: &Path, body: &Body) -> Result<Option<Created>> {
        match self.compare(path, body).await {
            Ok(true) => Ok(Some(Created::New)),
            Ok(false) => Ok(Some(Created::Exists)),
            Err(failure) if failure.fault == Fault::Missing => Ok(None),
            Err(failure) => Err(self.failed("read back", key)(failure)),
        }
    }

    async fn compare(&self, path: &Path, body: &Body) -> Result<bool, Failure> {
        let len = body.len();
        let Some(found) = self.len(path).await? else {
            return Err(Failure { fault: Fault::Missing, ..Failure::broken("not there") });
        };
        if found != len {
            return Ok(false);
        }
        let mut buf = Vec::new();
        for at in (0..len).step_by(COMPARE_LEN) {
            buf.resize(COMPARE_LEN.min(usize::try_from(len - at).unwrap_or(COMPARE_LEN)), 0);
            self.fill(path, at, &mut buf).await?;
            if !body.has(at, &buf).map_err(|e| Failure::ours(format!("cannot read a temporary file: {e}")))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Item>> {
        let full = self.full(prefix);
        let full = Some(full.as_str()).filter(|full| !full.is_empty());
        let above = self.full("").len();
        let (mut items, mut token) = (Vec::new(), None);
        for _ in 0..PAGE_COUNT_MAX {
            let options = || PaginatedListOptions { page_token: token.clone(), ..PaginatedListOptions::default() };
            let page = || once(self.limits(), self.client.list_paginated(full, options()));
            let page = until_done(self.limits(), page)
                .await
                .map_err(self.failed("list", if prefix.is_empty() { "all" } else { prefix }))?;
            for object in page.result.objects {
                let key = object.location.as_ref();
                let key = match (key.get(above..), full) {
                    (Some(own), Some(full)) if key.starts_with(full) => own,
                    (Some(own), None) => own,
                    _ => {
                        let what = format!("the listing of {full:?} in {} holds another's key", self.bucket);
                        return Err(Error::integrity(what));
                    }
                };
                let stored_unix_ms = u64::try_from(object.last_modified.timestamp_millis()).ok();
                items.push(Item { key: key.to_owned(), len: object.size, stored_unix_ms });
            }
            match page.page_token {
                None => {
                    items.sort_by(|a, b| a.key.cmp(&b.key));
                    items.dedup();
                    return Ok(items);
                }
                next if next == token => break,
                next => token = next,
            }
        }
        Err(Error::integrity(format!("the listing of {prefix} in {} does not end", self.bucket)))
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key)?;
        match until_done(self.limits(), || once(self.limits(), self.client.delete(&path))).await {
            Ok(()) => Ok(()),
            Err(failure) if failure.fault == Fault::Missing => Ok(()),
            Err(failure) => Err(self.failed("delete", key)(failure)),
        }
    }

    /// Deletes up to [`DELETE_COUNT_MAX`] objects at once; false when the store cannot, or will not: Ceph asks for a right to the whole
    /// bucket then, where a right to the objects is enough to delete each.
    async fn delete_bulk(&self, keys: &[String]) -> Result<bool> {
        let paths = keys.iter().map(|key| self.path(key)).collect::<Result<Vec<Path>>>()?;
        let client = match self.bulk.get() {
            Some(client) => client,
            None => {
                let made = self.builder.clone().with_disable_bulk_delete(false).build();
                let made = made.map_err(|e| Error::new(Kind::Other, format!("cannot reach {}: {e}", self.bucket)))?;
                self.bulk.get_or_init(|| made)
            }
        };
        let request = || {
            let locations = stream::iter(paths.clone().into_iter().map(Ok)).boxed();
            once(self.limits(), client.delete_stream(locations).try_for_each(|_| async { Ok(()) }))
        };
        match until_done(self.limits(), request).await {
            Ok(()) => Ok(true),
            Err(failure) if matches!(failure.status, Some(400 | 403 | 405 | 411 | 501)) => Ok(false),
            Err(failure) => Err(self.failed("delete", &keys[0])(failure)),
        }
    }

    async fn delete_all(&self, keys: &[String]) -> Result<()> {
        for some in keys.chunks(DELETE_COUNT_MAX) {
            if some.len() > 1 && !self.has_no_bulk.load(Ordering::Relaxed) {
                if self.delete_bulk(some).await? {
                    continue;
                }
                self.has_no_bulk.store(true, Ordering::Relaxed);
            }
            stream::iter(some).map(Ok).try_for_each_concurrent(DELETES_AT_ONCE, |key| self.delete(key)).await?;
        }
        Ok(())
    }
}

/// An unnamed file in the directory for temporary ones.
fn scratch_file() -> Result<std::fs::File> {
    super::local::unnamed_in(&std::env::temp_dir())
}

/// Waits for `doing`, or for a signal: then it goes on for `grace`, and is given up.
fn wait<T>(inner: &Inner, threads: &Threads, grace: Duration, doing: impl Future<Output = Result<T>>) -> Result<T> {
    let either = threads.block_on(async {
        match select(pin!(doing), pin!(inner.watch.ended(grace))).await {
            Either::Left((done, _)) => done,
            Either::Right((signal, _)) => Err(signal),
        }
    });
    either.unwrap_or_else(|| Err(Error::new(Kind::Other, "the store was left")))
}

impl S3Store {
    /// From now on what is there is looked for before it is created: nobody else may write at the same time.
    pub(super) fn set_exclusive(&self) {
        self.inner.is_exclusive.store(true, Ordering::Relaxed);
    }

    fn wait<T>(&self, doing: impl Future<Output = Result<T>>) -> Result<T> {
        wait(&self.inner, &self.threads, GRACE, doing)
    }
}

impl Store for S3Store {
    fn create(&self, key: &str) -> Result<Box<dyn Upload>> {
        check_key(key)?;
        // An index grows as long as the run lasts, parts are soon full.
        let is_spooled = key.ends_with(".bki");
        Ok(Box::new(S3Upload::new(Arc::clone(&self.inner), Arc::clone(&self.threads), key, is_spooled)?))
    }

    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Created> {
        self.wait(self.inner.create_object(key, bytes.to_vec().into()))
    }

    fn read_at(&self, key: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        let path = self.inner.path(key)?;
        if buf.is_empty() {
            return Ok(());
        }
        if self.take_ahead(key, offset, buf)? {
            return Ok(());
        }
        let end = offset.saturating_add(buf.len() as u64);
        let fill = async {
            self.inner.fill(&path, offset, buf).await.map_err(|failure| match failure.status {
                Some(416) => Error::integrity(format!("{key} ends before byte {end}")),
                _ => self.inner.missing_or(failure, key),
            })
        };
        // Bytes that were read count for nothing once the run is to end.
        wait(&self.inner, &self.threads, Duration::ZERO, fill)
    }

    fn read(&self, key: &str, len_max: u64) -> Result<Vec<u8>> {
        self.find(key, len_max)?.ok_or_else(|| Error::integrity(format!("{key} is missing in {}", self.inner.bucket)))
    }

    fn find(&self, key: &str, len_max: u64) -> Result<Option<Vec<u8>>> {
        let path = self.inner.path(key)?;
        let read = async || match self.inner.whole(&path, len_max).await {
            Ok(Some(bytes)) => Ok(Some(bytes)),
            Ok(None) => Err(Error::integrity(format!("{key} is longer than {len_max} bytes"))),
            Err(failure) if failure.fault == Fault::Missing => Ok(None),
            Err(failure) => Err(self.inner.failed("read", key)(failure)),
        };
        let found = self.wait(read())?;
        // A document that was damaged on its way here is whole the next time; one that is damaged there is not.
        match found {
            Some(bytes) if key.ends_with(".json") && envelope::digest(&bytes).is_err() => self.wait(read()),
            found => Ok(found),
        }
    }

    fn expect(&self, key: &str, range: Range<u64>) {
        self.expect_soon(key, range);
    }

    fn ahead_len(&self) -> u64 {
        ahead::WINDOW_LEN
    }

    fn forget(&self, key: &str) {
        self.inner.ahead.forget(key);
    }

    fn head(&self, key: &str) -> Result<Option<u64>> {
        let path = self.inner.path(key)?;
        self.wait(async { self.inner.len(&path).await.map_err(self.inner.failed("look at", key)) })
    }

    fn list(&self, prefix: &str) -> Result<Vec<Item>> {
        self.wait(self.inner.list(prefix))
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.wait(self.inner.delete(key))
    }

    fn delete_all(&self, keys: &[String]) -> Result<()> {
        self.wait(self.inner.delete_all(keys))
    }

    fn free_bytes(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn scratch(&self) -> Result<std::fs::File> {
        scratch_file()
    }

    fn check_writable(&self) -> Result<()> {
        let key = format!("bk-probe-{}", Nonce::new()?.as_str());
        let (first, second) = (b"bk writes here\n", b"bk wrote there\n");
        let tried = || {
            self.put_new(&key, first)?;
            let found = self.read(&key, 64)?;
            // What held when the volume was made may hold no more: Ceph forgets it in a bucket that keeps versions.
            let again = self.put_new(&key, second)?;
            self.delete(&key)?;
            if found != first {
                return Err(Error::integrity("a test object came back changed"));
            }
            if again == Created::New {
                let what =
                    format!("{} let a key be created twice: conditional create does not hold", self.inner.bucket);
                return Err(Error::new(Kind::Volume, what).with_hint(
                    "is its bucket set to keep versions? Two runs could both believe that their snapshot is listed: see `bk volume check` and docs/s3.md",
                ));
            }
            Ok(())
        };
        tried().map_err(|e: Error| match e.kind() {
            Kind::Other => e.with_kind(Kind::Volume),
            _ => e,
        })
    }

    fn hurry(&self) {
        self.inner.is_in_a_hurry.store(true, Ordering::Relaxed);
    }

    fn now(&self) -> Option<crate::model::time::Instant> {
        self.inner.counts.now()
    }

    fn requests(&self) -> Option<Requests> {
        Some(self.inner.counts.read())
    }
}

impl Inner {
    fn missing_or(&self, failure: Failure, key: &str) -> Error {
        match failure.fault {
            Fault::Missing => Error::integrity(format!("{key} is missing in {}", self.bucket)),
            _ => self.failed("read", key)(failure),
        }
    }
}

//! Reading objects: whole ones, and ranges of them into memory that is there already.

use std::ops::Range;

use futures_util::TryStreamExt;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, path::Path};
use tokio::time::Instant;

use super::{
    Inner,
    retry::{Failure, Fault, once, pause, until_done},
};

impl Inner {
    pub(super) async fn len(&self, path: &Path) -> Result<Option<u64>, Failure> {
        let head = || once(self.limits(), 0, self.client.head(path));
        match until_done(self.limits(), 0, head).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(failure) if failure.fault == Fault::Missing => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Fills `buf` from `offset` on.
    pub(super) async fn fill(&self, path: &Path, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        let len = buf.len() as u64;
        let started = Instant::now();
        for tries in 1.. {
            let time = self.limits().attempt(len);
            let one = tokio::time::timeout(time, self.fill_once(path, offset..offset + len, buf));
            match one.await.unwrap_or_else(|_| Err(Failure::timeout(time))) {
                Err(failure) if failure.fault == Fault::Again => {
                    pause(self.limits(), (started, time), tries, failure).await?;
                }
                ended => return ended,
            }
        }
        Err(Failure::broken("tried too often"))
    }

    pub(super) async fn fill_once(&self, path: &Path, range: Range<u64>, buf: &mut [u8]) -> Result<(), Failure> {
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let found = self.client.get_opts(path, options).await?;
        if found.meta.size < range.end {
            // As the server says that there is no such range.
            return Err(Failure { fault: Fault::Final, status: Some(416), ..Failure::broken("it ends before") });
        }
        if found.range != range {
            return Err(Failure::broken("another range came than was asked for"));
        }
        let mut chunks = found.into_stream();
        let mut at = 0;
        while let Some(chunk) = chunks.try_next().await? {
            let Some(place) = buf.get_mut(at..at + chunk.len()) else {
                return Err(Failure::broken("more bytes came than were asked for"));
            };
            place.copy_from_slice(&chunk);
            at += chunk.len();
        }
        if at == buf.len() { Ok(()) } else { Err(Failure::broken("fewer bytes came than were asked for")) }
    }

    /// A whole object of at most `len_max` bytes; `None` when it is longer.
    pub(super) async fn whole(&self, path: &Path, len_max: u64) -> Result<Option<Vec<u8>>, Failure> {
        let get = || async {
            let found = once(self.limits(), 0, self.client.get(path)).await?;
            let size = found.meta.size;
            if size > len_max {
                return Ok(None);
            }
            let body = async {
                let (mut chunks, mut bytes) = (found.into_stream(), Vec::new());
                while let Some(chunk) = chunks.try_next().await? {
                    if (bytes.len() + chunk.len()) as u64 > size {
                        return Err(Failure::broken("more bytes came than it has"));
                    }
                    bytes.extend_from_slice(&chunk);
                }
                Ok(bytes)
            };
            let time = self.limits().attempt(size);
            let bytes = tokio::time::timeout(time, body).await.unwrap_or_else(|_| Err(Failure::timeout(time)))?;
            if bytes.len() as u64 == size {
                Ok(Some(bytes))
            } else {
                Err(Failure::broken("fewer bytes came than it has"))
            }
        };
        until_done(self.limits(), 0, get).await
    }
}

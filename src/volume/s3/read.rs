//! Reading objects: whole ones, and ranges of them into memory that is there already.

use futures_util::TryStreamExt;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, path::Path};
use tokio::time::Instant;

use super::{
    Inner,
    retry::{Failure, Fault, once, pause, until_done},
};

impl Inner {
    pub(super) async fn len(&self, path: &Path) -> Result<Option<u64>, Failure> {
        let head = || once(self.limits(), self.client.head(path));
        match until_done(self.limits(), head).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(failure) if failure.fault == Fault::Missing => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Fills `buf` from `offset` on. A try goes on as long as bytes come, and the next one where it ended.
    pub(super) async fn fill(&self, path: &Path, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        let limits = self.limits();
        let (mut filled, mut tries, mut moved_at) = (0, 0, Instant::now());
        loop {
            let before = filled;
            match self.fill_once(path, offset, buf, &mut filled).await {
                // All of it came, however the connection ended.
                Err(failure) if failure.fault == Fault::Again && filled == buf.len() => return Ok(()),
                Err(failure) if failure.fault == Fault::Again => {
                    if filled > before {
                        (tries, moved_at) = (0, Instant::now());
                    }
                    tries += 1;
                    pause(limits, (moved_at, limits.attempt(0)), tries, failure).await?;
                }
                ended => return ended,
            }
        }
    }

    /// One try to fill what of `buf` is not filled yet.
    async fn fill_once(&self, path: &Path, offset: u64, buf: &mut [u8], filled: &mut usize) -> Result<(), Failure> {
        let limits = self.limits();
        let range = offset.saturating_add(*filled as u64)..offset.saturating_add(buf.len() as u64);
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let found = once(limits, self.client.get_opts(path, options)).await?;
        if found.meta.size < range.end {
            // As the server says that there is no such range.
            return Err(Failure { fault: Fault::Final, status: Some(416), ..Failure::broken("it ends before") });
        }
        if found.range != range {
            return Err(Failure::broken("another range came than was asked for"));
        }
        let mut chunks = found.into_stream();
        while let Some(chunk) = once(limits, chunks.try_next()).await? {
            let Some(place) = buf.get_mut(*filled..*filled + chunk.len()) else {
                *filled = 0;
                return Err(Failure::broken("more bytes came than were asked for"));
            };
            place.copy_from_slice(&chunk);
            *filled += chunk.len();
        }
        if *filled == buf.len() { Ok(()) } else { Err(Failure::broken("fewer bytes came than were asked for")) }
    }

    /// A whole object of at most `len_max` bytes; `None` when it is longer.
    pub(super) async fn whole(&self, path: &Path, len_max: u64) -> Result<Option<Vec<u8>>, Failure> {
        let get = || async {
            let found = once(self.limits(), self.client.get(path)).await?;
            let size = found.meta.size;
            if size > len_max {
                return Ok(None);
            }
            let (mut chunks, mut bytes) = (found.into_stream(), Vec::new());
            while let Some(chunk) = once(self.limits(), chunks.try_next()).await? {
                if (bytes.len() + chunk.len()) as u64 > size {
                    return Err(Failure::broken("more bytes came than it has"));
                }
                bytes.extend_from_slice(&chunk);
            }
            if bytes.len() as u64 == size {
                Ok(Some(bytes))
            } else {
                Err(Failure::broken("fewer bytes came than it has"))
            }
        };
        until_done(self.limits(), get).await
    }
}

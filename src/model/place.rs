//! Where a volume is, as it was named: a directory, or a bucket and a prefix in it.

use std::{fmt, path::PathBuf};

use super::{ids::Nonce, stop::Stop};
use crate::error::{Error, Result};

/// A directory or an S3 prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `/srv/bk` or `file:///srv/bk`
    Dir(PathBuf),
    /// `s3://bucket/prefix`
    S3(Bucket),
}

/// A bucket and the prefix of the volume's keys in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// The bucket's name.
    pub name: String,
    /// Without `/` at its ends; empty for the whole bucket.
    pub prefix: String,
}

/// How an S3 store is reached, beside what the environment says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// URL of the server; AWS's own when nothing names another.
    pub endpoint: Option<String>,
    /// The region requests are signed for.
    pub region: Option<String>,
    /// The bucket goes into the path of the URL, never into the host's name.
    pub path_style: bool,
    /// Certificates to trust beside the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// Keep no copies of records and indexes on this machine.
    pub no_cache: bool,
    /// Copies of all volumes take at most so many bytes here, when that is said.
    pub cache_len: Option<u64>,
    /// A volume may be made on a store without conditional create: only one process at a time will write to it.
    pub exclusive_writer: bool,
    /// Bytes a second that are sent at most, on average.
    pub limit_upload: Option<u64>,
    /// Bytes a second that are fetched at most, on average.
    pub limit_download: Option<u64>,
    /// A signal that ends what waits for the store.
    pub stop: Stop,
    /// Bytes held for uploads.
    pub in_flight: Option<u64>,
    /// The keys requests are signed with; else the environment's, or the machine's.
    pub keys: Option<Keys>,
}

/// Keys of an S3 store. The secret ones are never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// The access key id.
    pub id: String,
    /// The secret access key.
    pub secret: String,
    /// The session's token, for keys that end.
    pub token: Option<String>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What a volume must look like before anything is done with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Its id.
    pub id: Option<Nonce>,
    /// A file system is mounted here, and the volume lies in it.
    pub mount_point: Option<PathBuf>,
    /// Less free space is an error before a snapshot, bytes.
    pub min_free: Option<u64>,
}

impl Place {
    /// Reads `s3://bucket/prefix`, `file:///dir` or a path.
    pub fn parse(typed: PathBuf) -> Result<Self> {
        let Some(text) = typed.to_str() else { return Ok(Self::Dir(typed)) };
        if let Some(rest) = text.strip_prefix("file://") {
            return match rest.starts_with('/') {
                true => Ok(Self::Dir(PathBuf::from(rest))),
                false => Err(Error::usage(format!("not an absolute path: `{text}`")).with_hint("write file:///DIR")),
            };
        }
        match text.split_once("://") {
            Some(("s3", rest)) => Bucket::parse(rest).map(Self::S3),
            Some((scheme, _)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                Err(Error::usage(format!("bk knows no volumes at {scheme}://"))
                    .with_hint("a directory, file:///DIR or s3://BUCKET/PREFIX"))
            }
            _ => Ok(Self::Dir(typed)),
        }
    }
}

impl Bucket {
    fn parse(rest: &str) -> Result<Self> {
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        let is_plain = |text: &str| {
            !text.is_empty()
                && !matches!(text, "." | "..")
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if is_plain(name) && (prefix.is_empty() || prefix.split('/').all(is_plain)) {
            return Ok(Self { name: name.to_owned(), prefix: prefix.to_owned() });
        }
        Err(Error::usage(format!("not a bucket and a prefix: `s3://{rest}`"))
            .with_hint("s3://BUCKET/PREFIX, of letters, digits, `.`, `_`, `-`, and `/` between"))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => write!(f, "{}", path.display()),
            Self::S3(bucket) => bucket.fmt(f),
        }
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix.as_str() {
            "" => write!(f, "s3://{}", self.name),
            prefix => write!(f, "s3://{}/{prefix}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let parse = |text: &str| Place::parse(PathBuf::from(text));
        for (typed, shown) in [
            ("/srv/bk", "/srv/bk"),
            ("rel/dir", "rel/dir"),
            ("file:///srv/bk", "/srv/bk"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://my.bucket/a/b-c/", "s3://my.bucket/a/b-c"),
        ] {
            assert_eq!(parse(typed).unwrap().to_string(), shown);
        }
        for bad in ["s3://", "s3:///a", "s3://b/a//c", "s3://b/../c", "s3://b/ä", "file://rel", "http://h/b"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}

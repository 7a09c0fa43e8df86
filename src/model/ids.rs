//! Names of things: volumes, runs, jobs, and how a user names a snapshot.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// Fresh random bytes from the system.
fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| Error::new(Kind::Other, format!("cannot get random bytes: {e}")))?;
    Ok(bytes)
}

/// A run id: a ULID. Every key below `data/` holds it, so two writers never share a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RunId(ulid::Ulid);

impl RunId {
    /// A new id for a run begun `unix_ms` milliseconds after 1970.
    pub fn new(unix_ms: u64) -> Result<Self> {
        Ok(Self(ulid::Ulid::from_parts(unix_ms, u128::from_be_bytes(random()?))))
    }

    /// When its run began, milliseconds since 1970 by the clock of its node.
    pub fn unix_ms(&self) -> u64 {
        self.0.timestamp_ms()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for RunId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match ulid::Ulid::from_string(text) {
            Ok(id) if id.to_string() == text => Ok(Self(id)),
            _ => Err(Error::usage(format!("not a run id: `{text}`"))),
        }
    }
}

/// 128 random bits in hexadecimal: the id of a volume, the nonce of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Nonce(String);

impl Nonce {
    /// A new random one.
    pub fn new() -> Result<Self> {
        let bytes: [u8; 16] = random()?;
        Ok(Self(bytes.iter().map(|b| format!("{b:02x}")).collect()))
    }

    /// The 32 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Nonce {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let valid = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if valid { Ok(Self(text)) } else { Err(format!("not 32 hexadecimal digits: `{text}`")) }
    }
}

impl From<Nonce> for String {
    fn from(nonce: Nonce) -> Self {
        nonce.0
    }
}

/// The name of a job, stream or node: `[a-z0-9][a-z0-9._-]{0,62}`; `latest` is reserved.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let starts = text.as_bytes().first().is_some_and(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9'));
        let valid = starts
            && text.len() <= 63
            && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'));
        if valid && text != "latest" {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::usage(format!("not a name: `{}`", super::show::name(text.as_bytes())))
            .with_hint("names are 1 to 63 of a-z 0-9 . _ -, begin with a letter or digit, and are not `latest`"))
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|e: Error| e.hint().map_or_else(|| e.to_string(), |hint| format!("{e}: {hint}")))
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which snapshot of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// `job/17`
    Seq(u64),
    /// `job/latest` is 0, `job/latest~2` is the second before it.
    Latest(u64),
}

/// How a user names a snapshot: `job/seq`, `job/latest`, `job/latest~N`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotName {
    /// The job.
    pub job: Name,
    /// Which of its snapshots.
    pub which: Which,
}

impl FromStr for SnapshotName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::usage(format!("not a snapshot: `{}`", super::show::name(text.as_bytes())))
                .with_hint("a snapshot is job/17, job/latest or job/latest~2; `bk list` shows them")
        };
        let (job, which) = text.split_once('/').ok_or_else(bad)?;
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| digits.parse::<u64>().ok()).flatten().ok_or_else(bad)
        };
        let which = match which.strip_prefix("latest") {
            Some("") => Which::Latest(0),
            Some(back) => Which::Latest(number(back.strip_prefix('~').ok_or_else(bad)?)?),
            None => Which::Seq(number(which)?),
        };
        Ok(Self { job: job.parse().map_err(|_| bad())?, which })
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.which {
            Which::Seq(seq) => write!(f, "{}/{seq}", self.job),
            Which::Latest(0) => write!(f, "{}/latest", self.job),
            Which::Latest(back) => write!(f, "{}/latest~{back}", self.job),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_snapshots() {
        for good in ["db/1", "db/latest", "db.x_y-z/latest~12"] {
            assert_eq!(good.parse::<SnapshotName>().map(|n| n.to_string()).ok().as_deref(), Some(good));
        }
        for bad in ["db", "/1", "db/", "db/latest~", "db/latest~x", "db/+1", "DB/1", "latest/1", "a/1/2", "../1"] {
            assert!(bad.parse::<SnapshotName>().is_err(), "{bad}");
        }
    }
}

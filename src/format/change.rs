//! Records that change what a log says of snapshots and runs: `expire`, `set-expiry`, `hold`, `release`, `sweep`.
//!
//! All have the same fields but `what`, which is the change itself. A record only names what is before it in the log.

use serde::{Deserialize, Serialize};

use super::record::{Common, Record, as_hex_option, as_text};
use crate::{
    error::{Error, Result},
    model::{
        digest::Digest,
        ids::{Name, Nonce, RunId},
        time::Instant,
    },
};

/// A record names at most this many snapshots or runs: it stays below 1 MiB.
pub const NAMES_MAX: usize = 10_000;
/// Longest comment of a hold, bytes.
pub const COMMENT_LEN_MAX: usize = 1000;

/// A change: what every record carries, and what it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change<W> {
    /// Version of the volume format.
    pub format_version: u32,
    /// The job.
    pub job: Name,
    /// The node that wrote it.
    pub node: String,
    /// Random: tells the writer whether a record is its own.
    pub nonce: Nonce,
    /// Its number in the log.
    pub seq: u64,
    /// Digest of the record before it (of its first line); null in record 1.
    #[serde(with = "as_hex_option")]
    pub prev: Option<Digest>,
    /// When it was written.
    pub written_at: Instant,
    /// The change.
    pub what: W,
}

/// A snapshot, named by both its number and its run: neither alone can be mistaken for another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// Its number in the log.
    pub seq: u64,
    /// Its run.
    #[serde(with = "as_text")]
    pub run_id: RunId,
}

/// These snapshots are gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expire {
    /// The snapshots, dependents before their bases.
    pub snapshots: Vec<Named>,
}

/// A snapshot may go at another time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetExpiry {
    /// The snapshot.
    pub snapshot: Named,
    /// When it may go; null is never. Never left out: what is left out must not mean never.
    #[serde(deserialize_with = "Option::deserialize")]
    pub expires_at: Option<Instant>,
}

/// A snapshot stays until it is released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// The snapshot.
    pub snapshot: Named,
    /// Why.
    pub comment: Option<String>,
}

/// A hold ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The snapshot.
    pub snapshot: Named,
    /// Why.
    pub comment: Option<String>,
}

/// Runs that were never recorded and now never will be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// The runs.
    pub runs: Vec<RunName>,
}

/// A run by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunName(#[serde(with = "as_text")] pub RunId);

/// What a change can be.
pub trait What: Sized {
    /// What is wrong with it in record `seq`.
    fn fault(&self, seq: u64) -> Option<&'static str>;
    /// The record of such a change.
    fn record(change: Change<Self>) -> Record;
}

impl<W: What> Change<W> {
    pub(super) fn check(&self) -> Result<()> {
        let fault = if self.seq == 0 { Some("its number is 0") } else { self.what.fault(self.seq) };
        match fault {
            Some(what) => Err(Error::integrity(format!("record {}/{}: {what}", self.job, self.seq))),
            None => Ok(()),
        }
    }

    pub(super) fn common(&self) -> Common<'_> {
        Common {
            job: &self.job,
            node: &self.node,
            seq: self.seq,
            prev: self.prev,
            nonce: &self.nonce,
            at: self.written_at,
        }
    }
}

fn named_fault(snapshot: Named, seq: u64) -> Option<&'static str> {
    (snapshot.seq == 0 || snapshot.seq >= seq).then_some("names a snapshot that is not before it")
}

fn comment_fault(comment: Option<&String>) -> Option<&'static str> {
    comment.is_some_and(|text| text.len() > COMMENT_LEN_MAX).then_some("its comment is too long")
}

fn count_fault(count: usize) -> Option<&'static str> {
    (count == 0 || count > NAMES_MAX).then_some("names nothing, or too much")
}

impl What for Expire {
    fn fault(&self, seq: u64) -> Option<&'static str> {
        count_fault(self.snapshots.len()).or_else(|| self.snapshots.iter().find_map(|&named| named_fault(named, seq)))
    }

    fn record(change: Change<Self>) -> Record {
        Record::Expire(change)
    }
}

impl What for SetExpiry {
    fn fault(&self, seq: u64) -> Option<&'static str> {
        named_fault(self.snapshot, seq)
    }

    fn record(change: Change<Self>) -> Record {
        Record::SetExpiry(change)
    }
}

impl What for Hold {
    fn fault(&self, seq: u64) -> Option<&'static str> {
        named_fault(self.snapshot, seq).or_else(|| comment_fault(self.comment.as_ref()))
    }

    fn record(change: Change<Self>) -> Record {
        Record::Hold(change)
    }
}

impl What for Release {
    fn fault(&self, seq: u64) -> Option<&'static str> {
        named_fault(self.snapshot, seq).or_else(|| comment_fault(self.comment.as_ref()))
    }

    fn record(change: Change<Self>) -> Record {
        Record::Release(change)
    }
}

impl What for Sweep {
    fn fault(&self, _: u64) -> Option<&'static str> {
        count_fault(self.runs.len())
    }

    fn record(change: Change<Self>) -> Record {
        Record::Sweep(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{envelope, volume::FORMAT_VERSION};

    fn change<W: What>(seq: u64, what: W) -> Record {
        W::record(Change {
            format_version: FORMAT_VERSION,
            job: "db".parse().unwrap(),
            node: "n1".to_owned(),
            nonce: Nonce::new().unwrap(),
            seq,
            prev: (seq > 1).then(|| Digest::of(b"before")),
            written_at: Instant::from_second(1_800_000_000).unwrap(),
            what,
        })
    }

    fn named(seq: u64) -> Named {
        Named { seq, run_id: RunId::new(1).unwrap() }
    }

    #[test]
    fn every_kind_comes_back() {
        let at = Instant::from_second(1_900_000_000).ok();
        for record in [
            change(3, Expire { snapshots: vec![named(2), named(1)] }),
            change(2, SetExpiry { snapshot: named(1), expires_at: at }),
            change(2, SetExpiry { snapshot: named(1), expires_at: None }),
            change(2, Hold { snapshot: named(1), comment: Some("audit".to_owned()) }),
            change(2, Release { snapshot: named(1), comment: None }),
            change(1, Sweep { runs: vec![RunName(RunId::new(1).unwrap())] }),
        ] {
            let bytes = record.encode().unwrap();
            assert_eq!(Record::decode(&bytes).unwrap(), record);
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.starts_with(&format!(r#"{{"type":"{}","format_version":1,"#, record.kind())), "{text}");
        }
    }

    /// As `docs/format.md` has them: these lines must be read for ever.
    #[test]
    fn written_records_are_read() {
        let head =
            r#""format_version":1,"job":"db","node":"n1","nonce":"00112233445566778899aabbccddeeff","seq":3,"prev":"#;
        let prev = Digest::of(b"before");
        let name = r#"{"seq":1,"run_id":"01ARZ3NDEKTSV4RRFFQ69G5FAV"}"#;
        for (kind, what) in [
            ("expire", format!(r#"{{"snapshots":[{name}]}}"#)),
            ("set-expiry", format!(r#"{{"snapshot":{name},"expires_at":null}}"#)),
            ("set-expiry", format!(r#"{{"snapshot":{name},"expires_at":"2027-01-31T00:00:00Z"}}"#)),
            ("hold", format!(r#"{{"snapshot":{name},"comment":"audit"}}"#)),
            ("release", format!(r#"{{"snapshot":{name},"comment":null}}"#)),
            ("sweep", r#"{"runs":["01ARZ3NDEKTSV4RRFFQ69G5FAV"]}"#.to_owned()),
        ] {
            let line =
                format!(r#"{{"type":"{kind}",{head}"{prev}","written_at":"2026-11-21T07:00:00Z","what":{what}}}"#);
            let record = Record::decode(format!("{line}\n\"{}\"\n", Digest::of(line.as_bytes())).as_bytes()).unwrap();
            assert_eq!((record.kind(), record.common().seq), (kind, 3));
            assert_eq!(record.encode().unwrap().split(|b| *b == b'\n').next().unwrap(), line.as_bytes());
        }
    }

    #[test]
    fn what_is_not_a_record_is_refused() {
        for bad in [
            change(2, Expire { snapshots: vec![named(2)] }),
            change(2, Expire { snapshots: vec![named(0)] }),
            change(2, Expire { snapshots: vec![] }),
            change(20_000, Expire { snapshots: (1..=10_001).map(named).collect() }),
            change(0, Sweep { runs: vec![RunName(RunId::new(1).unwrap())] }),
            change(1, Sweep { runs: vec![] }),
            change(1, Release { snapshot: named(1), comment: None }),
            change(2, Hold { snapshot: named(1), comment: Some("x".repeat(1001)) }),
        ] {
            assert!(Record::decode(&bad.encode().unwrap()).is_err(), "{bad:?}");
        }
        let good = change(2, SetExpiry { snapshot: named(1), expires_at: None });
        let good: serde_json::Value = serde_json::to_value(&good).unwrap();
        let decode = |value: &serde_json::Value| Record::decode(&envelope::encode(value).unwrap());
        assert!(decode(&good).is_ok());
        let mut bad = good.clone();
        bad["more"] = 1.into();
        assert!(decode(&bad).is_err(), "an unknown field");
        let mut bad = good.clone();
        bad["what"]["more"] = 1.into();
        assert!(decode(&bad).is_err(), "an unknown field inside");
        let mut bad = good.clone();
        bad["what"].as_object_mut().unwrap().remove("expires_at");
        assert!(decode(&bad).is_err(), "no expiry is not never");
        let mut bad = good;
        bad["type"] = "forget".into();
        assert!(decode(&bad).is_err(), "an unknown kind");
    }
}

//! `leases/<job>/<epoch>.<n>.json`: who works on a job. Section 3.4 of `docs/format.md`.

use serde::{Deserialize, Serialize};

use super::{envelope, record::as_text, volume};
use crate::{
    error::{Error, Result},
    model::{
        ids::{Name, Nonce, RunId},
        time::Instant,
    },
};

/// One object of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// Always `lease`.
    pub r#type: LeaseTag,
    /// Version of the volume format.
    pub format_version: u32,
    /// The job.
    pub job: Name,
    /// How often the lease has changed hands; it only rises.
    pub epoch: u64,
    /// Its number in the epoch: 0 takes the lease, each further one renews it or ends it.
    pub n: u64,
    /// Held, or released.
    pub state: State,
    /// Random, the same in all objects of one holder: tells it its own from another's.
    pub nonce: Nonce,
    /// The run it was taken for; null when somebody released another's lease.
    #[serde(with = "as_text_option")]
    pub run_id: Option<RunId>,
    /// The node.
    pub node: String,
    /// The process, where the system tells; null is not known.
    pub process: Option<Process>,
    /// When it was written, by the node's clock: for people, nothing is decided by it.
    pub written_at: Instant,
}

/// The word `lease`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseTag {
    /// The word `lease`.
    Lease,
}

/// Whether the lease is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// In use.
    Held,
    /// Free for the next.
    Released,
}

/// A process that no other can be mistaken for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// The boot of its machine.
    pub boot_id: String,
    /// What its number counts in: two containers of a machine have the same numbers.
    pub pid_namespace: String,
    /// Its number.
    pub pid: u32,
    /// When it was started, in ticks since the boot: numbers are used again.
    pub started: u64,
}

impl Lease {
    /// The object's bytes.
    pub fn encode(&self) -> Result<Vec<u8>> {
        envelope::encode(self)
    }

    /// Reads the object; a newer format version is refused.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        volume::check_version(bytes)?;
        let lease: Self = envelope::decode(bytes)?;
        if lease.epoch == 0 {
            return Err(Error::integrity(format!("the lease of {} has the epoch 0", lease.job)));
        }
        Ok(lease)
    }
}

/// Text, or null.
mod as_text_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{RunId, as_text};

    #[derive(Serialize, Deserialize)]
    struct Text(#[serde(with = "as_text")] RunId);

    pub fn serialize<S: Serializer>(value: &Option<RunId>, s: S) -> Result<S::Ok, S::Error> {
        value.map(Text).serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<RunId>, D::Error> {
        Ok(Option::<Text>::deserialize(d)?.map(|text| text.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::digest::Digest;

    /// As `docs/format.md` has it: these lines must be read as long as the version stays.
    #[test]
    fn what_was_written_is_read() {
        let process = r#"{"boot_id":"b","pid_namespace":"pid:[4026531836]","pid":77,"started":123}"#;
        for (state, run, process) in [
            (State::Held, r#""01ARZ3NDEKTSV4RRFFQ69G5FAV""#, process),
            (State::Released, r#""01ARZ3NDEKTSV4RRFFQ69G5FAV""#, "null"),
            (State::Released, "null", "null"),
        ] {
            let word = if state == State::Held { "held" } else { "released" };
            let line = format!(
                r#"{{"type":"lease","format_version":1,"job":"db","epoch":3,"n":7,"state":"{word}","nonce":"00112233445566778899aabbccddeeff","run_id":{run},"node":"n1","process":{process},"written_at":"2026-11-21T07:00:00Z"}}"#
            );
            let lease = Lease::decode(format!("{line}\n\"{}\"\n", Digest::of(line.as_bytes())).as_bytes()).unwrap();
            assert_eq!((lease.state, lease.epoch, lease.n), (state, 3, 7));
            assert_eq!(lease.encode().unwrap().split(|b| *b == b'\n').next().unwrap(), line.as_bytes());
        }
    }

    #[test]
    fn what_is_no_lease_is_refused() {
        let good = serde_json::json!({
            "type": "lease", "format_version": 1, "job": "db", "epoch": 1, "n": 0, "state": "held",
            "nonce": "00112233445566778899aabbccddeeff", "run_id": null, "node": "n1", "process": null,
            "written_at": "2026-11-21T07:00:00Z",
        });
        let decode = |value: &serde_json::Value| Lease::decode(&envelope::encode(value).unwrap());
        assert!(decode(&good).is_ok());
        for (field, value) in [
            ("epoch", serde_json::json!(0)),
            ("state", "stolen".into()),
            ("type", "snapshot".into()),
            ("format_version", 2.into()),
            ("run_id", "x".into()),
            ("more", 1.into()),
        ] {
            let mut bad = good.clone();
            bad[field] = value;
            assert!(decode(&bad).is_err(), "{field}");
        }
    }
}

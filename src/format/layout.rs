//! Keys of a volume: where each object lies. A key is a relative path of plain ASCII.

use crate::{
    error::{Error, Result},
    model::ids::{Name, RunId},
};

use super::codec::Codec;

/// The volume's own object.
pub const VOLUME_KEY: &str = "bk-volume.json";
/// Parts of one stream are numbered with five digits at least; more than this many are refused.
pub const PART_COUNT_MAX: u32 = 10_000_000;

/// `log/<job>/`
pub fn log_dir(job: &Name) -> String {
    format!("log/{job}/")
}

/// `log/<job>/<seq, 20 digits>.json`
pub fn record_key(job: &Name, seq: u64) -> String {
    format!("log/{job}/{seq:020}.json")
}

/// The seq in the last component of a record's key.
pub fn record_seq(file_name: &str) -> Option<u64> {
    let digits = file_name.strip_suffix(".json")?;
    (digits.len() == 20).then(|| digits.parse().ok()).flatten()
}

/// `leases/<job>/`
pub fn lease_dir(job: &Name) -> String {
    format!("leases/{job}/")
}

/// `leases/<job>/<epoch, 20 digits>.<n, 10 digits>.json`: sorted by name, the newest is the last.
pub fn lease_key(job: &Name, epoch: u64, n: u64) -> String {
    format!("leases/{job}/{epoch:020}.{n:010}.json")
}

/// Epoch and number in the last component of a lease's key.
pub fn lease_place(file_name: &str) -> Option<(u64, u64)> {
    let (epoch, n) = file_name.strip_suffix(".json")?.split_once('.')?;
    let number = |digits: &str, len| (digits.len() == len).then(|| digits.parse().ok()).flatten();
    Some((number(epoch, 20)?, number(n, 10)?))
}

/// `data/<job>/<run id>/`
pub fn run_dir(job: &Name, run: RunId) -> String {
    format!("data/{job}/{run}/")
}

/// `runs/<job>/`: what is only of interest while runs go on.
pub fn runs_dir(job: &Name) -> String {
    format!("runs/{job}/")
}

/// `runs/<job>/<run id>/copy.<what>.json`: a copy that was begun; `what` tells it from every other.
pub fn copy_key(job: &Name, run: RunId, what: &str) -> String {
    format!("runs/{job}/{run}/copy.{what}.json")
}

/// `index-00000.bki`
pub const INDEX_NAME: &str = "index-00000.bki";
/// `RESTORE.txt`
pub const RESTORE_NAME: &str = "RESTORE.txt";

/// The file name of a part: `tree-00000.tar.zst`, or `stream-<name>-00000.zst` when `stream` names one.
pub fn part_name(stream: Option<&Name>, number: u32, codec: Codec) -> String {
    match stream {
        None => format!("tree-{number:05}.tar{}", codec.suffix()),
        Some(name) => format!("stream-{name}-{number:05}{}", codec.suffix()),
    }
}

/// Checks a key before a store acts on it: relative, plain names, no `..`.
pub fn check_key(key: &str) -> Result<()> {
    let plain = |name: &str| {
        !name.is_empty()
            && name != "."
            && name != ".."
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    if key.split('/').all(plain) {
        return Ok(());
    }
    Err(Error::usage(format!("not a key of a volume: `{}`", crate::model::show::name(key.as_bytes()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let job: Name = "db".parse().unwrap();
        assert_eq!(record_key(&job, 17), "log/db/00000000000000000017.json");
        assert_eq!(record_seq("00000000000000000017.json"), Some(17));
        assert_eq!(record_seq("17.json"), None);
        assert_eq!(lease_key(&job, 3, 12), "leases/db/00000000000000000003.0000000012.json");
        assert_eq!(lease_place("00000000000000000003.0000000012.json"), Some((3, 12)));
        assert_eq!(lease_place("3.12.json"), None);
        assert_eq!(part_name(Some(&job), 3, Codec::Bzip2(9)), "stream-db-00003.bz2");
        for bad in ["", "/a", "a/../b", "a//b", "a/", "ä"] {
            assert!(check_key(bad).is_err(), "{bad}");
        }
    }
}

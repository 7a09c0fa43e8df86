//! JSON objects on a volume: two lines, the document and then the BLAKE3 of that line as a JSON string.
//!
//! `jq` reads them, and one flipped bit anywhere shows: the two lines and their newlines are the whole object.

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::{Error, Result},
    model::digest::Digest,
};

/// Largest JSON object bk reads, bytes.
pub const JSON_LEN_MAX: u64 = 16 << 20;

/// The object's bytes for `value`.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    let mut out = serde_json::to_vec(value).map_err(|e| Error::usage(format!("cannot write this as JSON: {e}")))?;
    let digest = Digest::of(&out);
    out.extend_from_slice(format!("\n\"{digest}\"\n").as_bytes());
    Ok(out)
}

/// The document in `bytes`, its digest checked first.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let line = check(bytes)?;
    serde_json::from_slice(line).map_err(|e| Error::integrity(format!("not the JSON expected: {e}")))
}

/// The digest of an object's first line: what `prev` of the next record holds.
pub fn digest(bytes: &[u8]) -> Result<Digest> {
    check(bytes).map(Digest::of)
}

fn check(bytes: &[u8]) -> Result<&[u8]> {
    let at =
        bytes.iter().position(|&b| b == b'\n').ok_or_else(|| Error::integrity("no second line with the digest"))?;
    let (line, tail) = bytes.split_at(at);
    let digest = Digest::of(line);
    if tail == format!("\n\"{digest}\"\n").as_bytes() {
        return Ok(line);
    }
    Err(Error::integrity(format!("digest differs (read {}…)", digest.short())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_shows() {
        let good = encode(&serde_json::json!({"a": 1, "b": "x\ny"})).unwrap();
        assert!(decode::<serde_json::Value>(&good).is_ok());
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<serde_json::Value>(&bad).is_err(), "bit {bit}");
        }
    }
}

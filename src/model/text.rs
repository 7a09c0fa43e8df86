//! Bytes of a name as JSON keeps them: text where they are UTF-8, else a shown form with base64 beside it.

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::show;

/// A path in a result. In JSON it is a map of `path`, and `path_base64` when the bytes are not UTF-8: use it with `flatten`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathText(pub Vec<u8>);

impl std::fmt::Display for PathText {
    /// Escaped for a terminal.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&show::name(&self.0))
    }
}

impl Serialize for PathText {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(None)?;
        match show::utf8(&self.0) {
            Some(text) => map.serialize_entry("path", text)?,
            None => {
                map.serialize_entry("path", &show::name(&self.0))?;
                map.serialize_entry("path_base64", &base64(&self.0))?;
            }
        }
        map.end()
    }
}

/// Base64 with padding (RFC 4648, section 4).
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, &b| word << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        for n in 0..4 {
            let digit = DIGITS[usize::try_from(word >> (18 - 6 * n) & 63).unwrap_or(0)];
            out.push(if n <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn base64_as_in_the_rfc() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(super::base64(bytes.as_bytes()), text);
        }
    }
}

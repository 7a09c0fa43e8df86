//! POSIX ACLs: from the kernel's attribute value to the text tar keeps (`SCHILY.acl.access`), numeric ids.
//!
//! Source: Linux `include/uapi/linux/posix_acl_xattr.h`: version 2, then (tag u16, permissions u16, id u32) little endian.

use std::fmt::Write as _;

/// The text form, or `None` when `value` is not a version 2 ACL.
pub fn to_text(value: &[u8]) -> Option<String> {
    let entries = value.strip_prefix(&[2, 0, 0, 0])?;
    let (entries, rest) = entries.as_chunks::<8>();
    if !rest.is_empty() {
        return None;
    }
    let mut out = String::new();
    for entry in entries {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let bits = u16::from_le_bytes([entry[2], entry[3]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let (word, named) = match tag {
            0x01 => ("user", false),
            0x02 => ("user", true),
            0x04 => ("group", false),
            0x08 => ("group", true),
            0x10 => ("mask", false),
            0x20 => ("other", false),
            _ => return None,
        };
        if !out.is_empty() {
            out.push(',');
        }
        let _ = write!(out, "{word}:");
        if named {
            let _ = write!(out, "{id}");
        }
        out.push(':');
        for (bit, letter) in [(4, 'r'), (2, 'w'), (1, 'x')] {
            out.push(if bits & bit != 0 { letter } else { '-' });
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    #[test]
    fn text_of_an_acl() {
        let value = [
            2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16,
            0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
        ];
        assert_eq!(super::to_text(&value).unwrap(), "user::rw-,user:1000:r--,group::r--,mask::r--,other::---");
        assert_eq!(super::to_text(&value[..40]), None);
    }
}

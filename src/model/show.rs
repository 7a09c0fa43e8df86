//! Names as people see them: control, bidirectional and invalid bytes escaped, so that no name can drive a terminal.

use std::fmt::Write as _;

/// `bytes` for a terminal or a log: C0, DEL, C1, bidirectional controls, line separators and invalid UTF-8 are escaped,
/// and so is the backslash, so the text is unambiguous.
pub fn name(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                '\r' => out.push_str("\\r"),
                c if is_hostile(c) => {
                    let _ = write!(out, "\\u{{{:x}}}", c as u32);
                }
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{61c}' | '\u{e0000}'..='\u{e007f}')
}

/// `bytes` for JSON, without loss: valid UTF-8 as it is; otherwise `None`, and the caller writes base64 beside a shown form.
pub fn utf8(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn escapes_what_drives_terminals() {
        assert_eq!(super::name(b"a\x1b[2J\\\n\xff\xc2\x9b\xe2\x80\xae!"), "a\\u{1b}[2J\\\\\\n\\xff\\u{9b}\\u{202e}!");
        assert_eq!(super::name("Grüße 日本".as_bytes()), "Grüße 日本");
    }
}

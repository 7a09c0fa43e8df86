//! A command's output as lines for the log: escaped, and no more than a bounded part of it.

use crate::model::show;

/// Bytes of one command's output that are kept or logged; the rest is read and dropped.
pub const OUTPUT_LEN_MAX: usize = 1 << 20;
/// A longer line is shown in pieces.
const LINE_LEN_MAX: usize = 4096;

/// Takes bytes, gives lines.
#[derive(Default)]
pub struct Lines {
    line: Vec<u8>,
    /// The last line that was not empty, escaped.
    pub last: String,
    len: usize,
}

impl Lines {
    /// The next bytes.
    pub fn push(&mut self, bytes: &[u8], log: &mut dyn FnMut(&str)) {
        let room = OUTPUT_LEN_MAX.saturating_sub(self.len).min(bytes.len());
        self.len += room;
        for &byte in &bytes[..room] {
            if byte == b'\n' || self.line.len() == LINE_LEN_MAX {
                self.end(log);
            }
            if byte != b'\n' {
                self.line.push(byte);
            }
        }
        if room < bytes.len() && self.len < usize::MAX {
            self.end(log);
            self.len = usize::MAX;
            log("(more output than 1 MiB: the rest is not shown)");
        }
    }

    /// Ends the line, if there is one.
    pub fn end(&mut self, log: &mut dyn FnMut(&str)) {
        let text = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        if !text.is_empty() {
            self.last = show::name(text);
            log(&self.last);
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_escaped_and_bounded() {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        let mut log = |line: &str| seen.push(line.to_owned());
        lines.push(b"one\ntw", &mut log);
        lines.push(b"o\r\n\n\x1b[2Jthree", &mut log);
        lines.end(&mut log);
        for _ in 0..300 {
            lines.push(&[b'x'; 5000], &mut log);
        }
        lines.end(&mut log);
        assert_eq!(seen[..3], ["one", "two", "\\u{1b}[2Jthree"]);
        assert!(seen.last().unwrap().starts_with("(more output than 1 MiB"));
        assert!(seen.iter().map(String::len).sum::<usize>() < OUTPUT_LEN_MAX + 200);
        assert!(seen.iter().all(|line| line.len() <= LINE_LEN_MAX));
    }
}

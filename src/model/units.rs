//! Sizes as typed and shown: `64MiB`, `1.4 GiB`.

use crate::error::{Error, Result};

const UNITS: [(&str, u64); 5] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// Reads `4194304`, `4096KiB`, `4MiB` or `4M` (powers of 1024); decimal units are refused, they mean something else.
pub fn parse_size(text: &str) -> Result<u64> {
    let bad = || Error::usage(format!("not a size: `{text}`")).with_hint("write 4MiB, 64MiB or 1GiB");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().map_err(|_| bad())?;
    let unit = text[digits..].trim();
    let factor = UNITS
        .iter()
        .find(|(name, _)| unit.eq_ignore_ascii_case(name) || (name.len() == 3 && unit.eq_ignore_ascii_case(&name[..1])))
        .map(|(_, factor)| *factor)
        .or(unit.is_empty().then_some(1))
        .ok_or_else(bad)?;
    number.checked_mul(factor).ok_or_else(bad)
}

/// `1.4 GiB`, `312 B`: three significant digits.
#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
pub fn show_size(bytes: u64) -> String {
    let (name, factor) = UNITS.iter().rev().find(|(_, factor)| bytes >= *factor).unwrap_or(&UNITS[0]);
    let value = bytes as f64 / *factor as f64;
    if *factor == 1 || value >= 99.95 {
        format!("{value:.0} {name}")
    } else if value >= 9.995 {
        format!("{value:.1} {name}")
    } else {
        format!("{value:.2} {name}")
    }
}

/// `3 d`, `26 h`, `5 min`, `40 s`: whole, of the unit that says it in at least two.
pub fn show_age(seconds: u64) -> String {
    let (name, unit) =
        [("d", 86_400), ("h", 3600), ("min", 60)].into_iter().find(|(_, unit)| seconds >= 2 * unit).unwrap_or(("s", 1));
    format!("{} {name}", seconds / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("4MiB", 4 << 20), ("4M", 4 << 20), ("7", 7), ("256 KiB", 256 << 10), ("1g", 1 << 30)] {
            assert_eq!(parse_size(text).ok(), Some(bytes), "{text}");
        }
        for bad in ["", "x", "-1", "4MB", "99999999999TiB"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        assert_eq!(show_size(1_503_238_553), "1.40 GiB");
        assert_eq!(show_size(312), "312 B");
        for (seconds, shown) in [(0, "0 s"), (119, "119 s"), (120, "2 min"), (26 * 3600, "26 h"), (259_200, "3 d")] {
            assert_eq!(show_age(seconds), shown);
        }
    }
}

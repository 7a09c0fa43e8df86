//! Spans of time as configured: `500ms`, `90s`, `5min`, `1h 30min`, `2d`. A lifetime of snapshots is another thing: see `time`.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const UNITS: [(&str, u64); 6] =
    [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000), ("ms", 1)];
const HINT: &str = "write 30s, 5min, `1h 30min` or 2d";

/// A span of time, to the millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |hint: &str| Err(Error::usage(format!("not a span of time: `{text}`")).with_hint(hint));
        let (mut rest, mut total, mut place) = (text.trim(), 0u64, None);
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let after = rest[digits..].trim_start();
            let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
            let unit = UNITS.iter().position(|(name, _)| *name == &after[..letters]);
            if unit.is_none() && &after[..letters] == "m" {
                return bad(&format!("m could be minutes or months: write {}min", &rest[..digits]));
            }
            let (Ok(number), Some(at)) = (rest[..digits].parse::<u64>(), unit) else { return bad(HINT) };
            if place.is_some_and(|before| before >= at) {
                return bad(HINT);
            }
            place = Some(at);
            let Some(sum) = number.checked_mul(UNITS[at].1).and_then(|ms| total.checked_add(ms)) else {
                return bad("that is too long");
            };
            total = sum;
            rest = after[letters..].trim_start();
        }
        if place.is_none() { bad(HINT) } else { Ok(Self(Duration::from_millis(total))) }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        let mut between = "";
        for (name, unit) in UNITS {
            if rest >= unit {
                write!(f, "{between}{}{name}", rest / unit)?;
                rest %= unit;
                between = " ";
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|e: Error| match e.hint() {
            Some(hint) => format!("{e}: {hint}"),
            None => e.to_string(),
        })
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        for (text, ms) in [
            ("500ms", 500),
            ("90s", 90_000),
            ("1h 30min", 5_400_000),
            ("1h30min", 5_400_000),
            ("2d", 172_800_000),
            ("0s", 0),
        ] {
            let span = text.parse::<Span>().unwrap();
            assert_eq!(span.0, Duration::from_millis(ms), "{text}");
            assert_eq!(span.to_string().parse::<Span>().unwrap(), span, "{text}");
        }
        for bad in [
            "",
            "5",
            "5m",
            "s",
            "1s 1min",
            "1s 1s",
            "-1s",
            "1.5h",
            "99999999999999999999s",
            "18446744073709551615w",
            "1ä",
        ] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}

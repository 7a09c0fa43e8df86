//! Instants: of files (seconds and nanoseconds, any year) and of records (UTC, to the second).

use crate::error::{Error, Result};

/// A file's time: whole seconds since 1970 (negative before it) and nanoseconds, 0..1e9, counted upwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds since 1970-01-01 UTC.
    pub sec: i64,
    /// Nanoseconds after `sec`.
    pub nsec: u32,
}

impl Time {
    /// Shown as UTC to the second; times jiff cannot name as `@seconds`.
    pub fn show(&self) -> String {
        match jiff::Timestamp::from_second(self.sec) {
            Ok(t) => t.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            Err(_) => format!("@{}", self.sec),
        }
    }
}

/// An instant in a record, written as RFC 3339 in UTC with whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(pub jiff::Timestamp);

impl Instant {
    /// Seconds since 1970.
    pub fn as_second(self) -> i64 {
        self.0.as_second()
    }

    /// From seconds since 1970.
    pub fn from_second(sec: i64) -> Result<Self> {
        jiff::Timestamp::from_second(sec).map(Self).map_err(|e| Error::usage(format!("not a time: {sec}: {e}")))
    }
}

impl std::fmt::Display for Instant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.strftime("%Y-%m-%dT%H:%M:%SZ"))
    }
}

impl serde::Serialize for Instant {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Instant {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(d)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

/// How long a snapshot is kept, as it was typed: `1w 3d`, `18h`, `6mo`, `never`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// It never goes by itself.
    Never,
    /// Calendar months and seconds after an instant; not both 0.
    For {
        /// Months, in UTC.
        months: i32,
        /// Seconds.
        seconds: i64,
    },
}

/// Units from large to small, with their seconds; months have none.
const UNITS: [(&str, i64); 6] = [("mo", 0), ("w", 604_800), ("d", 86_400), ("h", 3600), ("min", 60), ("m", 60)];

impl std::str::FromStr for Lifetime {
    type Err = Error;

    /// Units fall from left to right, each at most once. `m` is minutes, and months elsewhere: alone it is refused.
    fn from_str(text: &str) -> Result<Self> {
        let bad = |hint: &str| {
            Err(Error::usage(format!("not a time to keep a snapshot: `{}`", super::show::name(text.as_bytes())))
                .with_hint(hint))
        };
        const HINT: &str = "write 4w, `1w 3d`, 12h, 30min, 6mo (months) or never";
        let mut rest = text.trim();
        if rest == "never" {
            return Ok(Self::Never);
        }
        let (mut months, mut seconds, mut place) = (0i32, 0i64, None);
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let after = rest[digits..].trim_start();
            let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (Ok(number), Some(at)) =
                (rest[..digits].parse::<i32>(), UNITS.iter().position(|(name, _)| *name == &after[..letters]))
            else {
                return bad(HINT);
            };
            if at == 5 && place.is_none() {
                return bad(&format!("m alone could be minutes or months: write {number}min or {number}mo"));
            }
            if place.is_some_and(|before| before >= at.min(4)) {
                return bad(HINT);
            }
            place = Some(at.min(4));
            if at == 0 {
                months = number;
            } else {
                seconds += i64::from(number) * UNITS[at].1;
            }
            rest = after[letters..].trim_start();
        }
        if months == 0 && seconds == 0 {
            return bad(HINT);
        }
        Ok(Self::For { months, seconds })
    }
}

impl Lifetime {
    /// The instant a snapshot taken at `from` may go; `None` is never. Past the year 9999 is an error.
    pub fn after(self, from: Instant) -> Result<Option<Instant>> {
        let Self::For { months, seconds } = self else { return Ok(None) };
        let far = |e: jiff::Error| Error::usage(format!("too far away: {e}"));
        let span = jiff::Span::new().try_months(months).and_then(|span| span.try_seconds(seconds)).map_err(far)?;
        let at = from.0.to_zoned(jiff::tz::TimeZone::UTC).checked_add(span).map_err(far)?;
        Ok(Some(Instant(at.timestamp())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes() {
        let seconds = |seconds| Some(Lifetime::For { months: 0, seconds });
        for (text, expected) in [
            ("1w 3d", seconds(10 * 86_400)),
            ("1w3d", seconds(10 * 86_400)),
            (" 4 w ", seconds(28 * 86_400)),
            ("1w 3d 4h 5m", seconds(10 * 86_400 + 4 * 3600 + 300)),
            ("30min", seconds(1800)),
            ("1h 30min", seconds(5400)),
            ("6mo", Some(Lifetime::For { months: 6, seconds: 0 })),
            ("1mo 1d", Some(Lifetime::For { months: 1, seconds: 86_400 })),
            ("never", Some(Lifetime::Never)),
        ] {
            assert_eq!(text.parse().ok(), expected, "{text}");
        }
        for bad in [
            "",
            "5",
            "5m",
            "5 m",
            "m",
            "1d 1w",
            "1d 1d",
            "1h 5m 5min",
            "0d",
            "-1d",
            "1y",
            "1.5d",
            "99999999999w",
            "1w,3d",
            "1ä",
        ] {
            assert!(bad.parse::<Lifetime>().is_err(), "{bad}");
        }
        let hint = "5m".parse::<Lifetime>().unwrap_err();
        assert!(hint.hint().unwrap().contains("5mo"));
    }

    #[test]
    fn lifetimes_end_at_an_instant() {
        let at = |text: &str| Instant(text.parse().unwrap());
        let after = |text: &str, from| text.parse::<Lifetime>().unwrap().after(from);
        let start = at("2026-01-31T10:00:00Z");
        assert_eq!(after("1mo", start).unwrap(), Some(at("2026-02-28T10:00:00Z")));
        assert_eq!(after("1mo 1d", start).unwrap(), Some(at("2026-03-01T10:00:00Z")));
        assert_eq!(after("1w 3d", start).unwrap(), Some(at("2026-02-10T10:00:00Z")));
        assert_eq!(after("never", start).unwrap(), None);
        assert!(after("999999mo", start).is_err() && after("2147483647w", start).is_err());
    }
}

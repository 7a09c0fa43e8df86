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

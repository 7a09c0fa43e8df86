//! Values as they stand in a configuration file: text that is checked while it is read, so that an error names its line.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::model::{time::Lifetime, units::parse_size};

/// A size: `64MiB`, or a whole number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SizeText")]
pub struct Size(pub u64);

#[derive(Deserialize)]
#[serde(untagged, expecting = "a size, such as \"64MiB\"")]
enum SizeText {
    Bytes(u64),
    Text(String),
}

impl TryFrom<SizeText> for Size {
    type Error = String;

    fn try_from(text: SizeText) -> Result<Self, String> {
        match text {
            SizeText::Bytes(bytes) => Ok(Self(bytes)),
            SizeText::Text(text) => parse_size(&text).map(Self).map_err(with_hint),
        }
    }
}

/// A share: `50`, or `"50%"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PercentText")]
pub struct Percent(pub u8);

#[derive(Deserialize)]
#[serde(untagged, expecting = "a percentage, 0 to 100")]
enum PercentText {
    Number(u64),
    Text(String),
}

impl TryFrom<PercentText> for Percent {
    type Error = String;

    fn try_from(text: PercentText) -> Result<Self, String> {
        let (number, shown) = match text {
            PercentText::Number(number) => (u8::try_from(number).ok(), number.to_string()),
            PercentText::Text(text) => (text.trim_end_matches('%').trim_end().parse().ok(), text),
        };
        match number {
            Some(number @ 0..=100) => Ok(Self(number)),
            _ => Err(format!("not a percentage: `{shown}`: write 0 to 100")),
        }
    }
}

/// How long snapshots are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Keep(pub Lifetime);

impl TryFrom<String> for Keep {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Self).map_err(with_hint)
    }
}

/// One value for all levels, or one for each: `"4w"`, `{ 0 = "4w", 1 = "1w" }`. A level that is not named takes that of the
/// next lower one that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByLevel<T>(BTreeMap<u8, T>);

impl<T: Copy> ByLevel<T> {
    /// That of a level.
    pub fn of(&self, level: u8) -> Option<T> {
        self.0.range(..=level).next_back().map(|(_, value)| *value)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ByLevel<T> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
            type Value = ByLevel<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a time like \"4w\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                let value = T::deserialize(serde::de::value::StrDeserializer::new(text))?;
                Ok(ByLevel([(0, value)].into()))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut levels = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let level = key.parse::<u8>().ok().filter(|&level| level <= 9);
                    let level =
                        level.ok_or_else(|| serde::de::Error::custom(format!("not a level: `{key}`: 0 to 9")))?;
                    levels.insert(level, map.next_value()?);
                }
                if !levels.contains_key(&0) {
                    return Err(serde::de::Error::custom("level 0 is missing: the others fall back to it"));
                }
                Ok(ByLevel(levels))
            }
        }
        d.deserialize_any(Visitor(std::marker::PhantomData))
    }
}

/// Whether something must be mounted: the place itself, or one above it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "true, false, or the path of the mount point")]
pub enum Mount {
    /// The place itself is a mount point, or need not be.
    Itself(bool),
    /// This is.
    Path(std::path::PathBuf),
}

/// The error and its hint in one line: a file's errors are shown with their place, hints come after.
fn with_hint(error: crate::error::Error) -> String {
    match error.hint() {
        Some(hint) => format!("{error}: {hint}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Row {
        expire: Option<ByLevel<Keep>>,
        size: Option<Size>,
        percent: Option<Percent>,
    }

    fn read(text: &str) -> Result<Row, String> {
        toml::from_str(text).map_err(|e| e.message().to_owned())
    }

    #[test]
    fn values() {
        let weeks = |weeks: i64| Keep(Lifetime::For { months: 0, seconds: weeks * 604_800 });
        let all = read("expire = '4w'").unwrap().expire.unwrap();
        assert_eq!((all.of(0), all.of(9)), (Some(weeks(4)), Some(weeks(4))));
        let each = read("expire = { 0 = '4w', 2 = '1w' }").unwrap().expire.unwrap();
        assert_eq!((each.of(0), each.of(1), each.of(2), each.of(5)), {
            (Some(weeks(4)), Some(weeks(4)), Some(weeks(1)), Some(weeks(1)))
        });
        assert_eq!(read("size = '4MiB'").unwrap().size, Some(Size(4 << 20)));
        assert_eq!(read("size = 7").unwrap().size, Some(Size(7)));
        assert_eq!(read("percent = '50 %'").unwrap().percent, Some(Percent(50)));
        for (text, why) in [
            ("expire = '5m'", "5min or 5mo"),
            ("expire = { 1 = '4w' }", "level 0 is missing"),
            ("expire = { 0 = '4w', x = '4w' }", "not a level"),
            ("size = '4MB'", "not a size: `4MB`"),
            ("size = true", "a size, such as"),
            ("percent = 101", "0 to 100"),
            ("percent = '-1'", "0 to 100"),
        ] {
            assert!(read(text).is_err_and(|e| e.contains(why)), "{text}: {:?}", read(text).err());
        }
    }
}

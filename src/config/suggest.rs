//! Did you mean: the name that is nearest to one that is not known.

/// An unknown key, and those that are known in its place.
#[derive(Debug, PartialEq, Eq)]
pub struct Unknown {
    /// As it was typed.
    pub key: String,
    known: Vec<String>,
}

/// Takes apart what serde says of an unknown field: its name, and those it expected, each between backticks.
pub fn unknown_field(message: &str) -> Option<Unknown> {
    let rest = message.strip_prefix("unknown field ")?;
    let mut names = rest.split('`').skip(1).step_by(2).map(str::to_owned);
    Some(Unknown { key: names.next()?, known: names.collect() })
}

/// The same of an unknown variant: a word that is none of a few.
pub fn unknown_variant(message: &str) -> Option<Unknown> {
    let rest = message.strip_prefix("unknown variant ")?;
    let mut names = rest.split('`').skip(1).step_by(2).map(str::to_owned);
    Some(Unknown { key: names.next()?, known: names.collect() })
}

/// What a parser says of a value of the wrong type, in words of the file: `"/home"` instead of `string "/home"`.
pub fn wrong_type(message: &str) -> Option<String> {
    let (found, expected) = message.strip_prefix("invalid type: ")?.split_once(", expected ")?;
    let (kind, value) = found.split_once(' ').unwrap_or((found, ""));
    let value = value.trim_matches('`');
    let found = match kind {
        "string" => format!("{value} is text"),
        "integer" | "floating" | "float" => format!("{} is a number", value.trim_start_matches("point `")),
        "boolean" => format!("{value} is a switch"),
        "sequence" => "this is a list".to_owned(),
        "map" => "this is a table".to_owned(),
        _ => return None,
    };
    let expected = match (expected, kind) {
        ("a sequence", "map") => "a list is expected: write its name in two brackets, `[[…]]`".to_owned(),
        ("a sequence", _) => format!("a list is expected: write [{value}]"),
        ("a string" | "path string", "integer") => format!("text is expected: write \"{value}\""),
        ("a string" | "path string", _) => "text is expected, in quotes".to_owned(),
        ("a boolean", _) => "true or false is expected, without quotes".to_owned(),
        ("a map", _) => "a table is expected".to_owned(),
        ("u8" | "u16" | "u32" | "u64" | "usize" | "i32" | "i64", _) => {
            "a number is expected, without quotes".to_owned()
        }
        (other, _) if other.starts_with("struct ") => "a table is expected".to_owned(),
        (other, _) => format!("{other} is expected"),
    };
    Some(format!("{found}, and {expected}"))
}

impl Unknown {
    /// The nearest known word, or all of them.
    pub fn words(&self) -> String {
        match nearest(&self.key, self.known.iter().map(String::as_str)) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("it is one of {}", self.known.join(", ")),
        }
    }

    /// The nearest known key, or all of them.
    pub fn hint(&self) -> String {
        match nearest(&self.key, self.known.iter().map(String::as_str)) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("the keys here are {}", self.known.join(", ")),
        }
    }
}

/// The name that is nearest to `typed`, if one is near enough to be meant.
pub fn nearest<'a>(typed: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let far = |name: &str| typed.chars().count().max(name.chars().count()) / 3 + 1;
    let by_distance = known.map(|name| (distance(typed, name), name));
    by_distance.filter(|(steps, name)| *steps <= far(name)).min().map(|(_, name)| name)
}

/// Letters to insert, leave out, change or swap with their neighbour (the optimal string alignment distance).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name() {
        let known = ["paths", "exclude", "exclude_file", "expire", "volume"];
        let near = |typed| nearest(typed, known.into_iter());
        assert_eq!((near("exlude"), near("vloume"), near("path")), (Some("exclude"), Some("volume"), Some("paths")));
        assert_eq!((near("compression"), near("x"), near("")), (None, None, None));
        let said = "unknown field `exlude`, expected one of `paths`, `exclude`";
        let unknown = unknown_field(said).unwrap();
        assert_eq!(unknown.hint(), "did you mean `exclude`?");
        assert_eq!(unknown_field("unknown variant `x`"), None);
        let variant = unknown_variant("unknown variant `patrony`, expected one of `always`, `patroni`").unwrap();
        assert_eq!(variant.words(), "did you mean `patroni`?");
        for (said, plain) in [
            (
                "invalid type: string \"/home\", expected a sequence",
                "\"/home\" is text, and a list is expected: write [\"/home\"]",
            ),
            (
                "invalid type: map, expected a sequence",
                "this is a table, and a list is expected: write its name in two brackets, `[[…]]`",
            ),
            ("invalid type: integer `5`, expected a string", "5 is a number, and text is expected: write \"5\""),
            ("invalid type: string \"5\", expected u8", "\"5\" is text, and a number is expected, without quotes"),
            (
                "invalid type: string \"yes\", expected a boolean",
                "\"yes\" is text, and true or false is expected, without quotes",
            ),
        ] {
            assert_eq!(wrong_type(said).as_deref(), Some(plain));
        }
        assert_eq!(
            unknown_field("unknown field `qqqqqq`, expected `a` or `b`").unwrap().hint(),
            "the keys here are a, b"
        );
    }
}

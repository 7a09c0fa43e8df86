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

impl Unknown {
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
        assert_eq!(
            unknown_field("unknown field `qqqqqq`, expected `a` or `b`").unwrap().hint(),
            "the keys here are a, b"
        );
    }
}

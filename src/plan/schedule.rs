//! A schedule of levels: `0 on sun, 1 otherwise`, `0 on 1st, 1 on sun, 2 otherwise`.
//!
//! Clauses are tried in order, the first that fits the day decides. `otherwise` is the last one and must be there: a
//! day without a level would be a day without a backup.

use jiff::civil::{Date, Weekday};

use crate::error::{Error, Result};

/// Clauses in the order they are tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    clauses: Vec<Clause>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Clause {
    text: String,
    level: u8,
    /// On these days; on all others when empty.
    days: Vec<Day>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Day {
    OfWeek(Weekday),
    OfMonth(i8),
    LastOfMonth,
}

const WEEKDAYS: [(&str, Weekday); 7] = [
    ("monday", Weekday::Monday),
    ("tuesday", Weekday::Tuesday),
    ("wednesday", Weekday::Wednesday),
    ("thursday", Weekday::Thursday),
    ("friday", Weekday::Friday),
    ("saturday", Weekday::Saturday),
    ("sunday", Weekday::Sunday),
];

impl std::str::FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let clauses = text.split(',').map(clause).collect::<Result<Vec<_>>>()?;
        let (last, before) = clauses.split_last().ok_or_else(|| bad(text))?;
        if !last.days.is_empty() || before.iter().any(|clause| clause.days.is_empty()) {
            return Err(bad(text));
        }
        Ok(Self { clauses })
    }
}

fn bad(text: &str) -> Error {
    Error::usage(format!("not a schedule of levels: `{}`", text.trim()))
        .with_hint("write `0 on sun, 1 otherwise`, or `0 on 1st, 1 on sun and wed, 2 otherwise`")
}

fn clause(text: &str) -> Result<Clause> {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    let level = |word: &str| word.parse::<u8>().ok().filter(|&level| level <= 9).ok_or_else(|| bad(text));
    let (level, days) = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [first, "otherwise"] => (level(first)?, Vec::new()),
        [first, "on", ref days @ ..] if days.len() % 2 == 1 => {
            let joined = days.iter().skip(1).step_by(2).all(|&word| word == "and" || word == "or");
            let days = days.iter().step_by(2).map(|word| day(word)).collect::<Option<Vec<_>>>();
            (level(first)?, days.filter(|_| joined).ok_or_else(|| bad(text))?)
        }
        _ => return Err(bad(text)),
    };
    Ok(Clause { text: words.join(" "), level, days })
}

fn day(word: &str) -> Option<Day> {
    if word == "last" {
        return Some(Day::LastOfMonth);
    }
    if word.len() >= 3
        && let Some((_, weekday)) = WEEKDAYS.iter().find(|(name, _)| name.starts_with(word))
    {
        return Some(Day::OfWeek(*weekday));
    }
    let digits = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number = digits.parse::<i8>().ok().filter(|number| (1..=31).contains(number))?;
    let suffix = match (number % 10, number / 10) {
        (1, 0 | 2 | 3) => "st",
        (2, 0 | 2) => "nd",
        (3, 0 | 2) => "rd",
        _ => "th",
    };
    (word[digits.len()..] == *suffix).then_some(Day::OfMonth(number))
}

impl Schedule {
    /// The level of a day, and the clause it comes from.
    pub fn on(&self, date: Date) -> (u8, &str) {
        let fits = |day: &Day| match *day {
            Day::OfWeek(weekday) => date.weekday() == weekday,
            Day::OfMonth(number) => date.day() == number,
            Day::LastOfMonth => date.day() == date.days_in_month(),
        };
        let found = self.clauses.iter().find(|clause| clause.days.is_empty() || clause.days.iter().any(fits));
        found.map_or((0, ""), |clause| (clause.level, clause.text.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    #[test]
    fn the_first_clause_that_fits_decides() {
        let weekly: Schedule = "0 on sun, 1 otherwise".parse().unwrap();
        assert_eq!(weekly.on(date(2026, 11, 22)), (0, "0 on sun"));
        assert_eq!(weekly.on(date(2026, 11, 23)), (1, "1 otherwise"));
        let monthly: Schedule = " 0 on 1st and 15th , 1 on Sunday or WED,2   otherwise".parse().unwrap();
        assert_eq!(monthly.on(date(2026, 11, 1)).0, 0, "a Sunday, but the first clause is first");
        assert_eq!(monthly.on(date(2026, 11, 15)).0, 0);
        assert_eq!(monthly.on(date(2026, 11, 18)).0, 1);
        assert_eq!(monthly.on(date(2026, 11, 19)).0, 2);
        let last: Schedule = "0 on last, 9 otherwise".parse().unwrap();
        assert_eq!((last.on(date(2028, 2, 29)).0, last.on(date(2028, 2, 28)).0), (0, 9));
        assert_eq!("3 otherwise".parse::<Schedule>().unwrap().on(date(2026, 1, 1)).0, 3);
    }

    #[test]
    fn what_is_not_a_schedule_is_refused() {
        for text in [
            "",
            "0",
            "0 on sun",
            "otherwise",
            "1 otherwise, 0 on sun",
            "1 otherwise, 2 otherwise",
            "10 on sun, 1 otherwise",
            "0 on, 1 otherwise",
            "0 on 32nd, 1 otherwise",
            "0 on 1th, 1 otherwise",
            "0 on 0th, 1 otherwise",
            "0 on so, 1 otherwise",
            "0 on sun mon, 1 otherwise",
            "0 on sun and, 1 otherwise",
            "0 sun, 1 otherwise",
            "x on sun, 1 otherwise",
            "0 on 11st, 1 otherwise",
            "0 on 1, 1 otherwise",
            ",",
        ] {
            assert!(text.parse::<Schedule>().is_err(), "{text}");
        }
        for good in ["0 on 2nd, 1 otherwise", "0 on 23rd, 1 otherwise", "0 on 11th and 31st, 1 otherwise"] {
            assert!(good.parse::<Schedule>().is_ok(), "{good}");
        }
    }
}

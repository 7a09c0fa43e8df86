//! One configuration file as text, and where each of its keys stands: every error names file, line and key.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

use super::suggest;
use crate::error::{Error, Result};

/// A file that was read and is TOML.
#[derive(Debug)]
pub struct Document {
    /// Where it was read.
    pub path: PathBuf,
    text: String,
}

impl Document {
    /// `text` as it was read from `path`.
    pub fn new(path: &Path, text: String) -> Self {
        Self { path: path.to_owned(), text }
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What it says.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        toml::from_str(&self.text).map_err(|e| self.error(&e))
    }

    /// `FILE:LINE` of a key, the deepest of its path that is there.
    pub fn place(&self, keys: &[&str]) -> String {
        let found = self.tree().and_then(|tree| find(&tree, keys).map(|(at, _)| at));
        self.shown(found.unwrap_or(0))
    }

    /// The value of a key as it was typed, on one line. Values of `env` are not shown: they may be secrets.
    pub fn value(&self, keys: &[&str]) -> Option<String> {
        let tree = self.tree()?;
        let (_, value) = find(&tree, keys)?;
        value.map(show)
    }

    /// The keys of a table, in their order.
    pub fn keys(&self, table: &[&str]) -> Vec<String> {
        let Some(tree) = self.tree() else { return Vec::new() };
        let mut keys: Vec<(usize, String)> = match find(&tree, table) {
            Some((_, Some(DeValue::Table(found)))) => {
                found.keys().map(|key| (key.span().start, key.get_ref().to_string())).collect()
            }
            _ => Vec::new(),
        };
        keys.sort();
        keys.into_iter().map(|(_, key)| key).collect()
    }

    /// Whether a key is there.
    pub fn has(&self, keys: &[&str]) -> bool {
        self.tree().is_some_and(|tree| {
            let mut table = Some(&tree);
            keys.iter().all(|key| {
                let Some(value) = table.and_then(|table| table.get(*key)) else { return false };
                table = value.get_ref().as_table();
                true
            })
        })
    }

    fn tree(&self) -> Option<DeTable<'_>> {
        DeTable::parse(&self.text).ok().map(toml::Spanned::into_inner)
    }

    /// What the parser says, in words that help.
    fn in_words(&self, message: &str, offset: usize) -> String {
        let said = || message.replace('\n', ": ");
        if let Some(text) = suggest::wrong_type(message) {
            return text;
        }
        let line = self.text.get(offset..).and_then(|rest| rest.lines().next()).unwrap_or_default();
        match message {
            _ if message.contains("must be quoted") && line.trim().is_empty() => "a value is missing".to_owned(),
            _ if message.contains("must be quoted") => format!("text stands in quotes: \"…\", not {}", line.trim()),
            "duplicate key" => "this key stands here twice".to_owned(),
            _ => said(),
        }
    }

    fn shown(&self, offset: usize) -> String {
        let line = self.text.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count() + 1;
        format!("{}:{line}", self.path.display())
    }

    fn error(&self, error: &toml::de::Error) -> Error {
        let span = error.span().unwrap_or(0..0);
        let keys = self.tree().and_then(|tree| around(&tree, span.start)).filter(|keys| !keys.is_empty());
        let unknown = suggest::unknown_field(error.message());
        let (mut what, hint) = match (&unknown, suggest::unknown_variant(error.message())) {
            (Some(unknown), _) => (format!("there is no key `{}` here", unknown.key), Some(unknown.hint())),
            (_, Some(word)) => (format!("`{}` is not known here", word.key), Some(word.words())),
            _ => (self.in_words(error.message(), span.start), None),
        };
        if let Some(mut keys) = keys {
            // An unknown key names itself; what counts is the table it stands in.
            if unknown.as_ref().is_some_and(|unknown| keys.last() == Some(&unknown.key)) {
                keys.pop();
            }
            if !keys.is_empty() {
                what = format!("{}: {what}", keys.join("."));
            }
        }
        let error = Error::usage(format!("{}: {what}", self.shown(span.start)));
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

type Spanned<'a> = toml::Spanned<DeValue<'a>>;

/// Where a key stands and what it is, as far down its path as there is something.
fn find<'a>(tree: &'a DeTable<'a>, keys: &[&str]) -> Option<(usize, Option<&'a DeValue<'a>>)> {
    let (first, rest) = keys.split_first()?;
    let (key, value) = tree.get_key_value(*first)?;
    let here = key.span().start;
    if rest.is_empty() {
        return Some((here, Some(value.get_ref())));
    }
    let deeper = match value.get_ref() {
        DeValue::Table(table) => find(table, rest),
        DeValue::Array(array) => {
            let item = rest.first().and_then(|n| n.parse::<usize>().ok()).and_then(|n| array.get(n));
            match item.map(|item| (item.span().start, item.get_ref())) {
                Some((at, DeValue::Table(table))) if rest.len() > 1 => find(table, &rest[1..]).or(Some((at, None))),
                Some((at, value)) => Some((at, Some(value))),
                None => None,
            }
        }
        _ => None,
    };
    deeper.or(Some((here, None)))
}

/// The path of the innermost key whose name or value spans `offset`.
fn around(tree: &DeTable<'_>, offset: usize) -> Option<Vec<String>> {
    for (key, value) in tree {
        let name = || key.get_ref().to_string();
        if key.span().contains(&offset) {
            return Some(vec![name()]);
        }
        if let Some(mut below) = within(value, offset) {
            below.insert(0, name());
            return Some(below);
        }
    }
    None
}

fn within(value: &Spanned<'_>, offset: usize) -> Option<Vec<String>> {
    let inside = value.span().contains(&offset).then(Vec::new);
    match value.get_ref() {
        // A table's own span is its header alone.
        DeValue::Table(table) => around(table, offset).or(inside),
        DeValue::Array(array) => array.iter().find_map(|item| within(item, offset)).or(inside),
        _ => inside,
    }
}

fn show(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => {
            let text: &str = text;
            serde_json::to_string(text).unwrap_or_default()
        }
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(is) => is.to_string(),
        DeValue::Datetime(at) => at.to_string(),
        DeValue::Array(array) => {
            format!("[{}]", array.iter().map(|item| show(item.get_ref())).collect::<Vec<_>>().join(", "))
        }
        DeValue::Table(table) => {
            let row = |(key, value): (&toml::Spanned<std::borrow::Cow<'_, str>>, &Spanned<'_>)| {
                let name: &str = key.get_ref();
                match (name, value.get_ref()) {
                    ("env", DeValue::Table(env)) => {
                        let names = env.keys().map(|name| format!("{} = …", name.get_ref())).collect::<Vec<_>>();
                        format!("env = {{ {} }}", names.join(", "))
                    }
                    (name, value) => format!("{name} = {}", show(value)),
                }
            };
            format!("{{ {} }}", table.iter().map(row).collect::<Vec<_>>().join(", "))
        }
    }
}

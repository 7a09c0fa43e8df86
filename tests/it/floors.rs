//! The floors of the code: a module imports only from lower ones, and two of one floor never import each other.

use std::path::{Path, PathBuf};

/// Floor of each top module, as in `src/lib.rs`.
const FLOORS: [(&str, u32); 15] = [
    ("main", 8),
    ("cli", 7),
    ("ops", 6),
    ("mount", 5),
    ("engine", 4),
    ("volume", 3),
    ("source", 3),
    ("steps", 3),
    ("format", 2),
    ("plan", 2),
    ("config", 2),
    ("model", 1),
    ("monitor", 1),
    ("clock", 1),
    ("error", 0),
];

/// Pairs of one floor that are allowed, with the reason.
const ALLOWED: [(&str, &str, &str); 3] = [
    ("plan", "format", "plans decide over records; format knows nothing of plans"),
    ("config", "format", "what was typed is held against the format's limits; format knows nothing of config"),
    ("clock", "model", "the clock tells a time of model's; model knows nothing of the clock"),
];

fn floor(module: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Top modules of the crate named in `text` after `crate::`, nested braces of `use` included.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut word = String::new();
            for c in group.chars() {
                match c {
                    '{' => {
                        if depth == 0 {
                            found.push(std::mem::take(&mut word));
                        }
                        depth += 1;
                    }
                    '}' if depth == 0 => {
                        found.push(std::mem::take(&mut word));
                        break;
                    }
                    '}' => depth -= 1,
                    ',' if depth == 0 => found.push(std::mem::take(&mut word)),
                    c if depth == 0 => word.push(c),
                    _ => {}
                }
            }
        } else {
            found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    let clean = |word: String| word.trim().split("::").next().unwrap_or("").trim().to_owned();
    found.into_iter().map(clean).filter(|word| !word.is_empty()).collect()
}

#[test]
fn modules_import_only_from_lower_floors() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let mut wrong = Vec::new();
    for file in &files {
        let relative = file.strip_prefix(&src).unwrap();
        let top =
            relative.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        if top == "lib" {
            continue;
        }
        let own = floor(&top).unwrap_or_else(|| panic!("{top} has no floor: give it one in src/lib.rs and here"));
        let text = std::fs::read_to_string(file).unwrap();
        assert!(text.starts_with("//!"), "{} does not say what it is", relative.display());
        let code: String =
            text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        for other in imports(&code) {
            let Some(theirs) = floor(&other) else { panic!("{}: unknown module `{other}`", relative.display()) };
            let allowed = ALLOWED.iter().any(|(a, b, _)| *a == top && *b == other);
            if other != top && theirs >= own && !allowed {
                wrong.push(format!("{} (floor {own}) imports {other} (floor {theirs})", relative.display()));
            }
        }
    }
    assert!(files.len() > 30, "the sources were not found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_check_sees_grouped_and_plain_imports() {
    assert_eq!(imports("use crate::{\n  a::{b, c},\n  d,\n  e::f,\n}; crate::g::h"), ["a", "d", "e", "g"]);
}

#[test]
fn only_the_command_line_prints() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    for file in files.iter().filter(|file| !file.starts_with(src.join("cli"))) {
        let text = std::fs::read_to_string(file).unwrap();
        for word in ["println!", "eprintln!", "print!(", "stdout()"] {
            assert!(!text.contains(word), "{} prints: {word}", file.display());
        }
    }
}

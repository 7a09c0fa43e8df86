//! What is printed: data to standard output, all else to standard error; with `--json` one object a line.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use serde::Serialize;

use crate::error::{Error, Kind, Result};

/// Where and how to print.
pub struct Output {
    json: bool,
    quiet: bool,
}

fn failed(e: std::io::Error) -> Error {
    Error::io("cannot write to standard output", e)
}

impl Output {
    /// JSON or text, quiet or not.
    pub fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// Whether JSON is wanted.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether progress can be drawn: a terminal, not quiet, not JSON.
    pub fn draws(&self) -> bool {
        !self.json && !self.quiet && std::io::stderr().is_terminal()
    }

    /// A line of data.
    pub fn line(&self, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).map_err(failed)
    }

    /// A JSON object with its `type`, as text.
    pub fn json(&self, r#type: &str, value: &impl Serialize) -> Result<String> {
        #[derive(Serialize)]
        struct Typed<'a, T> {
            r#type: &'a str,
            #[serde(flatten)]
            value: &'a T,
        }
        serde_json::to_string(&Typed { r#type, value }).map_err(|e| Error::usage(format!("cannot write JSON: {e}")))
    }

    /// A JSON object with its `type`, as a line of data.
    pub fn object(&self, r#type: &str, value: &impl Serialize) -> Result<()> {
        self.line(&self.json(r#type, value)?)
    }

    /// Text for people: not when quiet, not with JSON.
    pub fn say(&self, text: &str) {
        if !self.quiet && !self.json {
            err(text);
        }
    }

    /// A warning.
    pub fn warn(&self, text: &str) {
        if self.json {
            let _ = self.object("warning", &serde_json::json!({ "text": text }));
        } else if !self.quiet {
            err(&format!("bk: warning: {text}"));
        }
    }

    /// Something found wrong: shown even when quiet.
    pub fn fault(&self, text: &str) {
        if !self.json {
            err(&format!("bk: {text}"));
        }
    }

    /// The error that ends the run.
    pub fn error(&self, error: &Error, code: u8) {
        if self.json {
            let mut value = serde_json::json!({ "message": error.to_string(), "hint": error.hint(), "exit": code });
            if error.kind() == Kind::Aborted {
                value["outcome"] = "aborted".into();
            }
            let _ = self.object("error", &value);
        }
        err(&format!("bk: error: {error}"));
        if let Some(hint) = error.hint() {
            err(&format!("bk: hint: {hint}"));
        }
    }
}

fn err(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints clap's message: help goes to standard output with 0, a usage error to standard error with 2.
pub fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

//! What is printed: data to standard output, all else to standard error; with `--json` one object a line.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
    sync::{Mutex, OnceLock},
};

use indicatif::ProgressBar;
use serde::Serialize;

use super::{
    log::{self, Log},
    teller::{Teller, To},
};
use crate::error::{Error, Result};

/// Messages that a result repeats: so many, and so many bytes of text.
const MESSAGES_MAX: usize = 1000;
const MESSAGE_BYTES_MAX: usize = 256 << 10;

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loudness {
    /// Errors.
    Quiet,
    /// What came of it, and warnings.
    Notice,
    /// How it goes, too.
    Info,
    /// All.
    Verbose,
}

/// Something that was said, for a result that tells all in one object.
#[derive(Clone, Debug, Serialize)]
pub struct Message {
    severity: &'static str,
    text: String,
}

/// Where and how to print.
pub struct Output {
    json: bool,
    loudness: Loudness,
    is_journal: bool,
    /// Writes the log, when there is one.
    log: OnceLock<Teller>,
    messages: Mutex<Vec<Message>>,
    teller: OnceLock<Teller>,
    /// What is drawn on standard error.
    bar: Mutex<Option<ProgressBar>>,
}

impl Drop for Output {
    /// What was said is heard, when somebody listens.
    fn drop(&mut self) {
        self.finish_all();
    }
}

fn failed(e: std::io::Error) -> Error {
    Error::io("cannot write to standard output", e)
}

impl Output {
    /// JSON or text, and how much of it.
    pub fn new(json: bool, loudness: Loudness) -> Self {
        let (log, messages, teller, bar) = Default::default();
        Self { json, loudness, is_journal: is_journal(), log, messages, teller, bar }
    }

    /// How much is said.
    pub fn loudness(&self) -> Loudness {
        self.loudness
    }

    /// What was said so far, the first thousand of it.
    pub fn messages(&self) -> Vec<Message> {
        self.messages.lock().map(|messages| messages.clone()).unwrap_or_default()
    }

    fn keep(&self, severity: &'static str, text: &str) {
        if self.json
            && let Ok(mut messages) = self.messages.lock()
            && messages.len() < MESSAGES_MAX
            && messages.iter().map(|one| one.text.len()).sum::<usize>() + text.len() <= MESSAGE_BYTES_MAX
        {
            messages.push(Message { severity, text: text.to_owned() });
        }
    }

    /// From now on what is said is also written there. A log that cannot be written is no reason to take no backup.
    pub fn log_to(&self, log: Result<Log>) {
        match log {
            Ok(log) => drop(self.log.set(Teller::of(log))),
            Err(e) => self.warn(&e.to_string()),
        }
    }

    /// Whether there is a log already.
    pub fn has_log(&self) -> bool {
        self.log.get().is_some()
    }

    fn log(&self, text: &str) {
        if let Some(log) = self.log.get() {
            log.say(To::Log, log::line(text), None);
        }
    }

    /// Writes to standard error. The journal reads the severity of a line at its beginning.
    fn err(&self, severity: u8, text: &str) {
        let mark = if self.is_journal { format!("<{severity}>") } else { String::new() };
        self.tell(To::Err, format!("{mark}{text}\n"));
    }

    fn tell(&self, to: To, text: String) {
        let bar = self.bar.lock().ok().and_then(|bar| bar.clone());
        self.teller.get_or_init(Teller::start).say(to, text, bar);
    }

    /// Something is drawn from now on, or no more.
    pub fn draw(&self, drawn: Option<ProgressBar>) {
        if let Ok(mut bar) = self.bar.lock() {
            *bar = drawn;
        }
    }

    /// Waits till all is said, if anybody listens.
    pub fn finish(&self) {
        if let Some(teller) = self.teller.get() {
            teller.finish();
        }
    }

    /// Waits till all is logged, too, if that can be.
    fn finish_all(&self) {
        self.finish();
        if let Some(log) = self.log.get() {
            log.finish();
        }
    }

    /// Whether JSON is wanted.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether progress can be drawn: a terminal, not quiet, not JSON.
    pub fn draws(&self) -> bool {
        !self.json && self.loudness >= Loudness::Info && std::io::stderr().is_terminal()
    }

    /// A line of data.
    pub fn line(&self, text: &str) -> Result<()> {
        self.finish();
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
        self.log(text);
        self.keep("info", text);
        if self.loudness >= Loudness::Notice && !self.json {
            self.err(INFO, text);
        }
    }

    /// What only who looks closely wants to know: with `--verbose`, and in the log.
    pub fn detail(&self, text: &str) {
        self.log(text);
        if self.loudness >= Loudness::Verbose && !self.json {
            self.err(INFO, &format!("bk: {text}"));
        }
    }

    /// What goes as it should, for the log.
    pub fn note(&self, text: &str) {
        self.log(text);
        self.keep("info", text);
        match (self.loudness >= Loudness::Info, self.json) {
            (false, _) => {}
            (true, true) => self.told_as("note", text),
            (true, false) => self.err(INFO, &format!("bk: {text}")),
        }
    }

    fn told_as(&self, r#type: &str, text: &str) {
        if let Ok(json) = self.json(r#type, &serde_json::json!({ "text": text })) {
            self.tell(To::Out, json + "\n");
        }
    }

    /// A warning.
    pub fn warn(&self, text: &str) {
        self.log(&format!("warning: {text}"));
        self.keep("warning", text);
        match (self.loudness >= Loudness::Notice, self.json) {
            (false, _) => {}
            (true, true) => self.told_as("warning", text),
            (true, false) => self.err(WARNING, &format!("bk: warning: {text}")),
        }
    }

    /// Something found wrong: shown even when quiet.
    pub fn fault(&self, text: &str) {
        self.log(text);
        if !self.json {
            self.err(ERROR, &format!("bk: {text}"));
        }
    }

    /// The error that ends the run.
    pub fn error(&self, error: &Error, code: u8) {
        if self.json {
            let value = serde_json::json!({ "message": error.to_string(), "hint": error.hint(), "exit": code });
            let _ = self.object("error", &value);
        }
        self.told(&error.to_string(), error.hint(), code);
    }

    /// An error in words alone: the object for it is another's.
    pub fn told(&self, message: &str, hint: Option<&str>, code: u8) {
        self.log(&format!("error: {message} (exit {code})"));
        self.keep("error", message);
        self.err(ERROR, &format!("bk: error: {message}"));
        if let Some(hint) = hint {
            self.err(ERROR, &format!("bk: hint: {hint}"));
        }
    }
}

/// Severities as syslog counts them.
const ERROR: u8 = 3;
const WARNING: u8 = 4;
const INFO: u8 = 6;

/// Whether standard error is read by the journal: systemd names its device and inode.
fn is_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let stat = rustix::fs::fstat(std::io::stderr());
    stat.is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Prints clap's message: help goes to standard output with 0, a usage error to standard error with 2.
pub fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

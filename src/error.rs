//! The one error type of bk: what kind of failure, what was being done, why, and what to try.
//!
//! It imports nothing of bk, so that every floor can use it. The kind decides the exit code
//! (see `cli::exit`); the text is for people and names the object, what was expected and what was found.

use std::fmt;

/// What kind of failure this is. The exit code follows from it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anything with no narrower kind (exit 1).
    Other,
    /// Wrong arguments or configuration (exit 2).
    Usage,
    /// Done, but not everything could be saved or restored (exit 3).
    Incomplete,
    /// The volume or its medium is not usable: missing, wrong id, not writable (exit 4).
    Volume,
    /// Whether this node may act cannot be learnt, or the cluster is not as it has to be (exit 5).
    Gate,
    /// Another run won, or the outcome is unknown (exit 6).
    Lost,
    /// A user's command failed (exit 7).
    Step,
    /// Stored bytes are not what was stored (exit 8).
    Integrity,
    /// No space left (exit 9).
    NoSpace,
    /// Stopped by `bk abort` (exit 143, as by SIGTERM).
    Aborted,
    /// Stopped by a signal (exit 128 + n).
    Signal(i32),
    /// The reader of our standard output went away: not an error of ours (exit 0).
    BrokenPipe,
}

impl Kind {
    /// The exit code of a failure of this kind alone.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::BrokenPipe => 0,
            Self::Other => 1,
            Self::Usage => 2,
            Self::Incomplete => 3,
            Self::Volume => 4,
            Self::Gate => 5,
            Self::Lost => 6,
            Self::Step => 7,
            Self::Integrity => 8,
            Self::NoSpace => 9,
            Self::Aborted => 143,
            Self::Signal(n) => u8::try_from(n).ok().and_then(|n| n.checked_add(128)).unwrap_or(1),
        }
    }
}

/// A failure: kind, what was being done, cause and hint.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    what: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
    hint: Option<String>,
}

/// Result with bk's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` that says `what`: lower case, no final stop.
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), source: None, hint: None }
    }

    /// Wrong arguments or configuration.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Kind::Usage, what)
    }

    /// Stored bytes are not what was stored.
    pub fn integrity(what: impl Into<String>) -> Self {
        Self::new(Kind::Integrity, what)
    }

    /// A system call failed while doing `what`. A full disk or quota becomes [`Kind::NoSpace`].
    pub fn io(what: impl Into<String>, error: impl Into<std::io::Error>) -> Self {
        let error = error.into();
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded | std::io::ErrorKind::FileTooLarge => {
                Kind::NoSpace
            }
            std::io::ErrorKind::BrokenPipe => Kind::BrokenPipe,
            _ => Kind::Other,
        };
        Self { kind, what: what.into(), source: Some(Box::new(error)), hint: None }
    }

    /// The same error with another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// The same error with a hint: what the user can do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same error with what was being done around it put before it.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.what = format!("{what}: {}", self.what);
        self
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    /// The whole cause chain, joined by `: `.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        let mut source = self.source.as_deref().map(|s| s as &dyn std::error::Error);
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_the_chain_and_maps_a_full_disk() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = Error::io("cannot write part 3", full).context("snapshot db/17");
        assert_eq!(error.kind(), Kind::NoSpace);
        assert_eq!(error.to_string(), "snapshot db/17: cannot write part 3: no storage space");
    }
}

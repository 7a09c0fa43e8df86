//! How the library reports: one trait, implemented by `cli` (terminal, JSON) and by tests.

/// What a run says while it goes. Methods are called from several threads.
pub trait Monitor: Send + Sync {
    /// Something the user should know that does not stop the run.
    fn warn(&self, text: &str);
    /// Something that went as it should: for the log.
    fn note(&self, _text: &str) {}
    /// `entries` more entries and `bytes` more content bytes are done; `path` is one of them.
    fn advance(&self, entries: u64, bytes: u64, path: &[u8]);
    /// How much there is to do, when it is known.
    fn expect(&self, entries: u64, bytes: u64);
    /// Whether the run should stop, and by which signal.
    fn interrupted(&self) -> Option<i32> {
        None
    }
    /// Whether it was told so twice: what is closed is opened before all else.
    fn is_urgent(&self) -> bool {
        false
    }
    /// Who is told twice does not end while this says `true`: the run sees to it that it soon does not.
    fn opens_first(&self, _is_closed: Box<dyn Fn() -> bool + Send + Sync>) {}
}

/// Says nothing.
pub struct Silent;

impl Monitor for Silent {
    fn warn(&self, _: &str) {}
    fn advance(&self, _: u64, _: u64, _: &[u8]) {}
    fn expect(&self, _: u64, _: u64) {}
}

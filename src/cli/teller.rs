//! What is said goes out on a thread of its own: a reader that stopped (a frozen terminal, a full pipe) holds up no run. So does what
//! is logged, on another one: a disk that hangs holds up neither the run nor what it says.
//!
//! Order is kept. While nothing is read for [`PATIENCE`], what comes further is counted instead of said.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, bounded};
use indicatif::ProgressBar;

use super::log::{self, Log};

/// Texts that wait at most.
const WAITING_MAX: usize = 1024;
/// So long a text waits for a reader, and the end of the program for those that wait.
const PATIENCE: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(1);

/// Where a text goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
    /// The log.
    Log,
}

impl To {
    /// What is told there of lines that nobody took; on standard output each line is an object of its own.
    fn lost(self, count: u64) -> Option<String> {
        match self {
            Self::Out => None,
            Self::Err => Some(format!("bk: {count} lines were not shown: nobody read them\n")),
            Self::Log => Some(log::line(&format!("{count} lines are missing here: they could not be written"))),
        }
    }
}

struct Said {
    to: To,
    text: String,
    /// What is drawn there meanwhile.
    bar: Option<ProgressBar>,
}

/// The way to that thread.
pub struct Teller {
    sender: Sender<Said>,
    sent: AtomicU64,
    written: Arc<AtomicU64>,
    is_stuck: AtomicBool,
    lost: AtomicU64,
}

impl Teller {
    /// To standard output and standard error.
    pub fn start() -> Self {
        Self::with(|to, text| {
            // Where nobody listens nothing can be said.
            let _ = match to {
                To::Out => std::io::stdout().lock().write_all(text.as_bytes()),
                To::Err | To::Log => std::io::stderr().lock().write_all(text.as_bytes()),
            };
        })
    }

    /// To a log.
    pub fn of(log: Log) -> Self {
        Self::with(move |_, line| log.write(line))
    }

    fn with(write: impl Fn(To, &str) + Send + 'static) -> Self {
        let (sender, said) = bounded(WAITING_MAX);
        let written = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&written);
        std::thread::spawn(move || tell(&said, &count, write));
        let (sent, is_stuck, lost) = Default::default();
        Self { sender, sent, written, is_stuck, lost }
    }

    /// Says a text, which has its line's end, some time soon.
    pub fn say(&self, to: To, text: String, bar: Option<ProgressBar>) {
        let lost = if to == To::Out { 0 } else { self.lost.swap(0, Ordering::Relaxed) };
        let text = match to.lost(lost).filter(|_| lost > 0) {
            None => text,
            Some(told) => told + &text,
        };
        let patience = if self.is_stuck.load(Ordering::Relaxed) { Duration::ZERO } else { PATIENCE };
        // What is counted before it is sent is never taken for written.
        self.sent.fetch_add(1, Ordering::AcqRel);
        match self.sender.send_timeout(Said { to, text, bar }, patience) {
            Ok(()) => self.is_stuck.store(false, Ordering::Relaxed),
            Err(SendTimeoutError::Timeout(_) | SendTimeoutError::Disconnected(_)) => {
                self.sent.fetch_sub(1, Ordering::AcqRel);
                self.is_stuck.store(true, Ordering::Relaxed);
                self.lost.fetch_add(lost + 1, Ordering::Relaxed);
            }
        }
    }

    /// Waits till all is said, or nobody reads it.
    pub fn finish(&self) {
        let done = || self.written.load(Ordering::Acquire);
        let (mut last, mut since) = (done(), Instant::now());
        while last < self.sent.load(Ordering::Acquire) && since.elapsed() < PATIENCE {
            std::thread::sleep(TICK);
            if done() > last {
                (last, since) = (done(), Instant::now());
            }
        }
    }
}

fn tell(said: &Receiver<Said>, written: &AtomicU64, write: impl Fn(To, &str)) {
    for Said { to, text, bar } in said {
        match &bar {
            Some(bar) => bar.suspend(|| write(to, &text)),
            None => write(to, &text),
        }
        written.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_stopped_holds_up_nobody() {
        let (sender, said) = bounded(2);
        let (sent, is_stuck, lost) = Default::default();
        let teller = Teller { sender, sent, written: Arc::default(), is_stuck, lost };
        for n in 0..100 {
            teller.say(To::Err, format!("{n}\n"), None);
        }
        assert_eq!(teller.lost.load(Ordering::Relaxed), 98);
        // What is read again is told of it first.
        drop((said.recv().unwrap(), said.recv().unwrap()));
        teller.say(To::Err, "on\n".to_owned(), None);
        assert_eq!(said.recv().unwrap().text, "bk: 98 lines were not shown: nobody read them\non\n");
        assert_eq!((teller.lost.load(Ordering::Relaxed), teller.is_stuck.load(Ordering::Relaxed)), (0, false));
        teller.finish();
    }
}

//! When a request is tried again, how long it may take, and when it has failed for good.
//!
//! `object_store` retries nothing here: a create that is repeated behind our back cannot be told from another's.
//! Waiting has a stated end: when [`Limits::total`] and the time of one try are over since the first, nothing new is begun.
//! An upload's try goes on as long as its bytes move ([`Pace`]): several share one line, and nobody knows how wide it is.

use std::{fmt, future::Future, pin::pin, time::Duration};

use object_store::client::HttpError;
use tokio::time::Instant;

use super::{
    body::Body,
    watch::LOOK,
    wire::{Broken, NoCredentials, Refused},
};
use crate::error::{Error, Kind};

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// One try may take this long, and longer by its size.
    pub attempt: Duration,
    /// No try is begun when this and the time of one are over since the first.
    pub total: Duration,
    /// The first pause; each further one is twice as long, up to 64 times.
    pub pause: Duration,
}

/// Slowest transfer that is waited for, bytes a second.
const RATE_MIN: u64 = 256 << 10;

impl Limits {
    /// For real stores; tests cannot wait so long and set `BK_TEST_S3_TIMEOUT_MS`.
    pub fn from_env() -> Self {
        let set = std::env::var("BK_TEST_S3_TIMEOUT_MS").ok().and_then(|text| text.parse::<u64>().ok());
        match set {
            Some(ms) => Self {
                attempt: Duration::from_millis(ms),
                total: Duration::from_millis(ms.saturating_mul(6)),
                pause: Duration::from_millis(5),
            },
            None => Self {
                attempt: Duration::from_secs(60),
                total: Duration::from_secs(180),
                pause: Duration::from_millis(200),
            },
        }
    }

    /// For what is only tidied up after a failure: one try, and others while it would have lasted.
    pub fn in_a_hurry(self) -> Self {
        Self { attempt: self.attempt.min(Duration::from_secs(10)), total: Duration::ZERO, ..self }
    }

    /// How long one try with `len` bytes may take.
    pub fn attempt(&self, len: u64) -> Duration {
        self.attempt + Duration::from_millis(len.saturating_mul(1000) / RATE_MIN)
    }

    /// How long a pause before try `n` (from 1 on) is: between a half and the whole of the doubled one.
    pub fn pause(&self, n: u32) -> Duration {
        let whole = self.pause.saturating_mul(1 << n.saturating_sub(1).min(6));
        let mut random = [0; 2];
        // Without random numbers there is no jitter, which is no harm to correctness.
        let _ = getrandom::fill(&mut random);
        whole / 2 + (whole / 2).mul_f64(f64::from(u16::from_ne_bytes(random)) / f64::from(u16::MAX))
    }
}

/// What a failed try means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// There is no such object.
    Missing,
    /// The key was taken, or another wrote it at the same time: 412, 409.
    Taken,
    /// No space is left.
    Full,
    /// A retry will not help: access denied, a bad request, no bucket.
    Final,
    /// May go well the next time; whether the server did it is not known.
    Again,
}

/// A try that failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub fault: Fault,
    pub text: String,
    /// The status, if there was an answer.
    pub status: Option<u16>,
    pub hint: Option<&'static str>,
    /// Whether it may have reached the store.
    pub was_sent: bool,
}

impl Failure {
    pub fn timeout(after: Duration) -> Self {
        let text = format!("no answer within {:.1} s", after.as_secs_f64());
        Self { fault: Fault::Again, text, status: None, hint: None, was_sent: true }
    }

    pub fn broken(what: &'static str) -> Self {
        Self { fault: Fault::Again, text: what.to_owned(), status: None, hint: None, was_sent: true }
    }

    /// What failed on this side of the wire: no retry helps.
    pub fn ours(text: String) -> Self {
        Self { fault: Fault::Final, text, status: None, hint: None, was_sent: false }
    }

    /// As an error of the run.
    pub fn into_error(self, what: impl fmt::Display) -> Error {
        let kind = match self.fault {
            Fault::Full => Kind::NoSpace,
            Fault::Missing => Kind::Integrity,
            // The store cannot be reached, or does not let us.
            _ => Kind::Volume,
        };
        let error = Error::new(kind, format!("{what}: {}", self.text));
        match self.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Self {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        let mut http = None;
        while let Some(at) = source {
            if let Some(refused) = at.downcast_ref::<Refused>() {
                return refusal(refused);
            }
            if let Some(none) = at.downcast_ref::<NoCredentials>() {
                let hint = Some("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are one way of several: see docs/s3.md");
                // Some that were given before may still be good, and whoever gives them is back in a moment.
                let fault = if none.were_given { Fault::Again } else { Fault::Final };
                return Self { fault, text: none.to_string(), status: None, hint, was_sent: false };
            }
            if let Some(broken) = at.downcast_ref::<Broken>() {
                return Self::broken(broken.0);
            }
            if let Some(found) = at.downcast_ref::<HttpError>() {
                http = Some(found);
            }
            source = at.source();
        }
        if let Some(http) = http {
            return Self { fault: Fault::Again, text: chain(http), status: None, hint: None, was_sent: true };
        }
        // What is left is ours to build, theirs to read: a listing that is no XML, headers that lie. Only the latter heal.
        let fault = match &error {
            object_store::Error::NotFound { .. } => Fault::Missing,
            object_store::Error::Generic { .. } => Fault::Again,
            _ => Fault::Final,
        };
        Self { fault, text: chain(&error), status: None, hint: None, was_sent: true }
    }
}

/// What is said by an error and its sources, each once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(at) = source {
        let more = at.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = at.source();
    }
    text
}

fn refusal(refused: &Refused) -> Failure {
    let (fault, hint) = match (refused.status, refused.code.as_str()) {
        (404, "NoSuchBucket") => (Fault::Final, Some("bk makes no buckets: make it first, or name another")),
        (404, _) => (Fault::Missing, None),
        (409 | 412, _) => (Fault::Taken, None),
        (507, _) | (_, "QuotaExceeded" | "XMinioStorageFull") => {
            (Fault::Full, Some("free space in the store; nothing that was listed before is lost"))
        }
        (_, "RequestTimeTooSkewed") => (Fault::Final, Some("set this machine's clock")),
        (401 | 403, _) => {
            (Fault::Final, Some("the credentials are wrong, have run out, or may not do this: see docs/s3.md"))
        }
        (301 | 307 | 308, _) => (Fault::Final, Some("is it the bucket's region? --region NAME")),
        (501, _) => (Fault::Final, Some("the store cannot do what bk needs: see docs/s3.md")),
        // What came there was not what was sent.
        (_, "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch") => {
            (Fault::Again, None)
        }
        (408 | 425 | 429, _) | (_, "RequestTimeout" | "SlowDown" | "IncompleteBody") => (Fault::Again, None),
        (400..=499, _) => (Fault::Final, None),
        _ => (Fault::Again, None),
    };
    Failure { fault, text: refused.to_string(), status: Some(refused.status), hint, was_sent: true }
}

/// One try of `request`, or its next bytes.
pub(super) async fn once<T>(
    limits: Limits,
    request: impl Future<Output = object_store::Result<T>>,
) -> Result<T, Failure> {
    let time = limits.attempt(0);
    match tokio::time::timeout(time, request).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(e)) => Err(e.into()),
        Err(_) => Err(Failure::timeout(time)),
    }
}

/// When an upload has stalled: nothing of it has moved for as long as a try may take.
#[derive(Debug)]
struct Pace {
    /// So long nothing may move.
    time: Duration,
    moved_at: Instant,
    at: Option<u64>,
}

impl Pace {
    /// Looks at `now` where the upload is; whether it has stalled.
    fn has_stalled(&mut self, now: Instant, at: Option<u64>) -> bool {
        if at != self.at {
            (self.at, self.moved_at) = (at, now);
        }
        now >= self.moved_at + self.time
    }
}

/// One try of `request`, which sends `body`. Also how long it moved.
pub(super) async fn while_moving<T>(
    limits: Limits,
    body: &Body,
    request: impl Future<Output = object_store::Result<T>>,
) -> (Duration, Result<T, Failure>) {
    let started = Instant::now();
    let mut pace = Pace { time: limits.attempt(body.unseen_len()), moved_at: started, at: None };
    let mut request = pin!(request);
    let ended = loop {
        match tokio::time::timeout(LOOK.min(limits.attempt(0) / 4), request.as_mut()).await {
            Ok(Ok(done)) => break Ok(done),
            Ok(Err(e)) => break Err(e.into()),
            Err(_) => {
                pace.time = limits.attempt(body.unseen_len());
                if pace.has_stalled(Instant::now(), body.sending()) {
                    break Err(Failure::timeout(pace.time));
                }
            }
        }
    };
    (pace.moved_at - started, ended)
}

/// Waits before the next try, or gives the failure back when it is too late for one: `one` is the time of one try.
pub(super) async fn pause(
    limits: Limits,
    (started, one): (Instant, Duration),
    tries: u32,
    failure: Failure,
) -> Result<(), Failure> {
    let pause = limits.pause(tries);
    let end = started + limits.total + one;
    if Instant::now() + pause > end {
        let text = format!("{} (tried {tries} times in {:.0} s)", failure.text, started.elapsed().as_secs_f64());
        return Err(Failure { text, ..failure });
    }
    tokio::time::sleep(pause).await;
    Ok(())
}

/// Tries until it is done or failed for good. Only for what may be done twice: reads, lists, deletes.
pub(super) async fn until_done<T, F>(limits: Limits, mut request: impl FnMut() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let started = Instant::now();
    for tries in 1.. {
        match request().await {
            Err(failure) if failure.fault == Fault::Again => {
                pause(limits, (started, limits.attempt(0)), tries, failure).await?
            }
            ended => return ended,
        }
    }
    Err(Failure::broken("tried too often"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_an_end_and_jitter() {
        let limits = Limits::from_env();
        for n in 1..40 {
            let whole = limits.pause * (1 << (n - 1).min(6));
            let pause = limits.pause(n);
            assert!(pause >= whole / 2 && pause <= whole, "{n}: {pause:?}");
        }
        assert!(limits.attempt(1 << 30) > limits.attempt(64 << 20));
    }

    #[test]
    fn what_has_no_credentials_was_not_sent() {
        let none = NoCredentials { why: "nobody is there".to_owned(), were_given: true };
        let error = object_store::Error::Generic { store: "S3", source: Box::new(none) };
        let failure = Failure::from(error);
        assert_eq!((failure.fault, failure.was_sent), (Fault::Again, false));
        assert!(Failure::timeout(Duration::ZERO).was_sent);
    }

    #[test]
    fn what_moves_goes_on_and_what_stands_still_ends() {
        let (started, second) = (Instant::now(), Duration::from_secs(1));
        let time = 60 * second;
        let mut pace = Pace { time, moved_at: started, at: None };
        // A chunk every 50 seconds, for hours.
        for n in 1..200 {
            let now = started + second * 50 * n;
            assert!(!pace.has_stalled(now, Some(u64::from(n))), "{n}");
            assert!(!pace.has_stalled(now + second * 49, Some(u64::from(n))), "{n}");
        }
        // All is sent, and no answer comes.
        let last = started + second * 50 * 200;
        assert!(!pace.has_stalled(last, None) && !pace.has_stalled(last + 59 * second, None));
        assert!(pace.has_stalled(last + time, None));
        // Nothing was ever taken.
        let mut pace = Pace { time, moved_at: started, at: None };
        assert!(!pace.has_stalled(started + 59 * second, None) && pace.has_stalled(started + time, None));
    }
}

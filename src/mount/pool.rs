//! Workers that wait so that event loops need not, and deadlines for what waits.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::io::Errno;

use super::{Answer, Failure};

type Reply<T> = Box<dyn FnOnce(Answer<T>) + Send>;

/// A reply that is still to be given, by whoever comes first.
pub struct Promise<T>(Mutex<Option<Reply<T>>>);

impl<T> Promise<T> {
    /// Not kept yet.
    pub fn new(reply: impl FnOnce(Answer<T>) + Send + 'static) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(Box::new(reply)))))
    }

    fn take(&self) -> Option<Reply<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Gives the reply, unless that was done.
    pub fn keep(&self, answer: Answer<T>) {
        if let Some(reply) = self.take() {
            reply(answer);
        }
    }
}

/// What can run out of time.
pub trait Waiting: Send + Sync {
    /// Whether the reply was given.
    fn is_over(&self) -> bool;
    /// Gives up.
    fn give_up(&self);
}

impl<T> Waiting for Promise<T> {
    fn is_over(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn give_up(&self) {
        self.keep(Err(Failure::Plain(Errno::IO)));
    }
}

type Work = Box<dyn FnOnce() + Send>;

/// Threads with one queue, and the deadlines of what is in it.
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    news: Condvar,
    waiting: Mutex<VecDeque<(Instant, Arc<dyn Waiting>)>>,
    deadline: Duration,
    late: Box<dyn Fn(usize) + Send + Sync>,
}

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    is_over: bool,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Work> {
        let mut queue = self.queue();
        loop {
            if queue.is_over {
                return None;
            }
            if let Some(work) = queue.work.pop_front() {
                return Some(work);
            }
            queue = self.news.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives up what is past its deadline.
    fn tick(&self) {
        let now = Instant::now();
        let mut late = Vec::new();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.retain(|(end, one)| {
                if *end <= now && !one.is_over() {
                    late.push(Arc::clone(one));
                }
                *end > now && !one.is_over()
            });
        }
        if !late.is_empty() {
            (self.late)(late.len());
        }
        late.iter().for_each(|one| one.give_up());
    }
}

impl Pool {
    /// Begins `count` workers; `late` is told how many requests ran out of time.
    pub fn new(count: usize, deadline: Duration, late: impl Fn(usize) + Send + Sync + 'static) -> Self {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            news: Condvar::new(),
            waiting: Mutex::default(),
            deadline,
            late: Box::new(late),
        });
        for _ in 0..count.max(1) {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                while let Some(work) = shared.next() {
                    work();
                }
            });
        }
        let timed = Arc::clone(&shared);
        let tick = (deadline / 8).clamp(Duration::from_millis(20), Duration::from_secs(1));
        std::thread::spawn(move || {
            while !timed.queue().is_over {
                std::thread::sleep(tick);
                timed.tick();
            }
        });
        Self { shared }
    }

    /// Gives `one` a deadline.
    pub fn watch(&self, one: Arc<dyn Waiting>) {
        let end = Instant::now() + self.shared.deadline;
        self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back((end, one));
    }

    /// Has a worker do `work`, and `reply` given with what it came to or at the deadline.
    pub fn answer<T: 'static>(
        &self,
        reply: impl FnOnce(Answer<T>) + Send + 'static,
        work: impl FnOnce() -> Answer<T> + Send + 'static,
    ) {
        let promise = Promise::new(reply);
        self.watch(Arc::clone(&promise) as Arc<dyn Waiting>);
        self.run(move || {
            if !promise.is_over() {
                let done = catch_unwind(AssertUnwindSafe(work));
                promise.keep(done.unwrap_or(Err(Failure::Plain(Errno::IO))));
            }
        });
    }

    /// Has a worker do `work`, whose replies have deadlines of their own.
    pub fn run(&self, work: impl FnOnce() + Send + 'static) {
        let guarded = move || {
            // A worker outlives what goes wrong in one request.
            let _ = catch_unwind(AssertUnwindSafe(work));
        };
        self.shared.queue().work.push_back(Box::new(guarded));
        self.shared.news.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        queue.is_over = true;
        queue.work.clear();
        drop(queue);
        self.shared.news.notify_all();
    }
}

//! One shard: in flow futures and wake-ups; out flow polls, in turns of a bounded length. It runs as
//! one task of the runtime.
//!
//! Futures are owned by the shard, not by their wakers, so that all can be dropped at once. A future
//! stands in the queue of ready ones once, however often it was woken.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use slab::Slab;
use tokio::{runtime::Handle, task::coop};

use super::{CURRENT, QUANTUM};

/// How long what a shard has run is added up…
const WINDOW: Duration = Duration::from_millis(100);
/// …and how much is too much: a fifth of a processor. A burst of some hundred connections is.
const BUSY: Duration = Duration::from_millis(20);
/// A shard whose windows are below it comes back: half, so that it does not go to and fro.
const CALM: Duration = Duration::from_millis(10);

pub(super) struct Shard {
    /// Where its sockets and timers are, and where it runs while it is calm.
    home: Handle,
    /// Where it runs while it is busy.
    threads: Option<Handle>,
    queue: Mutex<Queue>,
    tasks: Mutex<Slab<Arc<Task>>>,
    /// Nanoseconds, of all shards of the pod.
    busy: Arc<AtomicU64>,
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<Arc<Task>>,
    /// Wakes the driver while it waits.
    driver: Option<Waker>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// The driver was not needed yet.
    #[default]
    New,
    Open,
    Closed,
}

struct Task {
    shard: Arc<Shard>,
    key: usize,
    /// It stands in the queue, or has ended.
    queued: AtomicBool,
    /// Taken when it has ended. Locked by the driver alone, so never for long.
    future: Mutex<Option<BoxFuture<'static, ()>>>,
}

/// How a turn ended.
enum Turn {
    /// By the clock: more is ready.
    Over,
    /// It is to go on elsewhere.
    Moves,
    /// The share is closed.
    Closed,
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shard")
            .field("tasks", &self.tasks.lock().len())
            .finish_non_exhaustive()
    }
}

impl Shard {
    pub(super) fn new(home: Handle, threads: Option<Handle>, busy: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self {
            home,
            threads,
            queue: Mutex::default(),
            tasks: Mutex::default(),
            busy,
        })
    }

    pub(super) fn spawn(self: &Arc<Self>, future: BoxFuture<'static, ()>) {
        // Held to the end: who closes the share finds the task, or the task finds it closed.
        let mut queue = self.queue.lock();
        let state = queue.state;
        if state == State::Closed {
            drop(queue);
            return drop(future); // Which may spawn.
        }
        let task = {
            let mut tasks = self.tasks.lock();
            let entry = tasks.vacant_entry();
            let task = Arc::new(Task {
                shard: Arc::clone(self),
                key: entry.key(),
                queued: AtomicBool::new(true),
                future: Mutex::new(Some(future)),
            });
            entry.insert(Arc::clone(&task));
            task
        };
        queue.ready.push_back(task);
        queue.state = State::Open;
        let driver = queue.driver.take();
        drop(queue);
        if state == State::New {
            Driver::new(Arc::clone(self)).launch();
        }
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    pub(super) fn close(&self) {
        let driver = {
            let mut queue = self.queue.lock();
            queue.state = State::Closed;
            queue.driver.take()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
    }

    fn push(&self, task: Arc<Task>) {
        let driver = {
            let mut queue = self.queue.lock();
            queue.ready.push_back(task);
            queue.driver.take()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

/// The task of a runtime that runs a shard.
struct Driver {
    shard: Arc<Shard>,
    /// It runs on the threads for busy shards.
    away: bool,
    /// What it has run since when.
    since: Instant,
    ran: Duration,
}

impl Driver {
    fn new(shard: Arc<Shard>) -> Self {
        Self {
            shard,
            away: false,
            since: Instant::now(),
            ran: Duration::ZERO,
        }
    }

    fn launch(self) {
        let runtime = match (&self.shard.threads, self.away) {
            (Some(threads), true) => threads.clone(),
            _ => self.shard.home.clone(),
        };
        runtime.spawn(self.run());
    }

    async fn run(mut self) {
        loop {
            match poll_fn(|cx| self.turn(cx)).await {
                Turn::Over => tokio::task::yield_now().await,
                Turn::Moves => {
                    self.away = !self.away;
                    // It is of the task that ends here.
                    self.shard.queue.lock().driver = None;
                    return self.launch();
                }
                Turn::Closed => break,
            }
        }
        // Thousands of connections: closing them takes its time, too.
        let mut left = self.take_all();
        while !left.is_empty() {
            let start = Instant::now();
            {
                let _current = Current::enter(&self.shard);
                let _home = self.away.then(|| self.shard.home.enter());
                while start.elapsed() < QUANTUM
                    && let Some(task) = left.pop()
                {
                    task.end();
                }
            }
            self.charge(start.elapsed());
            tokio::task::yield_now().await;
        }
    }

    /// Polls what is ready. Pending, it waits to be woken.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        let start = Instant::now();
        if self.is_to_move(start) {
            return Poll::Ready(Turn::Moves);
        }
        let _current = Current::enter(&self.shard);
        let _home = self.away.then(|| self.shard.home.enter());
        let mut now = start;
        let ended = loop {
            let task = {
                let mut queue = self.shard.queue.lock();
                if queue.state == State::Closed {
                    break Poll::Ready(Turn::Closed);
                }
                let Some(task) = queue.ready.pop_front() else {
                    queue.driver = Some(cx.waker().clone());
                    break Poll::Pending;
                };
                task
            };
            task.run();
            now = Instant::now();
            // Without budget the runtime's own futures refuse to go on: see `tokio::task::coop`.
            if now - start >= QUANTUM || !coop::has_budget_remaining() {
                break Poll::Ready(Turn::Over);
            }
        };
        self.charge(now - start);
        ended
    }

    fn charge(&mut self, took: Duration) {
        self.ran += took;
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.shard.busy.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Whether it is busy where the calm are, or the other way round.
    fn is_to_move(&mut self, now: Instant) -> bool {
        if self.shard.threads.is_none() {
            return false;
        }
        let over = now - self.since >= WINDOW;
        let moves = match self.away {
            false => self.ran >= BUSY,
            true => over && self.ran < CALM,
        };
        if over || moves {
            self.since = now;
            self.ran = Duration::ZERO;
        }
        moves
    }

    fn take_all(&self) -> Vec<Arc<Task>> {
        let mut tasks = std::mem::take(&mut *self.shard.tasks.lock());
        tasks.drain().collect()
    }
}

impl Drop for Driver {
    /// The share is closed, or the runtime has ended: nothing will be polled again.
    fn drop(&mut self) {
        let ready = {
            let mut queue = self.shard.queue.lock();
            queue.state = State::Closed;
            std::mem::take(&mut queue.ready)
        };
        drop(ready);
        self.take_all().iter().for_each(|task| task.end());
    }
}

impl Task {
    fn run(self: &Arc<Self>) {
        // First: a wake-up in the course of the poll asks for another one.
        self.queued.store(false, Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(self));
        let polled = {
            let mut future = self.future.lock();
            let Some(future) = &mut *future else { return };
            let mut cx = Context::from_waker(&waker);
            catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut cx)))
        };
        if !matches!(polled, Ok(Poll::Pending)) {
            self.shard.tasks.lock().try_remove(self.key);
            self.end();
        }
    }

    fn end(&self) {
        self.queued.store(true, Ordering::SeqCst);
        let future = self.future.lock().take();
        // The hook has told of a panic, in here too.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            Arc::clone(&self.shard).push(self);
        }
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            self.shard.push(Arc::clone(self));
        }
    }
}

/// While it lives, this thread's turn is a shard's.
struct Current(Option<Arc<Shard>>);

impl Current {
    fn enter(shard: &Arc<Shard>) -> Self {
        Self(CURRENT.replace(Some(Arc::clone(shard))))
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

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
    time::Instant,
};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use slab::Slab;
use tokio::task::coop;

use super::{CURRENT, QUANTUM};

pub(super) struct Shard {
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
    /// The share is closed; what is to be dropped.
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
    pub(super) fn new(busy: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self {
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
            tokio::spawn(Driver(Arc::clone(self)).run());
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

    /// Polls what is ready. Pending, it waits to be woken.
    fn turn(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Turn> {
        let _current = Current::enter(self);
        let start = Instant::now();
        let mut now = start;
        let ended = loop {
            let task = {
                let mut queue = self.queue.lock();
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

    fn charge(&self, took: std::time::Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.busy.fetch_add(nanos, Ordering::Relaxed);
    }
}

/// The task of the runtime that runs a shard.
struct Driver(Arc<Shard>);

impl Driver {
    async fn run(self) {
        while let Turn::Over = poll_fn(|cx| self.0.turn(cx)).await {
            tokio::task::yield_now().await;
        }
        // Thousands of connections: closing them takes its time, too.
        let mut left = self.take_all();
        while !left.is_empty() {
            let start = Instant::now();
            {
                let _current = Current::enter(&self.0);
                while start.elapsed() < QUANTUM
                    && let Some(task) = left.pop()
                {
                    task.end();
                }
            }
            self.0.charge(start.elapsed());
            tokio::task::yield_now().await;
        }
    }

    fn take_all(&self) -> Vec<Arc<Task>> {
        let mut tasks = std::mem::take(&mut *self.0.tasks.lock());
        tasks.drain().collect()
    }
}

impl Drop for Driver {
    /// The share is closed, or the runtime has ended: nothing will be polled again.
    fn drop(&mut self) {
        let ready = {
            let mut queue = self.0.queue.lock();
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

//! A pod's share of the processors. In flow a pod's futures (connections, tunnels, accept loops, what
//! these spawn); out flows their progress, in turns that are the pod's and not the connection's.
//!
//! The runtime's threads know nothing of pods: they take ready tasks first come, first served, and a
//! pod with a thousand ready connections would stand a thousand times before another's one. So what
//! the runtime schedules is not a connection but a *shard* of a pod: one task that polls the pod's
//! ready futures from a queue of its own, for a [`QUANTUM`] at most, and then goes to the end of
//! the runtime's queue. Whoever waits there waits for one turn of each other pod at most.
//!
//! A pod has half as many shards as there are workers: alone it never holds all of them, so
//! another's work finds a free one at once.
//!
//! That is fair to who has a thread. The kernel decides who that is, and a thread that has been busy for
//! long must wait for others of its like, with all that it carries. So a shard that keeps a thread
//! busy moves to a second set of them ([`busy_threads`]) and comes back when it is calm: the first
//! set's threads sleep most of the time, and run at once when something comes for one of the other
//! pods. All sockets and timers stay with the first.
//!
//! What a future of a pod starts by [`spawn`] is of the same shard, and wakes there without a
//! system call. A panic ends one future, as it would a task.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::runtime::{Builder, Handle, Runtime};

use self::shard::Shard;

mod shard;
#[cfg(test)]
mod tests;

/// How long a turn lasts; it ends with the poll that exceeds it. Some ten requests fit, so that going
/// to the end of the queue (under 1 µs) is not felt; ten pods that flood at once delay another by a
/// millisecond at most.
const QUANTUM: Duration = Duration::from_micros(100);

/// Threads for busy pods give way to those for the others: with 5 steps less priority they have a
/// third of the weight where both are ready (within the proxy's own group, in a container), and
/// lose nothing where processors are free.
const NICE: i32 = 5;

/// Threads for shards that are busy. They make no sockets of their own.
///
/// # Errors
/// The threads can't be started.
pub fn busy_threads(workers: usize) -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(workers)
        .thread_name("busy")
        .on_thread_start(|| {
            // Of this thread alone, in Linux. Without it the threads are like any other.
            if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                tracing::warn!(%error, "threads for busy pods run with full priority");
            }
        })
        .build()
}

thread_local! {
    /// The shard whose turn it is on this thread.
    static CURRENT: RefCell<Option<Arc<Shard>>> = const { RefCell::new(None) };
}

/// The futures of one pod. Closed when dropped.
#[derive(Debug)]
pub struct Share {
    shards: Box<[Arc<Shard>]>,
    next: AtomicUsize,
    busy: Arc<AtomicU64>,
}

impl Share {
    /// An empty share of the runtime that this is called in, and of [`busy_threads`].
    ///
    /// # Panics
    /// Outside of a runtime.
    #[must_use]
    pub fn new(busy: Option<Handle>) -> Self {
        let workers = Handle::current().metrics().num_workers();
        Self::with_shards((workers / 2).max(1), busy)
    }

    fn with_shards(shards: usize, threads: Option<Handle>) -> Self {
        let busy = Arc::<AtomicU64>::default();
        let home = Handle::current();
        let shard = |_| Shard::new(home.clone(), threads.clone(), Arc::clone(&busy));
        Self {
            shards: (0..shards).map(shard).collect(),
            next: AtomicUsize::new(0),
            busy,
        }
    }

    /// Runs a future to its end, or until the share is closed.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.shards[next % self.shards.len()].spawn(Box::pin(future));
    }

    /// Drops all futures, soon and in turns, and from now on each new one.
    pub fn close(&self) {
        self.shards.iter().for_each(|shard| shard.close());
    }

    /// Nanoseconds that the share's futures have run.
    #[must_use]
    pub fn busy(&self) -> &Arc<AtomicU64> {
        &self.busy
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.close();
    }
}

/// Runs a future as part of whatever pod's turn it is; outside of one, as a task of the runtime.
pub fn spawn(future: impl Future<Output = ()> + Send + 'static) {
    match CURRENT.with_borrow(Clone::clone) {
        Some(shard) => shard.spawn(Box::pin(future)),
        None => drop(tokio::spawn(future)),
    }
}

/// Lets the other ready futures of the pod go first, and other pods' if the turn is over.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

/// [`spawn`] for hyper.
#[derive(Clone, Copy, Debug)]
pub struct Spawner;

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, future: F) {
        spawn(future);
    }
}

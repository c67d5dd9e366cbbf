//! How a pod's connections come to their end. In flow two orders, one after the other: drain (what
//! is open goes on, nothing is kept for more) and, when the time for that is over, close. Out they
//! flow to whoever carries a connection.
//!
//! Closing is in order: byte streams get a FIN both ways at their next pause, requests without an
//! answer get one, a body that is not complete breaks off so that nobody takes it for whole. What
//! has not ended [`PAUSE`] and [`LINGER`] later, because its peers do not, is dropped.
//!
//! Whether closing has begun is a flag, read at each poll of a connection, for a future that waits
//! for it would cost a lock at each. What is asleep then is woken by [`Drain::wake`], once for a
//! whole task.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How long a byte stream in which something is under way may go on when closing is ordered.
pub const PAUSE: Duration = Duration::from_millis(500);

/// How long peers may take to answer an end with their own. Applications close at once when they are
/// told; waiting for them keeps late bytes of theirs from being answered with a reset.
pub const LINGER: Duration = Duration::from_secs(1);

/// The two orders. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    draining: CancellationToken,
    closing: CancellationToken,
    is_closing: AtomicBool,
}

impl Drain {
    /// Orders to drain.
    pub fn start(&self) {
        self.inner.draining.cancel();
    }

    /// Whether to drain.
    pub fn is_draining(&self) -> bool {
        self.inner.draining.is_cancelled()
    }

    /// Ready when to drain.
    pub async fn started(&self) {
        self.inner.draining.cancelled().await;
    }

    /// Orders to close.
    pub fn close(&self) {
        self.start();
        self.inner.is_closing.store(true, Ordering::Release);
        self.inner.closing.cancel();
    }

    /// Whether to close.
    pub fn is_closing(&self) -> bool {
        self.inner.is_closing.load(Ordering::Acquire)
    }

    /// Ready when to close.
    pub async fn closing(&self) {
        self.inner.closing.cancelled().await;
    }

    /// Runs `task`, and polls it once more when closing begins: every part of it that asks
    /// [`Drain::is_closing`] sees it then.
    pub fn wake<T: Future>(&self, task: T) -> Woken<T> {
        Woken {
            task,
            closing: Some(self.inner.closing.clone().cancelled_owned()),
        }
    }
}

pin_project! {
    /// See [`Drain::wake`].
    pub struct Woken<T> {
        #[pin]
        task: T,
        #[pin]
        closing: Option<WaitForCancellationFutureOwned>,
    }
}

impl<T: Future> Future for Woken<T> {
    type Output = T::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T::Output> {
        let mut this = self.project();
        if let Poll::Ready(output) = this.task.as_mut().poll(cx) {
            return Poll::Ready(output);
        }
        match this.closing.as_mut().as_pin_mut() {
            Some(closing) => ready!(closing.poll(cx)),
            None => return Poll::Pending,
        }
        this.closing.set(None);
        this.task.poll(cx)
    }
}

//! Optional deadlines: a future with no deadline costs no timer.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

pin_project! {
    /// See [`until`].
    pub(super) struct Until<F> {
        #[pin]
        future: F,
        #[pin]
        deadline: Option<Sleep>,
    }
}

/// Runs a future until `deadline`, if there is one; `None`: it was not ready by then.
pub(super) fn until<F: Future>(deadline: Option<Instant>, future: F) -> Until<F> {
    Until {
        future,
        deadline: deadline.map(sleep_until),
    }
}

impl<F: Future> Future for Until<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(cx) {
            return Poll::Ready(Some(output));
        }
        match this.deadline.as_pin_mut() {
            Some(deadline) => deadline.poll(cx).map(|()| None),
            None => Poll::Pending,
        }
    }
}

/// The earlier of two deadlines.
pub(super) fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

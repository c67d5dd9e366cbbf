//! Writes the status that the book asks for.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};
use weft_source::{SourceError, Writer};

use super::{Book, Write};
use crate::{leadership::Leadership, metrics::Metrics, publish::hub::Hub};

/// How long to gather what has changed: an acknowledgement usually follows within this time, so a
/// route need not be shown as not acknowledged first.
const GATHER: Duration = Duration::from_millis(20);

/// The least time between two rounds of writing: nobody looks more often.
const PAUSE: Duration = Duration::from_millis(30);

/// How long to wait before a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How long one write may take. None is begun that could outlast this replica's leadership.
const WRITE_TIMEOUT: Duration = Duration::from_secs(4);

/// Keeps the status of routes and pods as the [`Book`] wants it.
pub struct StatusWriter {
    book: Mutex<Book>,
    changed: Notify,
    hub: Arc<Hub>,
    writer: Arc<dyn Writer>,
    leadership: Leadership,
    metrics: Metrics,
}

impl StatusWriter {
    /// Over the proxies of `hub`, through `writer`, while `leadership` holds.
    pub fn new(
        hub: Arc<Hub>,
        writer: Arc<dyn Writer>,
        leadership: Leadership,
        metrics: Metrics,
    ) -> Arc<Self> {
        let mut book = Book::default();
        book.follow();
        Arc::new(Self {
            book: book.into(),
            changed: Notify::new(),
            hub,
            writer,
            leadership,
            metrics,
        })
    }

    /// Changes the book.
    pub fn update(&self, change: impl FnOnce(&mut Book)) {
        change(&mut self.book.lock());
        self.changed.notify_one();
    }

    /// Writes what is due while this replica leads, for ever. For `settle` after it has begun to,
    /// proxies that have not come back yet take nothing away that was said before.
    pub async fn run(&self, settle: Duration) {
        let mut leadership = self.leadership.clone();
        loop {
            leadership.acquired().await;
            self.book.lock().lead();
            self.changed.notify_one();
            tokio::select! {
                () = self.lead(settle) => {}
                () = leadership.lost() => {}
            }
            self.book.lock().follow();
        }
    }

    async fn lead(&self, settle: Duration) {
        let mut settle_at = Some(Instant::now() + settle);
        let mut retry_at = None;
        loop {
            let deadline = settle_at.into_iter().chain(retry_at).min();
            tokio::select! {
                () = self.changed.notified() => {}
                () = self.hub.changed() => {}
                () = until(deadline) => {}
            }
            sleep(GATHER).await;
            settle_at = settle_at.filter(|at| Instant::now() < *at);
            let fine = self.write_due(settle_at.is_some()).await;
            retry_at = (!fine).then(|| Instant::now() + RETRY);
            sleep(PAUSE).await;
        }
    }

    /// Returns whether all went well.
    async fn write_due(&self, settling: bool) -> bool {
        let writes = {
            let mut book = self.book.lock();
            book.mark(&self.hub.take_dirty());
            let standing = |kind, names: &[String]| self.hub.standing(kind, names);
            book.take_writes(standing, &now(), settling)
        };
        let mut fine = true;
        for write in writes {
            if !self.leadership.holds_for(WRITE_TIMEOUT) {
                self.book.lock().retry(write);
                fine = false;
                continue;
            }
            let attempt = async {
                match &write {
                    Write::Parents(key, parents) => {
                        self.writer.write_route_parents(key, parents.clone()).await
                    }
                    Write::Condition(key, condition) => {
                        self.writer.write_condition(key, condition.clone()).await
                    }
                }
            };
            let result = timeout(WRITE_TIMEOUT, attempt).await;
            let result =
                result.unwrap_or_else(|_| Err(SourceError::Other("no answer in time".to_owned())));
            self.metrics.status_written(result.is_ok());
            match result {
                Ok(()) => self.book.lock().written(write),
                // It is gone; if it comes back, it is seen anew.
                Err(SourceError::NotFound(key)) => {
                    tracing::debug!(%key, "no status: the object is gone")
                }
                Err(error) => {
                    let (Write::Parents(key, _) | Write::Condition(key, _)) = &write;
                    tracing::warn!(%key, %error, "a status could not be written; it is tried again");
                    self.book.lock().retry(write);
                    fine = false;
                }
            }
        }
        fine
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The time as the API writes it: UTC, whole seconds.
fn now() -> String {
    let now = OffsetDateTime::from(SystemTime::now());
    let whole = now.replace_nanosecond(0).unwrap_or(now);
    whole.format(&Rfc3339).unwrap_or_default()
}

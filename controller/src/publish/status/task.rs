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

use super::{Book, Standing, Write};
use crate::{
    leadership::Leadership,
    metrics::Metrics,
    publish::{
        ResourceType,
        hub::{Dirty, Hub, Subscription},
        peers::{Peers, Touched},
    },
};

/// How long to gather what has changed: an acknowledgement usually follows within this time, so a
/// route need not be shown as not acknowledged first.
const GATHER: Duration = Duration::from_millis(20);

/// The least time between two rounds of writing: nobody looks more often.
const PAUSE: Duration = Duration::from_millis(30);

/// The name of the XMesh that is made where there is none.
const MESH: &str = "weft";

/// How often that is looked after: its kind may come later.
const MESH_PERIOD: Duration = Duration::from_secs(10);

/// How long to wait before a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How long one write may take. None is begun that could outlast this replica's leadership.
const WRITE_TIMEOUT: Duration = Duration::from_secs(4);

/// Keeps the status of routes and pods as the [`Book`] wants it.
pub struct StatusWriter {
    book: Mutex<Book>,
    changed: Notify,
    hub: Arc<Hub>,
    dirty: Subscription,
    peers: Option<Arc<Peers>>,
    writer: Arc<dyn Writer>,
    leadership: Leadership,
    metrics: Metrics,
}

impl StatusWriter {
    /// Over the proxies of `hub` and of the other replicas, through `writer`, while `leadership` holds.
    pub fn new(
        hub: Arc<Hub>,
        peers: Option<Arc<Peers>>,
        writer: Arc<dyn Writer>,
        leadership: Leadership,
        metrics: Metrics,
    ) -> Arc<Self> {
        let mut book = Book::default();
        book.follow();
        Arc::new(Self {
            book: book.into(),
            changed: Notify::new(),
            dirty: hub.subscribe(),
            hub,
            peers,
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
        let mut mesh_at = Instant::now();
        loop {
            let deadline = [settle_at, retry_at, Some(mesh_at)]
                .into_iter()
                .flatten()
                .min();
            tokio::select! {
                () = self.changed.notified() => {}
                () = self.dirty.changed() => {}
                () = self.peers_changed() => {}
                () = until(deadline) => {}
            }
            sleep(GATHER).await;
            if mesh_at <= Instant::now() {
                self.provide_mesh().await;
                mesh_at = Instant::now() + MESH_PERIOD;
            }
            settle_at = settle_at.filter(|at| Instant::now() < *at);
            let unsettled = self
                .peers
                .as_ref()
                .is_some_and(|peers| peers.is_unsettled(settle));
            let fine = self.write_due(settle_at.is_some() || unsettled).await;
            // What is unsettled settles by itself, with time.
            retry_at = (!fine || unsettled).then(|| Instant::now() + RETRY);
            sleep(PAUSE).await;
        }
    }

    /// Makes the XMesh, unless there is one of our controllerName.
    async fn provide_mesh(&self) {
        if self.book.lock().has_mesh() || !self.leadership.holds_for(WRITE_TIMEOUT) {
            return;
        }
        match timeout(WRITE_TIMEOUT, self.writer.create_mesh(MESH)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the mesh's XMesh; trying again"),
            Err(_) => tracing::warn!("no answer in time to making the mesh's XMesh; trying again"),
        }
    }

    async fn peers_changed(&self) {
        match &self.peers {
            Some(peers) => peers.changed().await,
            None => std::future::pending().await,
        }
    }

    fn standing(&self, kind: ResourceType, names: &[String]) -> Standing {
        let mut standing = self.hub.standing(kind, names);
        if let Some(peers) = &self.peers {
            peers.add_standing(kind, &self.hub.versions(kind, names), &mut standing);
        }
        standing
    }

    /// Returns whether all went well.
    async fn write_due(&self, settling: bool) -> bool {
        let writes = {
            let mut book = self.book.lock();
            book.mark(&self.dirty.take());
            if let Some(peers) = &self.peers {
                book.mark(&dirty(peers.take_touched()));
            }
            let standing = |kind, names: &[String]| self.standing(kind, names);
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
                    Write::Mesh(key, status) => self.writer.write_mesh(key, status.clone()).await,
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
                    let (Write::Parents(key, _) | Write::Condition(key, _) | Write::Mesh(key, _)) =
                        &write;
                    tracing::warn!(%key, %error, "a status could not be written; it is tried again");
                    self.book.lock().retry(write);
                    fine = false;
                }
            }
        }
        fine
    }
}

fn dirty(touched: Touched) -> Dirty {
    let mut dirty = Dirty::default();
    match touched {
        None => dirty.everything = true,
        Some(touched) => {
            for (kind, name) in touched {
                dirty.note(kind, &name.into());
            }
        }
    }
    dirty
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

//! From a source's events to published resources: gather, apply, compile, publish.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use prost::Message;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;
use weft_source::{Event, ObjectKey};

use crate::{
    compile::{Compiled, World},
    metrics::Metrics,
    publish::{ResourceType, cache::Update, hub::Hub, peers::Peers, status::StatusWriter},
    state::State,
};

/// Events are gathered for this long at the most: what is applied together is compiled together.
const GATHER: Duration = Duration::from_millis(10);

/// No event for this long ends the gathering.
const QUIET: Duration = Duration::from_millis(3);

/// The most events of one batch.
const BATCH: usize = 4096;

/// Turns events into published resources and wanted status.
pub struct Pipeline {
    /// What the events add up to.
    pub state: Arc<State>,
    /// Where resources go.
    pub hub: Arc<Hub>,
    /// Where status goes.
    pub status: Arc<StatusWriter>,
    /// The other replicas, which the source tells of.
    pub peers: Option<Arc<Peers>>,
    /// Counters.
    pub metrics: Metrics,
    /// Cancelled once everything that existed at the start has been published.
    pub synced: CancellationToken,
}

impl Pipeline {
    /// Follows the events until the source ends them.
    pub async fn run(self, mut events: mpsc::Receiver<Event>) {
        let mut objects = HashSet::new();
        let mut batch = Vec::new();
        while gather(&mut events, &mut batch).await {
            let synced = self.apply(&mut batch, &mut objects);
            if synced {
                self.compile();
                self.synced.cancel();
            } else if self.synced.is_cancelled() {
                self.compile();
            }
        }
    }

    /// Takes events in; returns whether the source has told everything.
    fn apply(&self, batch: &mut Vec<Event>, objects: &mut HashSet<ObjectKey>) -> bool {
        let mut synced = false;
        self.state.update(|world| {
            self.status.update(|book| {
                for event in batch.drain(..) {
                    if let Some(peers) = &self.peers {
                        peers.observe(&event);
                    }
                    match event {
                        Event::Applied(object) => {
                            if !objects.contains(&object.key) {
                                self.metrics.object(&object.key.kind, 1);
                                objects.insert(object.key.clone());
                            }
                            world.apply(&object);
                            book.observe(&object);
                        }
                        Event::Deleted(key) => {
                            if objects.remove(&key) {
                                self.metrics.object(&key.kind, -1);
                            }
                            world.delete(&key);
                            book.forget(&key);
                        }
                        Event::Invalid { origin, error } => {
                            if self.state.set_invalid_document(&origin, Some(&error)) {
                                tracing::warn!(%origin, %error, "a document is ignored");
                            }
                        }
                        Event::Valid { origin } => {
                            self.state.set_invalid_document(&origin, None);
                        }
                        Event::Synced => synced = true,
                    }
                }
            });
        });
        synced
    }

    fn compile(&self) {
        self.state.update(|world: &mut World| {
            let start = Instant::now();
            let compiled = world.compile();
            self.metrics.compile.observe(start.elapsed().as_secs_f64());
            for entry in self.state.set_invalid_objects(&compiled.invalid) {
                tracing::warn!(
                    origin = entry.origin,
                    error = entry.error,
                    "an object is not what it should be"
                );
            }
            self.metrics.invalid.set(self.state.invalid().len() as i64);
            if compiled.changes.is_empty() {
                return;
            }
            // First the resources, then the status that speaks of them: in between, proxies have not
            // acknowledged what is new.
            let changed = self.hub.publish(updates(compiled));
            tracing::debug!(changed, duration = ?start.elapsed(), "compiled");
            self.status.update(|book| {
                for key in &compiled.changes.routes {
                    book.set_route(key, compiled.routes.get(key).cloned());
                }
                for name in &compiled.changes.workloads {
                    book.set_workload(name, compiled.workloads.get(name).map(AsRef::as_ref));
                }
            });
        });
    }
}

/// Waits for events, then for more that come with them. Returns whether there are any.
async fn gather(events: &mut mpsc::Receiver<Event>, batch: &mut Vec<Event>) -> bool {
    if events.recv_many(batch, BATCH).await == 0 {
        return false;
    }
    let start = Instant::now();
    while batch.len() < BATCH && start.elapsed() < GATHER {
        match timeout(QUIET, events.recv_many(batch, BATCH)).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => break,
        }
    }
    true
}

fn updates(compiled: &Compiled) -> Vec<Update> {
    let changes = &compiled.changes;
    let services = changes.services.iter().map(|name| {
        update(
            ResourceType::Service,
            name,
            compiled.services.get(name).map(AsRef::as_ref),
        )
    });
    let workloads = changes.workloads.iter().map(|name| {
        update(
            ResourceType::Workload,
            name,
            compiled.workloads.get(name).map(AsRef::as_ref),
        )
    });
    let tables = changes.route_tables.iter().map(|name| {
        update(
            ResourceType::RouteTable,
            name,
            compiled.route_tables.get(name).map(AsRef::as_ref),
        )
    });
    services.chain(workloads).chain(tables).collect()
}

/// A resource as it is published.
pub(crate) fn update(kind: ResourceType, name: &str, message: Option<&impl Message>) -> Update {
    Update {
        kind,
        name: name.to_owned(),
        body: message.map(Message::encode_to_vec),
    }
}

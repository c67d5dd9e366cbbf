//! What one pod may use of the proxy, what it uses, and what became of the rest. In flow the pod's
//! connections and buffers; out flow permits for them, and counts for the metrics.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weft_api::handover::ListenerKind;

use crate::{budget::Budget, hbone::Door, settings::Settings};

/// What is limited, a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    /// Captured connections that the pod made.
    Connections,
    /// Captured plaintext connections to the pod.
    InboundConnections,
    /// Tunnels to the pod.
    Tunnels,
    /// TLS handshakes under way.
    Handshakes,
    /// Tunnels from the pod to one destination.
    TunnelsPerDestination,
    /// Bytes that are held.
    BufferedBytes,
    /// A head's size.
    HeaderBytes,
    /// A head's time.
    HeaderTimeout,
}

impl Limit {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Connections,
        Self::InboundConnections,
        Self::Tunnels,
        Self::Handshakes,
        Self::TunnelsPerDestination,
        Self::BufferedBytes,
        Self::HeaderBytes,
        Self::HeaderTimeout,
    ];

    /// The word for metrics and answers.
    pub fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::InboundConnections => "inbound_connections",
            Self::Tunnels => "tunnels",
            Self::Handshakes => "handshakes",
            Self::TunnelsPerDestination => "tunnels_per_destination",
            Self::BufferedBytes => "buffered_bytes",
            Self::HeaderBytes => "http_header_bytes",
            Self::HeaderTimeout => "http_header_timeout",
        }
    }
}

/// One pod's limits, shared by all that serves it.
#[derive(Debug)]
pub struct PodLimits {
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    settings: Settings,
    connections: Arc<Semaphore>,
    inbound: Arc<Semaphore>,
    tunnels: Arc<Semaphore>,
    handshakes: Arc<Door>,
    budget: Budget,
    shed: Counts,
    reached: Counts,
}

/// A count for each limit.
pub type Counts = [AtomicU64; Limit::ALL.len()];

impl PodLimits {
    /// Of a pod that uses nothing yet.
    pub fn new(namespace: Arc<str>, name: Arc<str>, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            namespace,
            name,
            settings,
            connections: Arc::new(Semaphore::new(settings.connections)),
            inbound: Arc::new(Semaphore::new(settings.connections)),
            tunnels: Arc::new(Semaphore::new(settings.tunnels)),
            handshakes: Door::new(settings.handshakes),
            budget: Budget::new(settings.buffered_bytes),
            shed: Counts::default(),
            reached: Counts::default(),
        })
    }

    /// Limits and times.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Bytes that may be held.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Bounds handshakes under way.
    pub fn handshakes(&self) -> &Arc<Door> {
        &self.handshakes
    }

    /// Something was refused or broken off for a limit's sake.
    pub fn shed(&self, limit: Limit) {
        self.shed[limit as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A limit was reached, and what comes now waits.
    pub fn reached(&self, limit: Limit) {
        self.reached[limit as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What was shed, by limit.
    pub fn shed_counts(&self) -> &Counts {
        &self.shed
    }

    /// How often each limit was reached.
    pub fn reached_counts(&self) -> &Counts {
        &self.reached
    }

    /// Waits for room for one more connection of a listener. Beyond the limit none is accepted:
    /// clients wait in the pod's own queue.
    pub async fn room(&self, kind: ListenerKind) {
        let (limit, semaphore) = self.of(kind);
        if semaphore.available_permits() == 0 {
            self.reached(limit);
            // Given back: what is not accepted yet is not in use.
            drop(semaphore.acquire().await);
        }
        if !self.budget.has_room() {
            self.reached(Limit::BufferedBytes);
            self.budget.room().await;
        }
    }

    /// Counts a connection that was accepted. Waits only if another accept loop was faster.
    pub async fn accepted(&self, kind: ListenerKind) -> Option<OwnedSemaphorePermit> {
        let (_, semaphore) = self.of(kind);
        // Nobody closes it.
        Arc::clone(semaphore).acquire_owned().await.ok()
    }

    fn of(&self, kind: ListenerKind) -> (Limit, &Arc<Semaphore>) {
        match kind {
            ListenerKind::InboundHbone => (Limit::Tunnels, &self.tunnels),
            // Strangers must not be able to keep the pod from dialling.
            ListenerKind::InboundPlaintext => (Limit::InboundConnections, &self.inbound),
            _ => (Limit::Connections, &self.connections),
        }
    }

    /// Waits a while until something new may be buffered for; false: it must be shed, and is
    /// counted so.
    pub async fn admit(&self) -> bool {
        if self.budget.has_room() {
            return true;
        }
        self.reached(Limit::BufferedBytes);
        let room = tokio::time::timeout(self.settings.budget_wait, self.budget.room());
        let admitted = room.await.is_ok();
        if !admitted {
            self.shed(Limit::BufferedBytes);
        }
        admitted
    }

    /// What is in use, and of how much.
    pub fn in_use(&self) -> [(Limit, usize, usize); 5] {
        let of =
            |semaphore: &Semaphore, most: usize| most.saturating_sub(semaphore.available_permits());
        let (connections, tunnels) = (self.settings.connections, self.settings.tunnels);
        let handshakes = self.settings.handshakes;
        [
            (
                Limit::Connections,
                of(&self.connections, connections),
                connections,
            ),
            (
                Limit::InboundConnections,
                of(&self.inbound, connections),
                connections,
            ),
            (Limit::Tunnels, of(&self.tunnels, tunnels), tunnels),
            (Limit::Handshakes, self.handshakes.in_use(), handshakes),
            (
                Limit::BufferedBytes,
                self.budget.used(),
                self.budget.limit(),
            ),
        ]
    }
}

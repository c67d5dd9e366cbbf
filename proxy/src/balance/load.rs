//! The load of one endpoint as the data path shares it: requests in flight, cost and health, in
//! three atomics. A [`LoadGuard`] is one request: it is counted from the pick to the drop.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Instant as StdInstant,
};

use tokio::time::Instant;

use super::{ewma::Ewma, health::Health};

/// What is known of an endpoint's load. Every field stands for itself, so `Relaxed` is enough.
#[derive(Debug, Default)]
pub struct Load {
    ewma: AtomicU64,
    health: AtomicU64,
    in_flight: AtomicU32,
}

impl Load {
    /// Requests or connections that are under way.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// The latency estimate.
    pub fn ewma(&self) -> Ewma {
        Ewma::from_bits(self.ewma.load(Relaxed))
    }

    /// Whether connect failures have ejected it at `now` (see [`millis`]).
    pub fn ejected(&self, now: u32) -> bool {
        let bits = self.health.load(Relaxed);
        bits != 0 && Health::from_bits(bits).ejected(now)
    }

    /// Counts one in flight until the guard is dropped.
    pub fn start(self: &Arc<Self>, now: Instant) -> LoadGuard {
        self.in_flight.fetch_add(1, Relaxed);
        LoadGuard {
            load: Arc::clone(self),
            started: Some(now),
        }
    }

    fn observe(&self, now: Instant, latency_us: f32) {
        let ms = millis(now);
        // Losing one of two observations of the same moment is harmless: no loop.
        let bits = self.ewma.load(Relaxed);
        let next = Ewma::from_bits(bits).observe(ms, latency_us).to_bits();
        let _ = self
            .ewma
            .compare_exchange_weak(bits, next, Relaxed, Relaxed);
        if self.health.load(Relaxed) != 0 {
            self.health.store(0, Relaxed);
        }
    }

    fn fail(&self, now: Instant) {
        let ms = millis(now);
        let _ = self.health.fetch_update(Relaxed, Relaxed, |bits| {
            Some(Health::from_bits(bits).failed(ms).to_bits())
        });
    }
}

/// One request (or L4 connection) on an endpoint. Dropped: it is over.
#[derive(Debug)]
pub struct LoadGuard {
    load: Arc<Load>,
    /// Taken by the first outcome.
    started: Option<Instant>,
}

impl LoadGuard {
    /// The endpoint answered: the response's head arrived (L7), or the connection or tunnel
    /// stands (L4). The time since the pick is its latency. Later calls do nothing.
    pub fn first_byte(&mut self) {
        if let Some(started) = self.started.take() {
            let now = Instant::now();
            let latency = now.saturating_duration_since(started);
            self.load.observe(now, latency.as_secs_f32() * 1e6);
        }
    }

    /// The endpoint could not be reached. Nothing after an outcome was reported.
    pub fn failed(&mut self) {
        if self.started.take().is_some() {
            self.load.fail(Instant::now());
        }
    }

    /// The endpoint's shared load.
    pub fn load(&self) -> &Arc<Load> {
        &self.load
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        self.load.in_flight.fetch_sub(1, Relaxed);
    }
}

/// Milliseconds since the process looked at the clock first; wraps after 49 days, which the
/// comparisons in [`super::ewma`] and [`super::health`] allow for.
pub fn millis(at: Instant) -> u32 {
    static START: LazyLock<StdInstant> = LazyLock::new(StdInstant::now);
    at.into_std().saturating_duration_since(*START).as_millis() as u32
}

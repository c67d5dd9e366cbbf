//! Connections to backends, on behalf of one pod: an endpoint and a protocol flow in, a
//! connection with room for one request flows out, from the pool or new.
//!
//! A pool belongs to one workload as it was when its connections were made (address, identity,
//! tunnel): when any of it changes the pool is replaced, so no request goes to whom it was not
//! meant for. No lock is held while connecting.

mod http1;
mod http2;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::time::Instant;

pub(super) use self::{
    http1::Http1Lease,
    http2::{Http2Lease, Pump, exchange},
};
use self::{http1::Http1Pool, http2::Http2Pool};
use super::limits::HttpLimits;
use crate::{
    budget::Budget,
    io::{ConnectError, Connector},
    model::Workload,
    state::{Picked, State},
};

/// How often idle connections are looked through. One in a tunnel that its server is about to end must be
/// given up well before the time to drain is over, and no request is to be under way on it then.
pub(super) const SWEEP: Duration = Duration::from_secs(1);

/// All pools of one pod.
pub(super) struct Pools {
    connector: Arc<dyn Connector>,
    limits: HttpLimits,
    budget: Budget,
    endpoints: Mutex<HashMap<Key, Arc<Endpoint>, RandomState>>,
    draining: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    address: SocketAddr,
    http2: bool,
}

/// The connections to one endpoint in one protocol.
struct Endpoint {
    to: Destination,
    connections: Connections,
}

/// Where a pool's connections lead, and how they are made.
#[derive(Clone)]
struct Destination {
    connector: Arc<dyn Connector>,
    workload: Arc<Workload>,
    address: SocketAddr,
    limits: HttpLimits,
    budget: Budget,
}

enum Connections {
    Http1(Arc<Http1Pool>),
    Http2(Arc<Http2Pool>),
}

/// A connection with room for one request.
pub(super) enum Lease {
    Http1(Http1Lease),
    Http2(Http2Lease),
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Http1(_) => "Http1",
            Self::Http2(_) => "Http2",
        })
    }
}

impl Pools {
    pub(super) fn new(connector: Arc<dyn Connector>, limits: HttpLimits, budget: Budget) -> Self {
        Self {
            connector,
            limits,
            budget,
            endpoints: Mutex::default(),
            draining: AtomicBool::new(false),
        }
    }

    /// From now on connections carry what they carry, and are not kept for more.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.endpoints.lock().clear();
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// A connection to the picked endpoint; `fresh` asks for one that has carried nothing yet.
    pub(super) async fn lease(
        &self,
        picked: &Picked,
        http2: bool,
        fresh: bool,
    ) -> Result<Lease, ConnectError> {
        let endpoint = self.endpoint(picked, http2);
        match &endpoint.connections {
            Connections::Http1(pool) => {
                if !fresh && let Some(lease) = pool.idle() {
                    return Ok(Lease::Http1(lease));
                }
                pool.connect(&endpoint.to).await.map(Lease::Http1)
            }
            Connections::Http2(pool) => pool.lease(&endpoint.to).await.map(Lease::Http2),
        }
    }

    fn endpoint(&self, picked: &Picked, http2: bool) -> Arc<Endpoint> {
        let key = Key {
            address: picked.address,
            http2,
        };
        let mut endpoints = self.endpoints.lock();
        if let Some(endpoint) = endpoints.get(&key)
            && same(&endpoint.to.workload, &picked.workload)
        {
            return Arc::clone(endpoint);
        }
        let endpoint = Arc::new(Endpoint {
            to: Destination {
                connector: Arc::clone(&self.connector),
                workload: Arc::clone(&picked.workload),
                address: picked.address,
                limits: self.limits,
                budget: self.budget.clone(),
            },
            connections: if http2 {
                Connections::Http2(Arc::default())
            } else {
                let keep = if self.is_draining() {
                    0
                } else {
                    self.limits.idle_connections
                };
                Connections::Http1(Arc::new(Http1Pool::new(keep)))
            },
        });
        endpoints.insert(key, Arc::clone(&endpoint));
        endpoint
    }

    /// Closes what has been idle for too long or leads to a workload that is gone or has changed.
    /// Requests under way finish.
    pub(super) fn sweep(&self, state: &State) {
        self.connector.sweep();
        let now = Instant::now();
        let before = if self.is_draining() {
            Some(now)
        } else {
            now.checked_sub(self.limits.idle)
        };
        let mut endpoints = self.endpoints.lock();
        endpoints.retain(|_, endpoint| {
            let connections = match &endpoint.connections {
                // Those on lease, which hold the pool weakly, are to come back to it.
                Connections::Http1(pool) => pool.sweep(before) + Arc::weak_count(pool),
                Connections::Http2(pool) => pool.sweep(before),
            };
            state.is_current(&endpoint.to.workload)
                && (connections > 0 || Arc::strong_count(endpoint) > 1)
        });
    }

    /// Number of connections: idle HTTP/1.1 ones and all HTTP/2 ones.
    pub(super) fn connections(&self) -> usize {
        let endpoints = self.endpoints.lock();
        let counts = endpoints.values().map(|it| match &it.connections {
            Connections::Http1(pool) => pool.sweep(None),
            Connections::Http2(pool) => pool.sweep(None),
        });
        counts.sum()
    }
}

/// Whether connections that were made for one are good for the other.
fn same(made_for: &Arc<Workload>, wanted: &Arc<Workload>) -> bool {
    Arc::ptr_eq(made_for, wanted)
        || made_for.uid == wanted.uid
            && made_for.identity == wanted.identity
            && made_for.captured == wanted.captured
            && made_for.sandbox == wanted.sandbox
            && made_for.capture_changes == wanted.capture_changes
}

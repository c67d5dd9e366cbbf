//! HTTP for captured connections. A pod's byte stream whose port speaks HTTP flows in, requests
//! are matched against the route table in force, changed by its filters, and flow out through
//! pools of upstream connections that belong to that pod alone.
//!
//! - [`table`], [`matching`], [`filter`], [`redirect`], [`cors`], [`path`], [`hop`], [`reply`]: pure;
//! - `serve`, `session`: one connection and its requests; `forward`, `plan`, `attempt`, `exchange`:
//!   one of them, what is done with it, how it is sent, and what is told of it; `retry`, `replay`:
//!   how it is sent again;
//! - `upstream`: connections to backends; `upgrade`: what is no longer HTTP.

mod attempt;
pub mod body;
pub mod cors;
mod deadline;
mod downstream;
pub mod exchange;
pub mod filter;
mod forward;
pub mod hop;
mod limits;
pub mod matching;
pub mod path;
mod plan;
pub mod redirect;
mod replay;
pub mod reply;
pub mod retry;
mod series;
mod serve;
mod session;
pub mod table;
#[cfg(test)]
mod tests;
mod upgrade;
mod upstream;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

pub use self::{
    limits::HttpLimits,
    matching::RequestHead,
    serve::HttpError,
    table::{HttpRoutes, Rule, Selected},
};
use self::{series::SeriesCache, session::Session, upstream::Pools};
use crate::{
    budget::Budget,
    drain::Drain,
    io::{Connector, Io},
    limits::{Limit, PodLimits},
    model::Client,
    share,
    state::{ServiceTarget, State},
    telemetry::Telemetry,
};

/// How many sweeps lie between two times at which the metrics' handles are forgotten: once a minute.
const SWEEPS_PER_SERIES: u32 = 60;

/// HTTP of one local pod: its connections to backends, which no other pod shares.
pub struct PodHttp {
    state: Arc<State>,
    telemetry: Arc<Telemetry>,
    limits: HttpLimits,
    pod: Arc<PodLimits>,
    pools: Pools,
    series: SeriesCache,
    sweeping: AtomicBool,
}

impl fmt::Debug for PodHttp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodHttp")
            .field("backend_connections", &self.pools.connections())
            .finish_non_exhaustive()
    }
}

impl PodHttp {
    /// HTTP of a pod whose connections to backends `connector` makes.
    pub fn new(
        state: Arc<State>,
        telemetry: Arc<Telemetry>,
        connector: Arc<dyn Connector>,
        limits: HttpLimits,
        pod: Arc<PodLimits>,
    ) -> Arc<Self> {
        Arc::new(Self {
            state,
            telemetry,
            limits,
            pools: Pools::new(connector, limits, pod.budget().clone()),
            pod,
            series: SeriesCache::default(),
            sweeping: AtomicBool::new(false),
        })
    }

    /// Connections to backends: idle HTTP/1.1 ones and all HTTP/2 ones.
    pub fn backend_connections(&self) -> usize {
        self.pools.connections()
    }

    /// What the pod may hold in memory.
    fn budget(&self) -> &Budget {
        self.pod.budget()
    }

    /// Ends connections to backends as soon as they carry nothing.
    pub fn drain(&self) {
        self.pools.drain();
    }

    /// Serves a captured connection to an HTTP port of a Service until it ends. Which routes apply
    /// is asked anew for each request. As `drain` orders, open requests are finished, HTTP/2 clients
    /// are told to go away, and HTTP/1 connections end with their next response; then all that is
    /// left is closed.
    ///
    /// # Errors
    /// The client's connection broke, or what came over it was not HTTP.
    pub async fn serve(
        self: Arc<Self>,
        io: impl Io + 'static,
        client: Client,
        target: ServiceTarget,
        original_dst: SocketAddr,
        drain: Drain,
    ) -> Result<(), HttpError> {
        self.sweep();
        let limits = self.limits;
        let telemetry = Arc::clone(&self.telemetry);
        let pod = Arc::clone(&self.pod);
        let session = Session::new(
            self,
            client,
            target.service,
            target.port,
            original_dst,
            drain.clone(),
        );
        let served = serve::serve(io, session, &limits, drain).await;
        if let Err(error) = &served
            && error.is_clients_fault()
        {
            telemetry.http_protocol_error("http", error.label());
            match error {
                HttpError::SlowHead(_) => pod.shed(Limit::HeaderTimeout),
                HttpError::Http(error) if error.is_parse_too_large() => {
                    pod.shed(Limit::HeaderBytes);
                }
                _ => {}
            }
        }
        served
    }

    /// Starts the task that closes idle connections; it ends with the pod.
    fn sweep(self: &Arc<Self>) {
        if self.sweeping.swap(true, Ordering::Relaxed) {
            return;
        }
        let pod = Arc::downgrade(self);
        share::spawn(async move {
            let mut sweeps = 0u32;
            loop {
                tokio::time::sleep(upstream::SWEEP).await;
                let Some(pod) = pod.upgrade() else { return };
                pod.pools.sweep(&pod.state);
                sweeps = sweeps.wrapping_add(1);
                if sweeps.is_multiple_of(SWEEPS_PER_SERIES) {
                    pod.series.clear();
                }
            }
        });
    }
}

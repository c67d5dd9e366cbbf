//! What the proxy tells about itself: events of the data path flow in, Prometheus metrics
//! (OpenMetrics text) and the access log flow out.
//!
//! What happens per request goes to handles ([`Requests`], [`ConnectionHandle`]) that are looked
//! up once and are atomics from there on; rare events go to [`Telemetry`]'s methods, whose
//! labels are words of the program and so few.

pub mod access_log;
mod by_pod;
mod connections;
mod histogram;
mod labels;
mod pods;
mod process;
mod requests;
mod series;

#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Metric, Registry},
};

pub use self::{
    access_log::{AccessLog, ConnectionLog, LogPeer, RequestLog, Sink},
    by_pod::ByPod,
    connections::ConnectionHandle,
    labels::{Direction, Labels, Peer, Tunnel},
    requests::Requests,
};
use self::{
    connections::{ConnectionCollector, Connections},
    pods::PodCollector,
    requests::RequestCollector,
    series::{Bounded, CAP},
};
use crate::{limits::PodLimits, state::Kind};

/// The media type of [`Telemetry::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Labels whose values are words of the program.
type Words<const N: usize> = [(&'static str, &'static str); N];

/// Metrics and access log. Shared as `Arc<Telemetry>`.
#[derive(Debug)]
pub struct Telemetry {
    registry: Mutex<Registry>,
    log: AccessLog,
    requests: Arc<Bounded<Requests>>,
    connections: Arc<Bounded<Connections>>,
    errors: Family<Words<2>, Counter>,
    retries: Family<Words<1>, Counter>,
    refused: ByPod,
    scrapes_refused: Family<Words<1>, Counter>,
    handshakes: Family<Words<3>, Counter>,
    tunnels: Family<Words<1>, Gauge>,
    sniff_fallbacks: Family<Words<1>, Counter>,
    protocol_errors: Family<Words<2>, Counter>,
    log_dropped: Counter,
    xds_connected: Gauge,
    xds_failures: Counter,
    xds_rejected: Family<Words<1>, Counter>,
    resources: Family<Words<1>, Gauge>,
    pods: Gauge,
    limits: Arc<pods::Pods>,
    certificates: Family<[(&'static str, String); 1], Gauge>,
}

/// Which end of a handshake or tunnel this proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It dialled.
    Client,
    /// It accepted.
    Server,
}

impl Side {
    fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// A gauge that counts this until it is dropped.
#[derive(Debug)]
pub struct GaugeGuard(Gauge<i64, AtomicI64>);

impl GaugeGuard {
    fn new(gauge: Gauge<i64, AtomicI64>) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Telemetry {
    /// Nothing recorded yet; log lines go to `log`.
    pub fn new(log: AccessLog) -> Arc<Self> {
        Self::with_cap(log, CAP)
    }

    fn with_cap(log: AccessLog, cap: usize) -> Arc<Self> {
        let mut metrics = Metrics(Registry::default());
        let overflowed: Counter = metrics.add(
            "weft_series_overflowed",
            "Label sets that found no room and are counted in a series named overflow",
        );
        let requests = Arc::new(Bounded::new(cap, overflowed.clone()));
        let connections = Arc::new(Bounded::new(cap, overflowed));
        let registry = &mut metrics.0;
        registry.register_collector(Box::new(RequestCollector(Arc::clone(&requests))));
        registry.register_collector(Box::new(ConnectionCollector(Arc::clone(&connections))));
        registry.register_collector(Box::new(process::Process));
        let limits = Arc::<pods::Pods>::default();
        registry.register_collector(Box::new(PodCollector(Arc::clone(&limits))));
        let refused = ByPod::new(
            "weft_refused",
            "What was refused at a pod of this node, by reason",
        );
        registry.register_collector(Box::new(refused.clone()));
        registry.register(
            "weft_build",
            "The version of this proxy",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );

        let telemetry = Self {
            log,
            errors: metrics.add(
                "weft_errors",
                "Connections and requests that failed or were refused, by cause",
            ),
            retries: metrics.add(
                "weft_http_retries",
                "Requests that were sent again because their route asks for it, by cause",
            ),
            refused,
            scrapes_refused: metrics.add(
                "weft_scrapes_refused",
                "Requests of pods for metrics or readiness that were refused, by port",
            ),
            handshakes: metrics.add("weft_handshakes", "mTLS handshakes, by their result"),
            tunnels: metrics.add("weft_tunnels_open", "HBONE connections that are open"),
            sniff_fallbacks: metrics.add(
                "weft_sniff_fallbacks",
                "Connections to undeclared ports with HTTP routes that did not speak HTTP",
            ),
            protocol_errors: metrics.add(
                "weft_http_protocol_errors",
                "HTTP messages that were refused as malformed or ambiguous",
            ),
            log_dropped: metrics.add(
                "weft_access_log_dropped",
                "Access log lines that were dropped because the writer was behind",
            ),
            xds_connected: metrics.add(
                "weft_xds_connected",
                "1 while the controller's stream is open",
            ),
            xds_failures: metrics.add(
                "weft_xds_connection_failures",
                "Streams to the controller that could not be opened, or broke",
            ),
            xds_rejected: metrics.add(
                "weft_xds_rejected_resources",
                "Resources that were refused; the last good one stays in force",
            ),
            resources: metrics.add("weft_xds_resources", "Resources in force, by type"),
            pods: metrics.add("weft_pods", "Pods that this proxy serves"),
            certificates: metrics.add(
                "weft_certificate_expiry_timestamp_seconds",
                "When a workload's certificate ends, in seconds since 1970",
            ),
            limits,
            requests,
            connections,
            registry: Mutex::new(metrics.0),
        };
        Arc::new(telemetry)
    }

    /// Adds a metric of the caller's own. `name` without the suffix that its type implies.
    pub fn register(&self, name: &'static str, help: &'static str, metric: impl Metric) {
        self.registry.lock().register(name, help, metric);
    }

    // --- L7 and L4 ---------------------------------------------------------------------------

    /// The requests with these labels. Look it up when the labels change, not for each request.
    pub fn requests(&self, labels: &Labels) -> Arc<Requests> {
        self.requests.get(labels)
    }

    /// An L4 connection with these labels was opened; it is closed when the handle is dropped.
    pub fn connection_opened(&self, labels: &Labels) -> ConnectionHandle {
        ConnectionHandle::open(self.connections.get(labels))
    }

    /// Something failed or was refused. `reason`: a word of the program (`ConnectError::label`,
    /// `NoEndpoint::label`, `no_route`, `strict_plaintext`, `own_port`, ...).
    pub fn error(&self, direction: Direction, reason: &'static str) {
        self.errors
            .get_or_create_owned(&[("direction", direction.label()), ("reason", reason)])
            .inc();
    }

    /// A request is sent again as its route asks. `reason`: `status`, or the word of the failure.
    pub fn retried(&self, reason: &'static str) {
        self.retries
            .get_or_create_owned(&[("reason", reason)])
            .inc();
    }

    /// Something was refused at a pod of this node. `reason`: a word of the program.
    pub fn refused(&self, namespace: &Arc<str>, pod: &Arc<str>, reason: &'static str) {
        self.refused.add(namespace, pod, reason);
    }

    /// A pod of this name is served no more.
    pub fn forget_pod(&self, namespace: &Arc<str>, pod: &Arc<str>) {
        self.refused.forget(namespace, pod);
    }

    /// A pod that may not asked for metrics or readiness.
    pub fn scrape_refused(&self, port: &'static str) {
        self.scrapes_refused
            .get_or_create_owned(&[("port", port)])
            .inc();
    }

    /// A connection to an undeclared port that HTTP routes reach was passed on as TCP.
    pub fn sniff_fallback(&self, reason: &'static str) {
        self.sniff_fallbacks
            .get_or_create_owned(&[("reason", reason)])
            .inc();
    }

    /// An HTTP message was refused.
    pub fn http_protocol_error(&self, protocol: &'static str, reason: &'static str) {
        self.protocol_errors
            .get_or_create_owned(&[("protocol", protocol), ("reason", reason)])
            .inc();
    }

    // --- HBONE and identity ------------------------------------------------------------------

    /// An mTLS handshake ended; an error is a word of the program (`VerifyError::label`).
    pub fn handshake(&self, side: Side, result: Result<(), &'static str>) {
        let (word, reason) = match result {
            Ok(()) => ("ok", ""),
            Err(reason) => ("failed", reason),
        };
        self.handshakes
            .get_or_create_owned(&[("side", side.label()), ("result", word), ("reason", reason)])
            .inc();
    }

    /// An HBONE connection is open until the guard is dropped.
    pub fn tunnel_opened(&self, side: Side) -> GaugeGuard {
        GaugeGuard::new(self.tunnels.get_or_create_owned(&[("side", side.label())]))
    }

    /// Pods that are served now.
    pub fn pods(&self, count: usize) {
        self.pods.set(count as i64);
    }

    /// Shows what a pod uses of its limits and of the threads' time (`busy`, nanoseconds), for as
    /// long as its limits are held.
    pub fn pod(&self, limits: &Arc<PodLimits>, busy: &Arc<AtomicU64>) {
        self.limits.add(limits, busy);
    }

    /// A certificate's end; `None`: the identity is not held any more.
    pub fn certificate(&self, identity: &str, not_after: Option<SystemTime>) {
        let labels = [("identity", identity.to_owned())];
        match not_after {
            Some(end) => {
                let seconds = end.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
                self.certificates
                    .get_or_create_owned(&labels)
                    .set(seconds as i64);
            }
            None => {
                self.certificates.remove(&labels);
            }
        }
    }

    // --- The control plane -------------------------------------------------------------------

    /// The controller's stream opened or ended.
    pub fn xds_connected(&self, connected: bool) {
        self.xds_connected.set(i64::from(connected));
    }

    /// A stream could not be opened, or broke.
    pub fn xds_failed(&self) {
        self.xds_failures.inc();
    }

    /// Resources were refused.
    pub fn xds_rejected(&self, kind: Kind, count: usize) {
        self.xds_rejected
            .get_or_create_owned(&[("type", kind.label())])
            .inc_by(count as u64);
    }

    /// Resources in force.
    pub fn resources(&self, kind: Kind, count: usize) {
        self.resources
            .get_or_create_owned(&[("type", kind.label())])
            .set(count as i64);
    }

    // --- The access log ----------------------------------------------------------------------

    /// Whether the access log is on: if not, don't make entries.
    pub fn logs(&self) -> bool {
        self.log.is_on()
    }

    /// A connection ended.
    pub fn log_connection(&self, entry: ConnectionLog) {
        if !self.log.connection(entry) {
            self.log_dropped.inc();
        }
    }

    /// A request ended.
    pub fn log_request(&self, entry: RequestLog) {
        if !self.log.request(entry) {
            self.log_dropped.inc();
        }
    }

    /// Returns once all entries are written.
    pub async fn flush_log(&self) {
        self.log.flush().await;
    }

    // --- Scrapes -----------------------------------------------------------------------------

    /// All metrics as OpenMetrics text ([`CONTENT_TYPE`]).
    pub fn encode(&self) -> String {
        let mut out = String::new();
        let written = text::encode(&mut out, &self.registry.lock());
        debug_assert!(written.is_ok(), "writing to memory does not fail");
        out
    }
}

/// Registers while the struct is made.
struct Metrics(Registry);

impl Metrics {
    fn add<M: Metric + Default + Clone>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0.register(name, help, metric.clone());
        metric
    }
}

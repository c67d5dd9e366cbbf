//! One request and its response, from the request's head to the last byte of the response: what is
//! known of it is gathered here, and told to metrics, access log and balancer when it is over, in
//! whatever way it ends.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::SystemTime,
};

use bytes::Bytes;
use http::Method;
use http_body::Frame;
use tokio::{
    sync::oneshot,
    time::{Instant, Sleep},
};

use super::{cors::Sharing, session::Session, upstream::Lease};
use crate::{
    balance::LoadGuard,
    budget::{Budget, Charge},
    model::RouteRef,
    state::Picked,
    telemetry::{ConnectionLog, Direction, LogPeer, RequestLog, Tunnel},
};

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The whole response was handed to the client's connection.
    Complete,
    /// The client did not wait for the end.
    ClientGone,
    /// The backend's response broke off.
    BackendBroke,
    /// The rule's time was over.
    Timeout,
    /// The time to drain was over.
    Drained,
}

/// Still under way when the time to drain was over.
pub(super) const DRAIN_TIMEOUT: &str = "drain_timeout";

/// One request and its response.
#[derive(Debug)]
pub struct Exchange {
    session: Arc<Session>,
    started: Instant,
    first_byte: Option<Instant>,
    /// What the client was answered; 0 before.
    status: u16,
    error: Option<&'static str>,
    route: Option<Arc<RouteRef>>,
    /// What the response says of sharing it, whoever makes it.
    sharing: Option<Box<Sharing>>,
    endpoint: Option<Endpoint>,
    /// Until when the response may take.
    timeout: Option<Pin<Box<Sleep>>>,
    lease: Option<Lease>,
    /// Dropped with the exchange: a request's body that nobody wants any more learns of it.
    pub(super) alive: Option<oneshot::Sender<()>>,
    /// Bytes of the request's body; none if there is no body.
    pub(super) received: Option<Arc<AtomicU64>>,
    sent: u64,
    /// What the client's stream may send before it is read.
    _window: Option<Charge>,
    log: Option<Box<Draft>>,
    recorded: bool,
}

#[derive(Debug)]
struct Endpoint {
    workload: Arc<crate::model::Workload>,
    address: std::net::SocketAddr,
    load: LoadGuard,
}

/// What the access log wants of the request's head, which does not live as long.
#[derive(Debug)]
struct Draft {
    method: Method,
    path: Box<str>,
    protocol: &'static str,
}

impl Exchange {
    /// A request's head has arrived.
    pub(super) fn new(session: Arc<Session>, head: &http::request::Parts, has_body: bool) -> Self {
        let log = session.telemetry().logs().then(|| {
            Box::new(Draft {
                method: head.method.clone(),
                path: head.uri.path().into(),
                protocol: match head.version {
                    http::Version::HTTP_2 => "h2",
                    http::Version::HTTP_10 => "http/1.0",
                    _ => "http/1.1",
                },
            })
        });
        // Over HTTP/1 the connection counts what it has read.
        let window = (has_body && head.version == http::Version::HTTP_2).then(|| {
            let window = session.pod.limits.client_stream_window;
            session.budget().charge(window as usize)
        });
        Self {
            received: (has_body && log.is_some()).then(Arc::default),
            session,
            started: Instant::now(),
            first_byte: None,
            status: 0,
            error: None,
            route: None,
            sharing: None,
            endpoint: None,
            timeout: None,
            lease: None,
            alive: None,
            sent: 0,
            _window: window,
            log,
            recorded: false,
        }
    }

    /// What is held of it counts against this.
    pub(super) fn budget(&self) -> &Budget {
        self.session.budget()
    }

    /// When the request's head arrived.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// The rule that applies.
    pub(super) fn routed(&mut self, route: &Arc<RouteRef>) {
        self.route = Some(Arc::clone(route));
    }

    /// The response says this of sharing it.
    pub(super) fn share(&mut self, sharing: Sharing) {
        self.sharing = Some(Box::new(sharing));
    }

    /// What the response says of sharing it, if its rule has a say in that.
    pub(super) fn sharing(&self) -> Option<&Sharing> {
        self.sharing.as_deref()
    }

    /// The endpoint that is tried.
    pub(super) fn picked(&mut self, picked: Picked) {
        self.endpoint = Some(Endpoint {
            workload: picked.workload,
            address: picked.address,
            load: picked.load,
        });
    }

    /// The endpoint could not be reached.
    pub(super) fn unreachable(&mut self) {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.load.failed();
        }
    }

    /// It is tried again, for `reason`; where it was tried.
    pub(super) fn retried(&mut self, reason: &'static str) -> Option<std::net::SocketAddr> {
        self.session.telemetry().retried(reason);
        self.endpoint.as_ref().map(|it| it.address)
    }

    /// The backend's head arrived.
    pub(super) fn answered(&mut self, status: u16, lease: Lease) {
        self.status = status;
        self.first_byte = Some(Instant::now());
        self.lease = Some(lease);
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.load.first_byte();
        }
    }

    /// The proxy answers by itself; `error` is a word of the program.
    pub(super) fn answered_here(&mut self, status: u16, error: Option<&'static str>) {
        self.status = status;
        self.error = error;
    }

    /// The response must be complete at `deadline`.
    pub(super) fn limit(&mut self, deadline: Option<Instant>) {
        self.timeout = deadline.map(|at| Box::pin(tokio::time::sleep_until(at)));
    }

    /// Whether it has to end now.
    pub(super) fn is_closing(&self) -> bool {
        self.session.drain.is_closing()
    }

    /// Ready when the time for the response is over.
    pub(super) fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.timeout {
            Some(timeout) => timeout.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    /// A frame was handed to the client's connection.
    pub(super) fn sent(&mut self, frame: &Frame<Bytes>) {
        self.add_sent(frame.data_ref().map_or(0, Bytes::len) as u64);
    }

    /// Bytes went to the client.
    pub(super) fn add_sent(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    /// Takes away the lease of a connection that is no longer HTTP.
    pub(super) fn forget_lease(&mut self) {
        self.lease = None;
    }

    /// It is over.
    pub(super) fn finish(mut self: Box<Self>, outcome: Outcome) {
        if let (Some(Lease::Http1(lease)), Outcome::Complete) = (self.lease.take(), outcome) {
            lease.give_back();
        }
        self.record(outcome);
    }

    fn record(&mut self, outcome: Outcome) {
        self.recorded = true;
        self.session.phase().between_requests();
        let error = self.error.or(match outcome {
            Outcome::Complete => None,
            Outcome::ClientGone => Some("client_gone"),
            Outcome::BackendBroke => Some("response_broken"),
            Outcome::Timeout => Some("response_timeout"),
            Outcome::Drained => Some(DRAIN_TIMEOUT),
        });
        let telemetry = self.session.telemetry();
        if let Some(error) = error {
            telemetry.error(Direction::Outbound, error);
        }
        let now = Instant::now();
        let duration = now.saturating_duration_since(self.started);
        let workload = self.endpoint.as_ref().map(|it| &it.workload);
        self.session.requests(self.route.as_ref(), workload).record(
            self.status,
            self.first_byte
                .map(|it| it.saturating_duration_since(self.started)),
            duration,
        );
        let Some(draft) = self.log.take() else { return };
        let client = self.session.client();
        telemetry.log_request(RequestLog {
            method: draft.method,
            path: draft.path,
            status: self.status,
            connection: ConnectionLog {
                start: SystemTime::now()
                    .checked_sub(duration)
                    .unwrap_or(SystemTime::UNIX_EPOCH),
                duration,
                direction: Direction::Outbound,
                tunnel: Tunnel::to(workload.map(|it| &**it)),
                src: LogPeer::client(client),
                dst: match &self.endpoint {
                    Some(to) => LogPeer::workload(&to.workload, to.address),
                    None => LogPeer::address(self.session.original_dst()),
                },
                service: Arc::clone(&self.session.service().name),
                route: self
                    .route
                    .as_ref()
                    .map_or_else(Arc::default, |it| Arc::clone(&it.name)),
                rule: self
                    .route
                    .as_ref()
                    .map_or_else(Arc::default, |it| Arc::clone(&it.rule)),
                protocol: draft.protocol,
                bytes_in: self
                    .received
                    .as_ref()
                    .map_or(0, |it| it.load(Ordering::Relaxed)),
                bytes_out: self.sent,
                error: error.map(Into::into),
            },
        });
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.recorded {
            self.record(Outcome::ClientGone);
        }
    }
}

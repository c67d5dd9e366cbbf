//! The requests of one client connection: each flows in from the client's side of HTTP, is
//! routed by the table in force at that moment, and its response flows back out.

use std::{borrow::Cow, fmt, net::SocketAddr, sync::Arc};

use futures::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, Version, header::CONNECTION};
use hyper::body::Incoming;
use parking_lot::Mutex;

use super::{
    PodHttp,
    body::{ResponseBody, Source},
    downstream::Phase,
    exchange::Exchange,
    reply::{Failure, MALFORMED},
};
use crate::{
    budget::Budget,
    drain::Drain,
    model::{Client, RouteRef, Service, ServicePort, Workload},
    state::State,
    telemetry::{Requests, Telemetry},
};

/// One client connection.
pub(super) struct Session {
    pub(super) pod: Arc<PodHttp>,
    client: Client,
    service: Arc<Service>,
    pub(super) port: ServicePort,
    original_dst: SocketAddr,
    phase: Arc<Phase>,
    pub(super) drain: Drain,
    upgrade: Mutex<Option<BoxFuture<'static, ()>>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("client", &self.client)
            .field("service", &self.service.name)
            .finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(
        pod: Arc<PodHttp>,
        client: Client,
        service: Arc<Service>,
        port: ServicePort,
        original_dst: SocketAddr,
        drain: Drain,
    ) -> Arc<Self> {
        let phase = Phase::new(pod.budget());
        Arc::new(Self {
            pod,
            client,
            service,
            port,
            original_dst,
            phase,
            drain,
            upgrade: Mutex::default(),
        })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn service(&self) -> &Arc<Service> {
        &self.service
    }

    pub(super) fn original_dst(&self) -> SocketAddr {
        self.original_dst
    }

    pub(super) fn budget(&self) -> &Budget {
        self.pod.budget()
    }

    pub(super) fn phase(&self) -> &Arc<Phase> {
        &self.phase
    }

    pub(super) fn state(&self) -> &State {
        &self.pod.state
    }

    pub(super) fn telemetry(&self) -> &Telemetry {
        &self.pod.telemetry
    }

    pub(super) fn requests(
        &self,
        route: Option<&Arc<RouteRef>>,
        workload: Option<&Arc<Workload>>,
    ) -> Arc<Requests> {
        self.pod.series.get(
            &self.pod.telemetry,
            &self.client,
            &self.service,
            route,
            workload,
        )
    }

    /// What is to be done once the client's connection is no longer HTTP.
    pub(super) fn upgrade(&self, joined: BoxFuture<'static, ()>) {
        self.phase.upgraded();
        *self.upgrade.lock() = Some(joined);
    }

    /// Takes what is to be done when HTTP has ended.
    pub(super) fn take_upgrade(&self) -> Option<BoxFuture<'static, ()>> {
        self.upgrade.lock().take()
    }

    /// Answers one request.
    pub(super) async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        self.phase.request();
        let http1 = request.version() != Version::HTTP_2;
        let head = *request.method() == Method::HEAD;
        let mut grpc = super::hop::is_grpc(request.headers());
        let (response, close) = match self.forward(request, &mut grpc).await {
            Ok(response) => (response, false),
            Err((mut exchange, failure)) => {
                if let (MALFORMED, Cow::Borrowed(reason)) = (failure.label, &failure.message) {
                    let protocol = if http1 { "http/1.1" } else { "h2" };
                    self.telemetry().http_protocol_error(protocol, reason);
                }
                let response = failure.response(grpc, head);
                exchange.answered_here(response.status().as_u16(), Some(failure.label));
                (end(response, exchange), failure.close)
            }
        };
        let mut response = response;
        if grpc && !http1 {
            response.body_mut().closes_with_status();
        }
        if http1 && (close || self.drain.is_draining()) {
            // Nothing follows a 101 in HTTP anyway.
            if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
        }
        response
    }
}

/// A request that failed: what is known of it, and the answer.
pub(super) type Failed = (Box<Exchange>, Failure);

/// Binds a response to the exchange that ends with it. Last of all filters, and in errors too, it is
/// told whom it may be shared with: a script that may see an answer may see why there is none.
pub(super) fn end(
    mut response: Response<Source>,
    exchange: Box<Exchange>,
) -> Response<ResponseBody> {
    if let Some(sharing) = exchange.sharing() {
        sharing.apply(response.headers_mut());
    }
    response.map(|source| ResponseBody::new(source, exchange))
}

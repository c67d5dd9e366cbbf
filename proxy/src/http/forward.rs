//! From a request to a backend's response: plan, send, and filter what comes back.
//!
//! Times: `request` runs from the request's head to the last byte of the response (GEP-1742: "as
//! close to the whole request-response transaction as possible"), so it ends streams too;
//! `backendRequest` runs from when a connection stands to the same byte. Over before the response's
//! head, the client gets 504; over later, its connection (HTTP/1) or stream (HTTP/2) is broken
//! off, for a truncated response must not look whole. A 101 ends both.

use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll};

use http::{Request, Response, StatusCode, Version};
use hyper::{
    body::{Body, Incoming},
    upgrade::OnUpgrade,
};
use tokio::time;

use super::{
    attempt::{Answer, timeout},
    body::ResponseBody,
    deadline::{earlier, until},
    exchange::{DRAIN_TIMEOUT, Exchange},
    hop::{self, Inbound},
    plan::{Plan, Planned},
    reply::Failure,
    session::{Failed, Session, end},
    upgrade,
};
use crate::share;

impl Session {
    /// Forwards a request and returns what the backend (or a filter) says. `grpc` is set if errors
    /// are to be told as gRPC statuses.
    pub(super) async fn forward(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        grpc: &mut bool,
    ) -> Result<Response<ResponseBody>, Failed> {
        let client_upgrade = (request.version() == Version::HTTP_11
            && request.headers().contains_key(http::header::UPGRADE))
        .then(|| hyper::upgrade::on(&mut request));
        let (mut head, body) = request.into_parts();
        let has_body = !body.is_end_stream();
        let mut exchange = Box::new(Exchange::new(Arc::clone(self), &head, has_body));
        if !self.pod.pod.admit().await {
            let message = "the client's pod has no room left for buffered bytes";
            let status = StatusCode::SERVICE_UNAVAILABLE;
            return Err((exchange, Failure::new(status, "buffered_bytes", message)));
        }
        let table = self.state().route_table(
            &self.service().name,
            self.port.port,
            &self.client().namespace,
        );
        let routed = hop::receive(&mut head, has_body)
            .map_err(Failure::from)
            .and_then(|inbound| {
                let head = &head;
                self.plan(table.as_deref(), head, &inbound, &mut exchange, grpc)
                    .map(|plan| (plan, inbound))
            });
        let (plan, inbound) = match routed {
            Ok((Planned::Forward(plan), inbound)) => (plan, inbound),
            Ok((Planned::Answer(response), _)) => {
                exchange.answered_here(response.status().as_u16(), None);
                return Ok(end(response, exchange));
            }
            Err(failure) => return Err((exchange, failure)),
        };
        let outgoing = match self.outgoing(&plan, head, body, &inbound, &mut exchange) {
            Ok(outgoing) => outgoing,
            Err(failure) => return Err((exchange, failure)),
        };
        let deadline = plan
            .rule
            .and_then(|it| it.request_timeout)
            .map(|timeout| exchange.started() + timeout);
        let sent = {
            let mut sent = pin!(self.deliver(&plan, outgoing, &mut exchange));
            let sent = poll_fn(|cx| match self.drain.is_closing() {
                true => Poll::Ready(Err(drained())),
                false => sent.as_mut().poll(cx),
            });
            until(deadline, sent).await
        };
        let answer = match sent {
            Some(Ok(answer)) => answer,
            Some(Err(failure)) => return Err((exchange, failure)),
            None => return Err((exchange, timeout("request_timeout"))),
        };
        self.answer(plan, *answer, inbound, client_upgrade, deadline, exchange)
    }

    /// The backend's response as the client shall see it.
    fn answer(
        &self,
        plan: Plan<'_>,
        answer: Answer,
        inbound: Inbound,
        client_upgrade: Option<OnUpgrade>,
        deadline: Option<time::Instant>,
        mut exchange: Box<Exchange>,
    ) -> Result<Response<ResponseBody>, Failed> {
        let Answer {
            mut head,
            source,
            pump,
            upgrade: backend_upgrade,
            lease,
            deadline: backend_deadline,
        } = answer;
        exchange.answered(head.status.as_u16(), lease);
        let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
        if switching && (inbound.upgrade.is_none() || backend_upgrade.is_none()) {
            exchange.forget_lease();
            let message = "the backend changed the protocol unasked";
            let failure = Failure::new(StatusCode::BAD_GATEWAY, "unasked_upgrade", message);
            return Err((exchange, failure));
        }
        hop::respond(&mut head, switching);
        let rule = plan.rule.map(|it| &it.filters.response);
        let backend = plan.backend.map(|it| &it.filters.response);
        for filter in [rule, backend].into_iter().flatten() {
            filter.apply(&mut head.headers);
        }
        head.version = Version::HTTP_11;
        if let Some(pump) = pump {
            // On its own: it must not wait for a client that does not read the response yet.
            share::spawn(pump);
        }
        if let (true, Some(client), Some(backend)) = (switching, client_upgrade, backend_upgrade) {
            exchange.forget_lease();
            let drain = self.drain.clone();
            self.upgrade(Box::pin(upgrade::join(client, backend, exchange, drain)));
            return Ok(Response::from_parts(head, ResponseBody::none()));
        }
        exchange.limit(earlier(deadline, backend_deadline));
        Ok(end(Response::from_parts(head, source), exchange))
    }
}

/// No answer came while the proxy drained.
fn drained() -> Failure {
    let message = "the proxy of the client's node ends, and the backend has not answered in its time to drain";
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, DRAIN_TIMEOUT, message)
}

//! From a request to a backend's response: check, match, filter, choose a backend and an
//! endpoint, send, and filter what comes back.
//!
//! Times: `request` runs from the request's head to the last byte of the response (GEP-1742: "as
//! close to the whole request-response transaction as possible"), so it ends streams too;
//! `backendRequest` runs from when a connection stands to the same byte. Over before the response's
//! head, the client gets 504; over later, its connection (HTTP/1) or stream (HTTP/2) is broken
//! off, for a truncated response must not look whole. A 101 ends both.
//!
//! What may be sent again: a request of which nothing was sent, whatever it is; and one without a
//! body whose method is idempotent when a connection that had carried others before broke without
//! a byte of a response (RFC 9112, 9.3.1), or the backend said that it did not process it
//! (REFUSED_STREAM, GOAWAY). Nothing else.

use std::sync::Arc;

use http::{Request, Response, StatusCode, Uri, Version, request, uri::Authority};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::{sync::oneshot, time};

use super::{
    body::{RequestBody, ResponseBody, Source},
    deadline::{earlier, until},
    exchange::Exchange,
    hop::{self, Inbound},
    matching::RequestHead,
    path,
    reply::{Failure, redirect},
    session::{Failed, Session, end},
    table::{HttpBackend, HttpRoutes, Rule},
    upgrade,
    upstream::{Http1Lease, Http2Lease, Lease, Pump, exchange as exchange_http2},
};
use crate::{
    model::ServiceName,
    state::{BackendTarget, NoEndpoint, RouteTable},
};

/// Where a request goes.
struct Plan<'a> {
    rule: Option<&'a Rule>,
    backend: Option<&'a HttpBackend>,
    prefix: &'a str,
    service: &'a ServiceName,
    port: u16,
    http2: bool,
}

/// A request on its way.
struct Outgoing {
    head: request::Parts,
    body: RequestBody,
    /// Its body is held back until the backend asks for it.
    expects_continue: bool,
}

/// A backend's response, its head as received.
struct Answer {
    head: http::response::Parts,
    source: Source,
    /// What is left of the request's body to send.
    pump: Option<Pump>,
    /// The backend's half of a change of protocols.
    upgrade: Option<OnUpgrade>,
    lease: Lease,
    /// Until when the backend may take.
    deadline: Option<time::Instant>,
}

/// What came of one try.
enum Tried {
    Answered(Box<Answer>),
    /// Nothing was sent: this may be tried again.
    Unsent(Box<Outgoing>),
    Failed(Failure),
}

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
        let has_body = !hyper::body::Body::is_end_stream(&body);
        let mut exchange = Box::new(Exchange::new(Arc::clone(self), &head, has_body));
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
            Ok((Planned::Redirect(response), _)) => {
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
        let sent = self.send(&plan, outgoing, &mut exchange);
        let answer = match until(deadline, sent).await {
            Some(Ok(answer)) => answer,
            Some(Err(failure)) => return Err((exchange, failure)),
            None => return Err((exchange, timeout("request_timeout"))),
        };
        self.answer(plan, *answer, inbound, client_upgrade, deadline, exchange)
    }

    /// What the table in force says of a request.
    fn plan<'a>(
        &'a self,
        table: Option<&'a RouteTable>,
        head: &request::Parts,
        inbound: &Inbound,
        exchange: &mut Exchange,
        grpc: &mut bool,
    ) -> Result<Planned<'a>, Failure> {
        let client_http2 = head.version == Version::HTTP_2;
        match table {
            Some(RouteTable::Http { routes, .. }) => {
                let head = RequestHead {
                    method: &head.method,
                    path: match head.uri.path() {
                        // `OPTIONS *` asks about the server as a whole.
                        "*" => "/",
                        path => path,
                    },
                    query: head.uri.query(),
                    authority: inbound.authority.as_ref().map(Authority::as_str),
                    headers: &head.headers,
                };
                let plan = self.route(routes, &head, exchange, grpc)?;
                Ok(match plan {
                    Planned::Forward(plan) => Planned::Forward(Plan {
                        // gRPC is nothing but HTTP/2, whatever the port is declared to be.
                        http2: plan.http2 || (client_http2 && inbound.grpc),
                        ..plan
                    }),
                    redirect @ Planned::Redirect(_) => redirect,
                })
            }
            // The last route went away under an open connection: back to plain forwarding.
            None => Ok(Planned::Forward(Plan {
                rule: None,
                backend: None,
                prefix: "",
                service: &self.service().name,
                port: self.port.port,
                http2: client_http2,
            })),
            Some(_) => Err(Failure {
                close: true,
                ..Failure::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "protocol_changed",
                    "the routes of this port are no longer HTTP: connect again",
                )
            }),
        }
    }

    fn route<'a>(
        &self,
        routes: &'a HttpRoutes,
        head: &RequestHead<'_>,
        exchange: &mut Exchange,
        grpc: &mut bool,
    ) -> Result<Planned<'a>, Failure> {
        if routes.distinguishes_paths() && path::has_dot_segments(head.path) {
            return Err(Failure::new(
                StatusCode::BAD_REQUEST,
                "dot_segments",
                "the path holds dot segments, and routes depend on the path",
            ));
        }
        let Some(selected) = routes.select(head) else {
            return Err(Failure::new(
                StatusCode::NOT_FOUND,
                "no_route",
                "no route of this Service matches the request",
            ));
        };
        let rule = selected.rule;
        exchange.routed(&rule.route);
        *grpc |= rule.grpc;
        if let Some(fixed) = &rule.fixed_response {
            let message = fixed.reason.to_string();
            return Err(Failure::new(fixed.status, "fixed_response", message));
        }
        let to = |redirect_to: &super::redirect::Redirect| {
            let location = redirect_to.location(head, selected.prefix, self.port.port);
            location
                .map(|location| Planned::Redirect(redirect(redirect_to.status, location)))
                .ok_or_else(|| {
                    let bad = StatusCode::BAD_REQUEST;
                    Failure::new(bad, "bad_location", "the redirect has no valid location")
                })
        };
        if let Some(redirect) = &rule.filters.redirect {
            return to(redirect);
        }
        let internal = StatusCode::INTERNAL_SERVER_ERROR;
        let Some(backend) = rule.choose() else {
            let message = "no backend of the matching rule has weight";
            return Err(Failure::new(internal, "no_backend", message));
        };
        if let Some(redirect) = &backend.filters.redirect {
            return to(redirect);
        }
        match &backend.target {
            BackendTarget::Service { service, port } => Ok(Planned::Forward(Plan {
                rule: Some(rule),
                backend: Some(backend),
                prefix: selected.prefix,
                service,
                port: *port,
                http2: backend.http2,
            })),
            BackendTarget::Invalid { message, .. } => {
                let message = format!("a backend of the matching rule is invalid: {message}");
                Err(Failure::new(internal, "invalid_backend", message))
            }
        }
    }

    /// The request as its backend shall see it.
    fn outgoing(
        &self,
        plan: &Plan<'_>,
        mut head: request::Parts,
        body: Incoming,
        inbound: &Inbound,
        exchange: &mut Exchange,
    ) -> Result<Outgoing, Failure> {
        let mut authority = inbound.authority.clone();
        let filters = [
            plan.rule.map(|it| &it.filters),
            plan.backend.map(|it| &it.filters),
        ];
        for filters in filters.into_iter().flatten() {
            filters.request.apply(&mut head.headers);
            if let Some(host) = filters.request.host() {
                authority = Some(host.clone());
            }
            let Some(rewrite) = &filters.rewrite else {
                continue;
            };
            if let Some(host) = &rewrite.hostname {
                authority = Some(host.clone());
            }
            if let Some(modifier) = &rewrite.path {
                let mut target = modifier.apply(head.uri.path(), plan.prefix);
                if let Some(query) = head.uri.query() {
                    target.push('?');
                    target.push_str(query);
                }
                head.uri = Uri::try_from(target).map_err(|_| {
                    let bad = StatusCode::BAD_REQUEST;
                    Failure::new(bad, "bad_rewrite", "the rewritten path is not valid")
                })?;
            }
        }
        if authority.is_none() {
            // HTTP/1.0, or an empty host: what was dialled is what was meant.
            authority = Authority::try_from(self.original_dst().to_string()).ok();
        }
        let authority = authority.as_ref();
        let has_body = !hyper::body::Body::is_end_stream(&body);
        if plan.http2 {
            hop::to_http2(&mut head, authority)?;
        } else {
            hop::to_http1(&mut head, inbound, authority, has_body)?;
        }
        let body = if has_body {
            RequestBody::new(body, exchange.received.clone())
        } else {
            RequestBody::empty()
        };
        Ok(Outgoing {
            head,
            body,
            expects_continue: inbound.expects_continue && !plan.http2,
        })
    }

    /// Sends a request to one endpoint after the other until one takes it.
    async fn send(
        &self,
        plan: &Plan<'_>,
        mut outgoing: Outgoing,
        exchange: &mut Exchange,
    ) -> Result<Box<Answer>, Failure> {
        let limits = &self.pod.limits;
        let mut tried = Vec::new();
        let mut last = None;
        let mut fresh = false;
        for _ in 0..limits.attempts {
            let picked = match self.state().pick(plan.service, plan.port, &tried) {
                Ok(picked) => picked,
                Err(NoEndpoint::AllExcluded(..)) if last.is_some() => break,
                Err(none) => {
                    let status = StatusCode::SERVICE_UNAVAILABLE;
                    return Err(Failure::new(status, none.label(), none.to_string()));
                }
            };
            let address = picked.address;
            let leased = self.pod.pools.lease(&picked, plan.http2, fresh).await;
            exchange.picked(picked);
            let lease = match leased {
                Ok(lease) => lease,
                Err(error) => {
                    let again = error.retriable();
                    if again {
                        exchange.unreachable();
                    }
                    let status = StatusCode::SERVICE_UNAVAILABLE;
                    last = Some(Failure::new(status, error.label(), error.to_string()));
                    if !again {
                        break;
                    }
                    tried.push(address);
                    continue;
                }
            };
            let backend_timeout = plan.rule.and_then(|it| it.backend_request_timeout);
            let deadline = backend_timeout.map(|timeout| time::Instant::now() + timeout);
            let attempt = async {
                match lease {
                    Lease::Http1(lease) => try_http1(lease, outgoing, exchange, limits).await,
                    Lease::Http2(lease) => try_http2(lease, outgoing).await,
                }
            };
            match until(deadline, attempt).await {
                Some(Tried::Answered(mut answer)) => {
                    answer.deadline = deadline;
                    return Ok(answer);
                }
                // The pooled connection was stale; others of its age may be, too.
                Some(Tried::Unsent(unsent)) => {
                    outgoing = *unsent;
                    fresh = true;
                    let status = StatusCode::SERVICE_UNAVAILABLE;
                    let message = "the backend closed its connections before taking the request";
                    last = Some(Failure::new(status, "backend_closed", message));
                }
                Some(Tried::Failed(failure)) => return Err(failure),
                None => return Err(timeout("backend_timeout")),
            }
        }
        Err(last.unwrap_or_else(|| {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            Failure::new(status, "no_endpoint", "no endpoint took the request")
        }))
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
            tokio::spawn(pump);
        }
        if let (true, Some(client), Some(backend)) = (switching, client_upgrade, backend_upgrade) {
            exchange.forget_lease();
            self.upgrade(Box::pin(upgrade::join(client, backend, exchange)));
            return Ok(Response::from_parts(head, ResponseBody::none()));
        }
        exchange.limit(earlier(deadline, backend_deadline));
        Ok(end(Response::from_parts(head, source), exchange))
    }
}

/// What is done with a request.
enum Planned<'a> {
    Forward(Plan<'a>),
    Redirect(Response<Source>),
}

fn timeout(label: &'static str) -> Failure {
    let message = "the backend did not answer within the route's timeout";
    Failure::new(StatusCode::GATEWAY_TIMEOUT, label, message)
}

fn broken(error: impl std::fmt::Display) -> Failure {
    let message = format!("the backend's connection broke: {error}");
    Failure::new(StatusCode::BAD_GATEWAY, "backend_broke", message)
}

async fn try_http1(
    mut lease: Http1Lease,
    outgoing: Outgoing,
    exchange: &mut Exchange,
    limits: &super::HttpLimits,
) -> Tried {
    let Outgoing {
        head,
        mut body,
        expects_continue,
    } = outgoing;
    let replay =
        (lease.reused && body.is_empty() && head.method.is_idempotent()).then(|| head.clone());
    let request = if expects_continue {
        let (open, opened) = oneshot::channel();
        let (alive, over) = oneshot::channel();
        exchange.alive = Some(alive);
        body.hold(opened, over, time::sleep(limits.expect));
        let mut request = Request::from_parts(head, body);
        let open = parking_lot::Mutex::new(Some(open));
        hyper::ext::on_informational(&mut request, move |response| {
            if response.status() == StatusCode::CONTINUE
                && let Some(open) = open.lock().take()
            {
                open.send(()).ok();
            }
        });
        request
    } else {
        Request::from_parts(head, body)
    };
    match lease.sender.try_send_request(request).await {
        Ok(mut response) => {
            let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            let upgrade = switching.then(|| hyper::upgrade::on(&mut response));
            let (head, body) = response.into_parts();
            Tried::Answered(Box::new(Answer {
                head,
                source: Source::Http1(body),
                pump: None,
                upgrade,
                lease: Lease::Http1(lease),
                deadline: None,
            }))
        }
        Err(mut error) => match (error.take_message(), replay) {
            (Some(request), _) => {
                let (head, body) = request.into_parts();
                Tried::Unsent(Box::new(Outgoing {
                    head,
                    body,
                    expects_continue,
                }))
            }
            (None, Some(head)) => Tried::Unsent(Box::new(Outgoing {
                head,
                body: RequestBody::empty(),
                expects_continue: false,
            })),
            (None, None) => Tried::Failed(broken(error.into_error())),
        },
    }
}

async fn try_http2(lease: Http2Lease, outgoing: Outgoing) -> Tried {
    let Ok(sender) = lease.ready().await else {
        return Tried::Unsent(Box::new(outgoing));
    };
    let Outgoing { head, body, .. } = outgoing;
    let replay = body.is_empty().then(|| head.clone());
    let request = Request::from_parts(head, ());
    match exchange_http2(sender, request, body).await {
        Ok((response, pump)) => {
            let (head, stream) = response.into_parts();
            Tried::Answered(Box::new(Answer {
                head,
                source: Source::Http2 {
                    stream,
                    data_done: false,
                },
                pump,
                upgrade: None,
                lease: Lease::Http2(lease),
                deadline: None,
            }))
        }
        Err(error) => {
            let unprocessed = error.reason() == Some(h2::Reason::REFUSED_STREAM)
                || (error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR));
            if error.is_go_away() || error.is_io() {
                lease.retire();
            }
            match replay {
                Some(head) if unprocessed || head.method.is_idempotent() && error.is_io() => {
                    Tried::Unsent(Box::new(Outgoing {
                        head,
                        body: RequestBody::empty(),
                        expects_continue: false,
                    }))
                }
                _ => Tried::Failed(broken(error)),
            }
        }
    }
}

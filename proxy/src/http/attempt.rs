//! Sending a request: endpoints are tried in turn until one takes it, and the first answer counts.
//!
//! What may be sent again without a word of its route ([`super::retry`]): a request of which nothing was sent, whatever it is; and one without a
//! body whose method is idempotent when a connection that had carried others before broke without
//! a byte of a response (RFC 9112, 9.3.1), or the backend said that it did not process it
//! (REFUSED_STREAM, GOAWAY). Nothing else.

use std::{net::SocketAddr, sync::Arc};

use http::{Request, StatusCode, request};
use hyper::upgrade::OnUpgrade;
use tokio::{sync::oneshot, time};

use super::{
    HttpLimits,
    body::{RequestBody, Source},
    deadline::until,
    exchange::Exchange,
    plan::Plan,
    reply::Failure,
    retry::Again,
    session::Session,
    upstream::{Http1Lease, Http2Lease, Lease, Pump, exchange as exchange_http2},
};
use crate::{model::Family, state::NoEndpoint};

/// A request on its way.
pub(super) struct Outgoing {
    pub(super) head: request::Parts,
    pub(super) body: RequestBody,
    /// Its body is held back until the backend asks for it.
    pub(super) expects_continue: bool,
}

/// A backend's response, its head as received.
pub(super) struct Answer {
    pub(super) head: http::response::Parts,
    pub(super) source: Source,
    /// What is left of the request's body to send.
    pub(super) pump: Option<Pump>,
    /// The backend's half of a change of protocols.
    pub(super) upgrade: Option<OnUpgrade>,
    pub(super) lease: Lease,
    /// Until when the backend may take.
    pub(super) deadline: Option<time::Instant>,
}

/// What came of one try.
enum Tried {
    Answered(Box<Answer>),
    /// Nothing was sent: this may be tried again.
    Unsent(Box<Outgoing>),
    Failed(Failure),
}

impl Session {
    /// Sends a request to one endpoint after the other until one takes it; to one of `avoid` only if
    /// there is no other.
    pub(super) async fn send(
        &self,
        plan: &Plan<'_>,
        mut outgoing: Outgoing,
        exchange: &mut Exchange,
        avoid: &[SocketAddr],
    ) -> Result<Box<Answer>, Failure> {
        let limits = &self.pod.limits;
        let family = Family::of(self.original_dst().ip());
        let mut avoided = !avoid.is_empty();
        let mut tried = avoid.to_vec();
        let mut last = None;
        let mut fresh = false;
        for _ in 0..limits.attempts {
            let mut picked = self.state().pick(plan.service, plan.port, family, &tried);
            if avoided && matches!(picked, Err(NoEndpoint::AllExcluded(..))) {
                avoided = false;
                tried.retain(|address| !avoid.contains(address));
                picked = self.state().pick(plan.service, plan.port, family, &tried);
            }
            let picked = match picked {
                Ok(picked) => picked,
                Err(NoEndpoint::AllExcluded(..)) if last.is_some() => break,
                Err(none) => {
                    let status = StatusCode::SERVICE_UNAVAILABLE;
                    return Err(Failure::new(status, none.label(), none.to_string()));
                }
            };
            let (address, workload) = (picked.address, Arc::clone(&picked.workload));
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
                    let failure = Failure::new(status, error.label(), error.to_string());
                    last = Some(failure.again(Again::Always));
                    if !again {
                        break;
                    }
                    // One that has joined or left meanwhile is reached in another way now.
                    if self.state().is_current(&workload) {
                        tried.push(address);
                    }
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
                    let failure = Failure::new(status, "backend_closed", message);
                    last = Some(failure.again(Again::Always));
                }
                Some(Tried::Failed(failure)) => return Err(failure),
                None => {
                    return Err(timeout("backend_timeout").again(Again::IfIdempotent));
                }
            }
        }
        Err(last.unwrap_or_else(|| {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            Failure::new(status, "no_endpoint", "no endpoint took the request")
        }))
    }
}

pub(super) fn timeout(label: &'static str) -> Failure {
    let message = "the backend did not answer within the route's timeout";
    Failure::new(StatusCode::GATEWAY_TIMEOUT, label, message)
}

fn broken(error: impl std::fmt::Display) -> Failure {
    let message = format!("the backend's connection broke: {error}");
    Failure::new(StatusCode::BAD_GATEWAY, "backend_broke", message).again(Again::IfIdempotent)
}

async fn try_http1(
    mut lease: Http1Lease,
    outgoing: Outgoing,
    exchange: &mut Exchange,
    limits: &HttpLimits,
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
                _ if unprocessed => Tried::Failed(broken(error).again(Again::Always)),
                _ => Tried::Failed(broken(error)),
            }
        }
    }
}

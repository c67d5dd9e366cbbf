//! What is done with a request: the rule that the table in force holds for it, its backend, and the
//! head as that backend shall see it.

use http::{Response, StatusCode, Uri, Version, request, uri::Authority};
use hyper::body::{Body, Incoming};

use super::{
    attempt::Outgoing,
    body::{RequestBody, Source},
    cors,
    exchange::Exchange,
    hop::{self, Inbound},
    matching::RequestHead,
    path,
    redirect::Redirect,
    reply::{Failure, no_content, redirect},
    session::Session,
    table::{HttpBackend, HttpRoutes, Rule},
};
use crate::{
    model::ServiceName,
    state::{BackendTarget, RouteTable},
};

/// What is done with a request.
pub(super) enum Planned<'a> {
    Forward(Plan<'a>),
    /// A filter answers it.
    Answer(Response<Source>),
}

/// Where a request goes.
pub(super) struct Plan<'a> {
    pub(super) rule: Option<&'a Rule>,
    pub(super) backend: Option<&'a HttpBackend>,
    pub(super) prefix: &'a str,
    pub(super) service: &'a ServiceName,
    pub(super) port: u16,
    pub(super) http2: bool,
}

impl Session {
    /// What the table in force says of a request.
    pub(super) fn plan<'a>(
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
                    answer @ Planned::Answer(_) => answer,
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
        if let Some(cors) = &rule.filters.cors {
            exchange.share(cors.sharing(head));
            // Whoever asks: the backend has no say in it.
            if cors::is_preflight(head) {
                return Ok(Planned::Answer(no_content()));
            }
        }
        let to = |redirect_to: &Redirect| {
            let location = redirect_to.location(head, selected.prefix, self.port.port);
            location
                .map(|location| Planned::Answer(redirect(redirect_to.status, location)))
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
    pub(super) fn outgoing(
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
        let has_body = !body.is_end_stream();
        if plan.http2 {
            hop::to_http2(&mut head, authority)?;
        } else {
            hop::to_http1(&mut head, inbound, authority, has_body)?;
        }
        let body = if has_body {
            RequestBody::new(body, exchange.received.clone(), exchange.budget())
        } else {
            RequestBody::empty()
        };
        Ok(Outgoing {
            head,
            body,
            expects_continue: inbound.expects_continue && !plan.http2,
        })
    }
}

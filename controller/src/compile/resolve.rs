//! A route's rules with their backendRefs resolved: what a table carries of the route, wherever it attaches.

use std::collections::BTreeMap;

use weft_api::config::{Backend, HttpRule};

use super::{
    backends::{BackendRef, RefProblem},
    http::{self, Action},
    objects::NamespacedName,
    routes::{Route, RouteKind, Rules},
    services::Service,
};

/// What resolving a route gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Resolved {
    /// Of an HTTPRoute or GRPCRoute: one per rule, in order.
    pub(super) rules: Vec<HttpRule>,
    /// Of a TCPRoute or TLSRoute.
    pub(super) backends: Vec<Backend>,
    /// The references that do not resolve.
    pub(super) problems: Vec<RefProblem>,
}

/// Resolves the backendRefs of a route.
pub(super) fn resolve(route: &Route, services: &BTreeMap<NamespacedName, Service>) -> Resolved {
    let mut problems = Vec::new();
    let mut backends = |refs: &[BackendRef], rule: usize| {
        let mut backends = Vec::with_capacity(refs.len());
        for (index, reference) in refs.iter().enumerate() {
            let (backend, problem) = reference.resolve(route.kind, services);
            problems.extend(problem.map(|problem| RefProblem {
                message: format!("rules[{rule}].backendRefs[{index}]: {}", problem.message),
                ..problem
            }));
            // Weight 0 gets no traffic: the proxy need not know of it.
            if backend.weight > 0 {
                backends.push(backend);
            }
        }
        backends
    };
    let (rules, l4) = match &route.rules {
        Rules::Http(rules) => {
            let rules = rules
                .iter()
                .map(|rule| http_rule(route, rule, &mut backends))
                .collect();
            (rules, Vec::new())
        }
        Rules::L4(l4) => (Vec::new(), backends(&l4.backends, 0)),
    };
    Resolved {
        rules,
        backends: l4,
        problems,
    }
}

fn http_rule(
    route: &Route,
    rule: &http::Rule,
    backends: &mut impl FnMut(&[BackendRef], usize) -> Vec<Backend>,
) -> HttpRule {
    let mut compiled = HttpRule {
        route: Some(route.reference(rule.index, &rule.name)),
        grpc: route.kind == RouteKind::Grpc,
        ..HttpRule::default()
    };
    match &rule.action {
        Action::Answer(response) => compiled.fixed_response = Some(response.clone()),
        Action::Forward(forward) => {
            compiled.filters.clone_from(&forward.filters);
            compiled.backends = backends(&forward.backends, rule.index);
            compiled.request_timeout_ms = forward.request_timeout_ms;
            compiled.backend_request_timeout_ms = forward.backend_request_timeout_ms;
            compiled.retry.clone_from(&forward.retry);
        }
    }
    compiled
}

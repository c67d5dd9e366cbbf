//! Compiled HTTP route tables: from `HttpTable` as the controller sent it to what a request is
//! held against. The controller has put the matches in order, so the first that holds wins. Pure.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use weft_api::config::{self, AppProtocol};

use super::{
    filter::Filters,
    matching::{Match, PathMatch, RequestHead},
    retry::Retry,
};
use crate::{
    balance::Weighted,
    model::RouteRef,
    state::{Backend, BackendTarget},
};

/// A compiled table of one Service port.
#[derive(Debug)]
pub struct HttpRoutes {
    matches: Box<[(Match, u32)]>,
    rules: Box<[Rule]>,
    distinguishes_paths: bool,
}

/// The rule that a request met.
#[derive(Clone, Copy, Debug)]
pub struct Selected<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// The path prefix that matched, without a trailing slash; empty for "/" and where the match
    /// was of another kind.
    pub prefix: &'a str,
}

/// What is done with requests that a rule's matches select.
#[derive(Debug)]
pub struct Rule {
    /// The route and rule, for metrics and logs.
    pub route: Arc<RouteRef>,
    /// Filters for every backend.
    pub filters: Filters,
    /// Where requests go, by weight.
    pub backends: Box<[HttpBackend]>,
    /// For the whole exchange with the client.
    pub request_timeout: Option<Duration>,
    /// For one exchange with a backend.
    pub backend_request_timeout: Option<Duration>,
    /// When it is tried again.
    pub retry: Option<Retry>,
    /// The answer of a rule that can't be executed.
    pub fixed_response: Option<FixedResponse>,
    /// A GRPCRoute's rule.
    pub grpc: bool,
    weights: Weighted,
}

/// An answer that the proxy makes by itself.
#[derive(Debug)]
pub struct FixedResponse {
    /// HTTP status.
    pub status: StatusCode,
    /// Why, for the access log.
    pub reason: Box<str>,
}

/// A backendRef.
#[derive(Debug)]
pub struct HttpBackend {
    /// Where to.
    pub target: BackendTarget,
    /// Filters for this backend, after the rule's.
    pub filters: Filters,
    /// HTTP/2 with prior knowledge is spoken to it, else HTTP/1.1.
    pub http2: bool,
}

// === impl HttpRoutes ===

impl HttpRoutes {
    /// Compiles a table; an error names the route, the rule and what is wrong with it.
    pub fn compile(table: &config::HttpTable) -> Result<Self, String> {
        let rules = table
            .rules
            .iter()
            .map(|rule| Rule::compile(rule).map_err(|error| format!("{}: {error}", name(rule))))
            .collect::<Result<Box<[_]>, _>>()?;
        let matches = table
            .matches
            .iter()
            .map(|from| {
                let rule = table.rules.get(from.rule as usize).ok_or_else(|| {
                    format!("a match names rule {}, of {}", from.rule, table.rules.len())
                })?;
                let compiled = Match::compile(from)
                    .and_then(|it| check_prefix(&it, &rules[from.rule as usize]).map(|()| it))
                    .map_err(|error| format!("{}: {error}", name(rule)))?;
                Ok((compiled, from.rule))
            })
            .collect::<Result<Box<[_]>, String>>()?;
        let distinguishes_paths = matches
            .iter()
            .any(|(it, _)| it.path.as_ref().is_some_and(|path| !path.is_any()));
        Ok(Self {
            matches,
            rules,
            distinguishes_paths,
        })
    }

    /// The rule of the first match that holds; none means 404.
    pub fn select<'a>(&'a self, request: &RequestHead<'_>) -> Option<Selected<'a>> {
        let (found, rule) = self.matches.iter().find(|(it, _)| it.matches(request))?;
        Some(Selected {
            rule: &self.rules[*rule as usize],
            prefix: match &found.path {
                Some(PathMatch::Prefix(prefix)) => prefix,
                _ => "",
            },
        })
    }

    /// Whether what is done depends on the path: if so, paths that a backend could read as others
    /// than were matched are refused.
    pub fn distinguishes_paths(&self) -> bool {
        self.distinguishes_paths
    }

    /// All rules.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

/// A rule that replaces a prefix must have matched one.
fn check_prefix(found: &Match, rule: &Rule) -> Result<(), String> {
    let matched = matches!(found.path, None | Some(PathMatch::Prefix(_)));
    let mut filters = rule.backends.iter().map(|it| &it.filters);
    if !matched && (rule.filters.replaces_prefix() || filters.any(Filters::replaces_prefix)) {
        return Err("replacePrefixMatch takes a match by path prefix".into());
    }
    Ok(())
}

fn name(rule: &config::HttpRule) -> String {
    rule.route.as_ref().map_or_else(
        || "a rule without a route".into(),
        |it| {
            format!(
                "{} {}/{} rule {}",
                it.kind, it.namespace, it.name, it.rule_index
            )
        },
    )
}

// === impl Rule ===

impl Rule {
    fn compile(from: &config::HttpRule) -> Result<Self, String> {
        let backends = from
            .backends
            .iter()
            .map(HttpBackend::compile)
            .collect::<Result<Box<[_]>, _>>()?;
        let duration = |ms: u64| (ms != 0).then(|| Duration::from_millis(ms));
        let fixed_response = from
            .fixed_response
            .as_ref()
            .map(|it| {
                let status = u16::try_from(it.status)
                    .ok()
                    .and_then(|code| StatusCode::from_u16(code).ok())
                    .filter(|status| !status.is_informational())
                    .ok_or_else(|| format!("{} is not a final HTTP status", it.status))?;
                Ok::<_, String>(FixedResponse {
                    status,
                    reason: it.reason.as_str().into(),
                })
            })
            .transpose()?;
        Ok(Self {
            route: Arc::new(from.route.as_ref().ok_or("it has no route")?.into()),
            filters: Filters::compile(&from.filters)?,
            weights: Weighted::new(from.backends.iter().map(|it| it.weight)),
            backends,
            request_timeout: duration(from.request_timeout_ms),
            backend_request_timeout: duration(from.backend_request_timeout_ms),
            retry: from.retry.as_ref().map(Retry::compile).transpose()?,
            fixed_response,
            grpc: from.grpc,
        })
    }

    /// The backend for one request; none if no backend has weight.
    pub fn choose(&self) -> Option<&HttpBackend> {
        self.weights.choose().map(|at| &self.backends[at])
    }
}

// === impl HttpBackend ===

impl HttpBackend {
    fn compile(from: &config::Backend) -> Result<Self, String> {
        let filters = Filters::compile(&from.filters)?;
        if filters.cors.is_some() {
            return Err("CORS is a filter of rules, not of a backend".into());
        }
        Ok(Self {
            target: Backend::parse(from)?.target,
            filters,
            http2: from.protocol() == AppProtocol::H2c,
        })
    }
}

//! Compiled HTTP route tables: from `HttpTable` as the controller sent it to what a request is
//! held against. The controller has put the matches in order, so the first that holds wins. Pure.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use weft_api::config::{self, AppProtocol};

use super::{
    filter::Filters,
    matching::{Match, PathMatch, RequestHead},
};
use crate::model::ServiceName;

/// 2^64 divided by the golden ratio: see [`Rule::choose`].
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

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
    pub route: Arc<config::RouteRef>,
    /// Filters for every backend.
    pub filters: Filters,
    /// Where requests go, by weight.
    pub backends: Box<[WeightedBackend]>,
    /// For the whole exchange with the client.
    pub request_timeout: Option<Duration>,
    /// For one exchange with a backend.
    pub backend_request_timeout: Option<Duration>,
    /// The answer of a rule that can't be executed.
    pub fixed_response: Option<FixedResponse>,
    /// A GRPCRoute's rule.
    pub grpc: bool,
    total_weight: u64,
    sequence: AtomicU64,
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
pub struct WeightedBackend {
    /// Its share of the sum of weights.
    pub weight: u32,
    /// Where to.
    pub target: BackendTarget,
    /// Filters for this backend, after the rule's.
    pub filters: Filters,
    /// HTTP/2 with prior knowledge is spoken to it, else HTTP/1.1.
    pub http2: bool,
}

/// Where a backendRef points.
#[derive(Debug)]
pub enum BackendTarget {
    /// A Service port.
    Service {
        /// `<namespace>/<name>`.
        name: ServiceName,
        /// Port.
        port: u16,
    },
    /// It does not resolve.
    Invalid {
        /// The condition's reason.
        reason: Box<str>,
        /// What exactly.
        message: Box<str>,
    },
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
            .map(WeightedBackend::compile)
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
            route: Arc::new(from.route.clone().unwrap_or_default()),
            filters: Filters::compile(&from.filters)?,
            total_weight: backends.iter().map(|it| u64::from(it.weight)).sum(),
            backends,
            request_timeout: duration(from.request_timeout_ms),
            backend_request_timeout: duration(from.backend_request_timeout_ms),
            fixed_response,
            grpc: from.grpc,
            // Proxies must not all begin with the same backend.
            sequence: AtomicU64::new(rand::random()),
        })
    }

    /// The backend for one request; none if all weights are zero.
    ///
    /// Backends share the unit interval by weight, and requests step through it by the golden
    /// ratio: each prefix of the sequence is spread evenly (off by O(log n) requests after n,
    /// where random choice is off by O(√n)), and so is every regular part of it, such as each
    /// second request.
    pub fn choose(&self) -> Option<&WeightedBackend> {
        if let [only] = &*self.backends {
            return (only.weight != 0).then_some(only);
        }
        let step = self.sequence.fetch_add(GOLDEN, Ordering::Relaxed);
        // Exact: the product is below 2^128, its upper half below the total.
        let mut point = ((u128::from(step) * u128::from(self.total_weight)) >> 64) as u64;
        self.backends.iter().find(|it| {
            let weight = u64::from(it.weight);
            let found = point < weight;
            point = point.wrapping_sub(weight);
            found
        })
    }
}

// === impl WeightedBackend ===

impl WeightedBackend {
    fn compile(from: &config::Backend) -> Result<Self, String> {
        use config::backend::Target;
        let target = match from.target.as_ref() {
            Some(Target::Service(to)) => BackendTarget::Service {
                name: to.service.as_str().into(),
                port: u16::try_from(to.port)
                    .map_err(|_| format!("backend {} names port {}", to.service, to.port))?,
            },
            Some(Target::Invalid(why)) => BackendTarget::Invalid {
                reason: why.reason.as_str().into(),
                message: why.message.as_str().into(),
            },
            None => return Err("a backend has no target".into()),
        };
        Ok(Self {
            weight: from.weight,
            target,
            filters: Filters::compile(&from.filters)?,
            http2: from.protocol() == AppProtocol::H2c,
        })
    }
}

//! Rules of HTTPRoutes, and what rules of GRPCRoutes share with them.
//!
//! Flows in: the entries of `spec.rules`, each read alone. Flows out: matches with their specificity, and
//! what to do with the requests that fit.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value};
use weft_api::config::{
    FixedResponse, HttpFilter, HttpMatch, PathMatch, Retry, ValueMatch, path_match, value_match,
};

use super::{
    backends::BackendRef,
    cors, durations,
    filters::{self, FilterError, Place},
    grpc,
    objects::read,
    patterns,
    precedence::{PathRank, Specificity},
    retry::read_retry,
    routes::RouteKind,
    status::{Effect, RuleProblem, RuleReason},
};

/// A rule whose matches can be told.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rule {
    /// Its place in `spec.rules`.
    pub(super) index: usize,
    pub(super) name: String,
    pub(super) matches: Vec<Match>,
    pub(super) action: Action,
}

/// A match, and how specific it is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Match {
    pub(super) specificity: Specificity,
    /// Its `rule` is set by the table.
    pub(super) conditions: HttpMatch,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    Answer(FixedResponse),
    Forward(Forward),
}

/// Filters, then backends; without backends a filter redirects.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Forward {
    pub(super) filters: Vec<HttpFilter>,
    pub(super) backends: Vec<BackendRef>,
    pub(super) request_timeout_ms: u64,
    pub(super) backend_request_timeout_ms: u64,
    pub(super) retry: Option<Retry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawMatch {
    path: Option<RawPath>,
    headers: Option<Vec<RawValueMatch>>,
    query_params: Option<Vec<RawValueMatch>>,
    method: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPath {
    #[serde(rename = "type")]
    type_: Option<String>,
    value: Option<String>,
}

/// A match of a header or a query parameter.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawValueMatch {
    #[serde(rename = "type")]
    type_: Option<String>,
    name: String,
    value: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawTimeouts {
    request: Option<String>,
    backend_request: Option<String>,
}

impl Rule {
    pub(super) fn backends(&self) -> impl Iterator<Item = &BackendRef> {
        let forward = match &self.action {
            Action::Forward(forward) => forward.backends.as_slice(),
            Action::Answer(_) => &[],
        };
        forward.iter()
    }
}

/// Reads the rules of an HTTPRoute or GRPCRoute in `namespace`. One that can't be read is left out,
/// which its problem says, and touches no other.
pub(super) fn read_rules(
    kind: RouteKind,
    namespace: &str,
    entries: &[Value],
) -> (Vec<Rule>, Vec<RuleProblem>) {
    let mut rules = Vec::with_capacity(entries.len());
    let mut problems = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        match read_rule(kind, namespace, index, entry, &mut problems) {
            Ok(rule) => rules.push(rule),
            Err(message) => problems.push(RuleProblem {
                rule: Some(index),
                effect: Effect::LeftOut,
                reason: RuleReason::UnsupportedValue,
                message,
            }),
        }
    }
    (rules, problems)
}

fn read_rule(
    kind: RouteKind,
    namespace: &str,
    index: usize,
    entry: &Value,
    problems: &mut Vec<RuleProblem>,
) -> Result<Rule, String> {
    let fields = entry.as_object().ok_or("it is no object")?;
    let matches = read_matches(kind, list(fields, "matches")?)?;
    let action = match read_forward(kind, namespace, fields, &matches) {
        Ok(forward) => {
            for (at, backend) in forward.backends.iter().enumerate() {
                if let Err(message) = &backend.filters {
                    problems.push(RuleProblem {
                        rule: Some(index),
                        effect: Effect::BackendAnswers500,
                        reason: RuleReason::UnsupportedValue,
                        message: format!("backendRefs[{at}].{message}"),
                    });
                }
            }
            answer(&forward).map_or_else(|| Action::Forward(forward), Action::Answer)
        }
        Err(FilterError { reason, message }) => {
            let response = FixedResponse {
                status: 500,
                reason: format!("invalid rule: {message}"),
            };
            let effect = Effect::Answers500;
            problems.push(RuleProblem {
                rule: Some(index),
                effect,
                reason,
                message,
            });
            Action::Answer(response)
        }
    };
    for (field, _) in fields.iter().filter(|(_, value)| !value.is_null()) {
        match field.as_str() {
            "matches" | "filters" | "backendRefs" => {}
            "name" if fields[field].is_string() => {}
            "name" => problems.push(RuleProblem::setting(Some(index), field, "is no string")),
            "timeouts" | "retry" if kind == RouteKind::Http => {}
            "sessionPersistence" => {
                problems.push(RuleProblem::setting(
                    Some(index),
                    field,
                    "is not supported yet",
                ));
            }
            _ => problems.push(RuleProblem::setting(Some(index), field, "is not supported")),
        }
    }
    let name = fields
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    Ok(Rule {
        index,
        name,
        matches,
        action,
    })
}

/// What a rule answers that has nowhere to send a request.
fn answer(forward: &Forward) -> Option<FixedResponse> {
    if forward.backends.iter().any(|backend| backend.weight > 0)
        || filters::redirects(&forward.filters)
    {
        return None;
    }
    let reason = match forward.backends.as_slice() {
        [] => "the rule has no backendRefs",
        _ => "all backendRefs of the rule have weight 0",
    };
    Some(FixedResponse {
        status: 500,
        reason: reason.into(),
    })
}

fn read_matches(kind: RouteKind, entries: &[Value]) -> Result<Vec<Match>, String> {
    let read_match = match kind {
        RouteKind::Grpc => grpc::read_match,
        _ => http_match,
    };
    if entries.is_empty() {
        return Ok(vec![read_match(&Value::Object(Map::new()))?]);
    }
    let read =
        |(index, entry)| read_match(entry).map_err(|error| format!("matches[{index}]: {error}"));
    entries.iter().enumerate().map(read).collect()
}

fn http_match(entry: &Value) -> Result<Match, String> {
    let raw: RawMatch = read(entry)?;
    let (path, rank) = raw
        .path
        .map_or(Ok((None, PathRank::Prefix(1))), path_match)?;
    let headers = header_matches(raw.headers)?;
    let query_params = value_matches(raw.query_params, |name| match name {
        "" => Err("a query parameter has no name".into()),
        name => Ok(name.into()),
    })?;
    let method = raw
        .method
        .map_or(Ok(String::new()), |method| patterns::method(&method))?;
    Ok(Match {
        specificity: Specificity::Http {
            path: rank,
            method: !method.is_empty(),
            headers: headers.len(),
            query_params: query_params.len(),
        },
        conditions: HttpMatch {
            rule: 0,
            path,
            headers,
            query_params,
            method,
        },
    })
}

/// A prefix that every path has is the same as no path.
fn path_match(raw: RawPath) -> Result<(Option<PathMatch>, PathRank), String> {
    let value = raw.value.unwrap_or_else(|| "/".into());
    let (kind, rank) = match raw.type_.as_deref().unwrap_or("PathPrefix") {
        "Exact" => (
            path_match::Kind::Exact(patterns::path(&value)?),
            PathRank::Exact,
        ),
        "PathPrefix" => {
            let path = patterns::path(&value)?;
            let prefix = path.trim_end_matches('/');
            if prefix.is_empty() {
                return Ok((None, PathRank::Prefix(1)));
            }
            let rank = PathRank::Prefix(prefix.chars().count());
            (path_match::Kind::Prefix(prefix.into()), rank)
        }
        "RegularExpression" => (
            path_match::Kind::Regex(patterns::regex(&value)?),
            PathRank::Regex,
        ),
        other => return Err(format!("path type {other} is not supported")),
    };
    Ok((Some(PathMatch { kind: Some(kind) }), rank))
}

/// Reads matches of headers; their names come out in lower case.
pub(super) fn header_matches(raw: Option<Vec<RawValueMatch>>) -> Result<Vec<ValueMatch>, String> {
    value_matches(raw, patterns::header_name)
}

/// Of several entries with one name only the first counts, by the standard.
fn value_matches(
    raw: Option<Vec<RawValueMatch>>,
    read_name: impl Fn(&str) -> Result<String, String>,
) -> Result<Vec<ValueMatch>, String> {
    let mut seen = BTreeSet::new();
    let mut matches = Vec::new();
    for entry in raw.into_iter().flatten() {
        let name = read_name(&entry.name)?;
        let kind = match entry.type_.as_deref().unwrap_or("Exact") {
            "Exact" => value_match::Kind::Exact(entry.value),
            "RegularExpression" => value_match::Kind::Regex(patterns::regex(&entry.value)?),
            other => return Err(format!("match type {other} of {name} is not supported")),
        };
        if seen.insert(name.clone()) {
            matches.push(ValueMatch {
                name,
                kind: Some(kind),
            });
        }
    }
    Ok(matches)
}

fn read_forward(
    kind: RouteKind,
    namespace: &str,
    fields: &Map<String, Value>,
    matches: &[Match],
) -> Result<Forward, FilterError> {
    let mut filters = filters::read(list(fields, "filters")?, kind, Place::Rule)?;
    let mut backends = list(fields, "backendRefs")?
        .iter()
        .enumerate()
        .map(|(index, entry)| {
            BackendRef::read(kind, namespace, entry)
                .map_err(|error| format!("backendRefs[{index}]: {error}"))
        })
        .collect::<Result<Vec<_>, _>>()?;
    if filters::redirects(&filters) && !backends.is_empty() {
        return Err(String::from("RequestRedirect and backendRefs exclude each other").into());
    }
    cors::lift(&mut filters, &mut backends)?;
    let replaces_prefix = filters::replace_prefix(&filters)
        || backends
            .iter()
            .flat_map(|backend| &backend.filters)
            .any(|f| filters::replace_prefix(f));
    if replaces_prefix && !matches_one_prefix(matches) {
        let message = "replacePrefixMatch needs exactly one match, of type PathPrefix";
        return Err(String::from(message).into());
    }
    let timeouts = match fields.get("timeouts") {
        Some(value) if kind == RouteKind::Http && !value.is_null() => {
            read(value).map_err(|error| format!("timeouts: {error}"))?
        }
        _ => RawTimeouts::default(),
    };
    let (request_timeout_ms, backend_request_timeout_ms) = read_timeouts(timeouts)?;
    let retry = match fields.get("retry") {
        Some(value) if kind == RouteKind::Http => {
            read_retry(value).map_err(|error| format!("retry: {error}"))?
        }
        _ => None,
    };
    Ok(Forward {
        filters,
        backends,
        request_timeout_ms,
        backend_request_timeout_ms,
        retry,
    })
}

fn matches_one_prefix(matches: &[Match]) -> bool {
    let [Match { conditions, .. }] = matches else {
        return false;
    };
    let kind = conditions.path.as_ref().and_then(|path| path.kind.as_ref());
    matches!(kind, None | Some(path_match::Kind::Prefix(_)))
}

/// Milliseconds of the whole request and of each try; 0 is none.
fn read_timeouts(raw: RawTimeouts) -> Result<(u64, u64), String> {
    let milliseconds = |text: Option<String>| {
        text.map_or(Ok(0), |text| durations::milliseconds(&text))
            .map_err(|error| format!("timeouts: {error}"))
    };
    let request = milliseconds(raw.request)?;
    let backend_request = milliseconds(raw.backend_request)?;
    if request != 0 && backend_request > request {
        return Err("timeouts: backendRequest is longer than request; shorten it".into());
    }
    Ok((request, backend_request))
}

fn list<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a [Value], String> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(entries)) => Ok(entries),
        Some(_) => Err(format!("{name} is no list")),
    }
}

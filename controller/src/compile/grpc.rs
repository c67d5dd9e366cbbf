//! Matches of GRPCRoutes, as HTTP matches: a call of `Method` on `package.Service` is a request for the path
//! `/package.Service/Method`.

use serde::Deserialize;
use serde_json::Value;
use weft_api::config::{HttpMatch, PathMatch, path_match::Kind};

use super::{
    http::{Match, RawValueMatch, header_matches},
    objects::read,
    patterns,
    precedence::{NameRank, Specificity},
};

/// A regular expression for any service or method.
const ANY_NAME: &str = "[^/]+";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMatch {
    method: Option<RawMethod>,
    headers: Option<Vec<RawValueMatch>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMethod {
    #[serde(rename = "type")]
    type_: Option<String>,
    service: Option<String>,
    method: Option<String>,
}

/// Reads an entry of a GRPCRoute rule's `matches`.
pub(super) fn read_match(entry: &Value) -> Result<Match, String> {
    let raw: RawMatch = read(entry)?;
    let RawMethod {
        type_,
        service,
        method,
    } = raw.method.unwrap_or_default();
    let service = service.filter(|name| !name.is_empty());
    let method = method.filter(|name| !name.is_empty());
    let (path, service_rank, method_rank) = match type_.as_deref().unwrap_or("Exact") {
        "Exact" => {
            for name in service.iter().chain(&method) {
                if name.contains('/') {
                    return Err(format!(
                        "method: `{name}` has a slash; name service and method apart"
                    ));
                }
                patterns::path(&format!("/{name}"))?;
            }
            let rank = |name: &Option<String>| {
                name.as_ref()
                    .map_or(NameRank::Any, |name| NameRank::Exact(name.chars().count()))
            };
            (
                exact(service.as_deref(), method.as_deref()),
                rank(&service),
                rank(&method),
            )
        }
        "RegularExpression" => {
            // Each on its own first: what only balances together means something else.
            for expression in service.iter().chain(&method) {
                patterns::regex(expression)?;
            }
            let rank =
                |name: &Option<String>| name.as_ref().map_or(NameRank::Any, |_| NameRank::Regex);
            let ranks = (rank(&service), rank(&method));
            (
                expression(service.as_deref(), method.as_deref())?,
                ranks.0,
                ranks.1,
            )
        }
        other => return Err(format!("method type {other} is not supported")),
    };
    let headers = header_matches(raw.headers)?;
    Ok(Match {
        specificity: Specificity::Grpc {
            service: service_rank,
            method: method_rank,
            headers: headers.len(),
        },
        conditions: HttpMatch {
            path: path.map(|kind| PathMatch { kind: Some(kind) }),
            headers,
            ..HttpMatch::default()
        },
    })
}

fn exact(service: Option<&str>, method: Option<&str>) -> Option<Kind> {
    match (service, method) {
        (Some(service), Some(method)) => Some(Kind::Exact(format!("/{service}/{method}"))),
        (Some(service), None) => Some(Kind::Prefix(format!("/{service}"))),
        (None, Some(method)) => Some(Kind::Regex(format!(
            "/{ANY_NAME}/{}",
            regex::escape(method)
        ))),
        (None, None) => None,
    }
}

fn expression(service: Option<&str>, method: Option<&str>) -> Result<Option<Kind>, String> {
    if service.is_none() && method.is_none() {
        return Ok(None);
    }
    let (service, method) = (service.unwrap_or(ANY_NAME), method.unwrap_or(ANY_NAME));
    Ok(Some(Kind::Regex(patterns::regex(&format!(
        "/(?:{service})/(?:{method})"
    ))?)))
}

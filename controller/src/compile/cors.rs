//! The CORS filter (HTTPCORSFilter, GEP-1767).
//!
//! Flows in: the filter as the route has it. Flows out: the filter for the table, with each origin
//! taken apart, or the field that is wrong and what may stand there.

use serde::Deserialize;
use weft_api::config::{Cors, CorsOrigin, HttpFilter, http_filter::Kind};

use super::{backends::BackendRef, patterns};

/// Seconds for which a client may remember a preflight's answer if the route does not say.
const DEFAULT_MAX_AGE: u32 = 5;

/// Most entries of a list of origins or of header names, by the standard.
const MAX_ENTRIES: usize = 64;

/// Most characters of an origin or of a header's name, by the standard.
const MAX_ORIGIN: usize = 253;
const MAX_HEADER: usize = 256;

/// Methods that the standard knows, as it spells them.
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
];

/// The filter, undecoded.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawCors {
    #[serde(default)]
    allow_origins: Vec<String>,
    allow_credentials: Option<bool>,
    #[serde(default)]
    allow_methods: Vec<String>,
    #[serde(default)]
    allow_headers: Vec<String>,
    #[serde(default)]
    expose_headers: Vec<String>,
    max_age: Option<i32>,
}

/// Reads a filter.
pub(super) fn read(raw: RawCors) -> Result<Cors, String> {
    for (field, list) in [
        ("allowOrigins", &raw.allow_origins),
        ("allowMethods", &raw.allow_methods),
        ("allowHeaders", &raw.allow_headers),
    ] {
        if list.len() > 1 && list.iter().any(|entry| entry == "*") {
            return Err(format!(
                "cors.{field}: `*` already means all; remove the other entries"
            ));
        }
    }
    let allow_any_origin = raw.allow_origins == ["*"];
    let max_age_seconds = match raw.max_age {
        None => DEFAULT_MAX_AGE,
        Some(seconds) => u32::try_from(seconds)
            .ok()
            .filter(|seconds| *seconds > 0)
            .ok_or_else(|| format!("cors.maxAge: {seconds} is not at least 1 second"))?,
    };
    Ok(Cors {
        allow_origins: match allow_any_origin {
            true => Vec::new(),
            false => entries("allowOrigins", raw.allow_origins, MAX_ENTRIES, origin)?,
        },
        allow_any_origin,
        allow_credentials: raw.allow_credentials.unwrap_or_default(),
        allow_methods: entries("allowMethods", raw.allow_methods, METHODS.len(), method)?,
        allow_headers: entries("allowHeaders", raw.allow_headers, MAX_ENTRIES, header)?,
        expose_headers: entries("exposeHeaders", raw.expose_headers, MAX_ENTRIES, header)?,
        max_age_seconds,
    })
}

/// Makes the CORS filter of the backendRefs the rule's. Which backend a request goes to is not known
/// when its preflight is answered, so all must say the same: a preflight would else promise what
/// the backend that is chosen later does not allow.
pub(super) fn lift(
    filters: &mut Vec<HttpFilter>,
    backends: &mut [BackendRef],
) -> Result<(), String> {
    let is_cors = |filter: &HttpFilter| matches!(filter.kind, Some(Kind::Cors(_)));
    let mut found = Vec::with_capacity(backends.len());
    for backend in backends {
        // One whose filters can't be executed answers 500 whatever the others say.
        let Ok(own) = &mut backend.filters else {
            continue;
        };
        let cors = own.iter().position(is_cors).map(|at| own.remove(at));
        if backend.weight > 0 {
            found.push(cors);
        }
    }
    let Some((first, others)) = found.split_first() else {
        return Ok(());
    };
    if others.iter().any(|other| other != first) {
        return Err(
            "backendRefs: their CORS filters differ, and a preflight is answered before one \
             of them is chosen; give each the same, or put it into the rule's filters"
                .into(),
        );
    }
    if let Some(cors) = first {
        if filters.iter().any(is_cors) {
            return Err(
                "backendRefs: a CORS filter stands there and in the rule's filters; remove one"
                    .into(),
            );
        }
        filters.push(cors.clone());
    }
    Ok(())
}

/// Reads a set's entries, each by `read`.
fn entries<T>(
    field: &str,
    list: Vec<String>,
    most: usize,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    if list.len() > most {
        let found = list.len();
        return Err(format!(
            "cors.{field}: {found} entries are more than the {most} that may be there"
        ));
    }
    let one = |(index, entry): (usize, &String)| {
        if list[..index].contains(entry) {
            return Err(format!("cors.{field}[{index}]: `{entry}` stands twice"));
        }
        read(entry).map_err(|error| format!("cors.{field}[{index}]: {error}"))
    };
    list.iter().enumerate().map(one).collect()
}

fn method(name: &str) -> Result<String, String> {
    if name == "*" || METHODS.contains(&name) {
        return Ok(name.into());
    }
    Err(format!(
        "`{name}` is neither `*` nor one of {}",
        METHODS.join(", ")
    ))
}

/// A header's name as the route spells it, for it is told to clients; `*` is a name too.
fn header(name: &str) -> Result<String, String> {
    patterns::header_name(name)?;
    if name.len() > MAX_HEADER {
        return Err(format!("a name has {MAX_HEADER} characters at most"));
    }
    Ok(name.into())
}

fn origin(text: &str) -> Result<CorsOrigin, String> {
    let wrong = || {
        format!(
            "`{text}` is no origin; write `*`, or http:// or https://, a host name (or `*`, or \
             `*.` and one) and, if need be, a port"
        )
    };
    let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
    let known_port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return Err(wrong()),
    };
    let (host, port) = match rest.split_once(':') {
        None => (rest, Some(known_port)),
        Some((host, port)) => (host, read_port(port)),
    };
    let port = port.ok_or_else(wrong)?;
    let name = host.strip_prefix("*.").unwrap_or(host);
    if text.len() > MAX_ORIGIN || !(host == "*" || is_name(name)) {
        return Err(wrong());
    }
    Ok(CorsOrigin {
        scheme: scheme.into(),
        host: host.to_ascii_lowercase(),
        port: port.into(),
    })
}

fn read_port(text: &str) -> Option<u16> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = digits.then(|| text.parse().ok()).flatten()?;
    (port != 0).then_some(port)
}

/// Labels of letters, digits and hyphens, as the standard's pattern for origins has them.
fn is_name(name: &str) -> bool {
    name.split('.').all(|label| {
        !label.is_empty()
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    })
}

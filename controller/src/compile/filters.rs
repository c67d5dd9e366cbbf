//! Filters of rules and of backendRefs.
//!
//! Flows in: the entries of a `filters` list, undecoded. Flows out: the filters for the table, or what
//! is wrong with the first that can't be executed. A filter is never skipped: what it guards must
//! not be reached without it.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use weft_api::config::{
    HeaderModifier, HeaderValue, HttpFilter, PathModifier, Redirect, UrlRewrite, http_filter::Kind,
    path_modifier,
};

use super::{cors, patterns, routes::RouteKind, status::RuleReason};

/// Where filters stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Rule,
    Backend,
}

/// Why filters can't be executed.
#[derive(Debug, PartialEq)]
pub(super) struct FilterError {
    pub(super) reason: RuleReason,
    pub(super) message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHeaderModifier {
    #[serde(default)]
    set: Vec<RawHeader>,
    #[serde(default)]
    add: Vec<RawHeader>,
    #[serde(default)]
    remove: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHeader {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawRedirect {
    scheme: Option<String>,
    hostname: Option<String>,
    path: Option<RawPath>,
    port: Option<u16>,
    status_code: Option<u16>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRewrite {
    hostname: Option<String>,
    path: Option<RawPath>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawPath {
    #[serde(rename = "type")]
    type_: String,
    replace_full_path: Option<String>,
    replace_prefix_match: Option<String>,
}

/// Reads a list of filters.
pub(super) fn read(
    entries: &[Value],
    kind: RouteKind,
    place: Place,
) -> Result<Vec<HttpFilter>, FilterError> {
    let mut filters = Vec::with_capacity(entries.len());
    let mut types = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let at = |message: String| FilterError::from(format!("filters[{index}]: {message}"));
        let (type_, filter) = read_one(entry, kind, place).map_err(at)?;
        if types.contains(&type_) {
            return Err(at(format!(
                "{type_} stands twice; put both into one filter"
            )));
        }
        types.push(type_);
        filters.push(HttpFilter { kind: Some(filter) });
    }
    if types.contains(&"RequestRedirect") && types.contains(&"URLRewrite") {
        return Err(FilterError {
            reason: RuleReason::IncompatibleFilters,
            message: "filters: RequestRedirect and URLRewrite exclude each other; remove one"
                .into(),
        });
    }
    Ok(filters)
}

/// Whether the filters answer the request themselves.
pub(super) fn redirects(filters: &[HttpFilter]) -> bool {
    filters
        .iter()
        .any(|filter| matches!(filter.kind, Some(Kind::Redirect(_))))
}

/// Whether a filter replaces the prefix that the rule matched.
pub(super) fn replace_prefix(filters: &[HttpFilter]) -> bool {
    filters.iter().any(|filter| {
        let path = match &filter.kind {
            Some(Kind::Redirect(redirect)) => redirect.path.as_ref(),
            Some(Kind::Rewrite(rewrite)) => rewrite.path.as_ref(),
            _ => None,
        };
        matches!(
            path.and_then(|path| path.kind.as_ref()),
            Some(path_modifier::Kind::ReplacePrefixMatch(_))
        )
    })
}

fn read_one(entry: &Value, kind: RouteKind, place: Place) -> Result<(&'static str, Kind), String> {
    let type_ = entry
        .get("type")
        .and_then(Value::as_str)
        .ok_or("it has no type")?;
    let http = kind == RouteKind::Http;
    match type_ {
        "RequestHeaderModifier" => {
            let raw = payload(entry, "requestHeaderModifier")?;
            Ok((
                "RequestHeaderModifier",
                Kind::RequestHeaders(header_modifier(raw)?),
            ))
        }
        "ResponseHeaderModifier" => {
            let raw = payload(entry, "responseHeaderModifier")?;
            Ok((
                "ResponseHeaderModifier",
                Kind::ResponseHeaders(header_modifier(raw)?),
            ))
        }
        "RequestRedirect" if http && place == Place::Rule => Ok((
            "RequestRedirect",
            Kind::Redirect(redirect(payload(entry, "requestRedirect")?)?),
        )),
        "URLRewrite" if http => Ok((
            "URLRewrite",
            Kind::Rewrite(rewrite(payload(entry, "urlRewrite")?)?),
        )),
        "CORS" if http => Ok(("CORS", Kind::Cors(cors::read(payload(entry, "cors")?)?))),
        other => Err(format!("{other} is not supported here; remove it")),
    }
}

/// The one field that belongs to the filter's type; anything beside it contradicts the type.
fn payload<T: DeserializeOwned>(entry: &Value, field: &str) -> Result<T, String> {
    let fields = entry
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_null());
    for (name, _) in fields {
        if name != "type" && name != field {
            return Err(format!("field {name} does not belong to its type"));
        }
    }
    let value = entry
        .get(field)
        .ok_or_else(|| format!("field {field} is missing"))?;
    T::deserialize(value).map_err(|error| format!("{field}: {error}"))
}

fn header_modifier(raw: RawHeaderModifier) -> Result<HeaderModifier, String> {
    let headers = |list: Vec<RawHeader>| {
        list.into_iter()
            .map(|header| {
                let name = patterns::changeable_header_name(&header.name)?;
                let value = match name.as_str() {
                    "host" => patterns::authority(&header.value)?,
                    _ => patterns::header_value(&header.value)?,
                };
                Ok(HeaderValue { name, value })
            })
            .collect::<Result<Vec<_>, String>>()
    };
    Ok(HeaderModifier {
        set: headers(raw.set)?,
        add: headers(raw.add)?,
        remove: raw
            .remove
            .iter()
            .map(|name| removable(name))
            .collect::<Result<_, _>>()?,
    })
}

fn removable(name: &str) -> Result<String, String> {
    let name = patterns::changeable_header_name(name)?;
    if name == "host" {
        Err("header host can't be removed".into())
    } else {
        Ok(name)
    }
}

fn redirect(raw: RawRedirect) -> Result<Redirect, String> {
    let scheme = raw.scheme.unwrap_or_default();
    if !matches!(scheme.as_str(), "" | "http" | "https") {
        return Err(format!("scheme `{scheme}` is neither http nor https"));
    }
    let status = raw.status_code.unwrap_or(302);
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return Err(format!(
            "statusCode {status} is none of 301, 302, 303, 307 and 308"
        ));
    }
    if raw.port == Some(0) {
        return Err("port 0 can't be redirected to".into());
    }
    Ok(Redirect {
        scheme,
        hostname: hostname(raw.hostname)?,
        path: raw.path.map(path).transpose()?,
        port: raw.port.unwrap_or_default().into(),
        status: status.into(),
    })
}

fn rewrite(raw: RawRewrite) -> Result<UrlRewrite, String> {
    Ok(UrlRewrite {
        hostname: hostname(raw.hostname)?,
        path: raw.path.map(path).transpose()?,
    })
}

fn hostname(name: Option<String>) -> Result<String, String> {
    name.map_or(Ok(String::new()), |name| patterns::hostname(&name))
}

fn path(raw: RawPath) -> Result<PathModifier, String> {
    use path_modifier::Kind::{ReplaceFullPath, ReplacePrefixMatch};
    let kind = match (
        raw.type_.as_str(),
        raw.replace_full_path,
        raw.replace_prefix_match,
    ) {
        ("ReplaceFullPath", Some(full), None) => ReplaceFullPath(patterns::path(&full)?),
        ("ReplacePrefixMatch", None, Some(prefix)) if prefix.is_empty() => {
            ReplacePrefixMatch(prefix)
        }
        ("ReplacePrefixMatch", None, Some(prefix)) => ReplacePrefixMatch(patterns::path(&prefix)?),
        (other, _, _) => {
            return Err(format!(
                "path: type {other} and its field do not go together"
            ));
        }
    };
    Ok(PathModifier { kind: Some(kind) })
}

impl From<String> for FilterError {
    fn from(message: String) -> Self {
        Self {
            reason: RuleReason::UnsupportedValue,
            message,
        }
    }
}

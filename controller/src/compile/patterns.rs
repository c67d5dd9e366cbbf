//! What may stand in a name, a value, a path, a host name or a regular expression of a route.
//! The proxy is never sent what it would have to reject.

use http::{
    HeaderName, HeaderValue, Method,
    uri::{Authority, PathAndQuery},
};
use regex::bytes::RegexBuilder;

/// Most memory that one compiled expression may take, in bytes: each proxy holds all of them.
const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// Headers that frame the message or belong to one connection: a route that changed them would
/// make two readers of the message disagree about where it ends. The proxy lets no filter touch
/// them, so that accepting such a filter would be a lie.
const FRAMING_HEADERS: [&str; 11] = [
    "connection",
    "content-length",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A header's name, in lower case.
pub(super) fn header_name(name: &str) -> Result<String, String> {
    HeaderName::from_bytes(name.as_bytes())
        .map(|name| name.as_str().to_owned())
        .map_err(|_| format!("`{name}` is no header name"))
}

/// The name of a header that a filter may change, in lower case.
pub(super) fn changeable_header_name(name: &str) -> Result<String, String> {
    let name = header_name(name)?;
    if FRAMING_HEADERS.contains(&name.as_str()) {
        return Err(format!(
            "header {name} belongs to one connection and can't be changed"
        ));
    }
    Ok(name)
}

/// A header's value.
pub(super) fn header_value(value: &str) -> Result<String, String> {
    match HeaderValue::from_str(value) {
        Ok(_) => Ok(value.to_owned()),
        Err(_) => Err(format!("{value:?} is no header value")),
    }
}

/// A regular expression that matches a whole value. Checked as the proxy compiles it: on bytes, with
/// Unicode only where the expression asks for it, and on its own before anchors are put around it.
pub(super) fn regex(expression: &str) -> Result<String, String> {
    let unicode =
        !expression.is_ascii() || expression.contains("\\p") || expression.contains("\\P");
    for text in [expression, &format!(r"\A(?:{expression})\z")] {
        RegexBuilder::new(text)
            .unicode(unicode)
            .size_limit(REGEX_SIZE_LIMIT)
            .build()
            .map_err(|error| {
                format!("`{expression}` is no regular expression that can be used: {error}")
            })?;
    }
    Ok(expression.to_owned())
}

/// A method to match.
pub(super) fn method(name: &str) -> Result<String, String> {
    match Method::from_bytes(name.as_bytes()) {
        Ok(_) => Ok(name.to_owned()),
        Err(_) => Err(format!("`{name}` is no HTTP method")),
    }
}

/// A path to match or to send, without a query.
pub(super) fn path(path: &str) -> Result<String, String> {
    match PathAndQuery::try_from(path) {
        Ok(parsed) if path.starts_with('/') && parsed.path() == path => Ok(path.to_owned()),
        _ => Err(format!(
            "`{path}` is no path; it must begin with / and have no query"
        )),
    }
}

/// A value of the header `host` to send.
pub(super) fn authority(value: &str) -> Result<String, String> {
    match value.parse::<Authority>() {
        Ok(_) => Ok(value.to_owned()),
        Err(_) => Err(format!("`{value}` is no value of the header host")),
    }
}

/// A host name without wildcards.
pub(super) fn hostname(name: &str) -> Result<String, String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= 253 && name.split('.').all(label) {
        Ok(name.to_owned())
    } else {
        Err(format!(
            "`{name}` is no host name; write it in lower case and without a port"
        ))
    }
}

/// A server name to match: a host name, or `*.` and one.
pub(super) fn server_name(name: &str) -> Result<String, String> {
    hostname(name.strip_prefix("*.").unwrap_or(name)).map(|_| name.to_owned())
}

//! What a request must look like for a rule: the conditions of one `HttpMatch`, compiled, and
//! their evaluation against a request's head. Pure.
//!
//! Everything is compared as sent. A path is not decoded, not normalised, and `%2F` separates
//! no segments; query parameters are decoded (percent-encoding, and `+` for a space), as
//! applications read them, and the first occurrence of a name counts. Several lines of one header
//! are joined by a comma, which is what they mean. A `host` header means the authority, whatever
//! the version of HTTP carried it in.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, Method};
use regex::bytes::{Regex, RegexBuilder};
use weft_api::config;

/// The compiled size of one regular expression, in bytes: a pattern that needs more costs memory
/// on every node, and is refused.
const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// What matching sees of a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path as sent, without the query.
    pub path: &'a str,
    /// The query as sent, without the question mark.
    pub query: Option<&'a str>,
    /// `:authority`, the absolute form's authority, or `Host`.
    pub authority: Option<&'a str>,
    /// All header fields.
    pub headers: &'a HeaderMap,
}

/// A condition on the path.
#[derive(Debug)]
pub enum PathMatch {
    /// Byte for byte.
    Exact(Box<str>),
    /// By whole segments; stored without a trailing slash, so empty for "/".
    Prefix(Box<str>),
    /// The whole path.
    Regex(Regex),
}

/// A condition on a header's or query parameter's value.
#[derive(Debug)]
pub enum ValueMatch {
    /// Byte for byte.
    Exact(Box<[u8]>),
    /// The whole value.
    Regex(Regex),
    /// There is one.
    Present,
}

/// All conditions of one match: each must hold.
#[derive(Debug)]
pub struct Match {
    pub(super) path: Option<PathMatch>,
    method: Option<Method>,
    headers: Box<[(HeaderName, ValueMatch)]>,
    query: Box<[(Box<str>, ValueMatch)]>,
}

// === impl Match ===

impl Match {
    /// Compiles the conditions; an error names the one that can't be.
    pub(super) fn compile(from: &config::HttpMatch) -> Result<Self, String> {
        let path = from.path.as_ref().map(PathMatch::compile).transpose()?;
        let method = match from.method.as_str() {
            "" => None,
            name => Some(
                Method::from_bytes(name.as_bytes())
                    .map_err(|_| format!("`{name}` is not an HTTP method"))?,
            ),
        };
        let headers = from
            .headers
            .iter()
            .map(|header| {
                let name = HeaderName::from_bytes(header.name.as_bytes())
                    .map_err(|_| format!("`{}` is not a header name", header.name))?;
                Ok((name, ValueMatch::compile("header", header)?))
            })
            .collect::<Result<_, String>>()?;
        let query = from
            .query_params
            .iter()
            .map(|param| {
                Ok((
                    param.name.clone().into(),
                    ValueMatch::compile("query parameter", param)?,
                ))
            })
            .collect::<Result<_, String>>()?;
        Ok(Self {
            path,
            method,
            headers,
            query,
        })
    }

    pub(super) fn matches(&self, request: &RequestHead<'_>) -> bool {
        self.path.as_ref().is_none_or(|it| it.matches(request.path))
            && self.method.as_ref().is_none_or(|it| it == request.method)
            && self
                .headers
                .iter()
                .all(|(name, value)| header_value(request, name).is_some_and(|v| value.matches(&v)))
            && self.query.iter().all(|(name, value)| {
                query_value(request.query, name).is_some_and(|it| value.matches(it.as_bytes()))
            })
    }
}

// === impl PathMatch ===

impl PathMatch {
    fn compile(from: &config::PathMatch) -> Result<Self, String> {
        use config::path_match::Kind;
        match from.kind.as_ref() {
            Some(Kind::Exact(path)) => Ok(Self::Exact(path.as_str().into())),
            Some(Kind::Prefix(path)) => Ok(Self::Prefix(path.trim_end_matches('/').into())),
            Some(Kind::Regex(pattern)) => Ok(Self::Regex(whole("path", pattern)?)),
            None => Err("a path match has no kind".into()),
        }
    }

    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *path,
            Self::Prefix(prefix) => path
                .strip_prefix(&**prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            Self::Regex(regex) => regex.is_match(path.as_bytes()),
        }
    }

    /// Whether this tells paths apart at all.
    pub(super) fn is_any(&self) -> bool {
        matches!(self, Self::Prefix(prefix) if prefix.is_empty())
    }
}

// === impl ValueMatch ===

impl ValueMatch {
    fn compile(what: &str, from: &config::ValueMatch) -> Result<Self, String> {
        use config::value_match::Kind;
        match from.kind.as_ref() {
            Some(Kind::Exact(value)) => Ok(Self::Exact(value.as_bytes().into())),
            Some(Kind::Regex(pattern)) => Ok(Self::Regex(whole(
                &format!("{what} `{}`", from.name),
                pattern,
            )?)),
            Some(Kind::Present(_)) => Ok(Self::Present),
            None => Err(format!("the match of {what} `{}` has no kind", from.name)),
        }
    }

    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => **exact == *value,
            Self::Regex(regex) => regex.is_match(value),
            Self::Present => true,
        }
    }
}

/// Compiles a pattern that must match the whole value. As in RE2, `\w`, `\d` and `\s` are ASCII;
/// only a pattern that asks for Unicode (`\p{..}`, or letters beyond ASCII) gets its tables.
fn whole(what: &str, pattern: &str) -> Result<Regex, String> {
    let unicode = !pattern.is_ascii() || pattern.contains("\\p") || pattern.contains("\\P");
    let build = |pattern: &str| {
        RegexBuilder::new(pattern)
            .unicode(unicode)
            .size_limit(REGEX_SIZE_LIMIT)
            .build()
            .map_err(|error| format!("regular expression `{pattern}` of {what}: {error}"))
    };
    // By itself first: `a)|(b` must not become valid by the anchors put around it.
    build(pattern)?;
    build(&format!(r"\A(?:{pattern})\z"))
}

fn header_value<'a>(request: &RequestHead<'a>, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    if name == http::header::HOST {
        return request.authority.map(|it| Cow::Borrowed(it.as_bytes()));
    }
    let mut values = request.headers.get_all(name).iter();
    let first = values.next()?.as_bytes();
    let Some(second) = values.next() else {
        return Some(Cow::Borrowed(first));
    };
    let mut joined = [first, b",", second.as_bytes()].concat();
    for value in values {
        joined.push(b',');
        joined.extend_from_slice(value.as_bytes());
    }
    Some(Cow::Owned(joined))
}

fn query_value<'a>(query: Option<&'a str>, name: &str) -> Option<Cow<'a, str>> {
    query?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key) == name).then(|| decode(value))
    })
}

/// Decodes `application/x-www-form-urlencoded`; what is no valid escape stays as it is.
fn decode(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'+' => out.push(b' '),
            b'%' => match bytes.get(at + 1..at + 3).and_then(hex) {
                Some(decoded) => {
                    out.push(decoded);
                    at += 2;
                }
                None => out.push(b'%'),
            },
            other => out.push(other),
        }
        at += 1;
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

/// The byte that two hexadecimal digits stand for.
pub(super) fn hex(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let [high, low] = digits else { return None };
    u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()
}

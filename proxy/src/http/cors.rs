//! Cross-origin resource sharing (HTTPCORSFilter, GEP-1767): a request's head and its rule's filter
//! flow in, what the response says to a browser flows out. Pure.
//!
//! The filter is the last word: what the backend said of sharing is taken off, whether the origin
//! is allowed or not. An origin that is not allowed is told nothing, and its browser refuses. What
//! is said depends on `Origin`, so every response says `vary: Origin`, also to requests without one:
//! a cache must not give the answer of the one to the other.
//!
//! Where a wildcard may be answered by `*` or by what was asked for: origins and methods by `*`,
//! which caches keep longest. Headers by what was asked for, since to browsers `*` leaves out
//! `authorization` (Fetch, "CORS-unsafe request-header names").

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS,
        ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
        ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD,
        CACHE_CONTROL, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_TYPE, EXPIRES, LAST_MODIFIED,
        ORIGIN, PRAGMA, SET_COOKIE, VARY,
    },
    uri::Authority,
};
use weft_api::config;

use super::matching::RequestHead;

/// What responses say of sharing, and the filter alone decides.
const DECIDED: [HeaderName; 6] = [
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
];

/// Headers that scripts see unasked, and one that they never see.
const NOT_TO_EXPOSE: [HeaderName; 8] = [
    CACHE_CONTROL,
    CONTENT_LANGUAGE,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    EXPIRES,
    LAST_MODIFIED,
    PRAGMA,
    SET_COOKIE,
];

const ANY: HeaderValue = HeaderValue::from_static("*");

/// A compiled filter.
#[derive(Debug)]
pub struct Cors {
    origins: Origins,
    credentials: bool,
    methods: Allowed,
    headers: Allowed,
    exposed: Allowed,
    max_age: HeaderValue,
}

/// What a response says of sharing it.
#[derive(Debug, Default)]
pub struct Sharing {
    /// Empty if it is not to be shared.
    said: Vec<(HeaderName, HeaderValue)>,
    /// The response's own headers are to be named, each.
    exposes_each: bool,
}

#[derive(Debug)]
enum Origins {
    Any,
    These(Box<[AllowedOrigin]>),
}

#[derive(Debug)]
struct AllowedOrigin {
    https: bool,
    host: Host,
    port: u16,
}

#[derive(Debug)]
enum Host {
    Any,
    /// Ends with this, which begins with a dot, and has something before it.
    Below(Box<str>),
    Exact(Box<str>),
}

/// A list of names, or a wildcard.
#[derive(Debug)]
enum Allowed {
    Any,
    /// None if nothing is listed.
    These(Option<HeaderValue>),
}

/// A request's origin that can be compared.
struct Origin {
    https: bool,
    authority: Authority,
    port: u16,
}

/// Whether a browser asks, before a request, whether it may send it (Fetch, "CORS-preflight request").
pub fn is_preflight(request: &RequestHead<'_>) -> bool {
    *request.method == Method::OPTIONS
        && request.headers.contains_key(ORIGIN)
        && request.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

// === impl Cors ===

impl Cors {
    pub(super) fn compile(from: &config::Cors) -> Result<Self, String> {
        let origins = if from.allow_any_origin {
            Origins::Any
        } else {
            let compiled = from.allow_origins.iter().map(AllowedOrigin::compile);
            Origins::These(compiled.collect::<Result<_, _>>()?)
        };
        Ok(Self {
            origins,
            credentials: from.allow_credentials,
            methods: Allowed::compile(&from.allow_methods)?,
            headers: Allowed::compile(&from.allow_headers)?,
            exposed: Allowed::compile(&from.expose_headers)?,
            max_age: from.max_age_seconds.into(),
        })
    }

    /// What the response to a request says.
    pub fn sharing(&self, request: &RequestHead<'_>) -> Sharing {
        let Some(origin) = self.allows(request.headers) else {
            return Sharing::default();
        };
        let preflight = is_preflight(request);
        let any = || (!self.credentials).then_some(ANY);
        let methods = match &self.methods {
            Allowed::Any => any().or_else(|| requested_method(request.headers)),
            Allowed::These(methods) => methods.clone(),
        };
        let headers = match &self.headers {
            Allowed::Any => requested_headers(request.headers).or_else(any),
            Allowed::These(headers) => headers.clone(),
        };
        let (exposed, exposes_each) = match &self.exposed {
            Allowed::Any => (any(), self.credentials && !preflight),
            Allowed::These(headers) => (headers.clone(), false),
        };
        // The lists are for preflights, to browsers. The standard has them in every answer.
        let credentials = HeaderValue::from_static("true");
        let said = [
            (ACCESS_CONTROL_ALLOW_ORIGIN, Some(origin)),
            (
                ACCESS_CONTROL_ALLOW_CREDENTIALS,
                self.credentials.then_some(credentials),
            ),
            (ACCESS_CONTROL_ALLOW_METHODS, methods),
            (ACCESS_CONTROL_ALLOW_HEADERS, headers),
            (ACCESS_CONTROL_EXPOSE_HEADERS, exposed),
            (
                ACCESS_CONTROL_MAX_AGE,
                preflight.then(|| self.max_age.clone()),
            ),
        ];
        Sharing {
            said: said
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)))
                .collect(),
            exposes_each,
        }
    }

    /// What `access-control-allow-origin` says; none if the origin is not allowed, or there is none.
    fn allows(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut lines = headers.get_all(ORIGIN).iter();
        let (Some(origin), None) = (lines.next(), lines.next()) else {
            // Of several, whose it is can't be told.
            return None;
        };
        match &self.origins {
            Origins::Any if self.credentials => Some(origin.clone()),
            Origins::Any => Some(ANY),
            Origins::These(allowed) => {
                let parsed = Origin::parse(origin)?;
                let allows = allowed.iter().any(|it| it.is(&parsed));
                allows.then(|| origin.clone())
            }
        }
    }
}

/// The method that a preflight asks for.
fn requested_method(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut lines = headers.get_all(ACCESS_CONTROL_REQUEST_METHOD).iter();
    let (Some(method), None) = (lines.next(), lines.next()) else {
        return None;
    };
    Method::from_bytes(method.as_bytes()).ok()?;
    Some(method.clone())
}

/// The headers that a preflight asks for, as it spells them.
fn requested_headers(headers: &HeaderMap) -> Option<HeaderValue> {
    let lines: Vec<_> = headers
        .get_all(ACCESS_CONTROL_REQUEST_HEADERS)
        .iter()
        .collect();
    let names = lines
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    for name in names {
        HeaderName::from_bytes(name.trim_ascii()).ok()?;
    }
    match lines.as_slice() {
        [] => None,
        [line] => Some((*line).clone()),
        several => {
            let several: Vec<_> = several.iter().map(|it| it.as_bytes()).collect();
            HeaderValue::from_maybe_shared(several.join(&b", "[..])).ok()
        }
    }
}

// === impl Sharing ===

impl Sharing {
    /// Says it in a response's head, instead of what the backend says.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &DECIDED {
            headers.remove(name);
        }
        say_vary(headers);
        if let Some(names) = self.exposes_each.then(|| names_of(headers)).flatten() {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, names);
        }
        for (name, value) in &self.said {
            headers.insert(name, value.clone());
        }
    }
}

fn say_vary(headers: &mut HeaderMap) {
    let said = headers.get_all(VARY).iter().any(|line| {
        line.as_bytes().split(|byte| *byte == b',').any(|name| {
            let name = name.trim_ascii();
            name == b"*" || name.eq_ignore_ascii_case(b"origin")
        })
    });
    if !said {
        headers.append(VARY, HeaderValue::from_static("Origin"));
    }
}

/// The names of all headers that a script must be told of to see them.
fn names_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut names: Vec<_> = headers
        .keys()
        .filter(|name| !NOT_TO_EXPOSE.contains(name))
        .map(HeaderName::as_str)
        .collect();
    names.sort_unstable();
    (!names.is_empty())
        .then(|| HeaderValue::try_from(names.join(", ")).ok())
        .flatten()
}

// === impl AllowedOrigin ===

impl AllowedOrigin {
    fn compile(from: &config::CorsOrigin) -> Result<Self, String> {
        let wrong = || {
            let config::CorsOrigin { scheme, host, port } = from;
            format!("`{scheme}://{host}:{port}` is no origin to allow")
        };
        let https = is_https(&from.scheme).ok_or_else(wrong)?;
        let port = u16::try_from(from.port).ok().filter(|port| *port != 0);
        let host = match from.host.strip_prefix('*') {
            Some("") => Host::Any,
            Some(below) if below.starts_with('.') => Host::Below(below.into()),
            Some(_) => return Err(wrong()),
            None if from.host.is_empty() => return Err(wrong()),
            None => Host::Exact(from.host.as_str().into()),
        };
        Ok(Self {
            https,
            host,
            port: port.ok_or_else(wrong)?,
        })
    }

    fn is(&self, origin: &Origin) -> bool {
        let host = origin.authority.host().as_bytes();
        self.https == origin.https
            && self.port == origin.port
            && match &self.host {
                Host::Any => true,
                Host::Exact(name) => host.eq_ignore_ascii_case(name.as_bytes()),
                Host::Below(suffix) => {
                    let at = host.len().checked_sub(suffix.len());
                    at.is_some_and(|at| {
                        at > 0 && host[at..].eq_ignore_ascii_case(suffix.as_bytes())
                    })
                }
            }
    }
}

// === impl Allowed ===

impl Allowed {
    /// Beside `*`, other names say nothing.
    fn compile(names: &[String]) -> Result<Self, String> {
        if names.iter().any(|name| name == "*") {
            return Ok(Self::Any);
        }
        // Names of headers and of methods have the same characters.
        if let Some(bad) = names
            .iter()
            .find(|name| HeaderName::from_bytes(name.as_bytes()).is_err())
        {
            return Err(format!("`{bad}` is no name to allow or to expose"));
        }
        let list = (!names.is_empty()).then(|| HeaderValue::try_from(names.join(", ")));
        let list = list.transpose().map_err(|error| error.to_string())?;
        Ok(Self::These(list))
    }
}

// === impl Origin ===

impl Origin {
    /// Takes apart `scheme://host[:port]`; none for `null` and whatever else no list can name.
    fn parse(value: &HeaderValue) -> Option<Self> {
        let (scheme, authority) = value.to_str().ok()?.split_once("://")?;
        let https = is_https(scheme)?;
        let authority: Authority = authority.parse().ok()?;
        let is_of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
        if authority.host().is_empty() || !authority.as_str().bytes().all(is_of_a_name) {
            return None;
        }
        let port = match authority.as_str().strip_prefix(authority.host())? {
            "" if https => 443,
            "" => 80,
            _ => authority.port_u16()?,
        };
        Some(Self {
            https,
            authority,
            port,
        })
    }
}

fn is_https(scheme: &str) -> Option<bool> {
    let is = |name| scheme.eq_ignore_ascii_case(name);
    match (is("https"), is("http")) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    }
}

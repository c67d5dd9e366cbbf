//! From one connection to the next: a message's head as it was received flows in, the head as a
//! proxy may pass it on flows out, or the reason why the request is refused. Pure.
//!
//! Nothing is added that the client did not send (`via`, `x-forwarded-for`, `server`, `date`): a
//! mesh is transparent, and the application sees its client's own address. What belongs to one
//! connection is taken off; what could be read in two ways is refused.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
    request, response,
    uri::{Authority, PathAndQuery, Scheme},
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// A request that is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The answer.
    pub status: StatusCode,
    /// Why.
    pub reason: &'static str,
}

/// What was found in a request's head that decides how it is passed on.
#[derive(Debug, Default)]
pub struct Inbound {
    /// Host and port that the client addressed; none only in HTTP/1.0 or with an empty `Host`.
    pub authority: Option<Authority>,
    /// The protocol that the client wants to change to (never `h2c`).
    pub upgrade: Option<HeaderValue>,
    /// The client takes trailers.
    pub trailers: bool,
    /// The client waits for `100 Continue`.
    pub expects_continue: bool,
    /// gRPC, by content type: errors are told as gRPC statuses.
    pub grpc: bool,
}

/// Checks a request's head and takes off it what belongs to the client's connection. `has_body`
/// says whether a body follows.
///
/// # Errors
/// The refusal of a request that is ambiguous, or not for a mesh to serve.
pub fn receive(head: &mut request::Parts, has_body: bool) -> Result<Inbound, Refusal> {
    let mut seen = Seen::default();
    for name in head.headers.keys() {
        seen.note(name);
    }
    let mut inbound = Inbound {
        grpc: is_grpc(&head.headers),
        ..Inbound::default()
    };
    if head.method == Method::CONNECT {
        return refuse(
            StatusCode::METHOD_NOT_ALLOWED,
            "CONNECT: this is no forward proxy",
        );
    }
    if head.uri.scheme().is_none() && head.uri.authority().is_some() {
        return Err(BAD_TARGET);
    }
    // What would be matched as one path and sent as another. (HTTP/2 lets any text through.)
    match head.uri.path() {
        path if path.starts_with('/') => {}
        "*" if head.method == Method::OPTIONS => {}
        _ => return Err(BAD_TARGET),
    }
    inbound.authority = authority(head)?;
    check_framing(head)?;
    // HTTP/1.0 has no 101.
    if head.version == Version::HTTP_11 && seen.upgrade {
        inbound.upgrade = upgrade(&head.headers);
        if inbound.upgrade.is_some() && has_body {
            return refuse(StatusCode::BAD_REQUEST, "upgrade with a body");
        }
    }
    if seen.te {
        inbound.trailers = has_token(&head.headers, &TE, "trailers");
    }
    if seen.expect {
        let value = head.headers.get(EXPECT).map(HeaderValue::as_bytes);
        inbound.expects_continue = has_body
            && head.version == Version::HTTP_11
            && value.is_some_and(|it| it.eq_ignore_ascii_case(b"100-continue"));
        // Else there is nobody to wait, or nothing to wait for.
        if !inbound.expects_continue {
            head.headers.remove(EXPECT);
        }
    }
    seen.strip(&mut head.headers);
    if inbound.trailers {
        head.headers
            .insert(TE, HeaderValue::from_static("trailers"));
    }
    Ok(inbound)
}

/// Makes a request's head fit HTTP/1.1 towards `authority`.
///
/// # Errors
/// A refusal, if it can't be expressed.
pub fn to_http1(
    head: &mut request::Parts,
    inbound: &Inbound,
    authority: Option<&Authority>,
    has_body: bool,
) -> Result<(), Refusal> {
    if head.uri.authority().is_some() || head.uri.scheme().is_some() {
        let path = head.uri.path_and_query().cloned();
        head.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    }
    let host = authority.map_or("", Authority::as_str);
    if head.headers.get(HOST).is_none_or(|it| it != host) {
        let value = HeaderValue::from_str(host).map_err(|_| BAD_HOST)?;
        head.headers.insert(HOST, value);
    }
    if head.version == Version::HTTP_2 {
        join_cookies(&mut head.headers)?;
    }
    // Said outright, for no length means no body for some methods.
    if has_body && !head.headers.contains_key(CONTENT_LENGTH) {
        let chunked = HeaderValue::from_static("chunked");
        head.headers.insert(TRANSFER_ENCODING, chunked);
    }
    if let Some(protocol) = &inbound.upgrade {
        let upgrade = HeaderValue::from_static("upgrade");
        head.headers.insert(CONNECTION, upgrade);
        head.headers.insert(UPGRADE, protocol.clone());
    } else if inbound.trailers {
        let te = HeaderValue::from_static("te");
        head.headers.insert(CONNECTION, te);
    }
    head.version = Version::HTTP_11;
    Ok(())
}

/// Makes a request's head fit HTTP/2 towards `authority`.
///
/// # Errors
/// A refusal, if it can't be expressed.
pub fn to_http2(head: &mut request::Parts, authority: Option<&Authority>) -> Result<(), Refusal> {
    head.headers.remove(HOST);
    head.headers.remove(EXPECT);
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(match head.uri.path_and_query() {
        Some(path) => path.clone(),
        None => PathAndQuery::from_static("/"),
    });
    parts.scheme = Some(Scheme::HTTP);
    // Without one there could be no scheme either, and a path alone is not a valid request.
    let unnamed = || Authority::from_static("unnamed.invalid");
    parts.authority = Some(authority.cloned().unwrap_or_else(unnamed));
    head.uri = Uri::from_parts(parts).map_err(|_| BAD_TARGET)?;
    head.version = Version::HTTP_2;
    Ok(())
}

/// Takes off a response's head what belongs to the backend's connection. `switching` says that
/// it is the 101 that the client asked for.
pub fn respond(head: &mut response::Parts, switching: bool) {
    let mut seen = Seen::default();
    for name in head.headers.keys() {
        seen.note(name);
    }
    // Chunked framing overrides a length, and the length would be believed behind us.
    if seen.transfer_encoding {
        head.headers.remove(CONTENT_LENGTH);
    }
    let protocol = if switching {
        head.headers.remove(UPGRADE)
    } else {
        None
    };
    seen.strip(&mut head.headers);
    if let Some(protocol) = protocol {
        let upgrade = HeaderValue::from_static("upgrade");
        head.headers.insert(CONNECTION, upgrade);
        head.headers.insert(UPGRADE, protocol);
    }
}

/// Whether the content type is gRPC's (and not gRPC-Web's).
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|it| it.as_bytes().strip_prefix(b"application/grpc"))
        .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

const BAD_HOST: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    reason: "malformed host",
};
const BAD_TARGET: Refusal = Refusal {
    status: StatusCode::BAD_REQUEST,
    reason: "malformed request target",
};

fn refuse<T>(status: StatusCode, reason: &'static str) -> Result<T, Refusal> {
    Err(Refusal { status, reason })
}

/// The authority that a request addresses. An absolute target overrides `Host` in HTTP/1.1
/// (RFC 9112, 3.2.2); in HTTP/2 both must agree (RFC 9113, 8.3.1).
fn authority(head: &request::Parts) -> Result<Option<Authority>, Refusal> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return refuse(StatusCode::BAD_REQUEST, "several host lines");
    }
    if host.is_none() && head.version == Version::HTTP_11 {
        return refuse(StatusCode::BAD_REQUEST, "no host");
    }
    let target = head.uri.authority();
    if let (Some(target), Some(host), Version::HTTP_2) = (target, host, head.version)
        && !host
            .as_bytes()
            .eq_ignore_ascii_case(target.as_str().as_bytes())
    {
        return refuse(StatusCode::BAD_REQUEST, "host differs from :authority");
    }
    let authority = match (target, host) {
        (Some(target), _) => Some(target.clone()),
        (None, Some(host)) if !host.is_empty() => {
            Some(Authority::try_from(host.as_bytes()).map_err(|_| BAD_HOST)?)
        }
        _ => None,
    };
    if authority
        .as_ref()
        .is_some_and(|it| it.as_str().contains('@'))
    {
        return Err(BAD_HOST);
    }
    Ok(authority)
}

/// What the parser let through and a backend might frame in another way.
fn check_framing(head: &mut request::Parts) -> Result<(), Refusal> {
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return refuse(
                StatusCode::NOT_IMPLEMENTED,
                "a transfer coding other than chunked",
            );
        }
        if head.version != Version::HTTP_11 {
            return refuse(StatusCode::BAD_REQUEST, "transfer coding");
        }
    }
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let mut several = false;
        for other in lengths {
            several = true;
            if other != length {
                return refuse(StatusCode::BAD_REQUEST, "content lengths that differ");
            }
        }
        if several {
            let length = length.clone();
            head.headers.insert(CONTENT_LENGTH, length);
        }
    }
    Ok(())
}

/// The protocol to change to, if the client asked for one in earnest. `h2c` is not one: behind it,
/// requests would pass without being routed.
fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(UPGRADE)?;
    let h2c = has_token(headers, &UPGRADE, "h2c") || has_token(headers, &UPGRADE, "h2");
    (!h2c && has_token(headers, &CONNECTION, "upgrade")).then(|| protocol.clone())
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().any(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|it| {
            let it = it.split(|byte| *byte == b';').next().unwrap_or_default();
            it.trim_ascii().eq_ignore_ascii_case(token.as_bytes())
        })
    })
}

/// HTTP/2 may send a cookie in crumbs, which HTTP/1.1 does not know (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) -> Result<(), Refusal> {
    let mut crumbs = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else {
        return Ok(());
    };
    let mut joined = [first.as_bytes(), b"; ", second.as_bytes()].concat();
    for crumb in crumbs {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    let joined = HeaderValue::from_maybe_shared(joined).map_err(|_| Refusal {
        status: StatusCode::BAD_REQUEST,
        reason: "malformed cookie",
    })?;
    headers.insert(COOKIE, joined);
    Ok(())
}

/// Which fields a head has that a proxy must look at; one pass, for most heads have none.
#[derive(Debug, Default)]
struct Seen {
    connection: bool,
    keep_alive: bool,
    proxy_connection: bool,
    transfer_encoding: bool,
    upgrade: bool,
    te: bool,
    expect: bool,
    http2_settings: bool,
}

impl Seen {
    fn note(&mut self, name: &HeaderName) {
        let flag = match *name {
            CONNECTION => &mut self.connection,
            TRANSFER_ENCODING => &mut self.transfer_encoding,
            UPGRADE => &mut self.upgrade,
            TE => &mut self.te,
            EXPECT => &mut self.expect,
            _ if *name == KEEP_ALIVE => &mut self.keep_alive,
            _ if *name == PROXY_CONNECTION => &mut self.proxy_connection,
            _ if *name == HTTP2_SETTINGS => &mut self.http2_settings,
            _ => return,
        };
        *flag = true;
    }

    fn strip(&self, headers: &mut HeaderMap) {
        if self.connection {
            strip_named(headers);
            headers.remove(CONNECTION);
        }
        for (seen, name) in [
            (self.keep_alive, KEEP_ALIVE),
            (self.proxy_connection, PROXY_CONNECTION),
            (self.transfer_encoding, TRANSFER_ENCODING),
            (self.upgrade, UPGRADE),
            (self.te, TE),
            (self.http2_settings, HTTP2_SETTINGS),
        ] {
            if seen {
                headers.remove(name);
            }
        }
    }
}

/// Takes off the fields that `connection` names, but for those that must reach the backend.
fn strip_named(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|it| !it.eq_ignore_ascii_case(b"close") && !it.eq_ignore_ascii_case(b"keep-alive"))
        .filter_map(|it| HeaderName::from_bytes(it).ok())
        .filter(|it| ![HOST, CONTENT_LENGTH, TRAILER, CONNECTION].contains(it))
        .collect();
    for name in named {
        headers.remove(name);
    }
}

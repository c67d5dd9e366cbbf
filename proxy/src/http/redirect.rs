//! Redirects: from a request's head and a rule's filter to a status and a `Location`. Pure.

use std::fmt::Write as _;

use http::{HeaderValue, StatusCode, uri::Authority};
use weft_api::config;

use super::{filter::path_modifier, matching::RequestHead, path::PathModifier};

/// A redirect filter (HTTPRequestRedirectFilter).
#[derive(Debug)]
pub struct Redirect {
    scheme: Option<Box<str>>,
    hostname: Option<Box<str>>,
    pub(super) path: Option<PathModifier>,
    port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

impl Redirect {
    pub(super) fn compile(from: &config::Redirect) -> Result<Self, String> {
        let some = |text: &str| (!text.is_empty()).then(|| Box::from(text));
        let status = match from.status {
            0 => StatusCode::FOUND,
            code => u16::try_from(code)
                .ok()
                .and_then(|code| StatusCode::from_u16(code).ok())
                .filter(StatusCode::is_redirection)
                .ok_or_else(|| format!("a redirect can't have status {code}"))?,
        };
        let port = u16::try_from(from.port)
            .map_err(|_| format!("a redirect can't name port {}", from.port))?;
        Ok(Self {
            scheme: some(&from.scheme),
            hostname: some(&from.hostname),
            path: path_modifier(from.path.as_ref())?,
            port: (port != 0).then_some(port),
            status,
        })
    }

    /// The `Location`. `matched` is the prefix that matched, `service_port` the Service's port that
    /// was addressed: it stands for the standard's "listener port". A request without an authority
    /// (HTTP/1.0) gets a location without one, unless the filter names a host.
    ///
    /// The port: the filter's; else, if the filter changes the scheme, the one that the scheme is
    /// known by; else the listener's. It is left out where the scheme implies it.
    pub fn location(
        &self,
        request: &RequestHead<'_>,
        matched: &str,
        service_port: u16,
    ) -> Option<HeaderValue> {
        let mut location = String::with_capacity(64);
        let own = request
            .authority
            .and_then(|it| it.parse::<Authority>().ok());
        let host = self
            .hostname
            .as_deref()
            .or(own.as_ref().map(|it| it.host()));
        if let Some(host) = host {
            let scheme = self.scheme.as_deref().unwrap_or("http");
            let port = self.port.unwrap_or_else(|| {
                let known = self.scheme.as_deref().and_then(well_known_port);
                known.unwrap_or(service_port)
            });
            write!(location, "{scheme}://{host}").ok()?;
            if well_known_port(scheme) != Some(port) {
                write!(location, ":{port}").ok()?;
            }
        }
        match &self.path {
            Some(modifier) => location.push_str(&modifier.apply(request.path, matched)),
            None => location.push_str(request.path),
        }
        if let Some(query) = request.query {
            location.push('?');
            location.push_str(query);
        }
        HeaderValue::try_from(location).ok()
    }
}

fn well_known_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

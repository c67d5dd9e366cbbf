//! Filters of a rule or of one of its backends, compiled: header modifiers, redirect, rewrite, CORS.
//! What flows in is a message's head, what flows out is the head changed. Pure.
//!
//! A modifier never touches what frames a message or belongs to one connection (`connection`,
//! `content-length`, `transfer-encoding`, ...): those lines of it have no effect. `host` in a
//! request modifier's `set` or `add` sets the authority; it can't be removed.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        CONNECTION, CONTENT_LENGTH, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
        TRANSFER_ENCODING, UPGRADE,
    },
    uri::{Authority, PathAndQuery},
};
use weft_api::config::{self, http_filter::Kind};

use super::{cors::Cors, path::PathModifier, redirect::Redirect};

/// The filters of a rule or a backend, by kind, each kind in its order.
#[derive(Debug, Default)]
pub struct Filters {
    /// Changes of the request's header.
    pub request: HeaderModifier,
    /// Changes of the response's header.
    pub response: HeaderModifier,
    /// An answer that sends the client elsewhere.
    pub redirect: Option<Redirect>,
    /// Another authority or path for the backend.
    pub rewrite: Option<Rewrite>,
    /// Whom responses may be shared with; of a rule only.
    pub cors: Option<Box<Cors>>,
}

/// Changes of a header: removals, then replacements, then additions.
#[derive(Debug, Default)]
pub struct HeaderModifier {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    host: Option<Authority>,
}

/// Another authority or path for the backend.
#[derive(Debug, Default)]
pub struct Rewrite {
    /// The new authority.
    pub hostname: Option<Authority>,
    /// The new path.
    pub path: Option<PathModifier>,
}

// === impl Filters ===

impl Filters {
    /// Compiles filters in their order; an error names the one that can't be.
    pub(super) fn compile(filters: &[config::HttpFilter]) -> Result<Self, String> {
        let mut compiled = Self::default();
        for filter in filters {
            match filter.kind.as_ref() {
                Some(Kind::RequestHeaders(from)) => compiled.request.extend(from, true)?,
                Some(Kind::ResponseHeaders(from)) => compiled.response.extend(from, false)?,
                Some(Kind::Redirect(from)) => compiled.redirect = Some(Redirect::compile(from)?),
                Some(Kind::Rewrite(from)) => {
                    compiled.rewrite = Some(Rewrite {
                        hostname: (!from.hostname.is_empty())
                            .then(|| authority(&from.hostname))
                            .transpose()?,
                        path: path_modifier(from.path.as_ref())?,
                    });
                }
                Some(Kind::Cors(from)) => compiled.cors = Some(Box::new(Cors::compile(from)?)),
                None => return Err("a filter is of no kind that this proxy knows".into()),
            }
        }
        Ok(compiled)
    }

    /// Whether a prefix is replaced, which takes a rule that matches by prefix.
    pub(super) fn replaces_prefix(&self) -> bool {
        let redirect = self.redirect.as_ref().and_then(|it| it.path.as_ref());
        let rewrite = self.rewrite.as_ref().and_then(|it| it.path.as_ref());
        [redirect, rewrite]
            .into_iter()
            .flatten()
            .any(|it| matches!(it, PathModifier::Prefix(_)))
    }
}

// === impl HeaderModifier ===

impl HeaderModifier {
    fn extend(&mut self, from: &config::HeaderModifier, request: bool) -> Result<(), String> {
        for name in &from.remove {
            let name = header_name(name)?;
            if !is_protected(&name) && name != HOST {
                self.remove.push(name);
            }
        }
        for (values, to) in [(&from.set, &mut self.set), (&from.add, &mut self.add)] {
            for header in values {
                let name = header_name(&header.name)?;
                if request && name == HOST {
                    self.host = Some(authority(&header.value)?);
                } else if !is_protected(&name) {
                    let value = HeaderValue::from_bytes(header.value.as_bytes()).map_err(|_| {
                        format!("the value of header `{name}` holds control characters")
                    })?;
                    to.push((name, value));
                }
            }
        }
        Ok(())
    }

    /// Changes a header.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
    }

    /// The authority that a request modifier sets.
    pub fn host(&self) -> Option<&Authority> {
        self.host.as_ref()
    }
}

/// Whether a field frames a message or belongs to one connection.
pub(super) fn is_protected(name: &HeaderName) -> bool {
    [
        CONNECTION,
        CONTENT_LENGTH,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ]
    .contains(name)
        || matches!(
            name.as_str(),
            "keep-alive" | "proxy-connection" | "http2-settings"
        )
}

fn header_name(name: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{name}` is not a header name"))
}

fn authority(host: &str) -> Result<Authority, String> {
    host.parse()
        .map_err(|error| format!("`{host}` is not a host name: {error}"))
}

/// Compiles a path modifier, and proves that what it makes can be sent.
pub(super) fn path_modifier(
    from: Option<&config::PathModifier>,
) -> Result<Option<PathModifier>, String> {
    use config::path_modifier::Kind;
    let Some(from) = from else { return Ok(None) };
    let check = |path: &str| {
        let sample = format!("/{}", path.trim_start_matches('/'));
        match PathAndQuery::try_from(sample.as_str()) {
            Ok(parsed) if parsed.path() == sample => Ok(()),
            _ => Err(format!("`{path}` can't be a path")),
        }
    };
    match from.kind.as_ref() {
        Some(Kind::ReplaceFullPath(path)) => {
            check(path)?;
            Ok(Some(PathModifier::Full(path.as_str().into())))
        }
        Some(Kind::ReplacePrefixMatch(path)) => {
            check(path)?;
            Ok(Some(PathModifier::Prefix(
                path.trim_end_matches('/').into(),
            )))
        }
        None => Err("a path modifier has no kind".into()),
    }
}

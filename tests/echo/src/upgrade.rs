//! Upgraded connections: WebSocket's handshake (RFC 6455 section 4) or a plain `Upgrade: echo` in,
//! then bytes come back as they are. Frames are not looked at: what is tested is the tunnel.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use crate::body::{Body, full};
use crate::tcp;

const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A protocol that can be upgraded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    WebSocket,
    Echo,
}

/// What a request asks to be upgraded to, if it does and it can.
pub(crate) fn asked_for<B>(request: &http::Request<B>) -> Option<Protocol> {
    let listed = |name: HeaderName, wanted: &str| {
        let values = request.headers().get_all(name).into_iter();
        let mut words = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|v| v.split(','));
        words.any(|word| word.trim().eq_ignore_ascii_case(wanted))
    };
    if request.version() != Version::HTTP_11 || !listed(CONNECTION, "upgrade") {
        return None;
    }
    match () {
        () if listed(UPGRADE, "websocket") => Some(Protocol::WebSocket),
        () if listed(UPGRADE, "echo") => Some(Protocol::Echo),
        () => None,
    }
}

/// The 101 answer, and the task that echoes once it is sent.
pub(crate) fn accept(
    protocol: Protocol,
    mut request: http::Request<Incoming>,
) -> (Response<Body>, impl Future<Output = ()> + Send + 'static) {
    let upgraded = hyper::upgrade::on(&mut request);
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    match protocol {
        Protocol::WebSocket => {
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            if let Some(accept) = websocket_accept(request.headers()) {
                headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
            }
        }
        Protocol::Echo => {
            headers.insert(UPGRADE, HeaderValue::from_static("echo"));
        }
    }
    let echo = async move {
        match upgraded.await {
            Ok(stream) => {
                let (reader, writer) = tokio::io::split(TokioIo::new(stream));
                tcp::echo(reader, writer).await;
            }
            Err(error) => tracing::debug!("upgrade failed: {error}"),
        }
    };
    (response, echo)
}

fn websocket_accept(headers: &HeaderMap) -> Option<HeaderValue> {
    use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
    let key = headers.get(SEC_WEBSOCKET_KEY)?.to_str().ok()?.trim();
    let hash = digest(
        &SHA1_FOR_LEGACY_USE_ONLY,
        format!("{key}{WEBSOCKET_GUID}").as_bytes(),
    );
    STANDARD.encode(hash).parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_value_is_the_one_of_the_standards_example() {
        let mut headers = HeaderMap::new();
        headers.insert(
            SEC_WEBSOCKET_KEY,
            HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="),
        );
        assert_eq!(
            websocket_accept(&headers).unwrap(),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }
}

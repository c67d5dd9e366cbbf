//! Answers that the proxy makes by itself. To gRPC clients errors are told as gRPC tells them: a
//! response of trailers only, with a status of its own.

use std::borrow::Cow;

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, LOCATION},
};

use super::{body::Source, hop::Refusal, retry::Again};

/// The label of requests that are ambiguous or not for a mesh to serve; their message is bounded.
pub const MALFORMED: &str = "malformed_request";

/// Why a request was not answered by a backend.
#[derive(Debug)]
pub struct Failure {
    /// HTTP status.
    pub status: StatusCode,
    /// A word of the program, for metrics and the access log.
    pub label: &'static str,
    /// For the client's eyes.
    pub message: Cow<'static, str>,
    /// The client's HTTP/1 connection must not be used again.
    pub close: bool,
    /// Whether the request may be sent again.
    pub again: Again,
}

impl Failure {
    /// A failure after which the connection goes on.
    pub fn new(
        status: StatusCode,
        label: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            label,
            message: message.into(),
            close: false,
            again: Again::Never,
        }
    }

    /// Says whether the request may be sent again.
    pub fn again(self, again: Again) -> Self {
        Self { again, ..self }
    }

    /// The answer to a client. `grpc`: it speaks gRPC; `head`: it wants no body.
    pub fn response(&self, grpc: bool, head: bool) -> Response<Source> {
        if grpc {
            return trailers_only(self.status, &self.message);
        }
        let body = (!head).then(|| Bytes::from(format!("weft: {}\n", self.message)));
        let mut response = Response::new(Source::Own(body));
        *response.status_mut() = self.status;
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, text);
        response
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self {
            close: true,
            ..Self::new(refusal.status, MALFORMED, refusal.reason)
        }
    }
}

/// A redirect.
pub fn redirect(status: StatusCode, location: HeaderValue) -> Response<Source> {
    let mut response = Response::new(Source::Own(None));
    *response.status_mut() = status;
    response.headers_mut().insert(LOCATION, location);
    response
}

/// The answer to a preflight; what it says is in the headers that are added to it.
pub fn no_content() -> Response<Source> {
    let mut response = Response::new(Source::Own(None));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

fn trailers_only(status: StatusCode, message: &str) -> Response<Source> {
    let mut response = Response::new(Source::Own(None));
    let headers = response.headers_mut();
    let grpc = HeaderValue::from_static("application/grpc");
    headers.insert(CONTENT_TYPE, grpc);
    headers.insert("grpc-status", HeaderValue::from(grpc_status(status)));
    if let Ok(message) = HeaderValue::try_from(percent_encode(message)) {
        headers.insert("grpc-message", message);
    }
    response
}

/// The gRPC status that stands for an HTTP status (gRPC's "HTTP to gRPC Status Code Mapping",
/// but for 500, which routes answer for backends that do not exist: UNAVAILABLE says the standard;
/// and for 504, which here always means that time was over).
fn grpc_status(status: StatusCode) -> u16 {
    match status {
        StatusCode::BAD_REQUEST => 13,
        StatusCode::UNAUTHORIZED => 16,
        StatusCode::FORBIDDEN => 7,
        StatusCode::NOT_FOUND => 12,
        StatusCode::GATEWAY_TIMEOUT => 4,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::INTERNAL_SERVER_ERROR
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE => 14,
        _ => 2,
    }
}

/// As gRPC wants its message: printable ASCII but the percent sign stays as it is.
fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | 0..=0x1f | 0x7f.. => out.push_str(&format!("%{byte:02X}")),
            _ => out.push(char::from(byte)),
        }
    }
    out
}

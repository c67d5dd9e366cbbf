//! gRPC probes, as a kubelet makes them. In: an address and the name of a service. Out: whether
//! `grpc.health.v1.Health/Check` over HTTP/2 without TLS answers SERVING, or why not.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;

use super::netns;

/// More than any answer to a probe.
const MAX_BODY: usize = 64 << 10;
/// A gRPC message begins with a flag and its length.
const PREFIX: usize = 5;
const SERVING: i32 = 1;
const NOT_SERVING: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct CheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct CheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks from inside a network namespace; the caller bounds the time.
pub(crate) async fn check(netns: &str, to: SocketAddr, service: &str) -> anyhow::Result<()> {
    let stream = netns::connect(netns, to).await?;
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await?;
    let connection = tokio::spawn(connection);
    let result = async {
        let request = http::Request::post(format!("http://{to}/grpc.health.v1.Health/Check"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", "weft-lab")
            .body(Full::new(framed(service)))?;
        let response = sender.send_request(request).await?;
        if response.status() != http::StatusCode::OK {
            bail!("answered {}", response.status());
        }
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await;
        let body = body.map_err(|e| anyhow::anyhow!(e)).context("body")?;
        // An answer without messages has its status in the head.
        let trailers = body.trailers().cloned().unwrap_or(head.headers);
        let text = |name| trailers.get(name).and_then(|value| value.to_str().ok());
        let code = text("grpc-status").context("no grpc-status")?;
        let message = text("grpc-message").unwrap_or_default();
        serving(code, message, &body.to_bytes())
    }
    .await;
    connection.abort();
    result
}

fn framed(service: &str) -> Bytes {
    let request = CheckRequest {
        service: service.to_owned(),
    };
    let length = u32::try_from(request.encoded_len()).unwrap_or(u32::MAX);
    let mut bytes = vec![0];
    bytes.extend(length.to_be_bytes());
    bytes.extend(request.encode_to_vec());
    bytes.into()
}

/// What an answer means. Pure.
fn serving(code: &str, message: &str, body: &[u8]) -> anyhow::Result<()> {
    match code {
        "0" => {}
        "12" => bail!("the server does not implement grpc.health.v1.Health"),
        "5" => bail!("the server does not know the service: {message}"),
        code => bail!("failed with gRPC code {code}: {message}"),
    }
    let message = body.get(PREFIX..).context("an answer without message")?;
    match CheckResponse::decode(message)?.status {
        SERVING => Ok(()),
        NOT_SERVING => bail!("NOT_SERVING"),
        other => bail!("status {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_serving_passes() {
        let cases: [(&str, &[u8], &str); 6] = [
            ("0", &[0, 0, 0, 0, 2, 8, 1], ""),
            ("0", &[0, 0, 0, 0, 2, 8, 2], "NOT_SERVING"),
            ("0", &[0, 0, 0, 0, 0], "status 0"),
            ("0", &[], "without message"),
            ("12", &[], "does not implement"),
            ("14", &[], "code 14: x"),
        ];
        for (code, body, expected) in cases {
            match serving(code, "x", body) {
                Ok(()) => assert_eq!(expected, "", "{code} {body:?}"),
                Err(error) => assert!(error.to_string().contains(expected), "{error}"),
            }
        }
    }

    #[test]
    fn a_request_is_one_message_with_its_length() {
        assert_eq!(&framed("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&framed("a")[..], [0, 0, 0, 0, 3, 0x0a, 1, b'a']);
    }
}

//! A small HTTP/1.1 client that dials from inside a network namespace: probes, the parts'
//! readiness, the controller's debug pages. Answers are bounded.

use std::net::SocketAddr;

use anyhow::Context;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;

use super::netns;

/// More than any debug page of a lab needs.
const MAX_BODY: usize = 16 << 20;

/// A GET request.
pub(crate) struct Get<'a> {
    pub(crate) to: SocketAddr,
    /// The Host header; the address if absent.
    pub(crate) host: Option<&'a str>,
    pub(crate) path: &'a str,
    pub(crate) headers: &'a [(String, String)],
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

/// Sends a request from the namespace; the caller bounds the time.
pub(crate) async fn get(netns: &str, request: Get<'_>) -> anyhow::Result<Answer> {
    let stream = netns::connect(netns, request.to).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let host = request
        .host
        .map_or_else(|| request.to.to_string(), ToOwned::to_owned);
    let mut message = http::Request::get(request.path)
        .header("user-agent", "weft-lab")
        .header("connection", "close");
    if !request
        .headers
        .iter()
        .any(|(name, _)| name.eq_ignore_ascii_case("host"))
    {
        message = message.header("host", host);
    }
    for (name, value) in request.headers {
        message = message.header(name, value);
    }
    let result = async {
        let response = sender
            .send_request(message.body(Empty::<Bytes>::new())?)
            .await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let body = body
            .map_err(|e| anyhow::anyhow!(e))
            .context("body")?
            .to_bytes();
        Ok(Answer { status, body })
    }
    .await;
    connection.abort();
    result
}

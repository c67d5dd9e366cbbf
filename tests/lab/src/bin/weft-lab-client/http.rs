//! Single requests, each on a connection of its own.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request as HttpRequest, Uri, header::HOST};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use weft_lab_tests::{Answer, Request};

/// As much of a body as a test wants to read.
const TEXT: usize = 64 << 10;

/// Makes the requests one after the other.
pub(crate) async fn all(requests: Vec<Request>) -> Vec<Answer> {
    let mut answers = Vec::with_capacity(requests.len());
    for request in requests {
        let start = Instant::now();
        let limit = Duration::from_millis(if request.timeout_ms == 0 {
            10_000
        } else {
            request.timeout_ms
        });
        let mut answer = Answer::default();
        match tokio::time::timeout(limit, one(&request, &mut answer)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => answer.error = Some(format!("{error:#}")),
            Err(_) => answer.error = Some(format!("no whole answer within {limit:?}")),
        }
        answer.millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        answers.push(answer);
    }
    answers
}

/// What to dial for a URL.
pub(crate) fn authority(uri: &Uri) -> Result<String> {
    let host = uri.host().context("the URL has no host")?;
    Ok(format!("{host}:{}", uri.port_u16().unwrap_or(80)))
}

async fn one(request: &Request, answer: &mut Answer) -> Result<()> {
    let uri: Uri = request.url.parse()?;
    let stream = TcpStream::connect(authority(&uri)?)
        .await
        .context("connect")?;
    stream.set_nodelay(true)?;
    let method = if request.method.is_empty() {
        "GET"
    } else {
        &request.method
    };
    let mut built = HttpRequest::builder().method(method);
    let own_host = request
        .headers
        .iter()
        .any(|(n, _)| n.eq_ignore_ascii_case("host"));
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    if request.h2 {
        built = built.uri(uri.clone());
    } else {
        built = built.uri(path);
        if !own_host {
            built = built.header(
                HOST,
                uri.authority().context("the URL has no host")?.as_str(),
            );
        }
    }
    for (name, value) in &request.headers {
        built = built.header(name, value);
    }
    let built = built.body(Full::new(Bytes::from(request.body.clone())))?;
    let io = TokioIo::new(stream);
    let response = if request.h2 {
        let (mut send, driver) = conn::http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(driver);
        send.send_request(built).await
    } else {
        let (mut send, driver) = conn::http1::handshake(io).await?;
        tokio::spawn(driver);
        send.send_request(built).await
    };
    read(response?, answer).await
}

async fn read(response: hyper::Response<Incoming>, answer: &mut Answer) -> Result<()> {
    let pairs = |map: &http::HeaderMap| {
        let text = |v: &http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
        map.iter()
            .map(|(n, v)| (n.to_string(), text(v)))
            .collect::<Vec<_>>()
    };
    answer.status = response.status().as_u16();
    answer.headers = pairs(response.headers());
    let body = response
        .into_body()
        .collect()
        .await
        .context("reading the body")?;
    answer.trailers = body.trailers().map(pairs).unwrap_or_default();
    let body = body.to_bytes();
    answer.body_bytes = body.len() as u64;
    answer.body = String::from_utf8_lossy(&body[..body.len().min(TEXT)]).into_owned();
    Ok(())
}

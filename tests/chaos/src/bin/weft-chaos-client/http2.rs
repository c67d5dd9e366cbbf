//! HTTP/2 with prior knowledge and gRPC: several requests at once on a connection. A lane in, checked
//! answers out.
//!
//! A connection on which GOAWAY has come takes no new request, and what is under way on it must be
//! answered. Only a request that was never written goes to another connection.

use std::{
    error::Error as _,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::http2::{SendRequest, handshake},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{task::JoinHandle, time::timeout};
use weft_chaos::record::{Cause, Conn, Kind, PATIENCE, now};
use weft_echo::proto::{EchoReply, EchoRequest};

use crate::{Shared, Wrong};

/// Requests at once on a connection.
const AT_ONCE: usize = 3;

/// A connection that several requests use.
struct Connection {
    send: SendRequest<Full<Bytes>>,
    conn: Mutex<Conn>,
    driver: JoinHandle<hyper::Result<()>>,
    until: Instant,
}

pub(crate) async fn run(shared: &Arc<Shared>) {
    while !shared.is_stopping() {
        let until = Instant::now() + shared.life();
        let Some((stream, conn)) = shared.connect().await else {
            continue;
        };
        let (began, io) = (now(), TokioIo::new(stream));
        let (send, driver) = match handshake(TokioExecutor::new(), io).await {
            Ok(made) => made,
            Err(error) => {
                let wrong = wrong(&error);
                shared.recorder.failed(&shared.lane, &conn, began, &wrong);
                continue;
            }
        };
        let held = Arc::new(Connection {
            send,
            conn: Mutex::new(conn),
            driver: tokio::spawn(driver),
            until,
        });
        let users = (0..AT_ONCE).map(|_| tokio::spawn(user(Arc::clone(shared), Arc::clone(&held))));
        for user in users.collect::<Vec<_>>() {
            let _ = user.await;
        }
        finish(shared, held).await;
    }
}

/// How the connection ended, once nobody uses it any more.
async fn finish(shared: &Shared, held: Arc<Connection>) {
    let Some(Connection {
        send, conn, driver, ..
    }) = Arc::into_inner(held)
    else {
        return;
    };
    let theirs = send.is_closed();
    drop(send);
    if theirs {
        shared.recorder.closed_in_order(&shared.lane.name);
    }
    // GOAWAY with NO_ERROR is no error of hyper's; a reset is.
    if let Ok(Ok(Err(error))) = timeout(Duration::from_secs(5), driver).await {
        let found = wrong(&error);
        if found.cause == Cause::Reset {
            let idle = Wrong::new(Cause::ResetIdle, found.detail);
            shared
                .recorder
                .failed(&shared.lane, &conn.into_inner(), now(), &idle);
        }
    }
}

async fn user(shared: Arc<Shared>, held: Arc<Connection>) {
    while !shared.is_stopping() && Instant::now() < held.until {
        let (began, start) = (now(), Instant::now());
        match timeout(PATIENCE, one(&shared, &held)).await {
            Ok(Ok(true)) => shared.recorder.ok(&shared.lane.name, start),
            Ok(Ok(false)) => return,
            Ok(Err(wrong)) => {
                let conn = held.conn.lock().clone();
                shared.recorder.failed(&shared.lane, &conn, began, &wrong);
                return;
            }
            Err(_) => {
                let conn = held.conn.lock().clone();
                let detail = format!("no whole answer within {PATIENCE:?}");
                let wrong = Wrong::new(Cause::Timeout, detail);
                shared.recorder.failed(&shared.lane, &conn, began, &wrong);
                return;
            }
        }
        shared.pause().await;
    }
}

/// One request; false if the connection took none any more.
async fn one(shared: &Shared, held: &Connection) -> Result<bool, Wrong> {
    let nonce = format!("{:016x}", rand::random::<u64>());
    let grpc = shared.lane.kind == Kind::Grpc;
    let request = if grpc {
        call(&shared.lane.to, &nonce)
    } else {
        post(&shared.lane.to, &nonce)
    };
    let request = request.map_err(|error| Wrong::new(Cause::Protocol, error.to_string()))?;
    let mut send = held.send.clone();
    if send.ready().await.is_err() {
        return Ok(false);
    }
    let response = match send.try_send_request(request).await {
        Ok(response) => response,
        Err(error) if error.message().is_some() => return Ok(false),
        Err(error) => return Err(wrong(&error.into_error())),
    };
    let seen = read(response, grpc).await?;
    let mut conn = held.conn.lock();
    conn.backend = seen.pod;
    conn.answered += 1;
    if seen.message != nonce {
        return Err(Wrong::new(
            Cause::Body,
            format!("{:?} for {nonce:?}", seen.message),
        ));
    }
    shared.check(&seen.version, &seen.peer, &conn)?;
    Ok(true)
}

fn post(to: &str, nonce: &str) -> http::Result<Request<Full<Bytes>>> {
    Request::post(format!("http://{to}/")).body(Full::new(Bytes::from(nonce.to_owned())))
}

fn call(to: &str, nonce: &str) -> http::Result<Request<Full<Bytes>>> {
    let message = EchoRequest {
        message: nonce.to_owned(),
        ..EchoRequest::default()
    };
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut body = vec![0];
    body.extend(length.to_be_bytes());
    body.extend(message);
    Request::post(format!("http://{to}/weft.echo.v1.Echo/Unary"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(body.into()))
}

/// The echo's JSON, as much of it as is checked.
#[derive(serde::Deserialize)]
struct Json {
    pod: String,
    version: String,
    peer: String,
    body: Option<String>,
}

async fn read(response: Response<Incoming>, grpc: bool) -> Result<EchoReply, Wrong> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| wrong(&error))?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    let bytes = body.to_bytes();
    if head.status != 200 {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]);
        return Err(Wrong::new(
            Cause::Status,
            format!("{}: {}", head.status.as_u16(), text.trim()),
        ));
    }
    let not_echo = || Wrong::new(Cause::Body, "the answer is not the echo's");
    if !grpc {
        let json: Json = serde_json::from_slice(&bytes).map_err(|_| not_echo())?;
        return Ok(EchoReply {
            message: json.body.unwrap_or_default(),
            pod: json.pod,
            version: json.version,
            peer: json.peer,
            ..EchoReply::default()
        });
    }
    let field = |map: &HeaderMap, name: &str| {
        map.get(name)
            .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
    };
    let status = field(&trailers, "grpc-status").or_else(|| field(&head.headers, "grpc-status"));
    if status.as_deref() != Some("0") {
        let message = field(&trailers, "grpc-message")
            .or_else(|| field(&head.headers, "grpc-message"))
            .unwrap_or_default();
        return Err(Wrong::new(
            Cause::Status,
            format!("grpc-status {}: {message}", status.unwrap_or_default()),
        ));
    }
    let message = bytes.get(5..).ok_or_else(not_echo)?;
    EchoReply::decode(message).map_err(|_| not_echo())
}

/// What an error of hyper's means.
fn wrong(error: &hyper::Error) -> Wrong {
    let mut words = error.to_string();
    let mut cause = Cause::Reset;
    let mut source = error.source();
    while let Some(inner) = source {
        words += &format!(": {inner}");
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            cause = Wrong::io(io).cause;
        }
        source = inner.source();
    }
    if error.is_incomplete_message() || error.is_closed() {
        cause = Cause::Eof;
    }
    Wrong::new(cause, words)
}

//! One HTTP request: what came in is written down as an [`Answer`], and answered as it asked to be.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aws_lc_rs::digest;
use http::header::{CONTENT_TYPE, HOST, TRAILER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::BoxError;
use crate::answer::{Answer, Identity, SMALL_BODY};
use crate::behaviour::{Behaviour, End, query_parameter, switch};
use crate::body::{self, Body, full};
use crate::grpc::{EchoService, Seen};
use crate::heads::Heads;
use crate::health::{self, HealthService};
use crate::health_proto::health_server::HealthServer;
use crate::proto::echo_server::EchoServer;
use crate::upgrade;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) identity: Identity,
    pub(crate) ready: AtomicBool,
    pub(crate) draining: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

/// One TCP connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) number: u64,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) requests: AtomicU64,
    pub(crate) heads: Mutex<Heads>,
    /// A request asked for the connection's end.
    pub(crate) ended: CancellationToken,
    /// It is to end by a TCP reset.
    pub(crate) reset: AtomicBool,
}

/// Answers one request. An error ends the connection (HTTP/1) or resets the stream (HTTP/2).
pub(crate) async fn handle(
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, BoxError> {
    let number = connection.requests.fetch_add(1, Ordering::Relaxed) + 1;
    let head = connection.heads.lock().take();
    if is_grpc(request.headers()) {
        if request.uri().path().starts_with(health::PREFIX) {
            let mut service = HealthServer::new(HealthService(Arc::clone(&shared)));
            let response = service
                .call(request)
                .await
                .unwrap_or_else(|never| match never {});
            return Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()));
        }
        let seen = Seen::new(&request, connection.peer.to_string(), &shared.identity);
        request.extensions_mut().insert(seen);
        let mut service = EchoServer::new(EchoService);
        let response = service
            .call(request)
            .await
            .unwrap_or_else(|never| match never {});
        return Ok(response.map(|body| body.map_err(BoxError::from).boxed_unsync()));
    }
    if let Some(response) = probe(&shared, &request) {
        return Ok(response);
    }
    let behaviour = match Behaviour::parse(request.uri().query(), request.headers()) {
        Ok(behaviour) => behaviour,
        Err(error) => return Ok(text(StatusCode::BAD_REQUEST, &error.to_string())),
    };
    tokio::time::sleep(behaviour.delay).await;
    if let Some(end) = behaviour.end {
        return Err(end_connection(&connection, end).await);
    }
    if let Some(protocol) = upgrade::asked_for(&request) {
        connection.heads.lock().stop();
        let (response, echo) = upgrade::accept(protocol, request);
        shared.tasks.spawn(echo);
        return Ok(response);
    }
    let headers = head.unwrap_or_else(|| pairs(request.headers()));
    answer(&shared, &connection, request, behaviour, headers, number).await
}

async fn answer(
    shared: &Shared,
    connection: &Connection,
    request: Request<Incoming>,
    behaviour: Behaviour,
    headers: Vec<(String, String)>,
    number: u64,
) -> Result<Response<Body>, BoxError> {
    let mut status = behaviour.status.unwrap_or(StatusCode::OK);
    if behaviour.fail > 0.0 && rand::random::<f64>() < behaviour.fail {
        status = StatusCode::INTERNAL_SERVER_ERROR;
    }
    let empty = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let (head, incoming) = request.into_parts();
    let mut content_type = "application/octet-stream";
    let mut body = if empty {
        full("")
    } else if behaviour.echo {
        incoming.map_err(BoxError::from).boxed_unsync()
    } else {
        // The whole request is read before anything else is answered, so that its end is seen.
        let received = receive(incoming, behaviour.digest).await?;
        if let Some(length) = behaviour.bytes {
            body::pattern(length)
        } else if let Some(count) = behaviour.stream {
            body::pieces(count, behaviour.interval)
        } else {
            content_type = "application/json";
            let answer = Answer {
                identity: shared.identity.clone(),
                protocol: protocol(head.version).to_owned(),
                method: head.method.to_string(),
                path: head.uri.path().to_owned(),
                query: head.uri.query().unwrap_or_default().to_owned(),
                host: host(&head),
                headers,
                peer: connection.peer,
                peer_ip: connection.peer.ip(),
                local: connection.local,
                connection: connection.number,
                request: number,
                body_length: received.length,
                body: received.small,
                body_sha256: received.sha256,
                trailers: received.trailers,
            };
            full(serde_json::to_string(&answer)? + "\n")
        }
    };
    if behaviour.trailers {
        body = body::with_trailer(body);
    }
    if let Some(length) = behaviour.cut {
        body = body::cut(body, length);
    }
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if !empty {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    if behaviour.trailers {
        headers.insert(TRAILER, HeaderValue::from_static("x-echo-trailer"));
    }
    // On every answer, so that a client can count without reading bodies.
    for (name, value) in [
        ("x-echo-pod", &shared.identity.pod),
        ("x-echo-version", &shared.identity.version),
    ] {
        if let Ok(value) = value.parse() {
            headers.insert(name, value);
        }
    }
    headers.extend(
        behaviour
            .headers
            .into_iter()
            .map(|(name, value)| (Some(name), value)),
    );
    Ok(response)
}

/// A request's body, read to its end.
#[derive(Default)]
struct Received {
    length: u64,
    small: Option<String>,
    sha256: Option<String>,
    trailers: Vec<(String, String)>,
}

async fn receive(mut body: Incoming, digest: bool) -> Result<Received, BoxError> {
    let mut received = Received::default();
    let mut start = Vec::new();
    let mut context = digest.then(|| digest::Context::new(&digest::SHA256));
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => {
                received.length += data.len() as u64;
                start.extend_from_slice(&data[..data.len().min(SMALL_BODY + 1 - start.len())]);
                if let Some(context) = &mut context {
                    context.update(&data);
                }
            }
            Err(frame) => {
                received
                    .trailers
                    .extend(frame.trailers_ref().map(pairs).unwrap_or_default());
            }
        }
    }
    if start.len() <= SMALL_BODY {
        received.small = Some(String::from_utf8_lossy(&start).into_owned());
    }
    received.sha256 = context.map(|context| {
        context
            .finish()
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    });
    Ok(received)
}

/// `/healthz` and `/readyz`: for the kubelet's probes, and for tests that take a pod out of service.
fn probe<B>(shared: &Shared, request: &Request<B>) -> Option<Response<Body>> {
    match (request.uri().path(), request.method()) {
        ("/healthz", _) => Some(text(StatusCode::OK, "alive")),
        ("/readyz", &Method::POST) => {
            let wanted = query_parameter(request.uri().query().unwrap_or_default(), "ready");
            let Some(ready) = wanted.as_deref().and_then(switch) else {
                return Some(text(
                    StatusCode::BAD_REQUEST,
                    "say ?ready=true or ?ready=false",
                ));
            };
            shared.ready.store(ready, Ordering::Relaxed);
            Some(text(
                StatusCode::OK,
                if ready { "ready" } else { "not ready" },
            ))
        }
        ("/readyz", _) if shared.draining.is_cancelled() => {
            Some(text(StatusCode::SERVICE_UNAVAILABLE, "draining"))
        }
        ("/readyz", _) if shared.ready.load(Ordering::Relaxed) => {
            Some(text(StatusCode::OK, "ready"))
        }
        ("/readyz", _) => Some(text(StatusCode::SERVICE_UNAVAILABLE, "not ready")),
        _ => None,
    }
}

/// Has the connection's task end it, and never returns if that is the way to go.
async fn end_connection(connection: &Connection, end: End) -> BoxError {
    match end {
        // hyper resets the stream with the reason that it finds in the error.
        End::ResetStream => return h2::Error::from(h2::Reason::INTERNAL_ERROR).into(),
        End::Reset => connection.reset.store(true, Ordering::Relaxed),
        End::Close => {}
    }
    connection.ended.cancel();
    std::future::pending().await
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

fn host(head: &http::request::Parts) -> String {
    let authority = head.uri.authority().map(ToString::to_string);
    let field = || head.headers.get(HOST).map(|value| value.as_bytes());
    authority.unwrap_or_else(|| String::from_utf8_lossy(field().unwrap_or_default()).into_owned())
}

fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers
        .iter()
        .map(|(name, value)| (name.to_string(), text(value)))
        .collect()
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

fn text(status: StatusCode, message: &str) -> Response<Body> {
    let mut response = Response::new(full(format!("{message}\n")));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

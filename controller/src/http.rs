//! The controller's HTTP interfaces: readiness and metrics, and on a port of its own, which only the
//! host should reach, what people look at when they debug: that shows the whole configuration.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Bytes, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::{net::TcpListener, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{metrics::Metrics, publish::hub::Hub, state::State};

/// A client that has not sent its request's headers by then is not served.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait when the system gives no connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a listener answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Readiness and metrics.
    Open,
    /// Everything.
    Debug,
}

/// Answers questions about the controller.
pub struct Http {
    /// Cancelled once everything is read and the gRPC port is served.
    pub ready: CancellationToken,
    /// Resources and proxies.
    pub hub: Arc<Hub>,
    /// What could not be read.
    pub state: Arc<State>,
    /// Counters.
    pub metrics: Metrics,
}

impl Http {
    /// Serves until the future is dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, pages: Pages) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let http = Arc::clone(&self);
            tokio::spawn(async move {
                let service = service_fn(|request| {
                    let response = http.answer(&request, pages);
                    async { Ok::<_, Infallible>(response) }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADERS_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    }

    fn answer<B>(&self, request: &Request<B>, pages: Pages) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served\n");
        }
        match request.uri().path() {
            "/ready" if self.ready.is_cancelled() => text(StatusCode::OK, "ready\n"),
            "/ready" => text(
                StatusCode::SERVICE_UNAVAILABLE,
                "the source's objects are still being read\n",
            ),
            "/metrics" => with_type(
                StatusCode::OK,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                self.metrics.text(),
            ),
            path if pages == Pages::Open && path.starts_with("/debug/") => text(
                StatusCode::FORBIDDEN,
                "the debug pages are on the address of --debug\n",
            ),
            "/debug/proxies" => json(&self.hub.proxies()),
            "/debug/tables" => json(&self.hub.dump()),
            "/debug/invalid" => json(&self.state.invalid()),
            _ => text(
                StatusCode::NOT_FOUND,
                "there are /ready, /metrics, /debug/proxies, /debug/tables and /debug/invalid\n",
            ),
        }
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    with_type(status, "text/plain; charset=utf-8", body)
}

fn json(value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_string_pretty(value) {
        Ok(body) => with_type(StatusCode::OK, "application/json", body),
        Err(error) => with_type(
            StatusCode::INTERNAL_SERVER_ERROR,
            "text/plain; charset=utf-8",
            format!("the answer can't be encoded: {error}\n"),
        ),
    }
}

fn with_type(
    status: StatusCode,
    kind: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert("content-type", http::HeaderValue::from_static(kind));
    response
}

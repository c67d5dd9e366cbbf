//! The proxy's own HTTP: metrics, readiness, and the admin pages on loopback. What other modules
//! register here (conditions, pages) flows in, small HTTP/1.1 answers flow out.

use std::{
    collections::BTreeMap, convert::Infallible, fmt, net::IpAddr, sync::Arc, time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::Semaphore, time};
use tokio_util::sync::CancellationToken;

use crate::{
    gate::Gate,
    state::State,
    telemetry::{self, Telemetry},
};

#[cfg(test)]
mod tests;

/// Connections per listener: scrapers and probes are few; whoever else can reach the port must
/// not be able to take the proxy's memory.
const CONNECTIONS: usize = 64;
/// For a request's head: a client that opens a connection and says nothing loses it.
const HEAD: Duration = Duration::from_secs(10);
/// After an error of `accept` (descriptors are short): not in a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

// === Readiness ===

/// What keeps the proxy from being ready: conditions by name, each with its reason while it fails.
#[derive(Debug, Default)]
pub struct Readiness {
    failing: Mutex<BTreeMap<&'static str, String>>,
    /// What does not go on though the proxy serves, by condition.
    noted: Mutex<BTreeMap<&'static str, String>>,
}

/// One condition of [`Readiness`]. What it said last stays when it is dropped: whoever ends in a
/// panic does not make the proxy ready.
#[derive(Debug)]
pub struct Condition {
    name: &'static str,
    of: Arc<Readiness>,
}

impl Readiness {
    /// Ready as long as nobody registers a condition.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Adds a condition, which fails until [`Condition::ready`].
    pub fn condition(self: &Arc<Self>, name: &'static str, reason: impl Into<String>) -> Condition {
        let condition = Condition {
            name,
            of: Arc::clone(self),
        };
        condition.unready(reason);
        condition
    }

    /// Why the proxy is not ready: `name: reason`. Empty: it is.
    pub fn reasons(&self) -> Vec<String> {
        let failing = self.failing.lock();
        failing
            .iter()
            .map(|(name, reason)| format!("{name}: {reason}"))
            .collect()
    }

    /// `ready`, and a line for each thing that does not go on all the same.
    fn notes(&self) -> String {
        let noted = self.noted.lock();
        let lines = noted.iter().map(|(name, note)| format!("{name}: {note}\n"));
        std::iter::once("ready\n".to_owned()).chain(lines).collect()
    }
}

impl Condition {
    /// It holds.
    pub fn ready(&self) {
        self.of.failing.lock().remove(self.name);
        self.of.noted.lock().remove(self.name);
    }

    /// What a person should know though it holds; until [`Condition::ready`].
    pub fn note(&self, note: impl Into<String>) {
        self.of.noted.lock().insert(self.name, note.into());
    }

    /// It fails.
    pub fn unready(&self, reason: impl Into<String>) {
        self.of.failing.lock().insert(self.name, reason.into());
    }
}

// === Pages ===

type Page = Box<dyn Fn(&Request<Incoming>) -> Response<Full<Bytes>> + Send + Sync>;

/// What one listener serves, by path.
#[derive(Default)]
pub struct Pages {
    pages: BTreeMap<&'static str, (Method, Page)>,
    gate: Option<Gate>,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.pages.keys()).finish()
    }
}

impl Pages {
    /// `/metrics`: OpenMetrics text.
    pub fn metrics(telemetry: Arc<Telemetry>) -> Self {
        Self::default().page("/metrics", Method::GET, move |_| {
            answer(StatusCode::OK, telemetry::CONTENT_TYPE, telemetry.encode())
        })
    }

    /// `/ready`: 200 with what does not go on all the same, or 503 with the reasons; one per line.
    pub fn ready(readiness: Arc<Readiness>) -> Self {
        Self::default().page("/ready", Method::GET, move |_| {
            let reasons = readiness.reasons();
            if reasons.is_empty() {
                text(StatusCode::OK, readiness.notes())
            } else {
                let reasons = reasons.join("\n") + "\n";
                text(StatusCode::SERVICE_UNAVAILABLE, reasons)
            }
        })
    }

    /// `/config`: the configuration in force. Add the other admin pages with [`Self::json`].
    pub fn admin(state: Arc<State>) -> Self {
        Self::default().json("/config", move || state.dump())
    }

    /// Only for those that the gate admits.
    #[must_use]
    pub fn behind(mut self, gate: Gate) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Adds a page that shows a JSON document of the moment.
    #[must_use]
    pub fn json(
        self,
        path: &'static str,
        document: impl Fn() -> serde_json::Value + Send + Sync + 'static,
    ) -> Self {
        self.page(path, Method::GET, move |_| {
            let mut body = format!("{:#}", document());
            body.push('\n');
            answer(StatusCode::OK, "application/json", body)
        })
    }

    /// Adds `POST /log?level=FILTER`: `set` takes the filter, or says what is wrong with it.
    #[must_use]
    pub fn log_level(
        self,
        set: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.page("/log", Method::POST, move |request| {
            let query = request.uri().query().unwrap_or_default();
            let level = query
                .split('&')
                .find_map(|pair| pair.strip_prefix("level="));
            match level.map(&set) {
                Some(Ok(())) => text(StatusCode::OK, "done\n"),
                Some(Err(reason)) => text(StatusCode::BAD_REQUEST, reason + "\n"),
                None => text(
                    StatusCode::BAD_REQUEST,
                    "expected ?level=FILTER, such as debug or weft_proxy=trace\n",
                ),
            }
        })
    }

    fn page(
        mut self,
        path: &'static str,
        method: Method,
        page: impl Fn(&Request<Incoming>) -> Response<Full<Bytes>> + Send + Sync + 'static,
    ) -> Self {
        self.pages.insert(path, (method, Box::new(page)));
        self
    }

    fn respond(&self, request: &Request<Incoming>, from: IpAddr) -> Response<Full<Bytes>> {
        if let Some(Err(reason)) = self.gate.as_ref().map(|gate| gate.admit(from)) {
            return text(StatusCode::FORBIDDEN, reason + "\n");
        }
        match self.pages.get(request.uri().path()) {
            Some((method, page)) if request.method() == method => page(request),
            // hyper leaves the body out.
            Some((method, page)) if request.method() == Method::HEAD && method == Method::GET => {
                page(request)
            }
            Some((method, _)) => text(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("this page takes {method}\n"),
            ),
            None => {
                let known: Vec<_> = self.pages.keys().copied().collect();
                text(
                    StatusCode::NOT_FOUND,
                    format!("there are: {}\n", known.join(" ")),
                )
            }
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    answer(status, "text/plain; charset=utf-8", body)
}

fn answer(
    status: StatusCode,
    media: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let media = http::HeaderValue::from_static(media);
    response.headers_mut().insert(CONTENT_TYPE, media);
    response
}

// === Serving ===

/// Serves the pages until `shutdown`.
pub async fn serve(listener: TcpListener, pages: Pages, shutdown: CancellationToken) {
    let pages = Arc::new(pages);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = accepted => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::debug!("cannot accept on an admin port: {e}");
                time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let pages = Arc::clone(&pages);
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = pages.respond(&request, peer.ip());
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = shutdown.cancelled() => {}
                result = connection => if let Err(e) = result {
                    tracing::debug!("an admin connection broke: {e}");
                },
            }
            drop(permit);
        });
    }
}

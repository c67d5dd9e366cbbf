//! Whether the node can take pods into the mesh, for the kubelet, for metrics, and for the node's taint.
//!
//! Flows in: what the agent's parts know of themselves. Flows out: `ready`, and two pages of HTTP.

use std::{collections::BTreeMap, convert::Infallible, fmt::Write, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header::CONTENT_TYPE,
    server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tracing::{debug, info, warn};

use super::{Context, Ordering};
use crate::install;

/// Whoever can reach the port must not take all of the agent's descriptors.
const CONNECTIONS: usize = 16;
/// For a request's head, and between requests.
const PATIENCE: Duration = Duration::from_secs(10);
/// After an error of `accept`: not in a busy loop.
const PAUSE: Duration = Duration::from_millis(100);
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Why no pod could join now: `part: reason`. Empty: it could.
fn reasons(context: &Context) -> Vec<String> {
    let mut reasons = Vec::new();
    if *context.uninstall.ordered.borrow() {
        reasons.push("uninstall: ordered; pods leave the mesh".to_owned());
    }
    if !context.synced.load(Ordering::Acquire) {
        reasons.push("objects: namespaces and pods have not been read yet".to_owned());
    }
    if let Some(chain) = &context.chain {
        match &*chain.borrow() {
            install::State::Chained(_) => {}
            install::State::Not(reason) => reasons.push(format!("chain: {reason}")),
            install::State::Removed => reasons.push("chain: weft-cni was taken out".to_owned()),
        }
    }
    if context.proxies.status().is_empty() {
        reasons.push(
            "proxy: none is connected; is weft-proxy running on this node, and has it its configuration (its /ready tells)?"
                .to_owned(),
        );
    }
    reasons
}

/// Keeps `ready` true to [`reasons`].
pub(super) async fn follow(context: Arc<Context>, ready: watch::Sender<bool>) {
    let mut objects = context.objects_version.subscribe();
    let mut proxies = context.proxies.changes();
    let mut chain = context.chain.clone();
    loop {
        let now = reasons(&context).is_empty();
        let changed = ready.send_if_modified(|ready| std::mem::replace(ready, now) != now);
        if changed && now {
            info!("pods can join the mesh");
        }
        let chain = async {
            let changed = match &mut chain {
                Some(chain) => chain.changed().await.is_ok(),
                None => false,
            };
            if !changed {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            _ = objects.changed() => {}
            _ = proxies.changed() => {}
            () = chain => {}
        }
    }
}

/// Serves `/ready` and `/metrics` for ever.
pub(super) async fn serve(context: Arc<Context>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "a connection to /ready could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let context = context.clone();
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let response = answer(&context, &request);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                debug!(%error, "a connection to /ready ended");
            }
            drop(permit);
        });
    }
}

fn answer(context: &Context, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/ready") => {
            let reasons = reasons(context);
            if reasons.is_empty() {
                (StatusCode::OK, "text/plain", "ready\n".to_owned())
            } else {
                let text = reasons.join("\n") + "\n";
                (StatusCode::SERVICE_UNAVAILABLE, "text/plain", text)
            }
        }
        (&Method::GET, "/metrics") => (StatusCode::OK, METRICS, metrics(context)),
        _ => {
            let text = "there are /ready and /metrics\n".to_owned();
            (StatusCode::NOT_FOUND, "text/plain", text)
        }
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn metrics(context: &Context) -> String {
    // All of them always: a series that is absent looks like one that is not scraped.
    let mut sandboxes = BTreeMap::from([("in", 0), ("joining", 0), ("leaving", 0), ("out", 0)]);
    let mut failing = 0;
    for handle in context.workers.lock().values() {
        let view = handle.view.borrow();
        let phase = view.state.phase.as_str();
        let state = phase.split(':').next().unwrap_or(phase);
        if let Some(count) = sandboxes.get_mut(state) {
            *count += 1;
        }
        failing += usize::from(view.error.is_some());
    }
    let puts = context
        .chain
        .as_ref()
        .map_or(0, |chain| match &*chain.borrow() {
            install::State::Chained(puts) => *puts,
            _ => 0,
        });
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, series: &[(String, usize)]| {
        // To a String nothing fails.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (labels, value) in series {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let one = |value: usize| [(String::new(), value)];
    gauge(
        "weft_agent_ready",
        "Whether pods of this node can join the mesh.",
        &one(usize::from(reasons(context).is_empty())),
    );
    gauge(
        "weft_agent_proxies",
        "Proxies that are connected to the agent.",
        &one(context.proxies.status().len()),
    );
    gauge(
        "weft_agent_sandboxes_failing",
        "Sandboxes whose last step failed; it is tried again.",
        &one(failing),
    );
    gauge(
        "weft_agent_chain_puts",
        "How often the agent has put weft-cni into the CNI chain; beyond 1, others rewrite it.",
        &one(usize::try_from(puts).unwrap_or(usize::MAX)),
    );
    let sandboxes: Vec<_> = sandboxes
        .into_iter()
        .map(|(state, count)| (format!("{{state=\"{state}\"}}"), count))
        .collect();
    gauge("weft_agent_sandboxes", "Sandboxes by state.", &sandboxes);
    text
}

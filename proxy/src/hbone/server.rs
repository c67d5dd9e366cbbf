//! The server's end of a tunnel. In flow connections on 15008; out flow, for each CONNECT that
//! names an address of this pod, a connection to the application from the client's own address.

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use weft_api::names::HEADER_SANDBOX;
use weft_certs::{SpiffeId, VerifyError, tls};

use super::{
    Usage,
    connect::PROXY_STATUS,
    describe,
    pool::StreamGuard,
    server_builder, stream,
    watch::{End, watch},
};
use crate::{
    copy::{TcpSide, copy},
    io::ConnectError,
    limits::Limit,
    pods::Pod,
    report::{Failure, Record},
    settings::is_own_port,
    socket::{self, Source},
    telemetry::{Side, Tunnel},
};

/// Who dialled.
#[derive(Clone, Debug)]
struct Peer {
    address: SocketAddr,
    identity: SpiffeId,
}

/// CONNECTs of one tunnel that the client gave up before they were answered, less those that it did
/// not. Each costs a connection to the application, and the client next to nothing.
#[derive(Debug, Default)]
struct Abandoned(AtomicUsize);

/// As a client may that is in a hurry and whose server is not.
const ABANDONED: usize = 50;
/// Who has abandoned more must want a connection for this long before the application is asked for
/// one: what is reset at once, as floods do, then costs no more than it is read.
const HESITATION: Duration = Duration::from_millis(20);

impl Abandoned {
    fn count(&self, abandoned: bool) {
        let next = |count: usize| match abandoned {
            true => Some((count + 1).min(2 * ABANDONED)),
            // None: zero stays zero.
            false => count.checked_sub(1),
        };
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    async fn wait(&self) {
        if self.0.load(Ordering::Relaxed) > ABANDONED {
            sleep(HESITATION).await;
        }
    }
}

/// Why a CONNECT was not granted.
struct Refusal {
    status: StatusCode,
    /// RFC 9209 error type, or our own word; bounded, for metrics.
    error: &'static str,
    details: String,
}

impl Refusal {
    /// An application that can't be reached is not refused.
    fn failure(&self) -> Failure {
        Failure {
            refused: self.status.is_client_error(),
            ..Failure::new(self.error, self.details.clone())
        }
    }
}

/// Serves one inbound tunnel until it ends; `drain` ends it in order.
pub async fn serve(pod: Arc<Pod>, tcp: TcpStream, address: SocketAddr) {
    let address = socket::canonical(address);
    let settings = pod.settings();
    let Some(knock) = pod.handshakes().knock(address.ip()) else {
        socket::reset_on_close(&tcp);
        pod.limits().shed(Limit::Handshakes);
        let reason = "too many connections of this address have not proven who they are";
        let failure = Failure::new("shed", reason);
        pod.report().handshake(Side::Server, address, Err(failure));
        return;
    };
    let established = timeout(settings.handshake, async {
        // Who says nothing takes no place in the queue below.
        tcp.readable()
            .await
            .map_err(|error| Failure::new("tls", error.to_string()))?;
        // Many handshakes at once would take the CPU away from what is open.
        let mut entering = pin!(knock.enter());
        let pass = match entering.as_mut().now_or_never() {
            Some(pass) => pass,
            None => {
                pod.limits().reached(Limit::Handshakes);
                entering.await
            }
        };
        let accepted = tokio::select! {
            accepted = pod.acceptor().accept(tcp) => accepted,
            () = pass.overdue() => {
                pod.limits().shed(Limit::Handshakes);
                return Err(Failure::new("shed", "it stalled while others waited"));
            }
        };
        let stream = accepted.map_err(|error| failure(&error))?;
        drop(pass);
        let identity = tls::peer_identity(stream.get_ref().1).ok_or_else(|| {
            Failure::refused("no_identity", "the client showed no SPIFFE identity")
        })?;
        let usage = Usage::new(pod.limits());
        let connection = server_builder(usage.windows.sizes(), settings.streams)
            .handshake::<_, Bytes>(stream)
            .await
            .map_err(|error| Failure::new("http2", error.to_string()))?;
        Ok((connection, identity, usage))
    })
    .await
    .unwrap_or_else(|_| Err(Failure::new("timeout", "no handshake in time")));
    drop(knock);
    let (mut connection, identity, usage) = match established {
        Ok(established) => established,
        Err(failure) => {
            pod.report().handshake(Side::Server, address, Err(failure));
            return;
        }
    };
    pod.report().handshake(Side::Server, address, Ok(()));
    let _open = pod.report().telemetry().tunnel_opened(Side::Server);
    let peer = Peer { address, identity };
    let usage = Arc::new(usage);
    let abandoned = Arc::new(Abandoned::default());
    let pings = connection.ping_pong();
    let watching = async {
        match pings {
            Some(pings) => watch(pings, &usage, settings).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(watching);
    let mut leaving = false;
    // A straggler that dials a draining pod has something to send: that much is still served.
    let mut may_leave = !pod.is_draining();
    loop {
        tokio::select! {
            next = connection.accept() => match next {
                Some(Ok((request, respond))) => {
                    // The limit is HTTP/2's own; what came before GOAWAY is served.
                    usage.count();
                    may_leave = true;
                    let guard = StreamGuard::new(Arc::clone(&usage));
                    let abandoned = Arc::clone(&abandoned);
                    let (pod, peer) = (Arc::clone(&pod), peer.clone());
                    let tunnel = connect(Arc::clone(&pod), peer, request, respond, guard, abandoned);
                    pod.spawn(tunnel);
                }
                Some(Err(error)) => {
                    // Without streams, it is only an impolite way to say good-bye.
                    if usage.open_streams() > 0 {
                        tracing::debug!(peer = %peer.address, error = describe(&error), "tunnel broke");
                    }
                    return;
                }
                None => return,
            },
            end = &mut watching, if !leaving => match end {
                End::Idle => {
                    leaving = true;
                    connection.graceful_shutdown();
                }
                End::Dead => {
                    tracing::warn!(peer = %peer.address, "tunnel does not answer pings, its streams are reset");
                    return;
                }
            },
            () = usage.windows.busy() => {
                // A size that the peer has not acknowledged yet must be waited for.
                if let Some(sizes) = usage.windows.larger()
                    && connection.set_initial_window_size(sizes.stream).is_ok()
                {
                    connection.set_target_window_size(sizes.tunnel);
                    usage.windows.grown(sizes);
                }
            }
            () = pod.drain().started(), if may_leave && !leaving => {
                leaving = true;
                connection.graceful_shutdown();
            }
            // Nothing came through it, and now nothing may.
            () = pod.drain().closing(), if !may_leave && !leaving => {
                leaving = true;
                connection.graceful_shutdown();
            }
        }
    }
}

/// What was wrong with a client's TLS. A connection that merely ended was not refused.
fn failure(error: &std::io::Error) -> Failure {
    if let Some(reason) = weft_certs::verify::reason_in(error) {
        return Failure {
            refused: !matches!(reason, VerifyError::RefusedByPeer(_)),
            ..Failure::new(reason.label(), reason.to_string())
        };
    }
    let cause = error.get_ref().and_then(|e| e.downcast_ref());
    match cause {
        Some(rustls::Error::InvalidMessage(_)) => {
            let reason = format!("the client does not speak TLS: {error}");
            Failure::refused("not_tls", reason)
        }
        Some(_) => Failure::refused("tls", error.to_string()),
        None => Failure::new("tls", error.to_string()),
    }
}

async fn connect(
    pod: Arc<Pod>,
    peer: Peer,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    guard: StreamGuard,
    abandoned: Arc<Abandoned>,
) {
    let mut record = Record::inbound(peer.address, Tunnel::Hbone);
    record.source_identity = Some(peer.identity.as_str().into());
    let opened = tokio::select! {
        biased;
        opened = async {
            abandoned.wait().await;
            open(&pod, &peer, &request, &mut record).await
        } => Some(opened),
        _ = poll_fn(|cx| respond.poll_reset(cx)) => None,
    };
    abandoned.count(opened.is_none());
    let Some(opened) = opened else {
        record.failed(Failure::new(
            "client_gone",
            "the client gave up before there was an answer",
        ));
        pod.report().finished(record);
        return;
    };
    let tcp = match opened {
        Ok(tcp) => tcp,
        Err(refusal) => {
            record.failed(refusal.failure());
            pod.report().finished(record);
            let mut response = Response::new(());
            *response.status_mut() = refusal.status;
            let status = format!(
                "weft; error={}; details=\"{}\"",
                refusal.error,
                refusal.details.replace(['"', '\\'], "'")
            );
            if let Ok(status) = HeaderValue::from_str(&status) {
                response.headers_mut().insert(PROXY_STATUS, status);
            }
            // Fails only if the client has gone.
            let _ = respond.send_response(response, true);
            return;
        }
    };
    pod.report().opened(&mut record);
    let copied = match respond.send_response(Response::new(()), false) {
        Ok(send) => {
            let budget = pod.limits().budget();
            let (send, recv) = (send, request.into_body());
            let tunnel = stream::TunnelStream::new(send, recv, guard, budget.clone());
            copy(tunnel, TcpSide::new(tcp, budget), pod.drain()).await
        }
        Err(error) => {
            record.failed(Failure::new("client_gone", error.to_string()));
            socket::reset_on_close(&tcp);
            Default::default()
        }
    };
    record.copied(copied);
    pod.report().finished(record);
}

/// The connection to the application, made before the CONNECT is answered.
async fn open(
    pod: &Pod,
    peer: &Peer,
    request: &Request<RecvStream>,
    record: &mut Record,
) -> Result<TcpStream, Refusal> {
    if request.method() != Method::CONNECT {
        return Err(Refusal {
            status: StatusCode::METHOD_NOT_ALLOWED,
            error: "http_request_error",
            details: "only CONNECT is served on this port".to_owned(),
        });
    }
    let authority = request
        .uri()
        .authority()
        .map_or("", |authority| authority.as_str());
    let destination: SocketAddr = authority.parse().map_err(|_| Refusal {
        status: StatusCode::BAD_REQUEST,
        error: "http_request_error",
        details: format!("{authority} is not address:port"),
    })?;
    let destination = socket::canonical(destination);
    record.destination = destination;
    pod.describe_inbound(record);
    if !pod.has_address(destination.ip()) || is_own_port(destination.port()) {
        return Err(Refusal {
            status: StatusCode::FORBIDDEN,
            error: "destination_not_served",
            details: format!("{destination} is not an application of {}", pod.name()),
        });
    }
    let sandbox = &pod.info().sandbox;
    let meant = request.headers().get(HEADER_SANDBOX);
    if meant.is_some_and(|meant| meant.as_bytes() != sandbox.as_bytes()) {
        return Err(Refusal {
            status: StatusCode::MISDIRECTED_REQUEST,
            error: "other_sandbox",
            details: format!(
                "{destination} is {}'s now, and the client means the sandbox that had it before",
                pod.name()
            ),
        });
    }
    if !pod.limits().admit().await {
        return Err(Refusal {
            status: StatusCode::SERVICE_UNAVAILABLE,
            error: "connection_limit_reached",
            details: format!(
                "{} has no room left for buffered bytes: do its applications read what they are sent?",
                pod.name()
            ),
        });
    }
    socket::connect(
        pod.netns(),
        Source::Transparent(peer.address.ip()),
        destination,
        pod.settings().connect,
        pod.settings().liveness(),
    )
    .await
    .map_err(|error| Refusal {
        status: StatusCode::SERVICE_UNAVAILABLE,
        error: match &error {
            ConnectError::Refused(_) => "connection_refused",
            ConnectError::TimedOut(_) => "connection_timeout",
            ConnectError::Unreachable(..) => "destination_unavailable",
            _ => "proxy_internal_error",
        },
        details: error.to_string(),
    })
}

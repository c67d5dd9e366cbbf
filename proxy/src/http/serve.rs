//! Serving one captured connection: a client's stream flows in, its requests go to the session,
//! HTTP/1.1 or HTTP/2 as the client speaks it, until it closes or the proxy drains.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use hyper::{
    rt::Executor,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncWriteExt, time};
use tracing::debug;

use super::{
    HttpLimits,
    downstream::{Downstream, Spoken},
    session::Session,
};
use crate::{drain::Drain, io::Io, share};

/// Frames to clients: what most read at once.
const FRAME: u32 = 16 * 1024;

/// How long a client that is told that it is too slow may take to hear it.
const TELLING: Duration = Duration::from_secs(5);

const TOO_SLOW: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Why serving a connection ended out of order.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The client's connection broke.
    #[error("the client's connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// What the client sent is not HTTP, or its connection broke.
    #[error("HTTP with the client ended: {0}")]
    Http(#[from] hyper::Error),
    /// The client sent part of a head and no more.
    #[error("the client did not complete a request's head within {0:?}")]
    SlowHead(Duration),
}

impl HttpError {
    /// A bounded word for metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Io(_) => "client_io",
            Self::Http(error) if error.is_parse() => "malformed_http",
            Self::Http(_) => "client_broken",
            Self::SlowHead(_) => "slow_head",
        }
    }

    /// Whether the client sent something that it should not have.
    pub(super) fn is_clients_fault(&self) -> bool {
        match self {
            Self::Io(_) => false,
            Self::Http(error) => error.is_parse(),
            Self::SlowHead(_) => true,
        }
    }
}

/// Serves a client until its connection ends.
pub(super) async fn serve(
    io: impl Io + 'static,
    session: Arc<Session>,
    limits: &HttpLimits,
    drain: Drain,
) -> Result<(), HttpError> {
    let slow = HttpError::SlowHead(limits.header_read_timeout);
    let mut looks = looks(limits);
    let (downstream, spoken) = {
        let mut detect = pin!(Downstream::detect(
            io,
            Arc::clone(session.phase()),
            limits.header_bytes,
        ));
        loop {
            tokio::select! {
                biased;
                found = &mut detect => break found?,
                // Not before: its request may be on its way.
                () = drain.closing() => return Ok(()),
                _ = looks.tick() => {
                    if session.phase().is_slow(limits.header_read_timeout) {
                        return Err(slow);
                    }
                }
            }
        }
    };
    match spoken {
        Spoken::Nothing => Ok(()),
        Spoken::Http1 => serve_http1(downstream, session, limits, drain, looks).await,
        Spoken::Http2 => serve_http2(downstream, session, limits, drain).await,
    }
}

/// A slow head is found between once and one and a half times its limit.
fn looks(limits: &HttpLimits) -> time::Interval {
    let mut looks = time::interval(limits.header_read_timeout / 2);
    looks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    looks
}

/// A client that closes is gone, with its request: as most proxies see it, for a client that only
/// shuts down its sending side before the answer is rare, and one that gives up is not.
async fn serve_http1<I: Io + 'static>(
    downstream: Downstream<I>,
    session: Arc<Session>,
    limits: &HttpLimits,
    drain: Drain,
    mut looks: time::Interval,
) -> Result<(), HttpError> {
    let served = Arc::clone(&session);
    let service = service_fn(move |request| {
        let session = Arc::clone(&served);
        async move { Ok::<_, Infallible>(session.handle(request).await) }
    });
    let mut connection = http1::Builder::new()
        .max_buf_size(limits.header_bytes)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(downstream), service)
        .with_upgrades();
    let (mut draining, mut closing) = (false, false);
    loop {
        tokio::select! {
            // A connection that just answers requests is polled first, and mostly alone.
            biased;
            ended = &mut connection => {
                ended?;
                break;
            }
            // Each response is the connection's last from now on. While it waits for a request it
            // stays open, for one may be on its way, and would be lost.
            () = drain.started(), if !draining => draining = true,
            () = drain.closing(), if draining && !closing => {
                closing = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            _ = looks.tick() => {
                if session.phase().is_slow(limits.header_read_timeout) {
                    if let Some(parts) = connection.into_parts() {
                        tell_too_slow(parts.io.into_inner()).await;
                    }
                    return Err(HttpError::SlowHead(limits.header_read_timeout));
                }
            }
        }
    }
    // Part of the connection, though no longer of HTTP: it counts, and it ends with this future.
    if let Some(joined) = session.take_upgrade() {
        joined.await;
    }
    Ok(())
}

async fn tell_too_slow(mut io: impl Io) {
    let told = async {
        io.write_all(TOO_SLOW).await?;
        io.shutdown().await
    };
    // It may not read, either.
    if let Ok(Err(error)) = time::timeout(TELLING, told).await {
        debug!(%error, "a slow client was gone already");
    }
}

/// Runs the streams of an HTTP/2 connection, and wakes them when they are to be closed.
#[derive(Clone)]
struct Streams(Drain);

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        share::spawn(self.0.wake(stream));
    }
}

async fn serve_http2<I: Io + 'static>(
    downstream: Downstream<I>,
    session: Arc<Session>,
    limits: &HttpLimits,
    drain: Drain,
) -> Result<(), HttpError> {
    let service = service_fn(move |request| {
        let session = Arc::clone(&session);
        async move { Ok::<_, Infallible>(session.handle(request).await) }
    });
    let mut connection = pin!(
        http2::Builder::new(Streams(drain.clone()))
            .initial_stream_window_size(limits.client_stream_window)
            .initial_connection_window_size(limits.client_connection_window)
            .max_concurrent_streams(limits.client_streams)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .max_frame_size(FRAME)
            .max_send_buf_size(limits.send_buffer)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(downstream), service)
    );
    tokio::select! {
        biased;
        ended = connection.as_mut() => return Ok(ended?),
        () = drain.started() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

//! HTTP/2 connections to one endpoint: shared by requests up to the backend's limit of streams,
//! then another is opened, by one caller for all that wait.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::future::poll_fn;
use h2::{
    Reason, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::Request;
use http_body::Body;
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};
use tracing::debug;

use super::Destination;
use crate::{
    budget::Charge,
    http::body::RequestBody,
    io::{ConnectError, Leaving},
    share,
};

/// Frames to a backend: what most read at once.
const FRAME: u32 = 16 * 1024;
/// A stream's window when the budget is used up: a small response fits.
const LEAST_WINDOW: u32 = 16 * 1024;

/// Connections to one endpoint.
#[derive(Default)]
pub(super) struct Http2Pool {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    connections: Vec<Arc<Connection>>,
    /// Somebody is connecting.
    opening: Option<watch::Receiver<Option<Result<(), ConnectError>>>>,
}

struct Connection {
    sender: SendRequest<Bytes>,
    streams: AtomicUsize,
    /// How many streams it takes: the backend's limit or ours.
    room: AtomicUsize,
    /// It takes no new streams: closed, broken or going away.
    closed: AtomicBool,
    leaving: Leaving,
    idle_since: Mutex<Instant>,
    windows: Windows,
}

/// What the backend may send before it is read.
struct Windows {
    stream: u32,
    connection: u32,
    /// A stream's window for each stream, up to the connection's own.
    charge: Mutex<Charge>,
}

impl Windows {
    /// As large as the limits say, or as there is room.
    fn new(to: &Destination) -> Self {
        let (stream, connection) = (
            to.limits.backend_stream_window,
            to.limits.backend_connection_window,
        );
        let least = LEAST_WINDOW.min(stream) as usize;
        let fits = to.budget.piece(least, stream as usize) as u32;
        Self {
            stream: fits,
            // In the same ratio.
            connection: (connection / stream).max(1).saturating_mul(fits),
            charge: Mutex::new(to.budget.charge(0)),
        }
    }

    fn charge(&self, streams: usize) {
        let bytes = streams.saturating_mul(self.stream as usize);
        self.charge.lock().set(bytes.min(self.connection as usize));
    }
}

/// Room for one request on a connection.
pub(crate) struct Http2Lease(Arc<Connection>);

impl Http2Pool {
    pub(super) async fn lease(
        self: &Arc<Self>,
        to: &Destination,
    ) -> Result<Http2Lease, ConnectError> {
        loop {
            let mut opened = {
                let mut inner = self.inner.lock();
                inner.connections.retain(|it| !it.is_closed());
                if let Some(lease) = inner.connections.iter().find_map(Connection::lease) {
                    return Ok(lease);
                }
                if inner.connections.len() >= to.limits.backend_connections {
                    let least = inner.connections.iter();
                    let least = least.min_by_key(|it| it.streams.load(Ordering::Relaxed));
                    // It waits for a stream there.
                    if let Some(connection) = least {
                        return Ok(connection.count());
                    }
                }
                match &inner.opening {
                    Some(opening) => opening.clone(),
                    None => {
                        let (told, opening) = watch::channel(None);
                        inner.opening = Some(opening.clone());
                        // A task of its own: a caller that gives up must not fail the others.
                        share::spawn(Arc::clone(self).open(to.clone(), told));
                        opening
                    }
                }
            };
            match opened.wait_for(Option::is_some).await {
                Ok(result) => {
                    if let Some(Err(error)) = &*result {
                        return Err(error.clone());
                    }
                }
                // The task ended without a word, which is a panic: do not go round in circles.
                Err(_) => return Err(ConnectError::Io(to.address, "connecting ended".into())),
            }
        }
    }

    async fn open(
        self: Arc<Self>,
        to: Destination,
        told: watch::Sender<Option<Result<(), ConnectError>>>,
    ) {
        let opened = connect(&to).await;
        let mut inner = self.inner.lock();
        inner.opening = None;
        let result = opened.map(|connection| inner.connections.push(connection));
        drop(inner);
        told.send_replace(Some(result));
    }

    /// Drops what is closed or idle since `before`; returns how many stay.
    pub(super) fn sweep(&self, before: Option<Instant>) -> usize {
        let mut inner = self.inner.lock();
        inner.connections.retain(|it| {
            let idle = it.streams.load(Ordering::Relaxed) == 0
                && before.is_some_and(|before| *it.idle_since.lock() < before);
            !idle && !it.is_closed()
        });
        inner.connections.len() + usize::from(inner.opening.is_some())
    }
}

async fn connect(to: &Destination) -> Result<Arc<Connection>, ConnectError> {
    let broken = |error: h2::Error| ConnectError::Io(to.address, error.to_string());
    let limits = &to.limits;
    let windows = Windows::new(to);
    let link = to.connector.connect(&to.workload, to.address).await?;
    let (sender, mut driver) = h2::client::Builder::new()
        .initial_window_size(windows.stream)
        .initial_connection_window_size(windows.connection)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_frame_size(FRAME)
        .max_send_buffer_size(limits.send_buffer)
        .enable_push(false)
        .handshake::<_, Bytes>(link.stream)
        .await
        .map_err(broken)?;
    let most = limits.backend_streams;
    let connection = Arc::new(Connection {
        sender,
        streams: AtomicUsize::new(0),
        room: AtomicUsize::new(driver.max_concurrent_send_streams().min(most)),
        closed: AtomicBool::new(false),
        leaving: link.leaving,
        idle_since: Mutex::new(Instant::now()),
        windows,
    });
    let address = to.address;
    // Weak: the connection ends when neither the pool nor a request holds it.
    let shared = Arc::downgrade(&connection);
    share::spawn(async move {
        let ended = poll_fn(|cx| {
            let polled = Pin::new(&mut driver).poll(cx);
            if let Some(shared) = shared.upgrade() {
                let room = driver.max_concurrent_send_streams().min(most);
                shared.room.store(room, Ordering::Relaxed);
            }
            polled
        })
        .await;
        if let Some(shared) = shared.upgrade() {
            shared.closed.store(true, Ordering::Relaxed);
        }
        if let Err(error) = ended {
            debug!(%address, %error, "HTTP/2 connection to a backend ended");
        }
    });
    Ok(connection)
}

impl Connection {
    fn lease(self: &Arc<Self>) -> Option<Http2Lease> {
        // Under the pool's lock: nobody else takes the same room.
        if self.streams.load(Ordering::Relaxed) >= self.room.load(Ordering::Relaxed) {
            return None;
        }
        Some(self.count())
    }

    fn count(self: &Arc<Self>) -> Http2Lease {
        let streams = self.streams.fetch_add(1, Ordering::Relaxed) + 1;
        self.windows.charge(streams);
        Http2Lease(Arc::clone(self))
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed) || self.leaving.is_leaving()
    }
}

impl Drop for Http2Lease {
    fn drop(&mut self) {
        let streams = self.0.streams.fetch_sub(1, Ordering::Relaxed) - 1;
        self.0.windows.charge(streams);
        if streams == 0 {
            *self.0.idle_since.lock() = Instant::now();
        }
    }
}

impl Http2Lease {
    /// Waits until a stream can be opened. An error means that nothing was sent, and that the
    /// connection takes no more streams.
    pub(crate) async fn ready(&self) -> Result<SendRequest<Bytes>, h2::Error> {
        let ready = self.0.sender.clone().ready().await;
        if ready.is_err() {
            self.retire();
        }
        ready
    }

    /// No new stream goes to this connection.
    pub(crate) fn retire(&self) {
        self.0.closed.store(true, Ordering::Relaxed);
    }
}

/// Sends a request and waits for the response's head, while the body is pumped. What is left of
/// the body then is the caller's to go on with.
pub(crate) async fn exchange(
    mut sender: SendRequest<Bytes>,
    head: Request<()>,
    body: RequestBody,
) -> Result<(http::Response<h2::RecvStream>, Option<Pump>), h2::Error> {
    let empty = body.is_end_stream();
    let (response, stream) = sender.send_request(head, empty)?;
    let mut pump = (!empty).then(|| Pump::new(body, stream));
    let mut response: Pin<&mut ResponseFuture> = pin!(response);
    let response = poll_fn(|cx| {
        if let Some(running) = &mut pump
            && Pin::new(running).poll(cx).is_ready()
        {
            pump = None;
        }
        response.as_mut().poll(cx)
    })
    .await?;
    Ok((response, pump))
}

/// Carries a request's body to a backend, at the backend's pace.
#[derive(Debug)]
pub(crate) struct Pump {
    body: RequestBody,
    stream: SendStream<Bytes>,
    chunk: Bytes,
}

impl Pump {
    fn new(body: RequestBody, stream: SendStream<Bytes>) -> Self {
        Self {
            body,
            stream,
            chunk: Bytes::new(),
        }
    }

    /// Sends the chunk at hand; `Err` when the backend takes no more.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while !self.chunk.is_empty() {
            self.stream.reserve_capacity(self.chunk.len());
            if self.stream.capacity() == 0 {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(0)) => continue,
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Poll::Ready(Err(error)),
                    None => return Poll::Ready(Err(Reason::CANCEL.into())),
                }
            }
            let part = self
                .chunk
                .split_to(self.stream.capacity().min(self.chunk.len()));
            let last = self.chunk.is_empty() && self.body.is_end_stream();
            self.stream.send_data(part, last)?;
            if last {
                return Poll::Ready(Err(Reason::NO_ERROR.into()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Future for Pump {
    /// All is said, in one way or the other: the response tells what came of it.
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            if ready!(this.poll_chunk(cx)).is_err() {
                return Poll::Ready(());
            }
            let frame = match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    // A backend that wants no more says so only here.
                    ready!(this.stream.poll_reset(cx)).ok();
                    return Poll::Ready(());
                }
            };
            match frame.map(|it| it.map(http_body::Frame::into_data)) {
                Some(Ok(Ok(data))) => this.chunk = data,
                Some(Ok(Err(frame))) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        this.stream.send_trailers(trailers).ok();
                    }
                    return Poll::Ready(());
                }
                // The client broke off: so does its request.
                Some(Err(_)) => {
                    this.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(());
                }
                None => {
                    this.stream.send_data(Bytes::new(), true).ok();
                    return Poll::Ready(());
                }
            }
        }
    }
}

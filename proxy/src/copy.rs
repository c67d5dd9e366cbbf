//! Carries bytes both ways between two connections until both directions have ended. In flow two
//! [`Duplex`]es; out flow byte counts and, if it did not end in order, which side broke and how.
//!
//! - An end of one direction (FIN, END_STREAM) is passed on; the other direction goes on.
//! - When the pod's time to drain is over, what is under way may come to a pause, for a bounded
//!   time: most protocols ask and answer, and an answer that is cut is a request lost. Then both
//!   sides get their end (FIN, END_STREAM) after what is held, and what they still say is read and
//!   dropped until they end too, for a bounded time.
//! - A reset of one side resets the other: nobody takes a truncated stream for a whole one. That
//!   holds too when the copying future is dropped half way.
//! - At most one chunk a direction is held: what can't be written is not read. What is read from a
//!   socket counts against the pod's budget until it has been written, wherever it waits.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncWrite, Interest},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tokio_util::io::poll_read_buf;

use crate::{
    budget::Budget,
    drain::{Drain, LINGER, PAUSE},
    socket,
};

/// First read: most requests and small responses fit, and it is one of the allocator's
/// thread-cached sizes.
const FIRST_READ: usize = 8 * 1024;
/// Reads double up to this while they fill the buffer: at 128 KiB the cost of system calls,
/// frames and wake-ups is well below that of encryption, and more only adds to memory.
const LARGEST_READ: usize = 128 * 1024;
/// Reads when the pod's budget is used up: what is open goes on, if slowly.
const SMALLEST_READ: usize = 4 * 1024;
/// Longer than the parts of one answer are apart.
const QUIET: Duration = Duration::from_millis(20);

/// One side of a copy.
pub trait Duplex {
    /// The next bytes; `None` at an orderly end. Called again only once the last chunk has been
    /// passed on entirely, which is when a flow-controlled side may ask its peer for more.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>>;

    /// Takes from `data`; ready when all of it has been taken.
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>>;

    /// Ends the sending direction in order.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ready when the connection is reset. Asked only after the peer has ended its direction,
    /// when no read would notice.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error>;

    /// Everything has ended in order: closing is no reset.
    fn set_done(&mut self);

    /// Resets the connection.
    fn abort(&mut self);
}

/// What was carried.
#[derive(Debug, Default)]
pub struct Copied {
    /// Bytes from the first side to the second.
    pub sent: u64,
    /// Bytes from the second side to the first.
    pub received: u64,
    /// Why it did not end in order.
    pub error: Option<CopyError>,
}

/// The connection that broke.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The first side of the copy: the client.
    #[error("the client's connection broke: {0}")]
    Client(#[source] io::Error),
    /// The second side of the copy: the server.
    #[error("the server's connection broke: {0}")]
    Server(#[source] io::Error),
    /// The time to drain was over.
    #[error("still open when the time to drain was over")]
    Closed,
}

impl CopyError {
    /// A bounded word for metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Client(_) => "client_reset",
            Self::Server(_) => "server_reset",
            Self::Closed => "drain_timeout",
        }
    }
}

/// Copies until both directions have ended or one side broke, or `drain` orders to close; whoever
/// orders it wakes this ([`Drain::wake`]).
pub async fn copy<C: Duplex, S: Duplex>(client: C, server: S, drain: &Drain) -> Copied {
    let mut copying = Copying {
        client,
        server,
        up: Direction::default(),
        down: Direction::default(),
        asked: false,
    };
    let mut result = poll_fn(|cx| {
        if drain.is_closing() {
            Poll::Ready(Err(CopyError::Closed))
        } else {
            copying.poll(cx)
        }
    })
    .await;
    if matches!(result, Err(CopyError::Closed)) {
        result = copying.pause().await;
    }
    if matches!(result, Err(CopyError::Closed)) {
        copying.close().await;
    }
    match &result {
        Ok(()) | Err(CopyError::Closed) => {
            copying.client.set_done();
            copying.server.set_done();
        }
        Err(_) => {
            copying.client.abort();
            copying.server.abort();
        }
    }
    Copied {
        sent: copying.up.bytes,
        received: copying.down.bytes,
        error: result.err(),
    }
}

/// Both sides, and what is between them.
struct Copying<C: Duplex, S: Duplex> {
    client: C,
    server: S,
    up: Direction,
    down: Direction,
    /// The client spoke last: it may be waiting for an answer.
    asked: bool,
}

impl<C: Duplex, S: Duplex> Copying<C, S> {
    /// Ready when both directions have ended or one side broke.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CopyError>> {
        let (sent, received) = (self.up.bytes, self.down.bytes);
        let up_done = self.up.poll(
            cx,
            &mut self.client,
            CopyError::Client,
            &mut self.server,
            CopyError::Server,
        )?;
        let down_done = self.down.poll(
            cx,
            &mut self.server,
            CopyError::Server,
            &mut self.client,
            CopyError::Client,
        )?;
        if self.up.bytes > sent {
            self.asked = true;
        } else if self.down.bytes > received {
            self.asked = false;
        }
        match (up_done, down_done) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            (Poll::Ready(()), Poll::Pending) => self
                .client
                .poll_broken(cx)
                .map(|error| Err(CopyError::Client(error))),
            (Poll::Pending, Poll::Ready(())) => self
                .server
                .poll_broken(cx)
                .map(|error| Err(CopyError::Server(error))),
            (Poll::Pending, Poll::Pending) => Poll::Pending,
        }
    }

    /// Goes on until nothing was said for a moment and the server spoke last, or the time for that
    /// is over.
    async fn pause(&mut self) -> Result<(), CopyError> {
        let over = tokio::time::Instant::now() + PAUSE;
        loop {
            let before = (self.up.bytes, self.down.bytes);
            let moment = (tokio::time::Instant::now() + QUIET).min(over);
            let ended = tokio::time::timeout_at(moment, poll_fn(|cx| self.poll(cx))).await;
            if let Ok(ended) = ended {
                return ended;
            }
            let quiet = before == (self.up.bytes, self.down.bytes);
            if (quiet && !self.asked) || moment == over {
                return Err(CopyError::Closed);
            }
        }
    }

    /// Ends both sides, and waits a while for their own ends.
    async fn close(&mut self) {
        let ended = poll_fn(|cx| {
            let up = self.up.poll_end(cx, &mut self.client, &mut self.server);
            let down = self.down.poll_end(cx, &mut self.server, &mut self.client);
            if up.is_ready() && down.is_ready() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        // A side that does not end has been told.
        let _ = tokio::time::timeout(LINGER, ended).await;
    }
}

/// One direction of a copy.
#[derive(Default)]
struct Direction {
    pending: Bytes,
    bytes: u64,
    ended: bool,
    finished: bool,
}

impl Direction {
    fn poll<R: Duplex, W: Duplex>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        from_failed: fn(io::Error) -> CopyError,
        to: &mut W,
        to_failed: fn(io::Error) -> CopyError,
    ) -> Result<Poll<()>, CopyError> {
        while !self.finished {
            if self.pending.has_remaining() {
                match to.poll_send(cx, &mut self.pending) {
                    Poll::Ready(sent) => sent.map_err(to_failed)?,
                    Poll::Pending => return Ok(Poll::Pending),
                }
            }
            if self.ended {
                match to.poll_finish(cx) {
                    Poll::Ready(finished) => finished.map_err(to_failed)?,
                    Poll::Pending => return Ok(Poll::Pending),
                }
                self.finished = true;
                break;
            }
            match from.poll_chunk(cx) {
                Poll::Ready(Ok(Some(chunk))) => {
                    self.bytes += chunk.len() as u64;
                    self.pending = chunk;
                }
                Poll::Ready(Ok(None)) => self.ended = true,
                Poll::Ready(Err(error)) => return Err(from_failed(error)),
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        Ok(Poll::Ready(()))
    }
}

impl Direction {
    /// Sends what is held and an end, and drops what still comes until `from` has ended. Errors are
    /// ends.
    fn poll_end<R: Duplex, W: Duplex>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
    ) -> Poll<()> {
        if !self.finished {
            let sent = if self.pending.has_remaining() {
                to.poll_send(cx, &mut self.pending)
            } else {
                Poll::Ready(Ok(()))
            };
            self.finished = match sent {
                Poll::Ready(Ok(())) => to.poll_finish(cx).is_ready(),
                Poll::Ready(Err(_)) => true,
                Poll::Pending => false,
            };
        }
        while !self.ended {
            match from.poll_chunk(cx) {
                Poll::Ready(Ok(Some(_))) => {}
                Poll::Ready(_) => self.ended = true,
                Poll::Pending => return Poll::Pending,
            }
        }
        if self.finished {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

// === TCP ===

/// A TCP connection as one side of a copy. Dropped before [`Duplex::set_done`], it is reset.
pub struct TcpSide {
    /// Moved into `broken` once nothing more will be read.
    read: Option<OwnedReadHalf>,
    /// Always there until the drop.
    write: Option<OwnedWriteHalf>,
    /// What was read ahead of the copy (by sniffing); comes first.
    prefix: Bytes,
    buffer: BytesMut,
    next_read: usize,
    budget: Budget,
    done: bool,
    broken: Option<Pin<Box<dyn Future<Output = io::Error> + Send>>>,
}

impl TcpSide {
    /// The whole connection.
    pub fn new(stream: TcpStream, budget: &Budget) -> Self {
        Self::with_prefix(stream, Bytes::new(), budget)
    }

    /// A connection of which `prefix` has been read already.
    pub fn with_prefix(stream: TcpStream, prefix: Bytes, budget: &Budget) -> Self {
        let (read, write) = stream.into_split();
        Self {
            read: Some(read),
            write: Some(write),
            prefix,
            buffer: BytesMut::new(),
            next_read: FIRST_READ,
            budget: budget.clone(),
            done: false,
            broken: None,
        }
    }

    /// What it is charged to.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Takes what was read out of the buffer.
    fn chunk(&mut self, got: usize) -> Bytes {
        // A byte must not keep a whole buffer from being used again: a peer that sends single bytes
        // to one that does not read would make thousands of them wait.
        let chunk = if got * 4 <= self.buffer.capacity() {
            let small = Bytes::copy_from_slice(&self.buffer);
            self.buffer.clear();
            small
        } else {
            self.buffer.split().freeze()
        };
        self.budget.hold(chunk)
    }
}

impl Duplex for TcpSide {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if !self.prefix.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.prefix))));
        }
        let Some(read) = &mut self.read else {
            return Poll::Ready(Ok(None));
        };
        // Allocated only when there is something to read: an idle connection holds no buffer.
        match read.as_ref().poll_read_ready(cx) {
            Poll::Ready(ready) => ready?,
            Poll::Pending => {
                self.buffer = BytesMut::new();
                return Poll::Pending;
            }
        }
        let size = self.budget.piece(SMALLEST_READ, self.next_read);
        self.buffer.reserve(size);
        let got = ready!(poll_read_buf(Pin::new(read), cx, &mut self.buffer))?;
        if got == 0 {
            self.buffer = BytesMut::new();
            return Poll::Ready(Ok(None));
        }
        if got >= self.next_read {
            self.next_read = (self.next_read * 2).min(LARGEST_READ);
        } else if got * 4 <= self.next_read {
            self.next_read = (self.next_read / 2).max(FIRST_READ);
        }
        Poll::Ready(Ok(Some(self.chunk(got))))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        let Some(write) = &mut self.write else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        while data.has_remaining() {
            let written = ready!(Pin::new(&mut *write).poll_write(cx, data))?;
            data.advance(written);
        }
        // Not kept while the next chunk is waited for.
        *data = Bytes::new();
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(write) = &mut self.write else {
            return Poll::Ready(Ok(()));
        };
        match ready!(Pin::new(write).poll_shutdown(cx)) {
            // The peer is gone already; reading says how.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if let Some(read) = self.read.take() {
            self.broken = Some(Box::pin(wait_for_reset(read)));
        }
        match &mut self.broken {
            Some(broken) => broken.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    fn set_done(&mut self) {
        self.done = true;
    }

    fn abort(&mut self) {
        self.done = false;
    }
}

async fn wait_for_reset(read: OwnedReadHalf) -> io::Error {
    match read.ready(Interest::ERROR).await {
        Ok(_) => match read.as_ref().take_error() {
            Ok(Some(error)) | Err(error) => error,
            Ok(None) => io::ErrorKind::ConnectionReset.into(),
        },
        Err(error) => error,
    }
}

impl Drop for TcpSide {
    fn drop(&mut self) {
        if let Some(write) = self.write.take() {
            if !self.done {
                socket::reset_on_close(write.as_ref());
            }
            // Its own drop would send a FIN ahead of the reset.
            write.forget();
        }
    }
}

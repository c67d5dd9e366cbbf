//! The client's end of a captured connection: which HTTP it speaks, and whether it dawdles over a
//! request's head. Bytes flow through unchanged.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::{
    budget::{Budget, Charge},
    io::Io,
    prefixed::Prefixed,
};

/// What a client with prior knowledge of HTTP/2 sends first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is held of a connection whose protocol was changed: a buffer each way.
const UPGRADED_BUFFERS: usize = 16 * 1024;

/// Where an HTTP/1 connection is between requests, for finding slow heads without a timer for each.
#[derive(Debug)]
pub(super) struct Phase {
    epoch: Instant,
    /// [`IDLE`], [`BUSY`], [`UPGRADED`], or since when a head is being read.
    state: AtomicU64,
    /// What the parser may hold of what was read for this request.
    ahead: Mutex<Charge>,
}

/// No request, and nothing read.
const IDLE: u64 = 0;
/// A request is under way.
const BUSY: u64 = 1;
/// The protocol was changed: there are no more requests.
const UPGRADED: u64 = 2;
/// Added to milliseconds since the epoch, to tell them from the above.
const SINCE: u64 = 3;

impl Phase {
    /// A new connection.
    pub(super) fn new(budget: &Budget) -> Arc<Self> {
        Arc::new(Self {
            epoch: Instant::now(),
            state: AtomicU64::new(IDLE),
            ahead: Mutex::new(budget.charge(0)),
        })
    }

    /// A head is complete.
    pub(super) fn request(&self) {
        self.state.store(BUSY, Ordering::Relaxed);
    }

    /// A response is complete.
    pub(super) fn between_requests(&self) {
        // An upgraded connection never comes back.
        let idle = self
            .state
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| {
                (state != UPGRADED).then_some(IDLE)
            });
        if idle.is_ok() {
            self.ahead.lock().set(0);
        }
    }

    /// The protocol is changed.
    pub(super) fn upgraded(&self) {
        self.state.store(UPGRADED, Ordering::Relaxed);
        self.ahead.lock().set(UPGRADED_BUFFERS);
    }

    fn bytes_read(&self) {
        if self.state.load(Ordering::Relaxed) == IDLE {
            let since = self.epoch.elapsed().as_millis() as u64;
            self.state.store(SINCE + since, Ordering::Relaxed);
        }
    }

    /// Counts what was read, up to `most`, until the response is complete.
    fn read_ahead(&self, bytes: usize, most: usize) {
        if self.state.load(Ordering::Relaxed) != UPGRADED {
            let mut ahead = self.ahead.lock();
            let bytes = (ahead.bytes() + bytes).min(most);
            ahead.set(bytes);
        }
    }

    /// Whether a head has been incomplete for so long.
    pub(super) fn is_slow(&self, limit: Duration) -> bool {
        match self.state.load(Ordering::Relaxed) {
            IDLE | BUSY | UPGRADED => false,
            since => {
                let since = Duration::from_millis(since - SINCE);
                self.epoch.elapsed().saturating_sub(since) > limit
            }
        }
    }
}

/// The stream of a client, with what was read of it while finding out what it speaks.
pub(super) struct Downstream<I> {
    io: Prefixed<I>,
    phase: Arc<Phase>,
    /// As much as HTTP/1's parser may hold of what was read; HTTP/2 has windows for that.
    ahead: Option<usize>,
}

/// Which HTTP a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    /// HTTP/1.0 or HTTP/1.1, or nonsense, which its parser refuses.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Nothing: it closed.
    Nothing,
}

impl<I: Io> Downstream<I> {
    /// Reads as much as it takes to know what the client speaks. Without a limit of time: see
    /// [`Phase::is_slow`].
    ///
    /// # Errors
    /// Reading fails.
    pub(super) async fn detect(
        mut io: I,
        phase: Arc<Phase>,
        most: usize,
    ) -> io::Result<(Self, Spoken)> {
        let mut read = [0; PREFACE.len()];
        let mut length = 0;
        let spoken = loop {
            let got = io.read(&mut read[length..]).await?;
            length += got;
            if got == 0 {
                break match length {
                    0 => Spoken::Nothing,
                    _ => Spoken::Http1,
                };
            }
            phase.bytes_read();
            if read[..length] != PREFACE[..length] {
                break Spoken::Http1;
            }
            if length == PREFACE.len() {
                break Spoken::Http2;
            }
        };
        let downstream = Self {
            io: Prefixed::new(io, Bytes::copy_from_slice(&read[..length])),
            phase,
            ahead: (spoken == Spoken::Http1).then_some(most),
        };
        Ok((downstream, spoken))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Downstream<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        if read > 0 {
            this.phase.bytes_read();
            if let Some(most) = this.ahead {
                this.phase.read_ahead(read, most);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Downstream<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

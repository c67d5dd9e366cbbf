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
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::{io::Io, prefixed::Prefixed};

/// What a client with prior knowledge of HTTP/2 sends first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Where an HTTP/1 connection is between requests, for finding slow heads without a timer for each.
#[derive(Debug)]
pub(super) struct Phase {
    epoch: Instant,
    /// [`IDLE`], [`BUSY`], or since when a head is being read.
    state: AtomicU64,
}

/// No request, and nothing read.
const IDLE: u64 = 0;
/// A request is under way.
const BUSY: u64 = 1;
/// Added to milliseconds since the epoch, to tell them from the above.
const SINCE: u64 = 2;

impl Phase {
    /// A new connection.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            epoch: Instant::now(),
            state: AtomicU64::new(IDLE),
        })
    }

    /// A head is complete.
    pub(super) fn request(&self) {
        self.state.store(BUSY, Ordering::Relaxed);
    }

    /// A response is complete.
    pub(super) fn between_requests(&self) {
        self.state.store(IDLE, Ordering::Relaxed);
    }

    fn bytes_read(&self) {
        if self.state.load(Ordering::Relaxed) == IDLE {
            let since = self.epoch.elapsed().as_millis() as u64;
            self.state.store(SINCE + since, Ordering::Relaxed);
        }
    }

    /// Whether a head has been incomplete for so long.
    pub(super) fn is_slow(&self, limit: Duration) -> bool {
        match self.state.load(Ordering::Relaxed) {
            IDLE | BUSY => false,
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
    pub(super) async fn detect(mut io: I, phase: Arc<Phase>) -> io::Result<(Self, Spoken)> {
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
        if buf.filled().len() > before {
            this.phase.bytes_read();
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

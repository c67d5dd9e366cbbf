//! A tunnel's stream for those who drop it as soon as they have said all, as HTTP does with a
//! connection that it no longer needs. In and out flow bytes; after the drop nothing does, but the
//! stream stays until the peer has ended too, as a TCP connection would: else a reset would overtake
//! the end, and the far application would see an orderly close as a broken connection.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::Handle,
    time::timeout,
};

use super::stream::TunnelStream;
use crate::share;

/// How long the peer may take. An application closes at once when its client has; one that does not
/// must not fill the tunnel with streams that nobody uses.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct Lingering(Option<TunnelStream>);

impl Lingering {
    /// From now on.
    pub fn new(stream: TunnelStream) -> Self {
        Self(Some(stream))
    }

    /// There until the drop.
    fn stream(&mut self) -> io::Result<Pin<&mut TunnelStream>> {
        match &mut self.0 {
            Some(stream) => Ok(Pin::new(stream)),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if let Some(stream) = self.0.take()
            && stream.waits_for_end()
            && Handle::try_current().is_ok()
        {
            share::spawn(async move {
                // Either way it is dropped.
                let _ = timeout(PATIENCE, stream.ended()).await;
            });
        }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(cx, into)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }
}

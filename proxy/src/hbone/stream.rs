//! One stream of a tunnel (one CONNECT), as a byte stream. In and out flow bytes under HTTP/2's
//! flow control: the peer may send more once what it sent has been consumed, and nothing is
//! queued here beyond what the peer allows.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::StreamGuard;
use crate::{budget::Budget, copy::Duplex, io::Leaving};

/// Most bytes taken from one `write`: one copy is made of them, and a frame is not larger.
const LARGEST_WRITE: usize = 64 * 1024;

/// An open CONNECT. Dropped before both directions have ended, it is reset.
#[derive(Debug)]
pub struct TunnelStream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// Received and not yet read.
    readable: Bytes,
    /// Passed on by [`Duplex::poll_chunk`], not yet given back to the peer's window.
    unreleased: usize,
    /// Our END_STREAM has been sent.
    finished: bool,
    /// Lives as long as the stream: counts it.
    guard: StreamGuard,
    budget: Budget,
}

impl TunnelStream {
    pub(crate) fn new(
        send: SendStream<Bytes>,
        recv: RecvStream,
        guard: StreamGuard,
        budget: Budget,
    ) -> Self {
        Self {
            send,
            recv,
            readable: Bytes::new(),
            unreleased: 0,
            finished: false,
            guard,
            budget,
        }
    }

    /// Whether its tunnel takes no new streams any more.
    pub fn leaving(&self) -> Leaving {
        self.guard.leaving()
    }

    /// Our end is told, the peer's is still to come.
    pub(super) fn waits_for_end(&self) -> bool {
        self.finished && !self.recv.is_end_stream()
    }

    /// Waits for the peer's end. If it has more to say, nobody is there to hear it.
    pub(super) async fn ended(mut self) {
        while let Some(Ok(chunk)) = self.recv.data().await
            && chunk.is_empty()
        {}
    }

    /// Bytes that the peer lets us send now, `wanted` at most.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        self.guard.usage().signs.used();
        loop {
            let room = self.send.capacity();
            if room > 0 {
                return Poll::Ready(Ok(room.min(wanted)));
            }
            // Exactly what is needed: what is reserved and not used is missing to other streams.
            self.send.reserve_capacity(wanted);
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(0)) => {}
                Some(Ok(room)) => return Poll::Ready(Ok(room.min(wanted))),
                Some(Err(error)) => return Poll::Ready(Err(to_io(error))),
                None => return Poll::Ready(Err(self.closed(cx))),
            }
        }
    }

    fn closed(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => reset_by(reason),
            Poll::Ready(Err(error)) => to_io(error),
            Poll::Pending => io::ErrorKind::BrokenPipe.into(),
        }
    }

    fn release(&mut self, bytes: usize) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.guard.usage().consumed(bytes);
        self.recv
            .flow_control()
            .release_capacity(bytes)
            .map_err(to_io)
    }

    fn finish(&mut self) -> io::Result<()> {
        if !self.finished {
            self.finished = true;
            self.send.send_data(Bytes::new(), true).map_err(to_io)?;
        }
        Ok(())
    }
}

impl Duplex for TunnelStream {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        let released = std::mem::take(&mut self.unreleased);
        self.release(released)?;
        match ready!(self.recv.poll_data(cx)) {
            Some(Ok(chunk)) => {
                self.unreleased = chunk.len();
                Poll::Ready(Ok(Some(chunk)))
            }
            Some(Err(error)) => Poll::Ready(Err(to_io(error))),
            None => Poll::Ready(Ok(None)),
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<()>> {
        while data.has_remaining() {
            let room = ready!(self.poll_room(cx, data.len()))?;
            self.send
                .send_data(data.split_to(room), false)
                .map_err(to_io)?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish())
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.send.poll_reset(cx).map(|reset| match reset {
            Ok(reason) => reset_by(reason),
            Err(error) => to_io(error),
        })
    }

    fn set_done(&mut self) {}

    fn abort(&mut self) {
        // What RFC 9113, 8.5 asks for when the TCP connection behind a CONNECT was reset.
        self.send.send_reset(Reason::CONNECT_ERROR);
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.readable.is_empty() {
            match ready!(this.recv.poll_data(cx)) {
                Some(chunk) => this.readable = chunk.map_err(to_io)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let read = this.readable.len().min(into.remaining());
        into.put_slice(&this.readable.split_to(read));
        Poll::Ready(this.release(read))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(data)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let total = parts
            .iter()
            .map(|part| part.len())
            .sum::<usize>()
            .min(LARGEST_WRITE);
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(this.poll_room(cx, total))?;
        // Head and body of a message become one frame.
        let mut data = BytesMut::with_capacity(room);
        for part in parts {
            let take = part.len().min(room - data.len());
            data.put_slice(&part[..take]);
        }
        let data = this.budget.hold(data.freeze());
        this.send.send_data(data, false).map_err(to_io)?;
        Poll::Ready(Ok(room))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's own task sends what it is given.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().finish())
    }
}

fn reset_by(reason: Reason) -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionReset,
        format!("the peer reset the stream: {}", reason.description()),
    )
}

fn to_io(error: h2::Error) -> io::Error {
    // Whatever broke the tunnel, its streams have not ended in order.
    io::Error::new(io::ErrorKind::ConnectionReset, super::describe(&error))
}

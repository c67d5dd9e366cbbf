//! Bodies that are made up: a pattern of a given length, and pieces that come one by one.

use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http::{HeaderMap, HeaderValue};
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::time::{Sleep, sleep};

use crate::BoxError;

/// Any body.
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// The pattern's period: prime, so that a lost or repeated block shows.
const PERIOD: usize = 251;
/// A whole number of periods, near 64 KiB: large enough for few frames, small enough for memory.
const BLOCK: usize = PERIOD * 261;
/// What came before a cut must have left: an error at once would take it back out of the buffers.
const CUT_PAUSE: Duration = Duration::from_millis(20);

/// A body that is there already.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

static PATTERN: LazyLock<Bytes> =
    LazyLock::new(|| (0..BLOCK).map(|at| (at % PERIOD) as u8).collect());

/// `length` bytes, byte i being `i % 251`.
pub(crate) fn pattern(length: u64) -> Body {
    Pattern { left: length }.boxed_unsync()
}

/// `count` lines, each `interval` after the one before.
pub(crate) fn pieces(count: u64, interval: Duration) -> Body {
    let pieces = stream::iter(0..count).then(move |index| async move {
        if index > 0 {
            sleep(interval).await;
        }
        Ok(Frame::data(Bytes::from(format!("piece {index}\n"))))
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// The body, then a trailer.
pub(crate) fn with_trailer(body: Body) -> Body {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-echo-trailer", HeaderValue::from_static("done"));
    body.with_trailers(std::future::ready(Some(Ok(trailers))))
        .boxed_unsync()
}

/// The body as far as byte `length`, then an error that breaks the answer off.
pub(crate) fn cut(body: Body, length: u64) -> Body {
    Cut {
        body,
        left: length,
        pause: None,
    }
    .boxed_unsync()
}

struct Pattern {
    left: u64,
}

impl http_body::Body for Pattern {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let size = usize::try_from(self.left).unwrap_or(usize::MAX).min(BLOCK);
        self.left -= size as u64;
        Poll::Ready(Some(Ok(Frame::data(PATTERN.slice(..size)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

struct Cut {
    body: Body,
    left: u64,
    pause: Option<Pin<Box<Sleep>>>,
}

impl http_body::Body for Cut {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.left == 0 {
            let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(CUT_PAUSE)));
            std::task::ready!(pause.as_mut().poll(context));
            return Poll::Ready(Some(Err("the body was cut, as asked for".into())));
        }
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        let frame = match frame {
            Some(Ok(frame)) => frame.map_data(|data| data.slice(..left.min(data.len()))),
            // The body was shorter: it is cut at its end.
            None => {
                self.left = 0;
                return self.poll_frame(context);
            }
            error => return Poll::Ready(error),
        };
        self.left -= frame.data_ref().map_or(0, |data| data.len() as u64);
        Poll::Ready(Some(Ok(frame)))
    }

    fn size_hint(&self) -> SizeHint {
        // The length that was promised before the cut: that it falls short is the point.
        self.body.size_hint()
    }
}

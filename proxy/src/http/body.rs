//! The bodies that flow between the two connections of an exchange. Neither is ever collected: a
//! frame is asked for only when the other side has room for it.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::{sync::oneshot, time::Sleep};

use super::{
    exchange::{Exchange, Outcome},
    replay::{Copy, Replay},
};
use crate::budget::Budget;

/// Why a body broke off.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The response took longer than its rule allows.
#[derive(Debug, thiserror::Error)]
#[error("the response took longer than the route's timeout")]
pub struct ResponseTimeout;

/// What a gRPC client is told if its call is still under way when the proxy's time to drain is over.
const CLOSED: &str = "weft: the proxy of the client's node ends";

// === Requests ===

/// A request's body on its way to the backend.
#[derive(Debug)]
pub struct RequestBody {
    /// None: there is no body.
    source: Option<Sent>,
    counter: Option<Arc<AtomicU64>>,
    budget: Option<Budget>,
    gate: Option<Box<Gate>>,
}

/// How often a request's body may be sent.
#[derive(Debug)]
enum Sent {
    Once(Incoming),
    Again(Copy<Incoming>),
}

/// The body of further tries of a request.
#[derive(Debug)]
pub(super) struct Copies {
    /// None: there is no body.
    replay: Option<Replay<Incoming>>,
    counter: Option<Arc<AtomicU64>>,
}

/// Holds a body back until the backend has answered `100 Continue`, or patience is over.
#[derive(Debug)]
struct Gate {
    opened: oneshot::Receiver<()>,
    /// The backend gave its final answer instead: it does not want the body.
    refused: bool,
    /// Resolves when the exchange is over.
    over: oneshot::Receiver<()>,
    patience: Pin<Box<Sleep>>,
}

/// The backend answered without having asked for the body.
#[derive(Debug, thiserror::Error)]
#[error("the backend did not want the request's body")]
pub struct Unwanted;

impl RequestBody {
    /// Counts the body's bytes with `counter`, and those that wait against `budget`.
    pub fn new(incoming: Incoming, counter: Option<Arc<AtomicU64>>, budget: &Budget) -> Self {
        Self {
            source: Some(Sent::Once(incoming)),
            counter,
            budget: Some(budget.clone()),
            gate: None,
        }
    }

    /// No body.
    pub fn empty() -> Self {
        Self {
            source: None,
            counter: None,
            budget: None,
            gate: None,
        }
    }

    /// The same body, and where more of its like come from: what was sent is kept, up to `room`
    /// bytes. Only before anything was sent.
    pub(super) fn into_replay(self, room: usize) -> (Self, Copies) {
        let (source, replay) = match (self.source, &self.budget) {
            (Some(Sent::Once(incoming)), Some(budget)) => {
                let replay = Replay::new(incoming, budget, room);
                (replay.copy().map(Sent::Again), Some(replay))
            }
            (source, _) => (source, None),
        };
        let copies = Copies {
            replay,
            counter: self.counter.clone(),
        };
        (Self { source, ..self }, copies)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.source.is_none()
    }

    /// The body is held back until `opened` resolves or `patience` is over; if `opened` is dropped
    /// it is given up when `over` resolves.
    pub fn hold(
        &mut self,
        opened: oneshot::Receiver<()>,
        over: oneshot::Receiver<()>,
        patience: Sleep,
    ) {
        self.gate = Some(Box::new(Gate {
            opened,
            refused: false,
            over,
            patience: Box::pin(patience),
        }));
    }
}

impl Copies {
    /// The body once more; none if too much of it was sent to be kept.
    pub(super) fn copy(&self) -> Option<RequestBody> {
        let Some(replay) = &self.replay else {
            return Some(RequestBody::empty());
        };
        Some(RequestBody {
            source: Some(Sent::Again(replay.copy()?)),
            counter: self.counter.clone(),
            budget: None,
            gate: None,
        })
    }

    /// There will be no other copy.
    pub(super) fn release(self) {
        if let Some(replay) = self.replay {
            replay.release();
        }
    }
}

impl Gate {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Unwanted>> {
        if !self.refused {
            match self.opened.poll_unpin(cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(_)) => self.refused = true,
                Poll::Pending => return self.patience.poll_unpin(cx).map(Ok),
            }
        }
        self.over.poll_unpin(cx).map(|_| Err(Unwanted))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(gate) = &mut this.gate {
            if let Err(unwanted) = ready!(gate.poll(cx)) {
                return Poll::Ready(Some(Err(Box::new(unwanted))));
            }
            this.gate = None;
        }
        let count = |frame: &Frame<Bytes>| {
            if let (Some(counter), Some(data)) = (&this.counter, frame.data_ref()) {
                counter.fetch_add(data.len() as u64, Ordering::Relaxed);
            }
        };
        let frame = match &mut this.source {
            None => None,
            Some(Sent::Once(incoming)) => {
                let frame = ready!(Pin::new(incoming).poll_frame(cx));
                let hold = |frame: Frame<Bytes>| match &this.budget {
                    Some(budget) => frame.map_data(|data| budget.hold(data)),
                    None => frame,
                };
                frame.map(|it| it.inspect(count).map(hold).map_err(Into::into))
            }
            Some(Sent::Again(copy)) => ready!(copy.poll_frame(cx)).map(|it| {
                it.map(|(frame, is_new)| {
                    if is_new {
                        count(&frame);
                    }
                    frame
                })
            }),
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            None => true,
            Some(Sent::Once(incoming)) => incoming.is_end_stream(),
            Some(Sent::Again(copy)) => copy.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            None => SizeHint::with_exact(0),
            Some(Sent::Once(incoming)) => incoming.size_hint(),
            Some(Sent::Again(copy)) => copy.size_hint(),
        }
    }
}

// === Responses ===

/// A response's body on its way to the client. It ends its exchange: by running dry, by breaking,
/// or by being dropped because the client is gone.
#[derive(Debug)]
pub struct ResponseBody {
    source: Source,
    exchange: Option<Box<Exchange>>,
    /// Closed early it ends with a gRPC status; else it breaks off.
    grpc: bool,
}

/// Where a response's body comes from.
#[derive(Debug)]
pub enum Source {
    /// Made here; `None` once it is sent.
    Own(Option<Bytes>),
    /// An HTTP/1.1 backend.
    Http1(Incoming),
    /// An HTTP/2 backend.
    Http2 {
        /// The stream.
        stream: h2::RecvStream,
        /// All data has been read; trailers may follow.
        data_done: bool,
    },
}

impl ResponseBody {
    /// A body and the exchange that it ends.
    pub fn new(source: Source, exchange: Box<Exchange>) -> Self {
        Self {
            source,
            exchange: Some(exchange),
            grpc: false,
        }
    }

    /// No body, and no exchange that ends with it.
    pub fn none() -> Self {
        Self {
            source: Source::Own(None),
            exchange: None,
            grpc: false,
        }
    }

    /// If it is closed early its client is told by trailers, as gRPC over HTTP/2 has it.
    pub fn closes_with_status(&mut self) {
        self.grpc = true;
    }

    /// The time to drain is over.
    fn close(&mut self) -> Option<Result<Frame<Bytes>, BodyError>> {
        self.finish(Outcome::Drained);
        if !self.grpc {
            // Without its last chunk, or with a reset: nobody takes it for whole.
            return Some(Err(Box::new(h2::Error::from(h2::Reason::CANCEL))));
        }
        self.source = Source::Own(None);
        let trailers = [
            ("grpc-status", HeaderValue::from_static("14")),
            ("grpc-message", HeaderValue::from_static(CLOSED)),
        ];
        let trailers = trailers.map(|(name, value)| (HeaderName::from_static(name), value));
        Some(Ok(Frame::trailers(trailers.into_iter().collect())))
    }

    fn finish(&mut self, outcome: Outcome) {
        if let Some(exchange) = self.exchange.take() {
            exchange.finish(outcome);
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        let outcome = if self.source.is_end_stream() {
            Outcome::Complete
        } else {
            Outcome::ClientGone
        };
        self.finish(outcome);
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(exchange) = &this.exchange
            && exchange.is_closing()
            && this.source.is_backends()
        {
            return Poll::Ready(this.close());
        }
        if let Some(exchange) = &mut this.exchange
            && exchange.poll_timeout(cx).is_ready()
        {
            this.finish(Outcome::Timeout);
            return Poll::Ready(Some(Err(Box::new(ResponseTimeout))));
        }
        let frame = ready!(this.source.poll_frame(cx));
        let frame = match &this.exchange {
            Some(exchange) => {
                let budget = exchange.budget();
                frame.map(|it| it.map(|it| it.map_data(|data| budget.hold(data))))
            }
            None => frame,
        };
        match &frame {
            Some(Ok(frame)) => {
                if let Some(exchange) = &mut this.exchange {
                    exchange.sent(frame);
                }
            }
            Some(Err(_)) => this.finish(Outcome::BackendBroke),
            None => this.finish(Outcome::Complete),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |it| it.len() as u64))
            }
            Source::Http1(incoming) => incoming.size_hint(),
            // The content-length header says it, if anybody knows.
            Source::Http2 { .. } => SizeHint::default(),
        }
    }
}

impl Source {
    /// Whether there is more of it to come from a backend.
    fn is_backends(&self) -> bool {
        !matches!(self, Self::Own(_)) && !self.is_end_stream()
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Http1(incoming) => incoming.is_end_stream(),
            Self::Http2 { stream, .. } => stream.is_end_stream(),
        }
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|it| Ok(Frame::data(it)))),
            Self::Http1(incoming) => Pin::new(incoming).poll_frame(cx).map_err(Into::into),
            Self::Http2 { stream, data_done } => {
                if !*data_done {
                    match ready!(stream.poll_data(cx)) {
                        Some(Ok(data)) => {
                            // Given back as the client takes it, so that the client's pace is the
                            // backend's.
                            let released = stream.flow_control().release_capacity(data.len());
                            return Poll::Ready(Some(match released {
                                Ok(()) => Ok(Frame::data(data)),
                                Err(error) => Err(error.into()),
                            }));
                        }
                        // The backend wants no more of the request, and has said all it had to.
                        Some(Err(error)) if error.reason() == Some(h2::Reason::NO_ERROR) => {
                            *data_done = true;
                            return Poll::Ready(None);
                        }
                        Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                        None => *data_done = true,
                    }
                }
                match ready!(stream.poll_trailers(cx)) {
                    Ok(trailers) => Poll::Ready(trailers.map(|it| Ok(Frame::trailers(it)))),
                    Err(error) => Poll::Ready(Some(Err(error.into()))),
                }
            }
        }
    }
}

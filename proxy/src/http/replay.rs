//! Bodies of requests that may be sent more than once. In flows a client's body; out flow copies of
//! it, one after the other, each from the first byte on. What has come is kept as long as there is
//! room for it and nobody has said that it is enough.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use super::body::BodyError;
use crate::budget::Budget;

/// Another copy is being sent.
#[derive(Debug, thiserror::Error)]
#[error("the request is sent anew")]
struct Superseded;

/// A body of which copies are sent.
#[derive(Debug)]
pub(super) struct Replay<B>(Arc<Mutex<Kept<B>>>);

/// One sending of it. Only the newest goes on.
#[derive(Debug)]
pub(super) struct Copy<B> {
    kept: Arc<Mutex<Kept<B>>>,
    number: u32,
}

/// A frame, and whether it came from the client just now; none: the body is over.
type Came = Option<Result<(Frame<Bytes>, bool), BodyError>>;

#[derive(Debug)]
struct Kept<B> {
    incoming: B,
    budget: Budget,
    /// What came and is kept, or not yet taken.
    pieces: VecDeque<Piece>,
    /// How many of them the newest copy has taken.
    taken: usize,
    /// Bytes that may still be kept; none: no more copies.
    room: Option<usize>,
    newest: u32,
}

#[derive(Clone, Debug)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl<B: Body<Data = Bytes>> Replay<B> {
    /// Keeps `room` bytes at most, which count against `budget` while they are kept.
    pub(super) fn new(incoming: B, budget: &Budget, room: usize) -> Self {
        Self(Arc::new(Mutex::new(Kept {
            incoming,
            budget: budget.clone(),
            pieces: VecDeque::new(),
            taken: 0,
            room: Some(room),
            newest: 0,
        })))
    }

    /// The next copy; none if the body was too long to be kept.
    pub(super) fn copy(&self) -> Option<Copy<B>> {
        let mut kept = self.0.lock();
        kept.room?;
        kept.taken = 0;
        kept.newest += 1;
        Some(Copy {
            kept: Arc::clone(&self.0),
            number: kept.newest,
        })
    }

    /// There will be no other copy: what was sent is forgotten.
    pub(super) fn release(self) {
        self.0.lock().release();
    }
}

impl<B: Body<Data = Bytes>> Kept<B> {
    fn release(&mut self) {
        if self.room.take().is_some() {
            self.pieces.drain(..self.taken);
            self.taken = 0;
        }
    }

    /// What came before, and this copy has not taken yet.
    fn earlier(&mut self) -> Option<Piece> {
        if self.room.is_none() {
            return self.pieces.pop_front();
        }
        let piece = self.pieces.get(self.taken).cloned()?;
        self.taken += 1;
        Some(piece)
    }

    /// Keeps what has just come, if there is room.
    fn keep(&mut self, piece: &Piece) {
        let size = match piece {
            Piece::Data(data) => data.len(),
            // Of bounded size, and no more than one.
            Piece::Trailers(_) => 0,
        };
        match self.room.map(|room| room.checked_sub(size)) {
            None => {}
            Some(None) => self.release(),
            Some(room) => {
                self.room = room;
                self.pieces.push_back(piece.clone());
                self.taken += 1;
            }
        }
    }

    fn waiting(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().skip(self.taken)
    }
}

impl<B> Copy<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    /// The next frame.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Came> {
        let kept = &mut *self.kept.lock();
        if kept.newest != self.number {
            return Poll::Ready(Some(Err(Box::new(Superseded))));
        }
        if let Some(piece) = kept.earlier() {
            return Poll::Ready(Some(Ok((piece.into(), false))));
        }
        let frame = match ready!(Pin::new(&mut kept.incoming).poll_frame(cx)) {
            None => return Poll::Ready(None),
            Some(Err(error)) => {
                // It will never be whole.
                kept.release();
                return Poll::Ready(Some(Err(error.into())));
            }
            Some(Ok(frame)) => frame,
        };
        let piece = match frame.into_data() {
            Ok(data) => Piece::Data(kept.budget.hold(data)),
            Err(frame) => Piece::Trailers(frame.into_trailers().unwrap_or_default()),
        };
        kept.keep(&piece);
        Poll::Ready(Some(Ok((piece.into(), true))))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let kept = self.kept.lock();
        kept.waiting().next().is_none() && kept.incoming.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let kept = self.kept.lock();
        let waiting: u64 = kept.waiting().map(Piece::len).sum();
        let rest = kept.incoming.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + waiting);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + waiting);
        }
        hint
    }
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Trailers(_) => 0,
        }
    }
}

impl From<Piece> for Frame<Bytes> {
    fn from(piece: Piece) -> Self {
        match piece {
            Piece::Data(data) => Self::data(data),
            Piece::Trailers(trailers) => Self::trailers(trailers),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::FutureExt;

    use super::*;

    /// Hands out its frames, and is not ready in between.
    struct Parts(VecDeque<Option<Frame<Bytes>>>);

    impl Body for Parts {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.0.pop_front() {
                None => Poll::Ready(None),
                Some(None) => Poll::Pending,
                Some(Some(frame)) => Poll::Ready(Some(Ok(frame))),
            }
        }

        fn is_end_stream(&self) -> bool {
            self.0.is_empty()
        }
    }

    fn replay(room: usize, parts: &[&str]) -> Replay<Parts> {
        let part = |part: &&str| match *part {
            "" => None,
            "trailers" => Some(Frame::trailers(HeaderMap::new())),
            part => Some(Frame::data(Bytes::copy_from_slice(part.as_bytes()))),
        };
        let parts = parts.iter().map(part).collect();
        Replay::new(Parts(parts), &Budget::new(1 << 20), room)
    }

    /// What comes until it is not ready or over.
    fn read(copy: &mut Copy<Parts>) -> String {
        let mut all = String::new();
        while let Some(Some(frame)) = std::future::poll_fn(|cx| copy.poll_frame(cx)).now_or_never()
        {
            match frame.map(|(frame, _)| frame.into_data()) {
                Ok(Ok(data)) => all += std::str::from_utf8(&data).expect("text"),
                Ok(Err(_)) => all += "+trailers",
                Err(error) => return error.to_string(),
            }
        }
        all
    }

    #[test]
    fn each_copy_begins_at_the_first_byte_and_goes_on_to_the_last() {
        let replay = replay(100, &["ab", "", "cd", "trailers"]);
        let mut first = replay.copy().expect("a copy");
        assert_eq!(read(&mut first), "ab");
        let mut second = replay.copy().expect("a copy");
        assert_eq!(second.size_hint().lower(), 2);
        assert_eq!(read(&mut first), "the request is sent anew");
        assert_eq!(read(&mut second), "abcd+trailers");
        assert!(second.is_end_stream());
        let mut third = replay.copy().expect("a copy");
        assert!(!third.is_end_stream());
        assert_eq!(read(&mut third), "abcd+trailers");
    }

    #[test]
    fn what_is_longer_than_there_is_room_for_is_sent_once() {
        let replay = replay(3, &["ab", "", "cd", "ef"]);
        let mut first = replay.copy().expect("a copy");
        assert_eq!(read(&mut first), "ab");
        let mut second = replay.copy().expect("it still has room");
        assert_eq!(read(&mut second), "abcdef");
        assert!(replay.copy().is_none());
    }

    #[test]
    fn after_the_release_the_last_copy_goes_on_and_nothing_is_kept() {
        let replay = replay(100, &["ab", "cd", "", "ef"]);
        read(&mut replay.copy().expect("a copy"));
        let mut last = replay.copy().expect("a copy");
        let kept = Arc::clone(&replay.0);
        assert_eq!(kept.lock().pieces.len(), 2);
        replay.release();
        assert_eq!(read(&mut last), "abcdef");
        assert!(kept.lock().pieces.is_empty());
    }
}

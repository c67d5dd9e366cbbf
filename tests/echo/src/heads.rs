//! Request heads of HTTP/1 as they were on the wire: bytes read in, header lists out.
//!
//! hyper lower-cases names and groups repeated ones, and a test of a proxy wants to know. So the
//! stream under hyper shows us what it reads, we follow the framing of requests alongside, and the
//! service takes one head per request. Where this loses track (it is not the judge of what is
//! valid) it stops, and the service falls back to hyper's view.

use std::collections::VecDeque;

/// Longest head that is followed, and most headers in it.
const LONGEST_HEAD: usize = 256 * 1024;
const MOST_HEADERS: usize = 512;
/// Most heads of pipelined requests that wait for their service call.
const MOST_WAITING: usize = 1024;

/// Name and value of each header, as received.
pub(crate) type Head = Vec<(String, String)>;

/// Follows one connection.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    state: State,
    line: Vec<u8>,
    complete: VecDeque<Head>,
}

#[derive(Debug, Default, PartialEq)]
enum State {
    #[default]
    Head,
    Body(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    Lost,
}

impl Heads {
    /// The head of the next request whose service call begins.
    pub(crate) fn take(&mut self) -> Option<Head> {
        self.complete.pop_front()
    }

    /// No more HTTP follows: the connection is upgraded, or is HTTP/2.
    pub(crate) fn stop(&mut self) {
        *self = Self {
            state: State::Lost,
            ..Self::default()
        };
    }

    /// Bytes that were read, in order.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.state != State::Lost {
            bytes = self.step(bytes);
        }
    }

    fn step<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        match self.state {
            State::Lost => &[],
            State::Body(left) => self.skip(bytes, left, State::Body, State::Head),
            State::ChunkData(left) => self.skip(bytes, left, State::ChunkData, State::ChunkEnd),
            State::Head => {
                let (taken, rest) = to_line_end(bytes);
                self.line.extend_from_slice(taken);
                let blank = matches!(self.line.as_slice(), b"\r\n" | b"\n");
                if blank {
                    // Empty lines before a request are allowed (RFC 9112 section 2.2).
                    self.line.clear();
                } else if self.line.ends_with(b"\r\n\r\n") || self.line.ends_with(b"\n\n") {
                    let head = std::mem::take(&mut self.line);
                    self.finish_head(&head);
                } else if self.line.len() > LONGEST_HEAD {
                    self.stop();
                }
                rest
            }
            State::ChunkSize | State::ChunkEnd | State::Trailers => {
                let (taken, rest) = to_line_end(bytes);
                self.line.extend_from_slice(taken);
                if self.line.ends_with(b"\n") {
                    let line = std::mem::take(&mut self.line);
                    self.finish_line(line.trim_ascii_end());
                } else if self.line.len() > LONGEST_HEAD {
                    self.stop();
                }
                rest
            }
        }
    }

    fn skip<'a>(
        &mut self,
        bytes: &'a [u8],
        left: u64,
        more: fn(u64) -> State,
        then: State,
    ) -> &'a [u8] {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        let left = left - taken as u64;
        self.state = if left == 0 { then } else { more(left) };
        &bytes[taken..]
    }

    fn finish_line(&mut self, line: &[u8]) {
        self.state = match self.state {
            State::ChunkSize => match chunk_size(line) {
                Some(0) => State::Trailers,
                Some(size) => State::ChunkData(size),
                None => State::Lost,
            },
            State::ChunkEnd if line.is_empty() => State::ChunkSize,
            State::Trailers if line.is_empty() => State::Head,
            State::Trailers => State::Trailers,
            _ => State::Lost,
        };
    }

    fn finish_head(&mut self, bytes: &[u8]) {
        let mut fields = [httparse::EMPTY_HEADER; MOST_HEADERS];
        let mut request = httparse::Request::new(&mut fields);
        let complete = matches!(request.parse(bytes), Ok(httparse::Status::Complete(_)));
        if !complete || self.complete.len() >= MOST_WAITING {
            return self.stop();
        }
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let head: Head = request
            .headers
            .iter()
            .map(|field| (field.name.to_owned(), text(field.value)))
            .collect();
        self.state = body_of(&head);
        self.complete.push_back(head);
    }
}

fn body_of(head: &Head) -> State {
    let value = |wanted: &str| {
        let found = head
            .iter()
            .rfind(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.trim().to_ascii_lowercase())
    };
    if value("transfer-encoding").is_some_and(|coding| coding.ends_with("chunked")) {
        return State::ChunkSize;
    }
    match value("content-length").map(|length| length.parse()) {
        None | Some(Ok(0)) => State::Head,
        Some(Ok(length)) => State::Body(length),
        Some(Err(_)) => State::Lost,
    }
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?;
    u64::from_str_radix(text.split(';').next()?.trim(), 16).ok()
}

fn to_line_end(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(bytes.len(), |at| at + 1);
    bytes.split_at(end)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const THREE: &str = "POST /a HTTP/1.1\r\nHoSt: a\r\nX-One: 1\r\nContent-Length: 5\r\nx-ONE: 2\r\n\r\n\r\n\r\nx\
        POST /b HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n\
        4;ext=1\r\n\r\n\r\n\r\n0\r\nTrailer: t\r\n\r\n\
        \r\nGET /c HTTP/1.1\r\nHost: c\r\n\r\n";

    #[test]
    fn heads_come_out_as_received_however_the_bytes_are_split() {
        for size in 1..THREE.len() {
            let mut heads = Heads::default();
            for piece in THREE.as_bytes().chunks(size) {
                heads.feed(piece);
            }
            let first: Vec<_> = heads.take().unwrap();
            let first: Vec<_> = first
                .iter()
                .map(|(n, v)| (n.as_str(), v.as_str()))
                .collect();
            let expected = [
                ("HoSt", "a"),
                ("X-One", "1"),
                ("Content-Length", "5"),
                ("x-ONE", "2"),
            ];
            assert_eq!(first, expected, "pieces of {size}");
            assert_eq!(heads.take().unwrap()[0].1, "b", "pieces of {size}");
            assert_eq!(heads.take().unwrap()[0].1, "c", "pieces of {size}");
            assert_eq!(heads.take(), None);
        }
    }

    #[test]
    fn what_is_not_http_1_is_given_up() {
        for bytes in [
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "nonsense\r\n\r\n",
            "\0\0\n\n",
        ] {
            let mut heads = Heads::default();
            heads.feed(bytes.as_bytes());
            heads.feed(b"GET / HTTP/1.1\r\n\r\n");
            assert_eq!(heads.take(), None, "{bytes:?}");
        }
    }
}

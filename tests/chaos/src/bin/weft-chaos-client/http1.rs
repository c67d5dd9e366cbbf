//! HTTP/1.1 over a bare socket, so that it is known exactly what was written and what came: a lane
//! in, checked answers out.

use std::{
    io,
    mem::MaybeUninit,
    time::{Duration, Instant},
};

use serde::Deserialize;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use weft_chaos::record::{Cause, Conn, Kind, PATIENCE, now};

use crate::{Shared, Wrong};

/// Pieces of a slow answer, and the time between them.
const PIECES: u64 = 4;
const PIECE_INTERVAL: Duration = Duration::from_millis(75);
/// Most of an answer that is not as expected which goes into a failure's words.
const EXCERPT: usize = 200;

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    conn: Conn,
    until: Instant,
}

struct Response {
    status: u16,
    pod: String,
    version: String,
    closes: bool,
    body: Vec<u8>,
}

/// The part of the echo's answer that is checked.
#[derive(Deserialize)]
struct Seen {
    peer: String,
    #[serde(default)]
    body: Option<String>,
    headers: Vec<(String, String)>,
}

pub(crate) async fn run(shared: &Shared) {
    let mut kept: Option<Connection> = None;
    while !shared.is_stopping() {
        kept = one(shared, kept).await;
        if shared.lane.kind == Kind::New {
            kept = None;
        }
        shared.pause().await;
    }
}

/// One request, on the kept connection if it is still good. Gives back a connection to keep.
async fn one(shared: &Shared, kept: Option<Connection>) -> Option<Connection> {
    let kept = kept.filter(|held| Instant::now() < held.until);
    let mut held = match kept.map(|held| (idle(&held.stream), held)) {
        Some((Ok(false), held)) => held,
        Some((Err(wrong), held)) => {
            let began = now();
            shared
                .recorder
                .failed(&shared.lane, &held.conn, began, &wrong);
            return None;
        }
        over => {
            if over.is_some() {
                shared.recorder.closed_in_order(&shared.lane.name);
            }
            let until = Instant::now() + shared.life();
            let (stream, conn) = shared.connect().await?;
            Connection {
                stream,
                buffer: Vec::new(),
                conn,
                until,
            }
        }
    };
    let (began, start) = (now(), Instant::now());
    match exchange(shared, &mut held).await {
        Ok(keep) => {
            shared.recorder.ok(&shared.lane.name, start);
            keep.then_some(held)
        }
        Err(wrong) => {
            shared
                .recorder
                .failed(&shared.lane, &held.conn, began, &wrong);
            None
        }
    }
}

/// Whether the other side has closed a connection on which nothing is asked. Asks the kernel, so
/// that the time between this look and the request's first byte is as short as can be.
fn idle(stream: &TcpStream) -> Result<bool, Wrong> {
    let mut byte = [MaybeUninit::uninit()];
    match SockRef::from(stream).peek(&mut byte) {
        Ok(0) => Ok(true),
        Ok(_) => Err(Wrong::new(Cause::Protocol, "bytes that nobody asked for")),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(Wrong::new(Cause::ResetIdle, error.to_string())),
    }
}

/// Sends a request and checks its answer; whether the connection may be kept.
async fn exchange(shared: &Shared, held: &mut Connection) -> Result<bool, Wrong> {
    let nonce = format!("{:016x}", rand::random::<u64>());
    let slow = shared.lane.kind == Kind::Slow;
    // Requests with a body must not be sent twice by anybody; those without may.
    let post = !slow && held.conn.answered.is_multiple_of(2);
    let path = if slow {
        format!(
            "/?stream={PIECES}&interval={}ms",
            PIECE_INTERVAL.as_millis()
        )
    } else {
        "/".to_owned()
    };
    let (method, body) = if post {
        ("POST", nonce.as_str())
    } else {
        ("GET", "")
    };
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {}\r\nx-nonce: {nonce}\r\n",
        shared.lane.to
    );
    if post {
        request += &format!("content-length: {}\r\n", body.len());
    }
    request += "\r\n";
    request += body;
    let answered = timeout(PATIENCE, answer(held, request.as_bytes())).await;
    let response = answered.unwrap_or_else(|_| {
        Err(Wrong::new(
            Cause::Timeout,
            format!("no whole answer within {PATIENCE:?}"),
        ))
    })?;
    if response.status != 200 {
        return Err(Wrong::new(
            Cause::Status,
            format!("{}: {}", response.status, excerpt(&response.body)),
        ));
    }
    held.conn.backend = response.pod;
    held.conn.answered += 1;
    if slow {
        let expected: String = (0..PIECES).map(|n| format!("piece {n}\n")).collect();
        if response.body != expected.as_bytes() {
            return Err(Wrong::new(Cause::Body, excerpt(&response.body)));
        }
        // Nothing in such an answer tells the address.
        let own = held.conn.local.clone();
        shared.check(&response.version, &own, &held.conn)?;
    } else {
        let seen: Seen = serde_json::from_slice(&response.body)
            .map_err(|_| Wrong::new(Cause::Body, excerpt(&response.body)))?;
        let header = seen
            .headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("x-nonce"));
        let came_back = header.is_some_and(|(_, value)| *value == nonce)
            && (!post || seen.body.as_ref() == Some(&nonce));
        if !came_back {
            return Err(Wrong::new(Cause::Body, excerpt(&response.body)));
        }
        shared.check(&response.version, &seen.peer, &held.conn)?;
    }
    Ok(!response.closes)
}

fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(EXCERPT)])
        .trim()
        .to_owned()
}

async fn answer(held: &mut Connection, request: &[u8]) -> Result<Response, Wrong> {
    let stream = &mut held.stream;
    stream
        .write_all(request)
        .await
        .map_err(|error| Wrong::io(&error))?;
    held.buffer.clear();
    let (mut response, length, head) = loop {
        if let Some(parsed) = parse(&held.buffer)? {
            break parsed;
        }
        more(stream, &mut held.buffer).await?;
    };
    held.buffer.drain(..head);
    match length {
        Some(length) => {
            while held.buffer.len() < length {
                more(stream, &mut held.buffer).await?;
            }
            response.body = held.buffer.drain(..length).collect();
        }
        None => loop {
            if let Some(body) = chunks(&held.buffer)? {
                response.body = body;
                break;
            }
            more(stream, &mut held.buffer).await?;
        },
    }
    Ok(response)
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<(), Wrong> {
    match stream.read_buf(buffer).await {
        Ok(0) => Err(Wrong::new(
            Cause::Eof,
            format!("ended after {} bytes of the answer", buffer.len()),
        )),
        Ok(_) => Ok(()),
        Err(error) => Err(Wrong::io(&error)),
    }
}

/// The head, once it is whole: with the body's length (none: it comes in chunks) and its own.
#[allow(clippy::type_complexity)]
fn parse(buffer: &[u8]) -> Result<Option<(Response, Option<usize>, usize)>, Wrong> {
    let protocol = |what: &str| Wrong::new(Cause::Protocol, format!("{what}: {}", excerpt(buffer)));
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Response::new(&mut headers);
    let length = match head.parse(buffer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(protocol(&error.to_string())),
    };
    let value = |name: &str| {
        let found = head
            .headers
            .iter()
            .find(|h| h.name.eq_ignore_ascii_case(name));
        found.map(|h| String::from_utf8_lossy(h.value).into_owned())
    };
    let content = match (value("content-length"), value("transfer-encoding")) {
        (Some(text), None) => Some(text.parse().map_err(|_| protocol("content-length"))?),
        (None, Some(coding)) if coding.eq_ignore_ascii_case("chunked") => None,
        _ => return Err(protocol("neither a length nor chunks")),
    };
    let response = Response {
        status: head.code.unwrap_or_default(),
        pod: value("x-echo-pod").unwrap_or_default(),
        version: value("x-echo-version").unwrap_or_default(),
        closes: value("connection").is_some_and(|v| v.eq_ignore_ascii_case("close")),
        body: Vec::new(),
    };
    Ok(Some((response, content, length)))
}

/// The body of chunks, once the last is there.
fn chunks(mut rest: &[u8]) -> Result<Option<Vec<u8>>, Wrong> {
    let mut body = Vec::new();
    loop {
        let (start, size) = match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete(found)) => found,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(Wrong::new(Cause::Protocol, "no chunk's size")),
        };
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let end = start.saturating_add(size).saturating_add(2);
        if rest.len() < end {
            return Ok(None);
        }
        if size == 0 {
            return Ok(Some(body));
        }
        body.extend_from_slice(&rest[start..start + size]);
        rest = &rest[end..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_put_together_once_all_are_there() {
        let whole = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(chunks(whole).unwrap(), Some(b"abcde".to_vec()));
        for cut in 0..whole.len() {
            assert_eq!(chunks(&whole[..cut]).unwrap(), None, "{cut}");
        }
        assert_eq!(chunks(b"x\r\n").unwrap_err().cause, Cause::Protocol);
    }

    #[test]
    fn an_answer_without_length_is_no_answer() {
        let parsed = |text: &str| parse(text.as_bytes());
        assert!(parsed("HTTP/1.1 200 OK\r\n").unwrap().is_none());
        let (response, length, _) =
            parsed("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n")
                .unwrap()
                .unwrap();
        assert!(response.closes && length == Some(2));
        assert!(parsed("HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(parsed("hello there, this is no HTTP\r\n").is_err());
    }
}

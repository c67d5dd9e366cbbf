//! What the client in a pod is told (lanes, as JSON in an argument), and what it says (lines of JSON
//! on standard output).

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// How long anything may take before it counts as failed. More than a proxy's restart takes on a
/// busy machine, and more than the mesh's own time-outs, so that these are what is seen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One kind of traffic to one destination.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lane {
    /// Names it in reports.
    pub name: String,
    /// What is spoken.
    pub kind: Kind,
    /// HOST:PORT.
    pub to: String,
    /// How many connections at once.
    pub connections: u32,
    /// Milliseconds between the requests (or pieces of a stream) of one connection.
    pub interval_ms: u64,
    /// Milliseconds after which the client ends a connection by itself; 0: never.
    pub life_ms: u64,
    /// Versions of which one must have answered.
    pub backends: Vec<String>,
}

/// What a lane speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// HTTP/1.1, one request after the other on a kept connection.
    #[default]
    KeepAlive,
    /// HTTP/1.1, a connection for each request.
    New,
    /// HTTP/1.1, answers that come in pieces, for a fifth of a second.
    Slow,
    /// HTTP/2 with prior knowledge, several requests at once.
    Http2,
    /// gRPC, unary calls.
    Grpc,
    /// Bytes both ways, for the connection's whole life.
    Stream,
}

impl Kind {
    /// As in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::KeepAlive => "keep-alive",
            Kind::New => "new connections",
            Kind::Slow => "slow answers",
            Kind::Http2 => "HTTP/2",
            Kind::Grpc => "gRPC",
            Kind::Stream => "byte streams",
        }
    }
}

/// A line of the client's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// Something went wrong.
    Failure(Failure),
    /// A stream that was to go on was ended in order by the other side.
    Ended(Conn),
    /// What has been done so far, by lane.
    Tally(BTreeMap<String, Tally>),
    /// The client has ended in order; the tally before this is the last.
    Done {},
}

/// A connection, as the client knows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conn {
    /// The lane's name.
    pub lane: String,
    /// Unix milliseconds at which `connect` was called.
    pub opened: u64,
    /// Unix milliseconds of what is told.
    pub at: u64,
    /// The client's address; empty if it did not come to a connection.
    pub local: String,
    /// The address that was dialled.
    pub remote: String,
    /// Requests that were answered on it.
    pub answered: u64,
    /// The pod that answered last.
    pub backend: String,
}

/// A failed request or stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The connection.
    #[serde(flatten)]
    pub conn: Conn,
    /// What is spoken.
    pub kind: Kind,
    /// Why.
    pub cause: Cause,
    /// The same in words.
    pub detail: String,
    /// Unix milliseconds at which the request began.
    pub began: u64,
}

/// Why something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// `connect` was refused.
    ConnectRefused,
    /// `connect` failed otherwise.
    Connect,
    /// No connection in time.
    ConnectTimeout,
    /// The connection, or the stream of an HTTP/2 connection, was reset.
    Reset,
    /// A kept connection was reset while nothing was asked: not in order.
    ResetIdle,
    /// The connection ended after the request was written, without an answer or in the middle.
    Eof,
    /// No answer in time.
    Timeout,
    /// Another status than 200.
    Status,
    /// The answer is not to this request.
    Body,
    /// Somebody else answered.
    Backend,
    /// The server saw another client's address.
    Peer,
    /// What came was no HTTP.
    Protocol,
}

/// What a lane has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// Requests with the right answer, and streams that came to their end.
    pub ok: u64,
    /// Everything else.
    pub failed: u64,
    /// Connections that were opened.
    pub opened: u64,
    /// Connections that the other side ended in order between two requests, and streams likewise.
    pub ended: u64,
    /// Bytes of streams that came back as they were sent.
    pub bytes: u64,
    /// Requests that took more than a second.
    pub slow: u64,
    /// The longest, in milliseconds.
    pub slowest_ms: u64,
}

impl Tally {
    /// Takes another's numbers in.
    pub fn add(&mut self, other: &Tally) {
        self.ok += other.ok;
        self.failed += other.failed;
        self.opened += other.opened;
        self.ended += other.ended;
        self.bytes += other.bytes;
        self.slow += other.slow;
        self.slowest_ms = self.slowest_ms.max(other.slowest_ms);
    }
}

/// Milliseconds since 1970.
pub fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A time as access logs write it.
pub fn clock(unix_ms: u64) -> String {
    let nanos = i128::from(unix_ms) * 1_000_000;
    let Ok(time) = time::OffsetDateTime::from_unix_timestamp_nanos(nanos) else {
        return unix_ms.to_string();
    };
    let (hour, minute, second, milli) = time.time().as_hms_milli();
    format!("{hour:02}:{minute:02}:{second:02}.{milli:03}")
}

/// The byte at a position of a stream: a pattern that shows lost, doubled and swapped pieces.
pub fn pattern(position: u64) -> u8 {
    (position ^ (position >> 8) ^ (position >> 16)).to_le_bytes()[0]
}

//! What a test says to `weft-lab-client` inside a pod, and what that answers: JSON on its standard
//! input and output.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One HTTP request, each on a connection of its own.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Request {
    /// HTTP/2 with prior knowledge instead of HTTP/1.1.
    pub h2: bool,
    /// Method; empty for GET.
    pub method: String,
    /// Absolute URL: its host and port are dialled.
    pub url: String,
    /// Headers, in order; `host` overrides the one from the URL.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: String,
    /// Milliseconds for the whole; 0 for ten seconds.
    pub timeout_ms: u64,
}

/// What came back.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    /// Status code; 0 where there was none.
    pub status: u16,
    /// Headers, in order; names in lower case.
    pub headers: Vec<(String, String)>,
    /// The beginning of the body, lossily as text.
    pub body: String,
    /// How long the body was.
    pub body_bytes: u64,
    /// Trailers.
    pub trailers: Vec<(String, String)>,
    /// Why there is no answer, or no whole one.
    pub error: Option<String>,
    /// Milliseconds it took.
    pub millis: u64,
}

impl Answer {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, v)| v.as_str())
    }

    /// What the echo server saw, if the answer is its.
    pub fn seen(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or(serde_json::Value::Null)
    }
}

/// The sum of a load.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LoadReport {
    /// Answers with status 200.
    pub ok: u64,
    /// Everything else.
    pub failed: u64,
    /// How often each cause of failure came.
    pub causes: BTreeMap<String, u64>,
    /// Answers by the version that gave them.
    pub versions: BTreeMap<String, u64>,
    /// Answers by pod.
    pub pods: BTreeMap<String, u64>,
    /// Unix milliseconds and version of each answer, in the order in which they came.
    pub timeline: Vec<(u64, String)>,
}

/// The sum of a raw byte exchange.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ByteReport {
    /// The line that the server sent before it was spoken to, if asked for.
    pub banner: Option<String>,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes that came back, and were the ones sent.
    pub echoed: u64,
    /// How the connection ended: "eof", "reset" or another error.
    pub end: String,
}

/// How a byte stream that lived long fared.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LiveReport {
    /// How often something came back.
    pub exchanges: u64,
    /// How it ended: "eof", "reset", "ended by itself", or another error.
    pub end: String,
    /// How long it lived.
    pub millis: u64,
}

/// What gRPC calls of every shape brought.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GrpcReport {
    /// The version that answered the unary call.
    pub version: String,
    /// Messages of a server's stream.
    pub from_server: u32,
    /// Messages of a client's stream that the server counted.
    pub from_client: u32,
    /// Messages that went and came in a stream both ways.
    pub both_ways: u32,
    /// How a call failed that was asked to: code and message.
    pub failure: String,
}

/// One request of a probe.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Probed {
    /// When it was due, in microseconds since 1970.
    pub at_micros: u64,
    /// From then to the last byte of the answer.
    pub took_micros: u64,
    /// Whether there was a good answer.
    pub ok: bool,
}

/// What a flood came to.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct FloodReport {
    /// Connections or streams that went as the flooder wanted.
    pub done: u64,
    /// Those that were refused, reset or ignored.
    pub failed: u64,
}

/// What became of connections that were kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HoldReport {
    /// How many stood.
    pub open: u64,
    /// Why others did not.
    pub failed: Vec<String>,
    /// Those that broke before they were closed: Unix milliseconds, and how.
    pub broken: Vec<(u64, String)>,
}

/// How far one connection came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dialled {
    /// Whether the connection came about.
    pub connected: bool,
    /// What came back.
    pub answer: String,
    /// How it ended: "eof", "reset", "silence", or another error.
    pub end: String,
}

impl Dialled {
    /// The status of an HTTP answer; 0 where there is none.
    pub fn status(&self) -> u16 {
        let status = self.answer.split(' ').nth(1);
        status.and_then(|status| status.parse().ok()).unwrap_or(0)
    }
}

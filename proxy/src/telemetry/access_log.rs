//! The access log: what happened to one request or connection flows in, a line of JSON flows out.
//!
//! The data path hands its entry over and goes on; if the writer (a thread of its own, for a
//! disk or pipe may block) is behind by [`QUEUE`] entries, the entry is dropped and counted.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::{mpsc, oneshot};

use super::labels::{Direction, Tunnel};
use crate::model::{Client, Workload};

/// Entries that may wait: some tens of milliseconds at the rates that a node reaches.
pub(super) const QUEUE: usize = 8_192;
/// The writer gathers this long before it writes. It is awake at most twenty times a second,
/// and an entry does not cost the data path a wake-up.
const GATHER: Duration = Duration::from_millis(50);

/// Where lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sink {
    /// Nowhere.
    #[default]
    Off,
    /// Standard output.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
}

impl FromStr for Sink {
    type Err = std::convert::Infallible;

    fn from_str(from: &str) -> Result<Self, Self::Err> {
        Ok(match from {
            "off" | "" => Self::Off,
            "-" => Self::Stdout,
            path => Self::File(path.into()),
        })
    }
}

/// One side of a connection.
#[derive(Clone, Debug, Default)]
pub struct LogPeer {
    /// Pod name; the owner's if the pod is not known.
    pub workload: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// SPIFFE id.
    pub identity: Arc<str>,
    /// Address and port.
    pub address: Option<SocketAddr>,
}

impl LogPeer {
    /// A client on this node.
    pub fn client(from: &Client) -> Self {
        Self {
            workload: Arc::clone(&from.name),
            namespace: Arc::clone(&from.namespace),
            identity: Arc::clone(&from.identity),
            address: Some(from.address),
        }
    }

    /// A workload at one of its addresses.
    pub fn workload(from: &Workload, address: SocketAddr) -> Self {
        Self {
            workload: Arc::clone(&from.name),
            namespace: Arc::clone(&from.namespace),
            identity: Arc::clone(&from.identity),
            address: Some(address),
        }
    }

    /// Only an address is known.
    pub fn address(address: SocketAddr) -> Self {
        Self {
            address: Some(address),
            ..Self::default()
        }
    }
}

/// One L4 connection.
#[derive(Clone, Debug)]
pub struct ConnectionLog {
    /// When it began.
    pub start: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// Which way.
    pub direction: Direction,
    /// Over what.
    pub tunnel: Tunnel,
    /// The client.
    pub src: LogPeer,
    /// The server.
    pub dst: LogPeer,
    /// `<namespace>/<name>`; empty: none was addressed.
    pub service: Arc<str>,
    /// `<namespace>/<name>`; empty: none applied.
    pub route: Arc<str>,
    /// The rule's name or index.
    pub rule: Arc<str>,
    /// `tcp`, `tls`, `http/1.1`, `h2`, ...
    pub protocol: &'static str,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// What went wrong.
    pub error: Option<Box<str>>,
}

/// One HTTP request.
#[derive(Clone, Debug)]
pub struct RequestLog {
    /// What it shares with connections.
    pub connection: ConnectionLog,
    /// Method.
    pub method: http::Method,
    /// Path, as the client sent it, without the query (which may carry secrets).
    pub path: Box<str>,
    /// Status; 0: no response was made.
    pub status: u16,
}

/// What the writer is sent.
enum Entry {
    Connection(ConnectionLog),
    Request(RequestLog),
    Flush(oneshot::Sender<()>),
}

/// The data path's end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessLog {
    entries: Option<mpsc::Sender<Entry>>,
}

impl AccessLog {
    /// Opens the sink and starts its writer, which ends with the last clone of what is returned.
    ///
    /// # Errors
    /// The file cannot be opened, or no thread made.
    pub fn open(sink: &Sink) -> io::Result<Self> {
        let out: Box<dyn Write + Send> = match sink {
            Sink::Off => return Ok(Self { entries: None }),
            Sink::Stdout => Box::new(io::stdout()),
            Sink::File(path) => Box::new(append(path)?),
        };
        Self::to(out)
    }

    pub(super) fn to(out: Box<dyn Write + Send>) -> io::Result<Self> {
        let (entries, queue) = mpsc::channel(QUEUE);
        thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write(queue, out))?;
        Ok(Self {
            entries: Some(entries),
        })
    }

    /// Whether entries are wanted: if not, don't make them.
    pub fn is_on(&self) -> bool {
        self.entries.is_some()
    }

    pub(super) fn connection(&self, entry: ConnectionLog) -> bool {
        self.send(Entry::Connection(entry))
    }

    pub(super) fn request(&self, entry: RequestLog) -> bool {
        self.send(Entry::Request(entry))
    }

    /// False: it was dropped.
    fn send(&self, entry: Entry) -> bool {
        match &self.entries {
            Some(entries) => entries.try_send(entry).is_ok(),
            None => true,
        }
    }

    /// Returns once everything that was handed over before is written.
    pub async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if let Some(entries) = &self.entries
            && entries.send(Entry::Flush(done)).await.is_ok()
        {
            // An error means that the writer is gone: there is nothing left to wait for.
            let _ = written.await;
        }
    }
}

fn append(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|e| {
            let path = path.display();
            io::Error::new(e.kind(), format!("cannot open the access log {path}: {e}"))
        })
}

/// The writer.
fn write(mut queue: mpsc::Receiver<Entry>, mut out: Box<dyn Write + Send>) {
    let mut lines = Vec::with_capacity(64 * 1024);
    let mut failing = false;
    while let Some(first) = queue.blocking_recv() {
        if !matches!(first, Entry::Flush(_)) {
            thread::sleep(GATHER);
        }
        let mut waiting = Vec::new();
        let mut next = Some(first);
        // Not more than the queue's length, lest a fast producer keeps a batch from its end.
        for _ in 0..QUEUE {
            let Some(entry) = next.take() else { break };
            match entry {
                Entry::Connection(entry) => line(&mut lines, &Line::connection(&entry)),
                Entry::Request(entry) => line(&mut lines, &Line::request(&entry)),
                Entry::Flush(done) => waiting.push(done),
            }
            next = queue.try_recv().ok();
        }
        if let Some(Entry::Flush(done)) = next {
            waiting.push(done);
        }
        match out.write_all(&lines).and_then(|()| out.flush()) {
            Ok(()) => failing = false,
            Err(e) if !failing => {
                failing = true;
                tracing::warn!("the access log cannot be written, lines are lost: {e}");
            }
            Err(_) => {}
        }
        lines.clear();
        for done in waiting {
            let _ = done.send(());
        }
    }
}

fn line(lines: &mut Vec<u8>, line: &Line<'_>) {
    // Writing to memory does not fail; a line that cannot be JSON is no line.
    let start = lines.len();
    if serde_json::to_writer(&mut *lines, line).is_err() {
        lines.truncate(start);
        return;
    }
    lines.push(b'\n');
}

fn is_empty(text: &str) -> bool {
    text.is_empty()
}

/// A line, in the order in which it is read best.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    kind: &'static str,
    direction: Direction,
    src_pod: &'a str,
    #[serde(rename = "src_ns")]
    src_namespace: &'a str,
    src_identity: &'a str,
    src_address: Option<SocketAddr>,
    dst_workload: &'a str,
    #[serde(rename = "dst_ns")]
    dst_namespace: &'a str,
    dst_identity: &'a str,
    dst_address: Option<SocketAddr>,
    #[serde(skip_serializing_if = "is_empty")]
    service: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    route: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    rule: &'a str,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    bytes_in: u64,
    bytes_out: u64,
    duration_ms: f64,
    tunnel: Tunnel,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl<'a> Line<'a> {
    fn connection(from: &'a ConnectionLog) -> Self {
        Self {
            time: timestamp(from.start),
            kind: "connection",
            direction: from.direction,
            src_pod: &from.src.workload,
            src_namespace: &from.src.namespace,
            src_identity: &from.src.identity,
            src_address: from.src.address,
            dst_workload: &from.dst.workload,
            dst_namespace: &from.dst.namespace,
            dst_identity: &from.dst.identity,
            dst_address: from.dst.address,
            service: &from.service,
            route: &from.route,
            rule: &from.rule,
            protocol: from.protocol,
            method: None,
            path: None,
            status: None,
            bytes_in: from.bytes_in,
            bytes_out: from.bytes_out,
            duration_ms: from.duration.as_micros() as f64 / 1e3,
            tunnel: from.tunnel,
            error: from.error.as_deref(),
        }
    }

    fn request(from: &'a RequestLog) -> Self {
        Self {
            kind: "request",
            method: Some(from.method.as_str()),
            path: Some(&from.path),
            status: Some(from.status),
            ..Self::connection(&from.connection)
        }
    }
}

/// RFC 3339 in UTC, to the millisecond.
fn timestamp(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    at.replace_millisecond(at.millisecond())
        .unwrap_or(at)
        .format(&Rfc3339)
        .unwrap_or_default()
}

//! A bounded load: a target and limits in, an [`Outcome`] for each request and a [`Summary`] out.

mod grpc;
mod http;
mod summary;
mod tcp;

pub use summary::{Latency, Outcome, Summary};

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::http::{HeaderName, HeaderValue, Method, Uri};
use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::BoxError;
use summary::Collector;

/// What to send, how often and how fast.
#[derive(Debug, Clone)]
pub struct Options {
    /// `http://`, `grpc://` or `tcp://`.
    pub url: Uri,
    /// Method of HTTP requests.
    pub method: Method,
    /// Headers (gRPC: metadata), in order.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Body (gRPC: message; TCP: what is sent).
    pub body: Bytes,
    /// Stop after so many requests.
    pub requests: Option<u64>,
    /// Stop after so long; requests under way are finished.
    pub duration: Option<Duration>,
    /// Requests under way at once.
    pub concurrency: usize,
    /// Requests a second, all together; as fast as possible if `None`.
    pub rate: Option<f64>,
    /// HTTP/2 with prior knowledge instead of HTTP/1.1.
    pub http2: bool,
    /// Keep connections for further requests; else each request makes its own.
    pub keep_alive: bool,
    /// For each request, connecting included.
    pub timeout: Duration,
}

impl Options {
    /// One `GET` of `url` with a time-out of ten seconds.
    pub fn new(url: Uri) -> Self {
        Self {
            url,
            method: Method::GET,
            headers: Vec::new(),
            body: Bytes::new(),
            requests: Some(1),
            duration: None,
            concurrency: 1,
            rate: None,
            http2: false,
            keep_alive: false,
            timeout: Duration::from_secs(10),
        }
    }
}

/// What one request brought.
#[derive(Debug, Default)]
struct Reply {
    status: String,
    failed: bool,
    pod: String,
    version: String,
    bytes: u64,
    answer: Option<serde_json::Value>,
}

/// Sends until a limit is reached or `stop` is cancelled; `each` sees every outcome as it comes.
pub async fn run(
    options: Options,
    stop: CancellationToken,
    mut each: impl FnMut(&Outcome),
) -> Result<Summary, BoxError> {
    let options = Arc::new(options);
    let begin = Instant::now();
    let tickets = Arc::new(AtomicU64::new(0));
    let (sender, mut outcomes) = mpsc::channel(1024);
    for _ in 0..options.concurrency.max(1) {
        let session = Session::new(&options)?;
        let schedule = Schedule {
            options: options.clone(),
            begin,
            tickets: tickets.clone(),
        };
        tokio::spawn(work(session, schedule, stop.clone(), sender.clone()));
    }
    drop(sender);
    let mut collector = Collector::default();
    while let Some(outcome) = outcomes.recv().await {
        each(&outcome);
        collector.add(&outcome);
    }
    Ok(collector.finish(begin.elapsed()))
}

/// When the next request is due: tickets are shared, so that the rate is that of all together.
struct Schedule {
    options: Arc<Options>,
    begin: Instant,
    tickets: Arc<AtomicU64>,
}

impl Schedule {
    fn next(&self) -> Option<Instant> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let due = match self.options.rate {
            Some(rate) => self.begin + Duration::from_secs_f64(ticket as f64 / rate),
            None => Instant::now(),
        };
        let enough = self.options.requests.is_some_and(|most| ticket >= most)
            || self
                .options
                .duration
                .is_some_and(|longest| due >= self.begin + longest);
        (!enough).then_some(due)
    }
}

async fn work(
    mut session: Session,
    schedule: Schedule,
    stop: CancellationToken,
    outcomes: mpsc::Sender<Outcome>,
) {
    while let Some(due) = schedule.next() {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(due) => {}
        }
        let timeout = schedule.options.timeout;
        let began = Instant::now();
        let result = match tokio::time::timeout(timeout, session.request()).await {
            Ok(result) => result.map_err(|error| causes(error.as_ref())),
            Err(_) => {
                session.disconnect();
                Err(format!("no answer within {timeout:?}"))
            }
        };
        let outcome = Outcome::new(result, began.elapsed());
        if outcomes.send(outcome).await.is_err() {
            return;
        }
    }
}

/// One worker's side of the target, with its connection if that is kept.
enum Session {
    Http(http::Session),
    Grpc(Box<grpc::Session>),
    Tcp(tcp::Session),
}

impl Session {
    fn new(options: &Arc<Options>) -> Result<Self, BoxError> {
        match options.url.scheme_str() {
            Some("http") => Ok(Self::Http(http::Session::new(options.clone())?)),
            Some("grpc") => Ok(Self::Grpc(Box::new(grpc::Session::new(options.clone())?))),
            Some("tcp") => Ok(Self::Tcp(tcp::Session::new(options.clone())?)),
            _ => Err(format!(
                "{}: the URL must start with http://, grpc:// or tcp://",
                options.url
            )
            .into()),
        }
    }

    async fn request(&mut self) -> Result<Reply, BoxError> {
        match self {
            Self::Http(session) => session.request().await,
            Self::Grpc(session) => session.request().await,
            Self::Tcp(session) => session.request().await,
        }
    }

    fn disconnect(&mut self) {
        match self {
            Self::Http(session) => session.disconnect(),
            Self::Grpc(session) => session.disconnect(),
            Self::Tcp(_) => {}
        }
    }
}

/// Where to connect to, as `host:port`.
fn target(url: &Uri, default_port: Option<u16>) -> Result<String, BoxError> {
    let host = url
        .host()
        .ok_or_else(|| format!("{url}: the URL names no host"))?;
    let port = url.port_u16().or(default_port);
    let port = port.ok_or_else(|| format!("{url}: the URL names no port"))?;
    Ok(format!("{host}:{port}"))
}

async fn connect(target: &str) -> Result<TcpStream, BoxError> {
    let stream = async {
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host(target).await?.collect();
        let stream = TcpStream::connect(&addresses[..]).await?;
        stream.set_nodelay(true)?;
        io::Result::Ok(stream)
    };
    stream
        .await
        .map_err(|error| format!("connect to {target}: {error}").into())
}

/// An error with its sources, without those that only repeat what was said.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let part = source.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        next = source.source();
    }
    text
}

//! What a pod does that has gone mad, or is up to no good: connections, streams, resets, slow heads
//! and handshakes in bursts, bounded in number and time.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use weft_lab_tests::FloodReport;

/// Open at once, all kinds: what is beyond waits, so a flood never grows without bound.
const MOST: usize = 4_000;
/// How long one connection waits for a sign of life.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long, value_enum)]
    kind: Kind,
    /// HOST:PORT.
    #[arg(long)]
    to: String,
    /// So many at a time…
    #[arg(long, default_value_t = 200)]
    burst: u32,
    /// …every so many milliseconds.
    #[arg(long, default_value_t = 100)]
    every: u64,
    #[arg(long)]
    seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Connects, sends a byte, waits for one, and resets.
    Connections,
    /// HTTP/2 streams, all of a burst at once on few connections, each with an answer.
    Streams,
    /// HTTP/2 streams that are reset as soon as they are opened.
    Resets,
    /// Connections whose HTTP/1 head comes byte by byte, one byte a period.
    Heads,
    /// A ClientHello, and gone when the server has answered it: the server has done its costly part.
    Handshakes,
    /// A ClientHello, and nothing more.
    Stalled,
}

pub(crate) async fn run(args: Args) -> Result<FloodReport> {
    let flood = Arc::new(Flood {
        to: args.to,
        end: Instant::now() + Duration::from_secs_f64(args.seconds),
        every: Duration::from_millis(args.every),
        hello: hello()?,
        room: Semaphore::new(MOST),
        done: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    });
    match args.kind {
        Kind::Streams | Kind::Resets => {
            let reset = args.kind == Kind::Resets;
            // A server's usual limit is 100 to 256 streams.
            let connections = args.burst.div_ceil(100);
            let mut running = JoinSet::new();
            for _ in 0..connections {
                let share = args.burst / connections;
                running.spawn(Arc::clone(&flood).streams(share, reset));
            }
            while let Some(ended) = running.join_next().await {
                ended??;
            }
        }
        kind => flood.clone().bursts(kind, args.burst).await,
    }
    Ok(FloodReport {
        done: flood.done.load(Ordering::Relaxed),
        failed: flood.failed.load(Ordering::Relaxed),
    })
}

struct Flood {
    to: String,
    end: Instant,
    every: Duration,
    hello: Vec<u8>,
    room: Semaphore,
    done: AtomicU64,
    failed: AtomicU64,
}

/// A ClientHello as a mesh's own client would begin; the same one serves for any number.
fn hello() -> Result<Vec<u8>> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .ok();
    let config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = "flood.invalid".try_into().context("a name")?;
    let mut connection = ClientConnection::new(Arc::new(config), name)?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello)?;
    Ok(hello)
}

impl Flood {
    fn count(&self, done: bool) {
        let count = if done { &self.done } else { &self.failed };
        count.fetch_add(1, Ordering::Relaxed);
    }

    async fn bursts(self: Arc<Self>, kind: Kind, burst: u32) {
        let mut ticks = interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut running = JoinSet::new();
        while Instant::now() < self.end {
            ticks.tick().await;
            for _ in 0..burst {
                let flood = Arc::clone(&self);
                running.spawn(async move {
                    // Closed by nobody.
                    let Ok(_room) = flood.room.acquire().await else {
                        return;
                    };
                    if Instant::now() >= flood.end {
                        return;
                    }
                    let done = flood.one(kind).await;
                    flood.count(done.is_ok());
                });
            }
            while running.try_join_next().is_some() {}
        }
        running.shutdown().await;
    }

    async fn one(&self, kind: Kind) -> io::Result<()> {
        let mut stream = timeout(PATIENCE, TcpStream::connect(&self.to)).await??;
        // Closing sends RST: nothing lingers on this side.
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        let mut byte = [0];
        match kind {
            Kind::Heads => {
                let head = b"GET /slow HTTP/1.1\r\nhost: flood\r\nx: ".iter();
                for byte in head.chain(std::iter::repeat(&b'x')) {
                    if Instant::now() >= self.end {
                        return Ok(());
                    }
                    stream.write_all(&[*byte]).await?;
                    sleep(self.every).await;
                }
                Ok(())
            }
            Kind::Stalled => {
                stream.write_all(&self.hello).await?;
                let left = self.end.saturating_duration_since(Instant::now());
                sleep(left).await;
                Ok(())
            }
            kind => {
                let first: &[u8] = match kind {
                    Kind::Handshakes => &self.hello,
                    _ => b"x",
                };
                stream.write_all(first).await?;
                match timeout(PATIENCE, stream.read(&mut byte)).await?? {
                    0 => Err(io::ErrorKind::UnexpectedEof.into()),
                    _ => Ok(()),
                }
            }
        }
    }

    /// One HTTP/2 connection, `share` streams at a time.
    async fn streams(self: Arc<Self>, share: u32, reset: bool) -> Result<()> {
        let mut ticks = interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut kept: Option<SendRequest<Bytes>> = None;
        let uri = format!("http://{}/flood", self.to);
        while Instant::now() < self.end {
            ticks.tick().await;
            let alive = match kept.take() {
                Some(sender) => sender.ready().await.ok(),
                None => None,
            };
            let mut sender = match alive {
                Some(sender) => sender,
                None => {
                    let stream = TcpStream::connect(&self.to).await?;
                    stream.set_nodelay(true)?;
                    let (sender, driver) = h2::client::handshake(stream).await?;
                    tokio::spawn(driver);
                    sender
                }
            };
            let mut answers = Vec::new();
            for _ in 0..share {
                let Ok(ready) = sender.clone().ready().await else {
                    break; // The server has had enough of this connection.
                };
                sender = ready;
                let request = Request::get(&uri).body(())?;
                match sender.send_request(request, true) {
                    // Dropped, it is reset.
                    Ok((answer, _)) if !reset => answers.push(answer),
                    Ok((answer, _)) => {
                        // Let the HEADERS out first, or nothing would be sent at all.
                        tokio::task::yield_now().await;
                        drop(answer);
                        self.count(true);
                    }
                    Err(_) => break,
                }
            }
            for answer in answers {
                let answered = timeout(PATIENCE, answer).await;
                self.count(matches!(answered, Ok(Ok(_))));
            }
            kept = Some(sender);
        }
        Ok(())
    }
}

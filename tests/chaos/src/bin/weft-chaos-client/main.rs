//! The client that runs in a pod for as long as the load lasts: lanes in (`--lanes JSON`), lines of
//! JSON out, until SIGTERM.
//!
//! Nothing is ever tried again. A kept connection that the server has closed in order before the next
//! request was written is replaced; a request that was written must be answered.

mod http1;
mod http2;
mod recorder;
mod stream;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use rand::Rng as _;
use tokio::{
    net::TcpStream,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use weft_chaos::record::{Cause, Conn, Kind, Lane, PATIENCE, now};

use recorder::Recorder;

#[derive(Parser)]
struct Args {
    /// The lanes, as JSON.
    #[arg(long)]
    lanes: String,
}

/// What went wrong, before it is known with which request.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) cause: Cause,
    pub(crate) detail: String,
}

impl Wrong {
    pub(crate) fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Self {
            cause,
            detail: detail.into(),
        }
    }

    /// An error of an open connection.
    pub(crate) fn io(error: &io::Error) -> Self {
        let cause = match error.kind() {
            io::ErrorKind::UnexpectedEof => Cause::Eof,
            _ => Cause::Reset,
        };
        Self::new(cause, error.to_string())
    }
}

/// What the workers of a lane share.
pub(crate) struct Shared {
    pub(crate) lane: Lane,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) stop: watch::Receiver<bool>,
}

impl Shared {
    pub(crate) fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// The pause between two requests; ends at once when the client is to stop.
    pub(crate) async fn pause(&self) {
        let mut stop = self.stop.clone();
        let jitter = rand::rng().random_range(0.75..1.25);
        let pause = Duration::from_millis(self.lane.interval_ms).mul_f64(jitter);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
    }

    /// How long the next connection is to live: never longer than the lane says.
    pub(crate) fn life(&self) -> Duration {
        if self.lane.life_ms == 0 {
            return Duration::from_secs(u64::from(u32::MAX));
        }
        let share = rand::rng().random_range(0.7..1.0);
        Duration::from_millis(self.lane.life_ms).mul_f64(share)
    }

    /// Opens a connection; what failed is told.
    pub(crate) async fn connect(&self) -> Option<(TcpStream, Conn)> {
        let opened = now();
        let mut conn = Conn {
            lane: self.lane.name.clone(),
            opened,
            at: opened,
            remote: self.lane.to.clone(),
            ..Conn::default()
        };
        let connected = tokio::time::timeout(PATIENCE, dial(&self.lane.to)).await;
        let wrong = match connected {
            Ok(Ok((stream, local, remote))) => {
                conn.local = local.to_string();
                conn.remote = remote.to_string();
                self.recorder.opened(&self.lane.name);
                return Some((stream, conn));
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Wrong::new(Cause::ConnectRefused, error.to_string())
            }
            Ok(Err(error)) => Wrong::new(Cause::Connect, error.to_string()),
            Err(_) => Wrong::new(
                Cause::ConnectTimeout,
                format!("no connection within {PATIENCE:?}"),
            ),
        };
        self.recorder.failed(&self.lane, &conn, opened, &wrong);
        // Nothing listens, perhaps for a while: that is one failure each time, but no busy loop.
        self.pause().await;
        None
    }

    /// Who answered must be one of those who may, and must have seen the client's own address.
    pub(crate) fn check(&self, version: &str, peer: &str, conn: &Conn) -> Result<(), Wrong> {
        if !self.lane.backends.iter().any(|may| may == version) {
            let detail = format!("{version:?} of {} answered", conn.backend);
            return Err(Wrong::new(Cause::Backend, detail));
        }
        let ip = |address: &str| address.parse::<SocketAddr>().map(|a| a.ip().to_canonical());
        if ip(peer).ok() != ip(&conn.local).ok() {
            let detail = format!("the server saw {peer}, the client is {}", conn.local);
            return Err(Wrong::new(Cause::Peer, detail));
        }
        Ok(())
    }
}

async fn dial(to: &str) -> io::Result<(TcpStream, SocketAddr, SocketAddr)> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (local, remote) = (stream.local_addr()?, stream.peer_addr()?);
    Ok((stream, local, remote))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let lanes: Vec<Lane> = serde_json::from_str(&args.lanes).context("--lanes")?;
    let mut terminate = signal(SignalKind::terminate())?;
    // A terminal's Ctrl-C reaches all its programs; the one that drives the load ends it in order.
    let _interrupt = signal(SignalKind::interrupt())?;
    let (stop, stopping) = watch::channel(false);
    let recorder = Arc::new(Recorder::new(&lanes));
    let mut workers = JoinSet::new();
    for lane in lanes {
        let connections = lane.connections;
        let shared = Arc::new(Shared {
            lane,
            recorder: Arc::clone(&recorder),
            stop: stopping.clone(),
        });
        for _ in 0..connections {
            let shared = Arc::clone(&shared);
            workers.spawn(async move {
                // Spread, so that lanes do not beat in time.
                let spread = rand::rng().random_range(0.0..1.0);
                let first = Duration::from_millis(shared.lane.interval_ms).mul_f64(spread);
                tokio::time::sleep(first).await;
                match shared.lane.kind {
                    Kind::KeepAlive | Kind::New | Kind::Slow => http1::run(&shared).await,
                    Kind::Http2 | Kind::Grpc => http2::run(&shared).await,
                    Kind::Stream => stream::run(&shared).await,
                }
            });
        }
    }
    let telling = tokio::spawn(Arc::clone(&recorder).tell_now_and_then());
    terminate.recv().await;
    stop.send_replace(true);
    while let Some(ended) = workers.join_next().await {
        ended?;
    }
    telling.abort();
    recorder.finish();
    Ok(())
}

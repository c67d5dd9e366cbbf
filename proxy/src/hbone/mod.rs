//! HBONE: HTTP/2 CONNECT on port 15008 over mutual TLS, wire compatible with Istio's. In flow
//! connections of captured pods; out flow byte streams to the other end's application.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use h2::{Ping, PingPong};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::settings::Settings;

mod connect;
mod door;
mod linger;
mod pool;
mod server;
mod stream;

pub use door::Door;
pub use linger::Lingering;
pub use pool::{Destination, Pool, PoolStats, StreamGuard};
pub use server::serve;
pub use stream::TunnelStream;

/// What one stream may have in flight: 1 MiB carries 10 Gb/s at the 0.8 ms that zones are apart.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// What a whole tunnel may have in flight: sixteen streams whose applications do not read must
/// fall silent before the others of the same pair of pods feel it. It bounds a tunnel's memory.
const CONNECTION_WINDOW: u32 = 16 * STREAM_WINDOW;
/// Largest DATA frame that is accepted: four TLS records. Larger ones save little and make the
/// other streams wait.
const FRAME: u32 = 64 * 1024;
/// Written by a stream and not yet sent by the connection: what is read in one go, twice, so that
/// a stream can fill the next chunk while the last one is encrypted.
const SEND_BUFFER: usize = 256 * 1024;
/// Overhead of buffered small frames until the tunnel is closed as abused. A full stream window
/// of 10-byte frames, which a chatty client behind a stalled reader makes, is 25 MiB of overhead;
/// h2's own default (half the window) would reset all of the pair's streams for it.
const DATA_FRAME_BUDGET: usize = 64 * 1024 * 1024;
/// A CONNECT carries an authority and some tracing headers.
const HEADER_LIST: u32 = 16 * 1024;

fn client_builder() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .max_header_list_size(HEADER_LIST)
        .enable_push(false);
    builder
}

fn server_builder(streams: u32) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .max_header_list_size(HEADER_LIST)
        .max_concurrent_streams(streams);
    builder
}

/// What broke a tunnel, in few words: rustls' own for a peer that just closes are a paragraph and a
/// link.
fn describe(error: &h2::Error) -> String {
    match error.get_io() {
        Some(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the peer closed the tunnel without close_notify".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Counts a tunnel's streams, and closes it to new ones for good.
#[derive(Debug)]
struct Usage {
    /// Open streams, or [`CLOSED`] plus them.
    streams: AtomicUsize,
    idle_since: Mutex<Instant>,
}

const CLOSED: usize = 1 << (usize::BITS - 1);

impl Usage {
    fn new() -> Self {
        Self {
            streams: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
        }
    }

    /// Counts one more, if there is room below `limit` and the tunnel takes new ones.
    fn acquire(&self, limit: usize) -> bool {
        self.streams
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |streams| {
                (streams < limit).then_some(streams + 1)
            })
            .is_ok()
    }

    /// Counts one more, whatever the limit: the peer has opened it already.
    fn count(&self) {
        self.streams.fetch_add(1, Ordering::AcqRel);
    }

    fn release(&self) {
        let before = self.streams.fetch_sub(1, Ordering::AcqRel);
        if before & !CLOSED == 1 {
            *self.idle_since.lock() = Instant::now();
        }
    }

    fn close(&self) {
        self.streams.fetch_or(CLOSED, Ordering::AcqRel);
    }

    fn is_closed(&self) -> bool {
        self.streams.load(Ordering::Acquire) & CLOSED != 0
    }

    fn open_streams(&self) -> usize {
        self.streams.load(Ordering::Acquire) & !CLOSED
    }

    /// Closes the tunnel if it carries nothing and has not for `limit`.
    fn close_if_idle(&self, limit: Duration) -> bool {
        let idle_for = self.idle_since.lock().elapsed();
        idle_for >= limit
            && self
                .streams
                .compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
    }
}

/// Why a tunnel is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nothing came through it for long.
    Idle,
    /// The peer no longer answers.
    Dead,
}

/// Watches over a tunnel: returns when it is to end. An idle tunnel is left to TCP's keepalives.
async fn watch(mut pings: PingPong, usage: &Usage, settings: &Settings) -> End {
    let every = settings.ping_interval.min(settings.idle);
    loop {
        tokio::time::sleep(every).await;
        if usage.close_if_idle(settings.idle) {
            return End::Idle;
        }
        if usage.open_streams() == 0 {
            continue;
        }
        let pong = tokio::time::timeout(settings.ping_timeout, pings.ping(Ping::opaque())).await;
        if !matches!(pong, Ok(Ok(_))) {
            usage.close();
            return End::Dead;
        }
    }
}

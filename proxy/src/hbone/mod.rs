//! HBONE: HTTP/2 CONNECT on port 15008 over mutual TLS, wire compatible with Istio's. In flow
//! connections of captured pods; out flow byte streams to the other end's application.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use self::{
    watch::Signs,
    windows::{Sizes, Windows},
};
use crate::limits::PodLimits;

mod connect;
mod door;
mod linger;
mod pool;
mod server;
mod stream;
mod watch;
mod windows;

pub use door::Door;
pub use linger::Lingering;
pub use pool::{Destination, Pool, PoolStats, StreamGuard};
pub use server::serve;
pub use stream::TunnelStream;

/// Largest DATA frame that is accepted: four TLS records. Larger ones save little and make the
/// other streams wait.
const FRAME: u32 = 64 * 1024;
/// Written by a stream and not yet sent by the connection: what is read in one go, twice, so that
/// a stream can fill the next chunk while the last one is encrypted.
const SEND_BUFFER: usize = 256 * 1024;
/// Overhead of buffered small frames until the tunnel is closed as abused. The first stream window
/// full of 1-byte frames, which a chatty client behind a stalled reader makes, is 16 MiB of overhead
/// (and a chatty client's window does not grow); h2's own default (half the tunnel's window) would
/// reset all of the pair's streams for it.
const DATA_FRAME_BUDGET: usize = 16 * 1024 * 1024;
/// A CONNECT carries an authority and some tracing headers.
const HEADER_LIST: u32 = 16 * 1024;

fn client_builder(windows: Sizes) -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(windows.stream)
        .initial_connection_window_size(windows.tunnel)
        .max_frame_size(FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .max_header_list_size(HEADER_LIST)
        .enable_push(false);
    builder
}

fn server_builder(windows: Sizes, streams: u32) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(windows.stream)
        .initial_connection_window_size(windows.tunnel)
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

/// Counts a tunnel's streams and what they consume, and closes it to new ones for good.
#[derive(Debug)]
struct Usage {
    /// Open streams, or [`CLOSED`] plus them.
    streams: AtomicUsize,
    idle_since: Mutex<Instant>,
    windows: Windows,
    signs: Signs,
}

const CLOSED: usize = 1 << (usize::BITS - 1);

impl Usage {
    /// Of a new tunnel of this pod.
    fn new(limits: &PodLimits) -> Self {
        Self {
            streams: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
            windows: Windows::new(limits.budget(), limits.settings().stream_window),
            signs: Signs::default(),
        }
    }

    /// Counts one more, if there is room below `limit` and the tunnel takes new ones.
    fn acquire(&self, limit: usize) -> bool {
        let counted = self
            .streams
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |streams| {
                (streams < limit).then_some(streams + 1)
            });
        if counted.is_ok() {
            self.windows.open();
        }
        counted.is_ok()
    }

    /// Counts one more, whatever the limit: the peer has opened it already.
    fn count(&self) {
        self.streams.fetch_add(1, Ordering::AcqRel);
        self.windows.open();
    }

    /// Bytes of the peer were consumed.
    fn consumed(&self, bytes: usize) {
        self.signs.heard();
        self.windows.consumed(bytes);
    }

    fn release(&self) {
        self.windows.close();
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

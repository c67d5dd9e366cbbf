//! Limits and times of the HTTP layer, each with its reason. Plain data.

use std::time::Duration;

/// Limits of one pod's HTTP; [`Default`] is what a node runs with.
///
/// A head holds at most 100 fields (the parser's own limit, which costs no allocation).
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// A request's or response's head, in bytes, and what is read ahead of an HTTP/1.1 body. 64 KiB
    /// is above what servers take (8 KiB to 60 KiB), and bounds what a flood of heads costs.
    pub header_bytes: usize,
    /// From the first byte of a request's head to its last: slow clients are many clients.
    pub header_read_timeout: Duration,
    /// Streams that a client may have open at once on one HTTP/2 connection.
    pub client_streams: u32,
    /// HTTP/2 flow control towards clients, one stream. The client is on this node, so the
    /// round trip is short.
    pub client_stream_window: u32,
    /// HTTP/2 flow control towards clients, all streams of a connection: several times a stream's,
    /// so that one stream whose backend is slow does not hold up the others.
    pub client_connection_window: u32,
    /// HTTP/2 flow control towards backends, one stream: 512 KiB carry 4 Gbit/s at a round trip
    /// of 1 ms.
    pub backend_stream_window: u32,
    /// HTTP/2 flow control towards backends, all streams of a connection: several times a
    /// stream's, as above.
    pub backend_connection_window: u32,
    /// What is buffered of one HTTP/2 stream's body before flow control lets it go.
    pub send_buffer: usize,
    /// Requests on one HTTP/2 connection to a backend before another is opened, even if the backend
    /// would take more: a connection is served by one core.
    pub backend_streams: usize,
    /// HTTP/2 connections to one endpoint; above it, requests wait for streams.
    pub backend_connections: usize,
    /// An idle connection to a backend is closed after it. Below the 60 s and more of most
    /// servers, whose closing could meet a request that is under way.
    pub idle: Duration,
    /// Idle HTTP/1.1 connections that are kept to one endpoint.
    pub idle_connections: usize,
    /// Endpoints tried for one request while nothing of it has been sent: the first and two others,
    /// so that a bad endpoint or a roll-out fails nobody, and a broken Service is not hammered.
    pub attempts: usize,
    /// How long `Expect: 100-continue` waits for the backend's word before the body is sent
    /// anyway: backends that do not know it exist.
    pub expect: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            header_bytes: 64 * 1024,
            header_read_timeout: Duration::from_secs(30),
            client_streams: 256,
            client_stream_window: 128 * 1024,
            client_connection_window: 1024 * 1024,
            backend_stream_window: 512 * 1024,
            backend_connection_window: 4 * 1024 * 1024,
            send_buffer: 64 * 1024,
            backend_streams: 256,
            backend_connections: 16,
            idle: Duration::from_secs(55),
            idle_connections: 128,
            attempts: 3,
            expect: Duration::from_secs(1),
        }
    }
}

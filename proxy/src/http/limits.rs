//! Limits and times of the HTTP layer, each with its reason. Plain data.

use std::time::Duration;

crate::settings::table::settings! {
    /// Limits of one pod's HTTP; [`Default`] is what a node runs with.
    ///
    /// A head holds at most 100 fields (the parser's own limit, which costs no allocation).
    pub struct HttpLimits {
        /// A request's or response's head, in bytes, and what is read ahead of an HTTP/1.1 body. 64 KiB
        /// is above what servers take (8 KiB to 60 KiB), and bounds what a flood of heads costs.
        header_bytes("http-header-bytes", bytes): usize = 64 * 1024;
        /// From the first byte of a request's head to its last: slow clients are many clients.
        header_read_timeout("http-header-timeout", time): Duration = Duration::from_secs(30);
        /// Streams that a client may have open at once on one HTTP/2 connection.
        client_streams("http-client-streams", count): u32 = 256;
        /// HTTP/2 flow control towards clients, one stream. The client is on this node, so the
        /// round trip is short.
        client_stream_window("http-client-stream-window", bytes): u32 = 64 * 1024;
        /// HTTP/2 flow control towards clients, all streams of a connection: several times a stream's,
        /// so that one stream whose backend is slow does not hold up the others.
        client_connection_window("http-client-window", bytes): u32 = 512 * 1024;
        /// HTTP/2 flow control towards backends, one stream: 512 KiB carry 4 Gbit/s at a round trip
        /// of 1 ms.
        backend_stream_window("http-backend-stream-window", bytes): u32 = 512 * 1024;
        /// HTTP/2 flow control towards backends, all streams of a connection: several times a
        /// stream's, as above.
        backend_connection_window("http-backend-window", bytes): u32 = 4 * 1024 * 1024;
        /// What is buffered of one HTTP/2 stream's body before flow control lets it go.
        send_buffer("http-send-buffer", bytes): usize = 64 * 1024;
        /// Requests on one HTTP/2 connection to a backend before another is opened, even if the backend
        /// would take more: a connection is served by one core.
        backend_streams("http-backend-streams", count): usize = 256;
        /// HTTP/2 connections to one endpoint; above it, requests wait for streams.
        backend_connections("http-backend-connections", count): usize = 16;
        /// An idle connection to a backend is closed after it. Below the 60 s and more of most
        /// servers, whose closing could meet a request that is under way.
        idle("http-backend-idle", time): Duration = Duration::from_secs(55);
        /// Idle HTTP/1.1 connections that are kept to one endpoint.
        idle_connections("http-backend-idle-connections", count): usize = 128;
        /// Endpoints tried for one request while nothing of it has been sent: the first and two others,
        /// so that a bad endpoint or a roll-out fails nobody, and a broken Service is not hammered.
        attempts("http-attempts", count): usize = 3;
        /// Of a request's body, kept while its route may have it sent again: above what most calls of an
        /// API send. What is longer is sent once.
        replay("http-replay-bytes", bytes): usize = 64 * 1024;
        /// How long `Expect: 100-continue` waits for the backend's word before the body is sent
        /// anyway: backends that do not know it exist.
        expect("http-expect-timeout", time): Duration = Duration::from_secs(1);
    }
}

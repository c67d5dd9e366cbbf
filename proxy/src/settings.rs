//! Limits and times of the transport, each with its reason. Plain data.

use std::time::Duration;

use weft_api::names::{PORT_HBONE, PORT_INBOUND_PLAINTEXT, PORT_OUTBOUND};

/// Limits per pod and times; [`Default`] is what a node runs with.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Captured connections open at once per pod, outbound and inbound plaintext each. Above that,
    /// new ones wait in the pod's own listening sockets: the pod's clients feel it, others do not.
    /// 10,000 is what a busy ingress pod has; each costs about 10 KiB here and two descriptors.
    pub connections: usize,
    /// Inbound tunnels open at once per pod; one per client pod is usual.
    pub tunnels: usize,
    /// TLS handshakes in flight per pod: a handshake is the costliest thing that a stranger can
    /// ask for (about 1 ms of CPU), so a flood of them must queue.
    pub handshakes: usize,
    /// Streams in one tunnel, offered as a server and kept to as a client: 100, as all HBONE
    /// implementations do, bounds what is lost with one connection.
    pub streams: u32,
    /// Tunnels from one pod to one destination: 50 · 100 streams.
    pub tunnels_per_destination: usize,
    /// To connect, for one attempt, all included (TCP, TLS, CONNECT): above the 1 s and 3 s at
    /// which the kernel repeats a lost SYN.
    pub connect: Duration,
    /// For the TLS and HTTP/2 handshake of a tunnel, on either side.
    pub handshake: Duration,
    /// A tunnel without streams is closed after it: long enough for periodic jobs to find it open.
    pub idle: Duration,
    /// A tunnel that carries streams is asked for a sign of life this often…
    pub ping_interval: Duration,
    /// …and is broken if there is none for so long.
    pub ping_timeout: Duration,
    /// Endpoints tried for one L4 connection: the first and two others, so that one bad endpoint
    /// or a roll-out does not fail a client, and a broken Service is not hammered.
    pub attempts: usize,
    /// How long an undeclared port is sniffed before it is taken for TCP: a client that speaks
    /// first does so within a round trip; a server-first protocol is delayed by this much.
    pub sniff: Duration,
    /// How long a TLS client may take for its ClientHello on a port with TLS routes.
    pub client_hello: Duration,
    /// How long an `AddPod` waits for the certificate before its Ack says why there is none: less
    /// than an attempt of the agent waits (5 s), so that the pod's own status says why.
    pub certificate: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connections: 10_000,
            tunnels: 5_000,
            handshakes: 64,
            streams: 100,
            tunnels_per_destination: 50,
            connect: Duration::from_secs(5),
            handshake: Duration::from_secs(5),
            idle: Duration::from_secs(300),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(10),
            attempts: 3,
            sniff: Duration::from_millis(100),
            client_hello: Duration::from_secs(5),
            certificate: Duration::from_secs(4),
        }
    }
}

/// Whether a port in a pod's namespace is one of the proxy's: never a destination.
pub fn is_own_port(port: u16) -> bool {
    matches!(port, PORT_OUTBOUND | PORT_INBOUND_PLAINTEXT | PORT_HBONE)
}

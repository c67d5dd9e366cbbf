//! Limits and times of the transport, each with its reason. Plain data; HTTP's are in
//! [`crate::http::HttpLimits`]. What is in force comes from `--limit NAME=VALUE`.

use std::time::Duration;

use weft_api::names::{PORT_HBONE, PORT_INBOUND_PLAINTEXT, PORT_OUTBOUND};

use crate::{http::HttpLimits, socket::Liveness};

pub(crate) mod table;

table::settings! {
    /// Limits per pod and times; [`Default`] is what a node runs with.
    pub struct Settings {
        /// Captured connections open at once per pod, outbound and inbound plaintext each. Above
        /// that, new ones wait in the pod's own listening sockets: the pod's clients feel it, others
        /// do not. 10,000 is what a busy ingress pod has.
        connections("connections", count): usize = 10_000;
        /// Inbound tunnels open at once per pod; one per client pod is usual.
        tunnels("tunnels", count): usize = 5_000;
        /// TLS handshakes in flight per pod: a handshake is the costliest thing that a stranger can
        /// ask for (about 1 ms of CPU), so a flood of them must queue.
        handshakes("handshakes", count): usize = 64;
        /// Streams in one tunnel, offered as a server and kept to as a client: 100, as all HBONE
        /// implementations do, bounds what is lost with one connection.
        streams("tunnel-streams", count): u32 = 100;
        /// Tunnels from one pod to one destination: 50 · 100 streams.
        tunnels_per_destination("tunnels-per-destination", count): usize = 50;
        /// What the proxy may hold for one pod: bytes that were read and not yet passed on, and what
        /// the windows of its tunnels and HTTP/2 connections let peers send. The fuller it is, the
        /// less is read at once and the smaller windows are; when it is used up, what is new waits.
        buffered_bytes("buffered-bytes", bytes): usize = 256 << 20;
        /// The largest window of one stream in a tunnel: 1 MiB carries 10 Gb/s at the 0.8 ms that
        /// zones are apart. It begins with 64 KiB, or less when the budget is short, and grows with
        /// use. A tunnel's own is sixteen times as large: so many streams whose applications do not
        /// read must fall silent before others of the same pair of pods feel it.
        stream_window("stream-window", bytes): u32 = 1 << 20;
        /// To connect, for one attempt, all included (TCP, TLS, CONNECT): above the 1 s and 3 s at
        /// which the kernel repeats a lost SYN.
        connect("connect-timeout", time): Duration = Duration::from_secs(5);
        /// For the TLS and HTTP/2 handshake of a tunnel, on either side.
        handshake("handshake-timeout", time): Duration = Duration::from_secs(5);
        /// A tunnel without streams is closed after it: long enough for periodic jobs to find it
        /// open.
        idle("tunnel-idle", time): Duration = Duration::from_secs(300);
        /// A tunnel that carries streams is asked for a sign of life this often, and at once when it
        /// is used after 2 s of silence.
        ping_interval("ping-interval", time): Duration = Duration::from_secs(10);
        /// A tunnel that gives no sign of life for so long after it was asked is broken.
        ping_timeout("ping-timeout", time): Duration = Duration::from_secs(5);
        /// A peer outside the mesh that is silent for so long is asked by TCP whether it still
        /// lives. Well under the idle limits of common NATs and load balancers (350 s and more), so
        /// it keeps those from forgetting too.
        keepalive_idle("keepalive-idle", time): Duration = Duration::from_secs(60);
        /// Between two such questions; the fourth without an answer breaks the connection.
        keepalive_interval("keepalive-interval", time): Duration = Duration::from_secs(15);
        /// Endpoints tried for one L4 connection: the first and two others, so that one bad endpoint
        /// or a roll-out does not fail a client, and a broken Service is not hammered.
        attempts("attempts", count): usize = 3;
        /// How long an undeclared port is sniffed before it is taken for TCP: a client that speaks
        /// first does so within a round trip; a server-first protocol is delayed by this much.
        sniff("sniff-timeout", time): Duration = Duration::from_millis(100);
        /// How long a TLS client may take for its ClientHello on a port with TLS routes.
        client_hello("client-hello-timeout", time): Duration = Duration::from_secs(5);
        /// How long plaintext that is open may go on when its pod becomes strict: time for clients to
        /// end what they have begun.
        plaintext_drain("plaintext-drain", time): Duration = Duration::from_secs(30);
        /// How long an `AddPod` waits for the certificate before its Ack says why there is none: less
        /// than an attempt of the agent waits (5 s), so that the pod's own status says why.
        certificate("certificate-wait", time): Duration = Duration::from_secs(4);
        /// How long what is new waits for room in the pod's budget of buffered bytes before it is
        /// shed.
        budget_wait("buffered-bytes-wait", time): Duration = Duration::from_secs(2);
    }
}

impl Settings {
    /// How a connection to or from an application or the world outside is watched.
    pub fn liveness(&self) -> Liveness {
        Liveness {
            idle: self.keepalive_idle,
            interval: self.keepalive_interval,
            // A reader that takes its time is not gone, and TCP could not tell the two apart.
            unacknowledged: None,
        }
    }

    /// How the connection of a tunnel is watched: both ends are proxies, which always read.
    pub fn tunnel_liveness(&self) -> Liveness {
        Liveness {
            unacknowledged: Some(self.ping_interval + self.ping_timeout),
            ..self.liveness()
        }
    }
}

/// Takes `NAME=VALUE` settings in order: the last one of a name counts.
///
/// # Errors
/// Names the setting, and says what would do.
pub fn with_limits<'a>(
    limits: impl IntoIterator<Item = &'a str>,
) -> Result<(Settings, HttpLimits), String> {
    let mut settings = Settings::default();
    let mut http = HttpLimits::default();
    for limit in limits {
        let Some((name, value)) = limit.split_once('=') else {
            return Err(format!("{limit:?} is not NAME=VALUE"));
        };
        let named = |reason: String| format!("{name}: {reason}");
        if !settings.set(name, value).map_err(named)? && !http.set(name, value).map_err(named)? {
            let names: Vec<_> = rows().into_iter().map(|row| row.name).collect();
            return Err(format!(
                "there is no limit {name:?}; there are {}",
                names.join(", ")
            ));
        }
    }
    Ok((settings, http))
}

/// Every limit and time that can be set, with its default.
pub fn rows() -> Vec<table::Row> {
    let mut rows = Settings::default().rows();
    rows.extend(HttpLimits::default().rows());
    rows
}

/// Whether a port in a pod's namespace is one of the proxy's: never a destination.
pub fn is_own_port(port: u16) -> bool {
    matches!(port, PORT_OUTBOUND | PORT_INBOUND_PLAINTEXT | PORT_HBONE)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const ARCHITECTURE: &str = include_str!("../../docs/architecture.md");

    #[test]
    fn the_documentation_names_every_limit_with_its_default() {
        let documented: BTreeSet<&str> = ARCHITECTURE
            .lines()
            .filter_map(|line| line.split_once(" | "))
            .filter_map(|(name, _)| name.strip_prefix("| `")?.strip_suffix('`'))
            .collect();
        for row in rows() {
            let line = format!("| `{}` | {} | ", row.name, row.value);
            assert!(
                documented.contains(row.name),
                "docs/architecture.md lacks {line}"
            );
            assert!(
                ARCHITECTURE.contains(&line),
                "docs/architecture.md does not say {line}"
            );
        }
    }

    #[test]
    fn every_limit_has_a_name_of_its_own_and_takes_what_it_shows() {
        let rows = rows();
        let names: BTreeSet<_> = rows.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), rows.len());
        let shown = rows.iter().map(|row| {
            let value = row.value.replace([' ', ','], "");
            format!("{}={value}", row.name)
        });
        let shown: Vec<_> = shown.collect();
        let taken = with_limits(shown.iter().map(String::as_str)).expect("they are all taken");
        assert_eq!(taken, (Settings::default(), HttpLimits::default()));
    }

    #[test]
    fn a_limit_is_set_by_its_name_and_what_makes_no_sense_is_refused() {
        let (settings, http) =
            with_limits(["connections=7", "http-header-bytes=32KiB", "connections=8"])
                .expect("sane");
        assert_eq!((settings.connections, http.header_bytes), (8, 32 * 1024));
        for (limit, says) in [
            ("connections", "NAME=VALUE"),
            ("connections=0", "connections: \"0\" is not a number"),
            ("ping-timeout=5h", "ping-timeout: \"h\""),
            (
                "conections=5",
                "there is no limit \"conections\"; there are connections, ",
            ),
        ] {
            let refused = with_limits([limit]).expect_err(limit);
            assert!(refused.contains(says), "{refused}");
        }
    }
}

//! Which failures a crash explains. Failures and incidents in, a verdict each out; pure.
//!
//! A proxy that is killed resets what is open through it, by design: a failure is explained only if
//! its connection was open through that proxy, and its request under way, when it happened (or the
//! connection was the client's own to that proxy, whose end it had not read yet). What begins
//! afterwards waits for the successor, and must be answered.

use std::collections::{BTreeMap, BTreeSet};

use crate::record::{Cause, Failure, Kind};

/// Something that ends connections by design.
#[derive(Clone, Debug, PartialEq)]
pub struct Incident {
    /// What happened.
    pub kind: IncidentKind,
    /// The node.
    pub node: String,
    /// Unix milliseconds just before it.
    pub from: u64,
    /// Unix milliseconds at which its immediate effect was over.
    pub until: u64,
}

/// Kinds of incidents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncidentKind {
    /// The node's proxy was killed.
    ProxyKilled,
    /// Everything of the node was killed.
    NodeRebooted,
}

/// Where things are.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// The nodes that each pod was on, also of pods that are gone: `namespace/name` of clients, names
    /// of backends. A pod that takes another's place has its name, and may be on another node.
    pub nodes: BTreeMap<String, BTreeSet<String>>,
}

impl Places {
    /// A pod was on a node.
    pub fn saw(&mut self, pod: &str, node: &str) {
        let nodes = self.nodes.entry(pod.to_owned()).or_default();
        nodes.insert(node.to_owned());
    }

    fn was_on(&self, pod: &str, node: &str) -> bool {
        self.nodes
            .get(pod)
            .is_some_and(|nodes| nodes.contains(node))
    }
}

/// How long after an incident its resets may still be noticed: resets come at once, but a request
/// that waits for a pooled tunnel learns of it by the proxies' own time-outs.
const NOTICED_WITHIN_MS: u64 = 30_000;

impl Incident {
    /// As in reports.
    pub fn as_str(&self) -> &'static str {
        match self.kind {
            IncidentKind::ProxyKilled => "open connection of a crashed proxy",
            IncidentKind::NodeRebooted => "open connection of a rebooted node",
        }
    }

    fn explains(&self, client: &str, failure: &Failure, places: &Places) -> bool {
        // Never explained: a wrong answer.
        let explicable = match failure.cause {
            Cause::Reset | Cause::ResetIdle | Cause::Eof | Cause::Status | Cause::Timeout => true,
            // A proxy that is killed leaves its listening sockets to its successor. A node that
            // reboots takes its pods along, and gives their addresses to others: in plaintext nothing
            // tells one from the other until the API does.
            Cause::ConnectRefused | Cause::Connect | Cause::ConnectTimeout | Cause::Backend => {
                self.kind == IncidentKind::NodeRebooted
            }
            Cause::Body | Cause::Peer | Cause::Protocol => false,
        };
        // A client's own connection ends with its node's proxy: whatever is sent on it afterwards,
        // before the client has read that, fails. So does, by definition, a kept connection that was
        // found reset with no request under way.
        let ended =
            matches!(failure.cause, Cause::Reset | Cause::Eof) && self.is_of(client, places);
        let under_way = ended || failure.cause == Cause::ResetIdle || failure.began <= self.until;
        let open = failure.conn.opened <= self.until && under_way;
        let noticed =
            failure.conn.at >= self.from && failure.conn.at <= self.until + NOTICED_WITHIN_MS;
        explicable && open && noticed && self.touches(client, failure, places)
    }

    /// Whether the client is on the node.
    fn is_of(&self, client: &str, places: &Places) -> bool {
        places.was_on(client, &self.node)
    }

    /// Whether the connection went through the node.
    fn touches(&self, client: &str, failure: &Failure, places: &Places) -> bool {
        if self.is_of(client, places) {
            return true;
        }
        // A stream has one backend for good. The next request of a connection may have gone to
        // another: a router chooses each time.
        let backend = &failure.conn.backend;
        failure.kind != Kind::Stream
            || !places.nodes.contains_key(backend)
            || places.was_on(backend, &self.node)
    }
}

/// The incident that explains a failure, if one does.
pub fn explanation<'a>(
    client: &str,
    failure: &Failure,
    incidents: &'a [Incident],
    places: &Places,
) -> Option<&'a Incident> {
    incidents
        .iter()
        .find(|incident| incident.explains(client, failure, places))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Conn;

    fn places() -> Places {
        let mut places = Places::default();
        for (pod, node) in [
            ("a/client", "n1"),
            ("b/client", "n2"),
            ("web-1", "n1"),
            ("web-2", "n2"),
            ("moved", "n1"),
            ("moved", "n2"),
        ] {
            places.saw(pod, node);
        }
        places
    }

    fn failure(cause: Cause, kind: Kind, opened: u64, began: u64, at: u64) -> Failure {
        Failure {
            conn: Conn {
                opened,
                at,
                backend: "web-2".into(),
                ..Conn::default()
            },
            kind,
            cause,
            detail: String::new(),
            began,
        }
    }

    #[test]
    fn only_what_was_open_through_the_killed_proxy_is_explained() {
        let incidents = [Incident {
            kind: IncidentKind::ProxyKilled,
            node: "n1".into(),
            from: 1000,
            until: 1050,
        }];
        let cases = [
            (
                "open when it was killed",
                "a/client",
                failure(Cause::Reset, Kind::KeepAlive, 500, 990, 1010),
                true,
            ),
            (
                "broke before",
                "a/client",
                failure(Cause::Reset, Kind::KeepAlive, 500, 900, 950),
                false,
            ),
            (
                "sent on a connection of the killed proxy's before its end was read",
                "a/client",
                failure(Cause::Reset, Kind::Grpc, 500, 1051, 1052),
                true,
            ),
            (
                "the same, answered with an error",
                "a/client",
                failure(Cause::Status, Kind::Grpc, 500, 1051, 1052),
                false,
            ),
            (
                "a request that began after it, through another proxy",
                "b/client",
                failure(Cause::Reset, Kind::KeepAlive, 500, 1100, 1200),
                false,
            ),
            (
                "a connection that began after it",
                "a/client",
                failure(Cause::Eof, Kind::New, 1060, 1060, 1200),
                false,
            ),
            (
                "a kept connection, found reset at its next use",
                "a/client",
                failure(Cause::ResetIdle, Kind::KeepAlive, 500, 1200, 1200),
                true,
            ),
            (
                "a refused connection",
                "a/client",
                failure(Cause::ConnectRefused, Kind::New, 1000, 1000, 1001),
                false,
            ),
            (
                "a wrong answer",
                "a/client",
                failure(Cause::Body, Kind::New, 990, 990, 1001),
                false,
            ),
            (
                "a stream between others",
                "b/client",
                failure(Cause::Reset, Kind::Stream, 500, 500, 1010),
                false,
            ),
            (
                "a stream to a pod whose name another has taken, on another node",
                "b/client",
                Failure {
                    conn: Conn {
                        backend: "moved".into(),
                        ..failure(Cause::Reset, Kind::Stream, 500, 500, 1010).conn
                    },
                    ..failure(Cause::Reset, Kind::Stream, 500, 500, 1010)
                },
                true,
            ),
            (
                "a request that may have gone there",
                "b/client",
                failure(Cause::Status, Kind::Http2, 500, 1000, 1010),
                true,
            ),
            (
                "noticed far too late",
                "a/client",
                failure(Cause::Reset, Kind::Stream, 500, 500, 40_000),
                false,
            ),
        ];
        for (what, client, failure, expected) in cases {
            let found = explanation(client, &failure, &incidents, &places());
            assert_eq!(found.is_some(), expected, "{what}");
        }
    }
}

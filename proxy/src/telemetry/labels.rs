//! Who talks to whom, in words whose number is bounded: owners, not pods; identities; Services;
//! routes and rules. Never an address, a path or a host name.

use std::sync::{Arc, LazyLock};

use crate::model::{Client, RouteRef, Workload};

/// Which way traffic goes, seen from the pod on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The pod is the client.
    Outbound,
    /// The pod is the server.
    Inbound,
}

impl Direction {
    /// The label's value.
    pub fn label(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// How bytes cross the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tunnel {
    /// Over HBONE, with mTLS.
    Hbone,
    /// In plaintext to or from something that the mesh knows.
    Plaintext,
    /// Untouched, to something that the mesh does not know.
    Passthrough,
    /// Not at all: the proxy answered or refused by itself, and dialled nobody.
    None,
}

impl Tunnel {
    /// How a workload is reached; nobody is not reached at all.
    pub fn to(workload: Option<&Workload>) -> Self {
        match workload {
            Some(workload) if workload.captured => Self::Hbone,
            Some(_) => Self::Plaintext,
            None => Self::None,
        }
    }

    /// The value of the label `tls`.
    pub fn tls(self) -> &'static str {
        match self {
            Self::Hbone => "mtls",
            Self::Plaintext | Self::Passthrough => "plaintext",
            Self::None => "none",
        }
    }
}

/// One side.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The owner's name: a Deployment's, or the pod's own.
    pub workload: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// SPIFFE id; empty if nothing proves or promises one.
    pub identity: Arc<str>,
}

impl Peer {
    /// Someone whom the configuration does not know.
    pub fn unknown() -> Self {
        Self {
            workload: Arc::clone(&UNKNOWN),
            namespace: Arc::clone(&UNKNOWN),
            identity: Arc::clone(&NONE),
        }
    }
}

static UNKNOWN: LazyLock<Arc<str>> = LazyLock::new(|| "unknown".into());
static NONE: LazyLock<Arc<str>> = LazyLock::new(|| "".into());

impl From<&Workload> for Peer {
    fn from(from: &Workload) -> Self {
        Self {
            workload: Arc::clone(&from.owner),
            namespace: Arc::clone(&from.namespace),
            identity: Arc::clone(&from.identity),
        }
    }
}

impl From<&Client> for Peer {
    fn from(from: &Client) -> Self {
        Self {
            workload: Arc::clone(&from.owner),
            namespace: Arc::clone(&from.namespace),
            identity: Arc::clone(&from.identity),
        }
    }
}

/// The labels of a series. Cloning copies pointers only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Labels {
    /// Which way.
    pub direction: Direction,
    /// `mtls`, `plaintext` or `none`. Not the [`Tunnel`]: what prints alike must be one series.
    pub tls: &'static str,
    /// The client.
    pub source: Peer,
    /// The server.
    pub destination: Peer,
    /// `<namespace>/<name>` of the Service that was addressed; empty if none was.
    pub service: Arc<str>,
    /// `<namespace>/<name>` of the route that applied; empty if none did.
    pub route: Arc<str>,
    /// The rule's name or index.
    pub rule: Arc<str>,
}

/// Number of labels.
const LABELS: usize = 11;

impl Labels {
    /// Without Service and route.
    pub fn new(direction: Direction, tunnel: Tunnel, source: Peer, destination: Peer) -> Self {
        Self {
            direction,
            tls: tunnel.tls(),
            source,
            destination,
            service: Arc::clone(&NONE),
            route: Arc::clone(&NONE),
            rule: Arc::clone(&NONE),
        }
    }

    /// With the Service that was addressed.
    #[must_use]
    pub fn service(mut self, service: &Arc<str>) -> Self {
        self.service = Arc::clone(service);
        self
    }

    /// With the route that applied.
    #[must_use]
    pub fn route(mut self, route: &RouteRef) -> Self {
        self.route = Arc::clone(&route.name);
        self.rule = Arc::clone(&route.rule);
        self
    }

    /// What counts everything that found no room of its own.
    pub(super) fn overflow(&self) -> Self {
        let word: Arc<str> = "overflow".into();
        let peer = Peer {
            workload: Arc::clone(&word),
            namespace: Arc::clone(&word),
            identity: Arc::clone(&word),
        };
        Self {
            direction: self.direction,
            tls: self.tls,
            source: peer.clone(),
            destination: peer,
            service: Arc::clone(&word),
            route: Arc::clone(&word),
            rule: word,
        }
    }

    pub(super) fn pairs(&self) -> [(&'static str, &str); LABELS] {
        [
            ("direction", self.direction.label()),
            ("tls", self.tls),
            ("source_workload", &self.source.workload),
            ("source_namespace", &self.source.namespace),
            ("source_identity", &self.source.identity),
            ("destination_workload", &self.destination.workload),
            ("destination_namespace", &self.destination.namespace),
            ("destination_identity", &self.destination.identity),
            ("service", &self.service),
            ("route", &self.route),
            ("rule", &self.rule),
        ]
    }
}

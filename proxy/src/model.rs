//! The words that the proxy's modules share: what the configuration says of workloads and
//! Services, parsed once when it arrives. Plain data: no sockets, no clock.

use std::{net::IpAddr, sync::Arc};

use weft_api::config::{AppProtocol, MtlsMode, TrafficDistribution};

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address that is in canonical form.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// `<namespace>/<name>` of a Service.
pub type ServiceName = Arc<str>;

/// A workload: a pod, or an endpoint of a hand-written EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Workload {
    /// The resource's name.
    pub uid: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub service_account: Arc<str>,
    /// The full SPIFFE id, `spiffe://<trust domain>/ns/<ns>/sa/<sa>`.
    pub identity: Arc<str>,
    /// Node name.
    pub node: Arc<str>,
    /// Topology zone; empty if unknown.
    pub zone: Arc<str>,
    /// The owner's name (a Deployment's, or the pod's own): the bounded label for metrics.
    pub owner: Arc<str>,
    /// Version label.
    pub version: Arc<str>,
    /// Addresses; the first is the primary one.
    pub addresses: Vec<IpAddr>,
    /// Shares its node's address: an address says nothing of this workload, and 15008 is never
    /// dialled.
    pub host_network: bool,
    /// HBONE is spoken on 15008 (the agent reports this sandbox as captured).
    pub captured: bool,
    /// The sandbox that is captured.
    pub sandbox: Arc<str>,
    /// How often `captured` or `sandbox` changed since this proxy first heard of it. A pod that
    /// joined and left again looks as before, but what was made before it joined may lead through
    /// its proxy, and ends when that has drained it.
    pub capture_changes: u32,
    /// Whether plaintext is let in.
    pub mtls: MtlsMode,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Service {
    /// `<namespace>/<name>`.
    pub name: ServiceName,
    /// ClusterIPs.
    pub vips: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Where endpoints are preferred.
    pub traffic_distribution: TrafficDistribution,
    /// Endpoints count whether ready or not.
    pub publish_not_ready: bool,
}

/// A port of a Service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServicePort {
    /// Port number on the Service's address.
    pub port: u16,
    /// Name.
    pub name: Arc<str>,
    /// Declared protocol.
    pub protocol: AppProtocol,
}

/// Where the proxy itself runs.
#[derive(Clone, Debug, Default)]
pub struct Locality {
    /// Node name.
    pub node: Arc<str>,
    /// Zone; empty if unknown.
    pub zone: Arc<str>,
}

/// The client side of a captured connection: one of this node's pods.
#[derive(Clone, Debug)]
pub struct Client {
    /// Pod name.
    pub name: Arc<str>,
    /// Namespace: selects consumer routes.
    pub namespace: Arc<str>,
    /// SPIFFE id.
    pub identity: Arc<str>,
    /// Owner for metrics; the pod's name until the configuration tells more.
    pub owner: Arc<str>,
    /// The peer address of the captured connection.
    pub address: std::net::SocketAddr,
}

/// Where a rule came from: which route, which of its rules.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RouteRef {
    /// HTTPRoute, GRPCRoute, TCPRoute, TLSRoute.
    pub kind: Arc<str>,
    /// `<namespace>/<name>`.
    pub name: Arc<str>,
    /// The rule's name, or its index in the route.
    pub rule: Arc<str>,
}

impl From<&weft_api::config::RouteRef> for RouteRef {
    fn from(from: &weft_api::config::RouteRef) -> Self {
        Self {
            kind: from.kind.as_str().into(),
            name: format!("{}/{}", from.namespace, from.name).into(),
            rule: if from.rule_name.is_empty() {
                from.rule_index.to_string().into()
            } else {
                from.rule_name.as_str().into()
            },
        }
    }
}

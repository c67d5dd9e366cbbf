//! What the controller tells others: configuration to proxies (delta xDS), certificates (CA), and
//! the status of routes and pods.
//!
//! Flows in: resources by name, as the compiler makes them, and the acknowledgements of proxies.
//! Flows out: responses on each proxy's stream, signed chains, and status through a
//! [`weft_source::Writer`]. [`session`], [`cache`] and [`status::Book`] are pure; the rest moves
//! their results over sockets.

pub mod auth;
pub mod ca;
pub mod cache;
pub mod hub;
pub mod peers;
pub mod root;
pub mod session;
pub mod status;
pub mod tls;
pub mod xds;

use weft_api::names;

/// A type of resource that proxies subscribe to. The order is the one in which they are sent: a
/// table never arrives before the Services that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// [`weft_api::config::MeshConfig`]
    MeshConfig,
    /// [`weft_api::config::Service`]
    Service,
    /// [`weft_api::config::Workload`]
    Workload,
    /// [`weft_api::config::RouteTable`]
    RouteTable,
}

impl ResourceType {
    /// All types, in order.
    pub const ALL: [Self; 4] = [
        Self::MeshConfig,
        Self::Service,
        Self::Workload,
        Self::RouteTable,
    ];

    /// The type URL on the wire.
    pub fn url(self) -> &'static str {
        match self {
            Self::MeshConfig => names::TYPE_MESH_CONFIG,
            Self::Service => names::TYPE_SERVICE,
            Self::Workload => names::TYPE_WORKLOAD,
            Self::RouteTable => names::TYPE_ROUTE_TABLE,
        }
    }

    /// The type of a type URL, if it is one of ours.
    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }

    /// The type's name, for logs and metrics.
    pub fn name(self) -> &'static str {
        self.url().rsplit('.').next().unwrap_or_default()
    }
}

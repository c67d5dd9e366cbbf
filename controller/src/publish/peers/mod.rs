//! How the proxies that are connected to other replicas stand: the replica that writes status must
//! know of every proxy, and each is connected to one replica only.
//!
//! Every replica serves its own standing to the others ([`service`]) and follows theirs ([`client`]):
//! everything once, then what changes. Which replicas there are, the EndpointSlices of the
//! controller's own Service tell: through no other addresses do proxies reach them. Resources are
//! named with the version that the reporting replica publishes (a hash of the contents, the same on
//! all replicas), so one that lags behind is not taken for one whose proxies have acknowledged.
//!
//! A replica that can't be asked counts as one whose proxies have acknowledged nothing, and while it
//! is not known how things stand there, nothing is taken away from status. What ends that:
//! - it answers;
//! - nobody listens at its address: without the process there are no connections;
//! - its endpoint is gone, or has not been serving for [`FORGET`]: by then proxies that can't reach it
//!   either have noticed (keepalives) and connected elsewhere.

pub mod client;
pub mod service;
mod view;

pub use view::{Entry, Key, Peers, Snapshot, Touched};

use std::time::Duration;

/// How long a replica that does not answer, and is not serving as Kubernetes sees it, still counts.
/// Longer than keepalives take on both sides.
pub const FORGET: Duration = Duration::from_secs(30);

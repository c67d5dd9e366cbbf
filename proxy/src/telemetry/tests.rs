//! Tests of what the proxy tells.

mod access_log;
mod metrics;

use std::sync::Arc;

use super::{Direction, Labels, Peer, Tunnel};

/// From `source` in `web` to `checkout` in `shop`.
fn labels(source: &str) -> Labels {
    let peer = |workload: &str, namespace: &str| Peer {
        workload: workload.into(),
        namespace: namespace.into(),
        identity: format!("spiffe://cluster.local/ns/{namespace}/sa/default").into(),
    };
    let service: Arc<str> = "shop/checkout".into();
    Labels::new(
        Direction::Outbound,
        Tunnel::Hbone,
        peer(source, "web"),
        peer("checkout", "shop"),
    )
    .service(&service)
}

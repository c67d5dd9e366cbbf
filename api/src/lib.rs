//! What crosses a boundary between weft's parts: the protobuf of the control protocols, and the
//! names of labels, annotations, conditions, ports and marks. No logic lives here.

pub mod names;

/// Configuration resources that the controller streams to proxies.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod config {
    tonic::include_proto!("weft.config.v1");
}

/// The delta xDS transport (`envoy.service.discovery.v3`).
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod discovery {
    tonic::include_proto!("envoy.service.discovery.v3");
}

/// Istio's certificate signing protocol.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod ca {
    tonic::include_proto!("istio.v1.auth");
}

/// The hand-over of pods from the node's agent to its proxy.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod handover {
    tonic::include_proto!("weft.handover.v1");
}

/// What the controller's replicas tell each other.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub mod peer {
    tonic::include_proto!("weft.peer.v1");
}

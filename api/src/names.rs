//! Names that users write and that parts must agree upon.

/// Label on a Namespace or Pod: [`MESH_ENABLED`] or [`MESH_DISABLED`].
pub const LABEL_MESH: &str = "weft.dev/mesh";
/// Value of [`LABEL_MESH`] that puts a namespace's pods into the mesh.
pub const MESH_ENABLED: &str = "enabled";
/// Value of [`LABEL_MESH`] that keeps a pod (or namespace) out.
pub const MESH_DISABLED: &str = "disabled";

/// Label on a Namespace or Pod: [`MTLS_STRICT`] or [`MTLS_PERMISSIVE`] (the default).
pub const LABEL_MTLS: &str = "weft.dev/mtls";
/// Plaintext from other pods is refused.
pub const MTLS_STRICT: &str = "strict";
/// Plaintext is let in beside mTLS.
pub const MTLS_PERMISSIVE: &str = "permissive";

/// Pod annotation that the node agent writes: the sandbox (CNI container id) that it has captured.
pub const ANNOTATION_CAPTURED: &str = "weft.dev/captured";

/// Pod condition that the controller writes: `True` once every proxy has acknowledged that the
/// sandbox named in the message is captured, `False` once every proxy has acknowledged that it is not.
pub const CONDITION_CAPTURED: &str = "weft.dev/Captured";

/// Route condition that the controller writes once the proxies that need a route acknowledged it.
pub const CONDITION_PROGRAMMED: &str = "weft.dev/Programmed";

/// `controllerName` in the status of routes.
pub const CONTROLLER_NAME: &str = "weft.dev/mesh-controller";

/// Namespace of weft's own parts.
pub const SYSTEM_NAMESPACE: &str = "weft-system";
/// The DNS name in the controller's serving certificate.
pub const CONTROLLER_DNS_NAME: &str = "weft-controller.weft-system.svc";
/// Default trust domain.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// Default cluster domain.
pub const DEFAULT_CLUSTER_DOMAIN: &str = "cluster.local";

/// Port in a pod's network namespace: captured outbound connections.
pub const PORT_OUTBOUND: u16 = 15001;
/// Port in a pod's network namespace: captured inbound plaintext.
pub const PORT_INBOUND_PLAINTEXT: u16 = 15006;
/// Port in a pod's network namespace: inbound HBONE.
pub const PORT_HBONE: u16 = 15008;
/// In a CONNECT: the sandbox that the client means. An address passes from pod to pod; who has it
/// now refuses with 421 what is meant for another. Clients that don't send it are served.
pub const HEADER_SANDBOX: &str = "weft-sandbox";
/// The proxy's admin interface, on loopback.
pub const PORT_ADMIN: u16 = 15000;
/// Prometheus metrics of each part.
pub const PORT_METRICS: u16 = 15020;
/// Readiness of the proxy.
pub const PORT_READY: u16 = 15021;
/// The controller: delta xDS and the CA, gRPC over TLS.
pub const PORT_CONTROLLER: u16 = 15010;

/// `SO_MARK` of the proxy's own sockets in a pod's network namespace (as ztunnel's), where the agent
/// names no other: that is a secret of each sandbox, lest anybody in the pod marks sockets so.
pub const MARK_PROXY: u32 = 0x539;
/// Connection mark of connections that keep the client's source address (as ztunnel's).
pub const MARK_TRANSPARENT: u32 = 0x111;
/// Routing table for [`MARK_TRANSPARENT`].
pub const ROUTE_TABLE_TRANSPARENT: u32 = 100;
/// Reserved link-local IPv4 source of the kubelet's probes.
pub const PROBE_SOURCE_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(169, 254, 7, 128);
/// Reserved IPv6 source of the kubelet's probes. Not link-local: answers to such an address would
/// ask for neighbour discovery on the pod's link; answers to this one take the default route.
pub const PROBE_SOURCE_V6: std::net::Ipv6Addr =
    std::net::Ipv6Addr::new(0xfd77, 0x6566, 0x7400, 0, 0, 0, 0, 0x0128);

/// xDS type URL of [`crate::config::Workload`].
pub const TYPE_WORKLOAD: &str = "type.googleapis.com/weft.config.v1.Workload";
/// xDS type URL of [`crate::config::Service`].
pub const TYPE_SERVICE: &str = "type.googleapis.com/weft.config.v1.Service";
/// xDS type URL of [`crate::config::RouteTable`].
pub const TYPE_ROUTE_TABLE: &str = "type.googleapis.com/weft.config.v1.RouteTable";
/// xDS type URL of [`crate::config::MeshConfig`].
pub const TYPE_MESH_CONFIG: &str = "type.googleapis.com/weft.config.v1.MeshConfig";
/// Name of the only MeshConfig resource.
pub const MESH_CONFIG_NAME: &str = "mesh";
/// `system_version_info` of a delta response that is followed by more of the same type: what came
/// so far is in force, but it is not all yet.
pub const XDS_PARTIAL: &str = "partial";

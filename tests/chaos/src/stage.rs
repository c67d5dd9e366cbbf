//! What labs of this crate are made of: manifests, as text, and the lanes of load that fit them.

use crate::record::{Kind, Lane};

/// The ports of every server: plain, with an HTTPRoute, with a GRPCRoute, and the one of streams.
const SERVICE_PORTS: &str = "[{name: http, port: 80, targetPort: 8080}, \
     {name: routed, port: 8080, targetPort: 8080, appProtocol: http}, \
     {name: grpc, port: 9090, appProtocol: kubernetes.io/h2c}, {name: streams, port: 9001}]";

/// How a server runs. It stays for a while after its endpoint is gone, as servers should: kept
/// connections without a route are bound to it until their clients end them.
const SERVER: &str =
    "command: [weft-echo, server, --http, \"8080\", --grpc, \"9090\", --speak-first, \"9001\"]
    readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}";

/// A namespace.
pub fn namespace(name: &str, enabled: bool) -> String {
    let labels = if enabled {
        ", labels: {weft.dev/mesh: enabled}"
    } else {
        ""
    };
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}{labels}}}\n")
}

/// A pod that waits for a client to run in it.
pub fn client(namespace: &str, name: &str, node: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  nodeName: {node}\n  containers: [{{name: c, command: [sleep, infinity]}}]\n"
    )
}

/// A server's pod.
pub fn server(namespace: &str, name: &str, version: &str, node: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}, namespace: {namespace}, labels: {{app: web, version: {version}}}}}\n\
         spec:\n  nodeName: {node}\n  containers:\n  - name: echo\n    {SERVER}\n    \
         env: [{{name: VERSION, value: {version}}}]\n"
    )
}

/// A Deployment of servers. `revision` is what a rolling restart changes.
pub fn deployment(
    namespace: &str,
    name: &str,
    version: &str,
    replicas: u32,
    linger_s: u32,
    revision: u32,
) -> String {
    format!(
        "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  replicas: {replicas}\n  selector: {{matchLabels: {{app: web, version: {version}}}}}\n  \
         strategy: {{rollingUpdate: {{maxUnavailable: 0, maxSurge: 1}}}}\n  template:\n    \
         metadata: {{labels: {{app: web, version: {version}}}, annotations: {{revision: \"{revision}\"}}}}\n    \
         spec:\n      terminationGracePeriodSeconds: 30\n      containers:\n      - name: echo\n        {}\n        \
         lifecycle: {{preStop: {{sleep: {{seconds: {linger_s}}}}}}}\n        \
         env: [{{name: VERSION, value: {version}}}]\n",
        SERVER.replace("\n    ", "\n        "),
    )
}

/// A Service over pods with these labels.
pub fn service(namespace: &str, name: &str, selector: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{selector: {{{selector}}}, ports: {SERVICE_PORTS}}}\n"
    )
}

/// An HTTPRoute for the port `routed` of a Service: weights by Service.
pub fn http_route(namespace: &str, service: &str, weights: &[(&str, u32)]) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: {service}, namespace: {namespace}}}\n\
         spec:\n  parentRefs: [{{group: \"\", kind: Service, name: {service}, port: 8080}}]\n  \
         rules: [{{backendRefs: [{}]}}]\n",
        backends(weights, 8080)
    )
}

/// A GRPCRoute for the port `grpc` of a Service.
pub fn grpc_route(namespace: &str, service: &str, weights: &[(&str, u32)]) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\n\
         metadata: {{name: {service}, namespace: {namespace}}}\n\
         spec:\n  parentRefs: [{{group: \"\", kind: Service, name: {service}, port: 9090}}]\n  \
         rules: [{{backendRefs: [{}]}}]\n",
        backends(weights, 9090)
    )
}

fn backends(weights: &[(&str, u32)], port: u16) -> String {
    let refs = weights
        .iter()
        .map(|(name, weight)| format!("{{name: {name}, port: {port}, weight: {weight}}}"));
    refs.collect::<Vec<_>>().join(", ")
}

/// Lanes towards a Service made by [`service`], with their pace.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// The Service, `name.namespace`.
    pub service: &'a str,
    /// Versions that may answer.
    pub versions: &'a [&'a str],
    /// Milliseconds between requests of one connection.
    pub interval_ms: u64,
    /// Milliseconds that connections without a route, and streams, live.
    pub life_ms: u64,
}

impl Target<'_> {
    fn lane(&self, name: &str, kind: Kind, port: u16, life_ms: u64) -> Lane {
        Lane {
            name: name.into(),
            kind,
            to: format!("{}:{port}", self.service),
            connections: 1,
            interval_ms: self.interval_ms,
            life_ms,
            backends: self.versions.iter().map(|v| (*v).to_owned()).collect(),
        }
    }

    /// Without a route: each connection is one TCP stream to one backend.
    pub fn plain(&self) -> Vec<Lane> {
        let life = self.life_ms;
        vec![
            self.lane("L4 keep-alive", Kind::KeepAlive, 80, life),
            self.lane("L4 new connections", Kind::New, 80, life),
            self.lane("L4 HTTP/2", Kind::Http2, 80, life),
            self.lane("L4 streams", Kind::Stream, 9001, life),
        ]
    }

    /// Through routes, while the client is in the mesh.
    pub fn routed(&self) -> Vec<Lane> {
        let life = self.life_ms;
        vec![
            self.lane("routed keep-alive", Kind::KeepAlive, 8080, life),
            self.lane("routed new connections", Kind::New, 8080, life),
            self.lane("routed HTTP/2", Kind::Http2, 8080, life),
            self.lane("routed slow answers", Kind::Slow, 8080, life),
            self.lane("routed gRPC", Kind::Grpc, 9090, life),
        ]
    }

    /// From where no mesh may be: as kept connections, each of which may be bound to one backend.
    pub fn outside(&self) -> Vec<Lane> {
        let life = self.life_ms;
        vec![
            self.lane("outside keep-alive", Kind::KeepAlive, 80, life),
            self.lane("outside new connections", Kind::New, 8080, life),
            self.lane("outside gRPC", Kind::Grpc, 9090, life),
            self.lane("outside streams", Kind::Stream, 9001, life),
        ]
    }

    /// Streams of another life than the others'; 0: they never end by themselves.
    pub fn streams(&self, name: &str, life_ms: u64) -> Lane {
        self.lane(name, Kind::Stream, 9001, life_ms)
    }
}

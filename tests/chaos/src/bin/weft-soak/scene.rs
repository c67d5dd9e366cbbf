//! The scene of a soak: namespaces, servers and clients, as they were at the beginning and as events
//! have changed them. Wishes in, manifests out.
//!
//! - `shop` joins and leaves; its Deployments `v1` and `v2` are scaled and rolled, its routes change.
//! - `vault` stays in the mesh, and is strict at times.
//! - `buyer` stays in the mesh, `plain` outside.

use weft_chaos::{
    record::{Kind, Lane},
    stage::{self, Target},
};

/// The nodes.
pub(crate) const NODES: [&str; 2] = ["n1", "n2"];
/// Seconds that a leaving pod, and a proxy that is replaced, give to what is open.
pub(crate) const DRAIN_S: u32 = 4;
/// Seconds that a server stays after its endpoint is gone.
const LINGER_S: u32 = 4;
/// Life of connections that lead to one server for good: within both of the above.
const LIFE_MS: u64 = 2500;
/// Life of connections whose requests a proxy routes one by one.
const ROUTED_LIFE_MS: u64 = 25_000;
/// Between the requests of a connection.
const INTERVAL_MS: u64 = 250;

/// What events change.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scene {
    /// Replicas of `v1` and `v2`.
    pub(crate) replicas: [u32; 2],
    /// Raised by a rolling restart.
    pub(crate) revisions: [u32; 2],
    /// Weights of `v1` and `v2`.
    pub(crate) weights: [u32; 2],
}

impl Default for Scene {
    fn default() -> Self {
        Self {
            replicas: [2, 2],
            revisions: [0, 0],
            weights: [1, 1],
        }
    }
}

/// A client's pod, with its node and lanes.
pub(crate) struct ClientPod {
    pub(crate) pod: &'static str,
    pub(crate) node: &'static str,
    pub(crate) lanes: Vec<Lane>,
}

impl Scene {
    /// Everything, as it is at the beginning.
    pub(crate) fn manifests(&self) -> String {
        let mut all = stage::namespace("shop", true)
            + &stage::namespace("vault", true)
            + &stage::namespace("buyer", true)
            + &stage::namespace("plain", false);
        for client in clients() {
            let (namespace, name) = client.pod.split_once('/').unwrap_or_default();
            all += &stage::client(namespace, name, client.node);
        }
        all += &stage::server("plain", "web", "plain", "n2");
        all += &stage::service("plain", "web", "app: web");
        all += &stage::server("vault", "web-1", "vault", "n1");
        all += &stage::server("vault", "web-2", "vault", "n2");
        all += &stage::service("vault", "web", "app: web");
        all += &stage::http_route("vault", "web", &[("web", 1)]);
        all += &stage::grpc_route("vault", "web", &[("web", 1)]);
        all += &stage::service("shop", "web", "app: web");
        for version in ["v1", "v2"] {
            all += &stage::service("shop", version, &format!("app: web, version: {version}"));
        }
        all += &stage::grpc_route("shop", "web", &[("v1", 1), ("v2", 1)]);
        all + &self.route() + &self.deployment(0) + &self.deployment(1)
    }

    /// A Deployment of `shop`.
    pub(crate) fn deployment(&self, index: usize) -> String {
        let name = ["v1", "v2"][index];
        let (replicas, revision) = (self.replicas[index], self.revisions[index]);
        stage::deployment("shop", name, name, replicas, LINGER_S, revision)
    }

    /// The route that is always there.
    pub(crate) fn route(&self) -> String {
        let [v1, v2] = self.weights;
        stage::http_route("shop", "web", &[("v1", v1), ("v2", v2)])
    }

    /// The same, with something that no version of the API knows.
    pub(crate) fn broken_route(&self) -> String {
        self.route().replace(
            "rules: [{",
            "rules: [{matches: [{path: {type: Nonsense, value: /}}], ",
        )
    }
}

/// A route that comes and goes: of two on one port the more specific one counts.
pub(crate) fn extra_route() -> String {
    stage::http_route("shop", "web", &[("v2", 1)])
        .replace("{name: web, namespace", "{name: extra, namespace")
        .replace(
            "rules: [{",
            "rules: [{matches: [{path: {type: PathPrefix, value: /}, method: POST}], ",
        )
}

/// The clients.
pub(crate) fn clients() -> Vec<ClientPod> {
    let shop = ["v1", "v2"];
    let to = |service: &'static str, versions: &'static [&'static str]| Target {
        service,
        versions,
        interval_ms: INTERVAL_MS,
        life_ms: LIFE_MS,
    };
    let long = |mut lanes: Vec<Lane>, prefix: &str| {
        for lane in &mut lanes {
            lane.life_ms = ROUTED_LIFE_MS;
            lane.name = lane.name.replace("routed", prefix);
        }
        lanes
    };
    let own = |pod, node| {
        let target = Target {
            service: "web.shop",
            versions: &["v1", "v2"],
            interval_ms: INTERVAL_MS,
            life_ms: LIFE_MS,
        };
        let mut lanes = target.plain();
        lanes.extend(target.routed());
        ClientPod { pod, node, lanes }
    };
    let buyer = |pod, node| {
        let mut lanes = long(to("web.shop", &["v1", "v2"]).routed(), "inside");
        lanes.push(to("web.shop", &["v1", "v2"]).streams("L4 streams", LIFE_MS));
        lanes.extend(long(to("web.vault", &["vault"]).routed(), "vault"));
        let vault = to("web.vault", &["vault"]).plain().into_iter();
        lanes.extend(vault.filter(|lane| lane.kind != Kind::Http2));
        let plain = to("web.plain", &["plain"]).plain().into_iter();
        lanes.extend(plain.filter(|lane| matches!(lane.kind, Kind::New | Kind::Stream)));
        ClientPod { pod, node, lanes }
    };
    vec![
        own("shop/client-1", "n1"),
        own("shop/client-2", "n2"),
        buyer("buyer/client-1", "n1"),
        buyer("buyer/client-2", "n2"),
        ClientPod {
            pod: "plain/client",
            node: "n1",
            lanes: Target {
                service: "web.shop",
                versions: &shop,
                interval_ms: INTERVAL_MS,
                life_ms: LIFE_MS,
            }
            .outside(),
        },
    ]
}

//! What `weft status` and `weft check` look at. In: the API, and pages of weft's pods. Out: [`Facts`],
//! of which everything else is a pure function. What can't be read is said in `unread`.

use std::collections::BTreeMap;

use futures::{StreamExt, stream};
use serde_json::Value;
use time::{Duration, OffsetDateTime};
use weft_api::names::{PORT_ADMIN, PORT_READY, SYSTEM_NAMESPACE};

use super::{
    api::{Cluster, is_forbidden},
    object::{is_ready, label, name, namespace, text},
};

/// Pages of pods that are read at once: each is a connection through the API server.
const AT_ONCE: usize = 8;
/// The agent's readiness, on its node's loopback.
const PORT_AGENT: u16 = 15022;
/// Kinds of routes.
const ROUTES: [&str; 5] = [
    "httproutes",
    "grpcroutes",
    "tlsroutes",
    "tcproutes",
    "udproutes",
];

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Depth {
    /// What the cluster is without weft.
    Cluster,
    /// Weft's objects, the pods and the routes.
    Objects,
    /// The pages of weft's pods, too.
    Pages,
}

/// What was seen.
#[derive(Debug)]
pub(crate) struct Facts {
    /// The API server's time.
    pub(crate) now: OffsetDateTime,
    /// This machine's time less the API server's, to the second.
    pub(crate) local_skew: Duration,
    /// `/version`.
    pub(crate) version: Value,
    /// CustomResourceDefinitions of the Gateway API, without their schemas.
    pub(crate) definitions: Vec<Value>,
    pub(crate) nodes: Vec<Value>,
    /// Leases by which kubelets say that they are alive, and when they last did.
    pub(crate) node_leases: Vec<Value>,
    pub(crate) namespaces: Vec<Value>,
    /// Cilium's configuration, if there is one.
    pub(crate) cilium: Option<Value>,
    pub(crate) pods: Vec<Value>,
    pub(crate) policies: Vec<Value>,
    pub(crate) routes: Vec<Value>,
    /// Deployment and DaemonSets of weft.
    pub(crate) workloads: Vec<Value>,
    /// Who writes status.
    pub(crate) leader: Option<Value>,
    /// ConfigMap `weft-trust-bundle`.
    pub(crate) bundle: Option<Value>,
    /// Of each pod of weft's that is not ready: what it says of that.
    pub(crate) reasons: BTreeMap<String, String>,
    /// Of each node's proxy: the pods that it serves, with their certificates' dates.
    pub(crate) served: BTreeMap<String, Value>,
    /// What could not be read, and why.
    pub(crate) unread: Vec<String>,
}

impl Facts {
    /// Weft's own pods of one of its parts.
    pub(crate) fn part<'a>(&'a self, part: &'a str) -> impl Iterator<Item = &'a Value> {
        self.pods.iter().filter(move |pod| {
            namespace(pod) == SYSTEM_NAMESPACE && label(pod, "app.kubernetes.io/name") == Some(part)
        })
    }

    pub(crate) fn namespace(&self, wanted: &str) -> Option<&Value> {
        self.namespaces.iter().find(|one| name(one) == wanted)
    }

    pub(crate) fn workload(&self, wanted: &str) -> Option<&Value> {
        self.workloads.iter().find(|one| name(one) == wanted)
    }
}

/// Reads, and notes what it may not read.
struct Reader<'a> {
    cluster: &'a Cluster,
    unread: Vec<String>,
}

impl Reader<'_> {
    async fn list(&mut self, path: &str) -> anyhow::Result<Vec<Value>> {
        match self.cluster.list(path).await {
            Ok(items) => Ok(items.unwrap_or_default()),
            Err(error) if is_forbidden(&error) => {
                self.unread.push(format!("{path}: forbidden"));
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    async fn get(&mut self, path: &str) -> anyhow::Result<Option<Value>> {
        match self.cluster.get(path).await {
            Err(error) if is_forbidden(&error) => {
                self.unread.push(format!("{path}: forbidden"));
                Ok(None)
            }
            other => other,
        }
    }
}

/// Looks at a cluster.
pub(crate) async fn gather(cluster: &Cluster, depth: Depth) -> anyhow::Result<Facts> {
    let now = cluster.clock().await?;
    let local_skew = OffsetDateTime::now_utc() - now;
    let mut reader = Reader {
        cluster,
        unread: Vec::new(),
    };
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let mut definitions = reader.list(crds).await?;
    definitions.retain(|crd| text(crd, "/spec/group").starts_with("gateway.networking."));
    let system = format!("namespaces/{SYSTEM_NAMESPACE}");
    let mut facts = Facts {
        now,
        local_skew: Duration::seconds(local_skew.whole_seconds()),
        version: reader.get("/version").await?.unwrap_or_default(),
        definitions,
        nodes: reader.list("/api/v1/nodes").await?,
        node_leases: reader
            .list("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases")
            .await?,
        namespaces: reader.list("/api/v1/namespaces").await?,
        cilium: reader
            .get("/api/v1/namespaces/kube-system/configmaps/cilium-config")
            .await?,
        pods: Vec::new(),
        policies: Vec::new(),
        routes: Vec::new(),
        workloads: Vec::new(),
        leader: None,
        bundle: None,
        reasons: BTreeMap::new(),
        served: BTreeMap::new(),
        unread: Vec::new(),
    };
    if depth >= Depth::Objects {
        facts.pods = reader.list("/api/v1/pods").await?;
        let policies = "/apis/networking.k8s.io/v1/networkpolicies";
        facts.policies = reader.list(policies).await?;
        facts.routes = routes(&mut reader, &facts.definitions).await?;
        for kind in ["deployments", "daemonsets"] {
            let path = format!("/apis/apps/v1/{system}/{kind}");
            facts.workloads.extend(reader.list(&path).await?);
        }
        let leader = format!("/apis/coordination.k8s.io/v1/{system}/leases/weft-controller");
        facts.leader = reader.get(&leader).await?;
        let bundle = format!("/api/v1/{system}/configmaps/weft-trust-bundle");
        facts.bundle = reader.get(&bundle).await?;
    }
    facts.unread = reader.unread;
    if depth >= Depth::Pages {
        pages(cluster, &mut facts).await;
    }
    Ok(facts)
}

/// Routes of all kinds that are defined, in the version that the API keeps.
async fn routes(reader: &mut Reader<'_>, definitions: &[Value]) -> anyhow::Result<Vec<Value>> {
    let mut all = Vec::new();
    for plural in ROUTES {
        let Some(crd) = definitions
            .iter()
            .find(|crd| name(crd) == format!("{plural}.gateway.networking.k8s.io"))
        else {
            continue;
        };
        let versions = super::object::list(crd, "/spec/versions");
        let stored = versions
            .iter()
            .find(|version| version.get("storage") == Some(&Value::Bool(true)));
        let Some(version) = stored.map(|version| text(version, "/name")) else {
            continue;
        };
        let path = format!("/apis/gateway.networking.k8s.io/{version}/{plural}");
        for mut route in reader.list(&path).await? {
            route["kind"] = crd.pointer("/spec/names/kind").cloned().unwrap_or_default();
            all.push(route);
        }
    }
    Ok(all)
}

/// Reads what proxies serve, and why who is not ready is not.
async fn pages(cluster: &Cluster, facts: &mut Facts) {
    let mut wanted = Vec::new();
    for (part, port) in [("weft-proxy", PORT_READY), ("weft-cni", PORT_AGENT)] {
        for pod in facts.part(part) {
            if text(pod, "/status/phase") != "Running" {
                continue;
            }
            if !is_ready(pod) {
                wanted.push((name(pod).to_owned(), port, "/ready"));
            }
            if part == "weft-proxy" {
                wanted.push((name(pod).to_owned(), PORT_ADMIN, "/pods"));
            }
        }
    }
    let mut answers = stream::iter(wanted)
        .map(|(pod, port, page)| async move {
            let answer = cluster.page(&pod, port, page).await;
            (pod, page, answer)
        })
        .buffer_unordered(AT_ONCE);
    while let Some((pod, page, answer)) = answers.next().await {
        match answer {
            Ok((_, body)) if page == "/ready" => {
                let text = String::from_utf8_lossy(&body);
                let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
                facts.reasons.insert(pod, lines.join("; "));
            }
            Ok((_, body)) => match serde_json::from_slice(&body) {
                Ok(served) => {
                    facts.served.insert(pod, served);
                }
                Err(error) => facts.unread.push(format!("{page} of {pod}: {error}")),
            },
            Err(error) => facts.unread.push(format!("{error:#}")),
        }
    }
    facts.unread.sort();
}

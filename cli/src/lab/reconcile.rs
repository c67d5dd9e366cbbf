//! The lab's controllers, scheduler and kube-proxies in one loop. In: the API's objects. Out: what
//! follows from them: namespaces, addresses, pods and their nodes, EndpointSlices, the nodes'
//! rules, the pods' hosts files, and per pod bound to a node a task that runs it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write as _},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weft_source::ObjectKey;

use super::{
    api::{Api, core, key, object_at},
    deployments::{self, Step},
    endpoints, kubeproxy,
    lab::Lab,
    plan::Plan,
    pod,
    services::{self, Backends},
};

/// Rounds after which the controllers must have settled; more means that two disagree.
const MAX_ROUNDS: usize = 50;

/// What the loop remembers.
pub(crate) struct Reconciler {
    lab: Arc<Lab>,
    pods: BTreeMap<ObjectKey, CancellationToken>,
    tasks: JoinSet<ObjectKey>,
    rules: BTreeMap<String, kubeproxy::Rules>,
    next_node: usize,
}

impl Reconciler {
    pub(crate) fn new(lab: Arc<Lab>) -> Self {
        Self {
            lab,
            pods: BTreeMap::new(),
            tasks: JoinSet::new(),
            rules: BTreeMap::new(),
            next_node: 0,
        }
    }

    /// Follows the API until the task is aborted; the pods' tasks end with it.
    pub(crate) async fn run(mut self) {
        let mut changes = self.lab.api.changes();
        loop {
            changes.mark_unchanged();
            if let Err(error) = self.settle() {
                tracing::error!(error = %format!("{error:#}"), "the lab's controllers failed");
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                Some(done) = self.tasks.join_next() => self.pod_ended(done),
            }
        }
    }

    fn pod_ended(&mut self, done: Result<ObjectKey, tokio::task::JoinError>) {
        match done {
            Ok(key) => {
                self.pods.remove(&key);
            }
            Err(error) if error.is_cancelled() => {}
            Err(error) => tracing::error!(%error, "a pod's task ended"),
        }
    }

    /// Runs every controller until none has anything left to do.
    fn settle(&mut self) -> anyhow::Result<()> {
        let lab = Arc::clone(&self.lab);
        let api = &lab.api;
        let mut rounds = 0;
        loop {
            let before = *api.changes().borrow();
            namespaces(api)?;
            cluster_ips(api)?;
            run_deployments(api)?;
            self.schedule()?;
            collect_garbage(api)?;
            endpoint_slices(api, &lab.plan)?;
            if *api.changes().borrow() == before {
                break;
            }
            rounds += 1;
            if rounds == MAX_ROUNDS {
                anyhow::bail!("no rest after {MAX_ROUNDS} rounds");
            }
        }
        let backends = backends(api);
        write_hosts(&lab, &backends)?;
        self.load_rules(&backends);
        // Last: a pod is told to stop after its endpoints say that it does.
        self.kubelets();
        Ok(())
    }

    /// Binds pods to nodes: as they ask, else in turn.
    fn schedule(&mut self) -> io::Result<()> {
        let nodes = &self.lab.plan.nodes;
        for (key, pod) in typed::<Pod>(&self.lab.api, "", "Pod") {
            let spec = pod.spec.unwrap_or_default();
            if spec.node_name.is_some_and(|name| !name.is_empty()) {
                continue;
            }
            let selector = spec.node_selector.unwrap_or_default();
            let fits: Vec<_> = nodes
                .iter()
                .filter(|node| {
                    let labels = node_labels(&node.name, &node.zone);
                    selector
                        .iter()
                        .all(|(k, v)| labels.get(k.as_str()) == Some(&v.as_str()))
                })
                .collect();
            if fits.is_empty() {
                let message = format!("no node has the labels {selector:?}");
                unschedulable(&self.lab.api, &key, &message)?;
                continue;
            }
            let node = fits[self.next_node % fits.len()].name.clone();
            self.next_node += 1;
            self.lab.api.update(&key, |pod| {
                object_at(pod, &["spec"]).insert("nodeName".into(), node.into());
            })?;
        }
        Ok(())
    }

    fn kubelets(&mut self) {
        for (key, pod) in typed::<Pod>(&self.lab.api, "", "Pod") {
            let deleted = deployments::is_terminating(&pod);
            if let Some(token) = self.pods.get(&key) {
                if deleted {
                    token.cancel();
                }
                continue;
            }
            let name = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
            let Some(name) = name else { continue };
            let Some(node) = self.lab.plan.node(&name) else {
                let message = format!("there is no node {name}");
                let _ = unschedulable(&self.lab.api, &key, &message);
                continue;
            };
            let token = CancellationToken::new();
            if deleted {
                token.cancel();
            }
            self.pods.insert(key.clone(), token.clone());
            let run = pod::run(Arc::clone(&self.lab), key.clone(), pod, node.clone(), token);
            self.tasks.spawn(async move {
                run.await;
                key
            });
        }
    }

    fn load_rules(&mut self, backends: &[Backends]) {
        for node in &self.lab.plan.nodes {
            let inputs = kubeproxy::NodeRules {
                pod_cidrs: &node.pod_cidrs,
                bridge_netfilter: self.lab.has_bridge_netfilter(&node.name),
            };
            let rules = self.rules.entry(node.name.clone()).or_default();
            let Some(script) = rules.script(&inputs, backends) else {
                continue;
            };
            let load = || kubeproxy::load(&node.netns, &script.text);
            match tokio::task::block_in_place(load) {
                Ok(()) => rules.loaded(script),
                Err(error) => {
                    tracing::error!(node = node.name, error = %format!("{error:#}"),
                        "the node's Service rules can't be loaded");
                }
            }
        }
    }
}

/// Objects of a kind, decoded; what does not decode was refused at apply.
pub(crate) fn typed<T: DeserializeOwned>(
    api: &Api,
    group: &str,
    kind: &str,
) -> Vec<(ObjectKey, T)> {
    api.list(group, kind)
        .into_iter()
        .filter_map(|(key, value)| Some((key, T::deserialize(&*value).ok()?)))
        .collect()
}

/// Services with the endpoints behind them.
fn backends(api: &Api) -> Vec<Backends> {
    let services: Vec<Service> = values(typed(api, "", "Service"));
    let slices: Vec<EndpointSlice> = values(typed(api, "discovery.k8s.io", "EndpointSlice"));
    services::backends(&services, &slices)
}

fn values<T>(pairs: Vec<(ObjectKey, T)>) -> Vec<T> {
    pairs.into_iter().map(|(_, value)| value).collect()
}

/// The `/etc/hosts` of a pod as things are now.
pub(crate) fn hosts(lab: &Lab, namespace: &str, hostname: &str, addresses: &[IpAddr]) -> String {
    services::hosts(namespace, hostname, addresses, &backends(&lab.api))
}

fn write_hosts(lab: &Lab, backends: &[Backends]) -> io::Result<()> {
    for (key, pod) in typed::<Pod>(&lab.api, "", "Pod") {
        let file = lab.paths.pod(&key.namespace, &key.name).join("hosts");
        let Ok(old) = fs::read_to_string(&file) else {
            continue;
        };
        let status = pod.status.unwrap_or_default();
        let addresses: Vec<IpAddr> = status
            .pod_ips
            .iter()
            .flatten()
            .filter_map(|ip| ip.ip.parse().ok())
            .collect();
        let hostname = pod
            .spec
            .and_then(|spec| spec.hostname)
            .unwrap_or_else(|| key.name.clone());
        let new = services::hosts(&key.namespace, &hostname, &addresses, backends);
        if new != old {
            // In place, for the pods have this very file mounted; and never empty in between.
            let mut open = fs::OpenOptions::new().write(true).open(&file)?;
            open.write_all(new.as_bytes())?;
            open.set_len(new.len() as u64)?;
        }
    }
    Ok(())
}

/// Namespaces that are used exist, and have their default service account.
fn namespaces(api: &Api) -> io::Result<()> {
    let keys = api.keys();
    let mut used: BTreeSet<&str> = keys.iter().map(|key| key.namespace.as_str()).collect();
    used.remove("");
    used.insert("default");
    for name in used {
        let namespace = core("Namespace", "", name);
        if api.get(&namespace).is_none() {
            let object =
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            api.put(&namespace, object)?;
        }
    }
    for (namespace, _) in api.list("", "Namespace") {
        let account = core("ServiceAccount", &namespace.name, "default");
        if api.get(&account).is_none() {
            let object = json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": "default", "namespace": namespace.name},
            });
            api.put(&account, object)?;
        }
    }
    Ok(())
}

fn cluster_ips(api: &Api) -> io::Result<()> {
    let services = typed::<Service>(api, "", "Service");
    let ip_of = |service: &Service| {
        service
            .spec
            .as_ref()
            .and_then(|spec| spec.cluster_ip.clone())
    };
    let mut taken: BTreeSet<IpAddr> = services
        .iter()
        .filter_map(|(_, service)| ip_of(service)?.parse().ok())
        .collect();
    for (key, service) in &services {
        let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
        let has = ip_of(service).is_some_and(|ip| !ip.is_empty());
        if has || kind == Some("ExternalName") || service.spec.is_none() {
            continue;
        }
        let Some(address) = endpoints::allocate(&key.namespace, &key.name, &taken) else {
            tracing::error!(service = %key, "no clusterIP is left");
            continue;
        };
        taken.insert(address);
        api.update(key, |service| {
            let spec = object_at(service, &["spec"]);
            spec.insert("clusterIP".into(), address.to_string().into());
            spec.insert("clusterIPs".into(), json!([address.to_string()]));
            weft_source::defaults::apply(service);
        })?;
    }
    Ok(())
}

fn run_deployments(api: &Api) -> anyhow::Result<()> {
    let pods = values(typed::<Pod>(api, "", "Pod"));
    for (deployment_key, deployment) in typed::<Deployment>(api, "apps", "Deployment") {
        let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
        let owned: Vec<Pod> = pods
            .iter()
            .filter(|pod| is_owned(pod, uid))
            .cloned()
            .collect();
        for step in deployments::steps(&deployment, &owned) {
            match step {
                Step::Create(pod) => {
                    let name = pod["metadata"]["name"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned();
                    api.put(&core("Pod", &deployment_key.namespace, &name), pod)?;
                }
                Step::Delete(name) => {
                    delete_pod(api, &core("Pod", &deployment_key.namespace, &name))?;
                }
            }
        }
        let status = deployments::status(&deployment, &owned);
        api.update(&deployment_key, |object| object["status"] = status)?;
    }
    Ok(())
}

fn is_owned(pod: &Pod, uid: &str) -> bool {
    pod.metadata
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.uid == uid)
}

/// Marks a pod as being deleted; whoever runs it removes it. False if there is none.
pub(crate) fn delete_pod(api: &Api, key: &ObjectKey) -> io::Result<bool> {
    let Some(pod) = api.get(key) else {
        return Ok(false);
    };
    if pod["spec"]["nodeName"].is_null() {
        return api.remove(key);
    }
    api.mark_deleted(key)
}

/// Deletes an object as the API would; pods take their time. False if there is none.
pub(crate) fn delete(api: &Api, key: &ObjectKey) -> io::Result<bool> {
    if key.group.is_empty() && key.kind == "Pod" {
        return delete_pod(api, key);
    }
    if key.group.is_empty() && key.kind == "Namespace" {
        for inner in api
            .keys()
            .iter()
            .filter(|inner| inner.namespace == key.name)
        {
            delete(api, inner)?;
        }
    }
    api.remove(key)
}

/// Deletes what is owned by something that is gone.
fn collect_garbage(api: &Api) -> io::Result<()> {
    let keys = api.keys();
    let uids: BTreeSet<String> = keys
        .iter()
        .filter_map(|key| Some(api.get(key)?["metadata"]["uid"].as_str()?.to_owned()))
        .collect();
    for key in &keys {
        let Some(object) = api.get(key) else { continue };
        let owners = object["metadata"]["ownerReferences"]
            .as_array()
            .into_iter()
            .flatten();
        let owners: Vec<_> = owners.filter_map(|owner| owner["uid"].as_str()).collect();
        if !owners.is_empty() && !owners.iter().any(|uid| uids.contains(*uid)) {
            delete(api, key)?;
        }
    }
    Ok(())
}

fn endpoint_slices(api: &Api, plan: &Plan) -> io::Result<()> {
    const GROUP: &str = "discovery.k8s.io";
    let pods = values(typed::<Pod>(api, "", "Pod"));
    let zone_of = |node: &str| plan.node(node).map(|node| node.zone.clone());
    let existing = api.list(GROUP, "EndpointSlice");
    for (service_key, service) in typed::<Service>(api, "", "Service") {
        if endpoints::selector(&service).is_none() {
            continue;
        }
        let ours = |managed: bool| {
            let existing = existing.iter().filter(|(key, slice)| {
                let labels = &slice["metadata"]["labels"];
                key.namespace == service_key.namespace
                    && labels[endpoints::SERVICE_LABEL] == service_key.name
                    && (labels[endpoints::MANAGED_LABEL] == endpoints::MANAGER) == managed
            });
            existing.map(|(key, _)| key.clone()).collect::<Vec<_>>()
        };
        let mut stale: BTreeSet<ObjectKey> = ours(true).into_iter().collect();
        // Slices that the user wrote take the place of the lab's.
        if ours(false).is_empty() {
            for slice in endpoints::slices(&service, &pods, &zone_of) {
                let name = slice["metadata"]["name"].as_str().unwrap_or_default();
                let slice_key = key(GROUP, "EndpointSlice", &service_key.namespace, name);
                stale.remove(&slice_key);
                api.put(&slice_key, slice)?;
            }
        }
        for slice in stale {
            api.remove(&slice)?;
        }
    }
    Ok(())
}

fn unschedulable(api: &Api, key: &ObjectKey, message: &str) -> io::Result<()> {
    api.update(key, |pod| {
        pod["status"] = json!({
            "phase": "Pending",
            "reason": "Unschedulable",
            "message": message,
            "conditions": [{
                "type": "PodScheduled", "status": "False",
                "reason": "Unschedulable", "message": message,
            }],
        });
    })
    .map(|_| ())
}

fn node_labels<'a>(name: &'a str, zone: &'a str) -> BTreeMap<&'static str, &'a str> {
    BTreeMap::from([
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("topology.kubernetes.io/region", "lab"),
        ("topology.kubernetes.io/zone", zone),
    ])
}

/// Writes the lab's Node objects.
pub(crate) fn nodes(lab: &Lab) -> io::Result<()> {
    for node in &lab.plan.nodes {
        let cidrs: Vec<_> = node.pod_cidrs.iter().map(ToString::to_string).collect();
        let object = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name, "labels": node_labels(&node.name, &node.zone)},
            "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
            "status": {
                "addresses": [
                    {"type": "InternalIP", "address": node.address().to_string()},
                    {"type": "Hostname", "address": node.name},
                ],
                "conditions": [{"type": "Ready", "status": "True", "reason": "LabReady"}],
            },
        });
        lab.api.put(&core("Node", "", &node.name), object)?;
    }
    Ok(())
}

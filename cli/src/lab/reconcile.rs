//! The lab's controllers, scheduler and kube-proxies in one loop. In: the API's objects. Out: what
//! follows from them: namespaces, addresses, pods and their nodes, EndpointSlices, the nodes'
//! rules and the pods' hosts files; the kubelets are told of every change.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};

use super::{
    api::Api,
    controllers::{
        cluster_ips, collect_garbage, endpoint_slices, namespaces, node_labels, run_deployments,
        typed, unschedulable, values,
    },
    kubelets::Kubelets,
    kubeproxy,
    lab::Lab,
    merge::object_at,
    services::{self, Backends},
};

/// Rounds after which the controllers must have settled; more means that two disagree.
const MAX_ROUNDS: usize = 50;
/// After a failure, until it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What the loop remembers.
pub(crate) struct Reconciler {
    lab: Arc<Lab>,
    kubelets: Arc<Kubelets>,
    rules: BTreeMap<String, kubeproxy::Rules>,
    next_node: usize,
}

impl Reconciler {
    pub(crate) fn new(lab: Arc<Lab>, kubelets: Arc<Kubelets>) -> Self {
        Self {
            lab,
            kubelets,
            rules: BTreeMap::new(),
            next_node: 0,
        }
    }

    /// Follows the API until the task is aborted.
    pub(crate) async fn run(mut self) {
        let mut changes = self.lab.api.changes();
        loop {
            changes.mark_unchanged();
            let retry = match self.settle() {
                Ok(version) => {
                    self.lab.settled.store(version, Ordering::Release);
                    None
                }
                Err(error) => {
                    tracing::error!(error = %format!("{error:#}"), "the lab's controllers failed");
                    Some(tokio::time::sleep(RETRY))
                }
            };
            let retry = futures::future::OptionFuture::from(retry);
            tokio::select! {
                Some(()) = retry => {}
                changed = changes.changed() => if changed.is_err() { return },
                () = self.kubelets.changed() => {}
            }
        }
    }

    /// Runs every controller until none has anything left to do; gives the version of the API for
    /// which that holds.
    fn settle(&mut self) -> anyhow::Result<u64> {
        let lab = Arc::clone(&self.lab);
        let api = &lab.api;
        let mut rounds = 0;
        let version = loop {
            let before = api.version();
            namespaces(api)?;
            cluster_ips(api, &lab.plan)?;
            run_deployments(api)?;
            self.schedule()?;
            collect_garbage(api)?;
            endpoint_slices(api, &lab.plan)?;
            if api.version() == before {
                break before;
            }
            rounds += 1;
            if rounds == MAX_ROUNDS {
                anyhow::bail!("no rest after {MAX_ROUNDS} rounds");
            }
        };
        let backends = backends(api);
        write_hosts(&lab, &backends)?;
        let loaded = self.load_rules(&backends);
        // Last: a pod is told to stop after its endpoints say that it does.
        self.kubelets.sync();
        loaded.map(|()| version)
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

    fn load_rules(&mut self, backends: &[Backends]) -> anyhow::Result<()> {
        let mut result = Ok(());
        for node in &self.lab.plan.nodes {
            if self.kubelets.took_boot(&node.name) {
                self.rules.remove(&node.name);
            }
            if !self.kubelets.has_power(&node.name) {
                continue;
            }
            let inputs = kubeproxy::NodeRules {
                pod_cidrs: &node.pod_cidrs,
                service_cidrs: &self.lab.plan.service_cidrs(),
                bridge_netfilter: self.lab.has_bridge_netfilter(&node.name),
            };
            let rules = self.rules.entry(node.name.clone()).or_default();
            let Some(script) = rules.script(&inputs, backends) else {
                continue;
            };
            let load = || kubeproxy::load(&node.netns, &script.text);
            match tokio::task::block_in_place(load) {
                Ok(()) => rules.loaded(script),
                // The other nodes get theirs.
                Err(error) => result = Err(error),
            }
        }
        result
    }
}

/// Services with the endpoints behind them.
fn backends(api: &Api) -> Vec<Backends> {
    let services: Vec<Service> = values(typed(api, "", "Service"));
    let slices: Vec<EndpointSlice> = values(typed(api, "discovery.k8s.io", "EndpointSlice"));
    services::backends(&services, &slices)
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

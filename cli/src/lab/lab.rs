//! What every task of a running lab shares.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::atomic::AtomicU64,
};

use serde_json::{Value, json};

use anyhow::Context;

use super::{
    api::Api,
    cni, links, netns,
    paths::Paths,
    plan::{NodePlan, Plan},
    programs::Extra,
};

/// A running lab.
pub(crate) struct Lab {
    pub(crate) plan: Plan,
    pub(crate) paths: Paths,
    pub(crate) api: Api,
    /// Whether there is a mesh, or plain pods only.
    pub(crate) mesh: bool,
    pub(crate) extra: Extra,
    /// This program: it becomes the pods' processes.
    pub(crate) weft: PathBuf,
    /// Where weft's programs are.
    pub(crate) programs: PathBuf,
    pub(crate) cni_path: Vec<PathBuf>,
    /// Version of the API to which controllers, rules and hosts files have caught up.
    pub(crate) settled: AtomicU64,
    /// By node.
    conflists: BTreeMap<String, Value>,
    /// By node: whether replies between two of its pods pass its address translation.
    bridge_netfilter: BTreeMap<String, bool>,
}

impl Lab {
    /// Makes the networks and folders of a lab that runs from here on.
    pub(crate) fn build(plan: Plan, mesh: bool, extra: Extra) -> anyhow::Result<Self> {
        let paths = Paths::of(&plan.name);
        let api = Api::new(paths.api())?;
        let weft = std::env::current_exe()?;
        let programs = weft.parent().unwrap_or(Path::new("/")).to_owned();
        std::fs::create_dir_all(paths.logs().join("pods"))?;

        netns::create(&plan.fabric.netns)?;
        links::fabric(&plan)?;
        let mut conflists = BTreeMap::new();
        let mut bridge_netfilter = BTreeMap::new();
        for node in &plan.nodes {
            let run_dir = paths.node(&node.name);
            bridge_netfilter.insert(node.name.clone(), boot(&plan, node, &run_dir)?);
            let weft = mesh.then(|| {
                json!({
                    "type": "weft-cni",
                    "runDir": run_dir,
                    "source": format!("folder:{}", paths.api().display()),
                    "node": node.name,
                })
            });
            let list = cni::conflist(node, &paths.cni().join("ipam").join(&node.name), weft);
            let file = paths.cni().join(format!("{}.conflist", node.name));
            super::paths::write_atomic(&file, &serde_json::to_vec_pretty(&list)?)?;
            conflists.insert(node.name.clone(), list);
        }
        let cni_path = cni::search_path(&programs);
        Ok(Self {
            plan,
            paths,
            api,
            mesh,
            extra,
            weft,
            programs,
            cni_path,
            settled: AtomicU64::new(0),
            conflists,
            bridge_netfilter,
        })
    }

    /// The CNI configuration of a node's pods.
    pub(crate) fn conflist(&self, node: &str) -> Option<&Value> {
        self.conflists.get(node)
    }

    /// See [`links::bridge_netfilter`].
    pub(crate) fn has_bridge_netfilter(&self, node: &str) -> bool {
        self.bridge_netfilter.get(node).copied().unwrap_or(false)
    }

    /// An empty file: no name server.
    pub(crate) fn resolv(&self) -> PathBuf {
        self.paths.root().join("resolv.conf")
    }

    /// Attaches a pod network for one more proxy of a node: the primary plugin only. Gives its
    /// namespace, and the address that others reach it by.
    pub(crate) fn attach_proxy(&self, node: &NodePlan) -> anyhow::Result<(String, IpAddr)> {
        let netns = (1..)
            .map(|number| node.proxy_netns(number))
            .find(|netns| !netns::path(netns).exists())
            .context("a free name")?;
        netns::create(&netns)?;
        let attached = self.with_proxy(node, &netns, |sandbox| {
            let addresses = cni::addresses(&sandbox.add()?);
            addresses.first().copied().context("it got no address")
        });
        match attached {
            Ok(address) => Ok((netns, address)),
            Err(error) => {
                let _ = netns::remove(&netns);
                Err(error)
            }
        }
    }

    /// Removes a proxy's pod network. Best effort: what is left goes with the lab.
    pub(crate) fn detach_proxy(&self, node: &NodePlan, netns: &str) {
        if let Err(error) = self.with_proxy(node, netns, |sandbox| sandbox.delete(None)) {
            let error = format!("{error:#}");
            tracing::warn!(netns, error, "a proxy's pod network can't be detached");
        }
        if let Err(error) = netns::remove(netns) {
            tracing::warn!(netns, %error, "network namespace can't be removed");
        }
    }

    fn with_proxy<T>(
        &self,
        node: &NodePlan,
        netns: &str,
        work: impl FnOnce(&cni::Sandbox<'_>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        work(&cni::Sandbox {
            conflist: &cni::conflist(node, &self.ipam(node), None),
            path: &self.cni_path,
            node_netns: &node.netns,
            container_id: netns,
            netns: &netns::path(netns),
            args: Vec::new(),
        })
    }

    /// Where the primary plugin remembers a node's addresses.
    fn ipam(&self, node: &NodePlan) -> PathBuf {
        self.paths.cni().join("ipam").join(&node.name)
    }

    /// Makes a node anew whose processes have ended, as a boot finds it: nothing in `/run`,
    /// where this lab's addresses are remembered too, so that new pods get addresses that others
    /// had before.
    pub(crate) fn reboot_node(&self, node: &NodePlan, pods: &[String]) -> anyhow::Result<()> {
        let proxies = netns::list();
        let proxies = proxies.iter().filter(|name| node.is_proxy_netns(name));
        for name in proxies.chain(pods) {
            netns::remove(name).with_context(|| format!("network namespace {name}"))?;
        }
        links::unlink(&self.plan, node)?;
        netns::remove(&node.netns).with_context(|| format!("network namespace {}", node.netns))?;
        let run_dir = self.paths.node(&node.name);
        for folder in [&run_dir, &self.ipam(node)] {
            match std::fs::remove_dir_all(folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| folder.display().to_string());
                }
                _ => {}
            }
        }
        boot(&self.plan, node, &run_dir)?;
        Ok(())
    }
}

/// Makes a node's namespace, links and run-dir. True if replies between two of its pods pass its
/// address translation.
fn boot(plan: &Plan, node: &NodePlan, run_dir: &Path) -> anyhow::Result<bool> {
    netns::create(&node.netns)?;
    links::node(plan, node)?;
    std::fs::create_dir_all(run_dir)?;
    Ok(links::bridge_netfilter(node))
}

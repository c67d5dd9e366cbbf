//! What every task of a running lab shares.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::atomic::AtomicU64,
};

use serde_json::{Value, json};

use super::{api::Api, cni, links, netns, paths::Paths, plan::Plan};

/// A running lab.
pub(crate) struct Lab {
    pub(crate) plan: Plan,
    pub(crate) paths: Paths,
    pub(crate) api: Api,
    /// Whether there is a mesh, or plain pods only.
    pub(crate) mesh: bool,
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
    pub(crate) fn build(plan: Plan, mesh: bool) -> anyhow::Result<Self> {
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
            netns::create(&node.netns)?;
            links::node(&plan, node)?;
            bridge_netfilter.insert(node.name.clone(), links::bridge_netfilter(node));
            let run_dir = paths.node(&node.name);
            std::fs::create_dir_all(&run_dir)?;
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

    /// Attaches the pod network of a node's proxy: the primary plugin only.
    pub(crate) fn attach_proxy(&self, node: &str) -> anyhow::Result<Vec<IpAddr>> {
        use anyhow::Context;
        let node = self.plan.node(node).context("a node of the plan")?;
        netns::create(&node.proxy_netns)?;
        let ipam = self.paths.cni().join("ipam").join(&node.name);
        let list = cni::conflist(node, &ipam, None);
        let sandbox = cni::Sandbox {
            conflist: &list,
            path: &self.cni_path,
            node_netns: &node.netns,
            container_id: &node.proxy_netns,
            netns: &netns::path(&node.proxy_netns),
            args: Vec::new(),
        };
        Ok(cni::addresses(&sandbox.add()?))
    }
}

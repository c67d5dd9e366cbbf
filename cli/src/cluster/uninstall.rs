//! `weft uninstall`: the agents are ordered to leave their nodes, and only when they have is anything
//! deleted. In: flags. Out: what was done, a line each.

use std::{process::ExitCode, time::Duration};

use anyhow::bail;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use weft_api::names::SYSTEM_NAMESPACE;

use super::{
    api::{Cluster, Connection, path, short},
    install,
    manifests::{MANAGED_BY, MANAGER},
    object::{annotation, is_true, label, name, node},
    rollout,
};

/// On the agents' DaemonSet: the order to leave.
const ORDER: &str = "weft.dev/uninstall";
/// On an agent's pod: its node is as it was without weft.
const DONE: &str = "weft.dev/uninstalled";
/// How often the API is asked.
const EVERY: Duration = Duration::from_millis(500);

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    how: How,
}

#[derive(clap::Args, Debug)]
pub(crate) struct How {
    /// How long the nodes may take to let their pods leave.
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = rollout::duration)]
    pub(crate) timeout: Duration,
    /// Delete the namespace too, and with it the CA's root: a new installation has new identities.
    #[arg(long)]
    pub(crate) purge: bool,
    /// Delete even if nodes did not answer; what is on them stays until `weft-agent cleanup` runs there.
    #[arg(long)]
    pub(crate) force: bool,
}

pub(crate) async fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::connect(&args.connection).await?;
    uninstall(&cluster, &args.how).await?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn uninstall(cluster: &Cluster, how: &How) -> anyhow::Result<()> {
    let daemons = format!("/apis/apps/v1/namespaces/{SYSTEM_NAMESPACE}/daemonsets/weft-cni");
    if let Some(there) = cluster.get(&daemons).await? {
        if label(&there, MANAGED_BY) != Some(MANAGER) {
            bail!(
                "weft was installed by {}: helm uninstall weft -n {SYSTEM_NAMESPACE}",
                label(&there, MANAGED_BY).unwrap_or("another tool")
            );
        }
        cluster
            .merge(
                &daemons,
                &json!({"metadata": {"annotations": {ORDER: "true"}}}),
            )
            .await?;
        leave(cluster, how).await?;
    }
    for object in install::ours(cluster).await? {
        if cluster.delete(&path(&object)).await? {
            println!("{} deleted", short(&object));
        }
    }
    let namespace = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}");
    if how.purge {
        if cluster.delete(&namespace).await? {
            println!("namespace/{SYSTEM_NAMESPACE} deleted");
        }
    } else if cluster.get(&namespace).await?.is_some() {
        println!("namespace/{SYSTEM_NAMESPACE} kept, with the CA's root; --purge deletes it");
    }
    Ok(())
}

/// Waits until every node's agent has said that it left.
async fn leave(cluster: &Cluster, how: &How) -> anyhow::Result<()> {
    let until = Instant::now() + how.timeout;
    let mut said = usize::MAX;
    loop {
        let pods = format!(
            "/api/v1/namespaces/{SYSTEM_NAMESPACE}/pods?labelSelector=app.kubernetes.io%2Fname%3Dweft-cni"
        );
        let pods = cluster.list(&pods).await?.unwrap_or_default();
        let nodes = cluster.list("/api/v1/nodes").await?.unwrap_or_default();
        let (waiting, lost) = remaining(&pods, &nodes);
        if waiting.is_empty() {
            for node in lost {
                println!(
                    "node {node} is not ready: run `weft-agent cleanup` there if it comes back"
                );
            }
            return Ok(());
        }
        if Instant::now() >= until {
            let waiting = waiting.join(", ");
            if how.force {
                println!("nodes that did not answer: {waiting}; run `weft-agent cleanup` there");
                return Ok(());
            }
            bail!(
                "nodes {waiting} have not let their pods leave within {} s; nothing was deleted. `kubectl -n {SYSTEM_NAMESPACE} logs` of their weft-cni pods tells why; --force goes on without them",
                how.timeout.as_secs()
            );
        }
        if waiting.len() != said {
            said = waiting.len();
            println!("waiting for {said} nodes to let their pods leave");
        }
        sleep(EVERY).await;
    }
}

/// Nodes whose agents have not left: those that can, and those that are not there to do it.
fn remaining<'a>(pods: &'a [Value], nodes: &[Value]) -> (Vec<&'a str>, Vec<&'a str>) {
    let is_there = |wanted: &str| {
        nodes
            .iter()
            .any(|node| name(node) == wanted && is_true(node, "Ready"))
    };
    pods.iter()
        .filter(|pod| annotation(pod, DONE) != Some("true"))
        .map(node)
        .partition(|node| is_there(node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_are_agents_that_have_not_left_on_nodes_that_answer() {
        let pod = |node: &str, done: Option<&str>| json!({"metadata": {"annotations": {DONE: done}}, "spec": {"nodeName": node}});
        let node = |name: &str, ready: &str| json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let pods = [
            pod("a", Some("true")),
            pod("b", None),
            pod("c", Some("false")),
            pod("d", None),
            pod("gone", None),
        ];
        let nodes = [
            node("a", "True"),
            node("b", "True"),
            node("c", "True"),
            node("d", "Unknown"),
        ];
        assert_eq!(
            remaining(&pods, &nodes),
            (vec!["b", "c"], vec!["d", "gone"])
        );
    }
}

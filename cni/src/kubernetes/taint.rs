//! The taint that keeps pods from a node on which weft is not ready yet.
//!
//! Flows in: that the agent is ready. Flows out: the Node without the taint. It is put there by whoever
//! makes nodes (`--register-with-taints`), never by weft.

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::info;

use super::persist;

/// Takes the taint `key` from `node` each time that the agent becomes ready.
pub async fn remove_when_ready(
    client: Client,
    node: String,
    key: String,
    mut ready: watch::Receiver<bool>,
) {
    let nodes: Api<Node> = Api::all(client);
    let what = format!("take the taint {key} from node {node}");
    while ready.wait_for(|ready| *ready).await.is_ok() {
        persist(&what, || remove(&nodes, &node, &key)).await;
        if ready.wait_for(|ready| !*ready).await.is_err() {
            return;
        }
    }
}

async fn remove(nodes: &Api<Node>, node: &str, key: &str) -> Result<(), kube::Error> {
    let found = nodes.get(node).await?;
    let Some(patch) = without(&found, key) else {
        return Ok(());
    };
    nodes
        .patch(node, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    info!(node, taint = key, "the node takes pods");
    Ok(())
}

/// The patch that leaves all other taints, in force only if nobody has changed the node meanwhile.
pub(super) fn without(node: &Node, key: &str) -> Option<Value> {
    let taints = node.spec.as_ref()?.taints.as_ref()?;
    let others: Vec<_> = taints.iter().filter(|taint| taint.key != key).collect();
    (others.len() < taints.len()).then(|| {
        json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": others},
        })
    })
}

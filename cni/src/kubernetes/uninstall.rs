//! Giving the order to leave the nodes, and telling that it was followed.
//!
//! Flows in: the DaemonSet's name. Flows out: its annotation, and, once each of its pods bears
//! another, success. Agents write theirs with [`report`].

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tracing::info;

use super::{ANNOTATION_UNINSTALL, ANNOTATION_UNINSTALLED, Place, YES, persist};

/// How often to look whether the agents are done.
const EVERY: Duration = Duration::from_millis(500);

/// Why the nodes are not known to be left.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// The API did not do as asked.
    #[error("can't {what}: {source}")]
    Api {
        /// What was being done.
        what: String,
        /// The cause.
        #[source]
        source: kube::Error,
    },
    /// Some agents are not done.
    #[error(
        "not all nodes were left in time: {0}; see the logs of their agents, or run `weft-agent cleanup` on nodes that have none"
    )]
    NotInTime(String),
}

/// Orders the agents of a DaemonSet to leave their nodes, and waits until all have. One that is not
/// there has none.
pub async fn uninstall(
    client: &Client,
    daemonset: &Place,
    limit: Duration,
) -> Result<(), UninstallError> {
    let failed = |what: &str| {
        let what = format!("{what} {daemonset}");
        move |source| UninstallError::Api { what, source }
    };
    let daemonsets: Api<DaemonSet> = Api::namespaced(client.clone(), &daemonset.namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), &daemonset.namespace);
    let Some(owner) = daemonsets
        .get_opt(&daemonset.name)
        .await
        .map_err(failed("read DaemonSet"))?
    else {
        info!(%daemonset, "is not there: no agent to order");
        return Ok(());
    };
    let order = json!({"metadata": {"annotations": {ANNOTATION_UNINSTALL: YES}}});
    daemonsets
        .patch(
            &daemonset.name,
            &PatchParams::default(),
            &Patch::Merge(order),
        )
        .await
        .map_err(failed("annotate DaemonSet"))?;
    let labels = owner.spec.and_then(|spec| spec.selector.match_labels);
    let selector = selector(&labels.unwrap_or_default());
    let end = Instant::now() + limit;
    let mut before = None;
    loop {
        let listed = pods
            .list(&ListParams::default().labels(&selector))
            .await
            .map_err(failed("list pods of DaemonSet"))?;
        let waiting = waiting(&listed.items, owner.metadata.uid.as_deref());
        if waiting.is_empty() {
            return Ok(());
        }
        if before != Some(waiting.len()) {
            info!(nodes = waiting.len(), "waiting for agents to leave");
            before = Some(waiting.len());
        }
        if Instant::now() >= end {
            return Err(UninstallError::NotInTime(waiting.join(", ")));
        }
        sleep(EVERY).await;
    }
}

fn selector(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.join(",")
}

/// The nodes whose agents run and have not left yet.
pub(super) fn waiting(pods: &[Pod], owner: Option<&str>) -> Vec<String> {
    let is_agent = |pod: &&Pod| {
        let owners = pod.owner_references();
        owner.is_none_or(|uid| owners.iter().any(|owner| owner.uid == uid))
    };
    let is_done = |pod: &Pod| {
        let annotation = pod.annotations().get(ANNOTATION_UNINSTALLED);
        annotation.is_some_and(|value| value == YES)
    };
    let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    pods.iter()
        .filter(is_agent)
        .filter(|pod| !is_done(pod))
        // One that was never placed has touched no node.
        .filter_map(node)
        .collect()
}

/// Tells, on the agent's own pod, whether it has left its node; for ever.
pub async fn report(client: Client, pod: Place, mut left: watch::Receiver<bool>) {
    let pods: Api<Pod> = Api::namespaced(client, &pod.namespace);
    let what = format!("annotate the agent's own pod {pod}");
    let mut told = false;
    loop {
        let now = *left.borrow_and_update();
        if now != told {
            let value = now.then_some(YES);
            let patch = json!({"metadata": {"annotations": {ANNOTATION_UNINSTALLED: value}}});
            let patch = Patch::Merge(&patch);
            let parameters = PatchParams::default();
            persist(&what, || pods.patch(&pod.name, &parameters, &patch)).await;
            told = now;
        }
        if left.changed().await.is_err() {
            return;
        }
    }
}

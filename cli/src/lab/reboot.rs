//! A node's reboot. In: its name. Out: every process on it killed at once, its network namespaces
//! and run-dir gone, the node made anew, and its parts and pods started again all at once, in a
//! shuffled order. The API keeps what it held meanwhile: the pods' old addresses, their readiness
//! and that they were captured, until kubelet and agent correct it.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use weft_source::ObjectKey;

use super::{kubelets::Kubelets, lab::Lab, parts::Parts, procs};

/// How a node reboots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    /// How long it is without power.
    pub(crate) away: Duration,
    /// Of the order in which its parts and pods start.
    pub(crate) seed: u64,
}

/// What starts after a boot.
#[derive(Clone, Debug, Hash)]
enum Start {
    Part(String),
    Pod(ObjectKey),
}

impl std::fmt::Display for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Part(name) => f.write_str(name),
            Self::Pod(key) => write!(f, "{}/{}", key.namespace, key.name),
        }
    }
}

/// Reboots a node; returns when all was started, whether or not it is ready.
pub(crate) async fn run(
    lab: &Lab,
    parts: &Parts,
    kubelets: &Arc<Kubelets>,
    node: &str,
    order: Order,
) -> anyhow::Result<String> {
    let Some(plan) = lab.plan.node(node) else {
        let all: Vec<&str> = lab.plan.nodes.iter().map(|n| n.name.as_str()).collect();
        bail!("there is no node {node}: there is {}", all.join(", "));
    };
    if !kubelets.has_power(node) {
        bail!("node {node} reboots already");
    }
    let pods = kubelets.power_off(node);
    parts.cut_power(node).await;
    let mut netns: Vec<String> = pods
        .iter()
        .map(|key| lab.plan.pod_netns(&key.namespace, &key.name))
        .collect();
    // Whatever runs there, plugins and `weft lab exec` too.
    netns.push(plan.netns.clone());
    if !tokio::task::block_in_place(|| procs::kill_all(&netns, Duration::ZERO)) {
        bail!("node {node}: some processes could not be killed");
    }
    netns.pop();
    kubelets.let_go(&pods).await;
    parts.without_power(node).await;
    // Once more: one that was being started when the power went.
    tokio::task::block_in_place(|| procs::kill_all(&netns, Duration::ZERO));
    tracing::info!(node, pods = pods.len(), "node has no power");

    tokio::time::sleep(order.away).await;
    tokio::task::block_in_place(|| lab.reboot_node(plan, &netns))
        .with_context(|| format!("node {node} can't be made anew: take the lab down"))?;
    let began = Instant::now();
    let parts_of_node = parts.names_of_node(node).into_iter().map(Start::Part);
    let mut starts: Vec<Start> = parts_of_node
        .chain(pods.into_iter().map(Start::Pod))
        .collect();
    shuffle(&mut starts, order.seed);
    kubelets.power_on(node);
    for start in &starts {
        match start {
            Start::Part(name) => parts.power_on(name)?,
            Start::Pod(key) => kubelets.start_again(key),
        }
    }
    let names: Vec<String> = starts.iter().map(ToString::to_string).collect();
    let all = names.join(", ");
    tracing::info!(node, seed = order.seed, all, took = ?began.elapsed(), "node has booted");
    Ok(format!(
        "{node} has booted; started in this order (--seed {}): {all}",
        order.seed
    ))
}

/// Each seed has its order.
fn shuffle(starts: &mut [Start], seed: u64) {
    starts.sort_by_cached_key(|start| {
        let mut hasher = DefaultHasher::new();
        (seed, start).hash(&mut hasher);
        hasher.finish()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_stands_for_one_order_and_seeds_differ() {
        let starts = || -> Vec<Start> { (0..6).map(|i| Start::Part(i.to_string())).collect() };
        let order = |seed| {
            let mut starts = starts();
            shuffle(&mut starts, seed);
            starts.iter().map(ToString::to_string).collect::<String>()
        };
        assert_eq!(order(1), order(1));
        assert!((2..20).any(|seed| order(seed) != order(1)));
    }
}

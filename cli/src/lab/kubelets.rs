//! The kubelets: which pods run on which node. In: the API's pods that are bound to a node, and the
//! nodes' power. Out: a task for each pod that runs; after a reboot its pods run again, in new
//! sandboxes, as a kubelet starts again what the API still binds to its node.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_source::ObjectKey;

use super::{
    controllers::{typed, unschedulable},
    deployments,
    lab::Lab,
    pod::{self, Sandbox},
};

/// All nodes' kubelets.
pub(crate) struct Kubelets {
    lab: Arc<Lab>,
    state: Mutex<State>,
    /// A pod's task ended, or a node has power again.
    changed: Notify,
}

#[derive(Default)]
struct State {
    running: BTreeMap<ObjectKey, Running>,
    /// Nodes without power.
    down: BTreeSet<String>,
    /// Nodes whose rules went with their last boot.
    booted: BTreeSet<String>,
    /// The sandbox of each pod that a node lost, until the pod runs again.
    lost: BTreeMap<ObjectKey, Sandbox>,
}

struct Running {
    node: String,
    sandbox: Sandbox,
    deleted: CancellationToken,
    /// The node lost its power.
    lost: CancellationToken,
    tasks: TaskTracker,
}

impl Kubelets {
    pub(crate) fn new(lab: Arc<Lab>) -> Self {
        Self {
            lab,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Waits until there may be something to do.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Starts what is bound to nodes, and tells pods that were deleted. Pods that a reboot starts
    /// are left to it.
    pub(crate) fn sync(self: &Arc<Self>) {
        for (key, pod) in typed::<Pod>(&self.lab.api, "", "Pod") {
            if let Some(running) = self.state.lock().running.get(&key) {
                if deployments::is_terminating(&pod) {
                    running.deleted.cancel();
                }
                continue;
            }
            self.start(key, pod, false);
        }
    }

    /// Runs a pod of the API on its node, if it is bound to one that has power and does not run.
    /// One that a node lost is started `again` or not at all.
    fn start(self: &Arc<Self>, key: ObjectKey, pod: Pod, again: bool) {
        let name = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let Some(name) = name else { return };
        let Some(node) = self.lab.plan.node(&name) else {
            let message = format!("there is no node {name}");
            let _ = unschedulable(&self.lab.api, &key, &message);
            return;
        };
        let mut state = self.state.lock();
        // Under one lock with what is inserted below: a pod must not run twice.
        if state.down.contains(&name)
            || state.running.contains_key(&key)
            || (!again && state.lost.contains_key(&key))
        {
            return;
        }
        let sandbox = match state.lost.remove(&key) {
            Some(former) => former.next(),
            None => Sandbox::first(&pod),
        };
        let running = Running {
            node: name,
            sandbox: sandbox.clone(),
            deleted: CancellationToken::new(),
            lost: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        if deployments::is_terminating(&pod) {
            running.deleted.cancel();
        }
        let deleted = running.deleted.clone();
        let lost = running.lost.clone();
        let lab = Arc::clone(&self.lab);
        let run = pod::run(lab, key.clone(), pod, node.clone(), sandbox, deleted);
        let this = Arc::clone(self);
        let ended = key.clone();
        running.tasks.spawn(async move {
            tokio::select! {
                () = run => {
                    this.state.lock().running.remove(&ended);
                    this.changed.notify_one();
                }
                () = lost.cancelled() => {}
            }
        });
        running.tasks.close();
        state.running.insert(key, running);
    }

    /// Whether a node has power.
    pub(crate) fn has_power(&self, node: &str) -> bool {
        !self.state.lock().down.contains(node)
    }

    /// Whether a node booted since this was asked last.
    pub(crate) fn took_boot(&self, node: &str) -> bool {
        self.state.lock().booted.remove(node)
    }

    /// A node loses its power: its pods are not looked after any more. Gives the pods' names.
    pub(crate) fn power_off(&self, node: &str) -> Vec<ObjectKey> {
        let mut state = self.state.lock();
        state.down.insert(node.to_owned());
        let of_node = state.running.iter().filter(|(_, run)| run.node == node);
        let lost: Vec<_> = of_node
            .map(|(key, run)| {
                run.lost.cancel();
                (key.clone(), run.sandbox.clone())
            })
            .collect();
        state.lost.extend(lost.iter().cloned());
        lost.into_iter().map(|(key, _)| key).collect()
    }

    /// Waits until nothing is done any more for the pods that a node lost.
    pub(crate) async fn let_go(&self, pods: &[ObjectKey]) {
        for key in pods {
            let tasks = {
                let state = self.state.lock();
                state.running.get(key).map(|running| running.tasks.clone())
            };
            if let Some(tasks) = tasks {
                tasks.wait().await;
            }
            self.state.lock().running.remove(key);
        }
    }

    /// A node has power again; its pods are started by [`Self::start_again`].
    pub(crate) fn power_on(&self, node: &str) {
        let mut state = self.state.lock();
        state.down.remove(node);
        state.booted.insert(node.to_owned());
        drop(state);
        self.changed.notify_one();
    }

    /// Starts a pod that its node had lost, in a new sandbox, if the API still has it.
    pub(crate) fn start_again(self: &Arc<Self>, key: &ObjectKey) {
        let Some(former) = self.state.lock().lost.get(key).cloned() else {
            return;
        };
        let mut pods = typed::<Pod>(&self.lab.api, "", "Pod").into_iter();
        let found = pods.find(|(found, _)| found == key);
        match found {
            // Another one of that name is not what was lost.
            Some((_, pod)) if former.is_of(&pod) => self.start(key.clone(), pod, true),
            _ => {
                self.state.lock().lost.remove(key);
                self.changed.notify_one();
            }
        }
    }
}

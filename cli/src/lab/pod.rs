//! The kubelet's part for one pod. In: the Pod object, bound to a node. Out: its network (through
//! the CNI chain), its containers' processes, its status in the API. Ends when the pod was deleted
//! and everything of it is gone.

use std::{fs, net::IpAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use weft_source::ObjectKey;

use super::{
    api::{new_uid, now},
    cni,
    container::{Container, Enter, Status},
    lab::Lab,
    links, netns,
    plan::NodePlan,
    pod_status::{Report, keep_transition_times, status},
    podspec::{self, ContainerPlan, PodPlan},
    procs,
    shim::PodExec,
};

/// Back-off between attempts at attaching a pod.
const FIRST_BACKOFF: Duration = Duration::from_millis(300);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Between the endpoint's change to terminating and SIGTERM: what the change needs to reach
/// every proxy. A kubelet takes about as long to hear of a deletion.
const ENDPOINTS_LEAD: Duration = Duration::from_millis(400);
/// Reason of a pod that the lab can't run as it is written.
pub(crate) const CONFIG_ERROR: &str = "CreateContainerConfigError";
/// Reason of a pod whose network can't be made.
pub(crate) const SANDBOX_ERROR: &str = "FailedCreatePodSandBox";

/// A pod's sandbox, as a container runtime names it: a new one after each reboot of the node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sandbox {
    uid: String,
    id: String,
    /// The one before, of which the plugins have not been told that it is gone.
    former: Option<String>,
    /// How many there were before.
    count: u32,
}

impl Sandbox {
    /// A new pod's.
    pub(crate) fn first(pod: &Pod) -> Self {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        Self {
            id: uid.replace('-', ""),
            uid,
            former: None,
            count: 0,
        }
    }

    /// That of the same pod after this one was lost.
    pub(crate) fn next(self) -> Self {
        Self {
            uid: self.uid,
            former: Some(self.id),
            id: new_uid().replace('-', ""),
            count: self.count + 1,
        }
    }

    /// Whether it is, or was, this pod's.
    pub(crate) fn is_of(&self, pod: &Pod) -> bool {
        pod.metadata.uid.as_ref() == Some(&self.uid)
    }
}

/// One pod on its node.
struct Runner {
    lab: Arc<Lab>,
    key: ObjectKey,
    node: NodePlan,
    pod: Pod,
    netns: String,
    sandbox: Sandbox,
    host_network: bool,
    deleted: CancellationToken,
    report: Mutex<Report>,
}

/// Runs a pod from its binding to its removal.
pub(crate) async fn run(
    lab: Arc<Lab>,
    key: ObjectKey,
    pod: Pod,
    node: NodePlan,
    sandbox: Sandbox,
    deleted: CancellationToken,
) {
    let host_network = pod
        .spec
        .as_ref()
        .and_then(|s| s.host_network)
        .unwrap_or(false);
    let netns = if host_network {
        node.netns.clone()
    } else {
        lab.plan.pod_netns(&key.namespace, &key.name)
    };
    let report = Report {
        node_addresses: node.addresses(),
        started: now(),
        addresses: Vec::new(),
        reason: "",
        message: String::new(),
        initialized: false,
        init: Vec::new(),
        containers: Vec::new(),
    };
    let runner = Runner {
        report: Mutex::new(report),
        lab,
        key,
        node,
        pod,
        netns,
        sandbox,
        host_network,
        deleted,
    };
    runner.run().await;
}

impl Runner {
    async fn run(&self) {
        // Before anything is made: what can't be run needs no network.
        if let Err(why) = podspec::plan(&self.pod, &[], &self.node.name) {
            tracing::warn!("pod {} {why}", self.name());
            self.change(|report| {
                report.reason = CONFIG_ERROR;
                report.message = why;
            });
            self.deleted.cancelled().await;
            self.remove();
            return;
        }
        self.change(|report| report.message = "its network is being made".into());
        if let Some(result) = self.attach().await {
            let addresses = if self.host_network {
                self.node.addresses()
            } else {
                cni::addresses(&result)
            };
            self.change(|report| {
                report.addresses.clone_from(&addresses);
                report.reason = "";
                report.message.clear();
            });
            match podspec::plan(&self.pod, &addresses, &self.node.name) {
                Ok(plan) => self.containers(plan, &addresses).await,
                Err(why) => tracing::error!("pod {} {why}", self.name()),
            }
            self.deleted.cancelled().await;
            self.detach(&result);
        }
        self.remove();
    }

    /// Attaches the pod, trying again until it works; none if the pod was deleted before.
    async fn attach(&self) -> Option<Value> {
        if self.host_network {
            return Some(Value::Null);
        }
        self.forget_former();
        let mut backoff = FIRST_BACKOFF;
        loop {
            let error = match self.blocking(|runner| runner.sandbox(|sandbox| sandbox.add())) {
                Ok(result) => return Some(result),
                Err(error) => format!("{error:#}"),
            };
            tracing::warn!(pod = %self.name(), error, "the pod's network can't be made");
            self.change(|report| {
                report.reason = SANDBOX_ERROR;
                report.message = error;
            });
            tokio::select! {
                () = tokio::time::sleep(backoff) => {}
                () = self.deleted.cancelled() => {
                    let _ = netns::remove(&self.netns);
                    return None;
                }
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    fn sandbox<T>(
        &self,
        work: impl FnOnce(&cni::Sandbox<'_>) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        if !netns::path(&self.netns).exists() {
            netns::create(&self.netns)?;
            links::reverse_path_filter(&self.lab.plan, &self.netns)?;
        }
        work(&self.attachment(&self.sandbox.id, &netns::path(&self.netns))?)
    }

    fn attachment<'a>(&'a self, id: &'a str, netns: &'a Path) -> anyhow::Result<cni::Sandbox<'a>> {
        let conflist = self
            .lab
            .conflist(&self.node.name)
            .context("the node's CNI configuration")?;
        Ok(cni::Sandbox {
            conflist,
            path: &self.lab.cni_path,
            node_netns: &self.node.netns,
            container_id: id,
            netns,
            args: vec![
                ("K8S_POD_NAMESPACE", self.key.namespace.clone()),
                ("K8S_POD_NAME", self.key.name.clone()),
                ("K8S_POD_INFRA_CONTAINER_ID", id.to_owned()),
                ("K8S_POD_UID", self.sandbox.uid.clone()),
            ],
        })
    }

    /// Tells the plugins that the sandbox before a reboot is gone, as a runtime does when it finds
    /// one dead: without a network namespace, for there is none any more.
    fn forget_former(&self) {
        let Some(former) = &self.sandbox.former else {
            return;
        };
        let gone = self.blocking(|runner| {
            let attachment = runner.attachment(former, Path::new(""))?;
            attachment.delete(None)
        });
        if let Err(error) = gone {
            tracing::warn!(pod = %self.name(), error = %format!("{error:#}"), "CNI DEL failed");
        }
    }

    /// Runs what blocks (plugins) without holding up the runtime's other tasks.
    fn blocking<T>(&self, work: impl FnOnce(&Self) -> anyhow::Result<T>) -> anyhow::Result<T> {
        tokio::task::block_in_place(|| work(self))
    }

    async fn containers(&self, plan: PodPlan, addresses: &[IpAddr]) {
        if let Err(error) = self.write_files(&plan, addresses) {
            tracing::error!(pod = %self.name(), error = %format!("{error:#}"), "pod can't be prepared");
            self.change(|report| {
                report.reason = CONFIG_ERROR;
                report.message = format!("{error:#}");
            });
            return;
        }
        let Some(address) = addresses.first().copied() else {
            return;
        };
        let names = |plans: &[ContainerPlan]| -> Vec<(String, Status)> {
            plans
                .iter()
                .map(|plan| (plan.name.clone(), Status::new()))
                .collect()
        };
        self.change(|report| {
            report.init = names(&plan.init);
            report.containers = names(&plan.containers);
        });
        let stop = CancellationToken::new();
        let stopper = async {
            self.deleted.cancelled().await;
            if self.lab.mesh {
                tokio::time::sleep(ENDPOINTS_LEAD).await;
            }
            stop.cancel();
            std::future::pending::<()>().await;
        };
        let all = async {
            for (index, container) in plan.init.into_iter().enumerate() {
                let container = self.container(container, plan.grace, address, &stop);
                let success = container
                    .run(&|status| self.change(|report| report.init[index].1 = status.clone()))
                    .await;
                if !success {
                    return;
                }
            }
            self.change(|report| report.initialized = true);
            let runs = plan
                .containers
                .into_iter()
                .enumerate()
                .map(|(index, container)| {
                    let container = self.container(container, plan.grace, address, &stop);
                    async move {
                        let report = |status: &Status| {
                            self.change(|r| r.containers[index].1 = status.clone())
                        };
                        container.run(&report).await
                    }
                });
            futures::future::join_all(runs).await;
        };
        tokio::select! {
            () = all => {}
            () = stopper => {}
        }
    }

    fn container(
        &self,
        plan: ContainerPlan,
        grace: Duration,
        address: IpAddr,
        stop: &CancellationToken,
    ) -> Container {
        let (namespace, pod) = (&self.key.namespace, &self.key.name);
        Container {
            name: format!("{namespace}/{pod}/{}", plan.name),
            enter: Enter {
                weft: self.lab.weft.clone(),
                file: self.lab.paths.container(namespace, pod, &plan.name),
            },
            log: self.lab.paths.container_log(namespace, pod, &plan.name),
            plan,
            node_netns: self.node.netns.clone(),
            address,
            grace,
            restarts: self.sandbox.count,
            stop: stop.clone(),
        }
    }

    fn write_files(&self, plan: &PodPlan, addresses: &[IpAddr]) -> anyhow::Result<()> {
        let (namespace, pod) = (&self.key.namespace, &self.key.name);
        let folder = self.lab.paths.pod(namespace, pod);
        fs::create_dir_all(&folder)?;
        let hosts = folder.join("hosts");
        fs::write(
            &hosts,
            super::reconcile::hosts(&self.lab, namespace, &plan.hostname, addresses),
        )?;
        for container in plan.init.iter().chain(&plan.containers) {
            let exec = PodExec {
                netns: netns::path(&self.netns),
                hostname: plan.hostname.clone(),
                hosts: hosts.clone(),
                resolv: self.lab.resolv(),
                working_dir: container.working_dir.clone(),
                env: container.env.clone(),
                command: container.command.clone(),
                programs: self.lab.programs.clone(),
            };
            let file = self.lab.paths.container(namespace, pod, &container.name);
            super::paths::write_atomic(&file, &serde_json::to_vec_pretty(&exec)?)?;
        }
        Ok(())
    }

    fn detach(&self, result: &Value) {
        if self.host_network {
            return;
        }
        let detached = self.blocking(|runner| {
            // What the containers left behind, and what `weft lab exec` still runs here.
            procs::kill_all(std::slice::from_ref(&runner.netns), Duration::ZERO);
            runner.sandbox(|sandbox| sandbox.delete(Some(result)))
        });
        if let Err(error) = detached {
            tracing::warn!(pod = %self.name(), error = %format!("{error:#}"), "CNI DEL failed");
        }
        if let Err(error) = netns::remove(&self.netns) {
            tracing::warn!(pod = %self.name(), %error, "network namespace can't be removed");
        }
    }

    fn remove(&self) {
        let folder = self.lab.paths.pod(&self.key.namespace, &self.key.name);
        let _ = fs::remove_dir_all(folder);
        if let Err(error) = self.lab.api.remove(&self.key) {
            tracing::error!(pod = %self.name(), %error, "pod can't be removed from the API");
        }
    }

    fn name(&self) -> String {
        format!("{}/{}", self.key.namespace, self.key.name)
    }

    /// Changes the report and publishes it.
    fn change(&self, change: impl FnOnce(&mut Report)) {
        let mut report = self.report.lock();
        change(&mut report);
        let restart = self
            .pod
            .spec
            .as_ref()
            .and_then(|s| s.restart_policy.as_deref());
        let status = status(&report, restart.unwrap_or("Always") == "Always");
        let updated = self.lab.api.update(&self.key, |object| {
            let status = keep_transition_times(status, &object["status"]);
            object["status"] = status;
        });
        if let Err(error) = updated {
            tracing::error!(pod = %self.name(), %error, "the pod's status can't be written");
        }
    }
}

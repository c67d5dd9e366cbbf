//! The pods of this node that are in the mesh. In flow their descriptors and what the agent says
//! of them; out flow accepted connections, each as a task of its pod.

use std::{
    net::IpAddr,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use foldhash::{HashMap, HashMapExt};
use parking_lot::Mutex;
use tokio::{net::TcpListener, runtime::Handle};
use weft_api::handover::{self, ListenerKind};
use weft_certs::{BundleSource, SpiffeId};

use crate::{
    http::HttpLimits, identity::Identities, netns::Netns, settings::Settings, state::State,
    telemetry::Telemetry,
};

mod leave;
mod mode;
mod pod;

pub use pod::{HeldPod, Pod};

/// What all pods of the node share.
pub struct Node {
    /// The configuration in force.
    pub state: Arc<State>,
    /// Limits and times.
    pub settings: Settings,
    /// L7's limits.
    pub http: HttpLimits,
    /// Where everything is reported.
    pub telemetry: Arc<Telemetry>,
    /// Who is trusted.
    pub bundle: Arc<dyn BundleSource>,
    /// Certificates.
    pub identities: Identities,
    /// Where pods run that keep the runtime's own threads busy: [`crate::share::busy_threads`].
    pub busy_threads: Option<Handle>,
}

/// What the agent says of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// CNI container id.
    pub sandbox: String,
    /// Pod UID.
    pub uid: String,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Service account.
    pub service_account: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Plaintext is refused, until the configuration says otherwise.
    pub strict: bool,
    /// The mark of the proxy's sockets in the pod; 0: the usual.
    pub mark: u32,
}

/// A pod can't be served.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The agent's message makes no sense.
    #[error("pod {pod}: {reason}")]
    Invalid {
        /// `<namespace>/<name>`.
        pod: String,
        /// What is wrong.
        reason: String,
    },
    /// Its certificate is not there.
    #[error("pod {pod}: no certificate for {identity} yet: {reason}")]
    Certificate {
        /// `<namespace>/<name>`.
        pod: String,
        /// SPIFFE id.
        identity: String,
        /// Why.
        reason: String,
    },
    /// The proxy was told to end.
    #[error("pod {0} is not taken: this proxy is ending, and its successor serves new pods")]
    Ending(String),
    /// It was removed while it was being started.
    #[error("pod {0} was removed before it was served")]
    Removed(String),
}

/// All of them, by sandbox.
pub struct Pods {
    node: Arc<Node>,
    pods: Mutex<HashMap<String, Arc<Pod>>>,
    /// The proxy was told to end: no pod comes any more.
    ending: AtomicBool,
}

impl Pods {
    /// None yet.
    pub fn new(node: Arc<Node>) -> Self {
        Self {
            node,
            pods: Mutex::new(HashMap::new()),
            ending: AtomicBool::new(false),
        }
    }

    /// Takes a pod over, or its new listeners if it is served already. Returns at once;
    /// [`Pod::ready`] tells when it is served.
    pub fn add(
        &self,
        info: Info,
        netns: OwnedFd,
        listeners: Vec<(ListenerKind, OwnedFd)>,
    ) -> Result<Arc<Pod>, PodError> {
        let invalid = |reason: String| PodError::Invalid {
            pod: format!("{}/{}", info.namespace, info.name),
            reason,
        };
        if self.ending.load(Ordering::Acquire) {
            return Err(PodError::Ending(format!(
                "{}/{}",
                info.namespace, info.name
            )));
        }
        let trust_domain = Arc::clone(&self.node.state.mesh().trust_domain);
        let spiffe = SpiffeId::new(&trust_domain, &info.namespace, &info.service_account)
            .map_err(|error| invalid(error.to_string()))?;
        let listeners = listeners
            .into_iter()
            .map(|(kind, listener)| Ok((kind, listen(listener)?)))
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(|error| invalid(format!("listening socket: {error}")))?;
        let mut pods = self.pods.lock();
        let held = pods
            .get(&info.sandbox)
            .filter(|pod| *pod.spiffe_id() == spiffe && !pod.is_draining());
        let pod = match held {
            Some(pod) => {
                pod.update(info);
                Arc::clone(pod)
            }
            None => {
                let sandbox = info.sandbox.clone();
                let pod = Pod::new(Arc::clone(&self.node), info, Netns::new(netns), spiffe)
                    .map_err(|error| PodError::Invalid {
                        pod: sandbox.clone(),
                        reason: error.to_string(),
                    })?;
                match pods.insert(sandbox, Arc::clone(&pod)) {
                    // What it has open goes on; what is new must not be told to go away.
                    Some(old) if *old.spiffe_id() == *pod.spiffe_id() => old.join_again(&pod),
                    // It has another identity, and no right to go on.
                    Some(old) => old.stop(),
                    None => {}
                }
                pod
            }
        };
        self.tell(&pods);
        drop(pods);
        pod.listen(listeners);
        Ok(pod)
    }

    /// The pod of a sandbox.
    pub fn get(&self, sandbox: &str) -> Option<Arc<Pod>> {
        self.pods.lock().get(sandbox).cloned()
    }

    /// Every pod.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        self.pods.lock().values().cloned().collect()
    }

    /// The pod is gone: closes everything of it.
    pub fn remove(&self, sandbox: &str) {
        let removed = {
            let mut pods = self.pods.lock();
            let removed = pods.remove(sandbox);
            self.tell(&pods);
            removed
        };
        if let Some(pod) = removed {
            pod.stop();
            self.forget(&pod);
        }
        self.sweep();
    }

    /// Drops the pods that are not in `sandboxes`.
    pub fn retain(&self, sandboxes: impl Fn(&str) -> bool) {
        let mut stale = Vec::new();
        self.pods.lock().retain(|sandbox, pod| {
            let keep = sandboxes(sandbox);
            if !keep {
                stale.push(Arc::clone(pod));
            }
            keep
        });
        self.tell(&self.pods.lock());
        for pod in stale {
            tracing::info!(pod = %pod.name(), "the agent no longer has this pod");
            pod.stop();
            self.forget(&pod);
        }
        self.sweep();
    }

    /// Has each pod follow its mode, for ever: what is open in plaintext ends when it has to.
    pub async fn follow_modes(self: Arc<Self>) {
        let mut changes = self.node.state.subscribe();
        loop {
            for pod in self.all() {
                pod.follow_mode();
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Ends the metrics of a pod, unless another sandbox has its name.
    fn forget(&self, gone: &Pod) {
        let gone = gone.info();
        let pods = self.pods.lock();
        let mut infos = pods.values().map(|pod| pod.info());
        if !infos.any(|info| (&info.namespace, &info.name) == (&gone.namespace, &gone.name)) {
            self.node.telemetry.forget_pod(&gone.namespace, &gone.name);
        }
    }

    /// Forgets the identities, and their keys, that no pod has any more.
    fn sweep(&self) {
        let pods = self.pods.lock();
        // Not by who still holds them: tasks of a pod that was stopped do for a moment.
        let ending = self.ending.load(Ordering::Acquire);
        self.node
            .identities
            .sweep(|id| pods.values().any(|pod| pod.spiffe_id() == id), ending);
    }

    /// The agent takes a pod out of the mesh: what it has open ends in order, and it is no
    /// member for those who dial it.
    pub fn drain(&self, pod: &Pod) {
        pod.start_draining();
        self.tell(&self.pods.lock());
    }

    /// Tells what depends on which pods there are.
    fn tell(&self, pods: &HashMap<String, Arc<Pod>>) {
        self.node.telemetry.pods(pods.len());
        let members = pods.values().filter(|pod| !pod.is_draining());
        let own = members.flat_map(|pod| {
            let workload = Arc::new(pod.as_workload());
            let addresses = workload.addresses.clone();
            addresses
                .into_iter()
                .map(move |ip| (ip, Arc::clone(&workload)))
        });
        self.node.state.set_own_pods(own.collect());
    }

    /// Stops accepting, gives what is open `limit` to end by itself, closes the rest in order, and
    /// returns when all has ended.
    pub async fn shut_down(&self, limit: Duration) {
        self.ending.store(true, Ordering::Release);
        let pods = self.all();
        for pod in &pods {
            pod.stop_accepting();
        }
        futures::future::join_all(pods.iter().map(|pod| pod.leave(limit))).await;
    }
}

impl Info {
    /// From the agent's message.
    pub fn parse(pod: handover::Pod) -> Result<Self, PodError> {
        let name = format!("{}/{}", pod.namespace, pod.name);
        let invalid = |reason: &str| PodError::Invalid {
            pod: name.clone(),
            reason: reason.to_owned(),
        };
        if pod.sandbox.is_empty() {
            return Err(invalid("it has no sandbox"));
        }
        let addresses = pod
            .addresses
            .iter()
            .map(|bytes| {
                address(bytes).ok_or_else(|| invalid("an address has neither 4 nor 16 bytes"))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            sandbox: pod.sandbox,
            uid: pod.uid,
            namespace: pod.namespace.into(),
            name: pod.name.into(),
            service_account: pod.service_account,
            addresses,
            strict: pod.strict,
            mark: pod.mark,
        })
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()),
        _ => None,
    }
}

fn listen(listener: OwnedFd) -> std::io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(listener);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

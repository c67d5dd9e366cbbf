//! The node's agent: knows the sandboxes, decides which belong into the mesh, and brings each there.
//!
//! Flows in: objects from the source, sandboxes from the plugin (socket and records), proxies on
//! the hand-over socket. Flows out: rules and listening sockets in pods, offers to proxies, the
//! annotation on captured pods. An agent that ends leaves captured pods captured.

mod adopt;
mod follow;
mod health;
mod leave;
mod machine;
mod node;
mod proxies;
mod report;
mod returned;
mod serve;

mod worker;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tracing::{info, warn};
use weft_handover::{HandoverError, Listener};
use weft_source::{Source, SourceError, Writer};

pub use self::leave::{clear, strip};
use self::{
    machine::Phase,
    proxies::Proxies,
    worker::{Handle, PodContext},
};
use crate::{
    install,
    listeners::Listeners,
    marks::{Marks, MarksError},
    netns::{NetNs, NetNsError},
    objects::{Acknowledged, Desired, Objects, PodFacts, desired, namespace_key, pod_key},
    protocol, rules,
    sandbox::{Sandbox, Store},
};

/// How long a start waits for proxies to give the sockets of captured pods back. A proxy dials
/// several times a second; one that can't give them back is made do without.
const RETURN_PATIENCE: Duration = Duration::from_secs(2);
/// How long a start waits for the sockets of captured pods before it lets proxies in: a snapshot
/// without them would have the proxies let go of the pods.
const RESTORE_PATIENCE: Duration = Duration::from_secs(10);

/// The usual [`Config::add_timeout`]: shorter than the plugin waits for the agent.
pub const ADD_TIMEOUT: Duration = Duration::from_secs(10);
/// The usual [`Config::sync_timeout`]: proxies and plugins wait for the agent meanwhile.
pub const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

/// The usual [`Config::vanished_check`]: the runtime normally tells.
pub const VANISHED_CHECK: Duration = Duration::from_secs(20);

/// How the agent is set up.
pub struct Config {
    /// The node's name, as in `spec.nodeName`.
    pub node: String,
    /// Where sockets and records are.
    pub run_dir: PathBuf,
    /// How long a pod that leaves may keep open connections.
    pub drain_timeout: Duration,
    /// Whether to keep the rules in the namespace that the agent runs in by which the kubelet's probes
    /// reach captured pods.
    pub node_rules: bool,
    /// How long a new pod waits for a proxy before its start is refused; the runtime tries again.
    pub add_timeout: Duration,
    /// How long a start waits for the API before it goes by what it remembers of captured pods.
    pub sync_timeout: Duration,
    /// How often to look whether a pod's network namespace has vanished without the runtime telling.
    pub vanished_check: Duration,
    /// Objects come from here.
    pub source: Arc<dyn Source>,
    /// Annotations go there.
    pub writer: Arc<dyn Writer>,
    /// Where libcni keeps its cache, in which pods that run already are found.
    pub cni_cache: Option<PathBuf>,
    /// How the plugin stands in the CNI chain, if that is this agent's business.
    pub chain: Option<watch::Receiver<install::State>>,
    /// Whether the node is to be left.
    pub uninstall: Uninstall,
    /// Whether everything that a pod needs to join is there.
    pub ready: watch::Sender<bool>,
    /// Where `/ready` and `/metrics` are served.
    pub http: Option<SocketAddr>,
}

/// The order to take every pod out of the mesh, and that it was followed. It may be taken back.
#[derive(Clone, Debug)]
pub struct Uninstall {
    /// Whether it is ordered.
    pub ordered: watch::Receiver<bool>,
    /// Whether nothing of weft's is in any network namespace any more.
    pub done: watch::Sender<bool>,
}

impl Uninstall {
    /// Never.
    pub fn never() -> Self {
        Self {
            ordered: watch::Sender::new(false).subscribe(),
            done: watch::Sender::new(false),
        }
    }
}

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The run directory or the socket in it can't be used.
    #[error("can't {what} {path}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Another agent has the run directory.
    #[error("{0} has a listener already: stop the other agent of this node first")]
    InUse(PathBuf),
    /// The hand-over socket can't be used.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// Nobody could ask it how it is.
    #[error("can't listen on {address} for /ready and /metrics: {source}; give another --http")]
    Http {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// There is no key of the marks.
    #[error(transparent)]
    Marks(#[from] MarksError),
}

/// What all parts of the agent share.
pub(crate) struct Context {
    node: String,
    store: Store,
    marks: Marks,
    drain_timeout: Duration,
    add_timeout: Duration,
    vanished_check: Duration,
    source: Arc<dyn Source>,
    writer: Arc<dyn Writer>,
    objects: Mutex<Objects>,
    /// Rises when something changed that matters to a pod of this node.
    objects_version: watch::Sender<u64>,
    synced: AtomicBool,
    proxies: Arc<Proxies>,
    probed: Arc<node::Probed>,
    workers: Mutex<BTreeMap<String, Handle>>,
    chain: Option<watch::Receiver<install::State>>,
    uninstall: Uninstall,
    /// What the controller had said of a sandbox before its report was taken back.
    acknowledged_before: Mutex<HashMap<String, Option<Acknowledged>>>,
}

/// Runs the agent until `stop` is ready.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> Result<(), AgentError> {
    // The socket comes before the records are read: a plugin that writes its record later than
    // that can reach it, and is served as soon as the agent is ready.
    let socket = serve::bind(&config.run_dir)?;
    let context = Arc::new(Context {
        node: config.node,
        store: Store::new(&config.run_dir),
        marks: Marks::open(&config.run_dir)?,
        drain_timeout: config.drain_timeout,
        add_timeout: config.add_timeout,
        vanished_check: config.vanished_check,
        source: config.source,
        writer: config.writer,
        objects: Mutex::default(),
        objects_version: watch::Sender::new(0),
        synced: AtomicBool::new(false),
        proxies: Arc::default(),
        probed: Arc::default(),
        workers: Mutex::default(),
        acknowledged_before: Mutex::default(),
        chain: config.chain,
        uninstall: config.uninstall,
    });
    let http = match config.http {
        Some(address) => {
            let bound = TcpListener::bind(address).await;
            Some(bound.map_err(|source| AgentError::Http { address, source })?)
        }
        None => None,
    };
    let cache: Option<Arc<Path>> = config.cni_cache.map(Into::into);
    let work = async {
        let watching = tokio::spawn(follow::run(context.clone()));
        let listener = Listener::bind(&protocol::handover_path(&config.run_dir))?;
        let handover = tokio::spawn(context.proxies.clone().serve(listener));
        let health = tokio::spawn(health::follow(context.clone(), config.ready));
        let http = http.map(|http| tokio::spawn(health::serve(context.clone(), http)));
        context.restore(config.sync_timeout, cache.as_ref()).await;
        context.proxies.let_in();
        if let Some(cache) = cache {
            let chain = context.chain.clone();
            tokio::spawn(adopt::run(context.clone(), cache, chain));
        }
        tokio::spawn(leave::run(context.clone(), config.node_rules));
        if config.node_rules {
            // Not before the captured pods are known: their probes must not fail meanwhile.
            tokio::spawn(context.probed.clone().run());
        }
        info!(node = context.node, "ready");
        serve::run(context.clone(), socket).await;
        for task in [watching, handover, health].into_iter().chain(http) {
            task.abort();
        }
        Ok(())
    };
    tokio::select! {
        result = work => result,
        () = stop => {
            if *context.uninstall.ordered.borrow() {
                info!("stopping for good");
            } else {
                info!("stopping; captured pods stay captured");
            }
            Ok(())
        }
    }
}

impl Context {
    /// Takes up every sandbox that an earlier agent, or the plugin alone, has left.
    async fn restore(self: &Arc<Self>, sync_timeout: Duration, cache: Option<&Arc<Path>>) {
        if !self.is_synced_within(sync_timeout).await {
            warn!(
                "the source of objects has not been read in time; captured pods stay as they are until it is"
            );
        }
        if let Some(cache) = cache {
            // Before proxies are told of all pods: one of these may be captured already.
            adopt::scan(self, cache).await;
        }
        let mut sandboxes = Vec::new();
        for record in self.store.list() {
            let sandbox = match record {
                Ok(sandbox) => sandbox,
                Err(error) => {
                    warn!(%error, "a sandbox is passed over");
                    continue;
                }
            };
            match NetNs::open(&sandbox.netns) {
                Ok(netns) => sandboxes.push((sandbox, netns)),
                Err(NetNsError::Gone(_)) => {
                    info!(
                        pod = sandbox.pod_name(),
                        "its sandbox is gone; removing the record"
                    );
                    if let Err(error) = self.store.remove(&sandbox.container_id) {
                        warn!(%error, "the sandbox's record stays");
                    }
                    report::clean_up(self, &sandbox).await;
                }
                Err(error) => warn!(pod = sandbox.pod_name(), %error, "a sandbox is passed over"),
            }
        }
        let has_rules = |netns: &NetNs| rules::inspect(netns).is_ok_and(|found| found.is_some());
        let captured: Vec<_> = sandboxes
            .iter()
            .filter(|(_, netns)| has_rules(netns))
            .map(|(sandbox, _)| sandbox.container_id.clone())
            .collect();
        let returns = self.proxies.returns();
        returns.wait(&captured, RETURN_PATIENCE).await;
        let mut returned = 0;
        let mut handles = Vec::new();
        for (sandbox, netns) in sandboxes {
            let listeners = returns.take(&sandbox.container_id, &sandbox.pod_name(), &netns);
            returned += usize::from(listeners.is_some());
            handles.push(self.take_up(sandbox, netns, listeners));
        }
        returns.close();
        if !captured.is_empty() {
            info!(
                captured = captured.len(),
                returned, "pods are taken up; the rest get new listening sockets"
            );
        }
        let restored = async {
            for mut handle in handles {
                let has_sockets = |view: &worker::View| {
                    view.tried || !matches!(view.state.phase, Phase::Listening)
                };
                let _ = handle.view.wait_for(has_sockets).await;
            }
        };
        if timeout(RESTORE_PATIENCE, restored).await.is_err() {
            warn!("some pods' sockets could not be made in time");
        }
    }

    /// Waits until the source has been read; false: it was not in time.
    async fn is_synced_within(&self, limit: Duration) -> bool {
        let mut version = self.objects_version.subscribe();
        let synced = version.wait_for(|_| self.synced.load(Ordering::Acquire));
        timeout(limit, synced).await.is_ok()
    }

    /// Starts a sandbox's worker, with the sockets that it has already, if it has.
    fn take_up(
        self: &Arc<Self>,
        sandbox: Sandbox,
        netns: NetNs,
        listeners: Option<Listeners>,
    ) -> Handle {
        // Held until it is inserted: a worker that ends at once takes itself out.
        let mut workers = self.workers.lock();
        let id = sandbox.container_id.clone();
        let handle = worker::spawn(self.clone(), sandbox, netns, listeners);
        workers.insert(id, handle.clone());
        handle
    }

    /// The sandbox's worker if it may go on as it is.
    fn worker_of(&self, sandbox: &Sandbox) -> Option<Handle> {
        let workers = self.workers.lock();
        let handle = workers.get(&sandbox.container_id)?;
        let usable = handle.pod.sandbox == *sandbox && !handle.view.borrow().state.deleted;
        usable.then(|| handle.clone())
    }

    /// A worker has ended.
    fn forget(self: &Arc<Self>, pod: &Arc<PodContext>) {
        self.workers.lock().remove(&pod.sandbox.container_id);
        let (context, pod) = (self.clone(), pod.clone());
        tokio::spawn(async move { report::clean_up(&context, &pod.sandbox).await });
    }

    /// How a pod should be; `None` while that can't be told.
    fn desired(&self, sandbox: &Sandbox) -> Option<Desired> {
        let known = self.known(sandbox);
        if !*self.uninstall.ordered.borrow() {
            return known;
        }
        // It is served, and probed, to the end as it was.
        let known = known.or_else(|| self.store.recall(&sandbox.container_id).ok().flatten());
        Some(Desired {
            captured: false,
            strict: false,
            ..known.unwrap_or_default()
        })
    }

    /// How the API says that a pod should be; `None` while it does not know.
    fn known(&self, sandbox: &Sandbox) -> Option<Desired> {
        if !self.synced.load(Ordering::Acquire) {
            return None;
        }
        let objects = self.objects.lock();
        let namespace = objects.namespace(&sandbox.namespace);
        let pod = objects.pod(&sandbox.namespace, &sandbox.pod, &sandbox.uid);
        desired(&sandbox.namespace, namespace, pod)
    }

    fn facts<T>(&self, sandbox: &Sandbox, read: impl FnOnce(&PodFacts) -> T) -> Option<T> {
        let objects = self.objects.lock();
        objects
            .pod(&sandbox.namespace, &sandbox.pod, &sandbox.uid)
            .map(read)
    }

    /// Whether the pod's annotation names this sandbox.
    fn reported(&self, sandbox: &Sandbox) -> bool {
        self.facts(sandbox, |facts| {
            facts.captured.as_ref() == Some(&sandbox.container_id)
        })
        .unwrap_or(false)
    }

    /// Whether the API knows the pod, and its annotation does not name this sandbox.
    fn is_unreported(&self, sandbox: &Sandbox) -> bool {
        self.facts(sandbox, |facts| {
            facts.captured.as_ref() != Some(&sandbox.container_id)
        })
        .unwrap_or(false)
    }

    /// The sandbox that the pod's annotation names, if it is another one and not on this node.
    fn stale_report(&self, sandbox: &Sandbox) -> Option<String> {
        let named = self.facts(sandbox, |facts| facts.captured.clone())??;
        let stale = named != sandbox.container_id && !self.workers.lock().contains_key(&named);
        stale.then_some(named)
    }

    /// Reads a pod and its namespace if the watch has not told of them yet. An error means that it
    /// can't be told whether the namespace is in the mesh.
    async fn look_up(&self, sandbox: &Sandbox) -> Result<(), SourceError> {
        let unknown = {
            let objects = self.objects.lock();
            let namespace = objects
                .namespace(&sandbox.namespace)
                .is_none()
                .then(|| namespace_key(&sandbox.namespace));
            let pod = objects
                .pod(&sandbox.namespace, &sandbox.pod, &sandbox.uid)
                .is_none()
                .then(|| pod_key(&sandbox.namespace, &sandbox.pod));
            [namespace, pod]
        };
        for key in unknown.into_iter().flatten() {
            match self.source.get(&key).await {
                Ok(Some(object)) => {
                    if self.objects.lock().apply(&self.node, &object) {
                        self.objects_version.send_modify(|version| *version += 1);
                    }
                }
                Ok(None) => {}
                // Without its namespace a pod would pass for one outside the mesh.
                Err(error) if key.kind == "Namespace" => return Err(error),
                Err(error) => warn!(%key, %error, "can't be read; waiting for the watch"),
            }
        }
        Ok(())
    }
}

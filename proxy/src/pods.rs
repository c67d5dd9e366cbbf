//! The pods of this node that are in the mesh. In flow their descriptors and what the agent says
//! of them; out flow accepted connections, each as a task of its pod.

use std::{net::IpAddr, os::fd::OwnedFd, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use foldhash::{HashMap, HashMapExt};
use parking_lot::Mutex;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_api::{
    config::MtlsMode,
    handover::{self, ListenerKind},
};
use weft_certs::{BundleSource, SpiffeId, SvidSource, tls};

use crate::{
    connector::PodConnector,
    hbone::{self, Pool},
    http::{HttpLimits, PodHttp},
    identity::{Identities, Identity},
    inbound,
    model::{Client, Workload},
    netns::Netns,
    outbound,
    report::{Record, Report},
    settings::Settings,
    socket,
    state::State,
};

/// After an accept that failed for want of descriptors or memory: what is open must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What all pods of the node share.
pub struct Node {
    /// The configuration in force.
    pub state: Arc<State>,
    /// Limits and times.
    pub settings: Settings,
    /// L7's limits.
    pub http: HttpLimits,
    /// Where connections are reported.
    pub report: Report,
    /// Who is trusted.
    pub bundle: Arc<dyn BundleSource>,
    /// Certificates.
    pub identities: Identities,
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
    /// It was removed while it was being started.
    #[error("pod {0} was removed before it was served")]
    Removed(String),
}

/// A pod that this proxy serves.
pub struct Pod {
    node: Arc<Node>,
    info: ArcSwap<Info>,
    netns: Netns,
    spiffe: SpiffeId,
    /// The same as text, for records.
    spiffe_text: Arc<str>,
    identity: Arc<Identity>,
    acceptor: TlsAcceptor,
    connector: Arc<PodConnector>,
    http: Arc<PodHttp>,
    connections: Arc<Semaphore>,
    tunnels: Arc<Semaphore>,
    handshakes: Semaphore,
    /// Ends the accept loops of the listeners that are served now.
    listening: Mutex<CancellationToken>,
    accepting: watch::Sender<bool>,
    drain: CancellationToken,
    kill: CancellationToken,
    tasks: TaskTracker,
}

/// All of them, by sandbox.
pub struct Pods {
    node: Arc<Node>,
    pods: Mutex<HashMap<String, Arc<Pod>>>,
}

impl Pods {
    /// None yet.
    pub fn new(node: Arc<Node>) -> Self {
        Self {
            node,
            pods: Mutex::new(HashMap::new()),
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
            .filter(|pod| pod.spiffe == spiffe && !pod.drain.is_cancelled());
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
                // What it replaces drains, or has another identity and no right to go on.
                if let Some(old) = pods.insert(sandbox, Arc::clone(&pod))
                    && !old.drain.is_cancelled()
                {
                    old.stop();
                }
                pod
            }
        };
        self.count(pods.len());
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
            self.count(pods.len());
            removed
        };
        if let Some(pod) = removed {
            pod.stop();
        }
        self.node.identities.sweep();
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
        self.count(self.pods.lock().len());
        for pod in stale {
            tracing::info!(pod = %pod.name(), "the agent no longer has this pod");
            pod.stop();
        }
        self.node.identities.sweep();
    }

    fn count(&self, pods: usize) {
        self.node.report.telemetry().pods(pods);
    }

    /// Stops accepting, ends everything in order, and returns when all has ended or at the time's
    /// end, when the rest is reset.
    pub async fn shut_down(&self, limit: Duration) {
        let pods = self.all();
        for pod in &pods {
            pod.stop_accepting();
            pod.drain.cancel();
        }
        let drained = futures::future::join_all(pods.iter().map(|pod| pod.drained()));
        if tokio::time::timeout(limit, drained).await.is_err() {
            let open: usize = pods.iter().map(|pod| pod.tasks.len()).sum();
            tracing::warn!(open, "connections are reset at the end of the drain time");
        }
        for pod in &pods {
            pod.stop();
        }
    }
}

impl Pod {
    fn new(
        node: Arc<Node>,
        info: Info,
        netns: Netns,
        spiffe: SpiffeId,
    ) -> Result<Arc<Self>, tls::TlsError> {
        let settings = node.settings;
        let kill = CancellationToken::new();
        let identity = node.identities.hold(&spiffe);
        let svid: Arc<dyn SvidSource> = identity.svid();
        let server = tls::server_config(Arc::clone(&svid), Arc::clone(&node.bundle))?;
        let pool = Pool::new(
            netns.clone(),
            spiffe.clone(),
            svid,
            Arc::clone(&node.bundle),
            settings,
            node.report.clone(),
            kill.clone(),
        );
        let connector = Arc::new(PodConnector::new(
            netns.clone(),
            info.addresses.clone(),
            pool,
            settings,
        ));
        let http = PodHttp::new(
            Arc::clone(&node.state),
            node.report.telemetry(),
            Arc::clone(&connector) as Arc<dyn crate::io::Connector>,
            node.http,
        );
        Ok(Arc::new(Self {
            info: ArcSwap::from_pointee(info),
            netns,
            spiffe_text: spiffe.as_str().into(),
            spiffe,
            identity,
            acceptor: TlsAcceptor::from(server),
            connector,
            http,
            connections: Arc::new(Semaphore::new(settings.connections)),
            tunnels: Arc::new(Semaphore::new(settings.tunnels)),
            handshakes: Semaphore::new(settings.handshakes),
            listening: Mutex::new(CancellationToken::new()),
            accepting: watch::Sender::new(false),
            drain: CancellationToken::new(),
            kill,
            tasks: TaskTracker::new(),
            node,
        }))
    }

    /// Accepts on these listeners, and no longer on earlier ones: an agent that has restarted may
    /// send the same sockets or new ones.
    fn listen(self: &Arc<Self>, listeners: Vec<(ListenerKind, TcpListener)>) {
        let stop = CancellationToken::new();
        std::mem::replace(&mut *self.listening.lock(), stop.clone()).cancel();
        let pod = Arc::clone(self);
        tokio::spawn(async move {
            // Without a certificate, what is meant for other pods would be refused: it may as well
            // wait. But not for ever, since what leaves the mesh needs none.
            let certificate = pod.identity.ready();
            tokio::select! {
                _ = tokio::time::timeout(pod.node.settings.certificate, certificate) => {}
                () = stop.cancelled() => return,
                () = pod.kill.cancelled() => return,
            }
            for (kind, listener) in listeners {
                tokio::spawn(Arc::clone(&pod).accept(kind, listener, stop.clone()));
            }
            pod.accepting.send_replace(true);
        });
    }

    async fn accept(
        self: Arc<Self>,
        kind: ListenerKind,
        listener: TcpListener,
        stop: CancellationToken,
    ) {
        let limit = match kind {
            ListenerKind::InboundHbone => &self.tunnels,
            _ => &self.connections,
        };
        loop {
            // Taken before accepting: beyond the limit, clients wait in the pod's own queue.
            let next = async {
                let permit = Arc::clone(limit).acquire_owned().await;
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                next = next => next,
                () = stop.cancelled() => return,
                () = self.kill.cancelled() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if !is_of_the_connection(&error) {
                        tracing::warn!(pod = %self.name(), %error, "can't accept");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                    continue;
                }
            };
            if socket::tune(&stream).is_err() {
                continue; // The client has gone.
            }
            let pod = Arc::clone(&self);
            self.spawn(async move {
                let _permit = permit;
                match kind {
                    ListenerKind::InboundHbone => hbone::serve(pod, stream, peer).await,
                    ListenerKind::InboundPlaintext => inbound::serve(pod, stream, peer).await,
                    _ => outbound::serve(pod, stream, peer).await,
                }
            });
        }
    }

    /// Runs a task of this pod: it is waited for by a drain, and dropped when the pod goes.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let kill = self.kill.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = kill.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Waits until the pod is served: it is accepted for, and its certificate is there.
    pub async fn ready(&self) -> Result<(), PodError> {
        let mut accepting = self.accepting.subscribe();
        tokio::select! {
            _ = accepting.wait_for(|accepting| *accepting) => {}
            () = self.kill.cancelled() => return Err(PodError::Removed(self.name())),
        }
        let status = self.identity.status();
        // One that can't be renewed just now still serves.
        if status.not_after.is_some() {
            return Ok(());
        }
        Err(PodError::Certificate {
            pod: self.name(),
            identity: self.spiffe.as_str().to_owned(),
            reason: status.error.unwrap_or_default(),
        })
    }

    /// The agent has news of the pod.
    pub fn update(&self, info: Info) {
        self.connector.set_addresses(info.addresses.clone());
        self.info.store(Arc::new(info));
    }

    /// Ends everything in order: GOAWAY, `connection: close`; byte streams go on.
    pub fn start_draining(&self) {
        self.drain.cancel();
    }

    /// Ready once nothing of the pod is open any more.
    pub async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// No longer accepts; the sockets stay open at the agent.
    pub fn stop_accepting(&self) {
        self.listening.lock().cancel();
    }

    /// Closes everything at once; byte streams are reset.
    pub fn stop(&self) {
        self.stop_accepting();
        self.drain.cancel();
        self.kill.cancel();
    }

    /// Whether its listeners are served.
    pub fn is_accepting(&self) -> bool {
        *self.accepting.borrow()
    }

    /// Whether it is being drained.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Ready when the pod is to be drained.
    pub async fn draining(&self) {
        self.drain.cancelled().await;
    }

    /// Cancelled when the pod is to be drained.
    pub fn drain_token(&self) -> CancellationToken {
        self.drain.clone()
    }

    /// `<namespace>/<name>`.
    pub fn name(&self) -> String {
        let info = self.info.load();
        format!("{}/{}", info.namespace, info.name)
    }

    /// What the agent says of it.
    pub fn info(&self) -> Arc<Info> {
        self.info.load_full()
    }

    /// Its SPIFFE id.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe
    }

    /// Its certificate.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Connections and CONNECTs that are open.
    pub fn open(&self) -> usize {
        self.tasks.len()
    }

    /// Whether `ip` is one of its addresses.
    pub fn has_address(&self, ip: IpAddr) -> bool {
        self.info.load().addresses.contains(&ip)
    }

    /// Whether plaintext is refused: as the configuration says, once it knows this very pod.
    pub fn is_strict(&self) -> bool {
        match self.workload() {
            Some(workload) => workload.mtls == MtlsMode::Strict,
            None => self.info.load().strict,
        }
    }

    /// This pod in the configuration, if it is there already.
    pub fn workload(&self) -> Option<Arc<Workload>> {
        let info = self.info.load();
        let workload = info
            .addresses
            .iter()
            .find_map(|ip| self.node.state.workload_by_address(*ip))?;
        // An address is used again: the last pod's workload may still be there.
        let same = *workload.namespace == *info.namespace
            && *workload.name == *info.name
            && (*workload.sandbox == *info.sandbox
                || (!info.uid.is_empty() && workload.uid.rsplit('/').next() == Some(&info.uid)));
        same.then_some(workload)
    }

    /// The pod as the client of a captured connection.
    pub fn client(&self, address: std::net::SocketAddr) -> Client {
        let info = self.info.load();
        let owner = match self.workload() {
            Some(workload) => Arc::clone(&workload.owner),
            None => Arc::clone(&info.name),
        };
        Client {
            name: Arc::clone(&info.name),
            namespace: Arc::clone(&info.namespace),
            identity: Arc::clone(&self.spiffe_text),
            owner,
            address,
        }
    }

    /// Fills in who is at the two ends of an inbound connection.
    pub fn describe_inbound(&self, record: &mut Record) {
        record.workload = self.workload();
        record.source_workload = self.node.state.workload_by_address(record.source.ip());
    }

    /// Limits and times.
    pub fn settings(&self) -> &Settings {
        &self.node.settings
    }

    /// The configuration in force.
    pub fn state(&self) -> &Arc<State> {
        &self.node.state
    }

    /// Where connections are reported.
    pub fn report(&self) -> &Report {
        &self.node.report
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its connections to endpoints.
    pub fn connector(&self) -> &PodConnector {
        &self.connector
    }

    /// Its L7.
    pub fn http(&self) -> &Arc<PodHttp> {
        &self.http
    }

    /// TLS towards its clients.
    pub fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }

    /// Bounds handshakes in flight.
    pub fn handshakes(&self) -> &Semaphore {
        &self.handshakes
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

/// Errors of `accept` that are about one client only.
fn is_of_the_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, NetworkUnreachable,
    };
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | NetworkUnreachable
    )
}

//! One pod of this node that is in the mesh. In flow its listening sockets, what the agent and the
//! configuration say of it, and the wish to drain or stop; out flow accepted connections, each a
//! task of the pod.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_api::{config::MtlsMode, handover::ListenerKind};
use weft_certs::{SpiffeId, SvidSource, tls};

use super::{Info, Node, PodError, mode::Mode};
use crate::{
    connector::PodConnector,
    drain::Drain,
    hbone::{self, Pool},
    http::PodHttp,
    identity::Identity,
    inbound,
    io::Connector,
    limits::PodLimits,
    model::{Client, Workload},
    netns::Netns,
    outbound,
    report::{Record, Report},
    settings::Settings,
    share::{self, Share},
    socket,
    state::State,
};

/// After an accept that failed for want of descriptors or memory: what is open must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A pod that this proxy serves.
pub struct Pod {
    node: Arc<Node>,
    info: ArcSwap<Info>,
    netns: Netns,
    spiffe: SpiffeId,
    /// The same as text, for records.
    spiffe_text: Arc<str>,
    report: Report,
    mode: Mode,
    identity: Arc<Identity>,
    acceptor: TlsAcceptor,
    connector: Arc<PodConnector>,
    http: Arc<PodHttp>,
    limits: Arc<PodLimits>,
    listening: Mutex<Listening>,
    accepting: watch::Sender<bool>,
    pub(super) drain: Drain,
    pub(super) kill: CancellationToken,
    /// Counts connections and CONNECTs.
    pub(super) tasks: TaskTracker,
    /// Counts accept loops.
    pub(super) acceptors: TaskTracker,
    /// Runs them, and what they need.
    pub(super) share: Share,
    pub(super) joined_again: CancellationToken,
    /// The pod before it left and joined again, while something of that is open.
    pub(super) earlier: Mutex<Vec<Arc<Pod>>>,
}

/// The listeners that are served now.
#[derive(Default)]
struct Listening {
    /// Ends their accept loops.
    stop: CancellationToken,
    sockets: Vec<(ListenerKind, Arc<TcpListener>)>,
}

/// A pod's descriptors, shared with what uses them.
pub struct HeldPod {
    /// CNI container id.
    pub sandbox: String,
    /// Its network namespace.
    pub netns: Netns,
    /// Its listening sockets.
    pub listeners: Vec<(ListenerKind, Arc<TcpListener>)>,
}

impl Pod {
    pub(super) fn new(
        node: Arc<Node>,
        info: Info,
        netns: Netns,
        spiffe: SpiffeId,
    ) -> Result<Arc<Self>, tls::TlsError> {
        let settings = node.settings;
        netns.set_mark(info.mark);
        let report = Report::new(
            Arc::clone(&node.telemetry),
            Arc::clone(&info.namespace),
            Arc::clone(&info.name),
        );
        let kill = CancellationToken::new();
        let identity = node.identities.hold(&spiffe);
        let svid: Arc<dyn SvidSource> = identity.svid();
        let server = tls::server_config(Arc::clone(&svid), Arc::clone(&node.bundle))?;
        let limits = PodLimits::new(
            Arc::clone(&info.namespace),
            Arc::clone(&info.name),
            settings,
        );
        let share = Share::new(node.busy_threads.clone());
        node.telemetry.pod(&limits, share.busy());
        let pool = Pool::new(
            netns.clone(),
            spiffe.clone(),
            svid,
            Arc::clone(&node.bundle),
            Arc::clone(&limits),
            report.clone(),
        );
        let connector = Arc::new(PodConnector::new(
            netns.clone(),
            info.addresses.clone(),
            pool,
            Arc::clone(&limits),
        ));
        let http = PodHttp::new(
            Arc::clone(&node.state),
            Arc::clone(&node.telemetry),
            Arc::clone(&connector) as Arc<dyn Connector>,
            node.http,
            Arc::clone(&limits),
        );
        let mode = Mode::new(info.strict);
        let pod = Arc::new(Self {
            mode,
            report,
            info: ArcSwap::from_pointee(info),
            netns,
            spiffe_text: spiffe.as_str().into(),
            spiffe,
            identity,
            acceptor: TlsAcceptor::from(server),
            connector,
            http,
            limits,
            listening: Mutex::default(),
            accepting: watch::Sender::new(false),
            drain: Drain::default(),
            kill,
            tasks: TaskTracker::new(),
            acceptors: TaskTracker::new(),
            share,
            joined_again: CancellationToken::new(),
            earlier: Mutex::default(),
            node,
        });
        pod.follow_mode();
        Ok(pod)
    }

    /// Accepts on these listeners, and no longer on earlier ones: an agent that has restarted may
    /// send the same sockets or new ones.
    pub(super) fn listen(self: &Arc<Self>, listeners: Vec<(ListenerKind, TcpListener)>) {
        let stop = CancellationToken::new();
        let listeners: Vec<_> = listeners
            .into_iter()
            .map(|(kind, listener)| (kind, Arc::new(listener)))
            .collect();
        let listening = Listening {
            stop: stop.clone(),
            sockets: listeners.clone(),
        };
        std::mem::replace(&mut *self.listening.lock(), listening)
            .stop
            .cancel();
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
                let accepting = Arc::clone(&pod).accept(kind, listener, stop.clone());
                pod.share.spawn(pod.acceptors.track_future(accepting));
            }
            pod.accepting.send_replace(true);
        });
    }

    async fn accept(
        self: Arc<Self>,
        kind: ListenerKind,
        listener: Arc<TcpListener>,
        stop: CancellationToken,
    ) {
        let settings = self.settings();
        let liveness = match kind {
            ListenerKind::InboundHbone => settings.tunnel_liveness(),
            _ => settings.liveness(),
        };
        loop {
            // Waited for before accepting: beyond the limit, clients wait in the pod's own queue.
            let next = async {
                self.limits.room(kind).await;
                let accepted = listener.accept().await;
                (self.limits.accepted(kind).await, accepted)
            };
            let (permit, accepted) = tokio::select! {
                next = next => next,
                () = stop.cancelled() => return,
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
            if socket::tune(&stream, liveness).is_err() {
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
            // Who was accepted goes before the next one: a burst is served as it is accepted.
            share::yield_now().await;
        }
    }

    /// Runs a task of this pod: it is waited for by a drain, and dropped when the pod goes.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let task = self.drain.wake(task);
        self.share.spawn(self.tasks.track_future(task));
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

    /// Waits until there is a certificate, or no pod any more.
    pub async fn certified(&self) {
        tokio::select! {
            () = self.identity.ready() => {}
            () = self.kill.cancelled() => {}
        }
    }

    /// The agent has news of the pod.
    pub fn update(&self, info: Info) {
        self.connector.set_addresses(info.addresses.clone());
        self.netns.set_mark(info.mark);
        self.info.store(Arc::new(info));
        self.follow_mode();
    }

    /// What an agent that has restarted may want back; `None` of a pod that is not accepted for.
    pub fn held(&self) -> Option<HeldPod> {
        let listening = self.listening.lock();
        (!listening.sockets.is_empty()).then(|| HeldPod {
            sandbox: self.info.load().sandbox.clone(),
            netns: self.netns.clone(),
            listeners: listening.sockets.clone(),
        })
    }

    /// No longer accepts; the sockets stay open at the agent.
    pub fn stop_accepting(&self) {
        let mut listening = self.listening.lock();
        listening.stop.cancel();
        listening.sockets.clear();
    }

    /// Whether its listeners are served.
    pub fn is_accepting(&self) -> bool {
        *self.accepting.borrow()
    }

    /// Whether it is being drained.
    pub fn is_draining(&self) -> bool {
        self.drain.is_draining()
    }

    /// How its connections come to their end.
    pub fn drain(&self) -> &Drain {
        &self.drain
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

    /// Looks which mode the pod has now, and ends plaintext that is open if it has to.
    pub(super) fn follow_mode(&self) {
        self.mode
            .set(self.is_strict(), self.node.settings.plaintext_drain);
    }

    /// Cancelled when a plaintext connection to the pod has to end. To be asked for before
    /// [`Pod::is_strict`].
    pub fn end_of_plaintext(&self) -> CancellationToken {
        self.mode.end_of_plaintext()
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

    /// The pod as a destination, for as long as the configuration does not know it.
    pub fn as_workload(&self) -> Workload {
        let info = self.info.load();
        Workload {
            uid: format!("{}/{}/{}", info.namespace, info.name, info.uid).into(),
            name: Arc::clone(&info.name),
            namespace: Arc::clone(&info.namespace),
            service_account: info.service_account.as_str().into(),
            identity: Arc::clone(&self.spiffe_text),
            owner: Arc::clone(&info.name),
            addresses: info.addresses.clone(),
            captured: true,
            sandbox: info.sandbox.as_str().into(),
            mtls: if info.strict {
                MtlsMode::Strict
            } else {
                MtlsMode::Permissive
            },
            ..Workload::default()
        }
    }

    /// The pod as the client of a captured connection.
    pub fn client(&self, address: SocketAddr) -> Client {
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
        self.limits.settings()
    }

    /// What it may use, and uses.
    pub fn limits(&self) -> &Arc<PodLimits> {
        &self.limits
    }

    /// The configuration in force.
    pub fn state(&self) -> &Arc<State> {
        &self.node.state
    }

    /// Where connections are reported.
    pub fn report(&self) -> &Report {
        &self.report
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
    pub fn handshakes(&self) -> &Arc<hbone::Door> {
        self.limits.handshakes()
    }
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

//! The agent's side of pods. In flow pods with their descriptors and what becomes of them; out
//! flow acknowledgements, each once the pod is really served, drained or gone.
//!
//! While the agent is away all goes on as it is; when it is back it is given the descriptors that
//! are held here, so that it goes on with the same sockets. It sends everything again, and what it
//! no longer has is dropped at the end of that.
//!
//! The agent is not dialled before the configuration is whole: a pod that was served without it
//! would pass its traffic on in plaintext, for every destination would look like one outside the
//! mesh. New pods are not let start meanwhile, and connections of those that run wait.

use std::{collections::HashSet, os::fd::AsFd, path::PathBuf, sync::Arc, time::Duration};

use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use weft_api::handover::{
    Ack, AddPod, DrainPod, Drained, FromAgent, FromProxy, Held, Hello, ListenerKind, UpdatePod,
    from_agent, from_proxy,
};
use weft_handover::{Connection, HandoverError};

use crate::{
    admin::Condition,
    pods::{HeldPod, Info, Pod, PodError, Pods},
    state::State,
};

/// The protocol that is spoken here.
const PROTOCOL: u32 = 1;
/// First wait until the agent is dialled again, and the longest: it is on this node, and pods
/// wait for it.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
/// Much shorter than an agent that has restarted waits for its sockets.
const LONGEST_BACKOFF: Duration = Duration::from_millis(250);
/// How long certificates keep the proxy from being ready. While it is not, a predecessor serves; but one
/// identity that nobody signs must not keep a node from being upgraded for ever.
const CERTIFICATES: Duration = Duration::from_secs(60);

/// The client of the agent. [`Handover::run`] is its life; it belongs on the data path's
/// runtime, where the pods' sockets are to be served.
pub struct Handover {
    /// The agent's socket.
    pub path: PathBuf,
    /// Where pods go.
    pub pods: Arc<Pods>,
    /// The configuration, for the trust domain.
    pub state: Arc<State>,
    /// Whether there is a configuration, from a snapshot or the controller.
    pub configured: watch::Receiver<bool>,
    /// Tells this process from its predecessor.
    pub incarnation: String,
    /// Holds once the agent has sent all of its pods, and each has its certificate: a predecessor
    /// ends then.
    pub received: Condition,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Socket(#[from] HandoverError),
    #[error("the agent closed the connection")]
    Closed,
    #[error("the trust domain has changed, so every pod has another identity")]
    TrustDomain,
}

impl Handover {
    /// Dials the agent and serves its pods, again and again, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.sessions() => {}
        }
    }

    async fn sessions(&self) {
        let mut configured = self.configured.clone();
        if configured.wait_for(|configured| *configured).await.is_err() {
            // Whoever was to bring it has ended; only a restart can help.
            return std::future::pending().await;
        }
        let mut backoff = FIRST_BACKOFF;
        let mut told = false;
        loop {
            let ended = match Connection::connect(&self.path).await {
                Ok(connection) => {
                    tracing::info!(socket = %self.path.display(), "connected to the agent");
                    (backoff, told) = (FIRST_BACKOFF, false);
                    let Err(ended) = self.session(Arc::new(connection)).await;
                    ended
                }
                Err(error) => error.into(),
            };
            if !told {
                tracing::warn!(%ended, "no agent: pods that are served stay served");
                told = true;
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    async fn session(
        &self,
        connection: Arc<Connection>,
    ) -> Result<std::convert::Infallible, Ended> {
        let held: Vec<_> = self
            .pods
            .all()
            .iter()
            .filter_map(|pod| pod.held())
            .collect();
        let hello = Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation: self.incarnation.clone(),
            held: u32::try_from(held.len()).unwrap_or(u32::MAX),
        };
        send(&connection, from_proxy::Message::Hello(hello)).await?;
        for pod in held {
            give_back(&connection, pod).await?;
        }
        let trust_domain = Arc::clone(&self.state.mesh().trust_domain);
        let mut changes = self.state.subscribe();
        let mut sent = HashSet::new();
        let mut waiting: Option<BoxFuture<'static, Option<String>>> = None;
        loop {
            let certified = async {
                match &mut waiting {
                    Some(waiting) => waiting.await,
                    None => std::future::pending().await,
                }
            };
            let received = tokio::select! {
                received = connection.recv::<FromAgent>() => received?,
                missing = certified => {
                    waiting = None;
                    self.certified(missing);
                    continue;
                }
                Ok(()) = changes.changed() => {
                    if self.state.mesh().trust_domain != trust_domain {
                        return Err(Ended::TrustDomain);
                    }
                    continue;
                }
            };
            let (message, descriptors) = received.ok_or(Ended::Closed)?;
            let seq = message.seq;
            let outcome = match message.message {
                Some(from_agent::Message::Add(add)) => {
                    match self.add(add, descriptors, &mut sent) {
                        Ok(pod) => {
                            // The next message must not wait for this pod's certificate.
                            let connection = Arc::clone(&connection);
                            tokio::spawn(async move {
                                let ready = pod.ready().await;
                                acknowledge(&connection, seq, ready).await
                            });
                            continue;
                        }
                        Err(error) => Err(error),
                    }
                }
                Some(from_agent::Message::Update(update)) => self.update(update),
                Some(from_agent::Message::Drain(drain)) => {
                    self.drain(&connection, &drain);
                    Ok(())
                }
                Some(from_agent::Message::Remove(remove)) => {
                    sent.remove(&remove.sandbox);
                    self.pods.remove(&remove.sandbox);
                    Ok(())
                }
                Some(from_agent::Message::SnapshotSent(_)) => {
                    self.pods.retain(|sandbox| sent.contains(sandbox));
                    let mut certified = Box::pin(certificates(self.pods.all()));
                    // As a rule they are there, from the snapshot or the acknowledgements' time.
                    match (&mut certified).now_or_never() {
                        Some(missing) => self.certified(missing),
                        None => waiting = Some(certified),
                    }
                    Ok(())
                }
                None => Err(PodError::Invalid {
                    pod: "?".to_owned(),
                    reason: "the message is unknown here: is the agent newer than this proxy?"
                        .to_owned(),
                }),
            };
            acknowledge(&connection, seq, outcome).await;
        }
    }

    /// All pods were sent and have their certificates, but for what is missing.
    fn certified(&self, missing: Option<String>) {
        self.received.ready();
        if let Some(missing) = missing {
            tracing::warn!(missing, "serving without certificates of some pods");
            self.received.note(missing);
        }
    }

    fn add(
        &self,
        add: AddPod,
        descriptors: Vec<std::os::fd::OwnedFd>,
        sent: &mut HashSet<String>,
    ) -> Result<Arc<Pod>, PodError> {
        let kinds: Vec<ListenerKind> = add.listeners().collect();
        let info = Info::parse(add.pod.unwrap_or_default())?;
        // The agent has it, so what is served of it goes on, whatever comes of this message.
        sent.insert(info.sandbox.clone());
        let mut descriptors = descriptors.into_iter();
        let Some(netns) = descriptors
            .next()
            .filter(|_| descriptors.len() == kinds.len())
        else {
            return Err(PodError::Invalid {
                pod: format!("{}/{}", info.namespace, info.name),
                reason: format!(
                    "a network namespace and {} listeners should come with it",
                    kinds.len()
                ),
            });
        };
        let listeners = kinds.into_iter().zip(descriptors).collect();
        self.pods.add(info, netns, listeners)
    }

    fn update(&self, update: UpdatePod) -> Result<(), PodError> {
        let info = Info::parse(update.pod.unwrap_or_default())?;
        match self.pods.get(&info.sandbox) {
            Some(pod) => {
                pod.update(info);
                Ok(())
            }
            None => Err(PodError::Invalid {
                pod: format!("{}/{}", info.namespace, info.name),
                reason: "it was never added".to_owned(),
            }),
        }
    }

    fn drain(&self, connection: &Arc<Connection>, drain: &DrainPod) {
        let pod = self.pods.get(&drain.sandbox);
        let sandbox = drain.sandbox.clone();
        let limit = Duration::from_millis(drain.timeout_ms);
        let connection = Arc::clone(connection);
        let pods = Arc::clone(&self.pods);
        tokio::spawn(async move {
            if let Some(pod) = pod {
                pods.drain(&pod);
                tokio::select! {
                    () = pod.leave(limit) => {}
                    // The agent has thought better of it.
                    () = pod.joined_again() => return,
                }
            }
            let drained = from_proxy::Message::Drained(Drained { sandbox });
            // Fails only if the agent has gone; it will ask again.
            let _ = send(&connection, drained).await;
        });
    }
}

/// Waits until each pod has its certificate, or is gone; not for ever: then tells who has none.
async fn certificates(pods: Vec<Arc<Pod>>) -> Option<String> {
    let all = join_all(pods.iter().map(|pod| pod.certified()));
    if timeout(CERTIFICATES, all).await.is_ok() {
        return None;
    }
    let missing = pods
        .iter()
        .filter(|pod| pod.certified().now_or_never().is_none());
    let missing: Vec<_> = missing.map(|pod| pod.name()).collect();
    (!missing.is_empty()).then(|| format!("no certificate for {}", missing.join(", ")))
}

async fn acknowledge(connection: &Connection, seq: u64, outcome: Result<(), PodError>) {
    let error = match outcome {
        Ok(()) => String::new(),
        Err(error) => {
            tracing::warn!(%error, "pod");
            error.to_string()
        }
    };
    let ack = from_proxy::Message::Ack(Ack { seq, error });
    // Fails only if the agent has gone; it will send everything again.
    let _ = send(connection, ack).await;
}

/// Gives the agent what it may have lost: it knows what it has.
async fn give_back(connection: &Connection, pod: HeldPod) -> Result<(), HandoverError> {
    let held = Held {
        sandbox: pod.sandbox,
        listeners: pod
            .listeners
            .iter()
            .map(|(kind, _)| (*kind).into())
            .collect(),
    };
    let message = FromProxy {
        message: Some(from_proxy::Message::Held(held)),
    };
    let listeners = pod.listeners.iter().map(|(_, listener)| listener.as_fd());
    let descriptors: Vec<_> = std::iter::once(pod.netns.descriptor())
        .chain(listeners)
        .collect();
    connection.send(&message, &descriptors).await
}

async fn send(connection: &Connection, message: from_proxy::Message) -> Result<(), HandoverError> {
    let message = FromProxy {
        message: Some(message),
    };
    connection.send(&message, &[]).await
}

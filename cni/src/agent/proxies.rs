//! The pods that are offered to proxies, and the proxies that are connected.
//!
//! Flows in: pods from their workers, connections from the hand-over socket. Flows out: to every
//! proxy first a snapshot of all pods on offer, then each change; back come acknowledgements.
//! Offers live here and not in the connections, so a proxy that reconnects, and a second one during
//! an upgrade, gets all of them.

mod session;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tracing::warn;
use weft_api::handover::{
    AddPod, DrainPod, Hello, Pod, RemovePod, SnapshotSent, UpdatePod, from_agent,
};

use super::returned::Returns;
use crate::{listeners::Listeners, netns::NetNs, protocol::ProxyStatus};

/// What a proxy may take, beyond the time to drain, to close in order what is still open then.
const CLOSING: Duration = Duration::from_secs(3);

/// What a proxy needs to serve a pod.
#[derive(Clone, Debug)]
pub(super) struct Offer {
    /// Who the pod is.
    pub(super) pod: Pod,
    /// Its network namespace.
    pub(super) netns: Arc<NetNs>,
    /// Its listening sockets.
    pub(super) listeners: Arc<Listeners>,
}

/// How a proxy stands to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stand {
    Offered,
    Serving,
    Refused(String),
    Draining,
    Drained,
}

#[derive(Debug)]
struct Entry {
    offer: Offer,
    draining: bool,
    stands: HashMap<u64, Stand>,
}

#[derive(Debug)]
struct Proxy {
    hello: Hello,
    outbox: mpsc::UnboundedSender<Outgoing>,
}

/// What a connection's writer sends.
#[derive(Debug)]
struct Outgoing {
    message: from_agent::Message,
    offer: Option<Offer>,
    regarding: Regarding,
}

/// What an acknowledgement is about.
#[derive(Clone, Debug)]
enum Regarding {
    Add(String),
    Drain(String),
    Nothing,
}

#[derive(Debug, Default)]
struct Inner {
    next_proxy: u64,
    proxies: BTreeMap<u64, Proxy>,
    pods: HashMap<String, Entry>,
}

/// Pods on offer, and proxies.
#[derive(Debug)]
pub(super) struct Proxies {
    inner: Mutex<Inner>,
    /// Rises with each change that somebody may wait for.
    changed: watch::Sender<u64>,
    returns: Returns,
    /// Whether the pods of a former agent are on offer, so that a snapshot lacks none.
    complete: watch::Sender<bool>,
}

impl Default for Proxies {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            changed: watch::Sender::new(0),
            returns: Returns::default(),
            complete: watch::Sender::new(false),
        }
    }
}

impl Proxies {
    /// What proxies give back when they connect.
    pub(super) fn returns(&self) -> &Returns {
        &self.returns
    }

    /// Everything is on offer: proxies that have connected get it now.
    pub(super) fn let_in(&self) {
        self.complete.send_replace(true);
    }

    /// Offers a pod to all proxies, those to come included; one on offer already is offered again
    /// to those that don't serve it.
    pub(super) fn offer(&self, offer: Offer) {
        let mut inner = self.inner.lock();
        let Inner { proxies, pods, .. } = &mut *inner;
        let entry = pods
            .entry(offer.pod.sandbox.clone())
            .or_insert_with(|| Entry {
                offer: offer.clone(),
                draining: false,
                stands: HashMap::new(),
            });
        entry.offer = offer;
        entry.draining = false;
        for (&id, proxy) in proxies {
            if !matches!(entry.stands.get(&id), Some(Stand::Offered | Stand::Serving)) {
                entry.stands.insert(id, Stand::Offered);
                proxy.add(&entry.offer);
            }
        }
        self.changed.send_modify(|version| *version += 1);
    }

    /// Waits until a proxy serves the pod; after `patience`, tells what is missing.
    pub(super) async fn served(&self, sandbox: &str, patience: Duration) -> Result<(), String> {
        let mut changed = self.changed.subscribe();
        let serving = async {
            loop {
                let served = self.inner.lock().pods.get(sandbox).is_some_and(|entry| {
                    entry.stands.values().any(|stand| *stand == Stand::Serving)
                });
                if served || changed.changed().await.is_err() {
                    return;
                }
            }
        };
        match timeout(patience, serving).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.why_unserved(sandbox)),
        }
    }

    fn why_unserved(&self, sandbox: &str) -> String {
        let inner = self.inner.lock();
        if inner.proxies.is_empty() {
            return "no proxy is connected to the agent; is weft-proxy running on this node, and has it its configuration (its /ready tells)?".into();
        }
        let refusal = inner.pods.get(sandbox).and_then(|entry| {
            entry.stands.values().find_map(|stand| match stand {
                Stand::Refused(error) => Some(error.clone()),
                _ => None,
            })
        });
        match refusal {
            Some(error) => format!("the proxy can't serve the pod: {error}"),
            None => "the proxy has not acknowledged the pod in time; does it reach the controller for the pod's certificate?".into(),
        }
    }

    /// Tells proxies that a pod's mode (or addresses) changed.
    pub(super) fn update(&self, pod: Pod) {
        let mut inner = self.inner.lock();
        let Inner { proxies, pods, .. } = &mut *inner;
        let Some(entry) = pods.get_mut(&pod.sandbox) else {
            return;
        };
        entry.offer.pod = pod.clone();
        for proxy in proxies.values() {
            proxy.send(from_agent::Message::Update(UpdatePod {
                pod: Some(pod.clone()),
            }));
        }
    }

    /// Has the proxies drain a pod for `limit` at the most, and waits until they have.
    pub(super) async fn drain(&self, sandbox: &str, limit: Duration) {
        let mut changed = self.changed.subscribe();
        {
            let mut inner = self.inner.lock();
            let Inner { proxies, pods, .. } = &mut *inner;
            let Some(entry) = pods.get_mut(sandbox) else {
                return;
            };
            entry.draining = true;
            let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
            for (id, stand) in &mut entry.stands {
                if let (Some(proxy), Stand::Serving | Stand::Offered) = (proxies.get(id), &*stand) {
                    *stand = Stand::Draining;
                    let drain = DrainPod {
                        sandbox: sandbox.to_owned(),
                        timeout_ms,
                    };
                    let _ = proxy.outbox.send(Outgoing {
                        message: from_agent::Message::Drain(drain),
                        offer: None,
                        regarding: Regarding::Drain(sandbox.to_owned()),
                    });
                }
            }
        }
        let drained = async {
            loop {
                let waiting = self.inner.lock().pods.get(sandbox).is_some_and(|entry| {
                    entry.stands.values().any(|stand| *stand == Stand::Draining)
                });
                if !waiting || changed.changed().await.is_err() {
                    return;
                }
            }
        };
        if timeout(limit + CLOSING, drained).await.is_err() {
            warn!(
                sandbox,
                "a proxy has not said that it has drained the pod; what it still has open is reset"
            );
        }
    }

    /// Takes a pod off the offer: proxies close everything of it.
    pub(super) fn remove(&self, sandbox: &str) {
        let mut inner = self.inner.lock();
        let Some(entry) = inner.pods.remove(sandbox) else {
            return;
        };
        for id in entry.stands.keys() {
            if let Some(proxy) = inner.proxies.get(id) {
                let remove = RemovePod {
                    sandbox: sandbox.to_owned(),
                };
                proxy.send(from_agent::Message::Remove(remove));
            }
        }
        drop(inner);
        self.changed.send_modify(|version| *version += 1);
    }

    /// Tells of each change that somebody may wait for.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The connected proxies.
    pub(super) fn status(&self) -> Vec<ProxyStatus> {
        let inner = self.inner.lock();
        let serves = |id: &u64| {
            inner
                .pods
                .values()
                .filter(|entry| entry.stands.get(id) == Some(&Stand::Serving))
                .count()
        };
        let status = |(id, proxy): (&u64, &Proxy)| ProxyStatus {
            version: proxy.hello.version.clone(),
            incarnation: proxy.hello.incarnation.clone(),
            pods: serves(id),
        };
        inner.proxies.iter().map(status).collect()
    }

    /// Registers a proxy and queues its snapshot, in one step: every later change comes after it.
    fn admit(&self, hello: Hello, outbox: mpsc::UnboundedSender<Outgoing>) -> u64 {
        let mut inner = self.inner.lock();
        inner.next_proxy += 1;
        let id = inner.next_proxy;
        let proxy = Proxy { hello, outbox };
        // A pod that drains takes no new connections: nothing of it is for a newcomer.
        for entry in inner.pods.values_mut().filter(|entry| !entry.draining) {
            entry.stands.insert(id, Stand::Offered);
            proxy.add(&entry.offer);
        }
        proxy.send(from_agent::Message::SnapshotSent(SnapshotSent {}));
        inner.proxies.insert(id, proxy);
        drop(inner);
        self.changed.send_modify(|version| *version += 1);
        id
    }

    fn dismiss(&self, id: u64) {
        let mut inner = self.inner.lock();
        inner.proxies.remove(&id);
        for entry in inner.pods.values_mut() {
            entry.stands.remove(&id);
        }
        drop(inner);
        self.changed.send_modify(|version| *version += 1);
    }

    /// Moves a proxy's stand on, unless something else has happened to the pod meanwhile.
    fn stand(&self, id: u64, sandbox: &str, from: Stand, to: Stand) {
        if let Some(entry) = self.inner.lock().pods.get_mut(sandbox)
            && let Some(stand) = entry.stands.get_mut(&id)
            && *stand == from
        {
            *stand = to;
        }
        self.changed.send_modify(|version| *version += 1);
    }

    fn offer_again(&self, id: u64, sandbox: &str) {
        let mut inner = self.inner.lock();
        let Inner { proxies, pods, .. } = &mut *inner;
        if let (Some(proxy), Some(entry)) = (proxies.get(&id), pods.get_mut(sandbox))
            && let Some(stand @ Stand::Refused(_)) = entry.stands.get_mut(&id)
            && !entry.draining
        {
            *stand = Stand::Offered;
            proxy.add(&entry.offer);
        }
    }
}

impl Proxy {
    fn add(&self, offer: &Offer) {
        let add = AddPod {
            pod: Some(offer.pod.clone()),
            listeners: offer.listeners.kinds(),
        };
        // An error means that the connection has ended; it is dismissed in a moment.
        let _ = self.outbox.send(Outgoing {
            message: from_agent::Message::Add(add),
            offer: Some(offer.clone()),
            regarding: Regarding::Add(offer.pod.sandbox.clone()),
        });
    }

    fn send(&self, message: from_agent::Message) {
        let _ = self.outbox.send(Outgoing {
            message,
            offer: None,
            regarding: Regarding::Nothing,
        });
    }
}

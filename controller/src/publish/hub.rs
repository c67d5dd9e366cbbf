//! Where changed resources and connected proxies meet.
//!
//! Flows in: updates from the compiler, requests from streams. Flows out: a wake-up to each stream
//! that has something to send, and to the status writer and other replicas the names whose standing
//! may have changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::SystemTime,
};

use parking_lot::Mutex;
use prost::Message;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use weft_api::{
    config,
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};

use super::{
    ResourceType,
    cache::{Cache, Update, Version},
    peers::Entry,
    session::{Acknowledgement, Session},
    status::Standing,
};
use crate::metrics::Metrics;

/// The most names that [`ProxyView`] lists of those that wait.
const LISTED: usize = 20;

/// Holds the resources and every connected proxy's session.
pub struct Hub {
    inner: Mutex<Inner>,
    metrics: Metrics,
}

#[derive(Default)]
struct Inner {
    cache: Cache,
    proxies: BTreeMap<u64, Proxy>,
    subscribers: BTreeMap<u64, Subscriber>,
    next: u64,
}

#[derive(Default)]
struct Subscriber {
    dirty: Dirty,
    wake: Arc<Notify>,
}

/// Hears which names' standing may have changed.
pub struct Subscription {
    hub: Arc<Hub>,
    serial: u64,
    wake: Arc<Notify>,
}

struct Proxy {
    id: String,
    node: String,
    since: SystemTime,
    session: Session,
    wake: Arc<Notify>,
    superseded: CancellationToken,
}

/// How proxies stand, by resource.
pub type Entries = Vec<((ResourceType, Arc<str>), Entry)>;

/// Names whose standing with some proxy may have changed.
#[derive(Debug, Default)]
pub struct Dirty {
    /// Of RouteTables.
    pub tables: BTreeSet<Arc<str>>,
    /// Of Workloads.
    pub workloads: BTreeSet<Arc<str>>,
    /// A proxy came or went: everything.
    pub everything: bool,
}

/// A proxy's place in the hub; dropping it disconnects the proxy.
pub struct Connection {
    hub: Arc<Hub>,
    serial: u64,
    wake: Arc<Notify>,
    superseded: CancellationToken,
}

/// A connected proxy, for people.
#[derive(Debug, Serialize)]
pub struct ProxyView {
    /// `Node.id`.
    pub id: String,
    /// The Kubernetes node.
    pub node: String,
    /// Seconds since it connected.
    pub connected_seconds: u64,
    /// By type of resource.
    pub types: BTreeMap<&'static str, TypeView>,
}

/// What a proxy has acknowledged of one type.
#[derive(Debug, Default, Serialize)]
pub struct TypeView {
    /// Whether it has asked for the type.
    pub subscribed: bool,
    /// How many resources it has in their current version.
    pub acknowledged: usize,
    /// How many it does not have yet.
    pub waiting: usize,
    /// The first of those.
    pub waiting_for: Vec<String>,
    /// What it refused, and why.
    pub rejected: BTreeMap<String, String>,
}

impl Hub {
    /// A hub without resources and proxies.
    pub fn new(metrics: Metrics) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            metrics,
        })
    }

    /// Takes in a proxy. A session of the same process that lingers from a broken connection ends.
    pub fn connect(self: &Arc<Self>, id: &str, node: &str) -> Connection {
        let wake = Arc::new(Notify::new());
        let superseded = CancellationToken::new();
        let mut inner = self.inner.lock();
        inner.proxies.retain(|_, old| {
            let stays = old.id != id;
            if !stays {
                old.superseded.cancel();
            }
            stays
        });
        let serial = inner.next;
        inner.next += 1;
        let proxy = Proxy {
            id: id.to_owned(),
            node: node.to_owned(),
            since: SystemTime::now(),
            session: Session::default(),
            wake: Arc::clone(&wake),
            superseded: superseded.clone(),
        };
        inner.proxies.insert(serial, proxy);
        self.census(&mut inner);
        Connection {
            hub: Arc::clone(self),
            serial,
            wake,
            superseded,
        }
    }

    /// Takes over updates, and wakes the streams that have something to send. Returns how many
    /// resources have changed.
    pub fn publish(&self, updates: Vec<Update>) -> usize {
        let mut inner = self.inner.lock();
        let Inner {
            cache,
            proxies,
            subscribers,
            ..
        } = &mut *inner;
        let mut count = 0;
        for update in updates {
            let kind = update.kind;
            let Some(name) = cache.apply(update) else {
                continue;
            };
            count += 1;
            for proxy in proxies.values_mut() {
                proxy.session.changed(kind, &name);
            }
            for subscriber in subscribers.values_mut() {
                subscriber.dirty.note(kind, &name);
            }
        }
        if count > 0 {
            for proxy in proxies.values() {
                proxy.wake.notify_one();
            }
            inner.wake_subscribers();
        }
        count
    }

    /// How all connected proxies stand towards some resources.
    pub fn standing(&self, kind: ResourceType, names: &[String]) -> Standing {
        let inner = self.inner.lock();
        let mut standing = Standing {
            proxies: inner.proxies.len(),
            ..Standing::default()
        };
        for name in names {
            let version = inner.cache.version(kind, name);
            for proxy in inner.proxies.values() {
                match proxy.session.standing(kind, name, version) {
                    Acknowledgement::Acknowledged => {}
                    Acknowledgement::Waiting => {
                        standing.waiting.insert(proxy.node.clone());
                    }
                    Acknowledgement::Rejected(reason) => {
                        standing
                            .rejected
                            .insert((name.clone(), reason, proxy.node.clone()));
                    }
                }
            }
        }
        standing
    }

    /// The versions of some resources as they are published.
    pub fn versions<'a>(
        &self,
        kind: ResourceType,
        names: &'a [String],
    ) -> Vec<(&'a String, Option<Version>)> {
        let inner = self.inner.lock();
        let version = |name: &'a String| (name, inner.cache.version(kind, name));
        names.iter().map(version).collect()
    }

    /// The nodes of the connected proxies, and how these stand towards what is dirty; where that is
    /// everything, towards all there is, what some proxy still has, and what was told before.
    pub fn report<'a>(
        &self,
        dirty: &Dirty,
        told: impl Iterator<Item = &'a (ResourceType, Arc<str>)>,
    ) -> (Vec<String>, Entries) {
        let inner = self.inner.lock();
        let nodes = inner.proxies.values().map(|proxy| proxy.node.clone());
        let of = |kind| move |name: &Arc<str>| (kind, Arc::clone(name));
        let tables = dirty.tables.iter().map(of(ResourceType::RouteTable));
        let workloads = dirty.workloads.iter().map(of(ResourceType::Workload));
        let mut names: BTreeSet<_> = tables.chain(workloads).collect();
        if dirty.everything {
            names.extend(told.cloned());
            for kind in [ResourceType::RouteTable, ResourceType::Workload] {
                let all = inner.cache.all(kind);
                names.extend(all.keys().map(of(kind)));
                for proxy in inner.proxies.values() {
                    let held = proxy.session.held(kind);
                    names.extend(held.filter(|name| !all.contains_key(*name)).map(of(kind)));
                }
            }
        }
        let entries = names.into_iter().map(|(kind, name)| {
            let entry = inner.entry(kind, &name);
            ((kind, name), entry)
        });
        (nodes.collect(), entries.collect())
    }

    /// Hears of what changes from now on; at first, everything has.
    pub fn subscribe(self: &Arc<Self>) -> Subscription {
        let mut inner = self.inner.lock();
        let serial = inner.next;
        inner.next += 1;
        let mut subscriber = Subscriber::default();
        subscriber.dirty.everything = true;
        let wake = Arc::clone(&subscriber.wake);
        inner.subscribers.insert(serial, subscriber);
        Subscription {
            hub: Arc::clone(self),
            serial,
            wake,
        }
    }

    /// The connected proxies.
    pub fn proxies(&self) -> Vec<ProxyView> {
        let inner = self.inner.lock();
        inner
            .proxies
            .values()
            .map(|proxy| proxy.view(&inner.cache))
            .collect()
    }

    /// The resources as they are published, by type and name.
    pub fn dump(&self) -> BTreeMap<&'static str, BTreeMap<String, Value>> {
        let inner = self.inner.lock();
        let dump = |kind| {
            let resources = inner.cache.all(kind).iter();
            resources
                .map(|(name, r)| (name.to_string(), decode(kind, &r.body)))
                .collect()
        };
        ResourceType::ALL
            .map(|kind| (kind.name(), dump(kind)))
            .into()
    }

    fn census(&self, inner: &mut Inner) {
        self.metrics.proxies.set(inner.proxies.len() as i64);
        for subscriber in inner.subscribers.values_mut() {
            subscriber.dirty.everything = true;
        }
        inner.wake_subscribers();
    }
}

// === impl Inner ===

impl Inner {
    fn wake_subscribers(&self) {
        for subscriber in self.subscribers.values() {
            subscriber.wake.notify_one();
        }
    }

    fn entry(&self, kind: ResourceType, name: &str) -> Entry {
        let version = self.cache.version(kind, name);
        let mut entry = Entry {
            version,
            ..Entry::default()
        };
        for proxy in self.proxies.values() {
            match proxy.session.standing(kind, name, version) {
                Acknowledgement::Acknowledged => {}
                Acknowledgement::Waiting => entry.waiting.push(proxy.node.clone()),
                Acknowledgement::Rejected(reason) => {
                    entry.rejected.push((proxy.node.clone(), reason));
                }
            }
        }
        entry
    }
}

// === impl Subscription ===

impl Subscription {
    /// The hub.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Waits until [`Subscription::take`] may have something to give.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }

    /// What may stand differently since the last call.
    pub fn take(&self) -> Dirty {
        let mut inner = self.hub.inner.lock();
        let subscriber = inner.subscribers.get_mut(&self.serial);
        subscriber
            .map(|s| std::mem::take(&mut s.dirty))
            .unwrap_or_default()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.inner.lock().subscribers.remove(&self.serial);
    }
}

// === impl Connection ===

impl Connection {
    /// Takes in a request from the proxy.
    pub fn request(&self, request: DeltaDiscoveryRequest) {
        let kind = ResourceType::from_url(&request.type_url);
        let nack = request
            .error_detail
            .as_ref()
            .map(|error| error.message.clone());
        let mut inner = self.hub.inner.lock();
        let Inner {
            cache,
            proxies,
            subscribers,
            ..
        } = &mut *inner;
        let Some(proxy) = proxies.get_mut(&self.serial) else {
            return;
        };
        let told = proxy.session.request(request, cache);
        let Some(kind) = kind else { return };
        if told.rejected > 0 {
            let (node, error) = (&proxy.node, nack.unwrap_or_default());
            tracing::warn!(%node, kind = kind.name(), %error, "a proxy refused configuration");
            self.hub.metrics.rejected(kind, told.rejected);
        }
        if told.subscribed || !told.names.is_empty() {
            for subscriber in subscribers.values_mut() {
                subscriber.dirty.everything |= told.subscribed;
                for name in &told.names {
                    subscriber.dirty.note(kind, name);
                }
                subscriber.wake.notify_one();
            }
        }
    }

    /// The responses that may be sent to the proxy now.
    pub fn responses(&self) -> Vec<DeltaDiscoveryResponse> {
        let mut inner = self.hub.inner.lock();
        let Inner { cache, proxies, .. } = &mut *inner;
        let Some(proxy) = proxies.get_mut(&self.serial) else {
            return Vec::new();
        };
        let responses = proxy.session.responses(cache);
        for response in &responses {
            self.hub.metrics.pushed(response);
        }
        responses
    }

    /// Waits until there may be something to send.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Waits until a newer stream of the same process takes the place of this one.
    pub async fn superseded(&self) {
        self.superseded.cancelled().await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut inner = self.hub.inner.lock();
        if inner.proxies.remove(&self.serial).is_some() {
            self.hub.census(&mut inner);
        }
    }
}

// === impl Proxy ===

impl Proxy {
    fn view(&self, cache: &Cache) -> ProxyView {
        let types = ResourceType::ALL.map(|kind| {
            let mut view = TypeView {
                subscribed: self.session.is_subscribed(kind),
                ..TypeView::default()
            };
            for (name, resource) in cache.all(kind) {
                match self.session.standing(kind, name, Some(resource.version)) {
                    Acknowledgement::Acknowledged => view.acknowledged += 1,
                    Acknowledgement::Waiting => {
                        view.waiting += 1;
                        if view.waiting <= LISTED {
                            view.waiting_for.push(name.to_string());
                        }
                    }
                    Acknowledgement::Rejected(reason) => {
                        view.rejected.insert(name.to_string(), reason);
                    }
                }
            }
            (kind.name(), view)
        });
        ProxyView {
            id: self.id.clone(),
            node: self.node.clone(),
            connected_seconds: self.since.elapsed().unwrap_or_default().as_secs(),
            types: types.into(),
        }
    }
}

// === impl Dirty ===

impl Dirty {
    /// Adds a name.
    pub fn note(&mut self, kind: ResourceType, name: &Arc<str>) {
        match kind {
            ResourceType::RouteTable => self.tables.insert(Arc::clone(name)),
            ResourceType::Workload => self.workloads.insert(Arc::clone(name)),
            ResourceType::MeshConfig | ResourceType::Service => false,
        };
    }
}

/// A resource as people read it.
fn decode(kind: ResourceType, body: &[u8]) -> Value {
    fn value<T: Message + Default + Serialize>(body: &[u8]) -> Value {
        let message = T::decode(body).map_err(|error| error.to_string());
        let value =
            message.and_then(|m| serde_json::to_value(m).map_err(|error| error.to_string()));
        value.unwrap_or_else(Value::String)
    }
    match kind {
        ResourceType::MeshConfig => value::<config::MeshConfig>(body),
        ResourceType::Service => value::<config::Service>(body),
        ResourceType::Workload => value::<config::Workload>(body),
        ResourceType::RouteTable => value::<config::RouteTable>(body),
    }
}

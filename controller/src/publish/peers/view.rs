//! What is known of the other replicas. No sockets; the time is given.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::{sync::Notify, time::Instant};
use weft_source::{Event, Object, ObjectKey};

use super::FORGET;
use crate::{
    kubernetes::Place,
    publish::{ResourceType, cache::Version, status::Standing},
};

/// A resource, by type and name.
pub type Key = (ResourceType, String);

/// How a replica's proxies stand towards one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The version that the replica publishes; none if there is no such resource.
    pub version: Option<Version>,
    /// Nodes of the proxies that have not acknowledged it.
    pub waiting: Vec<String>,
    /// Nodes of the proxies that refuse it, and why.
    pub rejected: Vec<(String, String)>,
}

impl Entry {
    /// Nothing to remember: it does not exist, and everybody knows.
    pub fn is_void(&self) -> bool {
        self.version.is_none() && self.waiting.is_empty() && self.rejected.is_empty()
    }
}

/// How a replica's proxies stand.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Their nodes.
    pub nodes: Vec<String>,
    /// Resource by resource.
    pub entries: HashMap<Key, Entry>,
}

/// The other replicas.
pub struct Peers {
    service: Place,
    /// This replica, which is none of the others.
    replica: String,
    inner: Mutex<Inner>,
    /// The membership has changed.
    pub(super) members_changed: Notify,
    /// Some standing has.
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    slices: HashMap<ObjectKey, Vec<(String, Member)>>,
    peers: BTreeMap<String, Peer>,
    /// When a replica with proxies was last lost.
    lost: Option<Instant>,
    /// Names whose standing has changed; none if everything may have.
    touched: Option<HashSet<Key>>,
}

/// A replica's endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Member {
    pub(super) address: IpAddr,
    serving: bool,
}

struct Peer {
    member: Member,
    state: State,
}

enum State {
    /// Not asked yet, or no answer.
    Unknown {
        since: Instant,
    },
    /// Nobody listens there.
    Absent,
    Known(Snapshot),
}

/// Names whose standing has changed.
pub type Touched = Option<HashSet<Key>>;

impl Peers {
    /// None are known yet. `service` is the one through which proxies reach the replicas.
    pub fn new(service: Place, replica: String) -> Arc<Self> {
        Arc::new(Self {
            service,
            replica,
            inner: Mutex::default(),
            members_changed: Notify::new(),
            changed: Notify::new(),
        })
    }

    /// Takes in what the source tells, if it is about the controller's Service.
    pub fn observe(&self, event: &Event) {
        let (key, members) = match event {
            Event::Applied(object) if self.is_ours(object) => (&object.key, members(&object.value)),
            Event::Deleted(key) => (key, Vec::new()),
            _ => return,
        };
        if key.kind != "EndpointSlice" || key.namespace != self.service.namespace {
            return;
        }
        let mut inner = self.inner.lock();
        let old = if members.is_empty() {
            inner.slices.remove(key)
        } else {
            inner.slices.insert(key.clone(), members.clone())
        };
        if old.unwrap_or_default() == members {
            return;
        }
        inner.recount(&self.replica, Instant::now());
        drop(inner);
        self.members_changed.notify_one();
        self.changed.notify_one();
    }

    fn is_ours(&self, object: &Object) -> bool {
        let label = object
            .value
            .pointer("/metadata/labels/kubernetes.io~1service-name");
        object.key.namespace == self.service.namespace
            && label.and_then(Value::as_str) == Some(&self.service.name)
    }

    /// The other replicas' endpoints.
    pub(super) fn members(&self) -> BTreeMap<String, Member> {
        let inner = self.inner.lock();
        let members = inner.peers.iter();
        members
            .map(|(name, peer)| (name.clone(), peer.member))
            .collect()
    }

    /// A replica has told how it stands: everything (the first time) or what has changed.
    pub(super) fn report(&self, replica: &str, mut report: Snapshot, first: bool) {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let Some(peer) = inner.peers.get_mut(replica) else {
            return;
        };
        match &mut peer.state {
            State::Known(known) if !first => {
                if known.nodes == report.nodes {
                    if let Some(touched) = &mut inner.touched {
                        touched.extend(report.entries.keys().cloned());
                    }
                } else {
                    inner.touched = None;
                }
                known.nodes = report.nodes;
                known.entries.extend(report.entries);
                known.entries.retain(|_, entry| !entry.is_void());
            }
            state => {
                report.entries.retain(|_, entry| !entry.is_void());
                *state = State::Known(report);
                inner.touched = None;
            }
        }
        self.changed.notify_one();
    }

    /// A replica does not answer; `absent` if it is certain that there is none at its address.
    pub(super) fn silent(&self, replica: &str, absent: bool) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let Some(peer) = inner.peers.get_mut(replica) else {
            return;
        };
        let since = match (&peer.state, absent) {
            (State::Unknown { since }, false) => *since,
            (State::Absent, true) => return,
            _ => now,
        };
        if peer.has_proxies() {
            inner.lost = Some(now);
        }
        peer.state = match absent {
            true => State::Absent,
            false => State::Unknown { since },
        };
        inner.touched = None;
        self.changed.notify_one();
    }

    /// Adds how the other replicas' proxies stand. `versions` are those that this replica publishes.
    pub fn add_standing(
        &self,
        kind: ResourceType,
        versions: &[(&String, Option<Version>)],
        standing: &mut Standing,
    ) {
        let now = Instant::now();
        let inner = self.inner.lock();
        for (replica, peer) in &inner.peers {
            let snapshot = match &peer.state {
                State::Absent => continue,
                State::Unknown { .. } if !peer.counts(now) => continue,
                State::Unknown { .. } => {
                    standing.unknown.insert(replica.clone());
                    continue;
                }
                State::Known(snapshot) => snapshot,
            };
            standing.proxies += snapshot.nodes.len();
            for (name, version) in versions {
                let nothing = Entry::default();
                let entry = snapshot.entries.get(&(kind, (*name).clone()));
                let entry = entry.unwrap_or(&nothing);
                if entry.version != *version {
                    // It is behind, or ahead: of this version its proxies have said nothing.
                    standing.waiting.extend(snapshot.nodes.iter().cloned());
                    continue;
                }
                standing.waiting.extend(entry.waiting.iter().cloned());
                for (node, reason) in &entry.rejected {
                    let refusal = ((*name).clone(), reason.clone(), node.clone());
                    standing.rejected.insert(refusal);
                }
            }
        }
    }

    /// Whether it is unclear how some proxies stand: of a replica that is not known yet, or of one that
    /// was lost less than `settle` ago, for they have not come back elsewhere yet.
    pub fn is_unsettled(&self, settle: Duration) -> bool {
        let now = Instant::now();
        let inner = self.inner.lock();
        let unknown = |peer: &Peer| matches!(peer.state, State::Unknown { .. }) && peer.counts(now);
        inner.lost.is_some_and(|lost| now < lost + settle) || inner.peers.values().any(unknown)
    }

    /// Waits until some standing may have changed.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Whose standing has changed since the last call; none: everything may have.
    pub fn take_touched(&self) -> Touched {
        self.inner.lock().touched.replace(HashSet::new())
    }
}

impl Inner {
    /// Brings the peers up to date with the slices.
    fn recount(&mut self, replica: &str, now: Instant) {
        let members: BTreeMap<String, Member> = self
            .slices
            .values()
            .flatten()
            .filter(|(name, _)| name != replica)
            .cloned()
            .collect();
        let mut lost = false;
        self.peers.retain(|name, peer| {
            // An address that changes is another pod of that name.
            let stays = members
                .get(name)
                .is_some_and(|m| m.address == peer.member.address);
            lost |= !stays && peer.has_proxies();
            stays
        });
        if lost {
            self.lost = Some(now);
        }
        for (name, member) in members {
            let state = State::Unknown { since: now };
            self.peers
                .entry(name)
                .or_insert(Peer { member, state })
                .member = member;
        }
        self.touched = None;
    }
}

impl Peer {
    fn has_proxies(&self) -> bool {
        matches!(&self.state, State::Known(snapshot) if !snapshot.nodes.is_empty())
    }

    /// Whether a replica that does not answer may still have proxies.
    fn counts(&self, now: Instant) -> bool {
        match self.state {
            State::Unknown { since } => self.member.serving || now < since + FORGET,
            _ => true,
        }
    }
}

/// The pods of a slice.
fn members(slice: &Value) -> Vec<(String, Member)> {
    let endpoints = slice.get("endpoints").and_then(Value::as_array);
    let member = |endpoint: &Value| {
        let name = endpoint.pointer("/targetRef/name")?.as_str()?;
        let address = endpoint.pointer("/addresses/0")?.as_str()?.parse().ok()?;
        let condition = |name: &str| endpoint.pointer(&format!("/conditions/{name}"))?.as_bool();
        let serving = condition("serving").or(condition("ready")).unwrap_or(true);
        Some((name.to_owned(), Member { address, serving }))
    };
    endpoints.into_iter().flatten().filter_map(member).collect()
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;

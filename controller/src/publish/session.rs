//! One proxy's stream as a state machine: requests and changed names in, responses out. Pure.
//!
//! Per type there is at most one response that waits for its acknowledgement. What changes in the
//! meantime is kept as a set of names, so a slow proxy costs no more than the names there are, and
//! gets the newest state once it is ready.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use prost_types::Any;
use weft_api::{
    discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
    names::XDS_PARTIAL,
};

use super::{
    ResourceType,
    cache::{Cache, Version},
};

/// The most that one response carries, in bytes: half of the 4 MiB that gRPC clients accept by
/// default. What is left follows in further responses; `system_version_info` of all but the last
/// is [`XDS_PARTIAL`].
const MAX_RESPONSE: usize = 2 * 1024 * 1024;

/// The subscription to everything.
const WILDCARD: &str = "*";

/// What is known of one proxy.
#[derive(Debug, Default)]
pub struct Session {
    types: [Subscription; ResourceType::ALL.len()],
    nonce: u64,
}

/// What is known of one proxy about one type.
#[derive(Debug, Default)]
struct Subscription {
    /// The proxy has asked for this type.
    active: bool,
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// What the proxy has: acknowledged, or told when it connected. `None` is a version of unknown origin.
    held: HashMap<Arc<str>, Option<Version>>,
    /// What the proxy refused, and why. It is not sent again before it changes.
    rejected: BTreeMap<Arc<str>, (Version, String)>,
    /// Names to look at.
    pending: BTreeSet<Arc<str>>,
    /// A response is due even if there is nothing to say: it tells the proxy that it has everything.
    greet: bool,
    outstanding: Option<Outstanding>,
}

/// A response that is not acknowledged yet.
#[derive(Debug)]
struct Outstanding {
    nonce: String,
    /// Names, and the versions that were sent; none for removals.
    sent: Vec<(Arc<str>, Option<Version>)>,
}

/// What a request has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Names whose standing with the proxy may have changed.
    pub names: Vec<Arc<str>>,
    /// How many resources of the response were refused.
    pub rejected: usize,
    /// The proxy has just subscribed to the type.
    pub subscribed: bool,
}

/// How a proxy stands towards a resource as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acknowledgement {
    /// It has this very version (or, if the resource is gone, has it no more).
    Acknowledged,
    /// Not told yet, or no answer yet.
    Waiting,
    /// Refused, and why.
    Rejected(String),
}

impl Session {
    /// Takes in a request.
    pub fn request(&mut self, request: DeltaDiscoveryRequest, cache: &Cache) -> Told {
        let Some(kind) = ResourceType::from_url(&request.type_url) else {
            return Told::default();
        };
        let subscription = &mut self.types[kind as usize];
        let mut told = subscription.acknowledge(&request);
        told.subscribed = !subscription.active;
        subscription.subscribe(request, cache.all(kind).keys());
        told
    }

    /// Notes that resources have changed.
    pub fn changed(&mut self, kind: ResourceType, name: &Arc<str>) {
        let subscription = &mut self.types[kind as usize];
        if subscription.wants(name) {
            subscription.pending.insert(Arc::clone(name));
        }
    }

    /// The responses that may be sent now.
    pub fn responses(&mut self, cache: &Cache) -> Vec<DeltaDiscoveryResponse> {
        let mut responses = Vec::new();
        for kind in ResourceType::ALL {
            responses.extend(self.respond(kind, cache));
            if self.types[kind as usize]
                .pending
                .iter()
                .any(|name| cache.get(kind, name).is_some())
            {
                // More of this type is to come before what may depend on it.
                return responses;
            }
        }
        // Removals of Services that had to wait for tables.
        responses.extend(self.respond(ResourceType::Service, cache));
        responses
    }

    /// How the proxy stands towards a resource.
    pub fn standing(
        &self,
        kind: ResourceType,
        name: &str,
        now: Option<Version>,
    ) -> Acknowledgement {
        let subscription = &self.types[kind as usize];
        let held = subscription.held.get(name);
        let Some(now) = now else {
            let on_its_way = subscription.outstanding.iter().any(|outstanding| {
                outstanding
                    .sent
                    .iter()
                    .any(|(sent, version)| &**sent == name && version.is_some())
            });
            // Before it subscribes, nobody knows what a proxy still has from an earlier time.
            let gone = subscription.active && held.is_none() && !on_its_way;
            return if gone {
                Acknowledgement::Acknowledged
            } else {
                Acknowledgement::Waiting
            };
        };
        if held == Some(&Some(now)) {
            return Acknowledgement::Acknowledged;
        }
        match subscription.rejected.get(name) {
            Some((version, reason)) if *version == now => Acknowledgement::Rejected(reason.clone()),
            _ => Acknowledgement::Waiting,
        }
    }

    /// The names of what the proxy has of a type.
    pub fn held(&self, kind: ResourceType) -> impl Iterator<Item = &Arc<str>> {
        self.types[kind as usize].held.keys()
    }

    /// Whether the proxy has asked for a type.
    pub fn is_subscribed(&self, kind: ResourceType) -> bool {
        self.types[kind as usize].active
    }

    fn respond(&mut self, kind: ResourceType, cache: &Cache) -> Option<DeltaDiscoveryResponse> {
        // A Service goes only after the tables that may still name it.
        let tables = &self.types[ResourceType::RouteTable as usize];
        let keep_removals =
            kind == ResourceType::Service && tables.active && !tables.pending.is_empty();
        let subscription = &mut self.types[kind as usize];
        if !subscription.active || subscription.outstanding.is_some() {
            return None;
        }
        let mut response = DeltaDiscoveryResponse {
            type_url: kind.url().into(),
            ..Default::default()
        };
        let mut sent = Vec::new();
        let mut kept = BTreeSet::new();
        let mut size = 0;
        while size < MAX_RESPONSE
            && let Some(name) = subscription.pending.pop_first()
        {
            let held = subscription.held.get(&name).copied();
            let Some(resource) = cache.get(kind, &name) else {
                subscription.rejected.remove(&name);
                if held.is_none() {
                } else if keep_removals {
                    kept.insert(name);
                } else {
                    size += name.len();
                    response.removed_resources.push(name.to_string());
                    sent.push((name, None));
                }
                continue;
            };
            let version = resource.version;
            if held == Some(Some(version)) {
                subscription.rejected.remove(&name);
                continue;
            }
            if subscription
                .rejected
                .get(&name)
                .is_some_and(|(refused, _)| *refused == version)
            {
                continue;
            }
            size += name.len() + resource.body.len();
            response.resources.push(Resource {
                version: version.to_string(),
                resource: Some(Any {
                    type_url: kind.url().into(),
                    value: resource.body.to_vec(),
                }),
                name: name.to_string(),
            });
            sent.push((name, Some(version)));
        }
        if !subscription.pending.is_empty() {
            response.system_version_info = XDS_PARTIAL.into();
        }
        subscription.pending.append(&mut kept);
        if sent.is_empty() && !subscription.greet {
            return None;
        }
        subscription.greet = false;
        self.nonce += 1;
        response.nonce = self.nonce.to_string();
        subscription.outstanding = Some(Outstanding {
            nonce: response.nonce.clone(),
            sent,
        });
        Some(response)
    }
}

// === impl Subscription ===

impl Subscription {
    fn wants(&self, name: &str) -> bool {
        self.active && (self.wildcard || self.names.contains(name) || self.held.contains_key(name))
    }

    /// Books the answer to the outstanding response, if the request is one.
    fn acknowledge(&mut self, request: &DeltaDiscoveryRequest) -> Told {
        let mut told = Told::default();
        if request.response_nonce.is_empty() {
            return told;
        }
        let Some(Outstanding { sent, .. }) = self
            .outstanding
            .take_if(|o| o.nonce == request.response_nonce)
        else {
            return told;
        };
        let refusals = request
            .error_detail
            .as_ref()
            .map(|error| refusals(&error.message, &sent));
        for (name, version) in sent {
            let reason = match &refusals {
                Some(Refusals::Of(reasons)) => reasons.get(&*name),
                Some(Refusals::Everything(reason)) => Some(reason),
                None => None,
            };
            match (reason, version) {
                (Some(reason), Some(version)) => {
                    told.rejected += 1;
                    self.rejected
                        .insert(Arc::clone(&name), (version, reason.clone()));
                }
                (_, Some(version)) => {
                    self.rejected.remove(&name);
                    self.held.insert(Arc::clone(&name), Some(version));
                }
                (_, None) => {
                    self.held.remove(&name);
                }
            }
            told.names.push(name);
        }
        told
    }

    fn subscribe<'a>(
        &mut self,
        request: DeltaDiscoveryRequest,
        all: impl Iterator<Item = &'a Arc<str>>,
    ) {
        let mut everything = request
            .resource_names_subscribe
            .iter()
            .any(|name| name == WILDCARD);
        if !self.active {
            self.active = true;
            self.greet = true;
            // An old way to say "everything".
            everything |= request.resource_names_subscribe.is_empty();
            for (name, version) in request.initial_resource_versions {
                let name: Arc<str> = name.into();
                self.pending.insert(Arc::clone(&name));
                self.held.insert(name, Version::parse(&version));
            }
        }
        if everything && !self.wildcard {
            self.wildcard = true;
            self.pending.extend(all.cloned());
        }
        for name in request
            .resource_names_subscribe
            .into_iter()
            .filter(|name| name != WILDCARD)
        {
            let name: Arc<str> = name.into();
            // A name that is asked for is answered, even with what the proxy may have already, and
            // with a removal if there is no such resource.
            if self.names.insert(Arc::clone(&name)) && !self.held.contains_key(&name) {
                self.held.insert(Arc::clone(&name), None);
            }
            self.pending.insert(name);
        }
        for name in request.resource_names_unsubscribe {
            if name == WILDCARD {
                self.wildcard = false;
                let names = &self.names;
                self.held.retain(|name, _| names.contains(name));
                self.pending.retain(|name| names.contains(name));
            } else if self.names.remove(name.as_str()) && !self.wildcard {
                self.held.remove(name.as_str());
                self.rejected.remove(name.as_str());
                self.pending.remove(name.as_str());
            }
        }
    }
}

/// What a NACK is about.
enum Refusals<'a> {
    /// These resources, and why; the rest of the response was taken.
    Of(HashMap<&'a str, String>),
    /// No resource of the response is named: all of it.
    Everything(String),
}

/// Reads a NACK's message: a line `name: reason` for each refused resource.
fn refusals<'a>(message: &'a str, sent: &[(Arc<str>, Option<Version>)]) -> Refusals<'a> {
    let names: BTreeSet<&str> = sent.iter().map(|(name, _)| &**name).collect();
    let named: HashMap<_, _> = message
        .lines()
        .filter_map(|line| line.split_once(": "))
        .filter(|(name, _)| names.contains(name))
        .map(|(name, reason)| (name, reason.to_owned()))
        .collect();
    if named.is_empty() {
        Refusals::Everything(message.to_owned())
    } else {
        Refusals::Of(named)
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;

//! The endpoints of one Service port, sorted into slices by readiness and distance so that a
//! pick looks only at those that count. A change of one endpoint costs one hash and one move.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use foldhash::fast::RandomState;
use rand::Rng;
use weft_api::config::TrafficDistribution;

use crate::{
    balance::{
        Load,
        p2c::{Candidate, Candidates},
    },
    model::{Family, Locality, Workload},
};

/// Whether an endpoint takes traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    /// Yes.
    Ready = 0,
    /// Only if no endpoint is ready, as kube-proxy does it.
    ServingTerminating = 1,
    /// Only if the Service publishes endpoints that are not ready.
    NotReady = 2,
}

impl Readiness {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::ServingTerminating => "serving_terminating",
            Self::NotReady => "not_ready",
        }
    }
}

/// How far away an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distance {
    Node = 0,
    Zone = 1,
    Far = 2,
}

const DISTANCES: usize = 3;

impl Distance {
    fn of(workload: &Workload, from: &Locality) -> Self {
        if !from.node.is_empty() && workload.node == from.node {
            Self::Node
        } else if !from.zone.is_empty() && workload.zone == from.zone {
            Self::Zone
        } else {
            Self::Far
        }
    }
}

/// Where an endpoint is dialled: at one address in each family that it has in the Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Targets {
    first: SocketAddr,
    /// Of the other family.
    other: Option<SocketAddr>,
}

impl Targets {
    /// Of the workload's addresses in the Service, the primary one first; none if there is none.
    pub(super) fn new(addresses: impl IntoIterator<Item = IpAddr>, port: u16) -> Option<Self> {
        let mut addresses = addresses.into_iter();
        let first = SocketAddr::new(addresses.next()?, port);
        let mut others = addresses.map(|ip| SocketAddr::new(ip, port));
        Some(Self {
            first,
            other: others.find(|other| other.is_ipv4() != first.is_ipv4()),
        })
    }

    pub(super) fn port(&self) -> u16 {
        self.first.port()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = SocketAddr> {
        std::iter::once(self.first).chain(self.other)
    }

    fn of(&self, family: Family) -> Option<SocketAddr> {
        self.iter().find(|at| Family::of(at.ip()) == family)
    }

    /// The address in this family, or else in the other one.
    pub(super) fn toward(&self, family: Family) -> SocketAddr {
        self.of(family).unwrap_or(self.first)
    }
}

/// One endpoint.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    pub(super) workload: Arc<Workload>,
    pub(super) targets: Targets,
    pub(super) load: Arc<Load>,
}

impl Candidate for Endpoint {
    fn load(&self) -> &Arc<Load> {
        &self.load
    }
}

/// Why nothing was picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nothing {
    NoneReady,
    AllExcluded,
}

/// The endpoints of a Service port.
#[derive(Debug, Default)]
pub(super) struct EndpointSet {
    slices: [[Vec<Endpoint>; DISTANCES]; 3],
    /// Workload's uid to its place.
    places: HashMap<Arc<str>, (Readiness, Distance, usize), RandomState>,
}

impl EndpointSet {
    /// Adds or replaces a workload's endpoint.
    pub(super) fn set(&mut self, endpoint: Endpoint, readiness: Readiness, locality: &Locality) {
        let distance = Distance::of(&endpoint.workload, locality);
        match self.places.get(&endpoint.workload.uid) {
            Some(&(r, d, at)) if (r, d) == (readiness, distance) => {
                self.slices[r as usize][d as usize][at] = endpoint;
                return;
            }
            Some(_) => {
                let uid = Arc::clone(&endpoint.workload.uid);
                self.remove(&uid);
            }
            None => {}
        }
        let slice = &mut self.slices[readiness as usize][distance as usize];
        let place = (readiness, distance, slice.len());
        self.places
            .insert(Arc::clone(&endpoint.workload.uid), place);
        slice.push(endpoint);
    }

    /// Removes a workload's endpoint.
    pub(super) fn remove(&mut self, uid: &str) {
        let Some((readiness, distance, at)) = self.places.remove(uid) else {
            return;
        };
        let slice = &mut self.slices[readiness as usize][distance as usize];
        slice.swap_remove(at);
        if let Some(moved) = slice.get(at)
            && let Some(place) = self.places.get_mut(&moved.workload.uid)
        {
            place.2 = at;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Endpoints with their readiness, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Endpoint, Readiness)> {
        const ALL: [Readiness; 3] = [
            Readiness::Ready,
            Readiness::ServingTerminating,
            Readiness::NotReady,
        ];
        ALL.into_iter().flat_map(|readiness| {
            let slices = &self.slices[readiness as usize];
            slices.iter().flatten().map(move |e| (e, readiness))
        })
    }

    /// Picks one. Those with an address of the client's family come first, as kube-proxy stays in
    /// it; among them the nearest distance that the Service prefers; a farther one if all nearer
    /// endpoints are excluded or ejected; one that is reached in the other family if there is none
    /// of the client's; an ejected one if there is no other.
    pub(super) fn pick(
        &self,
        family: Family,
        distribution: TrafficDistribution,
        publish_not_ready: bool,
        now: u32,
        exclude: &[SocketAddr],
        rng: &mut impl Rng,
    ) -> Result<&Endpoint, Nothing> {
        let classes = self.classes(publish_not_ready);
        if classes.is_empty() {
            return Err(Nothing::NoneReady);
        }
        // How many distances count at first.
        let nearest = match distribution {
            TrafficDistribution::Any => DISTANCES,
            TrafficDistribution::PreferSameZone => 2,
            TrafficDistribution::PreferSameNode => 1,
        };
        let untried = |endpoint: &Endpoint| {
            exclude.is_empty() || !endpoint.targets.iter().any(|at| exclude.contains(&at))
        };
        for (healthy, same_family) in [(true, true), (true, false), (false, true), (false, false)] {
            let allowed = |endpoint: &Endpoint| {
                untried(endpoint) && (!same_family || endpoint.targets.of(family).is_some())
            };
            for distances in nearest..=DISTANCES {
                let mut candidates = Candidates::default();
                for class in classes {
                    for slice in &class[..distances] {
                        candidates.push(slice);
                    }
                }
                if candidates.is_empty() {
                    continue;
                }
                if let Some(picked) = candidates.pick(now, healthy, allowed, rng) {
                    return Ok(picked);
                }
            }
        }
        Err(Nothing::AllExcluded)
    }

    /// The classes of readiness that take traffic now.
    fn classes(&self, publish_not_ready: bool) -> &[[Vec<Endpoint>; DISTANCES]] {
        if publish_not_ready {
            return if self.is_empty() { &[] } else { &self.slices };
        }
        for class in [Readiness::Ready, Readiness::ServingTerminating] {
            let class = class as usize;
            if self.slices[class].iter().any(|slice| !slice.is_empty()) {
                return &self.slices[class..=class];
            }
        }
        &[]
    }
}

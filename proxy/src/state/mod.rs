//! The configuration in force. Deltas flow in ([`State::apply`]); answers to "what is this
//! address", "which routes", "which endpoint" flow out, for each new connection or request.
//!
//! Each resource is one entry that is replaced whole; indexes lead to it (address → workload,
//! address → Service, Service port → endpoints and tables), so applying a delta costs in
//! proportion to the delta. Readers take short read locks, one shard and one Service at most, and
//! allocate nothing but what they hand out.

mod apply;
mod by_address;
mod dump;
mod endpoints;
mod held;
mod intern;
mod resource;
mod service;
mod sharded;
mod tables;
mod unclaimed;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};
use weft_certs::{BundleSource, TrustBundle};

use self::{
    apply::{WorkloadEntry, Writer},
    by_address::{SLICE, Services, Workloads},
    endpoints::Nothing,
    service::{Known, ServiceEntry},
    sharded::Sharded,
    unclaimed::Unclaimed,
};
pub use self::{
    held::{Delta, Rejected, Resource},
    resource::{Kind, MeshSettings},
    tables::{Backend, BackendTarget, L4Rule, RouteTable, TcpRoutes, TlsRoutes},
};
use crate::{
    balance::{LoadGuard, load},
    model::{Family, Locality, Service, ServicePort, Workload},
};

/// The configuration in force. Shared as `Arc<State>`.
#[derive(Debug)]
pub struct State {
    locality: ArcSwap<Locality>,
    /// It was told its zone, and learns no other.
    zone_is_set: bool,
    workloads: Sharded<Arc<str>, Arc<WorkloadEntry>>,
    addresses: Sharded<IpAddr, Workloads>,
    unclaimed: Unclaimed,
    services: Sharded<Arc<str>, Arc<ServiceEntry>>,
    vips: Sharded<IpAddr, Services>,
    mesh: ArcSwap<MeshSettings>,
    writer: Mutex<Writer>,
    generation: watch::Sender<u64>,
}

/// What an address means to a client.
#[derive(Clone, Debug)]
pub enum Target {
    /// A port of a Service, at one of its own addresses.
    Service(ServiceTarget),
    /// A workload by its own address: never routed.
    Workload {
        /// The workload.
        workload: Arc<Workload>,
        /// The address and port that were asked for.
        address: SocketAddr,
    },
    /// A captured pod had the address until a moment ago, and who has it next is not known yet:
    /// not to be dialled.
    Lost,
    /// Nothing that the configuration knows: pass it through untouched.
    External,
}

/// A port of a Service, with the routes that apply to the client.
#[derive(Clone, Debug)]
pub struct ServiceTarget {
    /// The Service.
    pub service: Arc<Service>,
    /// The port.
    pub port: ServicePort,
    /// Its routes; `None`: balance over its endpoints as one TCP stream.
    pub table: Option<Arc<RouteTable>>,
}

/// A chosen endpoint.
#[derive(Debug)]
pub struct Picked {
    /// Whose it is.
    pub workload: Arc<Workload>,
    /// Pod address and target port.
    pub address: SocketAddr,
    /// Counts the request as in flight until it is dropped; takes what came of it.
    pub load: LoadGuard,
}

/// Why no endpoint was chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoEndpoint {
    /// The configuration has no such Service.
    #[error("service {0} is not known (was it deleted?)")]
    UnknownService(Box<str>),
    /// The Service has no such port.
    #[error("service {0} has no port {1}")]
    UnknownPort(Box<str>, u16),
    /// No endpoint takes traffic.
    #[error("service {0} port {1} has no ready endpoint")]
    NoneReady(Box<str>, u16),
    /// Those that take traffic were all excluded by the caller.
    #[error("every endpoint of service {0} port {1} was tried already")]
    AllExcluded(Box<str>, u16),
}

impl NoEndpoint {
    /// A bounded word for metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            Self::UnknownService(_) => "unknown_service",
            Self::UnknownPort(..) => "unknown_port",
            Self::NoneReady(..) => "no_endpoint",
            Self::AllExcluded(..) => "endpoints_exhausted",
        }
    }
}

impl State {
    /// Nothing known yet, seen from this place. Without a zone it is that of the node's workloads.
    pub fn new(locality: Locality) -> Arc<Self> {
        Arc::new(Self {
            zone_is_set: !locality.zone.is_empty(),
            locality: ArcSwap::from_pointee(locality),
            workloads: Sharded::default(),
            addresses: Sharded::default(),
            unclaimed: Unclaimed::default(),
            services: Sharded::default(),
            vips: Sharded::default(),
            mesh: ArcSwap::default(),
            writer: Mutex::default(),
            generation: watch::Sender::new(0),
        })
    }

    /// What `dst` means to a client of this namespace.
    pub fn resolve(&self, dst: SocketAddr, client_namespace: &str) -> Target {
        let ip = dst.ip().to_canonical();
        let service = self.vips.with(&ip, |all| {
            let known = all.first()?.known.read();
            // A port that the Service does not have is kube-proxy's to refuse.
            let (service, port) = known.declared(dst.port())?;
            Some(ServiceTarget {
                service: Arc::clone(service),
                port: port.clone(),
                table: known.table(dst.port(), client_namespace).cloned(),
            })
        });
        match service {
            Some(Some(service)) => Target::Service(service),
            Some(None) => Target::External,
            None => {
                let known = self.workload_by_address(ip);
                match known.or_else(|| self.unclaimed.here(ip)) {
                    Some(workload) => Target::Workload {
                        workload,
                        address: SocketAddr::new(ip, dst.port()),
                    },
                    None if self.unclaimed.is_lost(ip, Instant::now()) => Target::Lost,
                    None => Target::External,
                }
            }
        }
    }

    /// The captured pods of this node as the agent tells of them, for those that the
    /// configuration does not know yet.
    pub fn set_own_pods(&self, pods: HashMap<IpAddr, Arc<Workload>>) {
        self.unclaimed.set_here(pods);
    }

    /// The routes of a Service port (`<namespace>/<name>`) for clients of a namespace.
    pub fn route_table(
        &self,
        service: &str,
        port: u16,
        client_namespace: &str,
    ) -> Option<Arc<RouteTable>> {
        self.with_service(service, |known| {
            known.table(port, client_namespace).cloned()
        })?
    }

    /// A port of a Service by the Service's name.
    pub fn service_port(&self, service: &str, port: u16) -> Option<(Arc<Service>, ServicePort)> {
        self.with_service(service, |known| {
            let (service, port) = known.declared(port)?;
            Some((Arc::clone(service), port.clone()))
        })?
    }

    /// The workload with this address; none for a host's address, which says nothing.
    pub fn workload_by_address(&self, ip: IpAddr) -> Option<Arc<Workload>> {
        self.addresses
            .with(&ip.to_canonical(), |all| all.owner().cloned())?
    }

    /// A workload by its resource's name; for a pod `<namespace>/<name>/<uid>`.
    pub fn workload(&self, uid: &str) -> Option<Arc<Workload>> {
        self.workloads
            .with(uid, |entry| Arc::clone(&entry.workload))
    }

    /// Whether a connection that was made for this workload would be made in the same way now:
    /// same addresses, identity and tunnel. Idle connections to others are to be closed.
    pub fn is_current(&self, workload: &Workload) -> bool {
        self.workloads
            .with(&*workload.uid, |entry| {
                let now = &*entry.workload;
                now.captured == workload.captured
                    && now.sandbox == workload.sandbox
                    && now.capture_changes == workload.capture_changes
                    && now.identity == workload.identity
                    && now.addresses == workload.addresses
            })
            .unwrap_or(false)
    }

    /// Chooses an endpoint of a Service port (`<namespace>/<name>`) for a client that dialled an
    /// address of `family`: power of two choices by peak EWMA, among those ready and as near as
    /// the Service prefers, at their address of that family if they have one; never one of
    /// `exclude`.
    ///
    /// # Errors
    /// [`NoEndpoint`], if there is none to choose.
    pub fn pick(
        &self,
        service: &str,
        port: u16,
        family: Family,
        exclude: &[SocketAddr],
    ) -> Result<Picked, NoEndpoint> {
        let now = Instant::now();
        let picked = self.with_service(service, |known| {
            let Some((declared, _)) = known.declared(port) else {
                return Err(match known.service {
                    Some(_) => NoEndpoint::UnknownPort(service.into(), port),
                    None => NoEndpoint::UnknownService(service.into()),
                });
            };
            let endpoints = &known
                .port(port)
                .ok_or_else(|| NoEndpoint::NoneReady(service.into(), port))?
                .endpoints;
            let endpoint = endpoints
                .pick(
                    family,
                    declared.traffic_distribution,
                    declared.publish_not_ready,
                    load::millis(now),
                    exclude,
                    &mut rand::rng(),
                )
                .map_err(|nothing| match nothing {
                    Nothing::NoneReady => NoEndpoint::NoneReady(service.into(), port),
                    Nothing::AllExcluded => NoEndpoint::AllExcluded(service.into(), port),
                })?;
            Ok(Picked {
                workload: Arc::clone(&endpoint.workload),
                address: endpoint.targets.toward(family),
                load: endpoint.load.start(now),
            })
        });
        let mut picked =
            picked.unwrap_or_else(|| Err(NoEndpoint::UnknownService(service.into())))?;
        // An entry of a hand-written slice may be a pod's address: what the pod speaks counts.
        if picked.workload.uid.starts_with(SLICE)
            && let Some(owner) = self.workload_by_address(picked.address.ip())
        {
            picked.workload = owner;
        }
        Ok(picked)
    }

    /// What holds for the whole mesh.
    pub fn mesh(&self) -> Arc<MeshSettings> {
        self.mesh.load_full()
    }

    /// Where this proxy is.
    pub fn locality(&self) -> Arc<Locality> {
        self.locality.load_full()
    }

    /// Changes once after each applied delta: whoever depends on a workload (its mode, its
    /// tunnel) looks it up again.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Versions of the resources in force, by name: what a resumed stream names.
    pub fn versions(&self, kind: Kind) -> std::collections::HashMap<String, String> {
        let writer = self.writer.lock();
        let held = writer.held.of(kind).iter();
        held.map(|(name, held)| (name.to_string(), held.version.to_string()))
            .collect()
    }

    /// The resources in force as they were sent.
    pub fn resources(&self, kind: Kind) -> Vec<Resource> {
        let writer = self.writer.lock();
        let held = writer.held.of(kind).iter();
        held.map(|(name, held)| Resource {
            name: name.to_string(),
            version: held.version.to_string(),
            body: held.body.clone(),
        })
        .collect()
    }

    /// Number of resources in force.
    pub fn count(&self, kind: Kind) -> usize {
        self.writer.lock().held.of(kind).len()
    }

    fn with_service<R>(&self, service: &str, read: impl FnOnce(&Known) -> R) -> Option<R> {
        self.services
            .with(service, |entry| read(&entry.known.read()))
    }
}

/// Whoever holds the state verifies peers against the roots of this moment.
impl BundleSource for State {
    fn bundle(&self) -> Arc<TrustBundle> {
        Arc::clone(&self.mesh.load().trust_bundle)
    }
}

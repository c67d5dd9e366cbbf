//! Resources as the controller sends them flow in; the proxy's words for them flow out, or the
//! reason why one is malformed. Parsed once, here, so that nothing behind checks again.
//!
//! What a resource says of *other* resources is not checked (a table may name a Service that
//! comes later): what is in force must not depend on the order of arrival.

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use prost::Message;
use weft_api::{
    config::{self, AppProtocol, IpFamily, MtlsMode, TrafficDistribution, Tunnel},
    names,
};
use weft_certs::TrustBundle;

use super::{
    endpoints::{Readiness, Targets},
    intern::Interner,
    tables::{RouteTable, TableKey},
};
use crate::model::{Family, Service, ServiceName, ServicePort, Workload};

/// The types of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// [`config::MeshConfig`].
    MeshConfig,
    /// [`config::Service`].
    Service,
    /// [`config::Workload`].
    Workload,
    /// [`config::RouteTable`].
    RouteTable,
}

impl Kind {
    /// All, in the order in which a proxy subscribes.
    pub const ALL: [Self; 4] = [
        Self::MeshConfig,
        Self::Service,
        Self::Workload,
        Self::RouteTable,
    ];

    /// The xDS type.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::MeshConfig => names::TYPE_MESH_CONFIG,
            Self::Service => names::TYPE_SERVICE,
            Self::Workload => names::TYPE_WORKLOAD,
            Self::RouteTable => names::TYPE_ROUTE_TABLE,
        }
    }

    /// From the xDS type.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// For metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::MeshConfig => "mesh_config",
            Self::Service => "service",
            Self::Workload => "workload",
            Self::RouteTable => "route_table",
        }
    }
}

/// What holds for the whole mesh.
#[derive(Clone, Debug)]
pub struct MeshSettings {
    /// Trust domain of this mesh's identities.
    pub trust_domain: Arc<str>,
    /// DNS suffix of Services.
    pub cluster_domain: Arc<str>,
    /// Every root that is trusted now; none until the configuration came.
    pub trust_bundle: Arc<TrustBundle>,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            trust_domain: names::DEFAULT_TRUST_DOMAIN.into(),
            cluster_domain: names::DEFAULT_CLUSTER_DOMAIN.into(),
            trust_bundle: Arc::default(),
        }
    }
}

/// A workload's place in one Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Membership {
    pub(super) service: ServiceName,
    pub(super) port: u16,
    pub(super) targets: Targets,
    pub(super) readiness: Readiness,
}

pub(super) fn decode<M: Message + Default>(body: Bytes) -> Result<M, String> {
    M::decode(body).map_err(|e| format!("not decodable: {e}"))
}

pub(super) fn workload(
    name: &str,
    from: &config::Workload,
    texts: &mut Interner,
) -> Result<(Workload, Vec<Membership>), String> {
    if !from.uid.is_empty() && from.uid != name {
        return Err(format!(
            "uid {:?} differs from the resource's name",
            from.uid
        ));
    }
    if from.namespace.is_empty() {
        return Err("namespace is empty".into());
    }
    let hbone = match Tunnel::try_from(from.tunnel) {
        Ok(Tunnel::None) => false,
        Ok(Tunnel::Hbone) => true,
        Err(_) => return Err(format!("tunnel {} is unknown", from.tunnel)),
    };
    if hbone && (from.trust_domain.is_empty() || from.service_account.is_empty()) {
        return Err("captured, but without the identity to expect of it".into());
    }
    if hbone && from.host_network {
        return Err("captured, but on the host's network".into());
    }
    let addresses = addresses(&from.addresses)?;
    let memberships = memberships(&from.endpoints, &addresses, texts)?;
    let identity = if from.trust_domain.is_empty() || from.service_account.is_empty() {
        String::new()
    } else {
        format!(
            "spiffe://{}/ns/{}/sa/{}",
            from.trust_domain, from.namespace, from.service_account
        )
    };
    let owner = if from.owner_name.is_empty() {
        &from.name
    } else {
        &from.owner_name
    };
    let workload = Workload {
        uid: name.into(),
        name: from.name.as_str().into(),
        namespace: texts.get(&from.namespace),
        service_account: texts.get(&from.service_account),
        identity: texts.get(&identity),
        node: texts.get(&from.node),
        zone: texts.get(&from.zone),
        owner: texts.get(owner),
        version: texts.get(&from.version),
        addresses,
        host_network: from.host_network,
        captured: hbone,
        sandbox: texts.get(&from.sandbox),
        capture_changes: 0,
        mtls: MtlsMode::try_from(from.mtls)
            .map_err(|_| format!("mtls mode {} is unknown", from.mtls))?,
    };
    Ok((workload, memberships))
}

fn memberships(
    from: &[config::Endpoint],
    addresses: &[IpAddr],
    texts: &mut Interner,
) -> Result<Vec<Membership>, String> {
    let mut all: Vec<Membership> = Vec::new();
    for endpoint in from {
        let service = texts.get(service_name(&endpoint.service)?);
        let readiness = match (endpoint.ready, endpoint.serving, endpoint.terminating) {
            (true, ..) => Readiness::Ready,
            (false, true, true) => Readiness::ServingTerminating,
            _ => Readiness::NotReady,
        };
        let families = families(&endpoint.families)?;
        let in_service = |ip: &IpAddr| families.is_empty() || families.contains(&Family::of(*ip));
        for ports in &endpoint.ports {
            let (number, target) = (port(ports.service_port)?, port(ports.target_port)?);
            let addresses = addresses.iter().copied().filter(in_service);
            // Without an address there is nothing to dial yet.
            let Some(targets) = Targets::new(addresses, target) else {
                continue;
            };
            let membership = Membership {
                service: Arc::clone(&service),
                port: number,
                targets,
                readiness,
            };
            // A pod may be in two slices of a Service for a moment: the first counts.
            let same = |m: &Membership| m.service == service && m.port == membership.port;
            if !all.iter().any(same) {
                all.push(membership);
            }
        }
    }
    Ok(all)
}

fn families(from: &[i32]) -> Result<Vec<Family>, String> {
    let family = |number: &i32| match IpFamily::try_from(*number) {
        Ok(IpFamily::Ipv4) => Ok(Family::V4),
        Ok(IpFamily::Ipv6) => Ok(Family::V6),
        Ok(IpFamily::Unspecified) | Err(_) => Err(format!("ip family {number} is unknown")),
    };
    from.iter().map(family).collect()
}

pub(super) fn service(name: &str, from: &config::Service) -> Result<Service, String> {
    if name != format!("{}/{}", from.namespace, from.name) {
        return Err(format!(
            "it is {}/{}, which differs from the resource's name",
            from.namespace, from.name
        ));
    }
    let mut ports: Vec<ServicePort> = Vec::with_capacity(from.ports.len());
    for p in &from.ports {
        let number = port(p.port)?;
        // The same number with another transport (UDP) may come twice: the first counts.
        if ports.iter().any(|known| known.port == number) {
            continue;
        }
        ports.push(ServicePort {
            port: number,
            name: p.name.as_str().into(),
            protocol: AppProtocol::try_from(p.protocol)
                .map_err(|_| format!("protocol {} of port {number} is unknown", p.protocol))?,
        });
    }
    Ok(Service {
        name: service_name(name)?.into(),
        vips: addresses(&from.vips)?,
        ports,
        traffic_distribution: TrafficDistribution::try_from(from.traffic_distribution).map_err(
            |_| {
                format!(
                    "traffic distribution {} is unknown",
                    from.traffic_distribution
                )
            },
        )?,
        publish_not_ready: from.publish_not_ready,
    })
}

pub(super) fn route_table(
    name: &str,
    from: &config::RouteTable,
) -> Result<(TableKey, RouteTable), String> {
    let key = TableKey {
        service: service_name(&from.service)?.into(),
        port: port(from.port)?,
        client_namespace: from.client_namespace.as_str().into(),
    };
    if name != key.to_string() {
        return Err(format!(
            "it is {key}, which differs from the resource's name"
        ));
    }
    Ok((key, RouteTable::parse(from)?))
}

pub(super) fn mesh(name: &str, from: &config::MeshConfig) -> Result<MeshSettings, String> {
    if name != names::MESH_CONFIG_NAME {
        return Err(format!("only {:?} is known", names::MESH_CONFIG_NAME));
    }
    if from.trust_domain.is_empty() {
        return Err("trust domain is empty".into());
    }
    if from.trust_bundle.is_empty() {
        return Err("trust bundle is empty: nobody could be trusted".into());
    }
    Ok(MeshSettings {
        trust_domain: from.trust_domain.as_str().into(),
        cluster_domain: from.cluster_domain.as_str().into(),
        trust_bundle: Arc::new(
            TrustBundle::from_ders(&from.trust_bundle).map_err(|e| e.to_string())?,
        ),
    })
}

pub(super) fn port(number: u32) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("port {number} is not in 1..=65535")),
    }
}

/// Checks for `<namespace>/<name>`.
pub(super) fn service_name(name: &str) -> Result<&str, String> {
    match name.split_once('/') {
        Some((ns, svc)) if !ns.is_empty() && !svc.is_empty() && !svc.contains('/') => Ok(name),
        _ => Err(format!("service {name:?} is not namespace/name")),
    }
}

fn addresses(from: &[Bytes]) -> Result<Vec<IpAddr>, String> {
    from.iter().map(|bytes| address(bytes)).collect()
}

fn address(bytes: &[u8]) -> Result<IpAddr, String> {
    let ip = if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        IpAddr::from(v4)
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        IpAddr::from(v6).to_canonical()
    } else {
        return Err(format!(
            "address of {} bytes (4 or 16 expected)",
            bytes.len()
        ));
    };
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(format!("{ip} is no endpoint's address"));
    }
    Ok(ip)
}

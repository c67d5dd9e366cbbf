//! EndpointSlices: which workloads stand behind which port of a Service.
//!
//! Flows in: EndpointSlice objects, the Services they belong to, the pods they name. Flows out: the
//! memberships of each workload, and Workload resources for endpoints that are no pods.

use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU16};

use serde::Deserialize;
use serde_json::Value;
use weft_api::config::{Endpoint, EndpointPort, IpFamily, Workload};

use super::{
    objects::{Metadata, NamespacedName, address, octets, or_default, read},
    services::{Form, Service},
};

/// What an endpoint turns out to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum WorkloadKey {
    Pod(NamespacedName),
    /// An address that belongs to no pod.
    Address {
        slice: NamespacedName,
        address: IpAddr,
    },
}

/// An EndpointSlice, as far as the compiler reads it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Slice {
    pub(super) service: NamespacedName,
    pub(super) endpoints: Vec<SliceEndpoint>,
    ports: Vec<SlicePort>,
}

/// An entry of `endpoints`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SliceEndpoint {
    pub(super) addresses: Vec<IpAddr>,
    /// The pod, if the slice names one.
    pub(super) pod: Option<NamespacedName>,
    node: String,
    zone: String,
    ready: bool,
    serving: bool,
    terminating: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct SlicePort {
    name: String,
    number: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawSlice {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    address_type: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    endpoints: Vec<RawEndpoint>,
    #[serde(default, deserialize_with = "or_default")]
    ports: Vec<RawPort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEndpoint {
    #[serde(default, deserialize_with = "or_default")]
    addresses: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    conditions: RawConditions,
    target_ref: Option<RawTarget>,
    node_name: Option<String>,
    zone: Option<String>,
}

#[derive(Default, Deserialize)]
struct RawConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Deserialize)]
struct RawTarget {
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
struct RawPort {
    name: Option<String>,
    port: Option<NonZeroU16>,
    protocol: Option<String>,
}

impl Slice {
    /// Reads an EndpointSlice object; `None` if it belongs to no Service or has no addresses
    /// that can be dialled.
    pub(super) fn read(key: &NamespacedName, value: &Value) -> Result<Option<Self>, String> {
        let raw: RawSlice = read(value)?;
        let Some(service) = raw.metadata.labels.get("kubernetes.io/service-name") else {
            return Ok(None);
        };
        if raw.address_type.as_deref() == Some("FQDN") {
            return Ok(None);
        }
        let namespace = &key.namespace;
        Ok(Some(Self {
            service: NamespacedName::new(namespace, service),
            endpoints: raw
                .endpoints
                .into_iter()
                .map(|endpoint| SliceEndpoint::read(namespace, endpoint))
                .collect::<Result<_, _>>()?,
            ports: raw
                .ports
                .into_iter()
                .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
                .filter_map(|port| {
                    Some(SlicePort {
                        name: port.name.unwrap_or_default(),
                        number: port.port?.get(),
                    })
                })
                .collect(),
        }))
    }

    /// The memberships that this slice gives, by workload. `resolve` says which pod an endpoint is:
    /// `Ok(None)` if it is none, `Err` if it names one that is not there.
    pub(super) fn members(
        &self,
        key: &NamespacedName,
        service: Option<&Service>,
        mut resolve: impl FnMut(&SliceEndpoint, IpAddr) -> Resolved,
    ) -> BTreeMap<WorkloadKey, Member> {
        let mut members = BTreeMap::<WorkloadKey, Member>::new();
        let Some(service) = service.filter(|service| service.form != Form::ExternalName) else {
            return members;
        };
        let ports: Vec<EndpointPort> = service
            .tcp_ports()
            .filter_map(|port| {
                let found = self.ports.iter().find(|p| p.name == port.name)?;
                Some(EndpointPort {
                    service_port: port.number.into(),
                    target_port: found.number.into(),
                })
            })
            .collect();
        for endpoint in &self.endpoints {
            for &address in &endpoint.addresses {
                let workload = match resolve(endpoint, address) {
                    Resolved::Pod(pod) => WorkloadKey::Pod(pod),
                    Resolved::NoPod => WorkloadKey::Address {
                        slice: key.clone(),
                        address,
                    },
                    Resolved::Gone => continue,
                };
                let member = Member {
                    endpoint: Endpoint {
                        service: self.service.to_string(),
                        ports: ports.clone(),
                        ready: endpoint.ready,
                        serving: endpoint.serving,
                        terminating: endpoint.terminating,
                        families: vec![family(address).into()],
                    },
                    node: endpoint.node.clone(),
                    zone: endpoint.zone.clone(),
                };
                members
                    .entry(workload)
                    .and_modify(|known| merge(&mut known.endpoint, &member.endpoint))
                    .or_insert(member);
            }
        }
        members
    }
}

/// What an address in a slice is.
pub(super) enum Resolved {
    Pod(NamespacedName),
    NoPod,
    /// Of a pod that is not there, or no longer has that address.
    Gone,
}

/// A workload's membership through one slice.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Member {
    pub(super) endpoint: Endpoint,
    node: String,
    zone: String,
}

impl Member {
    /// The Workload resource of an endpoint that is no pod, without endpoints.
    pub(super) fn workload(&self, slice: &NamespacedName, address: &IpAddr) -> Workload {
        Workload {
            uid: format!("slice/{slice}/{address}"),
            name: address.to_string(),
            namespace: slice.namespace.clone(),
            node: self.node.clone(),
            zone: self.zone.clone(),
            owner_kind: "EndpointSlice".into(),
            owner_name: slice.name.clone(),
            addresses: vec![octets(address)],
            ..Workload::default()
        }
    }
}

fn family(address: IpAddr) -> IpFamily {
    match address {
        IpAddr::V4(_) => IpFamily::Ipv4,
        IpAddr::V6(_) => IpFamily::Ipv6,
    }
}

/// A membership in all the families that the workload has is in no family in particular: what says
/// nothing costs nothing.
pub(super) fn forget_families(workload: &mut Workload) {
    const V4: usize = 4;
    let has = |family: i32| {
        let v4 = family == i32::from(IpFamily::Ipv4);
        workload.addresses.iter().any(|a| (a.len() == V4) == v4)
    };
    let all = [IpFamily::Ipv4, IpFamily::Ipv6].map(i32::from);
    let own: Vec<i32> = all.into_iter().filter(|family| has(*family)).collect();
    for endpoint in &mut workload.endpoints {
        if own.iter().all(|family| endpoint.families.contains(family)) {
            endpoint.families.clear();
        }
    }
}

/// Adds a membership, of which there is one per Service however many slices tell it: those of a
/// second family, too, make it no second endpoint.
pub(super) fn add(endpoints: &mut Vec<Endpoint>, more: &Endpoint) {
    match endpoints
        .iter_mut()
        .find(|known| known.service == more.service)
    {
        Some(known) => merge(known, more),
        None => endpoints.push(more.clone()),
    }
}

/// While an endpoint moves between slices it may be in two of them, one of which is stale: the one
/// that says it can be used wins, since a passive health check finds out if that is wrong.
fn merge(known: &mut Endpoint, more: &Endpoint) {
    for port in &more.ports {
        if !known.ports.contains(port) {
            known.ports.push(*port);
        }
    }
    known
        .ports
        .sort_by_key(|port| (port.service_port, port.target_port));
    known.families.extend(&more.families);
    known.families.sort_unstable();
    known.families.dedup();
    known.ready |= more.ready;
    known.serving |= more.serving;
    known.terminating &= more.terminating;
}

impl SliceEndpoint {
    fn read(namespace: &str, raw: RawEndpoint) -> Result<Self, String> {
        let address = |text: &String| address(text).map_err(|error| format!("endpoints: {error}"));
        let pod = raw
            .target_ref
            .filter(|target| target.kind.as_deref() == Some("Pod"));
        // Absent means ready: the API says to read "unknown" so.
        let ready = raw.conditions.ready.unwrap_or(true);
        Ok(Self {
            addresses: raw
                .addresses
                .iter()
                .map(address)
                .collect::<Result<_, _>>()?,
            pod: pod.and_then(|target| {
                let namespace = target.namespace.unwrap_or_else(|| namespace.into());
                Some(NamespacedName::new(namespace, target.name?))
            }),
            node: raw.node_name.unwrap_or_default(),
            zone: raw.zone.unwrap_or_default(),
            ready,
            serving: raw.conditions.serving.unwrap_or(ready),
            terminating: raw.conditions.terminating.unwrap_or(false),
        })
    }
}

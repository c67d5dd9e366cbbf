//! Tests of the state. Resources are built here as the controller would send them.

mod interleaving;
mod lookups;
mod picks;
mod validation;

use std::{net::IpAddr, sync::Arc};

use bytes::Bytes;
use prost::Message;
use weft_api::config::{
    self, AppProtocol, Endpoint, EndpointPort, Service, ServicePort, TrafficDistribution, Tunnel,
    Workload, backend, route_table::Table,
};

use super::{Delta, Kind, Rejected, Resource, State};
use crate::model::{Family, Locality};

pub(super) fn state() -> Arc<State> {
    State::new(Locality {
        node: "node-a".into(),
        zone: "zone-1".into(),
    })
}

pub(super) fn bytes(ip: &str) -> Bytes {
    match ip.parse().expect("an address") {
        IpAddr::V4(v4) => Bytes::copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => Bytes::copy_from_slice(&v6.octets()),
    }
}

/// `shop/<pod>/uid`, ready, behind port 80 of each Service with target port 8080.
pub(super) fn pod(name: &str, ip: &str, services: &[&str]) -> Workload {
    Workload {
        uid: format!("shop/{name}/uid"),
        name: name.into(),
        namespace: "shop".into(),
        service_account: "default".into(),
        trust_domain: "cluster.local".into(),
        node: "node-b".into(),
        zone: "zone-2".into(),
        owner_name: "deployment".into(),
        addresses: vec![bytes(ip)],
        endpoints: services
            .iter()
            .map(|service| Endpoint {
                service: (*service).into(),
                ports: vec![EndpointPort {
                    service_port: 80,
                    target_port: 8080,
                }],
                ready: true,
                serving: true,
                terminating: false,
                families: Vec::new(),
            })
            .collect(),
        ..Workload::default()
    }
}

pub(super) fn captured(mut workload: Workload) -> Workload {
    workload.tunnel = Tunnel::Hbone.into();
    workload.sandbox = "sandbox-1".into();
    workload
}

/// `<ns>/<name>` with port 80.
pub(super) fn service(name: &str, vips: &[&str]) -> Service {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    Service {
        namespace: namespace.into(),
        name: name.into(),
        vips: vips.iter().map(|vip| bytes(vip)).collect(),
        ports: vec![ServicePort {
            port: 80,
            name: "http".into(),
            protocol: AppProtocol::Http.into(),
        }],
        traffic_distribution: TrafficDistribution::Any.into(),
        publish_not_ready: false,
    }
}

/// A TCP table whose route bears `route` as its name.
pub(super) fn table(service: &str, client_namespace: &str, route: &str) -> config::RouteTable {
    config::RouteTable {
        service: service.into(),
        port: 80,
        client_namespace: client_namespace.into(),
        table: Some(Table::Tcp(config::TcpTable {
            rule: Some(config::TcpRule {
                route: Some(config::RouteRef {
                    kind: "TCPRoute".into(),
                    namespace: "shop".into(),
                    name: route.into(),
                    ..config::RouteRef::default()
                }),
                backends: vec![config::Backend {
                    weight: 1,
                    target: Some(backend::Target::Service(config::ServiceTarget {
                        service: service.into(),
                        port: 80,
                    })),
                    ..config::Backend::default()
                }],
            }),
        })),
        sniff: false,
    }
}

pub(super) fn resource(name: &str, message: &impl Message) -> Resource {
    let body = Bytes::from(message.encode_to_vec());
    Resource {
        name: name.into(),
        // Equal bodies, equal versions: as a controller that hashes does it.
        version: format!(
            "{:x}",
            body.iter()
                .fold(7u64, |h, b| h.wrapping_mul(31) + u64::from(*b))
        ),
        body,
    }
}

pub(super) fn set(state: &State, kind: Kind, resources: Vec<Resource>) -> Vec<Rejected> {
    state.apply(Delta {
        kind,
        updated: resources,
        removed: Vec::new(),
    })
}

pub(super) fn remove(state: &State, kind: Kind, name: &str) {
    let rejected = state.apply(Delta {
        kind,
        updated: Vec::new(),
        removed: vec![name.into()],
    });
    assert_eq!(rejected, []);
}

pub(super) fn set_pods(state: &State, pods: &[Workload]) {
    let resources = pods.iter().map(|pod| resource(&pod.uid, pod)).collect();
    assert_eq!(set(state, Kind::Workload, resources), []);
}

pub(super) fn set_service(state: &State, service: &Service) {
    let name = format!("{}/{}", service.namespace, service.name);
    assert_eq!(
        set(state, Kind::Service, vec![resource(&name, service)]),
        []
    );
}

pub(super) fn set_table(state: &State, table: &config::RouteTable) {
    let name = table_name(table);
    assert_eq!(
        set(state, Kind::RouteTable, vec![resource(&name, table)]),
        []
    );
}

pub(super) fn table_name(table: &config::RouteTable) -> String {
    let at = if table.client_namespace.is_empty() {
        ""
    } else {
        "@"
    };
    format!(
        "{}/{}{at}{}",
        table.service, table.port, table.client_namespace
    )
}

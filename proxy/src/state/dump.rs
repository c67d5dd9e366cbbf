//! The configuration in force as JSON, for the admin interface's `/config`.

use prost::Message;
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::Instant;
use weft_api::config;

use super::{Kind, State, service::Port};
use crate::{
    balance::load,
    model::{Service, Workload},
};

impl State {
    /// Each resource with its version, and the refusals that stand. Costs as much as the
    /// configuration is big; readers are not stopped.
    pub fn dump(&self) -> Value {
        let mesh = self.mesh();
        json!({
            "generation": *self.generation.borrow(),
            "node": self.locality().node,
            "zone": self.locality().zone,
            "mesh": {
                "trust_domain": mesh.trust_domain,
                "cluster_domain": mesh.cluster_domain,
                "trusted_roots": mesh.trust_bundle.len(),
            },
            "versions": { "mesh_config": self.versions(Kind::MeshConfig) },
            "services": self.dump_kind(Kind::Service, |name, _| {
                self.with_service(name, |known| {
                    let mut shown = service(known.service.as_deref()?);
                    let ports = known.ports().map(|(number, port)| (number.to_string(), endpoints(port)));
                    shown["endpoints"] = Value::Object(ports.collect());
                    Some(shown)
                })?
            }),
            "workloads": self.dump_kind(Kind::Workload, |name, body| {
                let sent = config::Workload::decode(body).ok()?;
                Some(workload(&*self.workload(name)?, &sent.endpoints))
            }),
            "route_tables": self.dump_kind(Kind::RouteTable, |_, body| {
                serde_json::to_value(config::RouteTable::decode(body).ok()?).ok()
            }),
            "rejections": self.dump_rejections(),
        })
    }

    fn dump_kind(
        &self,
        kind: Kind,
        show: impl Fn(&str, &[u8]) -> Option<Value>,
    ) -> Map<String, Value> {
        self.resources(kind)
            .into_iter()
            .filter_map(|resource| {
                let mut shown = show(&resource.name, &resource.body)?;
                shown
                    .as_object_mut()?
                    .insert("resource_version".into(), resource.version.into());
                Some((resource.name, shown))
            })
            .collect()
    }

    fn dump_rejections(&self) -> Vec<Value> {
        let writer = self.writer.lock();
        let rejections = writer.held.rejections.iter();
        rejections
            .map(|((kind, name), standing)| {
                json!({
                    "kind": kind,
                    "name": name,
                    "version": standing.version,
                    "reason": standing.reason,
                    "time": OffsetDateTime::from(standing.at).format(&Rfc3339).ok(),
                    "in_force": writer.held.of(*kind).get(name.as_str()).map(|held| &*held.version),
                })
            })
            .collect()
    }
}

fn service(of: &Service) -> Value {
    let ports = of.ports.iter().map(|port| {
        json!({ "port": port.port, "name": port.name, "protocol": port.protocol.as_str_name() })
    });
    json!({
        "vips": of.vips,
        "ports": ports.collect::<Vec<_>>(),
        "traffic_distribution": of.traffic_distribution.as_str_name(),
        "publish_not_ready": of.publish_not_ready,
    })
}

fn endpoints(of: &Port) -> Value {
    let now = load::millis(Instant::now());
    let all = of.endpoints.iter().map(|(endpoint, readiness)| {
        json!({
            "addresses": endpoint.targets.iter().collect::<Vec<_>>(),
            "workload": endpoint.workload.uid,
            "readiness": readiness.label(),
            "in_flight": endpoint.load.in_flight(),
            "latency_us": endpoint.load.ewma().cost(),
            "ejected": endpoint.load.ejected(now),
        })
    });
    Value::Array(all.collect())
}

fn workload(of: &Workload, endpoints: &[config::Endpoint]) -> Value {
    json!({
        "name": of.name,
        "namespace": of.namespace,
        "identity": of.identity,
        "node": of.node,
        "zone": of.zone,
        "owner": of.owner,
        "version": of.version,
        "addresses": of.addresses,
        "host_network": of.host_network,
        "captured": of.captured,
        "sandbox": of.sandbox,
        "mtls": of.mtls.as_str_name(),
        "endpoints": endpoints,
    })
}

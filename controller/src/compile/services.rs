//! Services: addresses, ports, and what each port is declared to speak.
//!
//! Flows in: Service objects. Flows out: Service resources, and for the routes the ports' protocols.

use std::{net::IpAddr, num::NonZeroU16};

use serde::Deserialize;
use serde_json::Value;
use weft_api::config::{self, AppProtocol, TrafficDistribution};

use super::objects::{NamespacedName, address, octets, or_default, read};

/// A Service, as far as the compiler reads it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Service {
    pub(super) form: Form,
    pub(super) ports: Vec<Port>,
    vips: Vec<IpAddr>,
    distribution: TrafficDistribution,
    publish_not_ready: bool,
}

/// Where a Service's frontend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// At addresses of its own.
    ClusterIp,
    /// Nowhere: names resolve to the pods.
    Headless,
    /// Nowhere: the name is an alias of another.
    ExternalName,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Port {
    pub(super) number: u16,
    pub(super) name: String,
    /// `TCP`, `UDP`, `SCTP`.
    pub(super) transport: String,
    /// `appProtocol` says ws: HTTP/1.1, but never a gRPC server.
    pub(super) websocket: bool,
    pub(super) protocol: AppProtocol,
}

#[derive(Deserialize)]
struct RawService {
    #[serde(default)]
    spec: RawServiceSpec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawServiceSpec {
    #[serde(rename = "type")]
    type_: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", deserialize_with = "or_default")]
    cluster_ips: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    ports: Vec<RawPort>,
    traffic_distribution: Option<String>,
    publish_not_ready_addresses: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPort {
    port: NonZeroU16,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    protocol: Option<String>,
    #[serde(default)]
    app_protocol: Option<String>,
}

impl Service {
    /// Reads a Service object.
    pub(super) fn read(value: &Value) -> Result<Self, String> {
        let RawService { spec } = read(value)?;
        let listed: Vec<&String> = spec
            .cluster_ips
            .iter()
            .chain(&spec.cluster_ip)
            .filter(|ip| !ip.is_empty())
            .collect();
        let form = if spec.type_.as_deref() == Some("ExternalName") {
            Form::ExternalName
        } else if listed.iter().any(|ip| *ip == "None") {
            Form::Headless
        } else {
            Form::ClusterIp
        };
        let mut vips = Vec::new();
        if form == Form::ClusterIp {
            for text in listed {
                let vip = address(text).map_err(|error| format!("spec.clusterIPs: {error}"))?;
                if !vips.contains(&vip) {
                    vips.push(vip);
                }
            }
        }
        Ok(Self {
            form,
            ports: spec.ports.into_iter().map(Port::from).collect(),
            vips,
            distribution: match spec.traffic_distribution.as_deref() {
                Some("PreferClose" | "PreferSameZone") => TrafficDistribution::PreferSameZone,
                Some("PreferSameNode") => TrafficDistribution::PreferSameNode,
                _ => TrafficDistribution::Any,
            },
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
        })
    }

    /// The ports that weft carries.
    pub(super) fn tcp_ports(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter().filter(|port| port.is_tcp())
    }

    /// The Service resource; an ExternalName has neither address nor endpoints, and so none.
    pub(super) fn resource(&self, key: &NamespacedName) -> Option<config::Service> {
        (self.form != Form::ExternalName).then(|| config::Service {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            vips: self.vips.iter().map(octets).collect(),
            ports: self
                .tcp_ports()
                .map(|port| config::ServicePort {
                    port: port.number.into(),
                    name: port.name.clone(),
                    protocol: port.protocol.into(),
                })
                .collect(),
            traffic_distribution: self.distribution.into(),
            publish_not_ready: self.publish_not_ready,
        })
    }
}

impl Port {
    /// Whether weft carries it at all.
    pub(super) fn is_tcp(&self) -> bool {
        self.transport == "TCP"
    }

    /// Whether it is declared to speak HTTP of some version.
    pub(super) fn is_http(&self) -> bool {
        matches!(self.protocol, AppProtocol::Http | AppProtocol::H2c)
    }
}

impl From<RawPort> for Port {
    fn from(raw: RawPort) -> Self {
        let name = raw.name.unwrap_or_default();
        let app_protocol = raw.app_protocol.filter(|text| !text.is_empty());
        Self {
            number: raw.port.get(),
            transport: raw.protocol.unwrap_or_else(|| "TCP".into()),
            websocket: app_protocol.as_deref() == Some("kubernetes.io/ws"),
            protocol: match app_protocol {
                Some(text) => by_app_protocol(&text),
                None => by_port_name(&name),
            },
            name,
        }
    }
}

/// An `appProtocol` that weft does not know declares nothing, whatever the port is called.
fn by_app_protocol(text: &str) -> AppProtocol {
    match text.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" | "ws" | "grpc-web" => AppProtocol::Http,
        "kubernetes.io/h2c" | "h2c" | "http2" | "grpc" => AppProtocol::H2c,
        "https" | "tls" | "kubernetes.io/wss" | "wss" => AppProtocol::Tls,
        "tcp" => AppProtocol::Tcp,
        _ => AppProtocol::Undeclared,
    }
}

/// The convention `<protocol>` or `<protocol>-<anything>`.
fn by_port_name(name: &str) -> AppProtocol {
    if name == "grpc-web" || name.starts_with("grpc-web-") {
        return AppProtocol::Http;
    }
    match name.split('-').next().unwrap_or_default() {
        "http" | "ws" => AppProtocol::Http,
        "http2" | "h2c" | "grpc" => AppProtocol::H2c,
        "https" | "tls" | "wss" => AppProtocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" | "postgres" | "postgresql" | "kafka" | "amqp"
        | "mqtt" => AppProtocol::Tcp,
        _ => AppProtocol::Undeclared,
    }
}

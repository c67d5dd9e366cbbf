//! parentRefs: which are ours, and which ports of the Service they reach.

use serde::Deserialize;
use serde_json::Value;
use weft_api::config::AppProtocol;

use super::{
    objects::{NamespacedName, read as read_value},
    routes::{GATEWAY_GROUP, RouteKind},
    services::{Form, Port, Service},
    status::Unattached,
};

/// A parentRef that names a Service.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ParentRef {
    /// As the user wrote it.
    pub(super) raw: Value,
    /// What it names, or why it can't be read.
    pub(super) target: Result<ParentTarget, String>,
}

/// What a parentRef names.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ParentTarget {
    pub(super) service: NamespacedName,
    /// The port's number.
    port: Option<u16>,
    /// The port's name.
    section: Option<String>,
}

/// The ports that a parentRef reaches.
#[derive(Debug, PartialEq)]
pub(super) struct Reach {
    pub(super) ports: Vec<u16>,
    /// Whether the route named the port: it then is what the route says.
    pub(super) explicit: bool,
    /// Ports that are declared to be something else.
    pub(super) left_out: Vec<u16>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawParentRef {
    namespace: Option<String>,
    name: String,
    port: Option<u16>,
    section_name: Option<String>,
}

/// Reads the parentRefs of a route in `namespace`, each alone. Those of other kinds are not ours.
pub(super) fn read(namespace: &str, entries: &[Value]) -> Vec<ParentRef> {
    let ours = |entry: &&Value| {
        let field = |name, default| match entry.get(name) {
            None | Some(Value::Null) => Some(default),
            Some(value) => value.as_str(),
        };
        matches!(field("group", GATEWAY_GROUP), Some("" | "core"))
            && field("kind", "Gateway") == Some("Service")
    };
    let read = |entry: &Value| ParentRef {
        raw: entry.clone(),
        target: read_value(entry).map(|raw: RawParentRef| ParentTarget {
            service: NamespacedName::new(raw.namespace.as_deref().unwrap_or(namespace), raw.name),
            port: raw.port,
            section: raw.section_name,
        }),
    };
    entries.iter().filter(ours).map(read).collect()
}

/// The ports of a Service that a route reaches through a parentRef.
pub(super) fn reach(
    target: &ParentTarget,
    kind: RouteKind,
    service: Option<&Service>,
) -> Result<Reach, Unattached> {
    let name = &target.service;
    let Some(service) = service else {
        return Err(Unattached::no_parent(format!(
            "Service {name} does not exist"
        )));
    };
    match service.form {
        Form::ClusterIp => {}
        Form::Headless => {
            let message = format!(
                "Service {name} is headless: its clients dial pods, which no route meets; \
                 give it a ClusterIP"
            );
            return Err(Unattached::unsupported(message));
        }
        Form::ExternalName => {
            let message = format!("Service {name} is an ExternalName: an alias has no routes");
            return Err(Unattached::unsupported(message));
        }
    }
    let explicit = target.port.is_some() || target.section.is_some();
    let (ports, left_out): (Vec<&Port>, Vec<&Port>) = service
        .tcp_ports()
        .filter(|port| target.port.is_none_or(|number| number == port.number))
        .filter(|port| {
            target
                .section
                .as_ref()
                .is_none_or(|name| *name == port.name)
        })
        .partition(|port| explicit || suits(kind, port));
    let numbers = |ports: Vec<&Port>| {
        ports
            .into_iter()
            .map(|port| port.number)
            .collect::<Vec<_>>()
    };
    if !ports.is_empty() {
        return Ok(Reach {
            ports: numbers(ports),
            explicit,
            left_out: numbers(left_out),
        });
    }
    Err(if left_out.is_empty() {
        let port = target
            .port
            .map(|number| format!(" {number}"))
            .unwrap_or_default();
        let section = target.section.as_ref().map(|name| format!(" named {name}"));
        let section = section.unwrap_or_default();
        Unattached::no_parent(format!("Service {name} has no TCP port{port}{section}"))
    } else {
        Unattached::unsupported(format!(
            "every port of Service {name} is declared not to speak what a {} routes; \
             name the port in the parentRef if it does",
            kind.as_str()
        ))
    })
}

/// Whether a route for all ports takes this one.
fn suits(kind: RouteKind, port: &Port) -> bool {
    match kind {
        RouteKind::Http | RouteKind::Grpc => {
            port.is_http() || port.protocol == AppProtocol::Undeclared
        }
        RouteKind::Tls => matches!(port.protocol, AppProtocol::Tls | AppProtocol::Undeclared),
        RouteKind::Tcp => true,
        RouteKind::Udp => false,
    }
}

//! backendRefs: what they say, and what they come to among the Services that exist.
//!
//! Flows in: the entries of a `backendRefs` list, undecoded; later the Services. Flows out: the
//! backends for the table, one that does not resolve as the share that fails, and why.
//! A Service of another namespace needs no ReferenceGrant: in a mesh every pod can dial it anyway.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use weft_api::config::{
    AppProtocol, Backend, HttpFilter, InvalidBackend, ServiceTarget, backend::Target,
};

use super::{
    filters::{self, Place},
    objects::{NamespacedName, read as read_value},
    routes::RouteKind,
    services::{Form, Service},
};

/// Most weight of one backendRef, by the standard.
const MAX_WEIGHT: u32 = 1_000_000;

/// An entry of `backendRefs`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct BackendRef {
    /// The Service; or the kind that is none.
    pub(super) service: Result<NamespacedName, String>,
    port: Option<u16>,
    pub(super) weight: u32,
    /// Or why its filters can't be executed.
    pub(super) filters: Result<Vec<HttpFilter>, String>,
}

/// Why a backendRef does not resolve, for the condition `ResolvedRefs`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RefProblem {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBackendRef {
    #[serde(default)]
    group: String,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    port: Option<u16>,
    weight: Option<u32>,
    filters: Option<Vec<Value>>,
}

impl BackendRef {
    /// Reads an entry of a route in `namespace`.
    pub(super) fn read(kind: RouteKind, namespace: &str, value: &Value) -> Result<Self, String> {
        let raw: RawBackendRef = read_value(value)?;
        let weight = raw.weight.unwrap_or(1);
        if weight > MAX_WEIGHT {
            return Err(format!("weight {weight} is more than {MAX_WEIGHT}"));
        }
        if raw.filters.is_some() && !kind.is_l7() {
            return Err(format!("a {}'s backendRefs have no filters", kind.as_str()));
        }
        let filters = filters::read(&raw.filters.unwrap_or_default(), kind, Place::Backend);
        let target = raw.kind.as_deref().unwrap_or("Service");
        let is_service = matches!(raw.group.as_str(), "" | "core") && target == "Service";
        Ok(Self {
            service: if is_service {
                let namespace = raw.namespace.as_deref().unwrap_or(namespace);
                Ok(NamespacedName::new(namespace, raw.name))
            } else {
                Err(format!("{target} {} of group `{}`", raw.name, raw.group))
            },
            port: raw.port,
            weight,
            filters: filters.map_err(|error| error.message),
        })
    }

    /// What the reference comes to. The problem is for `ResolvedRefs`: a filter that can't be
    /// executed fails the backend's share too, but is no reference.
    pub(super) fn resolve(
        &self,
        kind: RouteKind,
        services: &BTreeMap<NamespacedName, Service>,
    ) -> (Backend, Option<RefProblem>) {
        let (target, protocol, problem) = match self.target(kind, services) {
            Ok((target, protocol)) => (Target::Service(target), protocol, None),
            Err(problem) => {
                let invalid = invalid(problem.reason, &problem.message);
                (invalid, AppProtocol::Undeclared, Some(problem))
            }
        };
        let (target, filters) = match &self.filters {
            Ok(filters) => (target, filters.clone()),
            Err(message) => (invalid("UnsupportedValue", message), Vec::new()),
        };
        let weight = self.weight;
        (
            Backend {
                weight,
                target: Some(target),
                filters,
                protocol: protocol.into(),
            },
            problem,
        )
    }

    fn target(
        &self,
        kind: RouteKind,
        services: &BTreeMap<NamespacedName, Service>,
    ) -> Result<(ServiceTarget, AppProtocol), RefProblem> {
        let problem = |reason, message| RefProblem { reason, message };
        let name = self.service.as_ref().map_err(|other| {
            problem(
                "InvalidKind",
                format!("{other} is no backend that weft knows; name a Service"),
            )
        })?;
        let not_found = |message| problem("BackendNotFound", message);
        let service = services
            .get(name)
            .ok_or_else(|| not_found(format!("Service {name} does not exist")))?;
        if service.form == Form::ExternalName {
            let message = format!("Service {name} is an ExternalName and has no endpoints");
            return Err(problem("InvalidKind", message));
        }
        let number = self
            .port
            .ok_or_else(|| not_found(format!("no port is given of Service {name}")))?;
        let mut ports = service
            .ports
            .iter()
            .filter(|port| port.number == number)
            .peekable();
        if ports.peek().is_none() {
            return Err(not_found(format!("Service {name} has no port {number}")));
        }
        let unsupported = |what: &str| {
            let kind = kind.as_str();
            let message = format!("port {number} of Service {name} is {what}, no use to a {kind}");
            problem("UnsupportedProtocol", message)
        };
        let port = ports
            .find(|port| port.is_tcp())
            .ok_or_else(|| unsupported("not TCP"))?;
        let protocol = match (kind, port.protocol) {
            (RouteKind::Http | RouteKind::Grpc, AppProtocol::Tls) => {
                return Err(unsupported("declared TLS"));
            }
            (RouteKind::Grpc, _) if port.websocket => {
                return Err(unsupported("declared WebSocket"));
            }
            (RouteKind::Grpc, _) | (RouteKind::Http, AppProtocol::H2c) => AppProtocol::H2c,
            (RouteKind::Http, _) => AppProtocol::Http,
            _ => AppProtocol::Tcp,
        };
        Ok((
            ServiceTarget {
                service: name.to_string(),
                port: number.into(),
            },
            protocol,
        ))
    }
}

fn invalid(reason: &str, message: &str) -> Target {
    Target::Invalid(InvalidBackend {
        reason: reason.into(),
        message: message.into(),
    })
}

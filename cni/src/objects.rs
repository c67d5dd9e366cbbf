//! What the agent and the plugin need to know of Namespaces and Pods.
//!
//! Flows in: objects as JSON. Flows out: [`Desired`], whether a pod belongs into the mesh and how.
//! Everything is read tolerantly: what is missing or of the wrong type counts as not there.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use weft_api::names::{
    ANNOTATION_CAPTURED, CONDITION_CAPTURED, LABEL_MESH, LABEL_MTLS, MESH_DISABLED, MESH_ENABLED,
    MTLS_PERMISSIVE, SYSTEM_NAMESPACE,
};
use weft_source::{Event, Object, ObjectKey};

/// What a Namespace says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceFacts {
    mesh: Option<String>,
    mtls: Option<String>,
}

/// What a Pod says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Its UID; empty if it has none (yet).
    pub uid: String,
    /// Its service account.
    pub service_account: String,
    /// The sandbox that its annotation names as captured.
    pub captured: Option<String>,
    /// The addresses that the kubelet reports.
    pub addresses: Vec<IpAddr>,
    /// The condition by which the controller acknowledges.
    pub acknowledged: Option<Acknowledged>,
    node: String,
    mesh: Option<String>,
    mtls: Option<String>,
    host_network: bool,
    probe_ports: Vec<u16>,
}

impl PodFacts {
    /// Whether it is on this node, and has a network namespace of its own.
    pub fn may_be_captured(&self) -> bool {
        !self.node.is_empty() && !self.host_network
    }
}

/// The pod condition `weft.dev/Captured`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// `True` or `False`.
    pub captured: bool,
    /// Names the sandbox.
    pub message: String,
    /// Tells one acknowledgement from the one before.
    pub since: String,
}

/// How a pod should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Desired {
    /// In the mesh.
    pub captured: bool,
    /// Plaintext from other pods is refused.
    pub strict: bool,
    /// The pod's service account.
    pub service_account: String,
    /// Ports that the kubelet probes.
    pub probe_ports: Vec<u16>,
}

/// Namespaces whose pods start even if nobody can tell whether they belong into the mesh: without
/// them a node that is ill could never become well again.
pub fn is_exempt(namespace: &str) -> bool {
    namespace == "kube-system" || namespace == SYSTEM_NAMESPACE
}

/// How a pod should be; `None` while that can't be told, for the API does not know the pod.
pub fn desired(
    namespace: &str,
    namespace_facts: Option<&NamespaceFacts>,
    pod: Option<&PodFacts>,
) -> Option<Desired> {
    let enabled = namespace != SYSTEM_NAMESPACE
        && namespace_facts.is_some_and(|facts| facts.mesh.as_deref() == Some(MESH_ENABLED));
    let Some(pod) = pod else {
        return (!enabled).then(Desired::default);
    };
    let opted_out = pod.mesh.as_deref() == Some(MESH_DISABLED);
    let captured = enabled && !opted_out && !pod.host_network;
    let mtls = pod.mtls.as_ref();
    let mtls = mtls.or_else(|| namespace_facts.and_then(|facts| facts.mtls.as_ref()));
    Some(Desired {
        captured,
        // A value that nobody knows is taken for the safe one, as the controller takes it.
        strict: captured && mtls.is_some_and(|mode| mode != MTLS_PERMISSIVE),
        // A pod that leaves is served, and probed, to the end.
        service_account: pod.service_account.clone(),
        probe_ports: pod.probe_ports.clone(),
    })
}

/// Namespaces, and the pods of one node.
#[derive(Debug, Default)]
pub struct Objects {
    namespaces: HashMap<String, NamespaceFacts>,
    pods: HashMap<(String, String), PodFacts>,
}

impl Objects {
    /// Takes an event in; tells whether anything changed that matters on `node`.
    pub fn update(&mut self, node: &str, event: &Event) -> bool {
        match event {
            Event::Applied(object) => self.apply(node, object),
            Event::Deleted(key) if is_core(key, "Namespace") => {
                self.namespaces.remove(&key.name).is_some()
            }
            Event::Deleted(key) if is_core(key, "Pod") => self
                .pods
                .remove(&(key.namespace.clone(), key.name.clone()))
                .is_some(),
            _ => false,
        }
    }

    /// Takes an object in.
    pub fn apply(&mut self, node: &str, object: &Object) -> bool {
        let key = &object.key;
        if is_core(key, "Namespace") {
            let facts = namespace_facts(&object.value);
            self.namespaces.insert(key.name.clone(), facts.clone()) != Some(facts)
        } else if is_core(key, "Pod") {
            let facts = pod_facts(&object.value);
            let key = (key.namespace.clone(), key.name.clone());
            if !facts.node.is_empty() && facts.node != node {
                return self.pods.remove(&key).is_some();
            }
            self.pods.insert(key, facts.clone()) != Some(facts)
        } else {
            false
        }
    }

    /// A namespace.
    pub fn namespace(&self, name: &str) -> Option<&NamespaceFacts> {
        self.namespaces.get(name)
    }

    /// The pods of a node that are reported as captured: namespace, name, and the sandbox that the
    /// report names.
    pub fn reports<'a>(
        &'a self,
        node: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a str, &'a str)> + 'a {
        self.pods
            .iter()
            .filter_map(move |((namespace, name), facts)| {
                let named = facts.captured.as_deref().filter(|_| facts.node == node)?;
                Some((namespace.as_str(), name.as_str(), named))
            })
    }

    /// A pod; one of the same name and another UID is another pod.
    pub fn pod(&self, namespace: &str, name: &str, uid: &str) -> Option<&PodFacts> {
        let facts = self.pods.get(&(namespace.to_owned(), name.to_owned()))?;
        (uid.is_empty() || facts.uid.is_empty() || facts.uid == uid).then_some(facts)
    }
}

/// Key of a Namespace.
pub fn namespace_key(name: &str) -> ObjectKey {
    ObjectKey {
        group: String::new(),
        kind: "Namespace".into(),
        namespace: String::new(),
        name: name.into(),
    }
}

/// Key of a Pod.
pub fn pod_key(namespace: &str, name: &str) -> ObjectKey {
    ObjectKey {
        group: String::new(),
        kind: "Pod".into(),
        namespace: namespace.into(),
        name: name.into(),
    }
}

fn is_core(key: &ObjectKey, kind: &str) -> bool {
    key.group.is_empty() && key.kind == kind
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn metadata(object: &Value, map: &str, key: &str) -> Option<String> {
    object["metadata"][map][key].as_str().map(str::to_owned)
}

fn namespace_facts(object: &Value) -> NamespaceFacts {
    NamespaceFacts {
        mesh: metadata(object, "labels", LABEL_MESH),
        mtls: metadata(object, "labels", LABEL_MTLS),
    }
}

fn pod_facts(object: &Value) -> PodFacts {
    let spec = &object["spec"];
    let account = text(&spec["serviceAccountName"]);
    let conditions = object["status"]["conditions"].as_array();
    let acknowledged = conditions
        .and_then(|all| {
            all.iter()
                .find(|condition| condition["type"] == CONDITION_CAPTURED)
        })
        .map(|condition| Acknowledged {
            captured: condition["status"] != "False",
            message: text(&condition["message"]),
            since: text(&condition["lastTransitionTime"]),
        });
    PodFacts {
        uid: text(&object["metadata"]["uid"]),
        service_account: if account.is_empty() {
            "default".into()
        } else {
            account
        },
        captured: metadata(object, "annotations", ANNOTATION_CAPTURED),
        addresses: pod_ips(&object["status"]),
        acknowledged,
        node: text(&spec["nodeName"]),
        mesh: metadata(object, "labels", LABEL_MESH),
        mtls: metadata(object, "labels", LABEL_MTLS),
        host_network: spec["hostNetwork"] == true,
        probe_ports: probe_ports(spec),
    }
}

/// `status.podIPs`, of which `podIP` is the first.
fn pod_ips(status: &Value) -> Vec<IpAddr> {
    let all = status["podIPs"].as_array().into_iter().flatten();
    let mut ips: Vec<_> = std::iter::once(&status["podIP"])
        .chain(all.map(|ip| &ip["ip"]))
        .filter_map(|ip| ip.as_str()?.parse().ok())
        .collect();
    ips.sort_unstable();
    ips.dedup();
    ips
}

/// Ports that the kubelet opens connections to, for any kind of probe; names are looked up among
/// the container's ports.
fn probe_ports(spec: &Value) -> Vec<u16> {
    let mut ports = BTreeSet::new();
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array().into_iter().flatten() {
            for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
                for handler in ["httpGet", "tcpSocket", "grpc"] {
                    ports.extend(port_number(container, &container[probe][handler]["port"]));
                }
            }
        }
    }
    ports.into_iter().collect()
}

fn port_number(container: &Value, port: &Value) -> Option<u16> {
    let number = match port.as_str() {
        // Kubernetes takes a number in quotes for a number.
        Some(name) => name.parse().ok().or_else(|| {
            let named = container["ports"]
                .as_array()?
                .iter()
                .find(|port| port["name"] == name)?;
            named["containerPort"].as_u64()
        }),
        None => port.as_u64(),
    };
    u16::try_from(number?).ok().filter(|&port| port != 0)
}

#[cfg(test)]
mod tests;

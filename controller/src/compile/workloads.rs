//! Pods, and what a proxy must know of each: addresses, identity, tunnel, place and owner.
//!
//! Flows in: Pod, Node and Namespace objects. Flows out: a Workload resource per pod, still without
//! its memberships in Services (`endpoints` adds those).

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;
use serde_json::Value;
use weft_api::{
    config::{MtlsMode, Tunnel, Workload},
    names,
};

use super::objects::{Metadata, NamespacedName, address, octets, or_default, read};

/// A pod, as far as the compiler reads it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pod {
    pub(super) uid: String,
    pub(super) node: String,
    pub(super) service_account: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) host_network: bool,
    /// Succeeded or Failed: its address may belong to another pod by now.
    pub(super) finished: bool,
    sandbox: String,
    mtls: Option<MtlsMode>,
    owner: (String, String),
    app: String,
    version: String,
}

/// Where a node is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Locality {
    region: String,
    zone: String,
}

#[derive(Deserialize)]
struct RawPod {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    spec: RawPodSpec,
    #[serde(default, deserialize_with = "or_default")]
    status: RawPodStatus,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawPodSpec {
    node_name: Option<String>,
    service_account_name: Option<String>,
    host_network: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawPodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs", deserialize_with = "or_default")]
    pod_ips: Vec<RawPodIp>,
}

#[derive(Deserialize)]
struct RawPodIp {
    ip: String,
}

impl Pod {
    /// Reads a Pod object.
    pub(super) fn read(name: &str, value: &Value) -> Result<Self, String> {
        let RawPod {
            metadata,
            spec,
            status,
        } = read(value)?;
        let listed = status
            .pod_ips
            .iter()
            .map(|entry| &entry.ip)
            .chain(&status.pod_ip);
        let mut addresses: Vec<IpAddr> = Vec::new();
        for text in listed.filter(|text| !text.is_empty()) {
            let address = address(text).map_err(|error| format!("status.podIPs: {error}"))?;
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let label = |keys: [&str; 2]| {
            keys.iter()
                .find_map(|key| metadata.labels.get(*key))
                .cloned()
                .unwrap_or_default()
        };
        Ok(Self {
            node: spec.node_name.unwrap_or_default(),
            service_account: spec
                .service_account_name
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "default".into()),
            addresses,
            host_network: spec.host_network.unwrap_or_default(),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            sandbox: metadata
                .annotations
                .get(names::ANNOTATION_CAPTURED)
                .cloned()
                .unwrap_or_default(),
            mtls: mtls_label(&metadata.labels),
            owner: owner(name, &metadata),
            app: label(["app.kubernetes.io/name", "app"]),
            version: label(["app.kubernetes.io/version", "version"]),
            uid: metadata.uid,
        })
    }

    /// Whether connections can be addressed to it.
    pub(super) fn is_addressable(&self) -> bool {
        !self.finished && !self.addresses.is_empty()
    }

    /// Whether both can be told apart by nothing that resolves an endpoint to a pod.
    pub(super) fn resolves_like(&self, other: &Self) -> bool {
        self.addresses == other.addresses
            && self.finished == other.finished
            && self.host_network == other.host_network
    }

    /// The Workload resource, without endpoints.
    pub(super) fn workload(
        &self,
        key: &NamespacedName,
        locality: Option<&Locality>,
        namespace_mtls: Option<MtlsMode>,
        trust_domain: &str,
    ) -> Workload {
        let locality = locality.cloned().unwrap_or_default();
        // Captured is what the agent reports for this very sandbox, never what a label says. The
        // host's network namespace is never captured, whatever an annotation says.
        let sandbox = if self.host_network {
            String::new()
        } else {
            self.sandbox.clone()
        };
        let tunnel = if sandbox.is_empty() {
            Tunnel::None
        } else {
            Tunnel::Hbone
        };
        let mtls = self.mtls.or(namespace_mtls).unwrap_or(MtlsMode::Permissive);
        Workload {
            uid: self.resource_name(key),
            name: key.name.clone(),
            namespace: key.namespace.clone(),
            service_account: self.service_account.clone(),
            trust_domain: trust_domain.into(),
            node: self.node.clone(),
            region: locality.region,
            zone: locality.zone,
            owner_kind: self.owner.0.clone(),
            owner_name: self.owner.1.clone(),
            app: self.app.clone(),
            version: self.version.clone(),
            addresses: self.addresses.iter().map(octets).collect(),
            tunnel: tunnel.into(),
            sandbox,
            mtls: mtls.into(),
            host_network: self.host_network,
            endpoints: Vec::new(),
        }
    }

    fn resource_name(&self, key: &NamespacedName) -> String {
        format!("{key}/{}", self.uid)
    }
}

impl Locality {
    /// Reads a Node object's place.
    pub(super) fn read(value: &Value) -> Result<Self, String> {
        let mut labels = labels(value)?;
        let mut label = |key: &str| labels.remove(key).unwrap_or_default();
        Ok(Self {
            region: label("topology.kubernetes.io/region"),
            zone: label("topology.kubernetes.io/zone"),
        })
    }
}

/// Reads what a Namespace says about plaintext.
pub(super) fn namespace_mtls(value: &Value) -> Result<Option<MtlsMode>, String> {
    Ok(mtls_label(&labels(value)?))
}

/// Says so if an object's mTLS label has a value that is none of the two.
pub(super) fn mtls_caution(value: &Value) -> Option<String> {
    let labels = labels(value).ok()?;
    let mode = labels.get(names::LABEL_MTLS)?;
    (mode != names::MTLS_STRICT && mode != names::MTLS_PERMISSIVE).then(|| {
        format!(
            "label {} has the unknown value `{mode}`, which is read as {strict}; set {strict} or {}",
            names::LABEL_MTLS,
            names::MTLS_PERMISSIVE,
            strict = names::MTLS_STRICT,
        )
    })
}

/// An unknown value is strict: a spelling mistake must not open what was meant to be closed.
fn mtls_label(labels: &BTreeMap<String, String>) -> Option<MtlsMode> {
    labels
        .get(names::LABEL_MTLS)
        .map(|mode| match mode.as_str() {
            names::MTLS_PERMISSIVE => MtlsMode::Permissive,
            _ => MtlsMode::Strict,
        })
}

fn labels(value: &Value) -> Result<BTreeMap<String, String>, String> {
    let metadata: Metadata = value
        .get("metadata")
        .map_or(Ok(Metadata::default()), read)?;
    Ok(metadata.labels)
}

/// Kind and name of what made the pod: a Deployment for its ReplicaSets' pods.
fn owner(pod: &str, metadata: &Metadata) -> (String, String) {
    let references = &metadata.owner_references;
    let Some(owner) = references
        .iter()
        .find(|o| o.controller)
        .or(references.first())
    else {
        return ("Pod".into(), pod.into());
    };
    let hash = metadata.labels.get("pod-template-hash");
    let deployment = hash
        .filter(|_| owner.kind == "ReplicaSet")
        .and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    match deployment {
        Some(name) => ("Deployment".into(), name.into()),
        None => (owner.kind.clone(), owner.name.clone()),
    }
}

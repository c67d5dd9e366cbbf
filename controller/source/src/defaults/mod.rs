//! The defaults that the Kubernetes API server and the Gateway API CRDs (1.7) apply, for the kinds
//! that weft reads: an object in, the object as the API would show it out. Pure and idempotent.
//!
//! A field that is null counts as absent, as it does for CRDs. A field of a wrong type stays as it
//! is: whoever decodes the object says what is wrong with it.

mod core;
mod routes;

use serde_json::{Map, Value, json};

use crate::ObjectKey;

/// `creationTimestamp` of an object that states none: equally old, so that names decide between
/// two of them.
const EPOCH: &str = "1970-01-01T00:00:00Z";

/// Kinds without a namespace, of the groups that meet in a manifest beside those weft reads.
const CLUSTER_SCOPED: &[&str] = &[
    "APIService",
    "CSIDriver",
    "CSINode",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "GatewayClass",
    "IngressClass",
    "MutatingWebhookConfiguration",
    "Namespace",
    "Node",
    "PersistentVolume",
    "PriorityClass",
    "RuntimeClass",
    "StorageClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
    "VolumeAttachment",
    "XMesh",
];

/// Whether objects of this kind live outside namespaces.
pub fn is_cluster_scoped(kind: &str) -> bool {
    CLUSTER_SCOPED.contains(&kind)
}

/// Applies the API's defaults to an object. What is not an object with a kind and a name is left
/// as it is.
pub fn apply(value: &mut Value) {
    let Some(key) = key_of(value) else { return };
    let Value::Object(object) = value else { return };
    metadata(object, &key);
    match (key.group.as_str(), key.kind.as_str()) {
        ("", "Namespace") => core::namespace(object, &key.name),
        ("", "Pod") => core::pod(object),
        ("", "Service") => core::service(object),
        ("apps", "Deployment") => core::deployment(object),
        ("discovery.k8s.io", "EndpointSlice") => core::endpoint_slice(object),
        ("gateway.networking.k8s.io", "HTTPRoute") => routes::http(object),
        ("gateway.networking.k8s.io", "GRPCRoute") => routes::grpc(object),
        ("gateway.networking.k8s.io", "TCPRoute" | "TLSRoute" | "UDPRoute") => routes::l4(object),
        _ => {}
    }
}

/// The key of an object, with the namespace that the API would give it; none if kind, apiVersion or
/// name are missing.
pub(crate) fn key_of(value: &Value) -> Option<ObjectKey> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let api_version = text("/apiVersion")?;
    let kind = text("/kind")?;
    let name = text("/metadata/name")?;
    let namespace = if is_cluster_scoped(kind) {
        ""
    } else {
        text("/metadata/namespace")
            .filter(|n| !n.is_empty())
            .unwrap_or("default")
    };
    Some(ObjectKey {
        group: api_version
            .rsplit_once('/')
            .map_or("", |(group, _)| group)
            .to_owned(),
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

fn metadata(object: &mut Map<String, Value>, key: &ObjectKey) {
    let Some(metadata) = child(object, "metadata") else {
        return;
    };
    if key.namespace.is_empty() {
        metadata.remove("namespace");
    } else {
        metadata.insert("namespace".into(), json!(key.namespace));
    }
    default(metadata, "uid", json!(uid(key)));
    default(metadata, "creationTimestamp", json!(EPOCH));
    default(metadata, "generation", json!(1));
}

/// A UUID that is the same for the same key (FNV-1a over 128 bits, marked as a version 8 UUID).
fn uid(key: &ObjectKey) -> String {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let mut hash = OFFSET;
    for part in [&key.group, &key.kind, &key.namespace, &key.name] {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
        }
    }
    let hash = hash & !(0xf << 76) & !(0x3 << 62) | (8 << 76) | (2 << 62);
    let hex = format!("{hash:032x}");
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

// === what the kinds' defaults are written with ===

/// Sets a field that is absent or null.
fn default(object: &mut Map<String, Value>, field: &str, value: Value) {
    if object.get(field).is_none_or(Value::is_null) {
        object.insert(field.into(), value);
    }
}

/// The object in a field, if there is one.
fn child<'a>(
    object: &'a mut Map<String, Value>,
    field: &str,
) -> Option<&'a mut Map<String, Value>> {
    object.get_mut(field).and_then(Value::as_object_mut)
}

/// The object in a field, made if the field is absent or null.
fn child_or_new<'a>(
    object: &'a mut Map<String, Value>,
    field: &str,
) -> Option<&'a mut Map<String, Value>> {
    default(object, field, json!({}));
    child(object, field)
}

/// The objects of the list in a field.
fn each<'a>(
    object: &'a mut Map<String, Value>,
    field: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    object
        .get_mut(field)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
}

#[cfg(test)]
mod tests;

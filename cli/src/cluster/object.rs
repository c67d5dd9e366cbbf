//! Objects of the API as JSON, read tolerantly: what is missing or of the wrong type is not there.
//! Pure.

use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use weft_api::names::{
    ANNOTATION_CAPTURED, LABEL_MESH, MESH_DISABLED, MESH_ENABLED, SYSTEM_NAMESPACE,
};

/// A text by its JSON pointer; empty if there is none.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or("")
}

/// A number by its JSON pointer; 0 if there is none.
pub(crate) fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

/// A list by its JSON pointer; empty if there is none.
pub(crate) fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// A date by its JSON pointer.
pub(crate) fn date(object: &Value, pointer: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text(object, pointer), &Rfc3339).ok()
}

pub(crate) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub(crate) fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

/// `namespace/name`, or the name of what has no namespace.
pub(crate) fn full_name(object: &Value) -> String {
    match namespace(object) {
        "" => name(object).to_owned(),
        namespace => format!("{namespace}/{}", name(object)),
    }
}

pub(crate) fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get("labels")?.get(key)?.as_str()
}

pub(crate) fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    let annotations = object.get("metadata")?.get("annotations")?;
    annotations.get(key)?.as_str()
}

/// The status of a condition: `True`, `False`, `Unknown`, or nothing.
pub(crate) fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    list(object, "/status/conditions")
        .iter()
        .find(|condition| text(condition, "/type") == kind)
}

pub(crate) fn is_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|condition| text(condition, "/status") == "True")
}

/// Of a pod: ready, and not on its way out.
pub(crate) fn is_ready(pod: &Value) -> bool {
    !is_terminating(pod) && is_true(pod, "Ready")
}

pub(crate) fn is_terminating(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some()
}

/// Of a pod: it has run, or will never run (again).
pub(crate) fn is_over(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

pub(crate) fn node(pod: &Value) -> &str {
    text(pod, "/spec/nodeName")
}

pub(crate) fn on_host_network(pod: &Value) -> bool {
    pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true))
}

/// Whether a namespace's pods belong into the mesh.
pub(crate) fn is_enabled(namespace: &Value) -> bool {
    name(namespace) != SYSTEM_NAMESPACE && label(namespace, LABEL_MESH) == Some(MESH_ENABLED)
}

/// Whether a pod belongs into the mesh, given its namespace: as the agent reads it.
pub(crate) fn is_wanted(pod: &Value, namespace: &Value) -> bool {
    is_enabled(namespace)
        && label(pod, LABEL_MESH) != Some(MESH_DISABLED)
        && !on_host_network(pod)
        && !is_over(pod)
}

/// Whether the agent says that the pod is in the mesh.
pub(crate) fn is_captured(pod: &Value) -> bool {
    annotation(pod, ANNOTATION_CAPTURED).is_some_and(|sandbox| !sandbox.is_empty())
}

/// Whether a label selector of the API selects these labels. An empty one selects everything.
pub(crate) fn selects(selector: &Value, labels: Option<&Value>) -> bool {
    let value = |key: &str| {
        labels
            .and_then(|labels| labels.get(key))
            .and_then(Value::as_str)
    };
    let exact = selector.get("matchLabels").and_then(Value::as_object);
    let exact = exact.is_none_or(|all| {
        all.iter()
            .all(|(key, wanted)| value(key) == wanted.as_str())
    });
    exact
        && list(selector, "/matchExpressions")
            .iter()
            .all(|expression| {
                let found = value(text(expression, "/key"));
                let among = || {
                    let values = list(expression, "/values");
                    found.is_some_and(|found| values.iter().any(|one| one.as_str() == Some(found)))
                };
                match text(expression, "/operator") {
                    "In" => among(),
                    "NotIn" => !among(),
                    "Exists" => found.is_some(),
                    "DoesNotExist" => found.is_none(),
                    _ => false,
                }
            })
}

//! Conditions as the API shows them. Pure.

use serde_json::{Value, json};
use weft_api::names::{CONDITION_CAPTURED, CONDITION_PROGRAMMED, CONTROLLER_NAME};

use super::Standing;
use crate::compile::{Condition, ParentStatus};

/// What weft says that it supports: the features, as the conformance suite names them, whose tests it
/// passes. Sorted, as the API demands.
pub(super) const FEATURES: [&str; 17] = [
    "GRPCRoute",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteParentRefPort",
    "HTTPRouteResponseHeaderModification",
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
];

/// The most names that a message lists.
const LISTED: usize = 5;

/// A RouteParentStatus. Times of conditions whose status is as in `before` are kept.
pub(super) fn parent(
    status: &ParentStatus,
    generation: i64,
    standing: Option<&Standing>,
    before: &[Value],
    now: &str,
) -> Value {
    let same = |entry: &&Value| entry.get("parentRef") == Some(&status.parent_ref);
    let before = before
        .iter()
        .find(same)
        .and_then(|entry| entry.get("conditions")?.as_array());
    let refused = status
        .conditions
        .iter()
        .any(|c| c.type_ == "Accepted" && !c.status);
    let programmed = standing.map(|standing| match refused {
        // Its tables are those of an earlier version: of this one nothing is programmed.
        true => Condition {
            type_: CONDITION_PROGRAMMED.into(),
            status: false,
            reason: "LastGoodInForce".into(),
            message:
                "this version is not in force; the condition Accepted says why, and which one is"
                    .into(),
        },
        false => programmed(standing),
    });
    let conditions: Vec<Value> = status
        .conditions
        .iter()
        .chain(&programmed)
        .map(|condition| {
            let state = if condition.status { "True" } else { "False" };
            json!({
                "type": condition.type_,
                "status": state,
                "observedGeneration": generation,
                "lastTransitionTime": since(before, &condition.type_, state).unwrap_or(now),
                "reason": condition.reason,
                "message": condition.message,
            })
        })
        .collect();
    json!({
        "parentRef": status.parent_ref,
        "controllerName": CONTROLLER_NAME,
        "conditions": conditions,
    })
}

/// The condition `weft.dev/Captured` of a pod; the message is the sandbox and nothing else.
pub(super) fn captured(state: &str, sandbox: &str, now: &str) -> Value {
    let reason = match state {
        "Unknown" => "NotAcknowledged",
        _ => "Acknowledged",
    };
    json!({
        "type": CONDITION_CAPTURED,
        "status": state,
        "lastTransitionTime": now,
        "reason": reason,
        "message": sandbox,
    })
}

/// The status of an XMesh (GEP-3949), as far as it is ours.
pub(super) fn mesh(generation: i64, parameters: bool, before: &Value, now: &str) -> Value {
    let (state, reason, message) = match parameters {
        false => ("True", "Accepted", "weft is the mesh"),
        true => (
            "False",
            "InvalidParameters",
            "weft has no parameters; remove parametersRef",
        ),
    };
    let before = before.get("conditions").and_then(Value::as_array);
    let features = FEATURES.map(|name| json!({ "name": name }));
    json!({
        "conditions": [{
            "type": "Accepted",
            "status": state,
            "observedGeneration": generation,
            "lastTransitionTime": since(before, "Accepted", state).unwrap_or(now),
            "reason": reason,
            "message": message,
        }],
        "supportedFeatures": features,
    })
}

/// What of an XMesh's status [`mesh`] makes.
pub(super) fn mesh_there(value: &Value) -> Value {
    let list = |path: &str| value.pointer(path).and_then(Value::as_array).cloned();
    let mut conditions = list("/status/conditions").unwrap_or_default();
    conditions.retain(|condition| condition["type"] == "Accepted");
    json!({
        "conditions": conditions,
        "supportedFeatures": list("/status/supportedFeatures").unwrap_or_default(),
    })
}

fn since<'a>(before: Option<&'a Vec<Value>>, kind: &str, state: &str) -> Option<&'a str> {
    let text = |condition: &'a Value, field: &str| condition.get(field).and_then(Value::as_str);
    let before = before?
        .iter()
        .find(|condition| text(condition, "type") == Some(kind))?;
    text(before, "lastTransitionTime").filter(|_| text(before, "status") == Some(state))
}

fn programmed(standing: &Standing) -> Condition {
    let (status, reason, message) = if standing.proxies == 0 && standing.unknown.is_empty() {
        (false, "NoProxies", "no proxy is connected".to_owned())
    } else if !standing.rejected.is_empty() {
        let refusals = standing.rejected.iter();
        let refusals =
            refusals.map(|(name, reason, node)| format!("{node} refused {name}: {reason}"));
        (false, "Rejected", list(refusals, "; "))
    } else if !standing.waiting.is_empty() {
        let nodes = list(standing.waiting.iter().cloned(), ", ");
        (
            false,
            "NotAcknowledged",
            format!("not acknowledged yet by the proxy of {nodes}"),
        )
    } else if !standing.unknown.is_empty() {
        let replicas = list(standing.unknown.iter().cloned(), ", ");
        (
            false,
            "NotAcknowledged",
            format!("not known yet of the proxies that are connected to {replicas}"),
        )
    } else {
        (
            true,
            "Programmed",
            "every connected proxy has acknowledged the route".to_owned(),
        )
    };
    Condition {
        type_: CONDITION_PROGRAMMED.into(),
        status,
        reason: reason.into(),
        message,
    }
}

fn list(items: impl ExactSizeIterator<Item = String>, separator: &str) -> String {
    let more = items.len().saturating_sub(LISTED);
    let mut text = items.take(LISTED).collect::<Vec<_>>().join(separator);
    if more > 0 {
        text.push_str(&format!("{separator}and {more} more"));
    }
    text
}

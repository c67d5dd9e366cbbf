//! The state of a lab as people (and `-o json`) see it. In: objects with status, parts. Out: rows,
//! and what is still missing. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use weft_api::names::{
    ANNOTATION_CAPTURED, CONDITION_CAPTURED, CONDITION_PROGRAMMED, CONTROLLER_NAME,
    DEFAULT_TRUST_DOMAIN,
};

use super::{pod::CONFIG_ERROR, supervise::PartStatus};
use crate::manifests::Invalid;

/// Everything that `weft lab status` shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LabStatus {
    pub(crate) name: String,
    /// False for a lab of plain pods.
    pub(crate) mesh: bool,
    /// Where logs, tokens and the folder that stands for the API are.
    pub(crate) folder: String,
    /// The lab's first objects are in, and its controllers run.
    pub(crate) started: bool,
    /// What does not know yet what the API holds.
    pub(crate) behind: Vec<String>,
    /// What does not go on because a part is away.
    pub(crate) away: Vec<String>,
    pub(crate) parts: BTreeMap<String, PartStatus>,
    pub(crate) pods: Vec<PodRow>,
    pub(crate) routes: Vec<RouteRow>,
    /// Documents of the followed files that can't be used.
    pub(crate) invalid: Vec<Invalid>,
    /// What the controller could not use, as it says.
    pub(crate) controller_invalid: Option<Value>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PodRow {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) address: String,
    pub(crate) phase: String,
    pub(crate) ready: bool,
    pub(crate) terminating: bool,
    pub(crate) restarts: u64,
    /// The agent has captured this very pod.
    pub(crate) captured: bool,
    /// Every proxy knows.
    pub(crate) acknowledged: bool,
    /// The SPIFFE id that it has in the mesh; empty outside.
    pub(crate) identity: String,
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl PodRow {
    /// A finished pod of a job needs no readiness.
    fn is_done(&self) -> bool {
        self.ready || self.phase == "Succeeded"
    }

    /// It will not become ready by waiting.
    fn has_failed(&self) -> bool {
        self.reason == CONFIG_ERROR || self.reason == "Unschedulable" || self.phase == "Failed"
    }
}

/// A route under one of its parents.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RouteRow {
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// `namespace/service`, with `:port` if it names one.
    pub(crate) parent: String,
    pub(crate) accepted: Condition,
    pub(crate) resolved: Condition,
    pub(crate) programmed: Condition,
    /// What of the route is not in force as it is written; empty if all is.
    pub(crate) partially_invalid: Condition,
}

/// A condition that speaks of the object's present generation; empty if there is none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Condition {
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl RouteRow {
    /// Programmed, or told why it never will be.
    pub(crate) fn is_settled(&self) -> bool {
        self.programmed.status == "True" || self.accepted.status == "False"
    }
}

/// A pod's row.
pub(crate) fn pod_row(pod: &Value) -> PodRow {
    let text = |pointer: &str| {
        pod.pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let condition = |kind: &str| {
        let mut all = pod["status"]["conditions"].as_array().into_iter().flatten();
        all.find(|c| c["type"] == kind)
    };
    let is_true = |c: Option<&Value>| c.is_some_and(|c| c["status"] == "True");
    let sandbox = pod["metadata"]["annotations"][ANNOTATION_CAPTURED].as_str();
    let captured = sandbox.is_some_and(|sandbox| !sandbox.is_empty());
    let namespace = text("/metadata/namespace");
    let identity = if captured {
        let account = text("/spec/serviceAccountName");
        format!("spiffe://{DEFAULT_TRUST_DOMAIN}/ns/{namespace}/sa/{account}")
    } else {
        String::new()
    };
    let ready = condition("Ready");
    let message = text("/status/message");
    let acknowledged = condition(CONDITION_CAPTURED);
    let containers = pod["status"]["containerStatuses"]
        .as_array()
        .into_iter()
        .flatten();
    PodRow {
        name: text("/metadata/name"),
        node: text("/spec/nodeName"),
        address: text("/status/podIP"),
        phase: text("/status/phase"),
        ready: is_true(ready),
        terminating: !pod["metadata"]["deletionTimestamp"].is_null(),
        restarts: containers.filter_map(|c| c["restartCount"].as_u64()).sum(),
        captured,
        acknowledged: acknowledged
            .is_some_and(|c| c["status"] == "True" && c["message"].as_str() == sandbox),
        identity,
        reason: text("/status/reason"),
        message: if message.is_empty() {
            ready
                .and_then(|c| c["message"].as_str())
                .unwrap_or_default()
                .to_owned()
        } else {
            message
        },
        namespace,
    }
}

/// A route's rows: one for each Service that it names as a parent.
pub(crate) fn route_rows(route: &Value) -> Vec<RouteRow> {
    let kind = route["kind"].as_str().unwrap_or_default();
    let meta = &route["metadata"];
    let namespace = meta["namespace"].as_str().unwrap_or_default();
    let parents = route["spec"]["parentRefs"].as_array().into_iter().flatten();
    parents
        .filter(|parent| parent["kind"] == "Service")
        .map(|parent| {
            let statuses = route["status"]["parents"].as_array().into_iter().flatten();
            let status = statuses.into_iter().find(|status| {
                status["controllerName"] == CONTROLLER_NAME
                    && same_parent(&status["parentRef"], parent, namespace)
            });
            let condition = |kind: &str| {
                let conditions = status.and_then(|s| s["conditions"].as_array());
                let current = |c: &&Value| {
                    c["type"] == kind
                        && (c["observedGeneration"].is_null()
                            || c["observedGeneration"] == meta["generation"])
                };
                let found = conditions.into_iter().flatten().find(current);
                let text = |field: &str| {
                    found
                        .and_then(|c| c[field].as_str())
                        .unwrap_or_default()
                        .to_owned()
                };
                Condition {
                    status: text("status"),
                    reason: text("reason"),
                    message: text("message"),
                }
            };
            let own = parent["namespace"].as_str().unwrap_or(namespace);
            let port = parent["port"]
                .as_u64()
                .map_or_else(String::new, |p| format!(":{p}"));
            RouteRow {
                kind: kind.to_owned(),
                namespace: namespace.to_owned(),
                name: meta["name"].as_str().unwrap_or_default().to_owned(),
                parent: format!(
                    "{own}/{}{port}",
                    parent["name"].as_str().unwrap_or_default()
                ),
                accepted: condition("Accepted"),
                resolved: condition("ResolvedRefs"),
                programmed: condition(CONDITION_PROGRAMMED),
                partially_invalid: condition("PartiallyInvalid"),
            }
        })
        .collect()
}

fn same_parent(a: &Value, b: &Value, namespace: &str) -> bool {
    let own = |v: &Value| v["namespace"].as_str().unwrap_or(namespace).to_owned();
    a["name"] == b["name"]
        && own(a) == own(b)
        && a["port"] == b["port"]
        && a["sectionName"] == b["sectionName"]
}

/// What keeps the lab from being whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Missing {
    /// May come by waiting.
    pub(crate) waiting: Vec<String>,
    /// Will not come by waiting.
    pub(crate) failed: Vec<String>,
}

/// Compares the state with a whole lab.
pub(crate) fn missing(status: &LabStatus) -> Missing {
    let mut missing = Missing::default();
    if !status.started {
        missing.waiting.push("the lab's first objects".into());
    }
    for (name, part) in &status.parts {
        if part.stopped {
            let how = format!("{name} is stopped: `weft lab start {name}` starts it");
            missing.failed.push(how);
        } else if !part.ready {
            missing
                .waiting
                .push(format!("{name} is not ready{}", because(&part.message)));
        }
    }
    for pod in status.pods.iter().filter(|pod| !pod.terminating) {
        let name = format!("pod {}/{}", pod.namespace, pod.name);
        if pod.has_failed() {
            missing
                .failed
                .push(format!("{name} failed{}", because(&pod.message)));
        } else if pod.captured && !pod.acknowledged {
            missing
                .waiting
                .push(format!("{name} is captured, but not every proxy knows yet"));
        } else if !pod.is_done() {
            missing
                .waiting
                .push(format!("{name} is not ready{}", because(&pod.message)));
        }
    }
    if status.mesh {
        for route in status.routes.iter().filter(|route| !route.is_settled()) {
            let why = match (&route.programmed.message, &route.programmed.reason) {
                (message, reason) if message.is_empty() => because(reason),
                (message, _) => because(message),
            };
            missing.waiting.push(format!(
                "{} {}/{} is not programmed for {}{why}",
                route.kind, route.namespace, route.name, route.parent
            ));
        }
    }
    missing.waiting.extend(status.behind.iter().cloned());
    missing
}

fn because(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_is_in_the_mesh_when_the_agent_says_so() {
        let mut pod = json!({
            "metadata": {"name": "a", "namespace": "shop", "labels": {"weft.dev/mesh": "enabled"}},
            "spec": {"serviceAccountName": "web"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        let outside = pod_row(&pod);
        assert!(outside.ready && !outside.captured && outside.identity.is_empty());
        pod["metadata"]["annotations"] = json!({ANNOTATION_CAPTURED: "abc"});
        assert_eq!(
            pod_row(&pod).identity,
            "spiffe://cluster.local/ns/shop/sa/web"
        );
    }

    fn route(generation: u64, observed: u64) -> Value {
        json!({
            "kind": "HTTPRoute",
            "metadata": {"name": "r", "namespace": "shop", "generation": generation},
            "spec": {"parentRefs": [{"kind": "Service", "name": "web", "port": 80}]},
            "status": {"parents": [{
                "controllerName": CONTROLLER_NAME,
                "parentRef": {"kind": "Service", "name": "web", "namespace": "shop", "port": 80},
                "conditions": [{
                    "type": CONDITION_PROGRAMMED, "status": "True", "observedGeneration": observed,
                }],
            }]},
        })
    }

    #[test]
    fn a_routes_status_counts_only_for_its_generation() {
        assert!(route_rows(&route(2, 2))[0].is_settled());
        let stale = &route_rows(&route(2, 1))[0];
        assert!(!stale.is_settled());
        assert_eq!(stale.parent, "shop/web:80");
    }

    #[test]
    fn what_is_missing_is_named_with_its_reason() {
        let pod = |name: &str, reason: &str, message: &str| PodRow {
            namespace: "shop".into(),
            name: name.into(),
            reason: reason.into(),
            message: message.into(),
            ..PodRow::default()
        };
        let status = LabStatus {
            started: true,
            mesh: true,
            pods: vec![pod("a", CONFIG_ERROR, "no command"), pod("b", "", "")],
            routes: route_rows(&route(2, 1)),
            ..LabStatus::default()
        };
        let missing = missing(&status);
        assert_eq!(missing.failed, ["pod shop/a failed: no command"]);
        assert_eq!(
            missing.waiting,
            [
                "pod shop/b is not ready",
                "HTTPRoute shop/r is not programmed for shop/web:80"
            ]
        );
    }
}

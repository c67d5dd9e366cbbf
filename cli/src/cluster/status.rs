//! `weft status`. In: facts. Out: what a person wants to see of the mesh, as data and as tables. Pure.

use std::{collections::BTreeMap, fmt::Write as _};

use comfy_table::{Table, presets::NOTHING};
use serde::Serialize;
use serde_json::Value;
use weft_api::names::{
    CONDITION_PROGRAMMED, CONTROLLER_NAME, LABEL_MTLS, MTLS_PERMISSIVE, SYSTEM_NAMESPACE,
};

use super::{
    facts::Facts,
    object::{
        full_name, is_captured, is_enabled, is_ready, is_terminating, is_wanted, label, list, name,
        namespace, node, number, text,
    },
};

/// The mesh at a glance.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) installed: bool,
    controller: Controller,
    nodes: Vec<Node>,
    namespaces: Vec<Namespace>,
    /// Routes that are not in force as they are written.
    routes: Vec<Route>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct Controller {
    ready: i64,
    wanted: i64,
    version: String,
    leader: String,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct Node {
    name: String,
    agent: Part,
    proxy: Part,
    pods: Count,
}

/// A part on a node.
#[derive(Debug, Default, Serialize, PartialEq, Eq)]
struct Part {
    ready: bool,
    version: String,
    /// How many there are: two proxies while one replaces the other.
    count: usize,
}

/// Pods.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq, Eq)]
struct Count {
    captured: usize,
    wanted: usize,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct Namespace {
    name: String,
    mtls: String,
    pods: Count,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) kind: String,
    pub(crate) name: String,
    /// The condition that is not True.
    pub(crate) condition: String,
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// The version that an object's label tells.
pub(crate) fn version(object: &Value) -> &str {
    label(object, "app.kubernetes.io/version").unwrap_or("?")
}

/// The mesh at a glance.
pub(crate) fn of(facts: &Facts) -> Status {
    let deployment = facts.workload("weft-controller");
    let holder = facts.leader.as_ref();
    let controller = Controller {
        ready: deployment.map_or(0, |one| number(one, "/status/availableReplicas")),
        wanted: deployment.map_or(0, |one| number(one, "/spec/replicas")),
        version: deployment.map_or("-", version).to_owned(),
        leader: holder
            .map_or("", |one| text(one, "/spec/holderIdentity"))
            .to_owned(),
    };
    let mut by_node: BTreeMap<&str, Count> = BTreeMap::new();
    let mut by_namespace: BTreeMap<&str, Count> = BTreeMap::new();
    for pod in facts.pods.iter().filter(|pod| !is_terminating(pod)) {
        let wanted = facts
            .namespace(namespace(pod))
            .is_some_and(|namespace| is_wanted(pod, namespace));
        for count in [
            by_node.entry(node(pod)).or_default(),
            by_namespace.entry(namespace(pod)).or_default(),
        ] {
            count.wanted += usize::from(wanted);
            count.captured += usize::from(is_captured(pod));
        }
    }
    let part = |part: &str, on: &str| {
        let pods: Vec<_> = facts.part(part).filter(|pod| node(pod) == on).collect();
        let newest = pods
            .iter()
            .max_by_key(|pod| text(pod, "/metadata/creationTimestamp"));
        Part {
            ready: pods.iter().any(|pod| is_ready(pod)),
            version: newest.map_or("-", |pod| version(pod)).to_owned(),
            count: pods.len(),
        }
    };
    Status {
        installed: facts.workload("weft-cni").is_some(),
        controller,
        nodes: facts
            .nodes
            .iter()
            .map(|one| Node {
                name: name(one).to_owned(),
                agent: part("weft-cni", name(one)),
                proxy: part("weft-proxy", name(one)),
                pods: by_node.get(name(one)).copied().unwrap_or_default(),
            })
            .collect(),
        namespaces: facts
            .namespaces
            .iter()
            .map(|one| {
                (
                    one,
                    by_namespace.get(name(one)).copied().unwrap_or_default(),
                )
            })
            .filter(|(one, pods)| is_enabled(one) || pods.captured > 0)
            .map(|(one, pods)| Namespace {
                name: name(one).to_owned(),
                mtls: match (is_enabled(one), label(one, LABEL_MTLS)) {
                    (false, _) => "leaving".to_owned(),
                    (_, mode) => mode.unwrap_or(MTLS_PERMISSIVE).to_owned(),
                },
                pods,
            })
            .collect(),
        routes: facts.routes.iter().flat_map(not_in_force).collect(),
    }
}

/// What weft says of a route that is not in force; of one that weft has not seen yet, that.
pub(crate) fn not_in_force(route: &Value) -> Vec<Route> {
    let entry = |condition: &str, reason: &str, message: &str| Route {
        kind: text(route, "/kind").to_owned(),
        name: full_name(route),
        condition: condition.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
    };
    // Of a mesh's routes the parents are Services.
    let of_mesh = list(route, "/spec/parentRefs").iter().any(|parent| {
        matches!(
            parent.get("group").and_then(Value::as_str),
            Some("" | "core")
        ) && text(parent, "/kind") == "Service"
    });
    if !of_mesh {
        return Vec::new();
    }
    let ours: Vec<_> = list(route, "/status/parents")
        .iter()
        .filter(|parent| text(parent, "/controllerName") == CONTROLLER_NAME)
        .collect();
    if ours.is_empty() {
        return vec![entry(
            "Accepted",
            "Unseen",
            "the controller has said nothing of it",
        )];
    }
    let generation = number(route, "/metadata/generation");
    ours.iter()
        .filter_map(|parent| {
            let conditions = list(parent, "/conditions");
            let find = |kind: &str| {
                conditions
                    .iter()
                    .find(|condition| text(condition, "/type") == kind)
            };
            for kind in ["Accepted", "ResolvedRefs", CONDITION_PROGRAMMED] {
                match find(kind) {
                    Some(condition) if text(condition, "/status") != "True" => {
                        let (reason, message) =
                            (text(condition, "/reason"), text(condition, "/message"));
                        return Some(entry(kind, reason, message));
                    }
                    Some(condition) if number(condition, "/observedGeneration") < generation => {
                        return Some(entry(
                            kind,
                            "Unseen",
                            "the controller has not looked at the last change",
                        ));
                    }
                    _ => {}
                }
            }
            None
        })
        .collect()
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    table
}

fn write(out: &mut String, table: &Table) {
    for line in table.to_string().lines() {
        let _ = writeln!(out, "{}", line.trim().replace('\u{a0}', " "));
    }
}

/// For people.
fn text_of_part(part: &Part) -> String {
    match (part.count, part.ready) {
        (0, _) => "missing".to_owned(),
        (1, true) => "ready".to_owned(),
        (1, false) => "not ready".to_owned(),
        (count, true) => format!("ready ({count})"),
        (count, false) => format!("not ready ({count})"),
    }
}

/// The tables.
pub(crate) fn tables(status: &Status) -> String {
    let mut out = String::new();
    if !status.installed {
        let _ = writeln!(
            out,
            "weft is not installed in namespace {SYSTEM_NAMESPACE}: `weft install`, or the Helm chart"
        );
        return out;
    }
    let controller = &status.controller;
    let leader = match controller.leader.as_str() {
        "" => "nobody writes status",
        leader => leader,
    };
    let _ = writeln!(
        out,
        "controller {}: {} of {} ready; leader: {leader}\n",
        controller.version, controller.ready, controller.wanted
    );
    let mut nodes = table(&["NODE", "AGENT", "PROXY", "VERSION", "PODS IN THE MESH"]);
    for node in &status.nodes {
        let versions = if node.agent.version == node.proxy.version {
            node.agent.version.clone()
        } else {
            format!("{}, proxy {}", node.agent.version, node.proxy.version)
        };
        nodes.add_row([
            node.name.clone(),
            text_of_part(&node.agent),
            text_of_part(&node.proxy),
            versions,
            format!("{} of {}", node.pods.captured, node.pods.wanted),
        ]);
    }
    write(&mut out, &nodes);
    out.push('\n');
    if status.namespaces.is_empty() {
        let _ = writeln!(out, "no namespace is in the mesh: `weft enable NAMESPACE`");
    } else {
        let mut namespaces = table(&["NAMESPACE", "MTLS", "PODS IN THE MESH"]);
        for namespace in &status.namespaces {
            namespaces.add_row([
                namespace.name.clone(),
                namespace.mtls.clone(),
                format!("{} of {}", namespace.pods.captured, namespace.pods.wanted),
            ]);
        }
        write(&mut out, &namespaces);
    }
    if !status.routes.is_empty() {
        out.push('\n');
        let mut routes = table(&[
            "ROUTE NOT IN FORCE",
            "NAME",
            "CONDITION",
            "REASON",
            "MESSAGE",
        ]);
        for route in &status.routes {
            routes.add_row([
                &route.kind,
                &route.name,
                &route.condition,
                &route.reason,
                &route.message,
            ]);
        }
        write(&mut out, &routes);
    }
    out
}

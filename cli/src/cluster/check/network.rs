//! What else works on the pods' network: other plugins, and policies. In: facts. Out: findings. Pure.

use serde_json::{Value, json};
use weft_api::names::{PORT_HBONE, PROBE_SOURCE_V4, PROBE_SOURCE_V6};

use super::{Finding, fail, ok, some, warn};
use crate::cluster::{
    facts::Facts,
    object::{full_name, is_wanted, list, namespace, selects, text},
};

/// A rule for this port alone leads to no Service.
const DNS: i64 = 53;

pub(super) fn cilium(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "cilium";
    let Some(config) = &facts.cilium else {
        return Vec::new();
    };
    let value = |key: &str| {
        let data = config.get("data");
        data.and_then(|data| data.get(key)?.as_str()).unwrap_or("")
    };
    let mut findings = Vec::new();
    // Replacing kube-proxy implies it.
    let socket = value("bpf-lb-sock") == "true"
        || matches!(value("kube-proxy-replacement"), "true" | "strict");
    if socket && value("bpf-lb-sock-hostns-only") != "true" {
        findings.push(fail(
            CHECK,
            "its socket load balancing replaces Services' addresses in pods before weft sees them: no route applies",
            "helm upgrade cilium … --set socketLB.hostNamespaceOnly=true",
        ));
    }
    // True is its default.
    if value("cni-exclusive") != "false" {
        findings.push(fail(
            CHECK,
            "it takes other plugins' CNI configuration away (cni.exclusive)",
            "helm upgrade cilium … --set cni.exclusive=false",
        ));
    }
    if findings.is_empty() {
        findings.push(ok(CHECK, "is set up to share pods with a mesh"));
    }
    findings
}

/// A direction of policies.
struct Direction {
    kind: &'static str,
    rules: &'static str,
}

const INGRESS: Direction = Direction {
    kind: "Ingress",
    rules: "/spec/ingress",
};
const EGRESS: Direction = Direction {
    kind: "Egress",
    rules: "/spec/egress",
};

pub(super) fn policies(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "policies";
    let (mut no_way_in, mut no_way_out, mut probes) = (Vec::new(), Vec::new(), Vec::new());
    for pod in &facts.pods {
        let wanted = facts
            .namespace(namespace(pod))
            .is_some_and(|namespace| is_wanted(pod, namespace));
        if !wanted {
            continue;
        }
        let policies = of(pod, &facts.policies);
        if leaves_out_the_mesh(&policies, &INGRESS) {
            no_way_in.push(full_name(pod));
        }
        if leaves_out_the_mesh(&policies, &EGRESS) {
            no_way_out.push(full_name(pod));
        }
        if has_network_probes(pod) && leaves_out_probes(&policies) {
            probes.push(full_name(pod));
        }
    }
    let mut findings = Vec::new();
    if !no_way_in.is_empty() {
        let pods = some(&no_way_in);
        findings.push(fail(
            CHECK,
            format!("NetworkPolicies let ports in, but not {PORT_HBONE}: {pods}"),
            format!("let TCP {PORT_HBONE} in from the same peers: between pods of the mesh everything comes on that port"),
        ));
    }
    if !no_way_out.is_empty() {
        let pods = some(&no_way_out);
        findings.push(fail(
            CHECK,
            format!("NetworkPolicies let ports out, but not {PORT_HBONE}: {pods}"),
            format!("let TCP {PORT_HBONE} out to the same peers: between pods of the mesh everything goes to that port"),
        ));
    }
    if !probes.is_empty() {
        findings.push(warn(
            CHECK,
            format!("NetworkPolicies do not name the source of probes: {}", some(&probes)),
            format!("if probes fail with your network plugin, let {PROBE_SOURCE_V4}/32 (and {PROBE_SOURCE_V6}/128) in on the probed ports"),
        ));
    }
    if findings.is_empty() {
        let count = facts.policies.len();
        findings.push(ok(
            CHECK,
            format!("{count} NetworkPolicies, none leaves out the mesh"),
        ));
    }
    findings
}

/// The policies that select a pod.
fn of<'a>(pod: &Value, policies: &'a [Value]) -> Vec<&'a Value> {
    let all = json!({});
    policies
        .iter()
        .filter(|policy| namespace(policy) == namespace(pod))
        .filter(|policy| {
            let selector = policy.pointer("/spec/podSelector").unwrap_or(&all);
            selects(selector, pod.pointer("/metadata/labels"))
        })
        .collect()
}

/// The rules of a direction that hold for a pod; `None` if no policy says anything of it.
fn rules<'a>(policies: &[&'a Value], direction: &Direction) -> Option<Vec<&'a Value>> {
    let mut speaking = policies
        .iter()
        .filter(|policy| {
            let kinds = list(policy, "/spec/policyTypes");
            // Without types a policy is of Ingress, and of Egress if it has such rules.
            let implied = direction.kind == "Ingress" || policy.pointer(direction.rules).is_some();
            kinds.is_empty() && implied || kinds.iter().any(|kind| kind == direction.kind)
        })
        .peekable();
    speaking.peek()?;
    Some(
        speaking
            .flat_map(|policy| list(policy, direction.rules))
            .collect(),
    )
}

/// Whether ports of applications are let through, and the mesh's is not. Who lets nothing through
/// means it.
fn leaves_out_the_mesh(policies: &[&Value], direction: &Direction) -> bool {
    let Some(rules) = rules(policies, direction) else {
        return false;
    };
    let application = |rule: &&Value| {
        list(rule, "/ports")
            .iter()
            .any(|port| is_tcp(port) && port.get("port").and_then(Value::as_i64) != Some(DNS))
    };
    rules.iter().any(application) && !rules.iter().any(|rule| allows(rule, PORT_HBONE))
}

fn is_tcp(port: &Value) -> bool {
    matches!(text(port, "/protocol"), "" | "TCP")
}

/// Whether a rule lets a TCP port through, for some peers at least.
fn allows(rule: &Value, wanted: u16) -> bool {
    let wanted = i64::from(wanted);
    let ports = list(rule, "/ports");
    ports.is_empty()
        || ports.iter().filter(|port| is_tcp(port)).any(|port| {
            let Some(first) = port.get("port") else {
                return true;
            };
            // A port's name is an application's.
            let Some(first) = first.as_i64() else {
                return false;
            };
            let last = port.get("endPort").and_then(Value::as_i64).unwrap_or(first);
            (first..=last).contains(&wanted)
        })
}

fn has_network_probes(pod: &Value) -> bool {
    list(pod, "/spec/containers")
        .iter()
        .flat_map(|container| {
            ["livenessProbe", "readinessProbe", "startupProbe"]
                .into_iter()
                .filter_map(|probe| container.get(probe))
        })
        .any(|probe| {
            ["httpGet", "tcpSocket", "grpc"]
                .iter()
                .any(|kind| probe.get(kind).is_some())
        })
}

/// Whether what comes in is restricted to peers among which the probes' source is not. Most network
/// plugins let the node itself through; one that goes by the address does not know this one.
fn leaves_out_probes(policies: &[&Value]) -> bool {
    let Some(rules) = rules(policies, &INGRESS) else {
        return false;
    };
    !rules.iter().any(|rule| {
        let peers = list(rule, "/from");
        peers.is_empty()
            || peers.iter().any(|peer| {
                let block = text(peer, "/ipBlock/cidr");
                block == "0.0.0.0/0" || block.starts_with("169.254.")
            })
    })
}

//! Weft's parts, and what they make of namespaces, pods and routes. In: facts. Out: findings. Pure.

use serde_json::Value;
use time::Duration;
use weft_api::names::{
    LABEL_MESH, LABEL_MTLS, MESH_DISABLED, MESH_ENABLED, MTLS_PERMISSIVE, MTLS_STRICT,
    SYSTEM_NAMESPACE,
};

use super::{Finding, fail, ok, some, warn};
use crate::cluster::{
    facts::Facts,
    object::{
        date, full_name, is_captured, is_ready, is_terminating, is_true, is_wanted, label, name,
        namespace, node, number, text,
    },
    rollout,
    status::{not_in_force, version},
};

/// A pod that is younger may still be on its way into the mesh.
const JOINING: Duration = Duration::seconds(60);
/// A leader renews its Lease more often than this.
const LEADER: Duration = Duration::seconds(60);

pub(super) fn controller(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "controller";
    const LOOK: &str = "kubectl -n weft-system describe deployment/weft-controller; kubectl -n weft-system logs deployment/weft-controller";
    let Some(deployment) = facts.workload("weft-controller") else {
        return vec![fail(
            CHECK,
            "deployment weft-system/weft-controller is not there",
            "weft install, or helm upgrade",
        )];
    };
    let wanted = number(deployment, "/spec/replicas");
    let ready = number(deployment, "/status/availableReplicas");
    let count = format!("{ready} of {wanted} replicas are ready");
    let mut findings = vec![match ready {
        0 => fail(
            CHECK,
            "no replica is ready: traffic goes on, but nothing new takes effect",
            LOOK,
        ),
        _ if ready < wanted => warn(CHECK, count, LOOK),
        _ => ok(CHECK, count),
    }];
    let lease = facts.leader.as_ref();
    let renewed = lease.and_then(|lease| date(lease, "/spec/renewTime"));
    if ready > 0 && renewed.is_none_or(|renewed| facts.now - renewed > LEADER) {
        findings.push(fail(
            CHECK,
            "no replica holds lease weft-system/weft-controller: no status is written",
            LOOK,
        ));
    }
    findings
}

pub(super) fn nodes(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "nodes";
    let mut findings = Vec::new();
    let (mut good, mut all) = (0, 0);
    for one in &facts.nodes {
        let on = name(one);
        if text(one, "/status/nodeInfo/operatingSystem") != "linux" {
            continue;
        }
        all += 1;
        if !is_true(one, "Ready") {
            findings.push(warn(
                CHECK,
                format!("node {on} is not ready itself"),
                format!("kubectl describe node {on}"),
            ));
            continue;
        }
        let bad = [
            ("weft-cni", "takes no pod into the mesh"),
            ("weft-proxy", "carries nothing for its pods"),
        ]
        .into_iter()
        .filter_map(|(part, what)| part_on(facts, on, part, what));
        let before = findings.len();
        findings.extend(bad);
        good += usize::from(findings.len() == before);
    }
    if good > 0 {
        findings.push(ok(
            CHECK,
            format!("{good} of {all} have agent and proxy ready, and weft in their CNI chain"),
        ));
    }
    findings
}

/// What is wrong with a part on a node. An agent is ready once plugin and chain are in place, too.
fn part_on(facts: &Facts, on: &str, part: &str, what: &str) -> Option<Finding> {
    const CHECK: &str = "nodes";
    let pods: Vec<&Value> = facts.part(part).filter(|pod| node(pod) == on).collect();
    let Some(last) = pods.last() else {
        return Some(fail(
            CHECK,
            format!("node {on} has no {part}: it {what}"),
            format!(
                "kubectl -n {SYSTEM_NAMESPACE} describe daemonset/{part}; do its tolerations and nodeSelector cover the node?"
            ),
        ));
    };
    if pods.iter().any(|pod| is_ready(pod)) {
        return None;
    }
    // What it says itself is better than what its status tells of it.
    let said = facts
        .reasons
        .get(name(last))
        .filter(|said| !said.is_empty());
    let why = said.cloned().unwrap_or_else(|| rollout::reason(last));
    Some(fail(
        CHECK,
        format!("node {on}: {part} is not ready: {why}"),
        format!("kubectl -n {SYSTEM_NAMESPACE} logs {}", name(last)),
    ))
}

pub(super) fn versions(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "versions";
    let wanted = facts.workload("weft-proxy").map_or("?", version);
    let others: Vec<String> = ["weft-controller", "weft-cni", "weft-proxy"]
        .into_iter()
        .flat_map(|part| facts.part(part))
        .filter(|pod| !is_terminating(pod) && version(pod) != wanted)
        .map(|pod| format!("{} ({})", name(pod), version(pod)))
        .collect();
    if !others.is_empty() {
        return vec![fail(
            CHECK,
            format!("not of version {wanted}: {}", some(&others)),
            format!(
                "wait for the roll-out (kubectl -n {SYSTEM_NAMESPACE} rollout status), or install one version as a whole"
            ),
        )];
    }
    let mut findings = vec![ok(CHECK, format!("all parts are of {wanted}"))];
    let own = env!("CARGO_PKG_VERSION");
    if wanted.trim_start_matches('v') != own {
        findings.push(warn(
            CHECK,
            format!("this program is of {own}"),
            format!("use weft {wanted} for this cluster, or upgrade the cluster: weft install"),
        ));
    }
    findings
}

pub(super) fn labels(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "labels";
    let mut findings = Vec::new();
    let namespaces = facts.namespaces.iter().map(|one| ("namespace", one));
    let pods = facts.pods.iter().map(|one| ("pod", one));
    for (kind, object) in namespaces.chain(pods) {
        for (key, known, read) in [
            (LABEL_MESH, [MESH_ENABLED, MESH_DISABLED], "absent"),
            (LABEL_MTLS, [MTLS_STRICT, MTLS_PERMISSIVE], "strict"),
        ] {
            let Some(value) = label(object, key).filter(|value| !known.contains(value)) else {
                continue;
            };
            let [one, other] = known;
            let fix = match kind {
                "pod" => format!("set the label {key} in the template of the pod's owner"),
                _ => format!(
                    "kubectl label --overwrite {kind} {} {key}={one}",
                    name(object)
                ),
            };
            findings.push(fail(
                CHECK,
                format!(
                    "{kind} {} has {key}={value}, which is read as {read}; it can be {one} or {other}",
                    full_name(object)
                ),
                fix,
            ));
        }
    }
    if findings.is_empty() {
        findings.push(ok(
            CHECK,
            format!("every {LABEL_MESH} and {LABEL_MTLS} is understood"),
        ));
    }
    findings
}

pub(super) fn capture(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "capture";
    let mut findings = Vec::new();
    let (mut missing, mut staying, mut good) = (Vec::new(), Vec::new(), 0);
    for pod in facts.pods.iter().filter(|pod| !is_terminating(pod)) {
        let wanted = facts
            .namespace(namespace(pod))
            .is_some_and(|namespace| is_wanted(pod, namespace));
        let since = date(pod, "/metadata/creationTimestamp");
        let settled = since.is_none_or(|since| facts.now - since > JOINING);
        match (wanted, is_captured(pod)) {
            (true, true) => good += 1,
            (true, false) if settled && !node(pod).is_empty() => {
                missing.push(format!("{} on {}", full_name(pod), node(pod)));
            }
            (false, true) if text(pod, "/status/phase") == "Running" => {
                staying.push(full_name(pod));
            }
            _ => {}
        }
    }
    if missing.is_empty() {
        findings.push(ok(
            CHECK,
            format!("{good} pods are in the mesh, none that should be is not"),
        ));
    } else {
        findings.push(fail(
            CHECK,
            format!("wanted in the mesh, and not in it: {}", some(&missing)),
            "look for the pod in the log of its node's agent: kubectl -n weft-system logs -l app.kubernetes.io/name=weft-cni --prefix",
        ));
    }
    if !staying.is_empty() {
        findings.push(warn(
            CHECK,
            format!("not wanted in the mesh, and still in it: {}", some(&staying)),
            "they leave when what is open has drained; if they don't, see the log of their node's agent",
        ));
    }
    findings
}

pub(super) fn routes(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "routes";
    let bad: Vec<_> = facts.routes.iter().flat_map(not_in_force).collect();
    if bad.is_empty() {
        let count = facts.routes.len();
        return vec![ok(
            CHECK,
            format!("{count}, and those of Services are in force"),
        )];
    }
    bad.iter()
        .map(|route| {
            warn(
                CHECK,
                format!(
                    "{} {}: {} is not True: {}: {}",
                    route.kind, route.name, route.condition, route.reason, route.message
                ),
                "docs/routes.md says what each reason means",
            )
        })
        .collect()
}

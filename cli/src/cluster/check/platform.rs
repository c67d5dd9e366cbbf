//! The cluster itself: versions, kernels, clocks, admission. In: facts. Out: findings. Pure.

use time::Duration;
use weft_api::names::SYSTEM_NAMESPACE;

use super::{Finding, fail, ok, some, warn};
use crate::cluster::{
    facts::Facts,
    object::{annotation, date, is_true, label, name, text},
};

/// Older than this `unhealthyPodEvictionPolicy`, `matchLabelKeys` and more are not there.
const KUBERNETES: (u32, u32) = (1, 29);
/// From here on nf_tables has what the rules use.
const KERNEL: (u32, u32) = (5, 10);
/// Since then routes of a mesh are part of the standard.
const GATEWAY_API: (u32, u32) = (1, 1);
/// How far clocks may be apart before certificates, which last a day, are in danger.
const SKEW: Duration = Duration::seconds(30);
/// A kubelet renews its lease every 10 s, and is given up after 40 s.
const LEASE: Duration = Duration::seconds(40);

/// The first two numbers of a version: `v1.34.4-eks`, `6.1.0-13-amd64`, `29+`.
pub(super) fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split('.');
    let mut next = || -> Option<u32> {
        let part = parts.next()?;
        let end = part.find(|c: char| !c.is_ascii_digit());
        part[..end.unwrap_or(part.len())].parse().ok()
    };
    Some((next()?, next()?))
}

pub(super) fn kubernetes(facts: &Facts) -> Vec<Finding> {
    let version = text(&facts.version, "/gitVersion");
    let wanted = format!("{}.{} or newer", KUBERNETES.0, KUBERNETES.1);
    vec![match numbers(version) {
        Some(found) if found >= KUBERNETES => ok("kubernetes", version),
        Some(_) => fail(
            "kubernetes",
            format!("{version} is too old"),
            format!("upgrade the cluster to {wanted}"),
        ),
        None => warn(
            "kubernetes",
            format!("the API server calls its version {version:?}"),
            format!("make sure that it is {wanted}"),
        ),
    }]
}

pub(super) fn gateway_api(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "gateway-api";
    const GROUP: &str = "gateway.networking.k8s.io";
    const VERSION: &str = "gateway.networking.k8s.io/bundle-version";
    const INSTALL: &str =
        "install the CRDs of the Gateway API 1.1 or newer: https://gateway-api.sigs.k8s.io/guides/";
    let find = |plural: &str| {
        facts
            .definitions
            .iter()
            .find(|crd| name(crd) == format!("{plural}.{GROUP}"))
    };
    let Some(http) = find("httproutes") else {
        return vec![warn(
            CHECK,
            "no HTTPRoutes in this cluster: the mesh encrypts, but routes nothing",
            INSTALL,
        )];
    };
    let version = annotation(http, VERSION).unwrap_or("");
    let channel = annotation(http, "gateway.networking.k8s.io/channel").unwrap_or("?");
    let mut findings = vec![match numbers(version) {
        Some(found) if found >= GATEWAY_API => ok(CHECK, format!("{version}, {channel}")),
        Some(_) => fail(CHECK, format!("{version} is too old"), INSTALL),
        None => warn(
            CHECK,
            "HTTPRoutes are there, but do not say of which version",
            INSTALL,
        ),
    }];
    if find("grpcroutes").is_none() {
        findings.push(warn(CHECK, "no GRPCRoutes in this cluster", INSTALL));
    }
    // Several bundles mixed are what no release was tried with.
    let mut others: Vec<String> = facts
        .definitions
        .iter()
        .filter(|crd| text(crd, "/spec/group") == GROUP)
        .filter(|crd| annotation(crd, VERSION).unwrap_or("") != version)
        .map(|crd| name(crd).to_owned())
        .collect();
    others.sort();
    if !others.is_empty() {
        findings.push(warn(
            CHECK,
            format!("not of {version}: {}", some(&others)),
            "apply one release's CRDs as a whole",
        ));
    }
    findings
}

pub(super) fn kernels(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "kernel";
    let mut findings = Vec::new();
    let mut seen: Vec<String> = Vec::new();
    for node in &facts.nodes {
        let info = |field: &str| text(node, &format!("/status/nodeInfo/{field}"));
        let (system, kernel) = (info("operatingSystem"), info("kernelVersion"));
        let node = name(node);
        if system != "linux" {
            findings.push(warn(
                CHECK,
                format!("node {node} runs {system}: its pods can't be in the mesh"),
                "keep enabled namespaces off it (nodeSelector kubernetes.io/os: linux)",
            ));
        } else if numbers(kernel).is_some_and(|found| found < KERNEL) {
            let (major, minor) = KERNEL;
            findings.push(fail(
                CHECK,
                format!("node {node}: Linux {kernel} is too old"),
                format!("upgrade the node to Linux {major}.{minor} or newer, with nf_tables"),
            ));
        } else if !seen.iter().any(|one| one == kernel) {
            seen.push(kernel.to_owned());
        }
    }
    if findings.is_empty() {
        let count = facts.nodes.len();
        findings.push(ok(CHECK, format!("{count} nodes, Linux {}", some(&seen))));
    }
    findings
}

pub(super) fn clocks(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "clocks";
    const FIX: &str = "let it synchronise its clock (chrony, systemd-timesyncd): certificates and tokens go by it";
    let mut findings = Vec::new();
    let local = facts.local_skew;
    if local.abs() > SKEW {
        findings.push(warn(
            CHECK,
            format!(
                "this machine's clock is {} s off the API server's",
                local.whole_seconds()
            ),
            "let one of them synchronise its clock; the mesh does not depend on this machine's",
        ));
    }
    for lease in &facts.node_leases {
        let Some(renewed) = date(lease, "/spec/renewTime") else {
            continue;
        };
        let node = name(lease);
        let alive = facts
            .nodes
            .iter()
            .any(|one| name(one) == node && is_true(one, "Ready"));
        let ahead = renewed - facts.now;
        if ahead > SKEW {
            let seconds = ahead.whole_seconds();
            findings.push(fail(
                CHECK,
                format!("node {node} is {seconds} s ahead of the API server"),
                FIX,
            ));
        } else if alive && -ahead > LEASE + SKEW {
            // It is alive, so it renewed within 40 s, and calls that time another.
            let seconds = (-ahead).whole_seconds();
            findings.push(fail(
                CHECK,
                format!("node {node} is about {seconds} s behind the API server"),
                FIX,
            ));
        }
    }
    if findings.is_empty() {
        let seconds = SKEW.whole_seconds();
        findings.push(ok(
            CHECK,
            format!("nodes agree with the API server to {seconds} s"),
        ));
    }
    findings
}

pub(super) fn pod_security(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "admission";
    const KEY: &str = "pod-security.kubernetes.io/enforce";
    let Some(namespace) = facts.namespace(SYSTEM_NAMESPACE) else {
        return Vec::new();
    };
    vec![match label(namespace, KEY) {
        None | Some("privileged") => ok(
            CHECK,
            format!("namespace {SYSTEM_NAMESPACE} lets weft's pods in"),
        ),
        Some(level) => fail(
            CHECK,
            format!("namespace {SYSTEM_NAMESPACE} enforces {level}, which refuses weft's pods"),
            format!("kubectl label --overwrite namespace {SYSTEM_NAMESPACE} {KEY}=privileged"),
        ),
    }]
}

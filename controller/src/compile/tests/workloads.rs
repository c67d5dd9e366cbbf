//! Pods to Workloads.

use std::collections::BTreeMap;

use weft_api::config::{MtlsMode, Tunnel, Workload};

use super::{compile, objects, world};

const PLACES: &str = r#"
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: z1, topology.kubernetes.io/region: r1}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: strict, labels: {weft.dev/mtls: strict}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: typo, labels: {weft.dev/mtls: Permissive}}}
---
"#;

fn one(pod: &str) -> Workload {
    let compiled = compile(&objects(&format!("{PLACES}{pod}")));
    let mut workloads = compiled.workloads.values();
    let workload = workloads.next().expect("the pod has a workload");
    assert_eq!(workloads.next(), None);
    Workload::clone(workload)
}

#[test]
fn a_pod_becomes_a_workload_with_its_place_identity_and_owner() {
    let workload = one(r#"
apiVersion: v1
kind: Pod
metadata:
  namespace: shop
  name: checkout-v1-7d9f8-abcde
  uid: u1
  labels: {app: checkout, version: v1, pod-template-hash: 7d9f8}
  annotations: {weft.dev/captured: sandbox-1}
  ownerReferences: [{kind: ReplicaSet, name: checkout-v1-7d9f8, controller: true}]
spec: {nodeName: n1, serviceAccountName: checkout}
status: {phase: Running, podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: "fd00::1"}]}
"#);
    assert_eq!(workload.uid, "shop/checkout-v1-7d9f8-abcde/u1");
    assert_eq!(workload.service_account, "checkout");
    assert_eq!(workload.trust_domain, "example.org");
    assert_eq!(
        (workload.node.as_str(), workload.region.as_str()),
        ("n1", "r1")
    );
    assert_eq!(workload.zone, "z1");
    assert_eq!(
        (workload.owner_kind.as_str(), workload.owner_name.as_str()),
        ("Deployment", "checkout-v1")
    );
    assert_eq!(
        (workload.app.as_str(), workload.version.as_str()),
        ("checkout", "v1")
    );
    let lengths: Vec<usize> = workload.addresses.iter().map(|a| a.len()).collect();
    assert_eq!(
        (lengths, &workload.addresses[0][..]),
        (vec![4, 16], &[10, 1, 0, 1][..])
    );
    assert_eq!(
        (workload.tunnel(), workload.sandbox.as_str()),
        (Tunnel::Hbone, "sandbox-1")
    );
    assert_eq!(workload.mtls(), MtlsMode::Permissive);
}

#[test]
fn only_a_reported_sandbox_off_the_host_network_is_captured() {
    for (metadata, spec, tunnel) in [
        ("", "", Tunnel::None),
        ("labels: {weft.dev/mesh: enabled}", "", Tunnel::None),
        (r#"annotations: {weft.dev/captured: ""}"#, "", Tunnel::None),
        ("annotations: {weft.dev/captured: s}", "", Tunnel::Hbone),
        (
            "annotations: {weft.dev/captured: s}",
            "hostNetwork: true",
            Tunnel::None,
        ),
    ] {
        let workload = one(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{namespace: a, name: p, {metadata}}}, spec: {{{spec}}}, status: {{podIP: 10.1.0.1}}}}"
        ));
        assert_eq!(workload.tunnel(), tunnel, "{metadata} {spec}");
        assert_eq!(
            workload.sandbox.is_empty(),
            tunnel == Tunnel::None,
            "{metadata} {spec}"
        );
    }
}

#[test]
fn the_pods_label_decides_on_plaintext_then_the_namespaces_and_a_typo_is_strict() {
    for (namespace, label, expected) in [
        ("open", None, MtlsMode::Permissive),
        ("strict", None, MtlsMode::Strict),
        ("strict", Some("permissive"), MtlsMode::Permissive),
        ("open", Some("strict"), MtlsMode::Strict),
        ("open", Some("STRICT"), MtlsMode::Strict),
        ("typo", None, MtlsMode::Strict),
    ] {
        let labels: BTreeMap<_, _> = label.map(|l| ("weft.dev/mtls", l)).into_iter().collect();
        let labels = serde_json::to_string(&labels).expect("labels are JSON");
        let workload = one(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{namespace: {namespace}, name: p, labels: {labels}}}, status: {{podIP: 10.1.0.1}}}}"
        ));
        assert_eq!(workload.mtls(), expected, "{namespace} {label:?}");
    }
    let compiled = compile(&objects(PLACES));
    let cautions: Vec<_> = compiled.invalid.iter().collect();
    assert_eq!(cautions.len(), 1, "{cautions:?}");
    assert_eq!(cautions[0].0.name, "typo");
}

#[test]
fn owners_are_named_as_people_know_them() {
    for (labels, owners, expected) in [
        ("{}", "[]", ("Pod", "p")),
        (
            "{}",
            "[{kind: StatefulSet, name: db}]",
            ("StatefulSet", "db"),
        ),
        (
            "{}",
            "[{kind: ReplicaSet, name: hand-made}]",
            ("ReplicaSet", "hand-made"),
        ),
        (
            "{pod-template-hash: h}",
            "[{kind: ReplicaSet, name: web-h}]",
            ("Deployment", "web"),
        ),
        (
            "{pod-template-hash: h}",
            "[{kind: X, name: x}, {kind: ReplicaSet, name: web-h, controller: true}]",
            ("Deployment", "web"),
        ),
    ] {
        let workload = one(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{namespace: a, name: p, labels: {labels}, ownerReferences: {owners}}}, status: {{podIP: 10.1.0.1}}}}"
        ));
        assert_eq!(
            (workload.owner_kind.as_str(), workload.owner_name.as_str()),
            expected
        );
    }
}

#[test]
fn pods_that_are_finished_or_have_no_address_are_no_workloads() {
    for status in [
        "{}",
        "{phase: Succeeded, podIP: 10.1.0.1}",
        "{phase: Failed, podIP: 10.1.0.1}",
    ] {
        let pod = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{namespace: a, name: p}}, status: {status}}}"
        );
        assert!(compile(&objects(&pod)).workloads.is_empty(), "{status}");
    }
}

#[test]
fn a_node_may_have_certificates_for_exactly_the_service_accounts_that_run_on_it() {
    let pods = objects(
        r#"
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p1}, spec: {nodeName: n1, serviceAccountName: x}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p2}, spec: {nodeName: n2}, status: {podIP: 10.1.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p3}, spec: {nodeName: n1, serviceAccountName: done}, status: {phase: Succeeded}}
"#,
    );
    let mut world = world(&pods);
    let expected = [("a".to_owned(), "x".to_owned())];
    assert_eq!(
        world.service_accounts_on("n1"),
        expected.into(),
        "before it has an address, too"
    );
    assert!(world.is_running_on("n1", "a", "x"));
    assert!(world.is_running_on("n2", "a", "default"));
    for (node, namespace, account) in [
        ("n2", "a", "x"),
        ("n1", "b", "x"),
        ("n1", "a", "done"),
        ("n3", "a", "x"),
    ] {
        assert!(
            !world.is_running_on(node, namespace, account),
            "{node} {namespace} {account}"
        );
    }
    world.delete(&pods[0].key);
    assert!(!world.is_running_on("n1", "a", "x"));
    assert!(world.service_accounts_on("n1").is_empty());
}

#[test]
fn a_pod_that_cannot_be_read_keeps_its_last_good_version_and_is_named() {
    let good = objects(
        "{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p}, status: {podIP: 10.1.0.1}}",
    );
    let bad = objects(
        "{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p}, status: {podIP: here}}",
    );
    let mut world = world(&good);
    let before = world.compile().workloads.clone();
    world.apply(&bad[0]);
    let compiled = world.compile();
    assert_eq!(compiled.workloads, before);
    assert!(
        compiled.invalid[&bad[0].key].contains("`here` is no address of one host"),
        "{:?}",
        compiled.invalid
    );
    world.apply(&good[0]);
    assert!(world.compile().invalid.is_empty());
}

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use serde_json::json;

use super::*;

fn facts(mesh: &str, mtls: &str) -> Value {
    let mut labels = serde_json::Map::new();
    for (label, value) in [(LABEL_MESH, mesh), (LABEL_MTLS, mtls)] {
        if !value.is_empty() {
            labels.insert(label.into(), value.into());
        }
    }
    json!({"metadata": {"labels": labels}, "spec": {"serviceAccountName": "sa"}})
}

#[test]
fn the_namespaces_label_puts_pods_in_and_the_pods_own_takes_it_out() {
    // namespace, its labels, the pod's labels, in the mesh, strict
    let cases = [
        ("shop", ("", ""), ("", ""), false, false),
        ("shop", ("disabled", ""), ("", ""), false, false),
        ("shop", ("Enabled", ""), ("", ""), false, false),
        ("shop", ("enabled", ""), ("", ""), true, false),
        ("shop", ("enabled", ""), ("disabled", ""), false, false),
        ("shop", ("enabled", ""), ("enabled", ""), true, false),
        ("shop", ("", ""), ("enabled", ""), false, false),
        ("shop", ("enabled", "strict"), ("", ""), true, true),
        ("shop", ("enabled", "strikt"), ("", ""), true, true),
        (
            "shop",
            ("enabled", "strict"),
            ("", "permissive"),
            true,
            false,
        ),
        (
            "shop",
            ("enabled", "permissive"),
            ("", "strict"),
            true,
            true,
        ),
        ("weft-system", ("enabled", ""), ("", ""), false, false),
    ];
    for case @ (name, namespace, pod, captured, strict) in cases {
        let namespace = namespace_facts(&facts(namespace.0, namespace.1));
        let pod = pod_facts(&facts(pod.0, pod.1));
        let found = desired(name, Some(&namespace), Some(&pod)).unwrap();
        assert_eq!(
            (found.captured, found.strict),
            (captured, strict),
            "{case:?}"
        );
    }
}

#[test]
fn a_pod_that_the_api_does_not_know_is_undecided_only_where_it_matters() {
    let enabled = namespace_facts(&facts("enabled", ""));
    assert_eq!(desired("shop", Some(&enabled), None), None);
    assert_eq!(desired("shop", None, None), Some(Desired::default()));
    assert_eq!(
        desired("weft-system", Some(&enabled), None),
        Some(Desired::default())
    );
}

#[test]
fn a_pod_in_the_hosts_network_stays_out() {
    let enabled = namespace_facts(&facts("enabled", ""));
    let pod = pod_facts(&json!({"spec": {"hostNetwork": true}}));
    assert!(
        !desired("shop", Some(&enabled), Some(&pod))
            .unwrap()
            .captured
    );
}

#[test]
fn probe_ports_are_found_by_number_and_name_and_nonsense_is_passed_over() {
    let spec = json!({
        "initContainers": [{"startupProbe": {"tcpSocket": {"port": 7}}}],
        "containers": [
            {
                "ports": [{"name": "web", "containerPort": 8080}],
                "readinessProbe": {"httpGet": {"port": "web"}},
                "livenessProbe": {"grpc": {"port": 9000}},
                "startupProbe": {"httpGet": {"port": "8081"}},
            },
            {"readinessProbe": {"httpGet": {"port": "nowhere"}}, "livenessProbe": 3},
            {"readinessProbe": {"tcpSocket": {"port": 70000}}},
            {"readinessProbe": {"exec": {"command": ["true"]}}},
            "nonsense",
        ],
    });
    assert_eq!(probe_ports(&spec), [7, 8080, 8081, 9000]);
    assert_eq!(probe_ports(&Value::Null), [0_u16; 0]);
}

#[test]
fn only_changes_that_matter_on_the_node_are_told() {
    let mut objects = Objects::default();
    let pod = |node: &str, label: &str| {
        let value = json!({
            "metadata": {"uid": "u1", "labels": {LABEL_MESH: label}},
            "spec": {"nodeName": node},
        });
        Event::Applied(Object {
            key: pod_key("shop", "web"),
            value: Arc::new(value),
        })
    };
    assert!(objects.update("one", &pod("one", "a")));
    assert!(!objects.update("one", &pod("one", "a")));
    assert!(objects.update("one", &pod("one", "b")));
    assert!(objects.pod("shop", "web", "u1").is_some());
    assert!(objects.pod("shop", "web", "").is_some());
    assert!(objects.pod("shop", "web", "u2").is_none());
    assert!(objects.update("one", &pod("two", "b")));
    assert!(!objects.update("one", &pod("two", "c")));
    assert!(!objects.update("one", &Event::Deleted(pod_key("shop", "web"))));
    assert!(!objects.update("one", &Event::Synced));
}

#[test]
fn the_condition_and_the_annotation_are_read() {
    let pod = pod_facts(&json!({
        "metadata": {"annotations": {ANNOTATION_CAPTURED: "abc"}},
        "status": {"conditions": [
            {"type": "Ready", "status": "True"},
            {"type": CONDITION_CAPTURED, "status": "False", "message": "abc",
             "lastTransitionTime": "t"},
        ]},
    }));
    assert_eq!(pod.captured.as_deref(), Some("abc"));
    let acknowledged = Acknowledged {
        captured: false,
        message: "abc".into(),
        since: "t".into(),
    };
    assert_eq!(pod.acknowledged, Some(acknowledged));
    assert_eq!(pod.service_account, "default");
}

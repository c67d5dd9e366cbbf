#![allow(clippy::unwrap_used)]

use std::net::IpAddr;

use serde_json::json;
use weft_source::{Event, Object};

use super::*;
use crate::objects::{Objects, pod_key};

/// As libcni 1.0.1 in containerd 1.6 writes it, but for the configuration.
fn containerd(result: Value) -> Value {
    json!({
        "kind": "cniCacheV1",
        "containerId": "4f2c9a",
        "config": "eyJjbmlWZXJzaW9uIjoiMS4wLjAifQ==",
        "ifName": "eth0",
        "networkName": "pods",
        "cniArgs": [
            ["K8S_POD_INFRA_CONTAINER_ID", "4f2c9a"],
            ["K8S_POD_UID", "u1"],
            ["IgnoreUnknown", "1"],
            ["K8S_POD_NAMESPACE", "shop"],
            ["K8S_POD_NAME", "web-1"],
        ],
        "capabilityArgs": {"dns": {"Servers": ["10.96.0.10"]}},
        "result": result,
    })
}

fn bridge(version: &str, ips: Value) -> Value {
    json!({
        "cniVersion": version,
        "dns": {},
        "interfaces": [
            {"mac": "d2:b5:0c:21:3d:3a", "name": "cni0"},
            {"mac": "0a:18:37:d2:22:05", "name": "veth7a3cf1d2"},
            {"mac": "5a:d8:3c:7d:a1:0f", "name": "eth0", "sandbox": "/var/run/netns/cni-8b1f"},
        ],
        "ips": ips,
        "routes": [{"dst": "0.0.0.0/0"}],
    })
}

fn parsed(value: &Value) -> Option<Sandbox> {
    parse(value.to_string().as_bytes()).unwrap()
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn a_pods_sandbox_is_read_whatever_version_and_family_its_result_has() {
    let v4 = json!({"address": "10.244.1.5/24", "gateway": "10.244.1.1", "interface": 2});
    let v6 =
        json!({"address": "fd00:10:244:1::5/64", "gateway": "fd00:10:244:1::1", "interface": 2});
    let old = json!({"version": "4", "address": "10.244.1.5/24", "interface": 2});
    let cases = [
        ("1.0.0", json!([v4]), addresses(&["10.244.1.5"])),
        ("0.4.0", json!([old]), addresses(&["10.244.1.5"])),
        ("1.0.0", json!([v6]), addresses(&["fd00:10:244:1::5"])),
        (
            "1.1.0",
            json!([v4, v6]),
            addresses(&["10.244.1.5", "fd00:10:244:1::5"]),
        ),
    ];
    for (version, ips, expected) in cases {
        let sandbox = parsed(&containerd(bridge(version, ips))).unwrap();
        assert_eq!(
            sandbox,
            Sandbox {
                container_id: "4f2c9a".into(),
                netns: "/var/run/netns/cni-8b1f".into(),
                ifname: "eth0".into(),
                namespace: "shop".into(),
                pod: "web-1".into(),
                uid: "u1".into(),
                addresses: expected,
            },
            "{version}"
        );
    }
}

#[test]
fn the_namespace_is_taken_from_wherever_it_is_told() {
    let ips = json!([{"address": "10.0.0.1/32"}]);
    // Calico names no interface of the host, and an interface of the pod by the host's name.
    let calico = json!({"cniVersion": "0.3.1", "ips": ips,
        "interfaces": [{"name": "cali1", "sandbox": "/var/run/netns/x"}]});
    assert_eq!(
        parsed(&containerd(calico)).unwrap().netns,
        Path::new("/var/run/netns/x")
    );
    let mut newer = containerd(json!({"cniVersion": "1.1.0", "ips": ips}));
    newer["netns"] = "/run/netns/y".into();
    assert_eq!(parsed(&newer).unwrap().netns, Path::new("/run/netns/y"));
}

#[test]
fn what_is_not_the_pod_network_of_a_pod_is_passed_over() {
    let whole = containerd(bridge(
        "1.0.0",
        json!([{"address": "10.0.0.1/24", "interface": 2}]),
    ));
    assert!(parsed(&whole).is_some());
    let changed = |key: &str, value: Value| {
        let mut changed = whole.clone();
        changed[key] = value;
        changed
    };
    for other in [
        changed("ifName", "net1".into()),
        changed("ifName", "lo".into()),
        changed("containerId", "../x".into()),
        changed("cniArgs", Value::Null),
        changed("cniArgs", json!([["IgnoreUnknown", "1"]])),
        changed(
            "result",
            json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.1/24"}}),
        ),
        json!({}),
    ] {
        assert_eq!(parsed(&other), None, "{other}");
    }
    for text in ["", "{", r#"{"cniArgs": 1}"#] {
        assert!(parse(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn a_folder_is_read_past_what_is_broken_and_need_not_exist() {
    let dir = tempfile::tempdir().unwrap();
    assert!(read(&dir.path().join("none")).unwrap().is_empty());
    let whole = containerd(bridge(
        "1.0.0",
        json!([{"address": "10.0.0.1/24", "interface": 2}]),
    ));
    fs::write(dir.path().join("pods-4f2c9a-eth0"), whole.to_string()).unwrap();
    fs::write(dir.path().join("pods-half-eth0"), "{\"kind\":").unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    assert_eq!(read(dir.path()).unwrap().len(), 1);
}

#[test]
fn only_sandboxes_of_this_nodes_pods_are_adopted() {
    let sandbox = |id: &str, pod: &str, uid: &str, address: &str| Sandbox {
        container_id: id.into(),
        netns: "/run/netns/x".into(),
        ifname: "eth0".into(),
        namespace: "shop".into(),
        pod: pod.into(),
        uid: uid.into(),
        addresses: addresses(&[address]),
    };
    let mut objects = Objects::default();
    for (name, uid, node, extra, ip) in [
        ("web", "u1", "one", json!({}), "10.0.0.1"),
        (
            "host",
            "u2",
            "one",
            json!({"hostNetwork": true}),
            "10.0.0.2",
        ),
        ("there", "u3", "two", json!({}), "10.0.0.3"),
        ("unscheduled", "u4", "", json!({}), "10.0.0.4"),
        ("starting", "u5", "one", json!({}), ""),
    ] {
        let mut spec = extra;
        spec["nodeName"] = node.into();
        let value = json!({
            "metadata": {"name": name, "namespace": "shop", "uid": uid}, "spec": spec,
            "status": {"podIP": ip, "podIPs": [{"ip": ip}, {"ip": "fd00::1"}]},
        });
        let key = pod_key("shop", name);
        objects.update(
            "one",
            &Event::Applied(Object {
                key,
                value: value.into(),
            }),
        );
    }
    let cases = [
        (
            "as the API has it",
            sandbox("a", "web", "u1", "10.0.0.1"),
            true,
        ),
        (
            "by its other address",
            sandbox("a", "web", "u1", "fd00::1"),
            true,
        ),
        ("without UID", sandbox("a", "web", "", "10.0.0.1"), true),
        (
            "known already",
            sandbox("known", "web", "u1", "10.0.0.1"),
            false,
        ),
        (
            "a former pod of the name",
            sandbox("a", "web", "u0", "10.0.0.1"),
            false,
        ),
        (
            "a former sandbox of the pod",
            sandbox("a", "web", "u1", "10.0.0.9"),
            false,
        ),
        (
            "on the host's network",
            sandbox("a", "host", "u2", "10.0.0.2"),
            false,
        ),
        (
            "of another node",
            sandbox("a", "there", "u3", "10.0.0.3"),
            false,
        ),
        (
            "not scheduled",
            sandbox("a", "unscheduled", "u4", "10.0.0.4"),
            false,
        ),
        (
            "without addresses yet",
            sandbox("a", "starting", "u5", "10.0.0.5"),
            false,
        ),
        ("unknown", sandbox("a", "nobody", "u9", "10.0.0.1"), false),
    ];
    let adopt = |cached| {
        let pod = |s: &Sandbox| objects.pod(&s.namespace, &s.pod, &s.uid);
        adoptable(cached, |id| id == "known", pod)
    };
    for (what, cached, expected) in cases {
        let adopted = adopt(vec![cached.clone(), cached]);
        assert_eq!(adopted.len(), usize::from(expected), "{what}");
        assert!(adopted.iter().all(|sandbox| sandbox.uid == "u1"), "{what}");
    }
}

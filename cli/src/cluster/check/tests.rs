//! Each check, as a table: a change of a cluster where all is well, and what is found then.

use std::time::SystemTime;

use serde_json::{Value, json};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Level::*, *};
use crate::cluster::object::name;

const NOW: i64 = 1_760_000_000;

fn at(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(NOW + seconds).expect("a time");
    time.format(&Rfc3339).expect("a date")
}

fn crd(plural: &str) -> Value {
    json!({"metadata": {"name": format!("{plural}.gateway.networking.k8s.io"), "annotations": {
            "gateway.networking.k8s.io/bundle-version": "v1.4.0", "gateway.networking.k8s.io/channel": "standard"}},
        "spec": {"group": "gateway.networking.k8s.io"}})
}

fn ready() -> Value {
    json!([{"type": "Ready", "status": "True"}])
}

fn node(name: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"conditions": ready(),
        "nodeInfo": {"operatingSystem": "linux", "kernelVersion": "6.1.0-13-amd64"}}})
}

fn part(part: &str, on: &str) -> Value {
    json!({"metadata": {"name": format!("{part}-{on}"), "namespace": "weft-system", "creationTimestamp": at(-600),
            "labels": {"app.kubernetes.io/name": part, "app.kubernetes.io/version": env!("CARGO_PKG_VERSION")}},
        "spec": {"nodeName": on}, "status": {"phase": "Running", "conditions": ready()}})
}

fn workload(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app.kubernetes.io/version": env!("CARGO_PKG_VERSION")}},
        "spec": {"replicas": 2}, "status": {"availableReplicas": 2}})
}

/// A root that is valid until so many seconds from now.
fn root(seconds: i64) -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    let end = SystemTime::UNIX_EPOCH
        + std::time::Duration::from_secs(u64::try_from(NOW + seconds).expect("after 1970"));
    parameters.not_after = end.into();
    parameters.self_signed(&key).expect("a certificate").pem()
}

/// Two nodes, a pod of the mesh, nothing wrong.
fn good() -> Facts {
    let mut pods: Vec<Value> = ["a", "b"]
        .into_iter()
        .flat_map(|on| ["weft-cni", "weft-proxy"].map(|name| part(name, on)))
        .collect();
    pods.push(
        json!({"metadata": {"name": "web", "namespace": "shop", "creationTimestamp": at(-600),
            "labels": {"app": "web"}, "annotations": {"weft.dev/captured": "sandbox"}},
        "spec": {"nodeName": "a", "containers": [{"readinessProbe": {"httpGet": {"port": 80}}}]},
        "status": {"phase": "Running", "conditions": ready()}}),
    );
    let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {"renewTime": at(-5)}});
    Facts {
        now: OffsetDateTime::from_unix_timestamp(NOW).expect("a time"),
        local_skew: Duration::ZERO,
        version: json!({"gitVersion": "v1.34.4"}),
        definitions: vec![crd("httproutes"), crd("grpcroutes")],
        nodes: vec![node("a"), node("b")],
        node_leases: vec![lease("a"), lease("b")],
        namespaces: vec![
            json!({"metadata": {"name": "weft-system", "labels": {"pod-security.kubernetes.io/enforce": "privileged"}}}),
            json!({"metadata": {"name": "shop", "labels": {"weft.dev/mesh": "enabled"}}}),
        ],
        cilium: None,
        pods,
        policies: Vec::new(),
        routes: Vec::new(),
        workloads: ["weft-controller", "weft-cni", "weft-proxy"]
            .map(workload)
            .to_vec(),
        leader: Some(lease("weft-controller")),
        bundle: Some(json!({"data": {"root-cert.pem": root(86_400 * 365)}})),
        reasons: Default::default(),
        served: [(
            "weft-proxy-a".to_owned(),
            json!([{"pod": "shop/web", "certificate": {"not_after": at(86_000)}}]),
        )]
        .into(),
        unread: Vec::new(),
    }
}

/// The pod of the mesh.
fn web(facts: &mut Facts) -> &mut Value {
    let web = facts.pods.iter_mut().find(|pod| name(pod) == "web");
    web.expect("it is there")
}

fn policy(spec: Value) -> Value {
    json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec})
}

type Change = fn(&mut Facts);

#[test]
fn where_all_is_well_nothing_is_found() {
    let (findings, failed) = after(&good());
    let bad: Vec<_> = findings.iter().filter(|one| one.level != Ok).collect();
    assert!(bad.is_empty() && !failed, "{bad:?}");
    let said: Vec<_> = findings.iter().map(|one| one.check).collect();
    for check in [
        "kubernetes",
        "gateway-api",
        "kernel",
        "clocks",
        "admission",
        "controller",
        "nodes",
        "versions",
        "roots",
        "certificates",
        "labels",
        "capture",
        "policies",
        "routes",
    ] {
        assert!(said.contains(&check), "{check}");
    }
}

#[test]
fn every_fault_is_found_by_its_check_and_comes_with_a_fix() {
    let cases: &[(&str, Level, &str, Change)] = &[
        ("kubernetes", Fail, "v1.28.9 is too old", |f| {
            f.version = json!({"gitVersion": "v1.28.9"})
        }),
        ("kubernetes", Warn, "calls its version", |f| {
            f.version = json!({})
        }),
        ("gateway-api", Warn, "no HTTPRoutes", |f| {
            f.definitions.clear()
        }),
        ("gateway-api", Warn, "no GRPCRoutes", |f| {
            f.definitions.truncate(1)
        }),
        ("gateway-api", Fail, "v1.0.0 is too old", |f| {
            for crd in &mut f.definitions {
                crd["metadata"]["annotations"]["gateway.networking.k8s.io/bundle-version"] =
                    "v1.0.0".into();
            }
        }),
        (
            "gateway-api",
            Warn,
            "not of v1.4.0: grpcroutes.gateway.networking.k8s.io",
            |f| {
                f.definitions[1]["metadata"]["annotations"]["gateway.networking.k8s.io/bundle-version"] =
                    "v1.2.0".into();
            },
        ),
        ("kernel", Fail, "node b: Linux 5.4.0 is too old", |f| {
            f.nodes[1]["status"]["nodeInfo"]["kernelVersion"] = "5.4.0".into()
        }),
        ("kernel", Warn, "node b runs windows", |f| {
            f.nodes[1]["status"]["nodeInfo"]["operatingSystem"] = "windows".into()
        }),
        ("clocks", Warn, "this machine's clock is -90 s off", |f| {
            f.local_skew = Duration::seconds(-90)
        }),
        ("clocks", Fail, "node a is 60 s ahead", |f| {
            f.node_leases[0]["spec"]["renewTime"] = at(60).into()
        }),
        ("clocks", Fail, "node a is about 300 s behind", |f| {
            f.node_leases[0]["spec"]["renewTime"] = at(-300).into()
        }),
        ("cilium", Fail, "socket load balancing", |f| {
            f.cilium =
                Some(json!({"data": {"kube-proxy-replacement": "true", "cni-exclusive": "false"}}))
        }),
        (
            "cilium",
            Fail,
            "takes other plugins' CNI configuration away",
            |f| f.cilium = Some(json!({"data": {}})),
        ),
        ("admission", Fail, "enforces baseline", |f| {
            f.namespaces[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] =
                "baseline".into()
        }),
        (
            "controller",
            Fail,
            "deployment weft-system/weft-controller is not there",
            |f| f.workloads.retain(|one| name(one) != "weft-controller"),
        ),
        ("controller", Fail, "no replica is ready", |f| {
            f.workloads[0]["status"]["availableReplicas"] = 0.into()
        }),
        ("controller", Warn, "1 of 2 replicas", |f| {
            f.workloads[0]["status"]["availableReplicas"] = 1.into()
        }),
        ("controller", Fail, "no replica holds lease", |f| {
            f.leader = None
        }),
        ("controller", Fail, "no replica holds lease", |f| {
            f.leader = Some(json!({"spec": {"renewTime": at(-120)}}))
        }),
        ("nodes", Fail, "node b has no weft-proxy", |f| {
            f.pods.retain(|pod| name(pod) != "weft-proxy-b")
        }),
        (
            "nodes",
            Fail,
            "node b: weft-cni is not ready: chain: not there",
            |f| {
                f.pods[2]["status"]["conditions"] = json!([]);
                f.reasons
                    .insert("weft-cni-b".into(), "chain: not there".into());
            },
        ),
        (
            "nodes",
            Fail,
            "node b: weft-proxy is not ready: ErrImagePull",
            |f| {
                f.pods[3]["status"] = json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]});
            },
        ),
        ("nodes", Warn, "node b is not ready itself", |f| {
            f.nodes[1]["status"]["conditions"] = json!([])
        }),
        ("versions", Fail, "weft-proxy-a (0.0.1)", |f| {
            f.pods[1]["metadata"]["labels"]["app.kubernetes.io/version"] = "0.0.1".into()
        }),
        ("versions", Warn, "this program is of", |f| {
            let all = f.pods.iter_mut().chain(&mut f.workloads);
            all.for_each(|one| {
                one["metadata"]["labels"]["app.kubernetes.io/version"] = "9.9.9".into()
            });
        }),
        ("roots", Fail, "is not there: proxies can't start", |f| {
            f.bundle = None
        }),
        ("roots", Fail, "has no root-cert.pem", |f| {
            f.bundle = Some(json!({}))
        }),
        ("roots", Fail, "a root expired on", |f| {
            f.bundle = Some(json!({"data": {"root-cert.pem": root(-60)}}))
        }),
        ("roots", Warn, "a root expires on", |f| {
            f.bundle = Some(json!({"data": {"root-cert.pem": root(86_400)}}))
        }),
        ("roots", Fail, "no certificate", |f| {
            f.bundle = Some(
                json!({"data": {"root-cert.pem": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}}),
            );
        }),
        (
            "certificates",
            Fail,
            "weft-proxy-a has no certificate for shop/web",
            |f| {
                f.served.insert(
                    "weft-proxy-a".into(),
                    json!([{"pod": "shop/web", "certificate": null}]),
                );
            },
        ),
        (
            "certificates",
            Fail,
            "could not renew the certificate of shop/web",
            |f| {
                f.served.insert(
                    "weft-proxy-a".into(),
                    json!([{"pod": "shop/web", "certificate": {"not_after": at(3600)}}]),
                );
            },
        ),
        (
            "labels",
            Fail,
            "namespace shop has weft.dev/mesh=on, which is read as absent",
            |f| {
                f.namespaces[1]["metadata"]["labels"]["weft.dev/mesh"] = "on".into();
            },
        ),
        (
            "labels",
            Fail,
            "pod shop/web has weft.dev/mtls=Strict, which is read as strict",
            |f| {
                web(f)["metadata"]["labels"]["weft.dev/mtls"] = "Strict".into();
            },
        ),
        ("capture", Fail, "not in it: shop/web on a", |f| {
            web(f)["metadata"]["annotations"] = json!({})
        }),
        ("capture", Warn, "still in it: shop/web", |f| {
            f.namespaces[1]["metadata"]["labels"] = json!({})
        }),
        (
            "policies",
            Fail,
            "let ports in, but not 15008: shop/web",
            |f| {
                f.policies.push(policy(
                    json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}),
                ));
            },
        ),
        (
            "policies",
            Fail,
            "let ports out, but not 15008: shop/web",
            |f| {
                f.policies.push(policy(json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"],
                "egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}, {"ports": [{"port": 8000, "endPort": 9000}]}]})));
            },
        ),
        (
            "policies",
            Warn,
            "do not name the source of probes: shop/web",
            |f| {
                f.policies.push(policy(
                    json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}),
                ));
            },
        ),
        (
            "routes",
            Warn,
            "HTTPRoute shop/r: Accepted is not True: Unseen",
            |f| {
                f.routes.push(
                    json!({"kind": "HTTPRoute", "metadata": {"name": "r", "namespace": "shop"},
                "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "web"}]}}),
                );
            },
        ),
        (
            "routes",
            Warn,
            "weft.dev/Programmed is not True: NotAcknowledged: node a",
            |f| {
                f.routes.push(json!({"kind": "HTTPRoute", "metadata": {"name": "r", "namespace": "shop"},
                "spec": {"parentRefs": [{"group": "core", "kind": "Service", "name": "web"}]},
                "status": {"parents": [{"controllerName": "weft.dev/mesh-controller", "conditions": [
                    {"type": "Accepted", "status": "True"},
                    {"type": "weft.dev/Programmed", "status": "False", "reason": "NotAcknowledged", "message": "node a"}]}]}}));
            },
        ),
        (
            "unread",
            Warn,
            "not looked at: /api/v1/pods: forbidden",
            |f| f.unread.push("/api/v1/pods: forbidden".into()),
        ),
    ];
    for (check, level, says, change) in cases {
        let mut facts = good();
        change(&mut facts);
        let (findings, failed) = after(&facts);
        let found = findings
            .iter()
            .find(|one| one.check == *check && one.level == *level && one.message.contains(says));
        let found = found.unwrap_or_else(|| panic!("{says}: {findings:#?}"));
        assert!(
            found.fix.as_ref().is_some_and(|fix| !fix.is_empty()),
            "{says}"
        );
        assert_eq!(
            failed,
            findings.iter().any(|one| one.level == Fail),
            "{says}"
        );
        // Nothing else is blamed, but for what follows from it.
        let others: Vec<_> = findings
            .iter()
            .filter(|one| one.level == Fail && one.check != *check)
            .collect();
        assert!(others.is_empty(), "{says}: {others:?}");
    }
}

#[test]
fn what_only_looks_like_a_fault_is_none() {
    let cases: &[(&str, Change)] = &[
        ("a young pod that is not in the mesh yet", |f| {
            let web = web(f);
            web["metadata"]["annotations"] = json!({});
            web["metadata"]["creationTimestamp"] = at(-5).into();
        }),
        ("a pod that opted out", |f| {
            let web = web(f);
            web["metadata"]["annotations"] = json!({});
            web["metadata"]["labels"]["weft.dev/mesh"] = "disabled".into();
        }),
        ("a pod on its node's network", |f| {
            let web = web(f);
            web["metadata"]["annotations"] = json!({});
            web["spec"]["hostNetwork"] = true.into();
        }),
        ("a Job's pod that is over", |f| {
            let web = web(f);
            web["metadata"]["annotations"] = json!({});
            web["status"]["phase"] = "Succeeded".into();
        }),
        ("two proxies while one replaces the other", |f| {
            let mut next = part("weft-proxy", "a");
            next["metadata"]["name"] = "weft-proxy-next".into();
            next["status"]["conditions"] = json!([]);
            f.pods.push(next);
        }),
        ("a policy that lets nothing in", |f| {
            web(f)["spec"] = json!({"nodeName": "a"});
            f.policies.push(policy(
                json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
            ));
        }),
        ("a policy of other pods", |f| {
            f.policies.push(policy(json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]},
                "ingress": [{"ports": [{"port": 80}]}]})));
        }),
        ("a policy with a range that has 15008", |f| {
            f.policies.push(policy(json!({"podSelector": {}, "ingress": [{"ports": [{"port": 1024, "endPort": 65535}]}]})));
        }),
        ("a policy that lets names be resolved alone", |f| {
            f.policies.push(policy(json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": 53}]}]})));
        }),
        ("15008 in another policy of the same pod", |f| {
            f.policies.push(policy(
                json!({"podSelector": {}, "ingress": [{"ports": [{"port": 80}]}]}),
            ));
            f.policies.push(policy(json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"ports": [{"port": 15008, "protocol": "TCP"}]}]})));
        }),
        ("cilium beside a mesh", |f| {
            f.cilium = Some(
                json!({"data": {"kube-proxy-replacement": "true", "bpf-lb-sock-hostns-only": "true", "cni-exclusive": "false"}}),
            );
        }),
        ("a gateway's route", |f| {
            f.routes.push(json!({"kind": "HTTPRoute", "metadata": {"name": "r", "namespace": "shop"}, "spec": {"parentRefs": [{"name": "g"}]}}));
        }),
        ("a node that is down and so renews no lease", |f| {
            f.nodes[1]["status"]["conditions"] = json!([]);
            f.node_leases[1]["spec"]["renewTime"] = at(-3600).into();
        }),
    ];
    for (what, change) in cases {
        let mut facts = good();
        change(&mut facts);
        let (findings, failed) = after(&facts);
        assert!(!failed, "{what}: {findings:#?}");
        let wrong: Vec<_> = findings
            .iter()
            .filter(|one| one.level == Warn && one.check != "nodes")
            .collect();
        assert!(wrong.is_empty(), "{what}: {wrong:#?}");
    }
}

#[test]
fn before_an_installation_only_the_cluster_is_looked_at() {
    let mut facts = good();
    facts.workloads.clear();
    facts.pods.clear();
    facts.bundle = None;
    assert!(!before(&facts).1);
    let (findings, failed) = after(&facts);
    assert!(failed);
    assert!(
        text(&findings).contains("✗ controller   weft is not installed in namespace weft-system\n")
    );
}

#[test]
fn versions_are_compared_by_numbers() {
    for (text, found) in [
        ("v1.34.4-eks-1", Some((1, 34))),
        ("6.1.0-13-amd64", Some((6, 1))),
        ("1.29+", Some((1, 29))),
        ("5.10", Some((5, 10))),
        ("", None),
        ("v1", None),
        ("latest", None),
    ] {
        assert_eq!(platform::numbers(text), found, "{text}");
    }
}

#[test]
fn long_lists_of_names_are_cut() {
    let names = |count: usize| (0..count).map(|i| i.to_string()).collect::<Vec<_>>();
    assert_eq!(some(&names(1)), "0");
    assert_eq!(some(&names(3)), "0, 1, 2");
    assert_eq!(some(&names(4)), "0, 1 and 2 more");
}

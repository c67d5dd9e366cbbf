//! The kubelet's probes reach captured pods in both modes, and nobody else passes for the kubelet.

use std::time::Duration;

use weft_lab_tests::{Dialled, Family, Lab, at, eventually};

const PROBES: &str = include_str!("../manifests/probes.yaml");
const PROBED: u16 = 8080;
const NOT_PROBED: u16 = 8083;
/// As names.rs has them.
const PROBE_SOURCE_V4: &str = "169.254.7.128";
const PROBE_SOURCE_V6: &str = "fd77:6566:7400::128";

// Every family, and every setting of rp_filter.
mod probes_of_every_kind_pass_in_both_modes_and_nobody_passes_for_a_probe {
    use super::*;

    #[test]
    fn ipv4_with_strict_rp_filter() {
        check(Family::Ipv4, "1");
    }

    #[test]
    fn dual_with_loose_rp_filter() {
        check(Family::Dual, "2");
    }

    #[test]
    fn ipv6_without_rp_filter() {
        check(Family::Ipv6, "0");
    }
}

fn check(family: Family, rp_filter: &str) {
    // Started in strict: ready means that every probe passed.
    let lab = Lab::up_in_with(family, &["--rp-filter", rp_filter], PROBES);
    only_probed_ports(&lab);
    services(&lab);
    masqueraded(&lab);
    spoofed(&lab);

    let label = |label: &str| lab.weft(&["label", "namespace", "shop", label]).ok();
    label("weft.dev/mtls=permissive");
    let from_far = || lab.dial("plain/far", &lab.pod_at("shop", "server", NOT_PROBED), &[]);
    eventually(Duration::from_secs(10), || match from_far().status() {
        200 => Ok(()),
        other => Err(format!("{other} in permissive")),
    });
    label("weft.dev/mtls=strict");
    eventually(Duration::from_secs(10), || match from_far().status() {
        0 => Ok(()),
        other => Err(format!("{other} in strict")),
    });
    let server = lab.pod("shop", "server");
    let containers = server["status"]["containerStatuses"].as_array();
    for container in containers.expect("containers") {
        assert_eq!(container["ready"], true, "{container}");
        assert_eq!(container["restartCount"], 0, "{container}");
    }
}

#[track_caller]
fn is_refused(dialled: &Dialled) {
    assert_eq!(dialled.answer, "", "{dialled:?}");
}

/// What the node itself opens.
fn only_probed_ports(lab: &Lab) {
    for ip in lab.pod_ips("shop", "server") {
        let from = |node: &str, port| lab.dial_in(node, &at(&ip, port), &[]);
        let dialled = from("n1", PROBED);
        assert_eq!(dialled.status(), 200, "{ip}: {dialled:?}");
        let source = if ip.contains(':') {
            PROBE_SOURCE_V6
        } else {
            PROBE_SOURCE_V4
        };
        assert!(dialled.answer.contains("ok") || !dialled.answer.contains(source));
        is_refused(&from("n1", NOT_PROBED));
        is_refused(&from("n2", PROBED));
    }
}

/// The node dials a Service: translated, so it is a connection like any other.
fn services(lab: &Lab) {
    let service = lab
        .object("services", "shop", "server")
        .expect("it is there");
    let addresses = service["spec"]["clusterIPs"].as_array().expect("addresses");
    for address in addresses {
        let address = address.as_str().expect("text");
        is_refused(&lab.dial_in("n1", &at(address, 80), &[]));
    }
}

/// Traffic of others that bears the node's address, as it does where a node masquerades.
fn masqueraded(lab: &Lab) {
    let ips = lab.pod_ips("shop", "server");
    let chain = "{ type nat hook postrouting priority 100 ; }";
    for rule in [
        "add table inet test-masquerade",
        &format!("add chain inet test-masquerade post {chain}"),
        "add rule inet test-masquerade post fib saddr type != local masquerade",
    ] {
        lab.run_in("n1", &["nft", rule]);
    }
    for ip in &ips {
        for port in [PROBED, NOT_PROBED] {
            is_refused(&lab.dial("plain/far", &at(ip, port), &[]));
        }
    }
    // It did come from the node's address, to a port that is not the mesh's to refuse.
    lab.weft(&["label", "namespace", "shop", "weft.dev/mtls=permissive"])
        .ok();
    for ip in &ips {
        let far = lab.pod_ips("plain", "far");
        eventually(Duration::from_secs(10), || {
            let dialled = lab.dial("plain/far", &at(ip, PROBED), &["--path", "/"]);
            match dialled.status() {
                200 if far.iter().any(|far| dialled.answer.contains(far)) => {
                    Err(format!("not masqueraded: {dialled:?}"))
                }
                200 => Ok(()),
                _ => Err(format!("{dialled:?}")),
            }
        });
    }
    lab.weft(&["label", "namespace", "shop", "weft.dev/mtls=strict"])
        .ok();
    eventually(Duration::from_secs(10), || {
        let dialled = lab.dial("plain/far", &at(&ips[0], PROBED), &[]);
        match dialled.status() {
            0 => Ok(()),
            other => Err(format!("{other} in strict")),
        }
    });
    lab.run_in("n1", &["nft", "delete table inet test-masquerade"]);
}

/// Pods outside of the mesh that bear the probes' source: on the same bridge, and on another node.
fn spoofed(lab: &Lab) {
    for (pod, node) in [("near", "n1"), ("far", "n2")] {
        for ip in lab.pod_ips("shop", "server") {
            let own = lab.pod_ips("plain", pod);
            let v6 = ip.contains(':');
            let own = own.iter().find(|own| own.contains(':') == v6);
            let own = own.expect("an address of the same family");
            let (source, bits) = if v6 {
                (PROBE_SOURCE_V6, "128")
            } else {
                (PROBE_SOURCE_V4, "32")
            };
            let prefix = format!("{source}/{bits}");
            let target = format!("plain/{pod}");
            lab.exec(&target, &["ip", "addr", "add", &prefix, "dev", "lo"])
                .ok();
            // The answers would find it.
            lab.run_in(node, &["ip", "route", "add", &prefix, "via", own]);
            is_refused(&lab.dial(&target, &at(&ip, PROBED), &["--from", source]));
            lab.run_in(node, &["ip", "route", "del", &prefix]);
            lab.exec(&target, &["ip", "addr", "del", &prefix, "dev", "lo"])
                .ok();
        }
    }
    // Probes go on.
    let dialled = lab.dial_in("n1", &lab.pod_at("shop", "server", PROBED), &[]);
    assert_eq!(dialled.status(), 200, "{dialled:?}");
}

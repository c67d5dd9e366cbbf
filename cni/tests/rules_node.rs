//! What the node's rules do to a pod that bears the probes' source.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use common::TestNs;
use weft_api::names::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};
use weft_cni::rules::{NodePlan, apply_node, plan_node};

/// A node with two pods on one bridge, and a third behind a link of its own, as other CNIs do it.
struct Bridged {
    node: TestNs,
    one: TestNs,
    two: TestNs,
    routed: TestNs,
}

impl Bridged {
    fn new() -> Self {
        let (node, one, two, routed) = (TestNs::new(), TestNs::new(), TestNs::new(), TestNs::new());
        node.ip("link add cni0 type bridge");
        for (pod, host) in [(&one, 2), (&two, 3)] {
            let link = format!("veth{host}");
            pod.ip(&format!(
                "link add eth0 type veth peer name {link} netns {}",
                node.name
            ));
            node.ip(&format!("link set {link} master cni0 up"));
            up(
                pod,
                "eth0",
                &format!("10.9.0.{host}/24"),
                &format!("fd09::{host}/64"),
            );
        }
        up(&node, "cni0", "10.9.0.1/24", "fd09::1/64");
        routed.ip(&format!(
            "link add eth0 type veth peer name veth4 netns {}",
            node.name
        ));
        up(&node, "veth4", "10.9.1.1/24", "fd09:1::1/64");
        up(&routed, "eth0", "10.9.1.2/24", "fd09:1::2/64");
        for (pod, v4, v6) in [
            (&one, "10.9.0.1", "fd09::1"),
            (&two, "10.9.0.1", "fd09::1"),
            (&routed, "10.9.1.1", "fd09:1::1"),
        ] {
            pod.ip(&format!("route add default via {v4}"));
            pod.ip(&format!("-6 route add default via {v6}"));
        }
        for sysctl in [
            "net.ipv4.ip_forward=1",
            "net.ipv6.conf.all.forwarding=1",
            // The family inet does not see what the bridge carries.
            "net.bridge.bridge-nf-call-iptables=0",
            "net.bridge.bridge-nf-call-ip6tables=0",
        ] {
            node.output(&format!("sysctl -qw {sysctl}"));
        }
        Self {
            node,
            one,
            two,
            routed,
        }
    }

    fn apply(&self, plan: &NodePlan) -> Option<String> {
        self.node.run(|| apply_node(plan)).unwrap()
    }
}

fn up(ns: &TestNs, link: &str, v4: &str, v6: &str) {
    ns.ip(&format!("addr add {v4} dev {link}"));
    ns.ip(&format!("addr add {v6} dev {link} nodad"));
    ns.ip(&format!("link set {link} up"));
}

/// Long enough for a link whose own address is still being checked for doubles.
const PATIENT: usize = 100;
/// For what does not arrive, on a way on which something has arrived before.
const BRIEF: usize = 10;

/// Whether a datagram from `source` arrives; one way, for there is no way back to that source.
fn arrives(from: &TestNs, source: &str, to: &TestNs, address: &str, tries: usize) -> bool {
    let address: SocketAddr = address.parse().unwrap();
    let receiver = to.run(|| UdpSocket::bind(address).unwrap());
    receiver
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let sender = from.run(|| UdpSocket::bind(source).unwrap());
    let mut bytes = [0; 1];
    (0..tries).any(|_| {
        sender.send_to(b"x", address).unwrap();
        receiver.recv(&mut bytes).is_ok()
    })
}

#[test]
fn a_pod_that_bears_the_probes_source_reaches_no_pod_bridged_or_routed() {
    let net = Bridged::new();
    for pod in [&net.one, &net.routed] {
        // On lo, so that neighbours are still asked for from the link's own address.
        pod.ip(&format!("addr add {PROBE_SOURCE_V4}/32 dev lo"));
        pod.ip(&format!("addr add {PROBE_SOURCE_V6}/128 dev lo"));
    }
    let v4 = format!("{PROBE_SOURCE_V4}:0");
    let v6 = format!("[{PROBE_SOURCE_V6}]:0");
    let sends = [
        (&net.one, &*v4, "10.9.0.3:7000"),
        (&net.one, &*v6, "[fd09::3]:7000"),
        (&net.routed, &*v4, "10.9.0.3:7000"),
        (&net.routed, &*v6, "[fd09::3]:7000"),
    ];
    for (from, source, to) in sends {
        assert!(
            arrives(from, source, &net.two, to, PATIENT),
            "{source} before"
        );
    }
    let probed = [("10.9.0.3".parse().unwrap(), 7000)];
    assert_eq!(net.apply(&plan_node(&probed)), None);
    for (from, source, to) in sends {
        assert!(
            !arrives(from, source, &net.two, to, BRIEF),
            "{source} to {to}"
        );
    }
    // From its own address it goes on.
    let own = [
        (&net.one, "10.9.0.2:0", "10.9.0.3:7000"),
        (&net.routed, "[fd09:1::2]:0", "[fd09::3]:7000"),
    ];
    for (from, source, to) in own {
        assert!(arrives(from, source, &net.two, to, PATIENT), "{source}");
    }
    assert_eq!(net.apply(&plan_node(&[])), None);
    assert_eq!(net.node.output("nft list ruleset"), "");
}

//! What `nft -j list ruleset` shows after a plan was applied is exactly what is committed.
//! `WEFT_UPDATE_GOLDEN=1` rewrites the files.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::TestNs;
use serde_json::Value;
use weft_cni::rules::{
    Phase, PodRules, apply, apply_node, inspect, ipv6_is_enabled, plan, plan_node,
};

fn rules(phase: Phase) -> PodRules {
    PodRules {
        phase,
        ipv6: true,
        probe_ports: vec![8080],
        mark: 0x5ec3_e701,
    }
}

/// The ruleset without what differs from run to run, one object a line.
fn ruleset(ns: &TestNs) -> String {
    let listing: Value = serde_json::from_str(&ns.output("nft -j list ruleset")).unwrap();
    let mut lines = String::new();
    for entry in listing["nftables"].as_array().unwrap() {
        if entry.get("metainfo").is_some() {
            continue;
        }
        let mut entry = entry.clone();
        for object in entry.as_object_mut().unwrap().values_mut() {
            object.as_object_mut().unwrap().remove("handle");
            if let Some(elements) = object.get_mut("elem").and_then(Value::as_array_mut) {
                // In the order of a hash.
                elements.sort_by_key(Value::to_string);
            }
        }
        lines.push_str(&format!("{entry}\n"));
    }
    lines
}

fn assert_golden(ns: &TestNs, name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    let found = ruleset(ns);
    if std::env::var_os("WEFT_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    assert_eq!(
        found,
        std::fs::read_to_string(&path).unwrap(),
        "{}",
        path.display()
    );
}

#[test]
fn a_joined_pod_has_exactly_these_rules_however_often_they_are_applied() {
    let ns = TestNs::new();
    let netns = ns.open();
    assert_eq!(inspect(&netns).unwrap(), None);
    let plan = plan(&rules(Phase::Joined));
    for _ in 0..2 {
        apply(&netns, &plan).unwrap();
        assert_golden(&ns, "joined.json");
        assert!(inspect(&netns).unwrap().unwrap().matches(&plan));
        assert_eq!(
            ns.output("ip rule")
                .matches("fwmark 0x111 lookup 100")
                .count(),
            1
        );
        assert_eq!(
            ns.output("ip -6 rule")
                .matches("fwmark 0x111 lookup 100")
                .count(),
            1
        );
        assert!(
            ns.output("ip route show table 100")
                .starts_with("local default dev lo")
        );
        assert!(
            ns.output("ip -6 route show table 100")
                .starts_with("local default dev lo")
        );
    }
}

#[test]
fn a_leaving_pod_keeps_its_chains_but_redirects_nothing() {
    let ns = TestNs::new();
    let netns = ns.open();
    let leaving = plan(&rules(Phase::Leaving));
    apply(&netns, &plan(&rules(Phase::Joined))).unwrap();
    for _ in 0..2 {
        apply(&netns, &leaving).unwrap();
        assert_golden(&ns, "leaving.json");
        assert!(inspect(&netns).unwrap().unwrap().matches(&leaving));
        assert!(
            !inspect(&netns)
                .unwrap()
                .unwrap()
                .matches(&plan(&rules(Phase::Joined)))
        );
    }
}

#[test]
fn removal_leaves_nothing_and_may_be_repeated() {
    let ns = TestNs::new();
    let netns = ns.open();
    let before = (ns.output("ip rule"), ns.output("ip -6 rule"));
    apply(&netns, &plan(&rules(Phase::Joined))).unwrap();
    for _ in 0..2 {
        apply(&netns, &plan(&rules(Phase::Removed))).unwrap();
        assert_golden(&ns, "removed.json");
        assert_eq!(inspect(&netns).unwrap(), None);
        assert_eq!((ns.output("ip rule"), ns.output("ip -6 rule")), before);
        // The kernel may list a table that was emptied, or say that it does not exist.
        let all = ns.output("ip route show table all") + &ns.output("ip -6 route show table all");
        assert!(!all.contains("table 100"), "{all}");
    }
}

#[test]
fn without_ipv6_no_rule_and_no_route_speaks_of_it() {
    let ns = TestNs::new();
    assert!(ipv6_is_enabled(&ns.open()).unwrap());
    ns.output("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    let netns = ns.open();
    assert!(!ipv6_is_enabled(&netns).unwrap());
    let plan = plan(&PodRules {
        ipv6: false,
        ..rules(Phase::Joined)
    });
    apply(&netns, &plan).unwrap();
    assert_golden(&ns, "joined-v4-only.json");
    assert!(!ns.output("ip -6 rule").contains("0x111"));
}

#[test]
fn the_nodes_rules_mark_probes_and_go_with_the_last_pod() {
    let ns = TestNs::new();
    let probed = [("10.1.0.5", 8080), ("fd00::5", 8080), ("10.1.0.6", 9000)]
        .map(|(address, port)| (address.parse().unwrap(), port));
    for _ in 0..2 {
        ns.run(|| apply_node(&plan_node(&probed))).unwrap();
        assert_golden(&ns, "node.json");
    }
    for _ in 0..2 {
        ns.run(|| apply_node(&plan_node(&[]))).unwrap();
        assert_golden(&ns, "removed.json");
    }
}

#[test]
fn a_node_with_thousands_of_probed_ports_knows_all_of_them() {
    let ns = TestNs::new();
    let probed: Vec<_> = (0..4000u16)
        .map(|n| {
            (
                std::net::Ipv4Addr::new(10, 1, (n >> 8) as u8, n as u8).into(),
                8080,
            )
        })
        .collect();
    for _ in 0..2 {
        ns.run(|| apply_node(&plan_node(&probed))).unwrap();
    }
    let listing = ns.output("nft list set inet weft-node probed4");
    assert_eq!(listing.matches(" . 8080").count(), probed.len());
}

#[test]
fn a_refused_rule_is_named_and_changes_nothing() {
    let ns = TestNs::new();
    let netns = ns.open();
    apply(&netns, &plan(&rules(Phase::Joined))).unwrap();
    let before = ruleset(&ns);
    let mut wrong = plan(&rules(Phase::Joined));
    // A redirect outside of a NAT chain.
    let redirect = wrong.chains[2].rules[4].clone();
    wrong.chains[1].rules.push(redirect);
    let error = apply(&netns, &wrong).unwrap_err().to_string();
    assert!(error.contains("rule 2 of chain inet weft hide"), "{error}");
    assert_eq!(ruleset(&ns), before);
}

#[test]
fn ipv6_counts_as_enabled_before_the_loopback_interface_is_up() {
    let ns = TestNs::new();
    ns.ip("link set lo down");
    assert!(ipv6_is_enabled(&ns.open()).unwrap());
}

#[test]
fn rules_of_others_in_the_pod_stay_as_they_are() {
    let ns = TestNs::new();
    ns.output("nft add table ip theirs");
    let before = ruleset(&ns);
    let netns = ns.open();
    apply(&netns, &plan(&rules(Phase::Joined))).unwrap();
    apply(&netns, &plan(&rules(Phase::Removed))).unwrap();
    assert_eq!(ruleset(&ns), before);
}

#[test]
fn the_hosts_own_namespace_and_what_is_no_namespace_are_refused() {
    use weft_cni::netns::{NetNs, NetNsError};
    for own in ["/proc/self/ns/net", "/proc/thread-self/ns/net"] {
        assert!(matches!(
            NetNs::open(Path::new(own)),
            Err(NetNsError::NotAPod(_))
        ));
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(NetNs::open(file.path()), Err(NetNsError::Gone(_))));
    let ns = TestNs::new();
    let (netns, path) = (ns.open(), ns.path());
    assert!(netns.is_still_there());
    drop(ns);
    assert!(!netns.is_still_there());
    assert!(matches!(NetNs::open(&path), Err(NetNsError::Gone(_))));
}

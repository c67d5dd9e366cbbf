use std::{collections::BTreeSet, net::SocketAddr};

use super::*;
use crate::state::NoEndpoint;

/// The endpoints that picks lead to, from many picks.
fn picked(state: &State, exclude: &[&str]) -> BTreeSet<String> {
    let exclude: Vec<SocketAddr> = exclude
        .iter()
        .map(|a| a.parse().expect("address"))
        .collect();
    (0..400)
        .filter_map(|_| state.pick("shop/checkout", 80, Family::V4, &exclude).ok())
        .map(|picked| picked.address.to_string())
        .collect()
}

fn addresses(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|a| format!("{a}:8080")).collect()
}

fn member(name: &str, ip: &str) -> Workload {
    pod(name, ip, &["shop/checkout"])
}

enum Is {
    Terminating,
    NotReady,
}

fn being(mut pod: Workload, is: Is) -> Workload {
    let endpoint = &mut pod.endpoints[0];
    (endpoint.ready, endpoint.serving, endpoint.terminating) = match is {
        Is::Terminating => (false, true, true),
        Is::NotReady => (false, false, false),
    };
    pod
}

fn located(mut pod: Workload, node: &str, zone: &str) -> Workload {
    pod.node = node.into();
    pod.zone = zone.into();
    pod
}

#[test]
fn ready_endpoints_take_traffic_and_terminating_ones_only_if_none_is_ready() {
    let a = || member("a", "10.0.0.1");
    let b = || member("b", "10.0.0.2");
    let c = || member("c", "10.0.0.3");
    for (name, pods, publish, expected) in [
        (
            "all ready",
            vec![a(), b()],
            false,
            vec!["10.0.0.1", "10.0.0.2"],
        ),
        (
            "one is ready",
            vec![a(), being(b(), Is::Terminating), being(c(), Is::NotReady)],
            false,
            vec!["10.0.0.1"],
        ),
        (
            "none is ready",
            vec![being(a(), Is::Terminating), being(b(), Is::NotReady)],
            false,
            vec!["10.0.0.1"],
        ),
        (
            "nothing serves",
            vec![being(a(), Is::NotReady)],
            false,
            vec![],
        ),
        (
            "not ready is published",
            vec![a(), being(b(), Is::Terminating), being(c(), Is::NotReady)],
            true,
            vec!["10.0.0.1", "10.0.0.2", "10.0.0.3"],
        ),
    ] {
        let state = state();
        set_service(
            &state,
            &Service {
                publish_not_ready: publish,
                ..service("shop/checkout", &[])
            },
        );
        set_pods(&state, &pods);
        assert_eq!(picked(&state, &[]), addresses(&expected), "{name}");
    }
}

#[test]
fn a_proxy_that_was_not_told_its_zone_learns_it_from_its_nodes_workloads() {
    let near = located(member("near", "10.0.0.2"), "node-b", "zone-1");
    let far = located(member("far", "10.0.0.3"), "node-c", "zone-2");
    // A workload of the node itself, of no Service.
    let own = |zone: &str| Workload {
        endpoints: Vec::new(),
        ..located(member("own", "10.0.0.9"), "node-a", zone)
    };
    let at = |zone: &str| {
        State::new(Locality {
            node: "node-a".into(),
            zone: zone.into(),
        })
    };
    let (both, first, second) = (
        addresses(&["10.0.0.2", "10.0.0.3"]),
        addresses(&["10.0.0.2"]),
        addresses(&["10.0.0.3"]),
    );
    for (told, steps) in [
        (
            "",
            vec![
                (None, &both),
                (Some("zone-1"), &first),
                (Some("zone-2"), &second),
            ],
        ),
        ("zone-1", vec![(None, &first), (Some("zone-2"), &first)]),
    ] {
        let state = at(told);
        set_service(
            &state,
            &Service {
                traffic_distribution: TrafficDistribution::PreferSameZone.into(),
                ..service("shop/checkout", &[])
            },
        );
        set_pods(&state, &[near.clone(), far.clone()]);
        for (zone, expected) in steps {
            if let Some(zone) = zone {
                set_pods(&state, &[own(zone)]);
            }
            assert_eq!(
                &picked(&state, &[]),
                expected,
                "told {told:?}, own {zone:?}"
            );
        }
    }
}

#[test]
fn the_nearest_that_the_service_prefers_come_first_and_farther_ones_when_they_are_gone() {
    use TrafficDistribution::{Any, PreferSameNode, PreferSameZone};
    let node = located(member("node", "10.0.0.1"), "node-a", "zone-1");
    let zone = located(member("zone", "10.0.0.2"), "node-b", "zone-1");
    let far = located(member("far", "10.0.0.3"), "node-c", "zone-2");
    let (n, z, f) = ("10.0.0.1", "10.0.0.2", "10.0.0.3");
    for (distribution, pods, expected) in [
        (Any, vec![&node, &zone, &far], vec![n, z, f]),
        (PreferSameZone, vec![&node, &zone, &far], vec![n, z]),
        (PreferSameZone, vec![&far], vec![f]),
        (PreferSameNode, vec![&node, &zone, &far], vec![n]),
        (PreferSameNode, vec![&zone, &far], vec![z]),
        (PreferSameNode, vec![&far], vec![f]),
    ] {
        let state = state();
        set_service(
            &state,
            &Service {
                traffic_distribution: distribution.into(),
                ..service("shop/checkout", &[])
            },
        );
        set_pods(&state, &pods.into_iter().cloned().collect::<Vec<_>>());
        assert_eq!(
            picked(&state, &[]),
            addresses(&expected),
            "{distribution:?}"
        );
        // A retry goes farther rather than nowhere.
        let rest = picked(&state, &["10.0.0.1:8080"]);
        assert!(!rest.contains("10.0.0.1:8080"), "{distribution:?} {rest:?}");
    }
}

#[test]
fn a_retry_leaves_its_zone_when_all_in_it_were_tried() {
    let state = state();
    set_service(
        &state,
        &Service {
            traffic_distribution: TrafficDistribution::PreferSameNode.into(),
            ..service("shop/checkout", &[])
        },
    );
    set_pods(
        &state,
        &[
            located(member("near", "10.0.0.1"), "node-a", "zone-1"),
            located(member("far", "10.0.0.2"), "node-c", "zone-2"),
        ],
    );
    assert_eq!(picked(&state, &["10.0.0.1:8080"]), addresses(&["10.0.0.2"]));
}

#[test]
fn a_pick_that_fails_says_why() {
    let state = state();
    set_service(&state, &service("shop/checkout", &[]));
    let fails = |service, port, exclude: &[SocketAddr]| {
        state
            .pick(service, port, Family::V4, exclude)
            .expect_err("nothing to pick")
    };
    assert_eq!(
        fails("shop/other", 80, &[]),
        NoEndpoint::UnknownService("shop/other".into())
    );
    assert_eq!(
        fails("shop/checkout", 81, &[]),
        NoEndpoint::UnknownPort("shop/checkout".into(), 81)
    );
    let none = fails("shop/checkout", 80, &[]);
    assert_eq!(none, NoEndpoint::NoneReady("shop/checkout".into(), 80));
    assert_eq!(
        none.to_string(),
        "service shop/checkout port 80 has no ready endpoint"
    );
    set_pods(&state, &[member("a", "10.0.0.1")]);
    let tried = "10.0.0.1:8080".parse().expect("address");
    assert_eq!(
        fails("shop/checkout", 80, &[tried]),
        NoEndpoint::AllExcluded("shop/checkout".into(), 80)
    );
    // Its endpoints alone do not make a Service.
    remove(&state, Kind::Service, "shop/checkout");
    assert_eq!(
        fails("shop/checkout", 80, &[]),
        NoEndpoint::UnknownService("shop/checkout".into())
    );
}

#[test]
fn an_endpoint_that_is_removed_is_picked_no_more_while_its_requests_go_on() {
    let state = state();
    set_service(&state, &service("shop/checkout", &[]));
    set_pods(&state, &[member("a", "10.0.0.1")]);
    let mut under_way = state
        .pick("shop/checkout", 80, Family::V4, &[])
        .expect("an endpoint");
    set_pods(&state, &[member("b", "10.0.0.2")]);
    remove(&state, Kind::Workload, "shop/a/uid");

    assert_eq!(picked(&state, &[]), addresses(&["10.0.0.2"]));
    under_way.load.first_byte();
    assert_eq!(under_way.load.load().in_flight(), 1);
    assert_eq!(&*under_way.workload.name, "a");
}

#[test]
fn an_endpoint_keeps_its_load_across_updates_and_shares_it_between_services() {
    let state = state();
    for name in ["shop/checkout", "shop/checkout-v1"] {
        set_service(&state, &service(name, &[]));
    }
    let both = &["shop/checkout", "shop/checkout-v1"];
    set_pods(&state, &[pod("a", "10.0.0.1", both)]);
    let held = state
        .pick("shop/checkout", 80, Family::V4, &[])
        .expect("an endpoint");

    let same_load = |service| {
        let picked = state
            .pick(service, 80, Family::V4, &[])
            .expect("an endpoint");
        Arc::ptr_eq(picked.load.load(), held.load.load())
    };
    assert!(same_load("shop/checkout-v1"));
    set_pods(&state, &[being(pod("a", "10.0.0.1", both), Is::NotReady)]);
    set_pods(&state, &[captured(pod("a", "10.0.0.1", both))]);
    assert!(same_load("shop/checkout"), "the same address");
    set_pods(&state, &[pod("a", "10.0.0.2", both)]);
    assert!(!same_load("shop/checkout"), "another address");
}

#[test]
fn ejected_endpoints_rest_until_there_is_no_other() {
    let state = state();
    set_service(&state, &service("shop/checkout", &[]));
    set_pods(&state, &[member("a", "10.0.0.1"), member("b", "10.0.0.2")]);
    let fail = |exclude: &[SocketAddr]| {
        for _ in 0..crate::balance::health::FAILURES {
            let mut picked = state
                .pick("shop/checkout", 80, Family::V4, exclude)
                .expect("one");
            picked.load.failed();
        }
    };
    let b: SocketAddr = "10.0.0.2:8080".parse().expect("address");
    fail(&[b]);
    assert_eq!(picked(&state, &[]), addresses(&["10.0.0.2"]));
    // Excluded and ejected: better an ejected one than none.
    assert_eq!(picked(&state, &["10.0.0.2:8080"]), addresses(&["10.0.0.1"]));
    fail(&["10.0.0.1:8080".parse().expect("address")]);
    assert_eq!(picked(&state, &[]), addresses(&["10.0.0.1", "10.0.0.2"]));
}

#[test]
fn an_entry_of_a_slice_that_is_a_captured_pods_address_is_reached_as_that_pod() {
    let state = state();
    set_service(&state, &service("shop/checkout", &[]));
    let mut entry = member("10.0.0.1", "10.0.0.1");
    entry.uid = "slice/shop/by-hand/10.0.0.1".into();
    entry.service_account = String::new();
    set_pods(&state, &[entry, captured(pod("a", "10.0.0.1", &[]))]);
    let picked = state
        .pick("shop/checkout", 80, Family::V4, &[])
        .expect("an endpoint");
    assert_eq!(&*picked.workload.uid, "shop/a/uid");
    assert!(picked.workload.captured);
}

/// Where picks for clients of a family lead to.
fn picked_in(state: &State, family: Family, exclude: &[SocketAddr]) -> BTreeSet<String> {
    (0..400)
        .filter_map(|_| state.pick("shop/checkout", 80, family, exclude).ok())
        .map(|picked| picked.address.to_string())
        .collect()
}

/// With both addresses, and in the Service in these families.
fn dual(name: &str, v4: &str, v6: &str, families: &[config::IpFamily]) -> Workload {
    let mut workload = member(name, v4);
    workload.addresses.push(bytes(v6));
    workload.endpoints[0].families = families.iter().map(|f| (*f).into()).collect();
    workload
}

fn set_of(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|a| (*a).to_owned()).collect()
}

#[test]
fn an_endpoint_of_both_families_is_one_and_is_dialled_in_the_clients() {
    let state = state();
    set_service(&state, &service("shop/checkout", &[]));
    set_pods(&state, &[dual("a", "10.0.0.1", "fd00::1", &[])]);
    let (v4, v6) = ("10.0.0.1:8080", "[fd00::1]:8080");
    assert_eq!(picked_in(&state, Family::V4, &[]), set_of(&[v4]));
    assert_eq!(picked_in(&state, Family::V6, &[]), set_of(&[v6]));
    // What failed at one of its addresses is not tried at the other.
    let tried = [v6.parse().expect("address")];
    assert_eq!(picked_in(&state, Family::V4, &tried), set_of(&[]));
    let load = |family| {
        let picked = state.pick("shop/checkout", 80, family, &[]);
        Arc::as_ptr(picked.expect("an endpoint").load.load())
    };
    assert_eq!(load(Family::V4), load(Family::V6));
}

#[test]
fn an_endpoint_that_the_service_has_in_one_family_is_dialled_in_that_one() {
    let state = state();
    set_service(&state, &service("shop/checkout", &[]));
    let only = [config::IpFamily::Ipv6];
    set_pods(&state, &[dual("a", "10.0.0.1", "fd00::1", &only)]);
    for family in [Family::V4, Family::V6] {
        assert_eq!(picked_in(&state, family, &[]), set_of(&["[fd00::1]:8080"]));
    }
}

#[test]
fn endpoints_of_the_other_family_serve_only_if_there_is_none_of_the_clients() {
    let state = state();
    set_service(&state, &service("shop/checkout", &[]));
    let v4 = member("v4", "10.0.0.1");
    set_pods(&state, &[v4, dual("both", "10.0.0.2", "fd00::2", &[])]);
    let both = ["10.0.0.1:8080", "10.0.0.2:8080"];
    assert_eq!(picked_in(&state, Family::V4, &[]), set_of(&both));
    assert_eq!(
        picked_in(&state, Family::V6, &[]),
        set_of(&["[fd00::2]:8080"])
    );
    let tried = ["[fd00::2]:8080".parse().expect("address")];
    assert_eq!(picked_in(&state, Family::V6, &tried), set_of(&both[..1]));
}

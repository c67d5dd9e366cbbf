use std::net::SocketAddr;

use super::*;
use crate::state::{RouteTable, Target};

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address and port")
}

/// What an address means, in short.
fn meaning(state: &State, address: &str, namespace: &str) -> String {
    match state.resolve(at(address), namespace) {
        Target::Service(target) => {
            let route = target.table.map_or("-".into(), |table| match &*table {
                RouteTable::Tcp(tcp) => tcp.rule.route.name.to_string(),
                other => other.protocol().into(),
            });
            format!(
                "service {} {} {route}",
                target.service.name, target.port.port
            )
        }
        Target::Workload { workload, address } => format!("workload {} {address}", workload.uid),
        Target::Lost => "lost".into(),
        Target::External => "external".into(),
    }
}

#[test]
fn an_address_means_a_service_port_a_workload_or_nothing() {
    let state = state();
    set_service(&state, &service("shop/checkout", &["10.96.0.1", "fd00::1"]));
    let mut on_host = pod("on-host", "192.168.0.1", &[]);
    on_host.host_network = true;
    set_pods(&state, &[pod("a", "10.0.0.1", &["shop/checkout"]), on_host]);
    for (address, expected) in [
        ("10.96.0.1:80", "service shop/checkout 80 -"),
        ("[fd00::1]:80", "service shop/checkout 80 -"),
        ("[::ffff:10.96.0.1]:80", "service shop/checkout 80 -"),
        ("10.96.0.1:81", "external"),
        ("10.0.0.1:5432", "workload shop/a/uid 10.0.0.1:5432"),
        ("[::ffff:10.0.0.1]:80", "workload shop/a/uid 10.0.0.1:80"),
        ("192.168.0.1:80", "external"),
        ("1.1.1.1:80", "external"),
    ] {
        assert_eq!(meaning(&state, address, "shop"), expected, "{address}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_that_a_captured_pod_lost_is_not_outside_the_mesh_until_its_time_is_over() {
    let state = state();
    let captured = |name: &str, address: &str| {
        let mut pod = pod(name, address, &[]);
        pod.tunnel = config::Tunnel::Hbone.into();
        pod
    };
    let plain = pod("plain", "10.0.0.3", &[]);
    set_pods(
        &state,
        &[captured("a", "10.0.0.1"), captured("b", "10.0.0.2"), plain],
    );
    remove(&state, Kind::Workload, "shop/a/uid");
    remove(&state, Kind::Workload, "shop/plain/uid");
    // It comes back elsewhere after a reboot of its node.
    set_pods(&state, &[captured("b", "10.0.0.4")]);
    for (address, expected) in [
        ("10.0.0.1:80", "lost"),
        ("10.0.0.2:80", "lost"),
        ("10.0.0.3:80", "external"),
        ("10.0.0.4:80", "workload shop/b/uid 10.0.0.4:80"),
    ] {
        assert_eq!(meaning(&state, address, "shop"), expected, "{address}");
    }
    set_pods(&state, &[captured("c", "10.0.0.1")]);
    let claimed = meaning(&state, "10.0.0.1:80", "shop");
    assert_eq!(claimed, "workload shop/c/uid 10.0.0.1:80");
    tokio::time::advance(std::time::Duration::from_secs(61)).await;
    assert_eq!(meaning(&state, "10.0.0.2:80", "shop"), "external");
}

#[test]
fn a_consumers_table_is_used_instead_of_the_producers_and_only_by_it() {
    let state = state();
    set_service(&state, &service("shop/checkout", &["10.96.0.1"]));
    set_table(&state, &table("shop/checkout", "", "producer"));
    set_table(&state, &table("shop/checkout", "web", "consumer"));
    let route = |namespace| meaning(&state, "10.96.0.1:80", namespace);
    assert_eq!(route("shop"), "service shop/checkout 80 shop/producer");
    assert_eq!(route("web"), "service shop/checkout 80 shop/consumer");

    remove(&state, Kind::RouteTable, "shop/checkout/80@web");
    assert_eq!(route("web"), "service shop/checkout 80 shop/producer");
    remove(&state, Kind::RouteTable, "shop/checkout/80");
    assert_eq!(route("web"), "service shop/checkout 80 -");
    assert!(state.route_table("shop/checkout", 80, "web").is_none());
}

#[test]
fn a_table_that_comes_before_its_service_applies_once_the_service_is_there() {
    let state = state();
    set_table(&state, &table("shop/checkout", "", "early"));
    assert_eq!(meaning(&state, "10.96.0.1:80", "shop"), "external");
    assert!(state.service_port("shop/checkout", 80).is_none());
    set_service(&state, &service("shop/checkout", &["10.96.0.1"]));
    assert_eq!(
        meaning(&state, "10.96.0.1:80", "shop"),
        "service shop/checkout 80 shop/early"
    );
}

#[test]
fn a_service_that_moves_leaves_its_old_address() {
    let state = state();
    set_service(&state, &service("shop/checkout", &["10.96.0.1"]));
    set_service(&state, &service("shop/checkout", &["10.96.0.2"]));
    assert_eq!(meaning(&state, "10.96.0.1:80", ""), "external");
    assert_eq!(
        meaning(&state, "10.96.0.2:80", ""),
        "service shop/checkout 80 -"
    );
    remove(&state, Kind::Service, "shop/checkout");
    assert_eq!(meaning(&state, "10.96.0.2:80", ""), "external");
}

#[test]
fn of_two_workloads_with_one_address_the_captured_one_counts_in_any_order() {
    let plain = pod("z", "10.0.0.1", &[]);
    let tunnelled = captured(pod("a", "10.0.0.1", &[]));
    for order in [[&plain, &tunnelled], [&tunnelled, &plain]] {
        let state = state();
        for pod in order {
            set_pods(&state, std::slice::from_ref(pod));
        }
        let owner = || state.workload_by_address("10.0.0.1".parse().expect("an address"));
        assert_eq!(&*owner().expect("known").uid, "shop/a/uid");
        remove(&state, Kind::Workload, "shop/a/uid");
        assert_eq!(&*owner().expect("known").uid, "shop/z/uid");
        remove(&state, Kind::Workload, "shop/z/uid");
        assert!(owner().is_none());
    }
}

#[test]
fn a_connection_is_current_while_it_would_be_made_in_the_same_way() {
    let state = state();
    let first = pod("a", "10.0.0.1", &[]);
    set_pods(&state, std::slice::from_ref(&first));
    let held = || state.workload("shop/a/uid").expect("known");
    let made_for = held();
    assert!(state.is_current(&made_for));

    let mut relabelled = first.clone();
    relabelled.version = "v2".into();
    set_pods(&state, &[relabelled]);
    assert!(state.is_current(&made_for), "a label is no reason");

    set_pods(&state, &[captured(first.clone())]);
    assert!(!state.is_current(&made_for), "now it wants a tunnel");

    let tunnelled = held();
    let mut moved = captured(first);
    moved.addresses = vec![bytes("10.0.0.9")];
    set_pods(&state, &[moved]);
    assert!(!state.is_current(&tunnelled));

    let moved = held();
    assert!(state.is_current(&moved));
    let mut left = pod("a", "10.0.0.9", &[]);
    set_pods(&state, std::slice::from_ref(&left));
    let between = held();
    left.version = "v3".into();
    set_pods(&state, &[captured(left.clone()), left.clone()]);
    assert!(
        !state.is_current(&between),
        "it joined and left: what was made before may lead through its proxy"
    );

    let last = held();
    assert!(state.is_current(&last));
    remove(&state, Kind::Workload, "shop/a/uid");
    assert!(!state.is_current(&last));
}

#[tokio::test]
async fn whoever_waits_for_changes_is_woken_once_a_delta_is_in_force() {
    let state = state();
    let mut changes = state.subscribe();
    set_pods(&state, &[pod("a", "10.0.0.1", &[])]);
    changes.changed().await.expect("the state lives");
    assert!(state.workload("shop/a/uid").is_some());
    assert!(!changes.has_changed().expect("the state lives"));
}

#[test]
fn tls_routes_are_chosen_by_server_name() {
    let rule = |name: &str, snis: &[&str]| config::TlsRule {
        route: Some(config::RouteRef {
            namespace: "shop".into(),
            name: name.into(),
            ..config::RouteRef::default()
        }),
        snis: snis.iter().map(|sni| sni.to_string()).collect(),
        backends: Vec::new(),
    };
    let mut table = table("shop/checkout", "", "");
    let rules = vec![
        rule("exact", &["api.example.com"]),
        rule("suffix", &["*.example.com"]),
        rule("any", &[]),
    ];
    table.table = Some(Table::Tls(config::TlsTable {
        rules: rules.clone(),
    }));
    let RouteTable::Tls(all) = RouteTable::parse(&table).expect("good") else {
        panic!("not a TLS table");
    };
    table.table = Some(Table::Tls(config::TlsTable {
        rules: rules[..2].to_vec(),
    }));
    let RouteTable::Tls(named) = RouteTable::parse(&table).expect("good") else {
        panic!("not a TLS table");
    };
    for (sni, expected, without_any) in [
        (Some("api.example.com"), "shop/exact", Some("shop/exact")),
        (Some("API.Example.COM."), "shop/exact", Some("shop/exact")),
        (Some("a.b.example.com"), "shop/suffix", Some("shop/suffix")),
        (Some("example.com"), "shop/any", None),
        (Some("evilexample.com"), "shop/any", None),
        (None, "shop/any", None),
    ] {
        let name = |rule: &crate::state::L4Rule| rule.route.name.to_string();
        assert_eq!(
            all.select(sni).map(name).as_deref(),
            Some(expected),
            "{sni:?}"
        );
        assert_eq!(
            named.select(sni).map(name).as_deref(),
            without_any,
            "{sni:?}"
        );
    }
}

#[test]
fn the_dump_shows_each_resource_with_its_version_and_what_was_refused() {
    let state = state();
    set_service(&state, &service("shop/checkout", &["10.96.0.1"]));
    set_pods(
        &state,
        &[captured(pod("a", "10.0.0.1", &["shop/checkout"]))],
    );
    set_table(&state, &table("shop/checkout", "", "canary"));
    let mut bad = resource("shop/checkout/80", &table("shop/other", "", "canary"));
    bad.version = "bad".into();
    assert_eq!(set(&state, Kind::RouteTable, vec![bad]).len(), 1);

    let dump = state.dump();
    let held = state.versions(Kind::RouteTable);
    let table = &dump["route_tables"]["shop/checkout/80"];
    assert_eq!(table["resource_version"], held["shop/checkout/80"].as_str());
    assert_eq!(table["table"]["tcp"]["rule"]["route"]["name"], "canary");
    assert_eq!(dump["workloads"]["shop/a/uid"]["captured"], true);
    let endpoint = &dump["services"]["shop/checkout"]["endpoints"]["80"][0];
    assert_eq!(endpoint["addresses"][0], "10.0.0.1:8080");
    assert_eq!(endpoint["readiness"], "ready");
    let rejection = &dump["rejections"][0];
    assert_eq!(rejection["name"], "shop/checkout/80");
    assert_eq!(rejection["version"], "bad");
    assert_eq!(rejection["in_force"], held["shop/checkout/80"].as_str());
}

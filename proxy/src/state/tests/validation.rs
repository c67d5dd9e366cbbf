use std::time::{Duration, SystemTime};

use weft_api::{config::MeshConfig, names::MESH_CONFIG_NAME};
use weft_certs::{BundleSource, CertificateAuthority};

use super::*;

/// Applies a resource that must be refused, and returns why.
fn reason(kind: Kind, name: &str, message: &impl Message) -> String {
    let state = state();
    let rejected = set(&state, kind, vec![resource(name, message)]);
    let [rejected] = &rejected[..] else {
        panic!("{name} was not refused");
    };
    assert_eq!(rejected.name, name);
    assert_eq!(state.count(kind), 0, "what is refused is not held");
    rejected.reason.clone()
}

#[test]
fn a_malformed_workload_is_refused_with_its_reason() {
    let good = || pod("a", "10.0.0.1", &["shop/checkout"]);
    let change = |change: fn(&mut Workload)| {
        let mut workload = good();
        change(&mut workload);
        workload
    };
    for (workload, expected) in [
        (
            change(|w| w.uid = "other".into()),
            "differs from the resource's name",
        ),
        (change(|w| w.namespace.clear()), "namespace is empty"),
        (
            change(|w| w.addresses = vec![Bytes::from_static(&[1, 2, 3])]),
            "address of 3 bytes",
        ),
        (
            change(|w| w.addresses = vec![bytes("0.0.0.0")]),
            "no endpoint's address",
        ),
        (
            change(|w| w.addresses = vec![bytes("ff02::1")]),
            "no endpoint's address",
        ),
        (change(|w| w.tunnel = 7), "tunnel 7 is unknown"),
        (change(|w| w.mtls = 7), "mtls mode 7 is unknown"),
        (
            change(|w| {
                w.tunnel = Tunnel::Hbone.into();
                w.service_account.clear();
            }),
            "without the identity",
        ),
        (
            change(|w| {
                w.tunnel = Tunnel::Hbone.into();
                w.host_network = true;
            }),
            "on the host's network",
        ),
        (
            change(|w| w.endpoints[0].ports[0].target_port = 65_536),
            "port 65536 is not in",
        ),
        (
            change(|w| {
                // Without an address there is no endpoint, but nonsense is nonsense.
                w.addresses.clear();
                w.endpoints[0].ports[0].service_port = 0;
            }),
            "port 0 is not in",
        ),
        (
            change(|w| w.endpoints[0].service = "checkout".into()),
            "\"checkout\" is not namespace/name",
        ),
    ] {
        let reason = reason(Kind::Workload, "shop/a/uid", &workload);
        assert!(reason.contains(expected), "{reason:?} for {expected:?}");
    }
}

#[test]
fn a_malformed_service_is_refused_with_its_reason() {
    let change = |change: fn(&mut Service)| {
        let mut service = service("shop/checkout", &["10.96.0.1"]);
        change(&mut service);
        service
    };
    for (service, expected) in [
        (change(|s| s.name = "other".into()), "it is shop/other"),
        (
            change(|s| s.vips = vec![Bytes::from_static(&[1])]),
            "address of 1 bytes",
        ),
        (change(|s| s.ports[0].port = 70_000), "port 70000 is not in"),
        (
            change(|s| s.ports[0].protocol = 99),
            "protocol 99 of port 80 is unknown",
        ),
        (
            change(|s| s.traffic_distribution = 99),
            "traffic distribution 99",
        ),
    ] {
        let reason = reason(Kind::Service, "shop/checkout", &service);
        assert!(reason.contains(expected), "{reason:?} for {expected:?}");
    }
}

#[test]
fn a_malformed_table_is_refused_with_its_reason() {
    fn tcp(table: &mut config::RouteTable) -> &mut config::TcpRule {
        match &mut table.table {
            Some(Table::Tcp(tcp)) => tcp.rule.as_mut().expect("a rule"),
            _ => unreachable!("the helper makes TCP tables"),
        }
    }
    let change = |change: fn(&mut config::RouteTable)| {
        let mut table = table("shop/checkout", "", "route");
        change(&mut table);
        table
    };
    for (table, expected) in [
        (
            change(|t| t.service = "shop/other".into()),
            "it is shop/other/80",
        ),
        (
            change(|t| t.client_namespace = "web".into()),
            "it is shop/checkout/80@web",
        ),
        (change(|t| t.port = 0), "port 0 is not in"),
        (change(|t| t.table = None), "no table in it"),
        (change(|t| t.sniff = true), "sniffing is for http"),
        (change(|t| tcp(t).route = None), "rule without its route"),
        (
            change(|t| tcp(t).backends[0].target = None),
            "backend without a target",
        ),
        (
            change(|t| t.table = Some(Table::Tcp(config::TcpTable { rule: None }))),
            "tcp table without a rule",
        ),
        (
            change(|t| {
                tcp(t).backends[0].target = Some(backend::Target::Service(config::ServiceTarget {
                    service: "shop/a/b".into(),
                    port: 80,
                }));
            }),
            "\"shop/a/b\" is not namespace/name",
        ),
        (
            change(|t| {
                t.table = Some(Table::Tls(config::TlsTable {
                    rules: vec![config::TlsRule {
                        snis: vec!["a.*.example.com".into(), "*".into()],
                        ..config::TlsRule::default()
                    }],
                }));
            }),
            "\"*\" is neither a name nor *.suffix",
        ),
        (
            change(|t| {
                t.table = Some(Table::Http(config::HttpTable {
                    matches: vec![config::HttpMatch {
                        path: Some(config::PathMatch {
                            kind: Some(config::path_match::Kind::Regex("(".into())),
                        }),
                        ..config::HttpMatch::default()
                    }],
                    rules: vec![config::HttpRule {
                        route: Some(config::RouteRef::default()),
                        ..config::HttpRule::default()
                    }],
                }));
            }),
            "regex",
        ),
    ] {
        let reason = reason(Kind::RouteTable, "shop/checkout/80", &table);
        assert!(reason.contains(expected), "{reason:?} for {expected:?}");
    }
}

#[test]
fn a_malformed_mesh_configuration_is_refused_with_its_reason() {
    let good = MeshConfig {
        trust_domain: "cluster.local".into(),
        cluster_domain: "cluster.local".into(),
        trust_bundle: vec![Bytes::from_static(b"not a certificate")],
    };
    let no_roots = MeshConfig {
        trust_bundle: Vec::new(),
        ..good.clone()
    };
    let no_domain = MeshConfig {
        trust_domain: String::new(),
        ..good.clone()
    };
    for (name, mesh, expected) in [
        ("other", &good, "only \"mesh\" is known"),
        (MESH_CONFIG_NAME, &no_roots, "trust bundle is empty"),
        (MESH_CONFIG_NAME, &no_domain, "trust domain is empty"),
        (MESH_CONFIG_NAME, &good, "certificate 0 is unusable"),
    ] {
        let reason = reason(Kind::MeshConfig, name, mesh);
        assert!(reason.contains(expected), "{reason:?} for {expected:?}");
    }
}

#[test]
fn what_is_not_protobuf_is_refused() {
    for kind in Kind::ALL {
        let rejected = set(
            &state(),
            kind,
            vec![Resource {
                name: "shop/a".into(),
                version: "1".into(),
                body: Bytes::from_static(&[0xff; 4]),
            }],
        );
        assert!(rejected[0].reason.starts_with("not decodable"), "{kind:?}");
    }
}

#[test]
fn the_last_good_one_stays_in_force_beside_the_good_ones_of_the_same_delta() {
    let state = state();
    set_service(&state, &service("shop/checkout", &["10.96.0.1"]));
    let before = state.versions(Kind::Service);

    let mut broken = service("shop/checkout", &["10.96.0.2"]);
    broken.ports[0].port = 70_000;
    let rejected = set(
        &state,
        Kind::Service,
        vec![
            resource("shop/checkout", &broken),
            resource("shop/cart", &service("shop/cart", &["10.96.0.3"])),
        ],
    );
    assert_eq!(
        rejected[0].to_string(),
        "shop/checkout: port 70000 is not in 1..=65535"
    );
    let resolves = |vip: &str| {
        let target = state.resolve((vip.parse::<IpAddr>().expect("ip"), 80).into(), "");
        matches!(target, crate::state::Target::Service(_))
    };
    assert!(resolves("10.96.0.1") && resolves("10.96.0.3") && !resolves("10.96.0.2"));
    let after = state.versions(Kind::Service);
    assert_eq!(after["shop/checkout"], before["shop/checkout"]);
    assert!(after.contains_key("shop/cart"));

    // A good version ends the refusal.
    assert_eq!(state.dump()["rejections"].as_array().map(Vec::len), Some(1));
    set_service(&state, &service("shop/checkout", &["10.96.0.2"]));
    assert_eq!(state.dump()["rejections"].as_array().map(Vec::len), Some(0));
    assert!(resolves("10.96.0.2") && !resolves("10.96.0.1"));
}

#[test]
fn a_mesh_configuration_that_is_withdrawn_stays_in_force() {
    let ca = CertificateAuthority::generate(
        "example.org",
        SystemTime::now(),
        Duration::from_secs(3_600),
    )
    .expect("a CA");
    let bundle = ca.trust_bundle().expect("a bundle");
    let mesh = MeshConfig {
        trust_domain: "example.org".into(),
        cluster_domain: "cluster.local".into(),
        trust_bundle: bundle
            .roots()
            .map(|der| Bytes::copy_from_slice(der))
            .collect(),
    };
    let state = state();
    assert!(state.bundle().is_empty(), "nobody is trusted yet");
    let mesh = vec![resource(MESH_CONFIG_NAME, &mesh)];
    assert_eq!(set(&state, Kind::MeshConfig, mesh), []);
    remove(&state, Kind::MeshConfig, MESH_CONFIG_NAME);
    assert_eq!(&*state.mesh().trust_domain, "example.org");
    assert_eq!(state.bundle().len(), 1);
}

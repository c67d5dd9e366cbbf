//! parentRefs: which ports and clients a route reaches, and what happens when several do.

use weft_source::Object;

use super::{compile, conditions_of, lines, route};

const RULES: &str = "rules: [{backendRefs: [{name: v1, port: 80}]}]";

/// A route of a kind and name in a namespace, with parentRefs as given.
fn with(kind: &str, namespace: &str, name: &str, parents: &str) -> Object {
    let backend = "backendRefs: [{name: v1, namespace: shop, port: 80}]";
    route(
        kind,
        &format!(
            "{{metadata: {{namespace: {namespace}, name: {name}}}, parentRefs: {parents}, rules: [{{{backend}}}]}}"
        ),
    )
}

/// Names of all tables, `?` after those that sniff.
fn tables(objects: &[Object]) -> Vec<String> {
    let compiled = compile(objects);
    let name = |(name, table): (&String, &std::sync::Arc<weft_api::config::RouteTable>)| {
        format!("{name}{}", if table.sniff { "?" } else { "" })
    };
    compiled.route_tables.iter().map(name).collect()
}

fn accepted(objects: &[Object], kind: &str, namespace: &str, name: &str) -> Vec<String> {
    let conditions = conditions_of(&compile(objects), kind, namespace, name);
    conditions
        .into_iter()
        .map(|mut parent| parent.remove(0))
        .collect()
}

#[test]
fn a_route_reaches_the_ports_that_it_names_or_all_that_could_be_its() {
    // checkout: 80 declared HTTP, 81 undeclared, 82 declared TCP, 83 declared TLS.
    for (kind, parent, expected) in [
        ("HTTPRoute", "port: 80", &["80"] as &[&str]),
        ("HTTPRoute", "port: 81", &["81"]),
        ("HTTPRoute", "port: 82", &["82"]),
        ("HTTPRoute", "sectionName: web", &["81"]),
        ("HTTPRoute", "sectionName: web, port: 81", &["81"]),
        ("HTTPRoute", "namespace: shop", &["80", "81?"]),
        ("GRPCRoute", "namespace: shop", &["80", "81"]),
        ("GRPCRoute", "port: 82", &["82"]),
        ("TLSRoute", "namespace: shop", &["81", "83"]),
        ("TCPRoute", "namespace: shop", &["80", "81", "82", "83"]),
        ("TCPRoute", "port: 80", &["80"]),
    ] {
        let route = with(
            kind,
            "shop",
            "r",
            &format!("[{{group: '', kind: Service, name: checkout, {parent}}}]"),
        );
        let expected: Vec<_> = expected
            .iter()
            .map(|port| format!("shop/checkout/{port}"))
            .collect();
        assert_eq!(tables(&[route]), expected, "{kind} {parent}");
    }
}

#[test]
fn both_spellings_of_the_core_group_are_services_and_other_parents_are_not_ours() {
    for (parent, ours) in [
        ("{group: '', kind: Service, name: checkout}", true),
        ("{group: core, kind: Service, name: checkout}", true),
        ("{kind: Service, name: checkout}", false),
        ("{name: checkout}", false),
        (
            "{group: gateway.networking.k8s.io, kind: Gateway, name: g}",
            false,
        ),
        (
            "{group: multicluster.x-k8s.io, kind: ServiceImport, name: checkout}",
            false,
        ),
    ] {
        let route = with("HTTPRoute", "shop", "r", &format!("[{parent}]"));
        assert_eq!(
            !tables(std::slice::from_ref(&route)).is_empty(),
            ours,
            "{parent}"
        );
        assert_eq!(
            accepted(&[route], "HTTPRoute", "shop", "r").len(),
            usize::from(ours),
            "{parent}"
        );
    }
}

#[test]
fn a_parent_that_cannot_have_routes_says_why() {
    for (parent, expected) in [
        (
            "name: gone",
            "Accepted=false NoMatchingParent: Service shop/gone does not exist",
        ),
        (
            "name: checkout, port: 99",
            "Accepted=false NoMatchingParent: Service shop/checkout has no TCP port 99",
        ),
        (
            "name: checkout, sectionName: x",
            "Accepted=false NoMatchingParent: Service shop/checkout has no TCP port named x",
        ),
        (
            "name: checkout, sectionName: web, port: 80",
            "Accepted=false NoMatchingParent: Service shop/checkout has no TCP port 80 named web",
        ),
        (
            "name: v2, port: 53",
            "Accepted=false NoMatchingParent: Service shop/v2 has no TCP port 53",
        ),
        (
            "name: headless",
            "Accepted=false UnsupportedValue: Service shop/headless is headless",
        ),
        (
            "name: alias",
            "Accepted=false UnsupportedValue: Service shop/alias is an ExternalName",
        ),
        (
            "name: checkout, port: many",
            "Accepted=false UnsupportedValue: the parentRef can't be read",
        ),
        (
            "port: 80",
            "Accepted=false UnsupportedValue: the parentRef can't be read: missing field `name`",
        ),
    ] {
        let route = with(
            "HTTPRoute",
            "shop",
            "r",
            &format!("[{{group: '', kind: Service, {parent}}}]"),
        );
        assert!(tables(std::slice::from_ref(&route)).is_empty(), "{parent}");
        let found = accepted(&[route], "HTTPRoute", "shop", "r");
        assert!(
            found.len() == 1 && found[0].starts_with(expected),
            "{parent}: {found:?}"
        );
    }
}

#[test]
fn a_route_for_all_ports_of_a_service_without_http_attaches_nowhere_and_says_so() {
    let service = super::objects(
        "{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: db}, spec: {clusterIP: 10.0.0.9, ports: [{port: 1, name: mysql}, {port: 2, name: tls}]}}",
    );
    let route = with(
        "HTTPRoute",
        "shop",
        "r",
        "[{group: '', kind: Service, name: db}]",
    );
    let objects = [service[0].clone(), route];
    assert!(tables(&objects).is_empty());
    let found = accepted(&objects, "HTTPRoute", "shop", "r");
    assert!(
        found[0].starts_with(
            "Accepted=false UnsupportedValue: every port of Service shop/db is declared"
        ),
        "{found:?}"
    );
}

#[test]
fn each_parent_of_a_route_has_its_own_truth_and_its_own_tables() {
    let route = with(
        "HTTPRoute",
        "shop",
        "r",
        "[{group: '', kind: Service, name: checkout, port: 80}, {group: '', kind: Service, name: gone}, {group: '', kind: Service, name: v1}, {group: '', kind: Service, name: v3, namespace: other}]",
    );
    let compiled = compile(&[route]);
    let status = compiled
        .routes
        .values()
        .next()
        .expect("the route has a status");
    let parents: Vec<_> = status
        .parents
        .iter()
        .map(|p| {
            (
                p.parent_ref["name"].as_str().unwrap_or_default(),
                p.conditions[0].status,
                p.tables.clone(),
            )
        })
        .collect();
    assert_eq!(
        parents,
        [
            ("checkout", true, vec!["shop/checkout/80".to_owned()]),
            ("gone", false, vec![]),
            ("v1", true, vec!["shop/v1/80".to_owned()]),
            ("v3", true, vec!["other/v3/80@shop".to_owned()]),
        ]
    );
    assert_eq!(compiled.route_tables.len(), 3);
}

#[test]
fn duplicate_parents_attach_once_and_naming_the_port_once_is_enough() {
    let parents = "[{group: '', kind: Service, name: checkout}, {group: core, kind: Service, name: checkout, port: 81}, {group: '', kind: Service, name: checkout}]";
    let route = with("HTTPRoute", "shop", "r", parents);
    assert_eq!(
        tables(std::slice::from_ref(&route)),
        ["shop/checkout/80", "shop/checkout/81"]
    );
    let compiled = compile(&[route]);
    assert_eq!(
        lines(&compiled, "shop/checkout/81"),
        ["any -> shop/r[0] shop/v1:80 x1"]
    );
    let status = compiled
        .routes
        .values()
        .next()
        .expect("the route has a status");
    let tables: Vec<_> = status
        .parents
        .iter()
        .map(|parent| parent.tables.len())
        .collect();
    assert_eq!(tables, [2, 1, 2]);
}

#[test]
fn a_port_is_sniffed_only_while_no_route_says_what_it_is() {
    let all = with(
        "HTTPRoute",
        "shop",
        "all",
        "[{group: '', kind: Service, name: checkout}]",
    );
    let named = with(
        "HTTPRoute",
        "shop",
        "named",
        "[{group: '', kind: Service, name: checkout, port: 81}]",
    );
    let grpc = with(
        "GRPCRoute",
        "shop",
        "grpc",
        "[{group: '', kind: Service, name: checkout}]",
    );
    let consumer = with(
        "HTTPRoute",
        "client",
        "c",
        "[{group: '', kind: Service, name: checkout, namespace: shop}]",
    );
    assert_eq!(
        tables(std::slice::from_ref(&all)),
        ["shop/checkout/80", "shop/checkout/81?"]
    );
    assert_eq!(
        tables(&[all.clone(), named.clone()]),
        ["shop/checkout/80", "shop/checkout/81"]
    );
    assert_eq!(
        tables(&[all, grpc]),
        ["shop/checkout/80", "shop/checkout/81"]
    );
    // What a consumer's namespace leaves open is open in its own table only.
    assert_eq!(
        tables(&[named, consumer]),
        [
            "shop/checkout/80@client",
            "shop/checkout/81",
            "shop/checkout/81@client?"
        ]
    );
}

#[test]
fn consumer_routes_are_for_their_own_namespace_instead_of_the_producers() {
    let parent = "[{group: '', kind: Service, name: checkout, namespace: shop, port: 80}]";
    let compiled = compile(&[
        with("HTTPRoute", "shop", "producer", parent),
        with("HTTPRoute", "client", "b", parent),
        with("HTTPRoute", "client", "a", parent),
        with("HTTPRoute", "third", "c", parent),
    ]);
    let line = |route: &str| format!("any -> {route}[0] shop/v1:80 x1");
    assert_eq!(
        lines(&compiled, "shop/checkout/80"),
        [line("shop/producer")]
    );
    assert_eq!(
        lines(&compiled, "shop/checkout/80@client"),
        [line("client/a"), line("client/b")]
    );
    assert_eq!(
        lines(&compiled, "shop/checkout/80@third"),
        [line("third/c")]
    );
    let consumer = &compiled.route_tables["shop/checkout/80@client"];
    assert_eq!(
        (consumer.client_namespace.as_str(), consumer.port),
        ("client", 80)
    );
    assert_eq!(consumer.service, "shop/checkout");
}

#[test]
fn of_several_kinds_on_one_port_the_most_specific_wins_and_the_losers_say_so() {
    let parent = "[{group: '', kind: Service, name: checkout, port: 80}]";
    let kinds = ["GRPCRoute", "HTTPRoute", "TLSRoute", "TCPRoute"];
    for winner in 0..kinds.len() {
        let routes: Vec<_> = kinds[winner..]
            .iter()
            .rev()
            .map(|kind| with(kind, "shop", "r", parent))
            .collect();
        let found = lines(&compile(&routes), "shop/checkout/80");
        assert_eq!(found.len(), 1, "{found:?}");
        for (place, kind) in kinds.iter().enumerate().skip(winner) {
            let expected = if place == winner {
                "Accepted=true Accepted: attached to port 80".to_owned()
            } else {
                format!(
                    "Accepted=false Conflicted: {} shop/r takes precedence on port 80",
                    kinds[winner]
                )
            };
            assert_eq!(accepted(&routes, kind, "shop", "r"), [expected]);
        }
    }
}

#[test]
fn a_conflict_is_settled_per_port_and_per_set_of_clients() {
    let grpc = with(
        "GRPCRoute",
        "shop",
        "g",
        "[{group: '', kind: Service, name: checkout, port: 80}]",
    );
    let http = with(
        "HTTPRoute",
        "shop",
        "h",
        "[{group: '', kind: Service, name: checkout}]",
    );
    let consumer = with(
        "HTTPRoute",
        "client",
        "c",
        "[{group: '', kind: Service, name: checkout, namespace: shop, port: 80}]",
    );
    let objects = [grpc, http, consumer];
    assert_eq!(
        tables(&objects),
        [
            "shop/checkout/80",
            "shop/checkout/80@client",
            "shop/checkout/81?"
        ]
    );
    assert_eq!(
        accepted(&objects, "HTTPRoute", "shop", "h"),
        [
            "Accepted=true Accepted: attached to port 81; not to ports 82, 83, declared to be another protocol; GRPCRoute shop/g takes precedence on port 80"
        ]
    );
    assert_eq!(
        accepted(&objects, "HTTPRoute", "client", "c"),
        ["Accepted=true Accepted: attached to port 80"]
    );
}

#[test]
fn of_two_tcp_routes_the_older_wins() {
    let parent = "parentRefs: [{group: '', kind: Service, name: checkout, port: 82}]";
    let dated = |name: &str, date: &str| {
        route(
            "TCPRoute",
            &format!(
                "{{metadata: {{name: {name}, creationTimestamp: '{date}'}}, {parent}, {RULES}}}"
            ),
        )
    };
    let objects = [
        dated("a", "2026-01-02T00:00:00Z"),
        dated("b", "2026-01-01T23:00:00Z"),
    ];
    assert_eq!(
        lines(&compile(&objects), "shop/checkout/82"),
        ["tcp -> shop/b[0] shop/v1:80 x1 tcp"]
    );
    assert_eq!(
        accepted(&objects, "TCPRoute", "shop", "a"),
        ["Accepted=false Conflicted: TCPRoute shop/b takes precedence on port 82"]
    );
}

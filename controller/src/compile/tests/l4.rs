//! TCPRoutes, TLSRoutes, and the UDPRoutes that are still to come.

use super::{assert_conditions, compile, lines, route};

#[test]
fn a_tcp_route_shares_connections_by_weight() {
    let yaml = "{rules: [{name: all, backendRefs: [{name: v1, port: 80, weight: 9}, {name: v2, port: 443}, {name: gone, port: 1}, {name: v1, port: 80, weight: 0}]}]}";
    let compiled = compile(&[route("TCPRoute", yaml)]);
    assert_eq!(
        lines(&compiled, "shop/checkout/80"),
        ["tcp -> shop/r[0 all] shop/v1:80 x9 tcp shop/v2:443 x1 tcp BackendNotFound x1"]
    );
    assert!(!compiled.route_tables["shop/checkout/80"].sniff);
    assert_conditions(
        &compiled,
        "TCPRoute",
        &[
            "Accepted=true Accepted",
            "ResolvedRefs=false BackendNotFound",
        ],
    );
}

#[test]
fn only_the_first_rule_of_an_l4_route_can_be_reached() {
    let compiled = compile(&[route(
        "TCPRoute",
        "{rules: [{backendRefs: [{name: v1, port: 80}]}, {backendRefs: []}]}",
    )]);
    assert_eq!(
        lines(&compiled, "shop/checkout/80"),
        ["tcp -> shop/r[0] shop/v1:80 x1 tcp"]
    );
    let partial =
        "PartiallyInvalid=true UnsupportedValue: Dropped Rule rules[1] (the rule is left out)";
    assert_conditions(
        &compiled,
        "TCPRoute",
        &["Accepted=true", "ResolvedRefs=true", partial],
    );
}

#[test]
fn tls_routes_merge_with_exact_names_before_wildcards_before_any() {
    let to = |name: &str, hostnames: &str, port: u16| {
        route(
            "TLSRoute",
            &format!(
                "{{metadata: {{name: {name}}}, hostnames: {hostnames}, rules: [{{backendRefs: [{{name: v2, port: {port}}}]}}]}}"
            ),
        )
    };
    let compiled = compile(&[
        to("a", "[]", 80),
        to("b", "['*.example', 'x.a.example']", 443),
        to("c", "['*.a.example', '*.example']", 80),
    ]);
    assert_eq!(
        lines(&compiled, "shop/checkout/80"),
        [
            "tls [\"x.a.example\"] -> shop/b[0] shop/v2:443 x1 tcp",
            "tls [\"*.a.example\"] -> shop/c[0] shop/v2:80 x1 tcp",
            "tls [\"*.example\"] -> shop/b[0] shop/v2:443 x1 tcp",
            "tls [\"*.example\"] -> shop/c[0] shop/v2:80 x1 tcp",
            "tls [] -> shop/a[0] shop/v2:80 x1 tcp",
        ]
    );
}

#[test]
fn an_l4_route_that_cannot_be_read_has_no_effect_and_says_why() {
    for (kind, yaml, message) in [
        (
            "TCPRoute",
            "{rules: [{backendRefs: [{name: v1, port: 80, filters: []}]}]}",
            "rules[0].backendRefs[0]: a TCPRoute's backendRefs have no filters",
        ),
        (
            "TCPRoute",
            "{rules: [{backendRefs: 1}]}",
            "rules[0].backendRefs is no list",
        ),
        (
            "TLSRoute",
            "{hostnames: ['a:1'], rules: []}",
            "spec.hostnames: `a:1` is no host name; write it in lower case and without a port",
        ),
        (
            "UDPRoute",
            "{rules: [{backendRefs: [{name: v2, port: 53}]}]}",
            "UDPRoutes are not supported yet",
        ),
    ] {
        let compiled = compile(&[route(kind, yaml)]);
        assert!(compiled.route_tables.is_empty(), "{yaml}");
        let expected = format!(
            "Accepted=false UnsupportedValue: this version can't be used: {message}; no earlier version is known"
        );
        assert_conditions(&compiled, kind, &[&expected]);
    }
}

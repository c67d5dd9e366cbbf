//! GRPCRoutes as HTTP tables.

use super::{assert_conditions, compile, lines, route};

const OK: [&str; 2] = [
    "Accepted=true Accepted: attached to port 80",
    "ResolvedRefs=true ResolvedRefs",
];

#[test]
fn calls_are_matched_by_path_and_backends_speak_http2() {
    for (matches, expected) in [
        ("[]", "any"),
        ("[{}]", "any"),
        ("[{method: {service: a.B, method: C}}]", "=/a.B/C"),
        ("[{method: {service: a.B}}]", "/a.B/*"),
        ("[{method: {method: C}}]", "~/[^/]+/C"),
        ("[{method: {method: C.D}}]", "~/[^/]+/C\\.D"),
        (
            "[{method: {type: RegularExpression, service: 'a.*', method: 'C|D'}}]",
            "~/(?:a.*)/(?:C|D)",
        ),
        (
            "[{method: {type: RegularExpression, service: 'a.*'}}]",
            "~/(?:a.*)/(?:[^/]+)",
        ),
        ("[{headers: [{name: V, value: x}]}]", "h:v=x"),
    ] {
        let yaml =
            format!("{{rules: [{{matches: {matches}, backendRefs: [{{name: v1, port: 80}}]}}]}}");
        let compiled = compile(&[route("GRPCRoute", &yaml)]);
        let line = format!("{expected} -> shop/r[0] grpc shop/v1:80 x1 h2c");
        assert_eq!(lines(&compiled, "shop/checkout/80"), [line], "{matches}");
        assert_conditions(&compiled, "GRPCRoute", &OK);
        assert!(!compiled.route_tables["shop/checkout/80"].sniff);
    }
}

#[test]
fn the_more_specific_call_wins() {
    let method = |fields: &str| format!("{{matches: [{{method: {{{fields}}}}}]}}");
    let rules = [
        "{}".to_owned(),
        "{matches: [{headers: [{name: a, value: b}]}]}".to_owned(),
        method("method: LongMethod"),
        method("type: RegularExpression, service: .*"),
        method("service: a.B"),
        method("service: a.B, method: C"),
        method("service: a.B, method: CC"),
        method("service: a.BB"),
    ];
    let compiled = compile(&[route(
        "GRPCRoute",
        &format!("{{rules: [{}]}}", rules.join(", ")),
    )]);
    let found = lines(&compiled, "shop/checkout/80");
    let order: Vec<_> = found
        .iter()
        .map(|line| line.split(" -> ").next().unwrap_or_default())
        .collect();
    assert_eq!(
        order,
        [
            "/a.BB/*",
            "=/a.B/CC",
            "=/a.B/C",
            "/a.B/*",
            "~/(?:.*)/(?:[^/]+)",
            "~/[^/]+/LongMethod",
            "h:a=b",
            "any",
        ]
    );
}

#[test]
fn what_grpc_routes_cannot_do_is_refused_rule_by_rule() {
    for (rule, message) in [
        (
            "matches: [{method: {service: a/b}}]",
            "rules[1] (the rule is left out): matches[0]: method: `a/b` has a slash",
        ),
        (
            "matches: [{method: {type: Near, service: a}}]",
            "rules[1] (the rule is left out): matches[0]: method type Near",
        ),
        (
            "matches: [{method: {type: RegularExpression, service: 'a)(b'}}]",
            "rules[1] (the rule is left out): matches[0]: `a)(b`",
        ),
        (
            "matches: [{path: {value: /}}]",
            "rules[1] (the rule is left out): matches[0]: unknown field `path`",
        ),
        (
            "filters: [{type: RequestRedirect, requestRedirect: {port: 1}}]",
            "rules[1] (requests that it matches get 500): filters[0]: RequestRedirect is not supported here",
        ),
        (
            "timeouts: {request: 1s}",
            "rules[1] (in force without it): timeouts is not supported",
        ),
    ] {
        let yaml = format!("{{rules: [{{backendRefs: [{{name: v1, port: 80}}]}}, {{{rule}}}]}}");
        let compiled = compile(&[route("GRPCRoute", &yaml)]);
        assert_eq!(
            lines(&compiled, "shop/checkout/80")[0],
            "any -> shop/r[0] grpc shop/v1:80 x1 h2c"
        );
        let partial = format!("PartiallyInvalid=true UnsupportedValue: Dropped Rule {message}");
        assert_conditions(&compiled, "GRPCRoute", &[OK[0], OK[1], &partial]);
    }
}

#[test]
fn a_websocket_port_is_no_grpc_backend() {
    let compiled = compile(&[route(
        "GRPCRoute",
        "{rules: [{backendRefs: [{name: v2, port: 90}]}]}",
    )]);
    assert_eq!(
        lines(&compiled, "shop/checkout/80"),
        ["any -> shop/r[0] grpc UnsupportedProtocol x1"]
    );
    assert_conditions(
        &compiled,
        "GRPCRoute",
        &[OK[0], "ResolvedRefs=false UnsupportedProtocol"],
    );
}

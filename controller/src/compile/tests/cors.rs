//! The CORS filter: what is read, what is refused, and where it may stand.

use super::{assert_conditions, compile, lines, route};

/// A rule that CORS `fields` make, with one backend.
fn rule(fields: &str) -> String {
    format!(
        "{{filters: [{{type: CORS, cors: {{{fields}}}}}], backendRefs: [{{name: v1, port: 80}}]}}"
    )
}

#[track_caller]
fn compiles_to(rules: &str, expected: &str) {
    let compiled = compile(&[route("HTTPRoute", &format!("{{rules: [{rules}]}}"))]);
    assert_eq!(lines(&compiled, "shop/checkout/80"), [expected], "{rules}");
    assert_conditions(
        &compiled,
        "HTTPRoute",
        &["Accepted=true Accepted", "ResolvedRefs=true"],
    );
}

#[test]
fn a_filter_is_read_with_its_defaults_and_its_spelling() {
    for (fields, expected) in [
        // allowOrigins is optional; then no origin is allowed. maxAge: "default 5".
        ("", "[cors  m= h= x= 5s]"),
        ("allowOrigins: ['*']", "[cors * m= h= x= 5s]"),
        // "if not included, port 80 is assumed for http, 443 for https".
        (
            "allowOrigins: ['http://a.example', 'https://a.example', 'https://a.example:8443']",
            "[cors http://a.example:80,https://a.example:443,https://a.example:8443 m= h= x= 5s]",
        ),
        // "The host part of the origin may contain the wildcard character".
        (
            "allowOrigins: ['https://*.Example.COM', 'http://*', 'http://*:8080']",
            "[cors https://*.example.com:443,http://*:80,http://*:8080 m= h= x= 5s]",
        ),
        (
            "allowOrigins: ['http://10.0.0.1:1', 'http://-a-.b:65535']",
            "[cors http://10.0.0.1:1,http://-a-.b:65535 m= h= x= 5s]",
        ),
        (
            "allowCredentials: true, allowMethods: [GET, PATCH], allowHeaders: [DNT, x-b], exposeHeaders: [X-C], maxAge: 86400",
            "[cors  credentials m=GET,PATCH h=DNT,x-b x=X-C 86400s]",
        ),
        (
            "allowCredentials: false, allowMethods: ['*'], allowHeaders: ['*'], exposeHeaders: ['*', x-c], maxAge: 2147483647",
            "[cors  m=* h=* x=*,x-c 2147483647s]",
        ),
    ] {
        compiles_to(
            &rule(fields),
            &format!("any -> shop/r[0] {expected} shop/v1:80 x1"),
        );
    }
}

#[test]
fn what_the_standard_does_not_allow_answers_500_and_status_names_the_field() {
    let origins = |origin: &str| (format!("allowOrigins: [{origin:?}]"), origin.to_owned());
    let mut wrong: Vec<(String, String)> = [
        "",
        "example.com",
        "ftp://example.com",
        "HTTPS://example.com",
        "https://",
        "https://example.com/",
        "https://example.com/path",
        "https://user@example.com",
        "https://example.com:",
        "https://example.com:0",
        "https://example.com:65536",
        "https://example.com:+80",
        "https://example.com:000080",
        "https://example..com",
        "https://.example.com",
        "https://a_b.example",
        "https://*example.com",
        "https://a.*.example",
        "https://*.*.example",
        "https://*.",
        "https://[::1]",
        "null",
        "*.example.com",
    ]
    .into_iter()
    .map(|origin| {
        let (fields, origin) = origins(origin);
        (
            fields,
            format!("cors.allowOrigins[0]: `{origin}` is no origin"),
        )
    })
    .collect();
    let long = format!("https://{}.example", "a".repeat(240));
    let many = |count: usize, word: &str| {
        let words: Vec<_> = (0..count)
            .map(|n| word.replace('#', &n.to_string()))
            .collect();
        words.join(", ")
    };
    for (fields, message) in [
        (
            format!("allowOrigins: ['https://a.example', '{long}']"),
            "cors.allowOrigins[1]: `https://aaaa",
        ),
        (
            "allowOrigins: ['https://a.example', '*']".into(),
            "cors.allowOrigins: `*` already means all",
        ),
        (
            "allowOrigins: ['https://a.example', 'https://a.example']".into(),
            "cors.allowOrigins[1]: `https://a.example` stands twice",
        ),
        (
            format!("allowOrigins: [{}]", many(65, "'http://a#.example'")),
            "cors.allowOrigins: 65 entries are more than the 64",
        ),
        (
            "allowMethods: [GET, '*']".into(),
            "cors.allowMethods: `*` already means all",
        ),
        // "Method names are case-sensitive".
        (
            "allowMethods: [get]".into(),
            "cors.allowMethods[0]: `get` is neither `*` nor one of GET, HEAD",
        ),
        (
            "allowMethods: [PUT, PURGE]".into(),
            "cors.allowMethods[1]: `PURGE` is neither",
        ),
        (
            "allowHeaders: ['*', x-a]".into(),
            "cors.allowHeaders: `*` already means all",
        ),
        (
            "allowHeaders: ['x a']".into(),
            "cors.allowHeaders[0]: `x a` is no header name",
        ),
        (
            "allowHeaders: ['x-a, x-b']".into(),
            "cors.allowHeaders[0]: `x-a, x-b` is no header name",
        ),
        (
            format!("allowHeaders: [{}]", "x".repeat(257)),
            "cors.allowHeaders[0]: a name has 256 characters",
        ),
        (
            format!("allowHeaders: [{}]", many(65, "x-#")),
            "cors.allowHeaders: 65 entries",
        ),
        (
            "exposeHeaders: [x-a, ':status']".into(),
            "cors.exposeHeaders[1]: `:status` is no header name",
        ),
        ("maxAge: 0".into(), "cors.maxAge: 0 is not at least 1"),
        ("maxAge: -1".into(), "cors.maxAge: -1 is not at least 1"),
        (
            "maxAge: 2147483648".into(),
            "cors: invalid value: integer `2147483648`",
        ),
        ("maxAge: 5s".into(), "cors: invalid type: string"),
        (
            "allowCredentials: 'yes'".into(),
            "cors: invalid type: string",
        ),
        ("allowOrigins: '*'".into(), "cors: invalid type: string"),
        (
            "allowPrivateNetwork: true".into(),
            "cors: unknown field `allowPrivateNetwork`",
        ),
    ] {
        wrong.push((fields, message.into()));
    }
    for (fields, message) in wrong {
        let compiled = compile(&[route(
            "HTTPRoute",
            &format!("{{rules: [{}]}}", rule(&fields)),
        )]);
        let found = lines(&compiled, "shop/checkout/80");
        assert!(
            found[0].contains(&format!(" 500 invalid rule: filters[0]: {message}")),
            "{fields}: {found:?}"
        );
        assert_conditions(
            &compiled,
            "HTTPRoute",
            &[
                &format!(
                    "Accepted=false UnsupportedValue: no rule can be used: rules[0] (requests that it matches get 500): filters[0]: {message}"
                ),
                "ResolvedRefs=true",
            ],
        );
    }
}

/// A backendRef of `service`, with its own CORS filter for `origins`.
fn backend(service: &str, weight: u32, origins: &str) -> String {
    format!(
        "{{name: {service}, port: 80, weight: {weight}, filters: [{{type: CORS, cors: {{allowOrigins: [{origins}]}}}}]}}"
    )
}

#[test]
fn a_filter_of_all_backends_is_the_rules() {
    let a = "'https://a.example'";
    let cors = "[cors https://a.example:443 m= h= x= 5s]";
    for (backends, expected) in [
        (backend("v1", 1, a), "shop/v1:80 x1"),
        (
            format!("{}, {}", backend("v1", 9, a), backend("v2", 1, a)),
            "shop/v1:80 x9 shop/v2:80 x1 h2c",
        ),
        // Nothing goes to a backend without weight, so it has no say.
        (
            format!("{}, {}", backend("v1", 1, a), backend("v2", 0, "'*'")),
            "shop/v1:80 x1",
        ),
    ] {
        compiles_to(
            &format!("{{backendRefs: [{backends}]}}"),
            &format!("any -> shop/r[0] {cors} {expected}"),
        );
    }
}

#[test]
fn filters_of_backends_that_differ_cannot_be_executed() {
    let (a, b) = ("'https://a.example'", "'https://b.example'");
    let twice = format!("filters: [{{type: CORS, cors: {{allowOrigins: [{a}]}}}}], ");
    for (rule, message) in [
        (
            format!(
                "backendRefs: [{}, {}]",
                backend("v1", 1, a),
                backend("v2", 1, b)
            ),
            "backendRefs: their CORS filters differ",
        ),
        (
            format!(
                "backendRefs: [{}, {{name: v2, port: 80}}]",
                backend("v1", 1, a)
            ),
            "backendRefs: their CORS filters differ",
        ),
        (
            format!("{twice}backendRefs: [{}]", backend("v1", 1, a)),
            "backendRefs: a CORS filter stands there and in the rule's filters",
        ),
        (
            format!(
                "filters: [{{type: CORS, cors: {{}}}}, {{type: CORS, cors: {{allowOrigins: [{a}]}}}}]"
            ),
            "filters[1]: CORS stands twice",
        ),
    ] {
        let compiled = compile(&[route("HTTPRoute", &format!("{{rules: [{{{rule}}}]}}"))]);
        let found = lines(&compiled, "shop/checkout/80");
        assert!(
            found[0].contains(&format!(" 500 invalid rule: {message}")),
            "{rule}: {found:?}"
        );
        assert_conditions(
            &compiled,
            "HTTPRoute",
            &["Accepted=false UnsupportedValue", "ResolvedRefs=true"],
        );
    }
}

#[test]
fn a_backends_filter_that_cannot_be_read_fails_its_share_alone() {
    let bad = backend("v2", 1, "'null'");
    let compiled = compile(&[route(
        "HTTPRoute",
        &format!("{{rules: [{{backendRefs: [{{name: v1, port: 80}}, {bad}]}}]}}"),
    )]);
    assert_eq!(
        lines(&compiled, "shop/checkout/80"),
        ["any -> shop/r[0] shop/v1:80 x1 UnsupportedValue x1 h2c"]
    );
    assert_conditions(
        &compiled,
        "HTTPRoute",
        &[
            "Accepted=true",
            "ResolvedRefs=true",
            "PartiallyInvalid=true UnsupportedValue: Dropped Rule rules[0] (the backend's share gets 500): backendRefs[1].filters[0]: cors.allowOrigins[0]",
        ],
    );
}

#[test]
fn a_grpc_route_has_no_such_filter() {
    // GRPCRouteFilterType does not name CORS.
    let compiled = compile(&[route(
        "GRPCRoute",
        "{rules: [{filters: [{type: CORS, cors: {}}], backendRefs: [{name: v2, port: 80}]}]}",
    )]);
    assert_conditions(
        &compiled,
        "GRPCRoute",
        &[
            "Accepted=false UnsupportedValue: no rule can be used: rules[0] (requests that it matches get 500): filters[0]: CORS is not supported here",
            "ResolvedRefs=true",
        ],
    );
}

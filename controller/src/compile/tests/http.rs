//! Rules of HTTPRoutes: matches, filters, backends, timeouts.

use super::{assert_conditions, compile, lines, route};

const OK: [&str; 2] = [
    "Accepted=true Accepted: attached to port 80",
    "ResolvedRefs=true ResolvedRefs",
];

/// The table's lines of a route with one rule, and whether it is all right.
#[track_caller]
fn check(rule: &str, expected: &[&str]) {
    let compiled = compile(&[route("HTTPRoute", &format!("{{rules: [{rule}]}}"))]);
    assert_eq!(lines(&compiled, "shop/checkout/80"), expected, "{rule}");
    assert_conditions(&compiled, "HTTPRoute", &OK);
}

#[test]
fn matches_come_out_as_the_table_needs_them() {
    let to = "backendRefs: [{name: v1, port: 80}]";
    for (matches, expected) in [
        ("[]", "any"),
        ("[{}]", "any"),
        ("[{path: {value: /}}]", "any"),
        ("[{path: {value: /a/}}]", "/a/*"),
        ("[{path: {type: Exact, value: /a/}}]", "=/a/"),
        (
            "[{path: {type: RegularExpression, value: '/v[0-9]+/.*'}}]",
            "~/v[0-9]+/.*",
        ),
        (
            "[{path: {type: Exact, value: /a}, method: POST}]",
            "=/a POST",
        ),
        (
            "[{headers: [{name: X-Version, value: two}]}]",
            "h:x-version=two",
        ),
        (
            "[{headers: [{name: a, value: '1'}, {name: A, value: '2'}]}]",
            "h:a=1",
        ),
        (
            "[{headers: [{name: a, type: RegularExpression, value: 'v[12]'}]}]",
            "h:a~v[12]",
        ),
        (
            "[{queryParams: [{name: Animal, value: whale}, {name: Animal, value: dog}]}]",
            "q:Animal=whale",
        ),
        (
            "[{queryParams: [{name: a, type: RegularExpression, value: '.+'}]}]",
            "q:a~.+",
        ),
    ] {
        check(
            &format!("{{matches: {matches}, {to}}}"),
            &[&format!("{expected} -> shop/r[0] shop/v1:80 x1")],
        );
    }
}

#[test]
fn backends_carry_weight_protocol_and_namespace() {
    for (refs, expected) in [
        ("[{name: v1, port: 80}]", "shop/v1:80 x1"),
        (
            "[{name: v1, port: 80, weight: 90}, {name: v2, port: 80, weight: 10}]",
            "shop/v1:80 x90 shop/v2:80 x10 h2c",
        ),
        (
            "[{name: v1, port: 80}, {name: v2, port: 80, weight: 0}]",
            "shop/v1:80 x1",
        ),
        ("[{name: v3, namespace: other, port: 80}]", "other/v3:80 x1"),
        ("[{name: headless, port: 80}]", "shop/headless:80 x1"),
        ("[{name: checkout, port: 82}]", "shop/checkout:82 x1"),
        (
            "[{group: core, kind: Service, name: v1, port: 80}]",
            "shop/v1:80 x1",
        ),
        ("[]", "500 the rule has no backendRefs"),
        (
            "[{name: v1, port: 80, weight: 0}]",
            "500 all backendRefs of the rule have weight 0",
        ),
    ] {
        check(
            &format!("{{backendRefs: {refs}}}"),
            &[&format!("any -> shop/r[0] {expected}")],
        );
    }
}

#[test]
fn a_backend_that_does_not_resolve_fails_its_share_alone() {
    for (backend, reason, message) in [
        (
            "{name: gone, port: 80}",
            "BackendNotFound",
            "Service shop/gone does not exist",
        ),
        (
            "{name: v1, port: 81}",
            "BackendNotFound",
            "Service shop/v1 has no port 81",
        ),
        (
            "{name: v1}",
            "BackendNotFound",
            "no port is given of Service shop/v1",
        ),
        (
            "{name: v1, namespace: other, port: 80}",
            "BackendNotFound",
            "Service other/v1 does not exist",
        ),
        (
            "{kind: Secret, name: v1, port: 80}",
            "InvalidKind",
            "Secret v1 of group ``",
        ),
        (
            "{group: example.com, kind: Service, name: v1, port: 80}",
            "InvalidKind",
            "Service v1 of group `example.com`",
        ),
        (
            "{name: alias, port: 80}",
            "InvalidKind",
            "Service shop/alias is an ExternalName",
        ),
        (
            "{name: v2, port: 53}",
            "UnsupportedProtocol",
            "port 53 of Service shop/v2 is not TCP",
        ),
        (
            "{name: v2, port: 443}",
            "UnsupportedProtocol",
            "port 443 of Service shop/v2 is declared TLS",
        ),
    ] {
        let yaml =
            format!("{{rules: [{{backendRefs: [{{name: v1, port: 80, weight: 3}}, {backend}]}}]}}");
        let compiled = compile(&[route("HTTPRoute", &yaml)]);
        let line = format!("any -> shop/r[0] shop/v1:80 x3 {reason} x1");
        assert_eq!(lines(&compiled, "shop/checkout/80"), [line], "{backend}");
        let refs = format!("ResolvedRefs=false {reason}: rules[0].backendRefs[1]: {message}");
        assert_conditions(&compiled, "HTTPRoute", &[OK[0], &refs]);
    }
}

#[test]
fn filters_come_out_as_the_table_needs_them() {
    for (filter, expected) in [
        (
            "type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-A, value: '1'}], add: [{name: b, value: '2'}], remove: [c]}",
            "[request: set x-a=1 add b=2 remove c]",
        ),
        (
            "type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: X-A, value: '1'}]}",
            "[response: set x-a=1 add  remove ]",
        ),
        (
            "type: URLRewrite, urlRewrite: {hostname: a.example}",
            "[rewrite a.example]",
        ),
        (
            "type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /x}}",
            "[rewrite  path=/x]",
        ),
        (
            "type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}",
            "[rewrite  prefix=/]",
        ),
        (
            "type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: ''}}",
            "[rewrite  prefix=]",
        ),
    ] {
        let rule = |place: &str, filter: &str| match place {
            "rule" => format!("{{filters: [{{{filter}}}], backendRefs: [{{name: v1, port: 80}}]}}"),
            _ => format!("{{backendRefs: [{{name: v1, port: 80, filters: [{{{filter}}}]}}]}}"),
        };
        check(
            &rule("rule", filter),
            &[&format!("any -> shop/r[0] {expected} shop/v1:80 x1")],
        );
        check(
            &rule("backend", filter),
            &[&format!("any -> shop/r[0] shop/v1:80 x1 {expected}")],
        );
    }
}

#[test]
fn redirects_need_no_backends() {
    for (redirect, expected) in [
        ("{hostname: a.example}", "302 ://a.example:0"),
        ("{scheme: https, statusCode: 301}", "301 https://:0"),
        ("{port: 8443, statusCode: 303}", "303 ://:8443"),
        (
            "{statusCode: 307, path: {type: ReplaceFullPath, replaceFullPath: /x}}",
            "307 ://:0 path=/x",
        ),
        (
            "{statusCode: 308, path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}",
            "308 ://:0 prefix=/x",
        ),
    ] {
        let rule = format!("{{filters: [{{type: RequestRedirect, requestRedirect: {redirect}}}]}}");
        check(&rule, &[&format!("any -> shop/r[0] [redirect {expected}]")]);
    }
}

#[test]
fn timeouts_are_milliseconds_and_zero_disables() {
    for (timeouts, expected) in [
        ("{request: 1m}", " 60000ms/0ms"),
        ("{request: 2s, backendRequest: 500ms}", " 2000ms/500ms"),
        ("{request: 0s, backendRequest: 1h}", " 0ms/3600000ms"),
        ("{request: 0s}", ""),
        ("{request: 1s, backendRequest: 1s}", " 1000ms/1000ms"),
    ] {
        let rule = format!("{{timeouts: {timeouts}, backendRefs: [{{name: v1, port: 80}}]}}");
        check(
            &rule,
            &[&format!("any -> shop/r[0]{expected} shop/v1:80 x1")],
        );
    }
}

#[test]
fn retries_come_out_with_the_standards_defaults() {
    for (retry, expected) in [
        ("{codes: [503, 500]}", " retry[500, 503]x1/25ms"),
        ("{attempts: 3, backoff: 1s}", " retry[]x3/1000ms"),
        ("{attempts: 0, codes: [500]}", ""),
        ("null", ""),
    ] {
        let rule = format!("{{retry: {retry}, backendRefs: [{{name: v1, port: 80}}]}}");
        let expected = format!("any -> shop/r[0]{expected} shop/v1:80 x1");
        check(&rule, &[&expected]);
    }
}

#[test]
fn a_rule_that_cannot_be_executed_answers_500_and_touches_no_other() {
    let mirror =
        "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}}}]";
    let header = |fields: &str| {
        format!("filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{{fields}}}}}]")
    };
    let redirect = |fields: &str| {
        format!("filters: [{{type: RequestRedirect, requestRedirect: {{{fields}}}}}]")
    };
    let backend = "backendRefs: [{name: v1, port: 80}]";
    for (rule, message) in [
        (
            mirror.to_owned(),
            "filters[0]: RequestMirror is not supported here",
        ),
        (
            "filters: [{type: ExternalAuth, externalAuth: {}}]".into(),
            "filters[0]: ExternalAuth is not supported",
        ),
        (
            "filters: [{type: ExtensionRef, extensionRef: {group: a, kind: b, name: c}}]".into(),
            "filters[0]: ExtensionRef",
        ),
        (
            "filters: [{type: Tomorrow}]".into(),
            "filters[0]: Tomorrow is not supported",
        ),
        ("filters: [{}]".into(), "filters[0]: it has no type"),
        ("filters: [5]".into(), "filters[0]: it has no type"),
        ("filters: {}".into(), "filters is no list"),
        (
            header("set: [{name: 'a b', value: c}]"),
            "filters[0]: `a b` is no header name",
        ),
        (
            header("set: [{name: a, value: \"b\\nc\"}]"),
            "filters[0]: \"b\\nc\" is no header value",
        ),
        (
            header("remove: [Content-Length]"),
            "filters[0]: header content-length belongs to one connection",
        ),
        (
            header("remove: [Host]"),
            "filters[0]: header host can't be removed",
        ),
        (
            header("add: [{name: Host, value: 'a b'}]"),
            "filters[0]: `a b` is no value of the header host",
        ),
        (
            header("replace: []"),
            "filters[0]: requestHeaderModifier: unknown field `replace`",
        ),
        (
            "filters: [{type: RequestHeaderModifier}]".into(),
            "filters[0]: field requestHeaderModifier is missing",
        ),
        (
            "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {}, cors: {}}]".into(),
            "filters[0]: field cors does not belong",
        ),
        (
            "filters: [{type: URLRewrite, urlRewrite: {}}, {type: URLRewrite, urlRewrite: {}}]"
                .into(),
            "filters[1]: URLRewrite stands twice",
        ),
        (
            redirect("statusCode: 200"),
            "filters[0]: statusCode 200 is none of",
        ),
        (redirect("scheme: ftp"), "filters[0]: scheme `ftp`"),
        (
            redirect("hostname: '*.example'"),
            "filters[0]: `*.example` is no host name",
        ),
        (
            redirect("path: {type: ReplaceFullPath, replacePrefixMatch: /x}"),
            "filters[0]: path: type ReplaceFullPath and its field",
        ),
        (
            format!("{}, {backend}", redirect("port: 1")),
            "RequestRedirect and backendRefs exclude each other",
        ),
        (
            format!(
                "matches: [{{path: {{type: Exact, value: /a}}}}], {}",
                redirect("path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}")
            ),
            "replacePrefixMatch needs exactly one match",
        ),
        (
            format!("timeouts: {{request: 1s, backendRequest: 2s}}, {backend}"),
            "timeouts: backendRequest is longer than request",
        ),
        (
            format!("timeouts: {{request: 1.5s}}, {backend}"),
            "timeouts: `1.5s` is no duration",
        ),
        (
            format!("retry: {{codes: [500, 99]}}, {backend}"),
            "retry: codes: 99 is no status of an error",
        ),
        (
            format!("timeouts: {{idle: 1s}}, {backend}"),
            "timeouts: unknown field `idle`",
        ),
        (
            "backendRefs: [{port: 80}]".into(),
            "backendRefs[0]: missing field `name`",
        ),
        (
            "backendRefs: [{name: v1, port: 80, weight: -1}]".into(),
            "backendRefs[0]: invalid value: integer `-1`",
        ),
        (
            "backendRefs: [{name: v1, port: 80, weight: 1000001}]".into(),
            "backendRefs[0]: weight 1000001 is more than",
        ),
        (
            "backendRefs: [{name: v1, port: 80, share: 1}]".into(),
            "backendRefs[0]: unknown field `share`",
        ),
    ] {
        let good =
            "{matches: [{path: {type: Exact, value: /good}}], backendRefs: [{name: v1, port: 80}]}";
        let compiled = compile(&[route(
            "HTTPRoute",
            &format!("{{rules: [{good}, {{{rule}}}]}}"),
        )]);
        let found = lines(&compiled, "shop/checkout/80");
        assert_eq!(found[0], "=/good -> shop/r[0] shop/v1:80 x1", "{rule}");
        let fails = found[1].contains(&format!("-> shop/r[1] 500 invalid rule: {message}"));
        assert!(fails && found.len() == 2, "{rule}: {found:?}");
        let partial = format!(
            "PartiallyInvalid=true UnsupportedValue: Dropped Rule rules[1] (requests that it matches get 500): {message}"
        );
        assert_conditions(&compiled, "HTTPRoute", &[OK[0], OK[1], &partial]);
    }
}

#[test]
fn redirect_and_rewrite_exclude_each_other() {
    let bad = "{filters: [{type: RequestRedirect, requestRedirect: {port: 1}}, {type: URLRewrite, urlRewrite: {hostname: a.example}}]}";
    let compiled = compile(&[route("HTTPRoute", &format!("{{rules: [{bad}]}}"))]);
    let no = "Accepted=false IncompatibleFilters: no rule can be used: rules[0] (requests that it matches get 500)";
    assert_conditions(&compiled, "HTTPRoute", &[no, OK[1]]);
    assert!(lines(&compiled, "shop/checkout/80")[0].contains("500 invalid rule"));

    let compiled = compile(&[route(
        "HTTPRoute",
        &format!("{{rules: [{bad}, {{matches: [{{method: GET}}]}}]}}"),
    )]);
    assert_conditions(
        &compiled,
        "HTTPRoute",
        &[OK[0], OK[1], "PartiallyInvalid=true"],
    );
}

#[test]
fn a_rule_whose_matches_cannot_be_told_is_left_out_alone() {
    for (matches, message) in [
        (
            "[{path: {type: RegularExpression, value: '('}}]",
            "matches[0]: `(` is no regular expression",
        ),
        (
            "[{path: {type: RegularExpression, value: 'a)|(b'}}]",
            "matches[0]: `a)|(b` is no regular",
        ),
        (
            "[{path: {type: RegularExpression, value: '(\\w{99}){99}{99}'}}]",
            "matches[0]: ",
        ),
        (
            "[{}, {headers: [{name: a, type: RegularExpression, value: '['}]}]",
            "matches[1]: `[` is no regular",
        ),
        (
            "[{path: {type: Glob, value: /a}}]",
            "matches[0]: path type Glob is not supported",
        ),
        ("[{path: {value: a}}]", "matches[0]: `a` is no path"),
        ("[{path: {value: '/a?b'}}]", "matches[0]: `/a?b` is no path"),
        (
            "[{headers: [{name: ':path', value: a}]}]",
            "matches[0]: `:path` is no header name",
        ),
        (
            "[{headers: [{name: a, type: Near, value: a}]}]",
            "matches[0]: match type Near of a",
        ),
        ("[{method: 'G T'}]", "matches[0]: `G T` is no HTTP method"),
        ("[{moon: full}]", "matches[0]: unknown field `moon`"),
        ("[7]", "matches[0]: invalid type"),
        ("{}", "matches is no list"),
    ] {
        let yaml = format!(
            "{{rules: [{{matches: {matches}}}, {{backendRefs: [{{name: v1, port: 80}}]}}]}}"
        );
        let compiled = compile(&[route("HTTPRoute", &yaml)]);
        assert_eq!(
            lines(&compiled, "shop/checkout/80"),
            ["any -> shop/r[1] shop/v1:80 x1"],
            "{matches}"
        );
        let partial = format!(
            "PartiallyInvalid=true UnsupportedValue: Dropped Rule rules[0] (the rule is left out): {message}"
        );
        assert_conditions(&compiled, "HTTPRoute", &[OK[0], OK[1], &partial]);
    }
}

#[test]
fn settings_that_are_not_supported_are_said_and_the_rule_is_in_force_without_them() {
    for (setting, message) in [
        (
            "sessionPersistence: {sessionName: a}",
            "rules[0] (in force without it): sessionPersistence is not supported yet",
        ),
        (
            "hedging: {}",
            "rules[0] (in force without it): hedging is not supported",
        ),
        (
            "name: 5",
            "rules[0] (in force without it): name is no string",
        ),
    ] {
        let yaml = format!("{{rules: [{{{setting}, backendRefs: [{{name: v1, port: 80}}]}}]}}");
        let compiled = compile(&[route("HTTPRoute", &yaml)]);
        assert_eq!(
            lines(&compiled, "shop/checkout/80"),
            ["any -> shop/r[0] shop/v1:80 x1"]
        );
        let partial = format!("PartiallyInvalid=true UnsupportedValue: Dropped Rule {message}");
        assert_conditions(&compiled, "HTTPRoute", &[OK[0], OK[1], &partial]);
    }
}

#[test]
fn a_backends_unsupported_filter_fails_its_share_alone() {
    let yaml = "{rules: [{backendRefs: [{name: v1, port: 80}, {name: v2, port: 80, filters: [{type: RequestMirror}]}]}]}";
    let compiled = compile(&[route("HTTPRoute", yaml)]);
    assert_eq!(
        lines(&compiled, "shop/checkout/80"),
        ["any -> shop/r[0] shop/v1:80 x1 UnsupportedValue x1 h2c"]
    );
    let partial = "PartiallyInvalid=true UnsupportedValue: Dropped Rule rules[0] (the backend's share gets 500): backendRefs[1].filters[0]: RequestMirror";
    assert_conditions(&compiled, "HTTPRoute", &[OK[0], OK[1], partial]);
}

#[test]
fn rules_have_names_and_two_of_one_name_refuse_the_route() {
    check(
        "{name: canary, backendRefs: [{name: v1, port: 80}]}",
        &["any -> shop/r[0 canary] shop/v1:80 x1"],
    );
    let compiled = compile(&[route("HTTPRoute", "{rules: [{name: a}, {name: a}]}")]);
    assert!(compiled.route_tables.is_empty());
    assert_conditions(
        &compiled,
        "HTTPRoute",
        &[
            "Accepted=false UnsupportedValue: this version can't be used: spec.rules: two rules have the name a",
        ],
    );
}

//! What the CORS filter says to whom, by tables.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use weft_api::config::{self, HttpRule, http_filter::Kind};

use super::harness::{filter, rule, to};
use crate::http::{
    RequestHead,
    cors::{Cors, is_preflight},
    filter::Filters,
    table::HttpRoutes,
};

fn origin(scheme: &str, host: &str, port: u32) -> config::CorsOrigin {
    config::CorsOrigin {
        scheme: scheme.into(),
        host: host.into(),
        port,
    }
}

fn any_origin() -> config::Cors {
    config::Cors {
        allow_any_origin: true,
        max_age_seconds: 5,
        ..Default::default()
    }
}

/// For `https://shop.example` alone, as in most tables here.
fn shop() -> config::Cors {
    config::Cors {
        allow_origins: vec![origin("https", "shop.example", 443)],
        max_age_seconds: 5,
        ..Default::default()
    }
}

fn words(all: &[&str]) -> Vec<String> {
    all.iter().map(|it| (*it).into()).collect()
}

fn map(all: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in all {
        let value = HeaderValue::from_str(value).expect("a value");
        map.append(HeaderName::from_static(name), value);
    }
    map
}

/// What a response with `response` headers says after the filter, as sorted `name: value`.
fn said(
    cors: &config::Cors,
    method: &str,
    request: &HeaderMap,
    response: &[(&'static str, &str)],
) -> Vec<String> {
    let cors = Cors::compile(cors).expect("it compiles");
    let head = RequestHead {
        method: &Method::from_bytes(method.as_bytes()).expect("a method"),
        path: "/",
        query: None,
        authority: Some("checkout"),
        headers: request,
    };
    let mut response = map(response);
    cors.sharing(&head).apply(&mut response);
    let line = |(name, value): (&HeaderName, &HeaderValue)| {
        format!("{name}: {}", value.to_str().expect("text"))
    };
    let mut lines: Vec<_> = response.iter().map(line).collect();
    lines.sort();
    lines
}

#[test]
fn an_origin_is_compared_by_scheme_host_and_port() {
    let allowed = [
        origin("https", "shop.example", 443),
        origin("http", "shop.example", 8080),
        origin("https", "*.wild.example", 443),
        origin("http", "*", 81),
    ];
    let cors = config::Cors {
        allow_origins: allowed.to_vec(),
        ..shop()
    };
    for (value, allowed) in [
        ("https://shop.example", true),
        // "if not included, … port 443 is assumed for https origins".
        ("https://shop.example:443", true),
        ("https://shop.example:0443", true),
        ("https://SHOP.example", true),
        ("HTTPS://shop.example", true),
        ("http://shop.example:8080", true),
        ("http://shop.example", false),
        ("http://shop.example:443", false),
        ("https://shop.example:8443", false),
        ("https://shop.example.evil", false),
        ("https://evilshop.example", false),
        ("https://shop.example.", false),
        // "* is a greedy match to the left, including any number of DNS labels".
        ("https://a.wild.example", true),
        ("https://a.b.c.wild.example", true),
        ("https://a.WILD.example:443", true),
        ("https://wild.example", false),
        ("https://.wild.example", false),
        ("https://awild.example", false),
        ("https://a.wild.example:444", false),
        ("http://a.wild.example", false),
        ("https://a.wild.example.evil", false),
        // "A wildcard by itself matches all hosts."
        ("http://whoever:81", true),
        ("http://10.0.0.1:81", true),
        ("http://[fd00::1]:81", true),
        ("http://whoever", false),
        ("https://whoever:81", false),
        ("http://:81", false),
        // What is no origin.
        ("null", false),
        ("", false),
        ("*", false),
        ("shop.example", false),
        ("//shop.example", false),
        ("https://", false),
        ("https://shop.example/", false),
        ("https://shop.example:", false),
        ("https://shop.example:+443", false),
        ("https://shop.example:65979", false),
        ("https://user@shop.example", false),
        ("https://evil.example/.wild.example", false),
        ("https://evil.example?.wild.example", false),
        ("https://evil.example#.wild.example", false),
        ("https://evil.example\\.wild.example", false),
        ("https://evil.example%2f.wild.example", false),
        ("https://evil.example,https://a.wild.example", false),
        ("https://shop.example https://b.example", false),
        ("ftp://whoever:81", false),
    ] {
        let lines = said(&cors, "GET", &map(&[("origin", value)]), &[]);
        let expected = match allowed {
            // "the same value as the Origin header provided by the client".
            true => vec![
                format!("access-control-allow-origin: {value}"),
                "vary: Origin".to_owned(),
            ],
            false => words(&["vary: Origin"]),
        };
        assert_eq!(lines, expected, "{value}");
    }
}

#[test]
fn several_origin_lines_are_nobodys() {
    let two = map(&[
        ("origin", "https://shop.example"),
        ("origin", "https://shop.example"),
    ]);
    for cors in [shop(), any_origin()] {
        assert_eq!(said(&cors, "GET", &two, &[]), ["vary: Origin"]);
    }
}

#[test]
fn no_origin_is_allowed_where_none_is_listed() {
    let cors = config::Cors::default();
    let request = map(&[("origin", "https://shop.example")]);
    assert_eq!(said(&cors, "GET", &request, &[]), ["vary: Origin"]);
}

#[test]
fn wildcards_are_said_only_without_credentials() {
    let cors = |credentials| config::Cors {
        allow_credentials: credentials,
        allow_methods: words(&["*"]),
        allow_headers: words(&["*"]),
        expose_headers: words(&["*"]),
        ..any_origin()
    };
    for (credentials, method, request, expected) in [
        (
            false,
            "OPTIONS",
            map(&[
                ("origin", "https://a.example"),
                ("access-control-request-method", "PUT"),
                ("access-control-request-headers", "Authorization,x-b"),
            ]),
            &[
                // Not `*`, which to browsers leaves out authorization.
                "access-control-allow-headers: Authorization,x-b",
                "access-control-allow-methods: *",
                "access-control-allow-origin: *",
                "access-control-expose-headers: *",
                "access-control-max-age: 5",
                "vary: Origin",
            ][..],
        ),
        (
            true,
            "OPTIONS",
            map(&[
                ("origin", "https://a.example"),
                ("access-control-request-method", "PUT"),
                ("access-control-request-headers", "Authorization,x-b"),
            ]),
            &[
                "access-control-allow-credentials: true",
                "access-control-allow-headers: Authorization,x-b",
                "access-control-allow-methods: PUT",
                "access-control-allow-origin: https://a.example",
                "access-control-max-age: 5",
                "vary: Origin",
            ],
        ),
        // "If the Access-Control-Request-Headers header is not present in the request, the
        // gateway must omit".
        (
            true,
            "OPTIONS",
            map(&[("origin", "null"), ("access-control-request-method", "PUT")]),
            &[
                "access-control-allow-credentials: true",
                "access-control-allow-methods: PUT",
                "access-control-allow-origin: null",
                "access-control-max-age: 5",
                "vary: Origin",
            ],
        ),
        (
            true,
            "GET",
            map(&[("origin", "app://x")]),
            &[
                "access-control-allow-credentials: true",
                "access-control-allow-origin: app://x",
                "access-control-expose-headers: vary",
                "vary: Origin",
            ],
        ),
        (
            false,
            "GET",
            map(&[("origin", "app://x")]),
            &[
                "access-control-allow-headers: *",
                "access-control-allow-methods: *",
                "access-control-allow-origin: *",
                "access-control-expose-headers: *",
                "vary: Origin",
            ],
        ),
        (false, "GET", map(&[]), &["vary: Origin"]),
        (true, "GET", map(&[]), &["vary: Origin"]),
    ] {
        let lines = said(&cors(credentials), method, &request, &[]);
        assert_eq!(lines, expected, "{credentials} {method} {request:?}");
    }
}

#[test]
fn what_a_preflight_asks_for_is_said_back_only_if_it_is_a_list_of_names() {
    let cors = config::Cors {
        allow_credentials: true,
        allow_methods: words(&["*"]),
        allow_headers: words(&["*"]),
        ..any_origin()
    };
    for (asked, method, headers) in [
        (
            &[("access-control-request-method", "PURGE")][..],
            Some("PURGE"),
            None,
        ),
        (&[("access-control-request-method", "a b")], None, None),
        (&[("access-control-request-method", "")], None, None),
        (
            &[
                ("access-control-request-method", "PUT"),
                ("access-control-request-method", "GET"),
            ],
            None,
            None,
        ),
        (
            &[
                ("access-control-request-method", "PUT"),
                ("access-control-request-headers", "x-a , X-B"),
            ],
            Some("PUT"),
            Some("x-a , X-B"),
        ),
        (
            &[
                ("access-control-request-method", "PUT"),
                ("access-control-request-headers", "x-a"),
                ("access-control-request-headers", "x-b,x-c"),
            ],
            Some("PUT"),
            Some("x-a, x-b,x-c"),
        ),
        (
            &[
                ("access-control-request-method", "PUT"),
                ("access-control-request-headers", "x a"),
            ],
            Some("PUT"),
            None,
        ),
        (
            &[
                ("access-control-request-method", "PUT"),
                ("access-control-request-headers", ""),
            ],
            Some("PUT"),
            None,
        ),
    ] {
        let mut request = map(asked);
        request.insert("origin", HeaderValue::from_static("https://a.example"));
        let lines = said(&cors, "OPTIONS", &request, &[]);
        let of = |name: &str| {
            let prefix = format!("access-control-allow-{name}: ");
            let found = lines.iter().find_map(|line| line.strip_prefix(&prefix));
            found.map(ToOwned::to_owned)
        };
        assert_eq!(of("methods").as_deref(), method, "{asked:?}");
        assert_eq!(of("headers").as_deref(), headers, "{asked:?}");
    }
}

#[test]
fn lists_are_said_as_they_are_whatever_is_asked_for() {
    let cors = config::Cors {
        allow_methods: words(&["DELETE", "PUT"]),
        allow_headers: words(&["DNT", "x-b"]),
        expose_headers: words(&["X-C", "x-d"]),
        max_age_seconds: 600,
        ..shop()
    };
    let request = map(&[
        ("origin", "https://shop.example"),
        ("access-control-request-method", "PATCH"),
        ("access-control-request-headers", "x-other"),
    ]);
    let all = [
        "access-control-allow-headers: DNT, x-b",
        "access-control-allow-methods: DELETE, PUT",
        "access-control-allow-origin: https://shop.example",
        "access-control-expose-headers: X-C, x-d",
        "access-control-max-age: 600",
        "vary: Origin",
    ];
    assert_eq!(said(&cors, "OPTIONS", &request, &[]), all);
    // Not a preflight: how long its answer may be remembered has no meaning.
    let without_age: Vec<_> = all.into_iter().filter(|it| !it.contains("age")).collect();
    assert_eq!(said(&cors, "PATCH", &request, &[]), without_age);
}

#[test]
fn all_headers_are_exposed_by_name_where_a_wildcard_may_not_be_said() {
    let cors = config::Cors {
        allow_credentials: true,
        expose_headers: words(&["x-own", "*"]),
        ..shop()
    };
    let response = [
        ("content-type", "text/plain"),
        ("set-cookie", "a=b"),
        ("x-one", "1"),
        ("x-one", "2"),
        ("etag", "e"),
        ("vary", "Origin"),
    ];
    let request = map(&[("origin", "https://shop.example")]);
    let lines = said(&cors, "GET", &request, &response);
    let exposed = "access-control-expose-headers: etag, vary, x-one".to_owned();
    assert!(lines.contains(&exposed), "{lines:?}");
}

#[test]
fn what_the_backend_says_of_sharing_is_taken_off() {
    let backend = [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-origin", "https://evil.example"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "*"),
        ("access-control-allow-headers", "*"),
        ("access-control-expose-headers", "x-secret"),
        ("access-control-max-age", "86400"),
        ("x-own", "1"),
    ];
    for (origin, expected) in [
        (
            Some("https://shop.example"),
            &[
                "access-control-allow-origin: https://shop.example",
                "vary: Origin",
                "x-own: 1",
            ][..],
        ),
        (Some("https://evil.example"), &["vary: Origin", "x-own: 1"]),
        (None, &["vary: Origin", "x-own: 1"]),
    ] {
        let request: Vec<_> = origin.map(|it| ("origin", it)).into_iter().collect();
        assert_eq!(
            said(&shop(), "GET", &map(&request), &backend),
            expected,
            "{origin:?}"
        );
    }
}

#[test]
fn vary_is_said_once_beside_what_the_backend_says() {
    for (backend, expected) in [
        (&[][..], &["vary: Origin"][..]),
        (
            &[("vary", "accept-encoding")],
            &["vary: Origin", "vary: accept-encoding"],
        ),
        (&[("vary", "accept, origin")], &["vary: accept, origin"]),
        (
            &[("vary", "accept"), ("vary", " ORIGIN ")],
            &["vary: ORIGIN", "vary: accept"],
        ),
        (&[("vary", "*")], &["vary: *"]),
        (&[("vary", "x-origin")], &["vary: Origin", "vary: x-origin"]),
    ] {
        let lines = said(&shop(), "GET", &map(&[]), backend);
        let trimmed: Vec<_> = lines.iter().map(|it| it.replace(":  ", ": ")).collect();
        let trimmed: Vec<_> = trimmed.iter().map(|it| it.trim_end()).collect();
        assert_eq!(trimmed, expected, "{backend:?}");
    }
}

#[test]
fn a_preflight_is_options_with_an_origin_and_a_method_to_ask_for() {
    let (from, for_put) = (
        ("origin", "https://a.example"),
        ("access-control-request-method", "PUT"),
    );
    for (method, headers, expected) in [
        ("OPTIONS", map(&[from, for_put]), true),
        ("options", map(&[from, for_put]), false),
        ("OPTIONS", map(&[from]), false),
        ("OPTIONS", map(&[for_put]), false),
        ("OPTIONS", map(&[]), false),
        ("GET", map(&[from, for_put]), false),
    ] {
        let head = RequestHead {
            method: &Method::from_bytes(method.as_bytes()).expect("a method"),
            path: "/",
            query: None,
            authority: None,
            headers: &headers,
        };
        assert_eq!(is_preflight(&head), expected, "{method} {headers:?}");
    }
}

#[test]
fn what_no_controller_may_send_does_not_compile() {
    for bad in [
        origin("ftp", "a.example", 1),
        origin("https", "", 443),
        origin("https", "*a.example", 443),
        origin("https", "a.example", 0),
        origin("https", "a.example", 65536),
    ] {
        let cors = config::Cors {
            allow_origins: vec![bad.clone()],
            ..shop()
        };
        assert!(Cors::compile(&cors).is_err(), "{bad:?}");
    }
    let bad = || words(&["x-a", "x\r\nb"]);
    for cors in [
        config::Cors {
            allow_methods: bad(),
            ..shop()
        },
        config::Cors {
            allow_headers: bad(),
            ..shop()
        },
        config::Cors {
            expose_headers: bad(),
            ..shop()
        },
    ] {
        let filters = [filter(Kind::Cors(cors))];
        assert!(Filters::compile(&filters).is_err(), "{filters:?}");
    }
    // Whose preflights would it answer?
    let mut backend = to("v1");
    backend.filters = vec![filter(Kind::Cors(shop()))];
    let table = config::HttpTable {
        matches: vec![config::HttpMatch::default()],
        rules: vec![HttpRule {
            route: Some(config::RouteRef::default()),
            ..rule([backend])
        }],
    };
    let error = HttpRoutes::compile(&table).expect_err("it is refused");
    assert!(error.contains("CORS is a filter of rules"), "{error}");
}

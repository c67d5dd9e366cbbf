//! What a client is answered, and what the backend saw, for each kind of rule.

use http::Request;
use weft_api::config::{
    self, FixedResponse, HeaderModifier, HeaderValue, HttpMatch, HttpRule, PathModifier, Redirect,
    UrlRewrite, http_filter::Kind as Filter, path_modifier,
};

use super::harness::{
    Answer, Mesh, SERVICE, VIP, exact, filter, full, get, h2c, invalid, prefix, request, rule,
    text, to, weighted,
};
use crate::state::Kind;

#[tokio::test(start_paused = true)]
async fn the_first_match_wins_and_none_is_404() {
    let mesh = Mesh::new();
    mesh.named("v1", 1);
    mesh.named("v2", 2);
    mesh.routes(vec![
        (vec![exact("/v2/only")], rule([to("v2")])),
        (vec![prefix("/v1"), prefix("/v2")], rule([to("v1")])),
    ]);
    for (path, status, body) in [
        ("/v2/only", 200, "v2"),
        ("/v2/other", 200, "v1"),
        ("/v1", 200, "v1"),
        ("/v1/x?q", 200, "v1"),
        (
            "/v11",
            404,
            "weft: no route of this Service matches the request\n",
        ),
    ] {
        let answer = mesh.get(path).await;
        assert_eq!(
            (answer.status.as_u16(), &*answer.body),
            (status, body),
            "{path}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_cannot_be_executed_answers_by_itself() {
    let mesh = Mesh::new();
    mesh.service("empty", [10, 96, 1, 9].into(), config::AppProtocol::Http);
    let fixed = HttpRule {
        fixed_response: Some(FixedResponse {
            status: 500,
            reason: "NoBackendRefs".into(),
        }),
        ..Default::default()
    };
    mesh.routes(vec![
        (vec![prefix("/fixed")], fixed),
        (vec![prefix("/invalid")], rule([invalid()])),
        (vec![prefix("/none")], rule([])),
        (vec![prefix("/zero")], rule([weighted("empty", 0)])),
        (vec![prefix("/empty")], rule([to("empty")])),
        (vec![prefix("/unknown")], rule([to("nowhere")])),
    ]);
    for (path, status) in [
        ("/fixed", 500),
        ("/invalid", 500),
        ("/none", 500),
        ("/zero", 500),
        ("/empty", 503),
        ("/unknown", 503),
        ("/other", 404),
    ] {
        assert_eq!(mesh.get(path).await.status, status, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn grpc_clients_are_told_errors_as_grpc_statuses() {
    let mesh = Mesh::new();
    mesh.service("empty", [10, 96, 1, 9].into(), config::AppProtocol::H2c);
    mesh.routes(vec![
        (vec![prefix("/pkg.Invalid")], rule([invalid()])),
        (vec![prefix("/pkg.Empty")], rule([h2c("empty")])),
    ]);
    for (path, status) in [
        ("/pkg.Invalid/Call", "14"),
        ("/pkg.Empty/Call", "14"),
        ("/pkg.Other/Call", "12"),
    ] {
        let request = Request::post(format!("http://checkout{path}"))
            .header("content-type", "application/grpc+proto")
            .body(full("\0\0\0\0\0"))
            .expect("a request");
        let response = mesh.http2().await.send_request(request).await;
        let answer = Answer::of(response.expect("a response")).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.header("grpc-status"), status, "{path}");
        assert!(!answer.header("grpc-message").is_empty());
        assert_eq!(answer.header("content-type"), "application/grpc");
        assert_eq!(answer.body, "");
    }
}

#[tokio::test(start_paused = true)]
async fn each_backend_gets_its_share_and_weight_zero_gets_nothing() {
    let mesh = Mesh::new();
    let (v1, v2, v3) = (
        mesh.named("v1", 1),
        mesh.named("v2", 2),
        mesh.named("v3", 3),
    );
    mesh.route(rule([
        weighted("v1", 90),
        weighted("v2", 10),
        weighted("v3", 0),
    ]));
    let mut client = mesh.http1().await;
    for _ in 0..1000 {
        client.ready().await.expect("keep-alive");
        let response = client.send_request(get("/")).await.expect("a response");
        assert_eq!(Answer::of(response).await.status, 200);
    }
    // Five standard deviations of a fair choice; the sequence is far within.
    let deviation = (1000.0_f64 * 0.9 * 0.1).sqrt() * 5.0;
    assert!(
        (v1.count() as f64 - 900.0).abs() < deviation,
        "{}",
        v1.count()
    );
    assert_eq!(v1.count() + v2.count(), 1000);
    assert_eq!(v3.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_invalid_backend_fails_its_share_only() {
    let mesh = Mesh::new();
    mesh.named("v1", 1);
    mesh.route(rule([weighted("v1", 1), invalid()]));
    let mut failed = 0;
    for _ in 0..40 {
        failed += usize::from(mesh.get("/").await.status == 500);
    }
    assert!((18..=22).contains(&failed), "{failed} of 40");
}

fn set(name: &str, value: &str) -> HeaderModifier {
    HeaderModifier {
        set: vec![HeaderValue {
            name: name.into(),
            value: value.into(),
        }],
        ..Default::default()
    }
}

#[tokio::test(start_paused = true)]
async fn the_rules_filters_come_before_the_backends() {
    let mesh = Mesh::new();
    let seen = mesh.named("v1", 1);
    let mut backend = to("v1");
    backend.filters = vec![
        filter(Filter::RequestHeaders(set("x-both", "backend"))),
        filter(Filter::ResponseHeaders(set("x-answer", "backend"))),
    ];
    mesh.route(HttpRule {
        filters: vec![
            filter(Filter::RequestHeaders(set("x-both", "rule"))),
            filter(Filter::RequestHeaders(set("x-rule", "rule"))),
            filter(Filter::ResponseHeaders(set("x-answer", "rule"))),
        ],
        ..rule([backend])
    });
    let answer = mesh.get("/").await;
    assert_eq!(answer.header("x-answer"), "backend");
    let seen = seen.last();
    assert_eq!(seen.headers["x-both"], "backend");
    assert_eq!(seen.headers["x-rule"], "rule");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_added_that_nobody_asked_for() {
    let mesh = Mesh::new();
    let seen = mesh.named("v1", 1);
    mesh.route(rule([to("v1")]));
    let request = request("GET", "/path?q=1")
        .header("x-own", "1")
        .header("accept", "*/*");
    let answer = mesh.send(request.body(full("")).expect("a request")).await;
    let seen = seen.last();
    let mut names: Vec<_> = seen.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "host", "x-own"]);
    assert_eq!(seen.headers["host"], "checkout");
    assert_eq!(seen.uri, "/path?q=1");
    let mut names: Vec<_> = answer
        .headers
        .keys()
        .map(http::HeaderName::as_str)
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "date"], "the backend's own");
}

#[tokio::test(start_paused = true)]
async fn what_belongs_to_one_connection_is_not_passed_on() {
    let mesh = Mesh::new();
    let seen = super::harness::Seen::default();
    let noted = seen.clone();
    mesh.backend("v1", 1, false, move |request| {
        noted.note(&request);
        async {
            let mut response = text("v1");
            for (name, value) in [
                ("connection", "x-hop"),
                ("x-hop", "1"),
                ("keep-alive", "timeout=5"),
                ("proxy-authenticate", "Basic"),
            ] {
                let value = http::HeaderValue::from_static(value);
                response.headers_mut().insert(name, value);
            }
            response
        }
    });
    mesh.route(rule([to("v1")]));
    let request = request("GET", "/")
        .header("connection", "keep-alive, X-Hop, host")
        .header("x-hop", "1")
        .header("keep-alive", "timeout=5")
        .header("proxy-connection", "keep-alive")
        .header("te", "gzip, trailers;q=0.5")
        .header("authorization", "Bearer x");
    let answer = mesh.send(request.body(full("")).expect("a request")).await;
    let seen = seen.last();
    for name in ["x-hop", "keep-alive", "proxy-connection"] {
        assert!(!seen.headers.contains_key(name), "{name}");
        assert!(!answer.headers.contains_key(name), "{name}");
    }
    assert_eq!(seen.headers["te"], "trailers");
    assert_eq!(seen.headers["connection"], "te");
    assert_eq!(seen.headers["host"], "checkout");
    assert_eq!(seen.headers["authorization"], "Bearer x");
    assert_eq!(answer.header("proxy-authenticate"), "Basic");
}

#[tokio::test(start_paused = true)]
async fn a_redirect_is_answered_without_a_backend() {
    let mesh = Mesh::new();
    mesh.route(HttpRule {
        filters: vec![filter(Filter::Redirect(Redirect {
            scheme: "https".into(),
            hostname: "example.org".into(),
            status: 301,
            ..Default::default()
        }))],
        ..Default::default()
    });
    let answer = mesh.get("/path?q=1").await;
    assert_eq!(answer.status, 301);
    assert_eq!(answer.header("location"), "https://example.org/path?q=1");
    assert_eq!(mesh.connects(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_redirect_names_the_port_of_the_service_that_was_addressed() {
    let mesh = Mesh::new();
    mesh.route(HttpRule {
        filters: vec![filter(Filter::Redirect(Redirect {
            path: Some(PathModifier {
                kind: Some(path_modifier::Kind::ReplaceFullPath("/new".into())),
            }),
            ..Default::default()
        }))],
        ..Default::default()
    });
    let answer = mesh.get("/old").await;
    assert_eq!(answer.status, 302);
    let location = format!("http://checkout:{}/new", VIP.port());
    assert_eq!(answer.header("location"), location);
}

#[tokio::test(start_paused = true)]
async fn a_rewrite_changes_host_and_path_and_keeps_the_query() {
    let mesh = Mesh::new();
    let seen = mesh.named("v1", 1);
    mesh.routes(vec![(
        vec![prefix("/api")],
        HttpRule {
            filters: vec![filter(Filter::Rewrite(UrlRewrite {
                hostname: "inner.example".into(),
                path: Some(PathModifier {
                    kind: Some(path_modifier::Kind::ReplacePrefixMatch("/v2".into())),
                }),
            }))],
            ..rule([to("v1")])
        },
    )]);
    assert_eq!(mesh.get("/api/items?q=a%20b").await.status, 200);
    let seen = seen.last();
    assert_eq!(seen.uri, "/v2/items?q=a%20b");
    assert_eq!(seen.headers["host"], "inner.example");
}

#[tokio::test(start_paused = true)]
async fn dot_segments_are_refused_only_where_routes_depend_on_the_path() {
    let mesh = Mesh::new();
    let seen = mesh.named("v1", 1);
    mesh.route(rule([to("v1")]));
    assert_eq!(mesh.get("/public/../admin").await.status, 200);
    assert_eq!(seen.last().uri, "/public/../admin");
    mesh.routes(vec![(vec![prefix("/public")], rule([to("v1")]))]);
    for path in [
        "/public/../admin",
        "/public/%2e%2e/admin",
        "/public/..%2fadmin",
    ] {
        assert_eq!(mesh.get(path).await.status, 400, "{path}");
    }
    assert_eq!(seen.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_table_that_changes_takes_effect_on_the_next_request_of_an_open_connection() {
    let mesh = Mesh::new();
    mesh.named("v1", 1);
    mesh.named("v2", 2);
    mesh.named("checkout", 3);
    let mut client = mesh.http1().await;
    let mut ask = async || {
        client.ready().await.expect("keep-alive");
        let response = client.send_request(get("/")).await.expect("a response");
        Answer::of(response).await.body
    };
    mesh.route(rule([to("v1")]));
    assert_eq!(ask().await, "v1");
    mesh.route(rule([to("v2")]));
    assert_eq!(ask().await, "v2");
    // Without routes, requests go where the Service itself leads.
    mesh.remove(Kind::RouteTable, &format!("{SERVICE}/{}", VIP.port()));
    assert_eq!(ask().await, "checkout");
}

#[tokio::test(start_paused = true)]
async fn methods_headers_and_queries_choose_the_rule() {
    let mesh = Mesh::new();
    mesh.named("canary", 1);
    mesh.named("stable", 2);
    let condition = HttpMatch {
        method: "PUT".into(),
        headers: vec![config::ValueMatch {
            name: "x-user".into(),
            kind: Some(config::value_match::Kind::Regex("alice|bob".into())),
        }],
        query_params: vec![config::ValueMatch {
            name: "beta".into(),
            kind: Some(config::value_match::Kind::Exact("1".into())),
        }],
        ..prefix("/")
    };
    mesh.routes(vec![
        (vec![condition], rule([to("canary")])),
        (vec![prefix("/")], rule([to("stable")])),
    ]);
    for (method, path, user, expected) in [
        ("PUT", "/?beta=1", "alice", "canary"),
        ("PUT", "/?beta=1", "carol", "stable"),
        ("PUT", "/?beta=2", "alice", "stable"),
        ("GET", "/?beta=1", "alice", "stable"),
    ] {
        let request = request(method, path).header("x-user", user);
        let answer = mesh.send(request.body(full("")).expect("a request")).await;
        assert_eq!(answer.body, expected, "{method} {path} {user}");
    }
}

#[tokio::test(start_paused = true)]
async fn connect_is_refused() {
    let mesh = Mesh::new();
    let seen = mesh.named("v1", 1);
    mesh.route(rule([to("v1")]));
    let answer = mesh
        .raw(b"CONNECT other:80 HTTP/1.1\r\nhost: other:80\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    assert_eq!(seen.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn requests_are_counted_by_route_and_backend() {
    let mesh = Mesh::new();
    mesh.named("v1", 1);
    mesh.routes(vec![(vec![prefix("/a")], rule([to("v1")]))]);
    mesh.get("/a").await;
    mesh.get("/b").await;
    let metrics = mesh.telemetry.encode();
    let line = |with: &[&str]| {
        metrics.lines().any(|line| {
            line.starts_with("weft_requests_total") && with.iter().all(|it| line.contains(it))
        })
    };
    let labels = [
        r#"route="shop/route""#,
        r#"destination_workload="v1-1""#,
        r#"code="200"} 1"#,
    ];
    assert!(line(&labels), "{metrics}");
    assert!(
        line(&[r#"code="404"} 1"#, r#"service="shop/checkout""#]),
        "{metrics}"
    );
    assert!(metrics.contains(r#"reason="no_route""#), "{metrics}");
}

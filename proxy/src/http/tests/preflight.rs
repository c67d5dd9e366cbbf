//! The CORS filter in whole exchanges, each over HTTP/1.1 and over HTTP/2.

use http::{HeaderValue, Request};
use weft_api::config::{self, HeaderModifier, HttpRule, http_filter::Kind};

use super::harness::{
    Answer, Mesh, filter, full, invalid, prefix, request, rule, text, to, weighted,
};

/// For `https://shop.example` alone.
fn shop() -> config::Cors {
    config::Cors {
        allow_origins: vec![config::CorsOrigin {
            scheme: "https".into(),
            host: "shop.example".into(),
            port: 443,
        }],
        max_age_seconds: 5,
        ..Default::default()
    }
}

fn with_cors(cors: config::Cors, rule: HttpRule) -> HttpRule {
    HttpRule {
        filters: vec![filter(Kind::Cors(cors))],
        ..rule
    }
}

/// The same request over HTTP/1.1 and over HTTP/2.
async fn both(mesh: &Mesh, method: &str, path: &str, headers: &[(&str, &str)]) -> [Answer; 2] {
    let fill = |mut request: http::request::Builder| {
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(full("")).expect("a request")
    };
    let one = mesh.send(fill(request(method, path))).await;
    let two = Request::builder()
        .method(method)
        .uri(format!("http://checkout{path}"));
    let response = mesh.http2().await.send_request(fill(two)).await;
    [one, Answer::of(response.expect("a response")).await]
}

const SHOP: (&str, &str) = ("origin", "https://shop.example");
const EVIL: (&str, &str) = ("origin", "https://evil.example");
const PUT: (&str, &str) = ("access-control-request-method", "PUT");

#[tokio::test(start_paused = true)]
async fn a_preflight_never_reaches_a_backend() {
    let mesh = Mesh::new();
    let seen = mesh.named("v1", 1);
    mesh.route(with_cors(shop(), rule([to("v1")])));
    for (from, allowed) in [(SHOP, "https://shop.example"), (EVIL, "")] {
        for answer in both(&mesh, "OPTIONS", "/x", &[from, PUT]).await {
            assert_eq!(answer.status, 204);
            assert_eq!(answer.header("access-control-allow-origin"), allowed);
            assert_eq!(answer.header("vary"), "Origin");
            let age = if allowed.is_empty() { "" } else { "5" };
            assert_eq!(answer.header("access-control-max-age"), age);
            assert_eq!(answer.body, "");
            assert!(!answer.headers.contains_key("content-length"));
        }
    }
    assert_eq!(seen.count(), 0, "no preflight was passed on");
    // What only looks like one is the application's.
    for headers in [&[SHOP][..], &[PUT], &[]] {
        for answer in both(&mesh, "OPTIONS", "/x", headers).await {
            assert_eq!((answer.status.as_u16(), &*answer.body), (200, "v1"));
        }
    }
    assert_eq!(seen.count(), 6);
}

#[tokio::test(start_paused = true)]
async fn an_actual_request_is_passed_on_and_its_answer_says_whom_it_is_for() {
    let mesh = Mesh::new();
    mesh.backend("v1", 1, false, |request| async move {
        let mut response = text(request.method().as_str());
        let headers = response.headers_mut();
        headers.insert("access-control-allow-origin", HeaderValue::from_static("*"));
        headers.insert("vary", HeaderValue::from_static("accept"));
        response
    });
    mesh.route(with_cors(shop(), rule([to("v1")])));
    for (from, allowed) in [(SHOP, "https://shop.example"), (EVIL, "")] {
        for answer in both(&mesh, "PUT", "/x", &[from]).await {
            // The filter says, the browser enforces.
            assert_eq!((answer.status.as_u16(), &*answer.body), (200, "PUT"));
            assert_eq!(answer.header("access-control-allow-origin"), allowed);
            let vary: Vec<_> = answer.headers.get_all("vary").iter().collect();
            assert_eq!(vary, ["accept", "Origin"]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn errors_and_redirects_of_the_rule_are_shared_too() {
    let mesh = Mesh::new();
    mesh.service("empty", [10, 96, 1, 9].into(), config::AppProtocol::Http);
    let redirect = HttpRule {
        filters: vec![
            filter(Kind::Redirect(config::Redirect {
                hostname: "other.example".into(),
                ..Default::default()
            })),
            filter(Kind::Cors(shop())),
        ],
        ..Default::default()
    };
    mesh.routes(vec![
        (
            vec![prefix("/invalid")],
            with_cors(shop(), rule([invalid()])),
        ),
        (
            vec![prefix("/none")],
            with_cors(shop(), rule([weighted("empty", 0)])),
        ),
        (
            vec![prefix("/empty")],
            with_cors(shop(), rule([to("empty")])),
        ),
        (vec![prefix("/moved")], redirect),
    ]);
    for (path, status) in [
        ("/invalid", 500),
        ("/none", 500),
        ("/empty", 503),
        ("/moved", 302),
    ] {
        for answer in both(&mesh, "GET", path, &[SHOP]).await {
            assert_eq!(answer.status, status, "{path}");
            let allowed = answer.header("access-control-allow-origin");
            assert_eq!(allowed, "https://shop.example", "{path}");
        }
        for answer in both(&mesh, "OPTIONS", path, &[SHOP, PUT]).await {
            // A browser follows no redirect of a preflight.
            assert_eq!(answer.status, 204, "{path}");
        }
    }
    for answer in both(&mesh, "GET", "/other", &[SHOP]).await {
        assert_eq!(answer.status, 404);
        assert!(!answer.headers.contains_key("access-control-allow-origin"));
        assert!(!answer.headers.contains_key("vary"), "no rule was met");
    }
}

#[tokio::test(start_paused = true)]
async fn the_filter_has_the_last_word_over_header_modifiers() {
    let mesh = Mesh::new();
    mesh.named("v1", 1);
    let header = |name: &str, value: &str| config::HeaderValue {
        name: name.into(),
        value: value.into(),
    };
    let modifier = filter(Kind::ResponseHeaders(HeaderModifier {
        set: vec![
            header("access-control-allow-origin", "https://evil.example"),
            header("vary", "accept"),
        ],
        add: vec![header("x-added", "1")],
        remove: vec![],
    }));
    let cors = filter(Kind::Cors(shop()));
    let mut backend = to("v1");
    backend.filters = vec![modifier.clone()];
    for filters in [vec![cors.clone(), modifier.clone()], vec![modifier, cors]] {
        mesh.route(HttpRule {
            filters,
            ..rule([backend.clone()])
        });
        for answer in both(&mesh, "GET", "/", &[SHOP]).await {
            let allowed: Vec<_> = answer
                .headers
                .get_all("access-control-allow-origin")
                .iter()
                .collect();
            assert_eq!(allowed, ["https://shop.example"]);
            let vary: Vec<_> = answer.headers.get_all("vary").iter().collect();
            assert_eq!(vary, ["accept", "Origin"]);
            assert_eq!(answer.header("x-added"), "1");
        }
        for answer in both(&mesh, "OPTIONS", "/", &[SHOP, PUT]).await {
            assert_eq!(answer.status, 204);
            assert_eq!(answer.header("x-added"), "", "no backend answered");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_preflight_is_matched_like_any_request() {
    let mesh = Mesh::new();
    let seen = mesh.named("v1", 1);
    let put = config::HttpMatch {
        method: "PUT".into(),
        ..Default::default()
    };
    mesh.routes(vec![
        (vec![put], with_cors(shop(), rule([to("v1")]))),
        (vec![config::HttpMatch::default()], rule([to("v1")])),
    ]);
    for answer in both(&mesh, "OPTIONS", "/", &[SHOP, PUT]).await {
        assert_eq!(answer.body, "v1", "it is OPTIONS, and the rule is for PUT");
    }
    assert_eq!(seen.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_http1_connection_goes_on_after_a_preflight_with_a_body() {
    let mesh = Mesh::new();
    mesh.named("v1", 1);
    mesh.route(with_cors(shop(), rule([to("v1")])));
    let answer = mesh
        .raw(
            b"OPTIONS / HTTP/1.1\r\nhost: checkout\r\norigin: https://shop.example\r\n\
              access-control-request-method: PUT\r\ncontent-length: 4\r\n\r\nbody\
              GET / HTTP/1.1\r\nhost: checkout\r\norigin: https://shop.example\r\n\r\n",
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    let (_, second) = answer.split_once("\r\n\r\n").expect("a whole head");
    assert!(second.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(second.ends_with("v1"), "{answer}");
}

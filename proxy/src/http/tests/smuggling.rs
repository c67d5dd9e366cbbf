//! Requests that two parsers could read in two ways: each is refused, or answered once and its
//! connection closed. A request that hides in another's body never reaches the backend.

use super::harness::{Mesh, h2c, rule, text, to};

/// Put where a body might be: a backend that serves it has been tricked.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: hidden\r\n\r\n";

/// What follows a request's first line and `Host`, and its body.
const AMBIGUOUS: &[(&str, &str)] = &[
    // Length against chunked.
    (
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        "0\r\n\r\n",
    ),
    (
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
        "0\r\n\r\n",
    ),
    (
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "0\r\n\r\n",
    ),
    // Lengths.
    ("Content-Length: 0\r\nContent-Length: 41\r\n\r\n", ""),
    ("Content-Length: 41\r\nContent-Length: 0\r\n\r\n", ""),
    ("Content-Length: 0, 41\r\n\r\n", ""),
    ("Content-Length: 0,0\r\n\r\n", ""),
    ("Content-Length: +41\r\n\r\n", ""),
    ("Content-Length: -1\r\n\r\n", ""),
    ("Content-Length: 0x29\r\n\r\n", ""),
    ("Content-Length: 4 1\r\n\r\n", ""),
    ("Content-Length: 41abc\r\n\r\n", ""),
    ("Content-Length: \r\n\r\n", ""),
    ("Content-Length: 99999999999999999999999\r\n\r\n", ""),
    ("Content-Length: \"41\"\r\n\r\n", ""),
    ("Content-Length : 41\r\n\r\n", ""),
    ("Content-Length\t: 41\r\n\r\n", ""),
    (" Content-Length: 41\r\n\r\n", ""),
    ("X: y\r\n Content-Length: 41\r\n\r\n", ""),
    ("X: y\r\n\tContent-Length: 41\r\n\r\n", ""),
    // Transfer codings.
    ("Transfer-Encoding : chunked\r\n\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: xchunked\r\n\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: chunked, identity\r\n\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: identity, chunked\r\n\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: gzip, chunked\r\n\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: chunked, chunked\r\n\r\n", "0\r\n\r\n"),
    (
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
        "0\r\n\r\n",
    ),
    (
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n",
        "0\r\n\r\n",
    ),
    (
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "0\r\n\r\n",
    ),
    ("Transfer-Encoding: identity\r\n\r\n", ""),
    ("Transfer-Encoding: \r\n\r\n", ""),
    ("Transfer-Encoding: ,chunked\r\n\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: chunked;q=1\r\n\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding: \"chunked\"\r\n\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding:\u{b}chunked\r\n\r\n", "0\r\n\r\n"),
    ("Transfer-Encoding:\r\n chunked\r\n\r\n", "0\r\n\r\n"),
    // Chunks.
    ("Transfer-Encoding: chunked\r\n\r\n", "0x0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n\r\n", "-1\r\n\r\n"),
    (
        "Transfer-Encoding: chunked\r\n\r\n",
        "ffffffffffffffffff\r\n\r\n",
    ),
    ("Transfer-Encoding: chunked\r\n\r\n", "1\r\nab\r\n0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n\r\n", "\r\n0\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n\r\n", "g\r\n\r\n"),
    ("Transfer-Encoding: chunked\r\n\r\n", "0;ext\rx\r\n\r\n"),
    // Line ends and odd bytes.
    ("X: a\rContent-Length: 41\r\n\r\n", ""),
    ("X: a\0b\r\n\r\n", ""),
    ("X\0: a\r\n\r\n", ""),
    (": a\r\n\r\n", ""),
    ("X y: a\r\n\r\n", ""),
    ("X(: a\r\n\r\n", ""),
    ("no colon\r\n\r\n", ""),
    // Hosts.
    ("Host: other\r\n\r\n", ""),
    ("Host: checkout\r\n\r\n", ""),
    // Upgrades with a body, whose length matters to one side only.
    (
        "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 41\r\n\r\n",
        "",
    ),
    (
        "Connection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n",
        "0\r\n\r\n",
    ),
];

/// Whole heads.
const MALFORMED: &[&str] = &[
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "GET / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "GET / \r\nHost: a\r\n\r\n",
    "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /\r\n",
    "\u{16}\u{3}\u{1}\u{2}\0\r\n\r\n",
];

#[tokio::test(start_paused = true)]
async fn a_request_in_an_ambiguous_requests_body_is_never_served() {
    let mesh = Mesh::new();
    let seen = mesh.named("v1", 1);
    mesh.route(rule([to("v1")]));
    for method in ["POST", "GET"] {
        for (rest, body) in AMBIGUOUS {
            let before = seen.count();
            let request = format!("{method} / HTTP/1.1\r\nHost: checkout\r\n{rest}{body}{HIDDEN}");
            let answer = mesh.raw(request.as_bytes()).await;
            let served = seen.count() - before;
            assert!(served <= 1, "{rest:?} {body:?}: served {served}\n{answer}");
            if served == 1 {
                assert_eq!(seen.last().uri, "/", "{rest:?} {body:?}\n{answer}");
            }
            // One answer, and the connection's end.
            let answers = answer.matches("HTTP/1.").count();
            assert!(
                answers <= 1,
                "{rest:?} {body:?}: {answers} answers\n{answer}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_malformed_request_reaches_no_backend() {
    let mesh = Mesh::new();
    let seen = mesh.named("v1", 1);
    mesh.route(rule([to("v1")]));
    for request in MALFORMED {
        let answer = mesh.raw(format!("{request}{HIDDEN}").as_bytes()).await;
        assert_eq!(seen.count(), 0, "{request:?}\n{answer}");
        let refused = answer.is_empty() || answer.starts_with("HTTP/1.") && &answer[9..10] == "4";
        assert!(refused, "{request:?}\n{answer}");
        assert!(
            answer.matches("HTTP/1.").count() <= 1,
            "{request:?}\n{answer}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_honest_pipeline_is_served_in_order() {
    let mesh = Mesh::new();
    let seen = mesh.named("v1", 1);
    mesh.route(rule([to("v1")]));
    let one = "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    let two =
        "POST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let three = "GET /3 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n";
    let four = "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answer = mesh
        .raw(format!("{one}{two}{three}{four}").as_bytes())
        .await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 4, "{answer}");
    assert_eq!(seen.count(), 4);
    assert_eq!(seen.last().uri, "*");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_too_large_is_refused() {
    let mesh = Mesh::new();
    let seen = mesh.named("v1", 1);
    mesh.route(rule([to("v1")]));
    let many: String = (0..200).map(|at| format!("x-{at}: 1\r\n")).collect();
    let large = format!("x: {}\r\n", "y".repeat(100 * 1024));
    let long = "a".repeat(70 * 1024);
    for (target, headers) in [
        ("/", &many),
        ("/", &large),
        (&*format!("/{long}"), &String::new()),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        let mut client = mesh.connect();
        let (mut from, mut to) = tokio::io::split(&mut client);
        let (answer, _) = tokio::join!(
            async {
                let mut answer = Vec::new();
                tokio::io::AsyncReadExt::read_to_end(&mut from, &mut answer)
                    .await
                    .ok();
                String::from_utf8_lossy(&answer).into_owned()
            },
            // The refusal may come before all is written.
            tokio::io::AsyncWriteExt::write_all(&mut to, request.as_bytes()),
        );
        let refused = answer.starts_with("HTTP/1.1 431 ") || answer.starts_with("HTTP/1.1 414 ");
        assert!(refused, "{} bytes of head\n{answer}", request.len());
    }
    assert_eq!(seen.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_to_h2c_is_not_one() {
    let mesh = Mesh::new();
    let seen = mesh.named("v1", 1);
    mesh.route(rule([to("v1")]));
    let answer = mesh
        .raw(
            b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade, http2-settings\r\nUpgrade: h2c\r\n\
              HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    let seen = seen.last();
    for name in ["upgrade", "connection", "http2-settings"] {
        assert!(!seen.headers.contains_key(name), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn http_1_0_cannot_change_the_protocol() {
    let mesh = Mesh::new();
    let seen = mesh.named("v1", 1);
    mesh.route(rule([to("v1")]));
    let answer = mesh
        .raw(b"GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.0 200 OK"), "{answer}");
    let seen = seen.last();
    for name in ["upgrade", "connection"] {
        assert!(!seen.headers.contains_key(name), "{name}");
    }
}

/// An HTTP/2 connection with one request that no library would make.
fn http2_request(method: &str, path: &str) -> Vec<u8> {
    // Literals without indexing; the names are of the static table.
    let mut head = vec![0x86];
    for (name, value) in [(2, method), (1, "checkout"), (4, path)] {
        head.extend([name, value.len() as u8]);
        head.extend(value.as_bytes());
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    bytes.extend([0, 0, head.len() as u8, 1, 5, 0, 0, 0, 1]);
    bytes.extend(head);
    bytes
}

#[tokio::test(start_paused = true)]
async fn a_path_that_would_be_sent_as_another_than_was_matched_is_refused() {
    for backend in [to("v1"), h2c("v2")] {
        let mesh = Mesh::new();
        let seen = mesh.named("v1", 1);
        let noted = seen.clone();
        mesh.backend("v2", 2, true, move |request| {
            noted.note(&request);
            async { text("v2") }
        });
        mesh.route(rule([backend]));
        mesh.raw(&http2_request("GET", "/admin")).await;
        mesh.raw(&http2_request("OPTIONS", "*")).await;
        assert_eq!(seen.count(), 2, "what is right passes");
        for (method, path) in [
            ("GET", "admin"),
            ("GET", "admin/x?y"),
            ("GET", "*"),
            ("OPTIONS", "*admin"),
            ("GET", ".."),
        ] {
            mesh.raw(&http2_request(method, path)).await;
            assert_eq!(seen.count(), 2, "{method} {path}");
        }
    }
}

//! What is not a plain request and answer: long bodies, half-close, resets, upgrades, gRPC, and
//! servers that speak first; over mTLS and L7.

use std::time::Duration;

use weft_lab_tests::{Family, GrpcReport, Lab, Request, eventually, in_families};

const SHOP: &str = include_str!("../manifests/shop.yaml");
const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: checkout, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: checkout, port: 80}]
  rules: [{backendRefs: [{name: checkout-v1, port: 80}]}]
";
const MEGA: u64 = 1_000_000;

in_families!(
    raw_tcp_goes_through_the_tunnel_whole: ipv4, ipv6;
    http_carries_bodies_trailers_and_upgrades: ipv4, ipv6;
    an_undeclared_port_that_a_route_reaches_serves_http_and_what_is_not_http: ipv4, dual;
    grpc_streams_in_both_directions_by_a_grpc_route_and_without: ipv4, ipv6;
);

/// Much more than fits into buffers.
fn large(family: Family) -> u64 {
    if family.is_in_full() {
        100 * MEGA
    } else {
        20 * MEGA
    }
}

/// Resident memory of a proxy, in bytes.
fn rss(lab: &Lab, part: &str) -> u64 {
    let status = lab.weft(&["status", "-o", "json"]).ok();
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let pid = status["parts"][part]["pid"]
        .as_u64()
        .unwrap_or_else(|| panic!("{status}"));
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process");
    let line = text
        .lines()
        .find(|l| l.starts_with("VmRSS:"))
        .expect("VmRSS");
    line.split_whitespace()
        .nth(1)
        .and_then(|n| n.parse::<u64>().ok())
        .expect("kB")
        * 1024
}

fn raw_tcp_goes_through_the_tunnel_whole(family: Family) {
    let lab = Lab::up_in(family, SHOP);

    let report = lab.bytes("shop/client", "checkout:9000", &["--send", "100000"]);
    assert_eq!(
        (report.sent, report.echoed, &*report.end),
        (100_000, 100_000, "eof")
    );

    let first = lab.bytes(
        "shop/client",
        "checkout:9001",
        &["--banner", "--send", "1000"],
    );
    assert!(
        first.banner.as_deref().is_some_and(|b| !b.is_empty()),
        "{first:?}"
    );
    assert_eq!((first.echoed, &*first.end), (1_000, "eof"));

    // Many megabytes each way at once: every byte checked, memory bounded.
    let large = large(family);
    let before = [rss(&lab, "proxy/n1"), rss(&lab, "proxy/n2")];
    let size = large.to_string();
    let report = lab.bytes("shop/client", "checkout:9000", &["--send", &size]);
    assert_eq!((report.echoed, &*report.end), (large, "eof"));
    for (part, before) in ["proxy/n1", "proxy/n2"].into_iter().zip(before) {
        let grown = rss(&lab, part).saturating_sub(before);
        assert!(
            grown < 40 * MEGA,
            "{part} grew by {grown} bytes for one stream"
        );
    }

    // A client that resets leaves nothing behind: the tunnel's streams end.
    lab.bytes(
        "shop/client",
        "checkout:9000",
        &["--send", &size, "--reset-after", "1000000"],
    );
    let after = lab.bytes("shop/client", "checkout:9000", &["--send", "1000"]);
    assert_eq!((after.echoed, &*after.end), (1_000, "eof"));

    // Outside the mesh the same works in plain.
    let outside = lab.bytes("shop/client", "web.plain:9000", &["--send", "1000"]);
    assert_eq!((outside.echoed, &*outside.end), (1_000, "eof"));
}

fn http_carries_bodies_trailers_and_upgrades(family: Family) {
    let lab = Lab::up_in(family, SHOP);
    lab.apply(ROUTE).ok();
    let request = |url: &str| Request {
        url: url.into(),
        timeout_ms: 120_000,
        ..Request::default()
    };

    let bytes = large(family);
    let download = format!("http://checkout/?bytes={bytes}");
    let large = lab.http(
        "shop/client",
        &[
            request(&download),
            Request {
                h2: true,
                ..request(&download)
            },
            Request {
                method: "POST".into(),
                body: "x".repeat(MEGA as usize),
                ..request("http://checkout/?echo=1")
            },
            Request {
                h2: true,
                headers: vec![("te".into(), "trailers".into())],
                ..request("http://checkout/?stream=2&interval=10ms&trailers=1")
            },
            request("http://checkout/?stream=5&interval=20ms"),
        ],
    );
    for answer in &large {
        assert_eq!(
            (answer.status, &answer.error),
            (200, &None),
            "{} bytes",
            answer.body.len()
        );
    }
    assert_eq!(large[0].body_bytes, bytes);
    assert_eq!(large[1].body_bytes, bytes);
    assert_eq!(large[2].body_bytes, MEGA);
    assert!(
        !large[3].trailers.is_empty(),
        "trailers came through: {:?}",
        large[3]
    );

    // An upgraded connection is the two ends' own: half-close and all.
    let upgraded = ["--upgrade", "websocket", "--send", "200000"];
    let upgraded = lab.bytes("shop/client", "checkout:80", &upgraded);
    assert_eq!(
        (upgraded.echoed, &*upgraded.end),
        (200_000, "eof"),
        "{upgraded:?}"
    );

    // The backend goes away in the middle: an error, not a short body that looks whole.
    let cut = lab.get("shop/client", "http://checkout/?reset=1");
    assert!(cut.status != 200 || cut.error.is_some(), "{cut:?}");
    let next = lab.get("shop/client", "http://checkout/");
    assert_eq!(next.status, 200);
}

fn an_undeclared_port_that_a_route_reaches_serves_http_and_what_is_not_http(family: Family) {
    let lab = Lab::up_in(family, SHOP);
    lab.apply(
        "apiVersion: v1
kind: Service
metadata: {name: mixed, namespace: shop}
spec:
  selector: {app: checkout}
  ports: [{name: a, port: 80, targetPort: 8080}, {name: b, port: 9001}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: mixed, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: mixed}]
  rules: [{matches: [{path: {value: /only}}], backendRefs: [{name: checkout-v2, port: 80}]}]
",
    )
    .ok();
    eventually(Duration::from_secs(5), || {
        match lab.get("shop/client", "http://mixed/only") {
            a if a.seen()["version"] == "v2" => Ok(()),
            a => Err(format!("{} {:?}", a.status, a.body)),
        }
    });
    assert_eq!(lab.get("shop/client", "http://mixed/else").status, 404);
    let first = lab.bytes("shop/client", "mixed:9001", &["--banner", "--send", "100"]);
    assert_eq!((first.echoed, &*first.end), (100, "eof"), "{first:?}");
}

fn grpc_streams_in_both_directions_by_a_grpc_route_and_without(family: Family) {
    let lab = Lab::up_in(family, SHOP);
    let client = Lab::bin("weft-lab-client").to_string_lossy().into_owned();
    let call = || -> GrpcReport {
        let command = [
            &*client,
            "grpc",
            "--to",
            "checkout:9090",
            "--messages",
            "50",
        ];
        serde_json::from_str(&lab.exec("shop/client", &command).ok()).expect("JSON")
    };
    let whole = |version: &str| GrpcReport {
        version: version.into(),
        from_server: 50,
        from_client: 50,
        both_ways: 50,
        failure: "FailedPrecondition: on demand".into(),
    };
    let plain = call();
    assert_eq!(plain, whole(&plain.version));

    lab.apply(
        "apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: echo, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: checkout, port: 9090}]
  rules:
  - matches: [{method: {service: weft.echo.v1.Echo}}]
    backendRefs: [{name: checkout-v2, port: 9090}]
",
    )
    .ok();
    eventually(Duration::from_secs(5), || match call() {
        report if report == whole("v2") => Ok(()),
        report => Err(format!("{report:?}")),
    });
}

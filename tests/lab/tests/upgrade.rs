//! Proxies that are replaced under traffic: two run side by side, then the old one drains.

use std::time::{Duration, Instant};

use weft_lab_tests::{Family, Lab, Traffic, eventually, in_families};

const MANIFESTS: &str = include_str!("../manifests/lives.yaml");
const DRAIN: Duration = Duration::from_secs(3);
const UPGRADES: usize = 10;

/// Every kind of client that must not notice.
fn clients(traffic: &mut Traffic<'_>) {
    let http = "http://server.shop/";
    let rate = ["--rate", "60"];
    let with = |more: &[&'static str]| [&rate[..], more].concat();
    traffic.client("new connections", http, &with(&["-c", "4"]));
    traffic.client(
        "kept connections",
        http,
        &with(&["-c", "8", "--keep-alive"]),
    );
    let http2 = with(&["-c", "4", "--keep-alive", "--http2"]);
    traffic.client("HTTP/2", http, &http2);
    traffic.client("bodies", http, &with(&["-c", "4", "--data-bytes", "20000"]));
    let grpc = "grpc://server.shop:9090";
    traffic.client("gRPC", grpc, &with(&["-c", "4", "--keep-alive"]));
    let tcp = "tcp://server.shop:9000";
    traffic.client("TCP", tcp, &with(&["-c", "4", "--data", "hello"]));
}

in_families!(proxies_are_upgraded_under_traffic_and_nobody_notices: ipv4, ipv6, dual);

fn proxies_are_upgraded_under_traffic_and_nobody_notices(family: Family) {
    let drain = format!("--drain-timeout={}s", DRAIN.as_secs());
    let lab = Lab::up_in_with(family, &["--proxy-arg", &drain], MANIFESTS);
    let mut traffic = Traffic::from(&lab, "shop/client");
    clients(&mut traffic);
    let upgrades = if family.is_in_full() { UPGRADES } else { 3 };
    for _ in 0..upgrades {
        for part in ["proxy/n1", "proxy/n2"] {
            let before = lab.pid(part);
            lab.upgrade(part);
            assert_ne!(lab.pid(part), before);
        }
    }
    // An idle machine replaces twenty in a few seconds.
    traffic.nothing_failed(if family.is_in_full() { 100 } else { 20 });

    // What lives long is let live for the time to drain, and then ends in order.
    for part in ["proxy/n1", "proxy/n2"] {
        for _ in 0..3 {
            traffic.stream("server.shop:9000", 60_000);
        }
        let held = || {
            let out = lab.exec(
                "shop/client",
                &["ss", "-Htn", "state", "established", "dport", "= :9000"],
            );
            match out.ok().lines().count() {
                3 => Ok(()),
                other => Err(format!("{other} streams")),
            }
        };
        eventually(Duration::from_secs(20), held);
        let begin = Instant::now();
        lab.upgrade(part);
        assert!(begin.elapsed() >= DRAIN);
        for stream in traffic.streams() {
            assert_eq!(stream.end, "eof", "{part}: {stream:?}");
            assert!(
                u128::from(stream.millis) >= DRAIN.as_millis(),
                "{part}: {stream:?}"
            );
        }
        let logs = lab.logs(part);
        assert!(
            logs.contains("connections are closed at the end of the drain time"),
            "{logs}"
        );
    }
}

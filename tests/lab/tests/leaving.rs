//! A namespace that joins and leaves the mesh while it has traffic.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use weft_lab_tests::{Family, Lab, Traffic, eventually, in_families};

const MANIFESTS: &str = include_str!("../manifests/lives.yaml");
const SOON: Duration = Duration::from_secs(30);
const DRAIN: Duration = Duration::from_secs(4);

fn label(lab: &Lab, namespace: &str, value: &str) {
    let label = format!("weft.dev/mesh={value}");
    lab.weft(&["label", "namespace", namespace, &label, "--overwrite"])
        .ok();
}

/// Waits until every pod of a namespace is captured, or none.
fn captured(lab: &Lab, namespace: &str, expected: bool) {
    eventually(SOON, || {
        let status = lab.status();
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        let of = |pod: &&serde_json::Value| pod["namespace"] == namespace;
        match pods
            .iter()
            .filter(of)
            .all(|pod| pod["captured"] == expected)
        {
            true => Ok(()),
            false => Err(status["pods"].to_string()),
        }
    });
}

/// How the proxy of a node carried what ended since its access log had `skip` lines:
/// `tunnel` of each line that names `port`.
fn tunnels(lab: &Lab, node: &str, skip: usize, port: &str) -> Vec<String> {
    let path = lab
        .state_dir()
        .join("logs")
        .join(format!("access-{node}.log"));
    let log = std::fs::read_to_string(path).unwrap_or_default();
    log.lines()
        .skip(skip)
        .filter(|line| line.contains(port))
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .map(|line| line["tunnel"].as_str().unwrap_or_default().to_owned())
        .collect()
}

fn lines(lab: &Lab, node: &str) -> usize {
    let path = lab
        .state_dir()
        .join("logs")
        .join(format!("access-{node}.log"));
    std::fs::read_to_string(path).map_or(0, |log| log.lines().count())
}

/// All rules in a pod of the shop.
fn rules(lab: &Lab, pod: &str) -> String {
    let netns = format!("weft-{}-p.shop.{pod}", lab.name);
    let rules = Command::new("ip")
        .args(["netns", "exec", &netns, "nft", "list", "ruleset"])
        .output()
        .expect("ip runs");
    String::from_utf8_lossy(&rules.stdout).into_owned()
}

in_families!(a_namespace_joins_and_leaves_under_traffic_and_no_connection_is_lost: ipv4, ipv6, dual);

fn a_namespace_joins_and_leaves_under_traffic_and_no_connection_is_lost(family: Family) {
    let drain = format!("--drain-timeout={}s", DRAIN.as_secs());
    let plain = MANIFESTS.replace("weft.dev/mesh: enabled", "weft.dev/mesh: disabled");
    let lab = Lab::up_in_with(family, &["--agent-arg", &drain], &plain);
    let mut traffic = Traffic::from(&lab, "shop/client");
    let http = "http://server.shop/";
    traffic.client("kept", http, &["--rate", "60", "-c", "6", "--keep-alive"]);
    traffic.client("new", http, &["--rate", "60", "-c", "4"]);
    let http2 = ["--rate", "60", "-c", "4", "--keep-alive", "--http2"];
    traffic.client("HTTP/2", http, &http2);
    let tcp = "tcp://server.shop:9000";
    traffic.client("TCP", tcp, &["--rate", "60", "-c", "4", "--data", "x"]);

    // What is open goes on in plaintext until it ends by itself; what is new is mTLS.
    let mut before = Traffic::from(&lab, "shop/client");
    before.stream("server.shop:9000", 12_000);
    std::thread::sleep(Duration::from_millis(300));
    label(&lab, "shop", "enabled");
    captured(&lab, "shop", true);
    let skip = lines(&lab, "n2");
    eventually(SOON, || {
        let seen = tunnels(&lab, "n2", skip, ":9000");
        let mtls = seen.iter().filter(|tunnel| *tunnel == "hbone").count();
        if mtls > 20 {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    });
    for stream in before.streams() {
        assert_eq!(stream.end, "ended by itself", "{stream:?}");
    }

    // What is open when it leaves has the time to drain, and an end in order; what is new is plain.
    let mut during = Traffic::from(&lab, "shop/client");
    during.stream("server.shop:9000", 60_000);
    let mut short = Traffic::from(&lab, "shop/client");
    short.stream("server.shop:9000", 3_000);
    std::thread::sleep(Duration::from_millis(500));
    let begin = Instant::now();
    label(&lab, "shop", "disabled");
    for stream in short.streams() {
        assert_eq!(stream.end, "ended by itself", "{stream:?}");
    }
    for stream in during.streams() {
        assert_eq!(stream.end, "eof", "{stream:?}");
        assert!(begin.elapsed() >= DRAIN, "{stream:?}");
    }
    captured(&lab, "shop", false);
    for pod in ["client", "server"] {
        eventually(SOON, || match rules(&lab, pod) {
            rules if rules.is_empty() => Ok(()),
            rules => Err(rules),
        });
    }

    // Thought better of: it is in the mesh again before the drain is over, and what is open stays.
    label(&lab, "shop", "enabled");
    captured(&lab, "shop", true);
    let mut stays = Traffic::from(&lab, "shop/client");
    stays.stream("server.shop:9000", 3 * 1000 * DRAIN.as_secs());
    std::thread::sleep(Duration::from_millis(500));
    label(&lab, "shop", "disabled");
    let draining = || {
        let log = lab.logs("agent/n2");
        log.lines()
            .filter(|line| line.contains("leaving: draining"))
            .count()
    };
    eventually(SOON, || {
        if draining() >= 2 {
            Ok(())
        } else {
            Err("not draining".into())
        }
    });
    let begin = Instant::now();
    label(&lab, "shop", "enabled");
    captured(&lab, "shop", true);
    assert!(begin.elapsed() < DRAIN, "it waited for the drain");
    for stream in stays.streams() {
        assert_eq!(stream.end, "ended by itself", "{stream:?}");
    }
    traffic.nothing_failed(500);
}

//! What thousands of connections cost a proxy while they are idle, and that it is given back.

use std::time::{Duration, Instant};

use weft_lab_tests::{Lab, eventually};

const SHOP: &str = include_str!("../manifests/shop.yaml");
const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: checkout, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: checkout, port: 80}]
  rules: [{backendRefs: [{name: checkout, port: 80}]}]
";
const PARTS: [&str; 2] = ["proxy/n1", "proxy/n2"];
const KIB: u64 = 1024;
/// Each kind: through tunnels as bytes, and through L7 as HTTP/1.1 that is kept alive.
const EACH: u64 = 5_000;
/// What an idle connection may cost a proxy, at most: far below one buffer of 64 KiB.
const MOST: u64 = 40 * KIB;

/// Resident memory of a process, in bytes.
fn rss(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a live process");
    let line = text.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.expect("VmRSS") * KIB
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_give_it_back() {
    let lab = Lab::up(SHOP);
    lab.apply(ROUTE).ok();
    eventually(Duration::from_secs(10), || {
        let (status, _, message) =
            lab.route_condition("httproutes", "shop", "checkout", "weft.dev/Programmed");
        (status == "True").then_some(()).ok_or(message)
    });
    let hold = |count: u64| {
        let count = count.to_string();
        let bytes = lab.hold("shop/client", &["--to", "checkout:9000", "--count", &count]);
        let http = lab.hold(
            "shop/client",
            &["--to", "checkout:80", "--http", "--count", &count],
        );
        [bytes, http]
    };
    let pids = PARTS.map(|part| lab.pid(part));
    // What a proxy that has worked has: its threads' caches, its tables, metrics.
    drop(hold(EACH / 10));
    std::thread::sleep(Duration::from_secs(1));
    let before = pids.map(rss);

    let start = Instant::now();
    let held = hold(EACH);
    for held in &held {
        assert_eq!((held.opened.open, &held.opened.failed[..]), (EACH, &[][..]));
    }
    let took = start.elapsed();
    let peak = pids.map(rss);
    let in_use = lab.metric(
        "n1",
        "weft_pod_in_use",
        &["pod=\"client\"", "limit=\"connections\""],
    ) + lab.metric(
        "n2",
        "weft_pod_in_use",
        &["pod=\"client\"", "limit=\"connections\""],
    );
    assert!(in_use >= (2 * EACH) as f64, "{in_use}");
    for held in held {
        let report = held.close();
        assert_eq!(report.broken, [], "none breaks while it is idle");
    }

    for ((part, pid), (before, peak)) in PARTS.iter().zip(pids).zip(before.into_iter().zip(peak)) {
        let each = peak.saturating_sub(before) / (2 * EACH);
        println!(
            "{part}: {} KiB before, {} KiB at the peak ({each} bytes a connection; opened in {took:?})",
            before / KIB,
            peak / KIB
        );
        assert!(each < MOST, "{part}: an idle connection costs {each} bytes");
        // The allocator gives back what was not used for ten seconds.
        let start = Instant::now();
        let after = eventually(Duration::from_secs(45), || {
            let now = rss(pid);
            if now <= before + before / 5 {
                Ok(now)
            } else {
                Err(format!(
                    "{part} has {} KiB, had {} KiB before and {} KiB at the peak",
                    now / KIB,
                    before / KIB,
                    peak / KIB
                ))
            }
        });
        println!(
            "{part}: {} KiB {:?} after closing",
            after / KIB,
            start.elapsed()
        );
    }
}

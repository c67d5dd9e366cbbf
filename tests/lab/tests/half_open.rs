//! Peers that vanish without a word: their interface is taken down under open connections. Both
//! ends notice within the documented time (here with short settings), give everything back, and new
//! requests go elsewhere.

use std::{
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use weft_lab_tests::{Family, Lab, eventually, in_families};

/// Two servers of one Service on two nodes, neither the client's; one that is out of the mesh.
const PODS: &str = r#"apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec:
  nodeName: n1
  containers: [{name: sleep, command: [sleep, infinity]}]
---
apiVersion: v1
kind: Pod
metadata: {name: doomed, namespace: shop, labels: {app: server, which: doomed}}
spec:
  nodeName: n2
  containers: [{name: echo, command: [weft-echo, server, --http, "8080", --tcp, "9000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: spare, namespace: shop, labels: {app: server}}
spec:
  nodeName: n1
  containers: [{name: echo, command: [weft-echo, server, --http, "8080", --tcp, "9000"]}]
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec:
  selector: {app: server}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000}]
---
apiVersion: v1
kind: Service
metadata: {name: doomed, namespace: shop}
spec:
  selector: {which: doomed}
  ports: [{name: tcp-echo, port: 9000}]
"#;
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECT: Duration = Duration::from_secs(1);
const LIMITS: [&str; 6] = [
    "--proxy-arg=--limit=ping-interval=2s",
    "--proxy-arg=--limit=ping-timeout=1s",
    "--proxy-arg=--limit=connect-timeout=1s",
    "--proxy-arg=--limit=tunnel-idle=4s",
    "--proxy-arg=--limit=keepalive-idle=1s",
    "--proxy-arg=--limit=keepalive-interval=1s",
];
/// A busy machine does everything later.
const SLACK: Duration = Duration::from_secs(4);
const STREAMS: &str = "20";
const NODES: [&str; 2] = ["n1", "n2"];

fn ip(space: &str, words: &str) -> String {
    let done = Command::new("ip")
        .args(["-n", space])
        .args(words.split_whitespace())
        .output()
        .expect("ip runs");
    assert!(done.status.success(), "{space}: {words}: {done:?}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// An interface that is down, and routes that go with it.
struct Down<'a> {
    space: &'a str,
    routes: String,
}

impl<'a> Down<'a> {
    fn new(space: &'a str) -> Self {
        let routes = ip(space, "route show");
        ip(space, "link set eth0 down");
        Self { space, routes }
    }

    fn up(self) {
        ip(self.space, "link set eth0 up");
        for route in self.routes.lines() {
            ip(self.space, &format!("route replace {route}"));
        }
    }
}

fn millis() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("a clock").as_millis() as u64
}

/// What a proxy has open: descriptors, tunnels, connections and CONNECTs of its pods.
fn open(lab: &Lab, node: &str) -> [u64; 4] {
    let pid = lab.pid(&format!("proxy/{node}"));
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("a live process")
        .count();
    let connections = lab.metric(node, "weft_tcp_connections_opened_total", &[])
        - lab.metric(node, "weft_tcp_connections_closed_total", &[]);
    [
        descriptors as u64,
        lab.metric(node, "weft_tunnels_open", &[]) as u64,
        connections as u64,
        lab.metric(node, "weft_pod_in_use", &["limit=\"connections\""]) as u64,
    ]
}

/// Takes a link down under idle and busy streams from the client to the doomed pod; both proxies are
/// back to what they had before within the documented time, and the client's side has told its
/// applications.
fn vanish(lab: &Lab, space: &str, told: bool) {
    let before = NODES.map(|node| open(lab, node));
    let idle = lab.hold("shop/client", &["--to", "doomed:9000", "--count", STREAMS]);
    let busy = lab.hold(
        "shop/client",
        &["--to", "doomed:9000", "--count", STREAMS, "--busy", "50"],
    );
    for held in [&idle, &busy] {
        assert_eq!(held.opened.failed, [] as [String; 0]);
    }
    let (down, start) = (millis(), Instant::now());
    let link = Down::new(space);
    let noticed = PING_INTERVAL + PING_TIMEOUT + SLACK;
    for (node, before) in NODES.into_iter().zip(&before) {
        eventually(noticed.saturating_sub(start.elapsed()) + SLACK, || {
            let now = open(lab, node);
            let back = now[1..]
                .iter()
                .zip(&before[1..])
                .all(|(now, before)| now <= before);
            back.then_some(())
                .ok_or(format!("{node}: {now:?}, before {before:?}"))
        });
    }
    if told {
        for held in [idle, busy] {
            let report = held.close();
            assert_eq!(report.broken.len().to_string(), STREAMS, "{report:?}");
            let last = report.broken.iter().map(|(at, _)| at - down).max();
            assert!(last < Some(noticed.as_millis() as u64), "{report:?}");
        }
    }
    link.up();
    lab.whole(Duration::from_secs(30));
    for (node, before) in NODES.into_iter().zip(before) {
        eventually(Duration::from_secs(10), || {
            let now = open(lab, node);
            // A descriptor or two for a scrape or a dial that is under way.
            (now[0] <= before[0] + 4)
                .then_some(())
                .ok_or(format!("{node}: {now:?}, before {before:?}"))
        });
    }
}

#[test]
fn peers_that_vanish_are_noticed_and_leave_nothing_behind() {
    let lab = Lab::up_with(&LIMITS, PODS);
    let of = |what: &str| format!("weft-{}-{what}", lab.name);
    lab.hold("shop/client", &["--to", "doomed:9000"]).close();
    eventually(Duration::from_secs(20), || {
        let tunnels = NODES.map(|node| open(&lab, node)[1]);
        (tunnels == [0, 0])
            .then_some(())
            .ok_or(format!("{tunnels:?}"))
    });

    vanish(&lab, &of("p.shop.doomed"), true);
    vanish(&lab, &of("n2"), true);
    // The client's own pod: what it had is reset on its side; the server's side must notice, too.
    vanish(&lab, &of("p.shop.client"), true);
}

in_families!(a_request_after_the_vanishing_is_answered_by_another_endpoint_in_time: ipv4, ipv6);

fn a_request_after_the_vanishing_is_answered_by_another_endpoint_in_time(family: Family) {
    let lab = Lab::up_in_with(family, &LIMITS, PODS);
    lab.apply(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: server, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: server, port: 80}]
  rules: [{backendRefs: [{name: server, port: 80}]}]
",
    )
    .ok();
    // Idle tunnels and pooled connections to both endpoints.
    for _ in 0..20 {
        assert_eq!(lab.get("shop/client", "http://server/").status, 200);
        let bytes = lab.bytes("shop/client", "server:9000", &["--send", "10"]);
        assert_eq!(bytes.echoed, 10);
    }
    let space = format!("weft-{}-n2", lab.name);
    let _link = Down::new(&space);
    // A pooled connection is found dead by the ping that its use asks for, a new one by the time to
    // connect; then another endpoint is tried.
    let limit = PING_TIMEOUT + CONNECT + SLACK;
    for _ in 0..6 {
        let start = Instant::now();
        let answer = lab.get("shop/client", "http://server/");
        assert_eq!((answer.status, answer.error), (200, None));
        let bytes = lab.bytes("shop/client", "server:9000", &["--send", "10"]);
        assert_eq!(bytes.echoed, 10, "{bytes:?}");
        assert!(start.elapsed() < 2 * limit, "{:?}", start.elapsed());
    }
}

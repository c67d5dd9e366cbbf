//! Someone in a pod tries to get around the mesh: each way is refused, and counted at the pod where
//! it was tried.

use std::time::Duration;

use serde_json::Value;
use weft_lab_tests::{Dialled, Family, Lab, at, eventually, in_families};

const ROGUE: &str = include_str!("../manifests/rogue.yaml");
const PEER_ID: &str = "spiffe://cluster.local/ns/plain/sa/default";
/// As names.rs has them.
const PROBE_SOURCES: [&str; 2] = ["169.254.7.128", "fd77:6566:7400::128"];
const NO_RAW: [&str; 3] = ["setpriv", "--bounding-set", "-all"];
const ONLY_RAW: [&str; 3] = ["setpriv", "--bounding-set", "-all,+net_raw"];

in_families!(
    what_a_pod_dials_to_get_around_the_mesh_is_refused_and_counted: ipv4, dual;
    a_pod_that_claims_anothers_address_gets_none_of_its_connections_and_reaches_nobody_as_it: ipv4, ipv6;
);

/// The count of one reason at a pod of a node.
fn refused(lab: &Lab, node: &str, pod: &str, reason: &str) -> u64 {
    let series =
        format!(r#"weft_refused_total{{namespace="shop",pod="{pod}",reason="{reason}"}} "#);
    let metrics = lab.metrics(node);
    let line = metrics.lines().find_map(|line| line.strip_prefix(&series));
    line.map_or(0, |count| count.parse().expect("a number"))
}

/// Does what must be refused at a pod of a node, for that reason.
#[track_caller]
fn is_counted<T>(lab: &Lab, at: (&str, &str, &str), attempt: impl FnOnce() -> T) -> T {
    let (node, pod, reason) = at;
    let before = refused(lab, node, pod, reason);
    let result = attempt();
    eventually(Duration::from_secs(5), || {
        if refused(lab, node, pod, reason) > before {
            return Ok(());
        }
        let all = lab.metrics(node);
        let told: Vec<_> = all.lines().filter(|l| l.contains("weft_refused")).collect();
        Err(format!("{pod} does not count {reason}: {told:#?}"))
    });
    result
}

/// No application has answered; TLS may have said that it was not spoken to.
#[track_caller]
fn nothing_came_back(dialled: &Dialled) {
    assert!(!dialled.answer.contains("HTTP"), "{dialled:?}");
    assert!(dialled.answer.len() < 20, "{dialled:?}");
}

fn what_a_pod_dials_to_get_around_the_mesh_is_refused_and_counted(family: Family) {
    let lab = Lab::up_in(family, ROGUE);
    let rogue = |to: &str| lab.dial("shop/rogue", to, &[]);
    assert_eq!(rogue(&lab.pod_at("shop", "server", 8080)).status(), 200);

    own_ports(&lab);
    others_ports(&lab);
    foreign_connects(&lab);
    marks(&lab);
    pages(&lab);
    annotation_of_another_sandbox(&lab);
    assert_eq!(rogue(&lab.pod_at("shop", "server", 8080)).status(), 200);
}

/// One's own 15001, 15006, 15008.
fn own_ports(lab: &Lab) {
    let mut own = lab.pod_ips("shop", "rogue");
    own.push("127.0.0.1".into());
    if own.iter().any(|ip| ip.contains(':')) {
        own.push("::1".into());
    }
    for ip in &own {
        for (port, reason) in [
            (15001, "own_port"),
            (15006, "not_served"),
            (15008, "not_tls"),
        ] {
            let dialled = is_counted(lab, ("n1", "rogue", reason), || {
                lab.dial("shop/rogue", &at(ip, port), &[])
            });
            nothing_came_back(&dialled);
        }
    }
}

/// Another pod's, from inside the mesh and from outside.
fn others_ports(lab: &Lab) {
    for ip in lab.pod_ips("shop", "server") {
        for port in [15001, 15006, 15008] {
            let reason = ("n1", "server", "destination_not_served");
            let dialled = is_counted(lab, reason, || lab.dial("shop/rogue", &at(&ip, port), &[]));
            nothing_came_back(&dialled);
        }
        for (port, reason) in [
            (15001, "not_served"),
            (15006, "not_served"),
            (15008, "not_tls"),
            (9000, "strict_plaintext"),
        ] {
            let dialled = is_counted(lab, ("n1", "server", reason), || {
                lab.dial("plain/client", &at(&ip, port), &[])
            });
            nothing_came_back(&dialled);
        }
    }
}

/// Tunnels with no certificate, a foreign one, and a good one that asks for what is not the pod's.
fn foreign_connects(lab: &Lab) {
    let ca = lab.state_dir().join("ca");
    let (cert, key) = (ca.join("root.pem"), ca.join("root.key"));
    let (cert, key) = (cert.to_string_lossy(), key.to_string_lossy());
    let peer = Lab::peer().to_string_lossy().into_owned();
    let server = lab.pod_ip("shop", "server");
    let dial = at(&server, 15008);
    let tunnel = |authority: &str, more: &[&str]| {
        let mut command = vec![&*peer, "client", "--dial", &dial, "--authority", authority];
        command.extend(["--ca-cert", &cert, "--get", "/"]);
        command.extend(more);
        let output = lab.exec("plain/client", &command);
        assert_eq!(output.code, 3, "{authority}: {} {}", output.out, output.err);
        serde_json::from_str::<Value>(&output.out).expect("JSON")
    };
    let application = at(&server, 8080);
    for (reason, more) in [
        ("no_certificate", vec!["--no-certificate"]),
        // A root of its own that bears the name of the mesh's.
        ("unknown_issuer", vec!["--id", PEER_ID]),
        (
            "wrong_trust_domain",
            vec![
                "--ca-key",
                &key,
                "--id",
                "spiffe://evil.example/ns/shop/sa/other",
            ],
        ),
    ] {
        is_counted(lab, ("n1", "server", reason), || {
            tunnel(&application, &more)
        });
    }
    let good = ["--ca-key", &*key, "--id", PEER_ID];
    let mut elsewhere = vec![
        lab.pod_at("shop", "other", 8080),
        lab.pod_at("shop", "rogue", 8080),
        "127.0.0.1:8080".into(),
        "[::1]:8080".into(),
        "[::ffff:127.0.0.1]:8080".into(),
        "0.0.0.0:8080".into(),
        "169.254.169.254:80".into(),
        "[fe80::1]:80".into(),
        at(&lab.proxy_ip("n1"), 15020),
        "127.0.0.1:15000".into(),
    ];
    let node = lab.object("nodes", "", "n1").expect("the node");
    let addresses = node["status"]["addresses"].as_array().cloned();
    for address in addresses.unwrap_or_default() {
        let address = address["address"].as_str().unwrap_or_default();
        if address.parse::<std::net::IpAddr>().is_ok() {
            elsewhere.push(at(address, 8080));
        }
    }
    elsewhere.extend(PROBE_SOURCES.map(|source| at(source, 8080)));
    elsewhere.extend([15001, 15006, 15008].map(|port| at(&server, port)));
    for authority in elsewhere {
        let reason = ("n1", "server", "destination_not_served");
        let answer = is_counted(lab, reason, || tunnel(&authority, &good));
        assert_eq!(answer["status"], 403, "{authority}: {answer}");
    }
}

/// What a process that may mark its sockets gains by it: it is served like any other, in mTLS.
fn marks(lab: &Lab) {
    for ip in lab.pod_ips("shop", "server") {
        let to = at(&ip, 8080);
        let with = |capabilities: &[&str], mark: u32| {
            lab.dial_as(
                "shop/rogue",
                capabilities,
                &to,
                &["--mark", &mark.to_string()],
            )
        };
        // In plaintext a strict pod would not answer.
        for mark in [0x539, 1] {
            let dialled = with(&ONLY_RAW, mark);
            assert_eq!(dialled.status(), 200, "{mark:#x}: {dialled:?}");
        }
        nothing_came_back(&with(&ONLY_RAW, 0x111));
        let dialled = with(&NO_RAW, 0x539);
        assert!(!dialled.connected, "{dialled:?}");
        assert!(dialled.end.contains("not permitted"), "{dialled:?}");
    }
    // The rules, where the mark is, are not shown to it either.
    let rules = ["nft", "list", "ruleset"];
    let shown = lab.exec("shop/rogue", &[&ONLY_RAW[..], &rules].concat());
    assert!(!shown.out.contains("mark"), "{}", shown.out);
    assert!(lab.exec("shop/rogue", &rules).ok().contains("mark"));
}

/// The pages of the proxies and of the controller.
fn pages(lab: &Lab) {
    for node in ["n1", "n2"] {
        let proxy = lab.proxy_ip(node);
        for (port, path) in [(15020, "/metrics"), (15021, "/ready")] {
            for pod in ["shop/rogue", "plain/client", "plain/far"] {
                let dialled = lab.dial(pod, &at(&proxy, port), &["--path", path]);
                assert_eq!(dialled.status(), 403, "{pod} {path} {node}: {dialled:?}");
            }
            // The kubelet and scrapers on the node's own network.
            let dialled = lab.dial_in(node, &at(&proxy, port), &["--path", path]);
            assert_eq!(dialled.status(), 200, "{dialled:?}");
        }
        let counted =
            |line: &str| line.starts_with(r#"weft_scrapes_refused_total{port="metrics"} "#);
        assert!(lab.metrics(node).lines().any(counted));
        let dialled = lab.dial("shop/rogue", &at(&proxy, 15000), &["--path", "/config"]);
        nothing_came_back(&dialled);
    }
    let ip = ["ip", "-j", "addr", "show", "scope", "global"];
    let links: Value = serde_json::from_str(&lab.run_in("fabric", &ip)).expect("JSON");
    let all = links.as_array().expect("links").iter();
    let all = all.flat_map(|link| link["addr_info"].as_array().into_iter().flatten());
    let all: Vec<_> = all.filter_map(|a| a["local"].as_str()).collect();
    assert!(!all.is_empty());
    for controller in all {
        let ask = |port, path| lab.dial("shop/rogue", &at(controller, port), &["--path", path]);
        assert_eq!(ask(15000, "/debug/tables").answer, "");
        // Another address of the fabric's bridge is nobody's.
        let open = ask(15020, "/debug/tables");
        assert!([0, 403].contains(&open.status()), "{open:?}");
        assert!(!open.answer.contains("Workload"), "{open:?}");
    }
}

/// Who may annotate pods can say that one is captured, in a sandbox of former times. It is dialled
/// by mTLS then, or not at all, until its node's agent has taken the lie back.
fn annotation_of_another_sandbox(lab: &Lab) {
    let annotate = |pod: &str, sandbox: &str| {
        let folder = lab.state_dir().join("api/annotations/Pod./plain");
        std::fs::create_dir_all(&folder).expect("a writable lab");
        let annotation = format!(r#"{{"weft.dev/captured": "{sandbox}"}}"#);
        std::fs::write(folder.join(format!("{pod}.json")), annotation).expect("a writable lab");
    };
    let far = lab.pod_at("plain", "far", 8080);
    let ask = || lab.dial("shop/rogue", &far, &[]);
    assert_eq!(ask().status(), 200);
    annotate("far", "a-sandbox-of-former-times");
    eventually(Duration::from_secs(10), || {
        let json = lab.weft(&["get", "pod", "far", "-n", "plain", "-o", "json"]);
        let pod: Value = serde_json::from_str(&json.ok()).expect("weft prints JSON");
        match &pod["metadata"]["annotations"]["weft.dev/captured"] {
            Value::Null => Ok(()),
            named => Err(format!("the lie stays: {named}")),
        }
    });
    eventually(Duration::from_secs(10), || match ask() {
        dialled if dialled.status() == 200 => Ok(()),
        dialled => Err(format!("not as before: {dialled:?}")),
    });
}

fn a_pod_that_claims_anothers_address_gets_none_of_its_connections_and_reaches_nobody_as_it(
    family: Family,
) {
    let lab = Lab::up_in(family, ROGUE);
    let server = lab.pod_ip("shop", "server");
    let other = lab.pod_at("shop", "other", 8080);
    let far = lab.pod_at("plain", "far", 8080);
    let ask_server = || lab.dial("shop/other", &at(&server, 8080), &[]);
    assert_eq!(ask_server().status(), 200);

    // Its own interface is its own to configure, with CAP_NET_ADMIN.
    let bits = if server.contains(':') { 128 } else { 32 };
    let address = format!("{server}/{bits}");
    let claim = |what: &str| {
        let mut command = vec!["ip", "addr", what, &address, "dev", "eth0"];
        if (what, bits) == ("add", 128) {
            command.push("nodad");
        }
        lab.exec("shop/rogue", &command).ok();
    };
    claim("add");

    // As a client: neither into the mesh nor out of it.
    for to in [&other, &far] {
        let dialled = is_counted(&lab, ("n1", "rogue", "foreign_source"), || {
            lab.dial("shop/rogue", to, &["--from", &server])
        });
        nothing_came_back(&dialled);
    }

    // As a server: the node believes that the address is there, as after a race for it.
    let link = lab.exec("shop/rogue", &["ip", "-o", "link", "show", "eth0"]);
    let link = link.ok();
    let mut words = link.split_whitespace();
    words.find(|word| *word == "link/ether");
    let link = words.next().expect("its hardware address");
    let believe = |what: &str, more: &[&str]| {
        let bridge = lab.run_in("n1", &["ip", "-o", "route", "get", &server]);
        let mut words = bridge.split_whitespace().skip_while(|word| *word != "dev");
        let bridge = words.nth(1).expect("a device").to_owned();
        let command = [&["ip", "neigh", what, &server, "dev", &bridge], more].concat();
        lab.run_in("n1", &command);
    };
    // What is open goes on to the old place; a new proxy on the client's node has nothing open.
    lab.kill("proxy/n2");
    lab.whole(Duration::from_secs(30));
    believe("replace", &["lladdr", link, "nud", "permanent"]);
    let dialled = is_counted(&lab, ("n2", "other", "identity"), ask_server);
    nothing_came_back(&dialled);
    claim("del");
    believe("del", &[]);
    eventually(Duration::from_secs(10), || match ask_server() {
        dialled if dialled.status() == 200 => Ok(()),
        dialled => Err(format!("{dialled:?}")),
    });

    claim("add");
    // Without the redirects, which are its own to remove, too: strict pods do not talk to it.
    lab.exec("shop/rogue", &["nft", "delete", "table", "inet", "weft"])
        .ok();
    nothing_came_back(&lab.dial("shop/rogue", &other, &["--from", &server]));
    let own = lab.pod_ip("shop", "rogue");
    let dialled = is_counted(&lab, ("n2", "other", "strict_plaintext"), || {
        lab.dial("shop/rogue", &other, &["--from", &own])
    });
    nothing_came_back(&dialled);
}

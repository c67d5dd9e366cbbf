//! What is different with IPv6 and with both families. (That everything else holds in them is what
//! the other files' tests show, which run in them too.)

use std::{net::IpAddr, process::Command, time::Duration};

use serde_json::Value;
use weft_lab_tests::{Answer, Family, Lab, Request, at, eventually};

const SHOP: &str = include_str!("../manifests/shop.yaml");

/// Services that differ in their families, and a route by which the client is sent elsewhere.
const SERVICES: &str = "apiVersion: v1
kind: Service
metadata: {name: six, namespace: shop}
spec:
  ipFamilies: [IPv6]
  selector: {app: checkout}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec:
  clusterIP: None
  ipFamilyPolicy: RequireDualStack
  selector: {app: checkout, version: v2}
  ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: old, namespace: shop}
spec:
  ipFamilyPolicy: PreferDualStack
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: away, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: checkout-v2}]
  rules:
  - matches: [{path: {value: /away}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301}}]
  - backendRefs: [{name: checkout-v1, port: 80}]
";

fn addresses(list: &Value) -> Vec<String> {
    let list = list.as_array().expect("a list of addresses").iter();
    let text = |address: &Value| address.as_str().expect("an address").to_owned();
    list.map(text).collect()
}

/// The addresses of a Service of the shop.
fn cluster_ips(lab: &Lab, name: &str) -> Vec<String> {
    let service = lab.object("service", "shop", name).expect("the Service");
    addresses(&service["spec"]["clusterIPs"])
}

/// The address from which the backend was reached.
fn peer(answer: &Answer) -> IpAddr {
    let seen = answer.seen();
    let peer = seen["peer"].as_str().unwrap_or_default();
    let peer: std::net::SocketAddr = peer.parse().unwrap_or_else(|_| panic!("{answer:?}"));
    peer.ip()
}

/// That a request to each of these is answered, and arrives from the client's own address of the
/// same family.
#[track_caller]
fn assert_each_stays_in_its_family(lab: &Lab, client: &str, to: &[String]) {
    let (namespace, name) = client.split_once('/').expect("namespace/name");
    let own = lab.pod_ips(namespace, name);
    assert_eq!((own.len(), to.len()), (2, 2), "{own:?} {to:?}");
    for (own, to) in own.iter().zip(to) {
        let answer = eventually(Duration::from_secs(5), || {
            match lab.get(client, &format!("http://{to}/")) {
                answer if answer.status == 200 => Ok(answer),
                answer => Err(format!("{to}: {} {:?}", answer.status, answer.error)),
            }
        });
        assert_eq!(peer(&answer).to_string(), *own, "{client} to {to}");
    }
}

fn at_port(addresses: &[String], port: u16) -> Vec<String> {
    addresses.iter().map(|address| at(address, port)).collect()
}

#[test]
fn a_lab_of_both_families_uses_the_one_that_was_dialled() {
    let lab = Lab::up_in(Family::Dual, &format!("{SHOP}\n---\n{SERVICES}"));
    let checkout = cluster_ips(&lab, "checkout");
    let servers = lab.pod_ips("shop", "checkout-v1");

    // Layer 4 and 7, in the mesh and outside of it, by Service and by pod.
    assert_each_stays_in_its_family(&lab, "shop/client", &at_port(&checkout, 80));
    let routed = at_port(&cluster_ips(&lab, "checkout-v2"), 80);
    assert_each_stays_in_its_family(&lab, "shop/client", &routed);
    assert_each_stays_in_its_family(&lab, "plain/client", &at_port(&checkout, 80));
    for client in ["shop/client", "plain/client"] {
        assert_each_stays_in_its_family(&lab, client, &at_port(&servers, 8080));
    }
    let access = lab.logs("access/n1") + &lab.logs("access/n2");
    let tunnelled = |ip: &str| {
        let mut lines = access
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.any(|line| line["tunnel"] == "hbone" && line["src_address"].to_string().contains(ip))
    };
    for ip in lab.pod_ips("shop", "client") {
        assert!(tunnelled(&ip), "no tunnel from {ip}:\n{access}");
    }

    // The ports of what is redirected are nobody's to dial, at any of a pod's addresses.
    for own in lab.pod_ips("shop", "client") {
        for port in [15001, 15006] {
            let report = lab.bytes("shop/client", &at(&own, port), &["--send", "1"]);
            assert_eq!(report.end, "reset", "{own} {port}: {report:?}");
        }
    }

    // A pod that reaches itself through its Service, in either family.
    let own = lab.pod("shop", "checkout-v2")["metadata"]["name"].clone();
    let own = format!("shop/{}", own.as_str().expect("a name"));
    for to in at_port(&cluster_ips(&lab, "six"), 80).iter().chain(&routed) {
        assert_eq!(lab.get(&own, &format!("http://{to}/")).status, 200, "{to}");
    }

    // A Service of one family is reached in that one, also by name.
    assert_eq!(cluster_ips(&lab, "six").len(), 1);
    let six = lab.get("shop/client", "http://six/");
    assert!(peer(&six).is_ipv6(), "{six:?}");

    // A headless Service's name has all addresses of its pods.
    let hosts = lab.exec("shop/client", &["cat", "/etc/hosts"]).ok();
    for ip in lab.pod_ips("shop", "checkout-v2") {
        let line = format!("{ip}\theadless.shop");
        assert!(hosts.contains(&line), "{line:?} not in\n{hosts}");
        let direct = lab.get("shop/client", &format!("http://{}/", at(&ip, 8080)));
        assert_eq!(direct.status, 200, "{ip}");
    }

    // Heads bear IPv6 addresses as URLs do.
    let v6 = &routed[1];
    let literal = format!("[{}]", cluster_ips(&lab, "checkout-v2")[1]);
    for h2 in [false, true] {
        let request = |path: &str| Request {
            h2,
            url: format!("http://{v6}{path}"),
            ..Request::default()
        };
        let answers = lab.http("shop/client", &[request("/away"), request("/")]);
        assert_eq!(answers[0].status, 301, "{:?}", answers[0]);
        let location = answers[0].header("location").unwrap_or_default();
        assert_eq!(location, format!("https://{literal}/away"));
        let host = answers[1].seen()["host"].clone();
        assert!(host == literal || host == *v6, "{host}");
    }

    // Where the backends have the other family alone, the mesh crosses over; kube-proxy does not.
    let slice = format!(
        r#"{{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {{"name": "old-1", "namespace": "shop",
                          "labels": {{"kubernetes.io/service-name": "old"}}}},
            "ports": [{{"name": "http", "port": 8080}}],
            "endpoints": [{{"addresses": ["{}"]}}]}}"#,
        servers[0]
    );
    lab.apply(&slice).ok();
    let old = format!("http://{}/", at(&cluster_ips(&lab, "old")[1], 80));
    let crossed = eventually(Duration::from_secs(5), || {
        match lab.get("shop/client", &old) {
            answer if answer.status == 200 => Ok(answer),
            answer => Err(format!("{} {:?}", answer.status, answer.error)),
        }
    });
    assert_eq!(peer(&crossed).to_string(), lab.pod_ips("shop", "client")[0]);
    assert_ne!(lab.get("plain/client", &old).status, 200);
}

#[test]
fn a_lab_of_ipv6_has_no_ipv4_and_refuses_services_that_ask_for_it() {
    let lab = Lab::up_in(Family::Ipv6, SHOP);
    let run = |netns: &str, command: &[&str]| {
        let netns = format!("weft-{}-{netns}", lab.name);
        let mut all = vec!["netns", "exec", &netns];
        all.extend(command);
        let output = Command::new("ip").args(&all).output().expect("ip runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for netns in ["fabric", "n1", "n1-proxy", "p.shop.client"] {
        let v4 = run(netns, &["ip", "-4", "-o", "addr"]);
        let others: Vec<_> = v4.lines().filter(|line| !line.contains(" lo ")).collect();
        assert!(others.is_empty(), "{netns} has IPv4: {others:?}");
        assert_eq!(run(netns, &["ip", "-4", "route"]), "", "{netns}");
    }

    // The proxy's pages, from its node.
    let proxy = run(
        "n1-proxy",
        &["ip", "-6", "-o", "addr", "show", "scope", "global"],
    );
    let mut words = proxy.split_whitespace();
    let address = words.find_map(|word| Some(word.split_once('/')?.0.to_owned()));
    let address = address.unwrap_or_else(|| panic!("the proxy has no address: {proxy}"));
    let echo = Lab::bin("weft-echo").to_string_lossy().into_owned();
    for (port, path) in [(15020, "metrics"), (15021, "ready")] {
        let url = format!("http://{}/{path}", at(&address, port));
        let page = run("n1", &[&echo, "client", &url, "-o", "json"]);
        assert!(page.contains(r#""status":"200""#), "{url}: {page}");
    }

    // kube-proxy's work: a pod outside the mesh that reaches itself through its Service, and a port
    // that nobody serves.
    assert_eq!(lab.get("plain/web", "http://web.plain/").status, 200);
    let refused = lab.bytes("plain/client", "web.plain:81", &[]);
    assert!(refused.end.contains("refused"), "{refused:?}");

    for (spec, expected) in [
        (
            "ipFamilies: [IPv4]",
            "this lab has no IPv4: start it with --ip-family ipv4 or dual",
        ),
        ("ipFamilyPolicy: RequireDualStack", "this lab has IPv6 only"),
        ("clusterIP: 10.96.0.77", "this lab has no IPv4"),
    ] {
        let applied = lab.apply(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: x, namespace: shop}}\nspec:\n  {spec}\n  ports: [{{port: 80}}]\n"
        ));
        assert_ne!(applied.code, 0, "{spec} was taken");
        assert!(applied.err.contains(expected), "{spec}: {}", applied.err);
    }
}

//! EndpointSlices to memberships.

use weft_api::config::IpFamily;
use weft_source::Object;

use super::{fresh, objects, world};

const WEB: &str = r#"
{apiVersion: v1, kind: Service, metadata: {namespace: a, name: web}, spec: {clusterIP: 10.0.1.1, ports: [{port: 80, name: http}, {port: 81, name: admin}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p1, uid: u1}, status: {podIP: 10.1.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p2, uid: u2}, status: {podIP: 10.1.0.2}}
"#;

/// A slice of `a/web`.
fn slice(name: &str, ports: &str, endpoints: &str) -> Object {
    let yaml = format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{namespace: a, name: {name}, labels: {{kubernetes.io/service-name: web}}}}, ports: {ports}, endpoints: {endpoints}}}"
    );
    objects(&yaml).remove(0)
}

/// Workloads that are endpoints: name, then per Service ports and conditions.
fn members(slices: &[Object]) -> Vec<String> {
    let base = objects(WEB);
    let compiled = fresh(base.iter().chain(slices));
    let mut lines = Vec::new();
    for (name, workload) in &compiled.workloads {
        for endpoint in &workload.endpoints {
            let ports: Vec<_> = endpoint
                .ports
                .iter()
                .map(|p| format!("{}>{}", p.service_port, p.target_port))
                .collect();
            let flag = |set, letter| if set { letter } else { '-' };
            let flags: String = [
                flag(endpoint.ready, 'r'),
                flag(endpoint.serving, 's'),
                flag(endpoint.terminating, 't'),
            ]
            .iter()
            .collect();
            lines.push(format!(
                "{name} {} {} {flags}",
                endpoint.service,
                ports.join(",")
            ));
        }
    }
    lines
}

#[test]
fn ports_are_matched_by_name_and_absent_conditions_mean_ready() {
    let target = "targetRef: {kind: Pod, name: p1}";
    for (ports, conditions, expected) in [
        (
            "[{name: http, port: 8080}, {name: admin, port: 9090}]",
            "{}",
            "80>8080,81>9090 rs-",
        ),
        (
            "[{name: admin, port: 9090}, {name: other, port: 1}]",
            "{ready: true}",
            "81>9090 rs-",
        ),
        ("[{name: http, port: 8080, protocol: UDP}]", "{}", " rs-"),
        ("[{name: http}]", "{}", " rs-"),
        (
            "[{name: http, port: 8080}]",
            "{ready: false}",
            "80>8080 ---",
        ),
        (
            "[{name: http, port: 8080}]",
            "{ready: false, serving: true, terminating: true}",
            "80>8080 -st",
        ),
    ] {
        let slice = slice(
            "s",
            ports,
            &format!("[{{addresses: [10.1.0.1], {target}, conditions: {conditions}}}]"),
        );
        assert_eq!(members(&[slice]), [format!("a/p1/u1 a/web {expected}")]);
    }
}

#[test]
fn an_endpoint_is_the_pod_it_names_or_whose_address_it_has_else_itself() {
    for (endpoint, expected) in [
        (
            "{addresses: [10.1.0.1], targetRef: {kind: Pod, name: p1}}",
            Some("a/p1/u1"),
        ),
        ("{addresses: [10.1.0.2]}", Some("a/p2/u2")),
        ("{addresses: [10.9.9.9]}", Some("slice/a/s/10.9.9.9")),
        (
            "{addresses: [10.9.9.9], targetRef: {kind: Node, name: n}}",
            Some("slice/a/s/10.9.9.9"),
        ),
        // The pod was recreated with another address, or is gone.
        (
            "{addresses: [10.9.9.9], targetRef: {kind: Pod, name: p1}}",
            None,
        ),
        (
            "{addresses: [10.1.0.9], targetRef: {kind: Pod, name: p9}}",
            None,
        ),
    ] {
        let slice = slice("s", "[{name: http, port: 1}]", &format!("[{endpoint}]"));
        let expected: Vec<_> = expected
            .map(|name| format!("{name} a/web 80>1 rs-"))
            .into_iter()
            .collect();
        assert_eq!(members(&[slice]), expected, "{endpoint}");
    }
}

#[test]
fn several_slices_merge_and_duplicates_collapse() {
    let p1 = "addresses: [10.1.0.1], targetRef: {kind: Pod, name: p1}";
    let slices = [
        slice(
            "s1",
            "[{name: http, port: 8080}]",
            &format!("[{{{p1}}}, {{{p1}}}]"),
        ),
        slice(
            "s2",
            "[{name: http, port: 8080}]",
            &format!("[{{{p1}, conditions: {{ready: false}}}}]"),
        ),
        slice(
            "s3",
            "[{name: admin, port: 9090}]",
            &format!("[{{{p1}}}, {{addresses: [10.1.0.2], targetRef: {{kind: Pod, name: p2}}}}]"),
        ),
    ];
    assert_eq!(
        members(&slices),
        [
            "a/p1/u1 a/web 80>8080,81>9090 rs-",
            "a/p2/u2 a/web 81>9090 rs-"
        ]
    );
}

#[test]
fn slices_of_no_known_service_and_of_names_give_no_endpoints() {
    let stray = objects(
        "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {namespace: a, name: s}, ports: [], endpoints: [{addresses: [10.1.0.1]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {namespace: b, name: s, labels: {kubernetes.io/service-name: web}}, endpoints: [{addresses: [10.1.0.1]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: FQDN, metadata: {namespace: a, name: f, labels: {kubernetes.io/service-name: web}}, endpoints: [{addresses: [example.com]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {namespace: a, name: z, labels: {kubernetes.io/service-name: web}}, ports: null, endpoints: null}",
    );
    assert_eq!(members(&stray), [""; 0]);
}

#[test]
fn endpoints_follow_what_changes_around_them() {
    let base = objects(WEB);
    let target =
        "[{addresses: [10.1.0.1], targetRef: {kind: Pod, name: p1}}, {addresses: [10.9.9.9]}]";
    let slice = slice("s", "[{name: http, port: 8080}]", target);
    let mut world = world(std::iter::once(&slice));
    assert!(
        world.compile().workloads.is_empty(),
        "the Service is not there yet"
    );
    for object in &base {
        world.apply(object);
    }
    let names: Vec<_> = world.compile().workloads.keys().cloned().collect();
    assert_eq!(names, ["a/p1/u1", "a/p2/u2", "slice/a/s/10.9.9.9"]);
    // The address that was nobody's becomes a pod's.
    let newcomer = objects(
        "{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p3, uid: u3}, status: {podIP: 10.9.9.9}}",
    );
    world.apply(&newcomer[0]);
    let compiled = world.compile();
    assert_eq!(compiled.workloads["a/p3/u3"].endpoints.len(), 1);
    assert!(!compiled.workloads.contains_key("slice/a/s/10.9.9.9"));
    // The Service goes, and its endpoints with it.
    world.delete(&base[0].key);
    let compiled = world.compile();
    assert!(
        compiled
            .workloads
            .values()
            .all(|workload| workload.endpoints.is_empty())
    );
    assert_eq!(compiled.workloads.len(), 3);
}

#[test]
fn a_pod_in_slices_of_both_families_is_one_endpoint_and_says_so_only_if_one_is_missing() {
    let base = objects(
        r#"
{apiVersion: v1, kind: Service, metadata: {namespace: a, name: web}, spec: {clusterIPs: [10.0.1.1, "fd00::9"], ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: p1, uid: u1}, status: {podIPs: [{ip: 10.1.0.1}, {ip: "fd00::1"}]}}
"#,
    );
    let slice = |family: &str, address: &str| {
        let yaml = format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: {family}, metadata: {{namespace: a, name: web-{family}, labels: {{kubernetes.io/service-name: web}}}}, ports: [{{port: 80}}], endpoints: [{{addresses: ['{address}'], targetRef: {{kind: Pod, name: p1}}}}]}}"
        );
        objects(&yaml).remove(0)
    };
    let (v4, v6) = (slice("IPv4", "10.1.0.1"), slice("IPv6", "fd00::1"));
    let alone = |family: IpFamily| vec![i32::from(family)];
    for (slices, expected) in [
        (vec![&v4, &v6], vec![]),
        (vec![&v4], alone(IpFamily::Ipv4)),
        (vec![&v6], alone(IpFamily::Ipv6)),
    ] {
        let compiled = fresh(base.iter().chain(slices));
        let endpoints = &compiled.workloads["a/p1/u1"].endpoints;
        assert_eq!(endpoints.len(), 1, "{endpoints:?}");
        assert_eq!(endpoints[0].ports.len(), 1);
        assert_eq!(endpoints[0].families, expected);
    }
    let compiled = fresh(base.iter());
    assert_eq!(compiled.services["a/web"].vips.len(), 2);
}

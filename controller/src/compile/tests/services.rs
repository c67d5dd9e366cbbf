//! Services to Service resources.

use weft_api::config::{AppProtocol, TrafficDistribution};

use super::{compile, objects};

#[test]
fn a_port_is_what_its_app_protocol_says_else_what_its_name_says() {
    use AppProtocol::{H2c, Http, Tcp, Tls, Undeclared};
    for (name, app_protocol, expected) in [
        ("", "", Undeclared),
        ("web", "", Undeclared),
        ("httpx", "", Undeclared),
        ("http", "", Http),
        ("http-admin", "", Http),
        ("grpc-web", "", Http),
        ("grpc-web-1", "", Http),
        ("http2", "", H2c),
        ("h2c-x", "", H2c),
        ("grpc", "", H2c),
        ("grpc-x", "", H2c),
        ("tcp", "", Tcp),
        ("tcp-http", "", Tcp),
        ("mysql", "", Tcp),
        ("redis-1", "", Tcp),
        ("mongo", "", Tcp),
        ("tls", "", Tls),
        ("https-1", "", Tls),
        ("tcp", "http", Http),
        ("x", "HTTP", Http),
        ("x", "kubernetes.io/ws", Http),
        ("x", "kubernetes.io/h2c", H2c),
        ("x", "grpc", H2c),
        ("x", "tcp", Tcp),
        ("x", "https", Tls),
        ("x", "tls", Tls),
        ("x", "kubernetes.io/wss", Tls),
        ("http", "example.com/custom", Undeclared),
    ] {
        let app = if app_protocol.is_empty() {
            String::new()
        } else {
            format!(", appProtocol: {app_protocol}")
        };
        let compiled = compile(&objects(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{namespace: a, name: s}}, spec: {{clusterIP: 10.0.1.1, ports: [{{port: 1, name: \"{name}\"{app}}}]}}}}"
        )));
        assert_eq!(
            compiled.services["a/s"].ports[0].protocol(),
            expected,
            "{name} {app_protocol}"
        );
    }
}

#[test]
fn addresses_and_preferences_are_carried_and_udp_is_left_out() {
    let compiled = compile(&objects(
        r#"
apiVersion: v1
kind: Service
metadata: {namespace: a, name: s}
spec:
  clusterIP: 10.0.1.1
  clusterIPs: [10.0.1.1, "fd00::1"]
  publishNotReadyAddresses: true
  trafficDistribution: PreferClose
  ports: [{port: 53, name: dns, protocol: UDP}, {port: 53, name: dns-tcp}, {port: 9, protocol: SCTP}]
"#,
    ));
    let service = &compiled.services["a/s"];
    assert_eq!(
        service.vips.iter().map(|vip| vip.len()).collect::<Vec<_>>(),
        [4, 16]
    );
    assert!(service.publish_not_ready);
    assert_eq!(
        service.traffic_distribution(),
        TrafficDistribution::PreferSameZone
    );
    assert_eq!(
        service
            .ports
            .iter()
            .map(|p| p.name.as_str())
            .collect::<Vec<_>>(),
        ["dns-tcp"]
    );
}

#[test]
fn a_headless_service_has_no_address_and_an_external_name_is_no_service() {
    let compiled = compile(&[]);
    assert!(compiled.services["shop/headless"].vips.is_empty());
    assert!(!compiled.services.contains_key("shop/alias"));
}

#[test]
fn every_spelling_of_traffic_distribution_is_understood() {
    for (text, expected) in [
        ("PreferSameZone", TrafficDistribution::PreferSameZone),
        ("PreferSameNode", TrafficDistribution::PreferSameNode),
        ("SomethingNew", TrafficDistribution::Any),
    ] {
        let compiled = compile(&objects(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{namespace: a, name: s}}, spec: {{clusterIP: 10.0.1.1, trafficDistribution: {text}}}}}"
        )));
        assert_eq!(compiled.services["a/s"].traffic_distribution(), expected);
    }
}

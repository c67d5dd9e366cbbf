//! A pair of Envoys as sidecars: the client's balances by weight over mTLS to the servers', which
//! forward to the application on loopback. The same work as weft's two proxies do for a weighted
//! HTTPRoute, SPIFFE identities verified on both sides. Envoy writes no access log, its default;
//! weft does, its default.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::Result;
use serde_json::{Value, json};
use weft_certs::{CertificateAuthority, SpiffeId, csr};

/// Where the client's Envoy listens, on loopback.
pub(crate) const CLIENT_PORT: u16 = 10000;
/// Where the servers' Envoys listen for mTLS.
pub(crate) const MTLS_PORT: u16 = 15443;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Writes a root, and a certificate for each side, into `folder`.
pub(crate) fn write_certificates(folder: &Path) -> Result<()> {
    let now = SystemTime::now();
    let ca = CertificateAuthority::generate("cluster.local", now, DAY)?;
    fs::write(folder.join("root.pem"), ca.to_pem().0)?;
    for account in ["client", "server"] {
        let id = SpiffeId::new("cluster.local", "envoy", account)?;
        let request = csr::Request::generate(&id)?;
        let signed = ca.sign(&request.csr_pem, &id, None, now)?;
        fs::write(
            folder.join(format!("{account}.pem")),
            signed.chain_pem.concat(),
        )?;
        fs::write(folder.join(format!("{account}.key")), &request.key_pem)?;
    }
    Ok(())
}

/// Envoy needs `tls_maximum_protocol_version` too in an upstream context: its default is 1.2.
fn tls(folder: &Path, own: &str, peer: &str) -> Value {
    let file = |name: String| json!({"filename": folder.join(name)});
    json!({
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{
            "certificate_chain": file(format!("{own}.pem")),
            "private_key": file(format!("{own}.key")),
        }],
        "validation_context": {
            "trusted_ca": file("root.pem".into()),
            "match_typed_subject_alt_names": [{
                "san_type": "URI",
                "matcher": {"exact": format!("spiffe://cluster.local/ns/envoy/sa/{peer}")},
            }],
        },
        "alpn_protocols": ["http/1.1"],
    })
}

fn context(kind: &str, common: &Value) -> Value {
    let package = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
    let mut typed =
        json!({"@type": format!("{package}.{kind}TlsContext"), "common_tls_context": common});
    if kind == "Downstream" {
        typed["require_client_certificate"] = json!(true);
    }
    json!({"name": "envoy.transport_sockets.tls", "typed_config": typed})
}

fn cluster(name: &str, address: &str, port: u16, tls: Option<Value>) -> Value {
    let socket = json!({"socket_address": {"address": address, "port_value": port}});
    let mut cluster = json!({
        "name": name, "type": "STATIC", "lb_policy": "LEAST_REQUEST", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket}}]}]},
    });
    if let Some(tls) = tls {
        cluster["transport_socket"] = tls;
    }
    cluster
}

fn listener(address: &str, port: u16, route: Value, tls: Option<Value>) -> Value {
    let package = "type.googleapis.com/envoy.extensions";
    let manager = json!({
        "@type": format!("{package}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "bench",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": format!("{package}.filters.http.router.v3.Router")}}],
    });
    let mut chain = json!({"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]});
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    json!({"address": {"socket_address": {"address": address, "port_value": port}}, "filter_chains": [chain]})
}

/// The servers' Envoy: mTLS in, the application on loopback out.
pub(crate) fn server(certificates: &Path) -> Value {
    let tls = context("Downstream", &tls(certificates, "server", "client"));
    let listener = listener(
        "0.0.0.0",
        MTLS_PORT,
        json!({"cluster": "app", "timeout": "0s"}),
        Some(tls),
    );
    json!({"static_resources": {"listeners": [listener], "clusters": [cluster("app", "127.0.0.1", 8080, None)]}})
}

/// The client's Envoy: loopback in, mTLS to two weighted servers out.
pub(crate) fn client(certificates: &Path, servers: &[(String, u32)]) -> Value {
    let common = tls(certificates, "client", "server");
    let mut weights = Vec::new();
    let mut clusters = Vec::new();
    for (n, (address, weight)) in servers.iter().enumerate() {
        let name = format!("v{}", n + 1);
        weights.push(json!({"name": &name, "weight": weight}));
        clusters.push(cluster(
            &name,
            address,
            MTLS_PORT,
            Some(context("Upstream", &common)),
        ));
    }
    let route = json!({"weighted_clusters": {"clusters": weights}, "timeout": "0s"});
    let listener = listener("127.0.0.1", CLIENT_PORT, route, None);
    json!({"static_resources": {"listeners": [listener], "clusters": clusters}})
}

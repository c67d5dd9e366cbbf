//! What Services mean to those outside the mesh. In: Services and their EndpointSlices. Out: the
//! addresses behind each port ([`Backends`]), from which the nodes' rules and the pods' hosts
//! files are made. Pure.

use std::net::IpAddr;

use k8s_openapi::api::{
    core::v1::Service,
    discovery::v1::{Endpoint, EndpointSlice},
};

use super::{
    endpoints::{SERVICE_LABEL, is_headless},
    family::Family,
};

/// A Service with the endpoints behind its ports.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Backends {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Empty for headless Services.
    pub(crate) cluster_ips: Vec<IpAddr>,
    pub(crate) ports: Vec<PortBackends>,
    /// Addresses of all ready endpoints.
    pub(crate) addresses: Vec<IpAddr>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PortBackends {
    /// `tcp` or `udp`.
    pub(crate) protocol: String,
    pub(crate) port: u16,
    pub(crate) endpoints: Vec<(IpAddr, u16)>,
}

/// Joins Services with slices. Where nothing of a family is ready, endpoints of it that still serve
/// while they terminate are taken, as kube-proxy does.
pub(crate) fn backends(services: &[Service], slices: &[EndpointSlice]) -> Vec<Backends> {
    services
        .iter()
        .map(|service| one(service, slices))
        .collect()
}

fn one(service: &Service, slices: &[EndpointSlice]) -> Backends {
    let meta = &service.metadata;
    let name = meta.name.clone().unwrap_or_default();
    let own: Vec<&EndpointSlice> = slices
        .iter()
        .filter(|slice| {
            let labels = slice.metadata.labels.as_ref();
            slice.metadata.namespace == meta.namespace
                && labels.and_then(|l| l.get(SERVICE_LABEL)) == Some(&name)
        })
        .collect();
    let spec = service.spec.as_ref();
    let cluster_ips = if is_headless(service) {
        Vec::new()
    } else {
        let one = spec.and_then(|s| s.cluster_ip.clone());
        let all = spec.and_then(|s| s.cluster_ips.clone()).unwrap_or_default();
        let mut ips: Vec<IpAddr> = one
            .iter()
            .chain(&all)
            .filter_map(|ip| ip.parse().ok())
            .collect();
        ips.dedup();
        ips
    };
    let ports = spec.and_then(|s| s.ports.as_ref()).into_iter().flatten();
    let ports = ports.filter_map(|port| {
        let name = port.name.clone().unwrap_or_default();
        let in_slice = |slice: &EndpointSlice| {
            let mut ports = slice.ports.iter().flatten();
            let found = ports.find(|p| p.name.clone().unwrap_or_default() == name)?;
            u16::try_from(found.port?).ok()
        };
        Some(PortBackends {
            protocol: port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
            port: u16::try_from(port.port).ok()?,
            endpoints: pick(&own, &|slice| in_slice(slice)),
        })
    });
    let mut addresses: Vec<IpAddr> = pick(&own, &|_| Some(0))
        .into_iter()
        .map(|(address, _)| address)
        .collect();
    addresses.dedup();
    Backends {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name,
        cluster_ips,
        ports: ports.collect(),
        addresses,
    }
}

type PortOf<'a> = &'a dyn Fn(&EndpointSlice) -> Option<u16>;

/// The endpoints of each family, IPv4 first, with the port that a slice gives them.
fn pick(slices: &[&EndpointSlice], port: PortOf<'_>) -> Vec<(IpAddr, u16)> {
    let of = |family: Family| {
        let own = slices.iter().filter(|s| s.address_type == family.name());
        pick_in_family(&own.copied().collect::<Vec<_>>(), port)
    };
    [of(Family::V4), of(Family::V6)].concat()
}

/// Ready endpoints, or those that serve while they go.
fn pick_in_family(slices: &[&EndpointSlice], port: PortOf<'_>) -> Vec<(IpAddr, u16)> {
    let all = |accept: &dyn Fn(&Endpoint) -> bool| -> Vec<(IpAddr, u16)> {
        let mut found: Vec<_> = slices
            .iter()
            .filter_map(|slice| Some((slice, port(slice)?)))
            .flat_map(|(slice, port)| slice.endpoints.iter().map(move |e| (e, port)))
            .filter(|(endpoint, _)| accept(endpoint))
            .filter_map(|(endpoint, port)| Some((endpoint.addresses.first()?.parse().ok()?, port)))
            .collect();
        found.sort();
        found.dedup();
        found
    };
    let condition = |endpoint: &Endpoint| endpoint.conditions.clone().unwrap_or_default();
    // Absent means ready, by the API.
    let ready = all(&|endpoint| condition(endpoint).ready.unwrap_or(true));
    if !ready.is_empty() {
        return ready;
    }
    all(&|endpoint| {
        let condition = condition(endpoint);
        condition.serving.unwrap_or(false) && condition.terminating.unwrap_or(false)
    })
}

/// The `/etc/hosts` of a pod: itself, and every Service in all the forms that a cluster's DNS
/// would resolve from its namespace.
pub(crate) fn hosts(
    namespace: &str,
    hostname: &str,
    addresses: &[IpAddr],
    services: &[Backends],
) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost\n");
    for address in addresses {
        text += &format!("{address}\t{hostname}\n");
    }
    // The pod's own namespace first: its short names win over nothing, but read better.
    for service in services {
        let ips = if service.cluster_ips.is_empty() {
            &service.addresses
        } else {
            &service.cluster_ips
        };
        let (name, ns) = (&service.name, &service.namespace);
        let mut names = format!("{name}.{ns}.svc.cluster.local {name}.{ns}.svc {name}.{ns}");
        if ns == namespace {
            names += &format!(" {name}");
        }
        for ip in ips {
            text += &format!("{ip}\t{names}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn joined(cluster_ip: &str, endpoints: serde_json::Value) -> Backends {
        let service = json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIP": cluster_ip, "clusterIPs": [cluster_ip],
                "ports": [{"name": "http", "port": 80}]},
        });
        let slice = json!({
            "metadata": {"name": "web-1", "namespace": "shop",
                "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}, {"name": "other", "port": 1}],
            "endpoints": endpoints,
        });
        let service = serde_json::from_value(service).unwrap();
        backends(&[service], &[serde_json::from_value(slice).unwrap()]).remove(0)
    }

    #[test]
    fn only_ready_endpoints_are_taken_as_long_as_there_is_one() {
        let backends = joined(
            "10.96.0.1",
            json!([
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.0.0.3"]},
            ]),
        );
        let texts: Vec<_> = backends.ports[0]
            .endpoints
            .iter()
            .map(|(a, p)| format!("{a}:{p}"))
            .collect();
        assert_eq!(texts, ["10.0.0.1:8080", "10.0.0.3:8080"]);
    }

    #[test]
    fn where_nothing_is_ready_those_that_still_serve_are_taken() {
        let backends = joined(
            "10.96.0.1",
            json!([
                {"addresses": ["10.0.0.1"], "conditions": {"ready": false, "serving": false}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            ]),
        );
        assert_eq!(
            backends.ports[0].endpoints,
            [("10.0.0.2".parse().unwrap(), 8080)]
        );
    }

    #[test]
    fn hosts_name_services_in_all_forms_and_short_ones_only_at_home() {
        let with_ip = joined("10.96.0.1", json!([]));
        let headless = joined("None", json!([{"addresses": ["10.0.0.1"]}]));
        let at_home = hosts(
            "shop",
            "a",
            &["10.0.0.9".parse().unwrap()],
            std::slice::from_ref(&with_ip),
        );
        assert!(at_home.contains("10.0.0.9\ta\n"));
        assert!(
            at_home.contains("10.96.0.1\tweb.shop.svc.cluster.local web.shop.svc web.shop web\n")
        );
        let abroad = hosts("other", "a", &[], &[with_ip, headless]);
        assert!(abroad.contains("web.shop\n") && !abroad.contains("web\n"));
        assert!(abroad.contains("10.0.0.1\tweb.shop.svc.cluster.local"));
    }

    #[test]
    fn a_family_without_ready_endpoints_takes_those_that_still_serve() {
        let slice = |family: &str, address: &str, ready: bool| {
            json!({
                "metadata": {"name": family, "namespace": "shop",
                    "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": family,
                "ports": [{"name": "", "port": 8080}],
                "endpoints": [{"addresses": [address],
                    "conditions": {"ready": ready, "serving": true, "terminating": !ready}}],
            })
        };
        let service = json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::9"],
                "ports": [{"port": 80}]},
        });
        let slices = [
            slice("IPv6", "fd00::1", false),
            slice("IPv4", "10.0.0.1", true),
        ];
        let slices = slices.map(|slice| serde_json::from_value(slice).unwrap());
        let all = backends(&[serde_json::from_value(service).unwrap()], &slices);
        let texts: Vec<_> = all[0].ports[0]
            .endpoints
            .iter()
            .map(|(address, _)| address.to_string())
            .collect();
        assert_eq!(texts, ["10.0.0.1", "fd00::1"]);
        let names = hosts("shop", "a", &[], &all);
        assert!(names.contains("10.96.0.1\tweb") && names.contains("fd00::9\tweb"));
    }
}

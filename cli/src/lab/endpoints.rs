//! The EndpointSlice controller, and the allocation of clusterIPs. In: Services, pods, nodes'
//! zones. Out: the slices that a Service should have, the address it should get. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use k8s_openapi::{
    api::core::v1::{Pod, Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::{Value, json};

use super::{
    deployments::{is_ready, is_terminating},
    plan::SERVICE_CIDR,
};

/// Label that joins a slice to its Service.
pub(crate) const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Label that says who looks after a slice.
pub(crate) const MANAGED_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// Its value on the lab's slices.
pub(crate) const MANAGER: &str = "weft-lab";

/// The selector of a Service that has one.
pub(crate) fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let selector = service.spec.as_ref()?.selector.as_ref()?;
    (!selector.is_empty()).then_some(selector)
}

/// Whether a Service has no address of its own.
pub(crate) fn is_headless(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// The slices of a Service with a selector: one for each way in which its pods resolve its ports,
/// so that named ports may differ between versions.
pub(crate) fn slices(
    service: &Service,
    pods: &[Pod],
    zone_of: &dyn Fn(&str) -> Option<String>,
) -> Vec<Value> {
    let (Some(selector), Some(spec)) = (selector(service), service.spec.as_ref()) else {
        return Vec::new();
    };
    let (namespace, name) = (
        &service.metadata.namespace,
        service.metadata.name.as_deref(),
    );
    let name = name.unwrap_or_default();
    let ports: Vec<&ServicePort> = spec.ports.iter().flatten().collect();
    let publish = spec.publish_not_ready_addresses.unwrap_or(false);

    let mut groups: BTreeMap<Vec<Option<u16>>, Vec<Value>> = BTreeMap::new();
    for pod in pods
        .iter()
        .filter(|pod| pod.metadata.namespace == *namespace)
    {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        if !selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
        {
            continue;
        }
        let Some(endpoint) = endpoint(pod, publish, zone_of) else {
            continue;
        };
        let resolved = ports.iter().map(|port| resolve(port, pod)).collect();
        groups.entry(resolved).or_default().push(endpoint);
    }
    if groups.is_empty() {
        let unresolved = ports.iter().map(|_| None).collect();
        groups.insert(unresolved, Vec::new());
    }
    let slice = |(index, (resolved, endpoints)): (usize, (Vec<Option<u16>>, Vec<Value>))| {
        let ports: Vec<_> = ports
            .iter()
            .zip(resolved)
            .filter_map(|(port, number)| {
                Some(json!({
                    "name": port.name.clone().unwrap_or_default(),
                    "port": number?,
                    "protocol": port.protocol.as_deref().unwrap_or("TCP"),
                    "appProtocol": port.app_protocol,
                }))
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-{}", index + 1),
                "namespace": namespace,
                "labels": {SERVICE_LABEL: name, MANAGED_LABEL: MANAGER},
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Service", "name": name,
                    "uid": service.metadata.uid, "controller": true,
                }],
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": ports,
        })
    };
    groups.into_iter().enumerate().map(slice).collect()
}

fn endpoint(pod: &Pod, publish: bool, zone_of: &dyn Fn(&str) -> Option<String>) -> Option<Value> {
    let status = pod.status.as_ref()?;
    let address = status.pod_ip.as_deref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let node = pod.spec.as_ref()?.node_name.as_deref();
    let (ready, terminating) = (is_ready(pod), is_terminating(pod));
    Some(json!({
        "addresses": [address],
        "conditions": {
            "ready": publish || (ready && !terminating),
            "serving": publish || ready,
            "terminating": terminating,
        },
        "nodeName": node,
        "zone": node.and_then(zone_of),
        "targetRef": {
            "kind": "Pod",
            "namespace": pod.metadata.namespace,
            "name": pod.metadata.name,
            "uid": pod.metadata.uid,
        },
    }))
}

/// The pod's port to which a Service's port leads.
fn resolve(port: &ServicePort, pod: &Pod) -> Option<u16> {
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            let containers = spec
                .containers
                .iter()
                .chain(spec.init_containers.iter().flatten());
            let ports = containers.flat_map(|container| container.ports.iter().flatten());
            ports
                .into_iter()
                .find(|port| port.name.as_ref() == Some(name))?
                .container_port
        }
    };
    u16::try_from(number).ok()
}

/// Whether a text is an address that a Service may have.
pub(crate) fn in_service_cidr(text: &str) -> bool {
    let (IpAddr::V4(network), Ok(IpAddr::V4(address))) = (SERVICE_CIDR.address, text.parse())
    else {
        return false;
    };
    let shift = 32 - SERVICE_CIDR.prefix;
    u32::from(network) >> shift == u32::from(address) >> shift
}

/// First address that is given out; those before it are left for a DNS server and the like.
const FIRST: u32 = 16;

/// An address for a Service: the same in every lab as long as nobody else has taken it.
pub(crate) fn allocate(namespace: &str, name: &str, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let IpAddr::V4(network) = SERVICE_CIDR.address else {
        return None;
    };
    let size = (1_u32 << (32 - SERVICE_CIDR.prefix)) - 1 - FIRST;
    let hash = format!("{namespace}/{name}")
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
    (0..size)
        .map(|step| {
            let offset = FIRST + (hash % size + step) % size;
            IpAddr::V4(Ipv4Addr::from(u32::from(network) + offset))
        })
        .find(|address| !taken.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(ports: Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "s1"},
            "spec": {"selector": {"app": "web"}, "ports": ports},
        }))
        .unwrap()
    }

    fn pod(name: &str, ip: &str, ready: bool, port: i32, deleted: bool) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
            "spec": {
                "nodeName": "n1",
                "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}],
            },
            "status": {
                "podIP": ip,
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            },
        });
        if deleted {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        serde_json::from_value(pod).unwrap()
    }

    fn zone(node: &str) -> Option<String> {
        (node == "n1").then(|| "zone-1".to_owned())
    }

    #[test]
    fn an_endpoint_says_whether_it_is_ready_serving_or_terminating() {
        let service = service(json!([{"port": 80, "targetPort": "http"}]));
        let pods = [
            pod("a", "10.0.0.1", true, 8080, false),
            pod("b", "10.0.0.2", false, 8080, false),
            pod("c", "10.0.0.3", true, 8080, true),
        ];
        let slices = slices(&service, &pods, &zone);
        assert_eq!(slices.len(), 1);
        let conditions: Vec<_> = (0..3)
            .map(|i| {
                let c = &slices[0]["endpoints"][i]["conditions"];
                (
                    c["ready"] == true,
                    c["serving"] == true,
                    c["terminating"] == true,
                )
            })
            .collect();
        let expected = [
            (true, true, false),
            (false, false, false),
            (false, true, true),
        ];
        assert_eq!(conditions, expected);
        let first = &slices[0]["endpoints"][0];
        assert_eq!(
            (&first["zone"], &first["nodeName"]),
            (&json!("zone-1"), &json!("n1"))
        );
        assert_eq!(first["targetRef"]["name"], "a");
        assert_eq!(slices[0]["ports"][0]["port"], 8080);
    }

    #[test]
    fn pods_that_resolve_a_named_port_differently_get_slices_of_their_own() {
        let service = service(json!([{"name": "w", "port": 80, "targetPort": "http"}]));
        let pods = [
            pod("a", "10.0.0.1", true, 8080, false),
            pod("b", "10.0.0.2", true, 9090, false),
        ];
        let ports: Vec<_> = slices(&service, &pods, &zone)
            .iter()
            .map(|slice| slice["ports"][0]["port"].clone())
            .collect();
        assert_eq!(ports, [json!(8080), json!(9090)]);
    }

    #[test]
    fn a_pod_without_address_of_another_namespace_or_label_is_no_endpoint() {
        let service = service(json!([{"port": 80}]));
        let mut other = pod("a", "10.0.0.1", true, 80, false);
        other.metadata.namespace = Some("other".into());
        let mut unlabelled = pod("b", "10.0.0.2", true, 80, false);
        unlabelled.metadata.labels = None;
        let mut pending = pod("c", "x", true, 80, false);
        pending.status.as_mut().unwrap().pod_ip = None;
        let slices = slices(&service, &[other, unlabelled, pending], &zone);
        assert_eq!(slices[0]["endpoints"], json!([]));
    }

    #[test]
    fn cluster_ips_are_stable_distinct_and_inside_the_cidr() {
        let mut taken = BTreeSet::new();
        for i in 0..500 {
            let address = allocate("shop", &format!("s{i}"), &taken).unwrap();
            assert!(address.to_string().starts_with("10.96."));
            assert!(taken.insert(address));
        }
        let first = allocate("shop", "s0", &BTreeSet::new());
        assert!(first.is_some_and(|address| taken.contains(&address)));
        let again = allocate("shop", "s0", &BTreeSet::from([first.unwrap()]));
        assert_ne!(again, first);
    }
}

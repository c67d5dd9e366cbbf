//! The EndpointSlice controller. In: Services, pods, nodes' zones. Out: the slices that a Service
//! should have. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::core::v1::{Pod, Service, ServicePort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::{Value, json};

use super::{
    deployments::{is_ready, is_terminating},
    family::Family,
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

/// The slices of a Service with a selector: in each of its families one for each way in which its
/// pods resolve its ports, so that named ports may differ between versions. A pod is in the slices
/// of the families that it has an address of.
pub(crate) fn slices(
    service: &Service,
    pods: &[Pod],
    zone_of: &dyn Fn(&str) -> Option<String>,
) -> Vec<Value> {
    let families = service
        .spec
        .as_ref()
        .and_then(|spec| spec.ip_families.as_ref());
    let families = families.into_iter().flatten();
    families
        .filter_map(|name| Family::from_name(name))
        .flat_map(|family| of_family(family, service, pods, zone_of))
        .collect()
}

fn of_family(
    family: Family,
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
        let Some(endpoint) = endpoint(family, pod, publish, zone_of) else {
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
                "name": slice_name(name, index + 1, family),
                "namespace": namespace,
                "labels": {SERVICE_LABEL: name, MANAGED_LABEL: MANAGER},
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Service", "name": name,
                    "uid": service.metadata.uid, "controller": true,
                }],
            },
            "addressType": family.name(),
            "endpoints": endpoints,
            "ports": ports,
        })
    };
    groups.into_iter().enumerate().map(slice).collect()
}

/// No two Services' slices have one name: IPv4's end in a number, IPv6's do not.
fn slice_name(service: &str, number: usize, family: Family) -> String {
    match family {
        Family::V4 => format!("{service}-{number}"),
        Family::V6 => format!("{service}-{number}-ipv6"),
    }
}

fn endpoint(
    family: Family,
    pod: &Pod,
    publish: bool,
    zone_of: &dyn Fn(&str) -> Option<String>,
) -> Option<Value> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    let mut addresses = listed.chain(&status.pod_ip);
    let address = addresses.find(|text| {
        let address = text.parse::<IpAddr>();
        address.is_ok_and(|address| Family::of(address) == family)
    })?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn service(ports: Value) -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "s1"},
            "spec": {"selector": {"app": "web"}, "ports": ports, "ipFamilies": ["IPv4"]},
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
    fn each_family_of_a_service_has_slices_of_the_pods_that_have_it() {
        let mut service = service(json!([{"port": 80, "targetPort": "http"}]));
        service.spec.as_mut().unwrap().ip_families = Some(vec!["IPv6".into(), "IPv4".into()]);
        let mut both = pod("a", "10.0.0.1", true, 8080, false);
        both.status.as_mut().unwrap().pod_ips =
            serde_json::from_value(json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}])).unwrap();
        let pods = [both, pod("b", "10.0.0.2", true, 8080, false)];
        let found: Vec<_> = slices(&service, &pods, &zone)
            .iter()
            .map(|slice| {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let endpoints = slice["endpoints"].as_array().unwrap();
                let addresses = endpoints.iter().map(|e| text(&e["addresses"][0]));
                (
                    text(&slice["metadata"]["name"]),
                    text(&slice["addressType"]),
                    addresses.collect::<Vec<_>>(),
                )
            })
            .collect();
        let expected = [
            ("web-1-ipv6".into(), "IPv6".into(), vec!["fd00::1".into()]),
            (
                "web-1".into(),
                "IPv4".into(),
                vec!["10.0.0.1".into(), "10.0.0.2".into()],
            ),
        ];
        assert_eq!(found, expected);
    }
}

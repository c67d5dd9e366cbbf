//! Whether the mesh knows what the API holds. In: EndpointSlices and Services, the controller's
//! tables, what each proxy has acknowledged. Out: a line for each thing that somebody does not
//! know yet, so that `up` does not return before the first request can succeed. Pure.

use serde_json::Value;
use weft_api::config::IpFamily;

use super::endpoints::SERVICE_LABEL;

/// What the controller shows at `/debug/tables` and `/debug/proxies`.
pub(crate) struct Known<'a> {
    pub(crate) tables: &'a Value,
    pub(crate) proxies: &'a Value,
}

/// Compares what is with what is known.
pub(crate) fn behind<'a>(
    nodes: impl IntoIterator<Item = &'a str>,
    services: &[&Value],
    slices: &[&Value],
    known: &Known<'_>,
) -> Vec<String> {
    let mut lines = Vec::new();
    for service in services
        .iter()
        .filter(|s| s["spec"]["type"] != "ExternalName")
    {
        let name = full_name(&service["metadata"]);
        if known.tables["Service"].get(&name).is_none() {
            lines.push(format!("the controller does not know Service {name} yet"));
        }
    }
    for slice in slices {
        let service = slice["metadata"]["labels"][SERVICE_LABEL]
            .as_str()
            .unwrap_or_default();
        let namespace = slice["metadata"]["namespace"].as_str().unwrap_or_default();
        let service = format!("{namespace}/{service}");
        // A slice can outlive its Service, or be written before it.
        if !services
            .iter()
            .any(|s| full_name(&s["metadata"]) == service)
        {
            continue;
        }
        let family = match slice["addressType"].as_str() {
            Some("IPv6") => IpFamily::Ipv6,
            _ => IpFamily::Ipv4,
        };
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if let Some(pod) = unknown_endpoint(endpoint, family, &service, known) {
                lines.push(format!(
                    "the controller does not know pod {pod} of {service} yet"
                ));
            }
        }
    }
    let proxies: Vec<&Value> = known.proxies.as_array().into_iter().flatten().collect();
    for node in nodes {
        let Some(proxy) = proxies.iter().find(|proxy| proxy["node"] == node) else {
            lines.push(format!(
                "the proxy of {node} is not connected to the controller"
            ));
            continue;
        };
        let types = proxy["types"].as_object().into_iter().flatten();
        let waiting: u64 = types.filter_map(|(_, of)| of["waiting"].as_u64()).sum();
        if waiting > 0 {
            lines.push(format!(
                "the proxy of {node} has not acknowledged {waiting} resources yet"
            ));
        }
    }
    lines
}

fn full_name(metadata: &Value) -> String {
    let text = |field: &str| metadata[field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

/// The pod behind an endpoint that the tables do not show as it is.
fn unknown_endpoint(
    endpoint: &Value,
    family: IpFamily,
    service: &str,
    known: &Known<'_>,
) -> Option<String> {
    let target = &endpoint["targetRef"];
    if target["kind"] != "Pod" {
        return None;
    }
    let pod = full_name(target);
    let uid = target["uid"].as_str().unwrap_or_default();
    let workload = known.tables["Workload"].get(format!("{pod}/{uid}"));
    let endpoints = workload
        .and_then(|w| w["endpoints"].as_array())
        .into_iter()
        .flatten();
    let known = endpoints.into_iter().find(|e| e["service"] == service);
    // One that is not ready need not be known at all.
    let ready = endpoint["conditions"]["ready"] == true;
    let same = known.is_some_and(|known| known["ready"] == true) == ready;
    // None named is all of them.
    let families = known.and_then(|known| known["families"].as_array());
    let in_family = families
        .is_none_or(|named| named.is_empty() || named.iter().any(|n| *n == i32::from(family)));
    (!(same && in_family)).then_some(pod)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn everyone_must_know_every_service_and_endpoint() {
        let service = json!({"metadata": {"namespace": "shop", "name": "web"}, "spec": {}});
        let slice = json!({
            "metadata": {"namespace": "shop", "labels": {SERVICE_LABEL: "web"}},
            "endpoints": [{
                "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-1", "uid": "u"},
            }],
        });
        let tables = |ready: bool| {
            json!({
                "Service": {"shop/web": {}},
                "Workload": {"shop/web-1/u": {
                    "endpoints": [{"service": "shop/web", "ready": ready}],
                }},
            })
        };
        let mut in_ipv6_alone = tables(true);
        in_ipv6_alone["Workload"]["shop/web-1/u"]["endpoints"][0]["families"] =
            json!([i32::from(IpFamily::Ipv6)]);
        let proxy =
            |waiting: u64| json!([{"node": "n1", "types": {"Workload": {"waiting": waiting}}}]);
        let cases = [
            (tables(true), proxy(0), "n1", None),
            (
                tables(false),
                proxy(0),
                "n1",
                Some("does not know pod shop/web-1 of shop/web"),
            ),
            (
                in_ipv6_alone,
                proxy(0),
                "n1",
                Some("does not know pod shop/web-1 of shop/web"),
            ),
            (
                json!({}),
                proxy(0),
                "n1",
                Some("does not know Service shop/web"),
            ),
            (
                tables(true),
                proxy(2),
                "n1",
                Some("has not acknowledged 2 resources"),
            ),
            (
                tables(true),
                proxy(0),
                "n2",
                Some("the proxy of n2 is not connected"),
            ),
        ];
        for (tables, proxies, node, expected) in cases {
            let known = Known {
                tables: &tables,
                proxies: &proxies,
            };
            let lines = behind([node], &[&service], &[&slice], &known);
            match expected {
                None => assert_eq!(lines, [""; 0]),
                Some(text) => assert!(lines[0].contains(text), "{lines:?}"),
            }
        }
    }
}

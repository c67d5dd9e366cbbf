//! The lab's controllers against the API: each reads objects, makes what follows from them, and
//! leaves what is already so. What they decide is in pure modules beside this one.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use weft_source::ObjectKey;

use super::{
    api::{Api, core, key},
    deployments::{self, Step},
    endpoints,
    lab::Lab,
    merge::object_at,
    plan::{Cidr, Plan},
    service_ip,
};

/// Objects of a kind, decoded; what does not decode was refused at apply.
pub(crate) fn typed<T: DeserializeOwned>(
    api: &Api,
    group: &str,
    kind: &str,
) -> Vec<(ObjectKey, T)> {
    api.list(group, kind)
        .into_iter()
        .filter_map(|(key, value)| Some((key, T::deserialize(&*value).ok()?)))
        .collect()
}

/// Without their keys.
pub(super) fn values<T>(pairs: Vec<(ObjectKey, T)>) -> Vec<T> {
    pairs.into_iter().map(|(_, value)| value).collect()
}

/// Namespaces that are used exist, and have their default service account.
pub(super) fn namespaces(api: &Api) -> io::Result<()> {
    let keys = api.keys();
    let mut used: BTreeSet<&str> = keys.iter().map(|key| key.namespace.as_str()).collect();
    used.remove("");
    used.insert("default");
    for name in used {
        let namespace = core("Namespace", "", name);
        if api.get(&namespace).is_none() {
            let object =
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            api.put(&namespace, object)?;
        }
    }
    for (namespace, _) in api.list("", "Namespace") {
        let account = core("ServiceAccount", &namespace.name, "default");
        if api.get(&account).is_none() {
            let object = json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": "default", "namespace": namespace.name},
            });
            api.put(&account, object)?;
        }
    }
    Ok(())
}

/// Services have the families and addresses that they ask for.
pub(super) fn cluster_ips(api: &Api, plan: &Plan) -> io::Result<()> {
    let services = api.list("", "Service");
    let named = |service: &serde_json::Value| -> Vec<IpAddr> {
        let texts = service_ip::named(&service["spec"]).into_iter();
        texts.filter_map(|text| text.parse().ok()).collect()
    };
    let mut taken: BTreeSet<IpAddr> = services.iter().flat_map(|(_, s)| named(s)).collect();
    for (key, service) in &services {
        let spec = &service["spec"];
        let fields = match service_ip::fill(&key.namespace, &key.name, spec, plan, &taken) {
            Ok(Some(fields)) => fields,
            Ok(None) => continue,
            Err(why) => {
                tracing::error!(service = %key, why, "the Service gets no address");
                continue;
            }
        };
        api.update(key, |service| {
            object_at(service, &["spec"]).extend(fields);
            taken.extend(named(service));
            weft_source::defaults::apply(service);
        })?;
    }
    Ok(())
}

pub(super) fn run_deployments(api: &Api) -> anyhow::Result<()> {
    let pods = values(typed::<Pod>(api, "", "Pod"));
    for (deployment_key, deployment) in typed::<Deployment>(api, "apps", "Deployment") {
        let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
        let owned: Vec<Pod> = pods
            .iter()
            .filter(|pod| is_owned(pod, uid))
            .cloned()
            .collect();
        for step in deployments::steps(&deployment, &owned) {
            match step {
                Step::Create(pod) => {
                    let name = pod["metadata"]["name"]
                        .as_str()
                        .unwrap_or_default()
                        .to_owned();
                    api.put(&core("Pod", &deployment_key.namespace, &name), pod)?;
                }
                Step::Delete(name) => {
                    delete_pod(api, &core("Pod", &deployment_key.namespace, &name))?;
                }
            }
        }
        let status = deployments::status(&deployment, &owned);
        api.update(&deployment_key, |object| object["status"] = status)?;
    }
    Ok(())
}

fn is_owned(pod: &Pod, uid: &str) -> bool {
    pod.metadata
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.uid == uid)
}

/// Marks a pod as being deleted; whoever runs it removes it. False if there is none.
pub(crate) fn delete_pod(api: &Api, key: &ObjectKey) -> io::Result<bool> {
    let Some(pod) = api.get(key) else {
        return Ok(false);
    };
    if pod["spec"]["nodeName"].is_null() {
        return api.remove(key);
    }
    api.mark_deleted(key)
}

/// Deletes an object as the API would; pods take their time. False if there is none.
pub(crate) fn delete(api: &Api, key: &ObjectKey) -> io::Result<bool> {
    if key.group.is_empty() && key.kind == "Pod" {
        return delete_pod(api, key);
    }
    if key.group.is_empty() && key.kind == "Namespace" {
        for inner in api
            .keys()
            .iter()
            .filter(|inner| inner.namespace == key.name)
        {
            delete(api, inner)?;
        }
    }
    api.remove(key)
}

/// Deletes what is owned by something that is gone.
pub(super) fn collect_garbage(api: &Api) -> io::Result<()> {
    let keys = api.keys();
    let uids: BTreeSet<String> = keys
        .iter()
        .filter_map(|key| Some(api.get(key)?["metadata"]["uid"].as_str()?.to_owned()))
        .collect();
    for key in &keys {
        let Some(object) = api.get(key) else { continue };
        let owners = object["metadata"]["ownerReferences"]
            .as_array()
            .into_iter()
            .flatten();
        let owners: Vec<_> = owners.filter_map(|owner| owner["uid"].as_str()).collect();
        if !owners.is_empty() && !owners.iter().any(|uid| uids.contains(*uid)) {
            delete(api, key)?;
        }
    }
    Ok(())
}

pub(super) fn endpoint_slices(api: &Api, plan: &Plan) -> io::Result<()> {
    const GROUP: &str = "discovery.k8s.io";
    let pods = values(typed::<Pod>(api, "", "Pod"));
    let zone_of = |node: &str| plan.node(node).map(|node| node.zone.clone());
    let existing = api.list(GROUP, "EndpointSlice");
    for (service_key, service) in typed::<Service>(api, "", "Service") {
        if endpoints::selector(&service).is_none() {
            continue;
        }
        let ours = |managed: bool| {
            let existing = existing.iter().filter(|(key, slice)| {
                let labels = &slice["metadata"]["labels"];
                key.namespace == service_key.namespace
                    && labels[endpoints::SERVICE_LABEL] == service_key.name
                    && (labels[endpoints::MANAGED_LABEL] == endpoints::MANAGER) == managed
            });
            existing.map(|(key, _)| key.clone()).collect::<Vec<_>>()
        };
        let mut stale: BTreeSet<ObjectKey> = ours(true).into_iter().collect();
        // Slices that the user wrote take the place of the lab's.
        if ours(false).is_empty() {
            for slice in endpoints::slices(&service, &pods, &zone_of) {
                let name = slice["metadata"]["name"].as_str().unwrap_or_default();
                let slice_key = key(GROUP, "EndpointSlice", &service_key.namespace, name);
                stale.remove(&slice_key);
                api.put(&slice_key, slice)?;
            }
        }
        for slice in stale {
            api.remove(&slice)?;
        }
    }
    Ok(())
}

pub(super) fn unschedulable(api: &Api, key: &ObjectKey, message: &str) -> io::Result<()> {
    api.update(key, |pod| {
        pod["status"] = json!({
            "phase": "Pending",
            "reason": "Unschedulable",
            "message": message,
            "conditions": [{
                "type": "PodScheduled", "status": "False",
                "reason": "Unschedulable", "message": message,
            }],
        });
    })
    .map(|_| ())
}

pub(super) fn node_labels<'a>(name: &'a str, zone: &'a str) -> BTreeMap<&'static str, &'a str> {
    BTreeMap::from([
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("topology.kubernetes.io/region", "lab"),
        ("topology.kubernetes.io/zone", zone),
    ])
}

/// Writes the lab's Node objects.
pub(crate) fn nodes(lab: &Lab) -> io::Result<()> {
    for node in &lab.plan.nodes {
        let cidrs: Vec<_> = node.pod_cidrs.iter().map(ToString::to_string).collect();
        let internal =
            |cidr: &Cidr| json!({"type": "InternalIP", "address": cidr.address.to_string()});
        let mut addresses: Vec<_> = node.addresses.iter().map(internal).collect();
        addresses.push(json!({"type": "Hostname", "address": node.name}));
        let object = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node.name, "labels": node_labels(&node.name, &node.zone)},
            "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
            "status": {
                "addresses": addresses,
                "conditions": [{"type": "Ready", "status": "True", "reason": "LabReady"}],
            },
        });
        lab.api.put(&core("Node", "", &node.name), object)?;
    }
    Ok(())
}

//! Defaults of Kubernetes' own kinds.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::{child, child_or_new, default, each};

type Object = Map<String, Value>;

pub(super) fn namespace(object: &mut Object, name: &str) {
    if let Some(labels) = child(object, "metadata").and_then(|m| child_or_new(m, "labels")) {
        labels.insert("kubernetes.io/metadata.name".into(), json!(name));
    }
    if let Some(spec) = child_or_new(object, "spec") {
        default(spec, "finalizers", json!(["kubernetes"]));
    }
    if let Some(status) = child_or_new(object, "status") {
        default(status, "phase", json!("Active"));
    }
}

pub(super) fn pod(object: &mut Object) {
    if let Some(spec) = child(object, "spec") {
        // Admission gives pods, but not templates, their namespace's service account.
        let legacy = spec
            .get("serviceAccount")
            .filter(|v| v.is_string())
            .cloned();
        default(
            spec,
            "serviceAccountName",
            legacy.unwrap_or_else(|| json!("default")),
        );
        if let Some(name) = spec.get("serviceAccountName").cloned() {
            default(spec, "serviceAccount", name);
        }
        pod_spec(spec);
    }
    if let Some(status) = child_or_new(object, "status") {
        default(status, "phase", json!("Pending"));
    }
}

pub(super) fn deployment(object: &mut Object) {
    let Some(spec) = child(object, "spec") else {
        return;
    };
    default(spec, "replicas", json!(1));
    default(spec, "revisionHistoryLimit", json!(10));
    default(spec, "progressDeadlineSeconds", json!(600));
    if let Some(strategy) = child_or_new(spec, "strategy") {
        default(strategy, "type", json!("RollingUpdate"));
        if strategy.get("type") == Some(&json!("RollingUpdate"))
            && let Some(rolling) = child_or_new(strategy, "rollingUpdate")
        {
            default(rolling, "maxUnavailable", json!("25%"));
            default(rolling, "maxSurge", json!("25%"));
        }
    }
    if let Some(template) = child(spec, "template").and_then(|t| child(t, "spec")) {
        pod_spec(template);
    }
}

pub(super) fn service(object: &mut Object) {
    let Some(spec) = child(object, "spec") else {
        return;
    };
    default(spec, "type", json!("ClusterIP"));
    default(spec, "sessionAffinity", json!("None"));
    if spec.get("sessionAffinity") == Some(&json!("ClientIP"))
        && let Some(client) =
            child_or_new(spec, "sessionAffinityConfig").and_then(|c| child_or_new(c, "clientIP"))
    {
        default(client, "timeoutSeconds", json!(10800));
    }
    for port in each(spec, "ports") {
        default(port, "protocol", json!("TCP"));
        if port.get("targetPort") == Some(&json!(0)) || port.get("targetPort") == Some(&json!("")) {
            port.remove("targetPort");
        }
        if let Some(number) = port.get("port").cloned() {
            default(port, "targetPort", number);
        }
    }
    let kind = spec
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if kind == "ExternalName" {
        return;
    }
    default(spec, "internalTrafficPolicy", json!("Cluster"));
    if kind != "ClusterIP" {
        default(spec, "externalTrafficPolicy", json!("Cluster"));
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", json!(true));
    }
    cluster_ips(spec);
}

/// `clusterIP` and `clusterIPs` mirror each other, and the families follow from the addresses.
fn cluster_ips(spec: &mut Object) {
    let one = spec
        .get("clusterIP")
        .and_then(Value::as_str)
        .filter(|ip| !ip.is_empty());
    if let Some(ip) = one.map(str::to_owned) {
        default(spec, "clusterIPs", json!([ip]));
    }
    let first = spec
        .get("clusterIPs")
        .and_then(|ips| ips.get(0))
        .filter(|ip| ip.is_string());
    if let Some(first) = first.cloned() {
        default(spec, "clusterIP", first);
    }
    let Some(ips) = spec.get("clusterIPs").and_then(Value::as_array) else {
        return;
    };
    let families: Option<Vec<_>> = ips
        .iter()
        .map(|ip| match ip.as_str()?.parse().ok()? {
            IpAddr::V4(_) => Some("IPv4"),
            IpAddr::V6(_) => Some("IPv6"),
        })
        .collect();
    if let Some(families) = families.filter(|f| !f.is_empty()) {
        let policy = if families.len() == 1 {
            "SingleStack"
        } else {
            "RequireDualStack"
        };
        default(spec, "ipFamilies", json!(families));
        default(spec, "ipFamilyPolicy", json!(policy));
    }
}

pub(super) fn endpoint_slice(object: &mut Object) {
    for port in each(object, "ports") {
        default(port, "name", json!(""));
        default(port, "protocol", json!("TCP"));
    }
}

fn pod_spec(spec: &mut Object) {
    default(spec, "restartPolicy", json!("Always"));
    default(spec, "terminationGracePeriodSeconds", json!(30));
    default(spec, "dnsPolicy", json!("ClusterFirst"));
    default(spec, "schedulerName", json!("default-scheduler"));
    default(spec, "enableServiceLinks", json!(true));
    default(spec, "securityContext", json!({}));
    let host_network = spec.get("hostNetwork") == Some(&json!(true));
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in each(spec, list) {
            self::container(container, host_network);
        }
    }
}

fn container(container: &mut Object, host_network: bool) {
    default(
        container,
        "terminationMessagePath",
        json!("/dev/termination-log"),
    );
    default(container, "terminationMessagePolicy", json!("File"));
    default(container, "resources", json!({}));
    if let Some(image) = container.get("image").and_then(Value::as_str) {
        let policy = if is_latest(image) {
            "Always"
        } else {
            "IfNotPresent"
        };
        default(container, "imagePullPolicy", json!(policy));
    }
    for port in each(container, "ports") {
        default(port, "protocol", json!("TCP"));
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            default(port, "hostPort", number);
        }
    }
    for variable in each(container, "env") {
        if let Some(field) = child(variable, "valueFrom").and_then(|v| child(v, "fieldRef")) {
            default(field, "apiVersion", json!("v1"));
        }
    }
    for name in ["readinessProbe", "livenessProbe", "startupProbe"] {
        if let Some(probe) = child(container, name) {
            default(probe, "timeoutSeconds", json!(1));
            default(probe, "periodSeconds", json!(10));
            default(probe, "successThreshold", json!(1));
            default(probe, "failureThreshold", json!(3));
            handler(probe);
        }
    }
    if let Some(lifecycle) = child(container, "lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(hook) = child(lifecycle, name) {
                handler(hook);
            }
        }
    }
}

fn handler(handler: &mut Object) {
    if let Some(http) = child(handler, "httpGet") {
        default(http, "path", json!("/"));
        default(http, "scheme", json!("HTTP"));
    }
    if let Some(grpc) = child(handler, "grpc") {
        default(grpc, "service", json!(""));
    }
}

/// Whether an image reference has the tag `latest`, or neither tag nor digest.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

//! What the admin interface shows of pods and tunnels. In flow the pods of the moment, out flow
//! JSON documents.

use std::time::SystemTime;

use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::pods::{Pod, Pods};

/// `/pods`: pods held, with addresses, identity, and their certificate's dates.
pub fn pods(pods: &Pods) -> Value {
    sorted(pods).iter().map(|pod| describe(pod)).collect()
}

/// `/tunnels`: for each pod, its open tunnels and their streams.
pub fn tunnels(pods: &Pods) -> Value {
    sorted(pods)
        .iter()
        .map(|pod| {
            json!({
                "pod": pod.name(),
                "sandbox": pod.info().sandbox,
                "outbound": pod.connector().pool().stats(),
                "http_backends": pod.http().backend_connections(),
            })
        })
        .collect()
}

fn sorted(pods: &Pods) -> Vec<std::sync::Arc<Pod>> {
    let mut all = pods.all();
    all.sort_by_key(|pod| pod.name());
    all
}

fn describe(pod: &Pod) -> Value {
    let info = pod.info();
    let status = pod.identity().status();
    let svid = pod.identity().svid().svid();
    json!({
        "pod": pod.name(),
        "sandbox": info.sandbox,
        "uid": info.uid,
        "service_account": info.service_account,
        "addresses": info.addresses,
        "identity": pod.spiffe_id().as_str(),
        "mtls": if pod.is_strict() { "strict" } else { "permissive" },
        "accepting": pod.is_accepting(),
        "draining": pod.is_draining(),
        "open": pod.open(),
        "certificate": svid.map(|svid| json!({
            "not_before": date(svid.not_before()),
            "not_after": date(svid.not_after()),
        })),
        "certificate_error": status.error,
    })
}

fn date(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .format(&Rfc3339)
        .unwrap_or_default()
}

//! Waiting until workloads run as they are declared. In: objects of the API. Out: what is missing,
//! in words; pure but for the loop that asks.

use std::time::Duration;

use anyhow::bail;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use weft_api::names::SYSTEM_NAMESPACE;

use super::{
    api::{Cluster, path},
    object::{is_ready, list, name, number, text},
};

/// How often the API is asked.
const EVERY: Duration = Duration::from_millis(500);

/// `90s`, `5m`.
///
/// # Errors
/// Says what it takes.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (number, factor) = match (text.strip_suffix('s'), text.strip_suffix('m')) {
        (Some(number), _) => (number, 1),
        (_, Some(number)) => (number, 60),
        _ => (text, 0),
    };
    match number.parse::<u32>() {
        Ok(number) if factor > 0 => Ok(Duration::from_secs(u64::from(number) * factor)),
        _ => Err("give seconds or minutes: 90s, 5m".to_owned()),
    }
}

/// Waits until all Deployments and DaemonSets among the objects run.
pub(crate) async fn wait(
    cluster: &Cluster,
    objects: &[Value],
    timeout: Duration,
) -> anyhow::Result<()> {
    let until = Instant::now() + timeout;
    let mut said = String::new();
    loop {
        let mut lacking = Vec::new();
        for object in objects {
            if matches!(text(object, "/kind"), "Deployment" | "DaemonSet") {
                let now = cluster.get(&path(object)).await?;
                lacking.extend(missing(text(object, "/kind"), name(object), now.as_ref()));
            }
        }
        if lacking.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            let why = reasons(cluster).await?;
            bail!(
                "not all of weft runs after {} s: {}\n{}",
                timeout.as_secs(),
                lacking.join("; "),
                why.join("\n")
            );
        }
        let lacking = lacking.join("; ");
        if lacking != said {
            println!("waiting: {lacking}");
            said = lacking;
        }
        sleep(EVERY).await;
    }
}

/// What a workload lacks of being rolled out.
pub(crate) fn missing(kind: &str, name: &str, object: Option<&Value>) -> Option<String> {
    let Some(object) = object else {
        return Some(format!("{name} is not there"));
    };
    if number(object, "/status/observedGeneration") < number(object, "/metadata/generation") {
        return Some(format!("{name} was not looked at yet"));
    }
    let (wanted, updated, ready) = if kind == "DaemonSet" {
        (
            number(object, "/status/desiredNumberScheduled"),
            number(object, "/status/updatedNumberScheduled"),
            number(object, "/status/numberAvailable"),
        )
    } else {
        (
            object
                .pointer("/spec/replicas")
                .and_then(Value::as_i64)
                .unwrap_or(1),
            number(object, "/status/updatedReplicas"),
            number(object, "/status/availableReplicas"),
        )
    };
    if updated < wanted {
        return Some(format!("{name}: {updated} of {wanted} are new"));
    }
    if ready < wanted {
        return Some(format!("{name}: {ready} of {wanted} are ready"));
    }
    // Those of the version before end last.
    let all = number(object, "/status/replicas");
    (kind == "Deployment" && all > wanted).then(|| format!("{name}: {} old ones end", all - wanted))
}

/// Why pods of weft's are not ready, a line each.
async fn reasons(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let pods = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/pods");
    let pods = cluster.list(&pods).await?.unwrap_or_default();
    Ok(pods
        .iter()
        .filter(|pod| !is_ready(pod))
        .map(|pod| {
            let what = reason(pod);
            format!(
                "  {} on {}: {what}; kubectl -n {SYSTEM_NAMESPACE} logs {}",
                name(pod),
                text(pod, "/spec/nodeName"),
                name(pod)
            )
        })
        .collect())
}

/// Why a pod is not ready, as far as its status tells.
pub(crate) fn reason(pod: &Value) -> String {
    for container in list(pod, "/status/containerStatuses") {
        for state in ["waiting", "terminated"] {
            if let Some(state) = container.pointer(&format!("/state/{state}")) {
                let message = text(state, "/message");
                let colon = if message.is_empty() { "" } else { ": " };
                return format!("{}{colon}{message}", text(state, "/reason"));
            }
        }
    }
    let conditions = list(pod, "/status/conditions");
    let unmet = conditions.iter().find(|condition| {
        text(condition, "/status") != "True" && !text(condition, "/message").is_empty()
    });
    match unmet {
        Some(condition) => text(condition, "/message").to_owned(),
        None => format!("{}, not ready", text(pod, "/status/phase").to_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_workload_is_rolled_out_when_all_of_it_is_new_and_ready() {
        let daemons = |wanted: u32, updated: u32, available: u32, observed: u32| {
            json!({"metadata": {"generation": 2}, "status": {"observedGeneration": observed,
                "desiredNumberScheduled": wanted, "updatedNumberScheduled": updated, "numberAvailable": available}})
        };
        let deployment = |updated: u32, available: u32, all: u32| {
            json!({"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": {"observedGeneration": 2,
                "updatedReplicas": updated, "availableReplicas": available, "replicas": all}})
        };
        for (kind, object, lacks) in [
            ("DaemonSet", None, Some("x is not there")),
            (
                "DaemonSet",
                Some(daemons(2, 2, 2, 1)),
                Some("x was not looked at yet"),
            ),
            (
                "DaemonSet",
                Some(daemons(2, 1, 2, 2)),
                Some("x: 1 of 2 are new"),
            ),
            (
                "DaemonSet",
                Some(daemons(2, 2, 1, 2)),
                Some("x: 1 of 2 are ready"),
            ),
            ("DaemonSet", Some(daemons(2, 2, 2, 2)), None),
            ("DaemonSet", Some(daemons(0, 0, 0, 2)), None),
            (
                "Deployment",
                Some(deployment(1, 2, 3)),
                Some("x: 1 of 2 are new"),
            ),
            (
                "Deployment",
                Some(deployment(2, 1, 2)),
                Some("x: 1 of 2 are ready"),
            ),
            (
                "Deployment",
                Some(deployment(2, 2, 3)),
                Some("x: 1 old ones end"),
            ),
            ("Deployment", Some(deployment(2, 2, 2)), None),
        ] {
            assert_eq!(
                missing(kind, "x", object.as_ref()).as_deref(),
                lacks,
                "{object:?}"
            );
        }
    }

    #[test]
    fn a_pod_says_why_it_is_not_ready() {
        for (status, says) in [
            (
                json!({"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]}),
                "ErrImagePull: no such image",
            ),
            (
                json!({"containerStatuses": [{"state": {"terminated": {"reason": "Error"}}}]}),
                "Error",
            ),
            (
                json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}]}),
                "0/2 nodes are available",
            ),
            (
                json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}),
                "running, not ready",
            ),
        ] {
            assert_eq!(reason(&json!({"status": status})), says);
        }
    }

    #[test]
    fn times_are_seconds_or_minutes() {
        for (text, seconds) in [
            ("90s", Some(90)),
            ("5m", Some(300)),
            ("5", None),
            ("m", None),
            ("1h", None),
            ("-1s", None),
        ] {
            assert_eq!(
                duration(text).ok().map(|time| time.as_secs()),
                seconds,
                "{text}"
            );
        }
    }
}

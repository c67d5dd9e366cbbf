//! `weft lab exec`: becomes a command in a pod.

use std::{ffi::OsString, process::ExitCode};

use anyhow::bail;
use serde_json::Value;

use super::{client, paths::Paths, preflight, shim, up};

/// `weft lab exec`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// NS/POD, or NS/DEPLOYMENT for its first pod; without NS, of the namespace `default`.
    #[arg(value_name = "NS/POD")]
    pub(crate) target: String,
    /// The container, of which it gets the environment [default: the first].
    #[arg(short, long)]
    pub(crate) container: Option<String>,
    /// The command.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// Exit code of a command that can't be run, as shells have it.
const CANNOT_RUN: u8 = 127;

/// Runs the command; returns only if that fails.
pub(crate) fn run(lab: &str, args: &Args) -> anyhow::Result<ExitCode> {
    if let Err(why) = preflight::linux_and_root() {
        return Ok(up::cannot(&why));
    }
    let pod = find_pod(lab, &args.target)?;
    let (namespace, name) = identity(&pod);
    let container = container(&pod, args.container.as_deref())?;
    let file = Paths::of(lab).container(namespace, name, &container);
    if !file.exists() {
        let why = pod["status"]["message"]
            .as_str()
            .unwrap_or("it has no network yet");
        bail!("pod {namespace}/{name} can't be entered: {why}");
    }
    let error = shim::run(&file, &args.command);
    eprintln!("weft: {namespace}/{name}: {error:#}");
    Ok(ExitCode::from(CANNOT_RUN))
}

/// Namespace and name.
pub(crate) fn identity(object: &Value) -> (&str, &str) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    (text("namespace"), text("name"))
}

/// The pod that a target names: itself, or a Deployment's first.
pub(crate) fn find_pod(lab: &str, target: &str) -> anyhow::Result<Value> {
    let (namespace, name) = target.split_once('/').unwrap_or(("default", target));
    let pods = client::objects(lab, "pods", Some(namespace), None)?;
    match choose(pods, name) {
        Some(pod) => Ok(pod),
        None => {
            bail!("there is no pod or Deployment {namespace}/{name}: see `weft lab get pods -A`")
        }
    }
}

/// The pod of that name, else of a Deployment's pods the first that is ready.
fn choose(pods: Vec<Value>, name: &str) -> Option<Value> {
    let owned = |pod: &Value| {
        let mut owners = pod["metadata"]["ownerReferences"]
            .as_array()
            .into_iter()
            .flatten();
        owners.any(|owner| owner["kind"] == "Deployment" && owner["name"] == name)
    };
    let rank = |pod: &Value| {
        let ready = super::view::pod_row(pod).ready;
        let terminating = !pod["metadata"]["deletionTimestamp"].is_null();
        (pod["metadata"]["name"] != name, terminating, !ready)
    };
    let fits = pods
        .into_iter()
        .filter(|pod| pod["metadata"]["name"] == name || owned(pod));
    fits.min_by_key(rank)
}

/// A container of the pod: the one asked for, the annotated default, the first.
pub(crate) fn container(pod: &Value, asked: Option<&str>) -> anyhow::Result<String> {
    let names: Vec<&str> = ["containers", "initContainers"]
        .iter()
        .filter_map(|list| pod["spec"][list].as_array())
        .flatten()
        .filter_map(|container| container["name"].as_str())
        .collect();
    let annotated =
        pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    match asked {
        Some(asked) if !names.contains(&asked) => {
            bail!(
                "there is no container {asked}: the pod has {}",
                names.join(", ")
            )
        }
        Some(asked) => Ok(asked.to_owned()),
        None => Ok(annotated
            .or(names.first().copied())
            .unwrap_or_default()
            .to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, owner: &str, ready: bool) -> Value {
        json!({
            "metadata": {"name": name, "ownerReferences": [{"kind": "Deployment", "name": owner}]},
            "status": {"conditions": [
                {"type": "Ready", "status": if ready { "True" } else { "False" }},
            ]},
        })
    }

    #[test]
    fn a_deployments_name_means_its_first_ready_pod() {
        let pods = vec![
            pod("web-1", "web", false),
            pod("web-2", "web", true),
            pod("web", "x", false),
        ];
        let name = |name: &str| {
            choose(pods.clone(), name)
                .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
        };
        assert_eq!(name("web-1").as_deref(), Some("web-1"));
        assert_eq!(name("web").as_deref(), Some("web"));
        assert_eq!(name("x").as_deref(), Some("web"));
        assert_eq!(
            choose(pods[..2].to_vec(), "web").unwrap()["metadata"]["name"],
            "web-2"
        );
        assert_eq!(name("y"), None);
    }
}

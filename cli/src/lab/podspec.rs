//! From a Pod object to what the lab runs. In: the pod, and the addresses it got. Out: per
//! container the command, environment and policies, or an error that names the container.
//! Pure.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};

use super::probe::ProbePlan;

/// When a container that ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    /// Whether a container that ended so is started again.
    pub(crate) fn restarts(self, success: bool) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => !success,
            Self::Never => false,
        }
    }
}

/// What runs before a container is stopped.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PreStop {
    Exec(Vec<String>),
    Sleep(Duration),
}

/// One container, ready to be run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ContainerPlan {
    pub(crate) name: String,
    pub(crate) command: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) working_dir: Option<PathBuf>,
    pub(crate) startup: Option<ProbePlan>,
    pub(crate) readiness: Option<ProbePlan>,
    pub(crate) liveness: Option<ProbePlan>,
    pub(crate) pre_stop: Option<PreStop>,
    /// Of the pod; `Always` for an init container that goes on running (a native sidecar).
    pub(crate) restart: RestartPolicy,
}

/// A pod, ready to be run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PodPlan {
    /// To be run one after the other, each to its end.
    pub(crate) init: Vec<ContainerPlan>,
    /// Init containers that go on running come first.
    pub(crate) containers: Vec<ContainerPlan>,
    pub(crate) hostname: String,
    pub(crate) grace: Duration,
}

/// Kubernetes's default for `terminationGracePeriodSeconds`.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

/// Plans a pod.
pub(crate) fn plan(pod: &Pod, addresses: &[IpAddr], node: &str) -> Result<PodPlan, String> {
    let spec = pod.spec.as_ref().ok_or("has no spec")?;
    let restart = match spec.restart_policy.as_deref() {
        None | Some("Always") => RestartPolicy::Always,
        Some("OnFailure") => RestartPolicy::OnFailure,
        Some("Never") => RestartPolicy::Never,
        Some(other) => {
            return Err(format!("spec.restartPolicy {other:?} is unknown"));
        }
    };
    if spec.containers.is_empty() {
        return Err("has no containers".into());
    }
    let context = Context {
        pod,
        addresses,
        node,
    };
    let plan_one = |container: &Container, restart| {
        plan_container(&context, container, restart)
            .map_err(|why| format!("container {} {why}", container.name))
    };
    let mut init = Vec::new();
    let mut containers = Vec::new();
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            containers.push(plan_one(container, RestartPolicy::Always)?);
        } else if restart == RestartPolicy::Never {
            init.push(plan_one(container, RestartPolicy::Never)?);
        } else {
            init.push(plan_one(container, RestartPolicy::OnFailure)?);
        }
    }
    for container in &spec.containers {
        containers.push(plan_one(container, restart)?);
    }
    Ok(PodPlan {
        init,
        containers,
        hostname: spec
            .hostname
            .clone()
            .or_else(|| pod.metadata.name.clone())
            .unwrap_or_default()
            .chars()
            .take(63)
            .collect(),
        grace: spec
            .termination_grace_period_seconds
            .map_or(DEFAULT_GRACE, |s| {
                Duration::from_secs(s.try_into().unwrap_or(0))
            }),
    })
}

struct Context<'a> {
    pod: &'a Pod,
    addresses: &'a [IpAddr],
    node: &'a str,
}

fn plan_container(
    context: &Context<'_>,
    container: &Container,
    restart: RestartPolicy,
) -> Result<ContainerPlan, String> {
    let command = container.command.clone().unwrap_or_default();
    if command.is_empty() {
        return Err(
            "has no command: there are no images in the lab, so say which program of this machine \
             to run (`command: [\"weft-echo\", \"serve\"]`)"
                .into(),
        );
    }
    if container
        .env_from
        .as_ref()
        .is_some_and(|from| !from.is_empty())
    {
        return Err(
            "has envFrom, which the lab does not support: write the variables under env".into(),
        );
    }
    let mut env = BTreeMap::new();
    for variable in container.env.iter().flatten() {
        let value = value_of(context, variable)?;
        let value = expand(&value, &env);
        env.insert(variable.name.clone(), value);
    }
    let args = container.args.iter().flatten();
    let command = command
        .iter()
        .chain(args)
        .map(|word| expand(word, &env))
        .collect();
    let probe = |probe: &Option<_>, field: &str| {
        probe
            .as_ref()
            .map(|probe| ProbePlan::new(probe, container))
            .transpose()
            .map_err(|why| format!("has a {field} that can't be run: {why}"))
    };
    let hook = container
        .lifecycle
        .as_ref()
        .and_then(|hooks| hooks.pre_stop.as_ref());
    let pre_stop = match hook {
        None => None,
        Some(hook) => Some(match (&hook.exec, &hook.sleep) {
            (Some(exec), _) => PreStop::Exec(exec.command.clone().unwrap_or_default()),
            (_, Some(sleep)) => {
                PreStop::Sleep(Duration::from_secs(sleep.seconds.try_into().unwrap_or(0)))
            }
            _ => return Err("has lifecycle.preStop: the lab knows exec and sleep".into()),
        }),
    };
    Ok(ContainerPlan {
        name: container.name.clone(),
        command,
        startup: probe(&container.startup_probe, "startupProbe")?,
        readiness: probe(&container.readiness_probe, "readinessProbe")?,
        liveness: probe(&container.liveness_probe, "livenessProbe")?,
        env,
        working_dir: container.working_dir.as_ref().map(PathBuf::from),
        pre_stop,
        restart,
    })
}

fn value_of(context: &Context<'_>, variable: &EnvVar) -> Result<String, String> {
    let name = &variable.name;
    let Some(from) = &variable.value_from else {
        return Ok(variable.value.clone().unwrap_or_default());
    };
    let Some(field) = &from.field_ref else {
        return Err(format!(
            "env {name}: of valueFrom the lab knows fieldRef only"
        ));
    };
    let meta = &context.pod.metadata;
    let spec = context.pod.spec.as_ref();
    let path = field.field_path.as_str();
    let entry = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.as_ref()
            .and_then(|map| map.get(key))
            .cloned()
            .unwrap_or_default()
    };
    if let Some(key) = subscript(path, "metadata.labels") {
        return Ok(entry(&meta.labels, key));
    }
    if let Some(key) = subscript(path, "metadata.annotations") {
        return Ok(entry(&meta.annotations, key));
    }
    let join = |addresses: &[IpAddr]| {
        let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        texts.join(",")
    };
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "spec.nodeName" => context.node.to_owned(),
        "spec.serviceAccountName" => spec
            .and_then(|spec| spec.service_account_name.clone())
            .unwrap_or_else(|| "default".into()),
        "status.podIP" => join(context.addresses.get(..1).unwrap_or_default()),
        "status.podIPs" => join(context.addresses),
        other => return Err(format!("has env {name}: fieldRef {other:?} is unknown")),
    })
}

/// The key of `metadata.labels['key']`.
fn subscript<'a>(path: &'a str, field: &str) -> Option<&'a str> {
    path.strip_prefix(field)?
        .strip_prefix("['")?
        .strip_suffix("']")
}

/// Replaces `$(NAME)` as Kubernetes does: `$$` is a dollar, unknown names stay as they are.
fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let name = rest
            .strip_prefix('(')
            .and_then(|inner| Some((inner, inner.find(')')?)))
            .and_then(|(inner, end)| Some((env.get(&inner[..end])?, &inner[end + 1..])));
        match name {
            Some((value, after)) => {
                out.push_str(value);
                rest = after;
            }
            None => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(container: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "a-1", "namespace": "shop", "labels": {"app": "a"}},
            "spec": {"containers": [container]},
        }))
        .unwrap()
    }

    fn planned(container: serde_json::Value) -> Result<ContainerPlan, String> {
        let address = "10.244.1.7".parse().unwrap();
        plan(&pod(container), &[address], "n1").map(|mut plan| plan.containers.remove(0))
    }

    #[test]
    fn variables_are_expanded_in_commands_as_kubernetes_does() {
        let env = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        let cases = [
            ("x$(A)y", "x1y"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$A $( $", "$A $( $"),
            ("$(A)$(A)", "11"),
        ];
        for (text, expected) in cases {
            assert_eq!(expand(text, &env), expected, "{text}");
        }
    }

    #[test]
    fn the_environment_knows_the_pod_and_earlier_variables() {
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let plan = planned(json!({
            "name": "c", "command": ["run"], "args": ["--ip", "$(IP)"],
            "env": [
                field("IP", "status.podIP"), field("NS", "metadata.namespace"),
                field("APP", "metadata.labels['app']"), field("NODE", "spec.nodeName"),
                {"name": "BOTH", "value": "$(NS)-$(APP)"},
            ],
        }))
        .unwrap();
        assert_eq!(plan.command, ["run", "--ip", "10.244.1.7"]);
        let value = |name: &str| plan.env[name].as_str();
        assert_eq!(
            (value("NS"), value("APP"), value("NODE")),
            ("shop", "a", "n1")
        );
        assert_eq!(value("BOTH"), "shop-a");
    }

    #[test]
    fn what_the_lab_cannot_run_is_an_error_that_names_the_container() {
        let cases = [
            (json!({"name": "c", "image": "nginx"}), "has no command"),
            (
                json!({"name": "c", "command": ["x"], "envFrom": [{"configMapRef": {"name": "m"}}]}),
                "envFrom",
            ),
            (
                json!({"name": "c", "command": ["x"],
                    "env": [{"name": "K", "valueFrom": {"secretKeyRef": {"key": "k"}}}]}),
                "env K",
            ),
            (
                json!({"name": "c", "command": ["x"], "readinessProbe": {}}),
                "readinessProbe",
            ),
        ];
        for (container, expected) in cases {
            let error = planned(container).unwrap_err();
            assert!(error.starts_with("container c "), "{error}");
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn restart_policies_differ_in_how_the_container_ended() {
        use RestartPolicy::*;
        let cases = [
            (Always, true, true),
            (OnFailure, true, false),
            (OnFailure, false, true),
            (Never, false, false),
        ];
        for (policy, success, restarts) in cases {
            assert_eq!(policy.restarts(success), restarts, "{policy:?}");
        }
    }
}

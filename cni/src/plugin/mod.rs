//! The CNI plugin: last in the chain, one run for each sandbox made or removed.
//!
//! Flows in: `CNI_*` environment and the network configuration. Flows out: the previous plugin's
//! result as it was, or an error. The work is the agent's; what is decided here is what happens
//! without it: a pod that belongs into the mesh does not start unprotected.

mod config;
mod error;
mod fallback;
mod result;

use std::{net::IpAddr, path::PathBuf, time::Duration};

use serde_json::{Value, json};

pub use config::{Environment, NetworkConfig};
pub use error::{CniError, Code};

use crate::{
    objects::is_exempt,
    protocol::{CallError, Request, Response, call},
    sandbox::{Sandbox, Store, is_valid_id},
};

/// The specification's versions that are spoken.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// How long the agent may take over ADD: its own time-out, and some.
const ADD_PATIENCE: Duration = Duration::from_secs(15);
/// How long the agent may take over anything else.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the command that the environment names; what is returned goes to stdout.
pub fn run(environment: &Environment, input: &str) -> Result<Option<Value>, CniError> {
    let command = environment.command.as_str();
    if command == "VERSION" {
        return Ok(Some(version(input)));
    }
    let config = match NetworkConfig::parse(input) {
        Ok(config) => config,
        // What can't be understood must not keep a sandbox from going.
        Err(error) if command == "DEL" => {
            eprintln!("weft-cni: {error}");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let outcome = match command {
        "ADD" => add(environment, &config).map(Some),
        "DEL" => {
            del(environment, &config);
            Ok(None)
        }
        "CHECK" => config
            .at_least("0.4.0", command)
            .and_then(|()| check(environment, &config)),
        "STATUS" => config.at_least("1.1.0", command).map(|()| status(&config)),
        "GC" => config.at_least("1.1.0", command).and_then(|()| gc(&config)),
        other => Err(CniError::new(
            Code::Environment,
            format!("CNI_COMMAND {other:?} is none of ADD, DEL, CHECK, VERSION, STATUS, GC"),
        )),
    };
    outcome.map_err(|error| error.in_version(&config.cni_version))
}

fn version(input: &str) -> Value {
    let asked = serde_json::from_str::<Value>(input).unwrap_or_default();
    let asked = asked["cniVersion"].as_str().unwrap_or_default();
    let version = if VERSIONS.contains(&asked) {
        asked
    } else {
        VERSIONS[VERSIONS.len() - 1]
    };
    json!({"cniVersion": version, "supportedVersions": VERSIONS})
}

fn add(environment: &Environment, config: &NetworkConfig) -> Result<Value, CniError> {
    let previous = config.prev_result.as_ref().ok_or_else(|| {
        CniError::new(
            Code::Config,
            "there is no prevResult: weft-cni has to come after the plugin that connects the pod, last in the chain",
        )
    })?;
    let result = result::in_version(previous, &config.cni_version);
    let Some(sandbox) = sandbox(environment, previous)? else {
        // Not a pod of Kubernetes: nobody can have put it into the mesh.
        return Ok(result);
    };
    let store = Store::new(&config.run_dir);
    // Before the agent is asked: one that starts at this moment finds the record.
    store
        .write(&sandbox)
        .map_err(|error| CniError::new(Code::Io, error.to_string()))?;
    let captured = match call(
        &config.run_dir,
        &Request::Add(sandbox.clone()),
        ADD_PATIENCE,
    ) {
        Ok(Response::Done { .. }) => Ok(()),
        Ok(Response::Failed { retry, message }) => {
            let code = if retry {
                Code::TryAgainLater
            } else {
                Code::Capture
            };
            Err(CniError::new(code, message))
        }
        Ok(Response::Status(_)) => Err(CniError::new(
            Code::Decode,
            "the agent's answer makes no sense; are plugin and agent of one version?",
        )),
        Err(away) => without_agent(config, &sandbox, &away),
    };
    match captured {
        Ok(()) => Ok(result),
        Err(error) => {
            // A sandbox that is not let start is none that an agent should take up.
            if let Err(error) = store.remove(&sandbox.container_id) {
                eprintln!("weft-cni: {error}");
            }
            Err(error)
        }
    }
}

/// ADD while the agent is away: a pod that does not belong into the mesh starts all the same.
fn without_agent(
    config: &NetworkConfig,
    sandbox: &Sandbox,
    away: &CallError,
) -> Result<(), CniError> {
    let name = sandbox.pod_name();
    match fallback::belongs_into_mesh(config, sandbox) {
        Ok(Some(false)) => Ok(()),
        Ok(Some(true)) => Err(CniError::new(
            Code::TryAgainLater,
            format!("pod {name} belongs into the mesh and does not start unprotected: {away}"),
        )),
        Ok(None) => Err(CniError::new(
            Code::TryAgainLater,
            format!("pod {name} may belong into the mesh, the API does not know it yet: {away}"),
        )),
        Err(_) if is_exempt(&sandbox.namespace) => Ok(()),
        Err(source) => Err(CniError::new(
            Code::TryAgainLater,
            format!("can't tell whether pod {name} belongs into the mesh: {away}; {source}"),
        )),
    }
}

/// DEL must succeed however often it is called and whatever is missing.
fn del(environment: &Environment, config: &NetworkConfig) {
    let container_id = environment.container_id.clone();
    if !is_valid_id(&container_id) {
        return;
    }
    if let Err(error) = Store::new(&config.run_dir).remove(&container_id) {
        eprintln!("weft-cni: {error}");
    }
    // An agent that is away finds no record when it returns.
    if let Err(error) = call(&config.run_dir, &Request::Del { container_id }, PATIENCE) {
        eprintln!("weft-cni: {error}");
    }
}

fn check(environment: &Environment, config: &NetworkConfig) -> Result<Option<Value>, CniError> {
    let previous = config
        .prev_result
        .as_ref()
        .ok_or_else(|| CniError::new(Code::Config, "there is no prevResult to check against"))?;
    let Some(sandbox) = sandbox(environment, previous)? else {
        return Ok(None);
    };
    let container_id = sandbox.container_id.clone();
    match call(&config.run_dir, &Request::Check { container_id }, PATIENCE) {
        Ok(Response::Failed { retry, message }) => {
            let code = if retry {
                Code::TryAgainLater
            } else {
                Code::Capture
            };
            Err(CniError::new(code, message))
        }
        Ok(_) => Ok(None),
        Err(away) => without_agent(config, &sandbox, &away).map(|()| None),
    }
}

/// Well, even while the agent is away: pods outside the mesh start all the same, and those in it are
/// told to try again. A failure would make the whole node not ready, and take its running pods out of
/// their Services whenever an agent is restarted.
fn status(config: &NetworkConfig) -> Option<Value> {
    if let Err(error) = call(&config.run_dir, &Request::Status {}, PATIENCE) {
        eprintln!("weft-cni: {error}");
    }
    None
}

fn gc(config: &NetworkConfig) -> Result<Option<Value>, CniError> {
    let Some(keep) = config.valid_attachments() else {
        return Err(CniError::new(
            Code::Config,
            "GC needs the list cni.dev/valid-attachments in the configuration",
        ));
    };
    let store = Store::new(&config.run_dir);
    for sandbox in store.list().into_iter().flatten() {
        if !keep.contains(&sandbox.container_id)
            && let Err(error) = store.remove(&sandbox.container_id)
        {
            eprintln!("weft-cni: {error}");
        }
    }
    match call(&config.run_dir, &Request::Gc { keep }, PATIENCE) {
        // Without the agent nobody holds anything of them.
        Ok(_) | Err(CallError::Away { .. }) => Ok(None),
        Err(error) => Err(CniError::new(Code::Io, error.to_string())),
    }
}

/// The sandbox as environment and previous result describe it; `None` if it is no pod's.
fn sandbox(environment: &Environment, previous: &Value) -> Result<Option<Sandbox>, CniError> {
    if !is_valid_id(&environment.container_id) {
        return Err(CniError::new(
            Code::Environment,
            format!(
                "CNI_CONTAINERID {:?} is not valid",
                environment.container_id
            ),
        ));
    }
    for (name, value) in [
        ("CNI_NETNS", &environment.netns),
        ("CNI_IFNAME", &environment.ifname),
    ] {
        if value.is_empty() {
            return Err(CniError::new(
                Code::Environment,
                format!("{name} is missing"),
            ));
        }
    }
    let (namespace, pod) = (
        environment.argument("K8S_POD_NAMESPACE"),
        environment.argument("K8S_POD_NAME"),
    );
    if namespace.is_empty() || pod.is_empty() {
        return Ok(None);
    }
    Ok(Some(Sandbox {
        container_id: environment.container_id.clone(),
        netns: PathBuf::from(&environment.netns),
        ifname: environment.ifname.clone(),
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        uid: environment.argument("K8S_POD_UID").to_owned(),
        addresses: addresses(previous),
    }))
}

/// The addresses that a result gives to interfaces in the sandbox.
pub(crate) fn addresses(previous: &Value) -> Vec<IpAddr> {
    let in_sandbox = |ip: &Value| match ip["interface"].as_u64() {
        Some(index) => {
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            // An interface without a sandbox is one of the host.
            !previous["interfaces"][index]["sandbox"]
                .as_str()
                .unwrap_or_default()
                .is_empty()
        }
        None => true,
    };
    let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
    let ips = previous["ips"].as_array().into_iter().flatten();
    ips.filter(|ip| in_sandbox(ip))
        .filter_map(address)
        .collect()
}

#[cfg(test)]
mod tests;

//! What the mesh of a lab is at: asked of the agents themselves (their sockets) and of the lab's
//! status, so that a step waits for its condition and for nothing else.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::Value;
use weft_cni::protocol::{self, Request, Response, SandboxStatus};
use weft_lab_tests::Lab;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// For one answer of an agent.
const ANSWER: Duration = Duration::from_secs(5);

/// Whether a namespace's pods are to be in the mesh.
pub fn label(lab: &Lab, namespace: &str, enabled: bool) -> anyhow::Result<()> {
    let label = if enabled {
        "weft.dev/mesh=enabled"
    } else {
        "weft.dev/mesh-"
    };
    run(lab, &["label", "ns", namespace, label])
}

/// A command of the lab that has to succeed.
pub fn run(lab: &Lab, args: &[&str]) -> anyhow::Result<()> {
    let output = lab.weft(args);
    if output.code != 0 {
        bail!(
            "weft lab {}: {}{}",
            args.join(" "),
            output.out.trim(),
            output.err.trim()
        );
    }
    Ok(())
}

/// Run folder of a node's agent.
pub fn run_dir(lab: &Lab, node: &str) -> PathBuf {
    lab.state_dir().join("nodes").join(node)
}

/// The sandboxes of a namespace, as the agents of these nodes have them.
pub fn sandboxes(lab: &Lab, nodes: &[&str], namespace: &str) -> anyhow::Result<Vec<SandboxStatus>> {
    let mut all = Vec::new();
    for node in nodes {
        let asked = protocol::call(&run_dir(lab, node), &Request::Status {}, ANSWER)?;
        let Response::Status(status) = asked else {
            bail!("agent/{node} answered something else than its status");
        };
        let own = status.sandboxes.into_iter();
        all.extend(own.filter(|sandbox| sandbox.namespace == namespace));
    }
    Ok(all)
}

/// Waits until every pod of a namespace is in the mesh, or out of it.
pub fn wait_for(
    lab: &Lab,
    nodes: &[&str],
    namespace: &str,
    enabled: bool,
    limit: Duration,
) -> anyhow::Result<()> {
    let wanted = if enabled { "in" } else { "out" };
    wait(limit, || {
        let sandboxes = sandboxes(lab, nodes, namespace).map_err(|error| error.to_string())?;
        if sandboxes.is_empty() {
            return Err(format!("no pod of {namespace} is on a node"));
        }
        match sandboxes.iter().find(|s| s.state != wanted) {
            None => Ok(()),
            Some(other) => Err(format!(
                "{namespace}/{} is `{}` and not `{wanted}`{}",
                other.pod,
                other.state,
                other
                    .error
                    .as_ref()
                    .map(|e| format!(": {e}"))
                    .unwrap_or_default()
            )),
        }
    })
}

/// Waits until `probe` has nothing to complain about any more.
pub fn wait(limit: Duration, mut probe: impl FnMut() -> Result<(), String>) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(()) => return Ok(()),
            Err(complaint) if start.elapsed() > limit => {
                bail!("not within {limit:?}: {complaint}")
            }
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// The lab's status, as `weft lab status -o json` has it.
pub fn status(lab: &Lab) -> anyhow::Result<Value> {
    let output = lab.weft(&["status", "-o", "json"]);
    serde_json::from_str(&output.out)
        .with_context(|| format!("weft lab status: {}{}", output.out, output.err))
}

/// Waits until all parts are ready, all pods are, every proxy knows what the API holds, and every
/// route is programmed.
pub fn whole(lab: &Lab, limit: Duration) -> anyhow::Result<()> {
    wait(limit, || {
        let status = status(lab).map_err(|error| format!("{error:#}"))?;
        match missing(&status) {
            None => Ok(()),
            Some(what) => Err(what),
        }
    })
}

/// The first part or pod that is not ready, or on its way out.
pub fn unready(status: &Value) -> Option<String> {
    for (name, part) in status["parts"].as_object().into_iter().flatten() {
        if part["ready"] != true {
            return Some(format!("{name} is not ready: {}", text(&part["message"])));
        }
    }
    for pod in status["pods"].as_array().into_iter().flatten() {
        let name = format!("{}/{}", text(&pod["namespace"]), text(&pod["name"]));
        if pod["terminating"] == true {
            return Some(format!("{name} is terminating"));
        }
        if pod["ready"] != true {
            return Some(format!("{name} is not ready: {}", text(&pod["message"])));
        }
    }
    None
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The first thing that a lab's status lacks.
pub fn missing(status: &Value) -> Option<String> {
    if let Some(what) = unready(status) {
        return Some(what);
    }
    for pod in status["pods"].as_array().into_iter().flatten() {
        let name = format!("{}/{}", text(&pod["namespace"]), text(&pod["name"]));
        if pod["captured"] == true && pod["acknowledged"] != true {
            return Some(format!("not every proxy knows that {name} is captured"));
        }
    }
    for route in status["routes"].as_array().into_iter().flatten() {
        if route["programmed"]["status"] != "True" && route["accepted"]["status"] != "False" {
            return Some(format!(
                "{} {}/{} is not programmed",
                text(&route["kind"]),
                text(&route["namespace"]),
                text(&route["name"])
            ));
        }
    }
    let behind = status["behind"].as_array().into_iter().flatten().next();
    behind.map(text)
}

/// The process of a part (`agent/n1`), if it runs.
pub fn pid(status: &Value, part: &str) -> Option<i32> {
    let pid = status["parts"][part]["pid"].as_i64()?;
    i32::try_from(pid).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_lab_lacks_is_named() {
        let whole = json!({
            "parts": {"agent/n1": {"ready": true, "pid": 7}},
            "pods": [{"namespace": "a", "name": "b", "ready": true, "captured": true, "acknowledged": true}],
            "routes": [{"kind": "HTTPRoute", "programmed": {"status": "True"}}],
            "behind": [],
        });
        assert_eq!(missing(&whole), None);
        assert_eq!(pid(&whole, "agent/n1"), Some(7));
        let cases = [
            ("/parts/agent~1n1/ready", json!(false), "agent/n1"),
            ("/pods/0/ready", json!(false), "a/b is not ready"),
            ("/pods/0/acknowledged", json!(false), "captured"),
            ("/routes/0/programmed/status", json!("False"), "HTTPRoute"),
            ("/behind", json!(["proxy/n1 is behind"]), "proxy/n1"),
        ];
        for (at, value, expected) in cases {
            let mut status = whole.clone();
            *status.pointer_mut(at).expect("it is there") = value;
            let found = missing(&status).unwrap_or_default();
            assert!(found.contains(expected), "{at}: {found}");
        }
    }
}

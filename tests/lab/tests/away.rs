//! A part of the mesh is away: who waits, who goes on, and what is said about it.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use weft_lab_tests::{Family, Lab, Output, eventually, in_families};

const PATIENCE: Duration = Duration::from_secs(40);

const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#;

fn pod(namespace: &str, name: &str, node: &str, account: &str, labels: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}
spec:
  nodeName: {node}
  serviceAccountName: {account}
  terminationGracePeriodSeconds: 1
  containers: [{{name: c, command: [weft-echo, server]}}]
"
    )
}

/// A client on n1 and a server on n2.
fn manifests() -> String {
    [
        SHOP,
        &pod("shop", "client", "n1", "default", ""),
        &pod("shop", "web", "n2", "web", "app: web"),
    ]
    .concat()
}

fn row(lab: &Lab, name: &str) -> Value {
    let status = lab.status();
    let pods = status["pods"].as_array().cloned().unwrap_or_default();
    let mut found = pods.into_iter().filter(|pod| pod["name"] == name);
    found.next().unwrap_or_default()
}

#[track_caller]
fn until_ready(lab: &Lab, name: &str, captured: bool) {
    eventually(PATIENCE, || match row(lab, name) {
        pod if pod["ready"] == true && pod["captured"] == captured => Ok(()),
        pod => Err(pod.to_string()),
    });
}

/// Waits until a pod says why it waits.
#[track_caller]
fn until_waiting(lab: &Lab, name: &str, why: &[&str]) {
    eventually(PATIENCE, || {
        let pod = row(lab, name);
        let message = pod["message"].as_str().unwrap_or_default();
        assert_ne!(pod["ready"], true, "{name} must not start");
        let said = why.iter().all(|part| message.contains(part));
        if said && pod["reason"] == "FailedCreatePodSandBox" {
            Ok(())
        } else {
            Err(pod.to_string())
        }
    });
}

/// The last line of a node's access log about connections of a pod to a destination.
fn tunnel_of(lab: &Lab, node: &str, client: &str) -> Option<String> {
    let log = lab.logs(&format!("access/{node}"));
    let entries = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut outbound = entries.filter(|entry| {
        entry["direction"] == "outbound" && entry.to_string().contains(&format!("\"{client}\""))
    });
    Some(outbound.next_back()?["tunnel"].as_str()?.to_owned())
}

#[track_caller]
fn until_tunnelled(lab: &Lab, node: &str, client: &str) {
    eventually(PATIENCE, || match tunnel_of(lab, node, client).as_deref() {
        Some("hbone") => Ok(()),
        other => Err(format!("{client} on {node}: {other:?}")),
    });
}

/// Runs the plugin as a runtime would, with an API that can't be read.
fn add_without_api(lab: &Lab, namespace: &str, command: &str) -> Output {
    let config = json!({
        "cniVersion": "1.0.0", "name": "lab", "type": "weft-cni", "node": "n1",
        "runDir": lab.state_dir().join("nodes/n1"), "source": "folder:/nowhere",
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": "/x"}],
            "ips": [{"address": "10.244.1.200/24", "interface": 0}],
        },
    });
    let args = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=p;K8S_POD_UID=u");
    let mut child = Command::new(Lab::bin("weft-cni"))
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "by-hand")
        .env("CNI_NETNS", format!("/run/netns/weft-{}-n1", lab.name))
        .env("CNI_IFNAME", "eth0")
        .env("CNI_ARGS", args)
        .env("CNI_PATH", "/usr/lib/cni")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("weft-cni starts");
    let mut stdin = child.stdin.take().expect("it was piped");
    stdin.write_all(config.to_string().as_bytes()).ok();
    drop(stdin);
    let done = child.wait_with_output().expect("weft-cni ends");
    Output {
        out: String::from_utf8_lossy(&done.stdout).into_owned(),
        err: String::from_utf8_lossy(&done.stderr).into_owned(),
        code: done.status.code().unwrap_or(-1),
    }
}

#[test]
fn while_the_agent_is_away_pods_of_the_mesh_wait_and_say_why_and_all_others_start() {
    let lab = Lab::up(&manifests());
    lab.stop("agent/n1");
    let late = pod("shop", "late", "n1", "web", "");
    let other = pod("plain", "other", "n1", "default", "");
    let out = pod("shop", "out", "n1", "default", "weft.dev/mesh: disabled");
    lab.apply(&[late, other, out].concat()).ok();

    until_ready(&lab, "other", false);
    until_ready(&lab, "out", false);
    until_waiting(
        &lab,
        "late",
        &["the mesh", "is weft-agent running on this node?"],
    );
    let status = lab.weft(&["status"]).ok();
    assert!(status.contains("the agent of n1 has been away"), "{status}");
    assert!(status.contains("weft lab start agent/n1"), "{status}");
    // Those that run do not notice.
    assert_eq!(lab.get("shop/client", "http://web/").status, 200);
    until_tunnelled(&lab, "n1", "client");

    // Nobody is left who knows: all wait but weft's own and the cluster's.
    for namespace in ["shop", "plain"] {
        let refused = add_without_api(&lab, namespace, "ADD");
        assert_eq!(refused.code, 1, "{namespace}: {}", refused.out);
        let error: Value = serde_json::from_str(&refused.out).expect("an error of CNI");
        // "Try again later", of the CNI specification.
        assert_eq!(error["code"], 11, "{namespace}: {error}");
        let said = error.to_string();
        assert!(
            said.contains("weft-agent") && said.contains("/nowhere"),
            "{said}"
        );
    }
    for namespace in ["kube-system", "weft-system"] {
        add_without_api(&lab, namespace, "ADD").ok();
        add_without_api(&lab, namespace, "DEL").ok();
    }

    lab.start("agent/n1");
    until_ready(&lab, "late", true);
    assert_eq!(lab.get("shop/late", "http://web/").status, 200);
    until_tunnelled(&lab, "n1", "late");
    assert!(!row(&lab, "out")["captured"].as_bool().unwrap_or(true));
}

in_families!(while_the_controller_is_away_traffic_goes_on_and_what_does_not_is_said: ipv4, ipv6);

fn while_the_controller_is_away_traffic_goes_on_and_what_does_not_is_said(family: Family) {
    let lab = Lab::up_in(family, &manifests());
    assert_eq!(lab.get("shop/client", "http://web/").status, 200);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let paced = ["--rate", "50"];
            lab.load("shop/client", "http://web/", 150, 4, &paced)
        });
        lab.stop("controller");
        let known = pod("shop", "known", "n2", "web", "");
        let unknown = pod("shop", "unknown", "n2", "unheard-of", "");
        lab.apply(&[known, unknown].concat()).ok();
        until_ready(&lab, "known", true);
        until_waiting(&lab, "unknown", &["no certificate", "sa/unheard-of"]);
        let load = load.join().expect("the load ends");
        assert_eq!(load.failed, 0, "{:?}", load.causes);
    });
    // A new pod is a full member towards those that are known, and on its own node.
    assert_eq!(lab.get("shop/known", "http://web/").status, 200);
    until_tunnelled(&lab, "n2", "known");
    let known = lab.pod_at("shop", "known", 8080);
    assert_eq!(lab.get("shop/web", &format!("http://{known}/")).status, 200);
    until_tunnelled(&lab, "n2", "web");

    let status = lab.weft(&["status"]).ok();
    for said in [
        "the controller has been away for",
        "Programmed",
        "no certificate is signed",
        "not connected to the controller",
    ] {
        assert!(status.contains(said), "{said}: {status}");
    }
    let parts = lab.status()["parts"].clone();
    assert_eq!(parts["controller"]["stopped"], true, "{parts}");
    for proxy in ["proxy/n1", "proxy/n2"] {
        // It serves, so it is ready; and says what it lacks.
        assert_eq!(parts[proxy]["ready"], true, "{parts}");
        assert_eq!(parts[proxy]["controller"], false, "{parts}");
        let note = parts[proxy]["message"].as_str().unwrap_or_default();
        assert!(note.contains("configuration"), "{parts}");
    }

    lab.start("controller");
    until_ready(&lab, "unknown", true);
    eventually(PATIENCE, || match &lab.status()["away"] {
        Value::Array(lines) if lines.is_empty() => Ok(()),
        other => Err(other.to_string()),
    });
}

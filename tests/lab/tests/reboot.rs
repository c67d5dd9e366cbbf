//! A node reboots under traffic: its pods come back in any order, with addresses that others had,
//! while the API still holds what was. No byte of a pod of the mesh may be on a wire in clear, and
//! nobody may be answered by a pod that he did not ask for.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use serde_json::Value;
use weft_lab_tests::{Family, Lab, at, eventually, in_families};

const PATIENCE: Duration = Duration::from_secs(60);
/// In requests, and so in whatever is sent in clear.
const SECRET: &str = "PATH-OF-THE-MESH";
/// Of requests outside the mesh: shows that the capture sees what is in clear.
const PLAIN: &str = "PATH-OUTSIDE";
/// Requests under way from all sides for as long as the test.
const CLIENT: &str = "--rate 40 --concurrency 4 --duration 600s --timeout 1s -o json";

/// Permissive, which is the dangerous mode. `web` and `twin` have one identity: only the sandbox
/// tells their pods apart.
fn manifests() -> String {
    let mut all = String::from(
        "
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
",
    );
    let mut pod = |namespace: &str, name: &str, node: &str, account: &str, command: &str| {
        let words = command.split_whitespace().map(|word| format!("{word:?}"));
        let command = words.collect::<Vec<_>>().join(", ");
        let app = name.trim_end_matches(|c: char| c.is_ascii_digit());
        all += &format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}}}}}
spec:
  nodeName: {node}
  serviceAccountName: {account}
  terminationGracePeriodSeconds: 1
  containers: [{{name: c, command: [weft-echo, {command}]}}]
"
        );
    };
    for name in ["web1", "web2", "twin1", "twin2", "twin3"] {
        pod("shop", name, "n2", "web", "server");
    }
    let client = format!("client http://web/{SECRET} {CLIENT}");
    pod("shop", "steady", "n1", "default", &client);
    pod("shop", "reborn", "n2", "default", &client);
    pod("shop", "prober", "n1", "default", "server");
    pod("shop", "native", "n2", "default", "server");
    pod("plain", "client", "n1", "default", "server");
    pod("plain", "server", "n1", "default", "server");
    all
}

/// Dials, from a pod, the addresses that the pods of n2 had at first, for some seconds: as a client
/// that remembers them.
fn dial_all(lab: &Lab, pod: &str, addresses: &[String]) {
    let echo = Lab::bin("weft-echo").to_string_lossy().into_owned();
    let one = format!(
        "{echo} client http://$to/{SECRET} --rate 20 --concurrency 8 --duration 2s --timeout 400ms --summary >/dev/null 2>&1 &"
    );
    let all = format!("for to in {}; do {one} done; wait", addresses.join(" "));
    lab.exec(pod, &["sh", "-c", &all]);
}

/// Where the mesh's pods on n2 serve.
fn mesh_addresses(lab: &Lab) -> Vec<String> {
    let pods = lab.status()["pods"].as_array().cloned().unwrap_or_default();
    let on_n2 = pods
        .iter()
        .filter(|pod| pod["node"] == "n2" && pod["captured"] == true);
    on_n2
        .filter_map(|pod| Some(at(pod["address"].as_str()?, 8080)))
        .collect()
}

/// Says when it goes that something is over.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Who answered a client's requests, and how often.
fn answered(lab: &Lab, client: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in lab.logs(client).lines() {
        let Ok(outcome) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let pod = outcome["pod"].as_str().unwrap_or_default();
        if outcome["failed"] == false {
            *counts.entry(pod.to_owned()).or_default() += 1;
        }
    }
    counts
}

fn total(counts: &BTreeMap<String, u64>) -> u64 {
    counts.values().sum()
}

/// Waits until clients on both nodes are answered again.
#[track_caller]
fn until_served(lab: &Lab) {
    let before = ["shop/steady", "shop/reborn"].map(|client| total(&answered(lab, client)));
    eventually(PATIENCE, || {
        let now = ["shop/steady", "shop/reborn"].map(|client| total(&answered(lab, client)));
        if now
            .iter()
            .zip(before)
            .all(|(now, before)| *now > before + 20)
        {
            Ok(())
        } else {
            Err(format!("{before:?} {now:?}\n{}", lab.weft(&["status"]).out))
        }
    });
}

in_families!(a_node_that_reboots_never_sends_or_gets_a_byte_in_clear_whatever_starts_first: ipv4, ipv6);

fn a_node_that_reboots_never_sends_or_gets_a_byte_in_clear_whatever_starts_first(family: Family) {
    let lab = Lab::up_in(family, &manifests());
    until_served(&lab);
    let capture = lab.capture(&[SECRET, PLAIN]);
    let outside = lab.pod_at("plain", "server", 8080);
    let url = format!("http://{outside}/{PLAIN}");
    assert_eq!(lab.get("plain/client", &url).status, 200);

    let addresses = mesh_addresses(&lab);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (lab, addresses) = (&lab, &addresses);
        let dial = scope.spawn({
            let over = &over;
            move || {
                while !over.load(Ordering::Relaxed) {
                    dial_all(lab, "shop/prober", addresses);
                }
            }
        });
        // Ends the dials also if an assertion below does not hold.
        let end = End(&over);
        // Parts and pods in any order.
        for seed in ["1", "2"] {
            lab.reboot("n2", &["--seed", seed, "--away", "300"]);
            lab.whole(PATIENCE);
        }
        // The agent comes last.
        lab.stop("agent/n2");
        lab.reboot("n2", &["--seed", "3"]);
        until_waiting(lab, "web1", "is weft-agent running");
        lab.start("agent/n2");
        lab.whole(PATIENCE);
        // The proxy comes last.
        lab.weft(&["stop", "proxy/n2", "--kill"]).ok();
        lab.reboot("n2", &["--seed", "4"]);
        until_waiting(lab, "web1", "proxy");
        lab.start("proxy/n2");
        lab.whole(PATIENCE);
        drop(end);
        dial.join().expect("the dials end");
    });
    until_served(&lab);

    let seen = capture.stop();
    assert!(
        seen.texts[1] > 0,
        "the capture sees what is in clear: {seen:?}"
    );
    assert!(seen.tunnel > 100, "{seen:?}");
    assert_eq!(seen.texts[0], 0, "in clear on a wire: {seen:?}");
    for client in ["shop/steady", "shop/reborn"] {
        let answered = answered(&lab, client);
        let right = answered.keys().all(|pod| pod.starts_with("web"));
        assert!(right, "{client} asked web and was answered by {answered:?}");
    }
}

#[track_caller]
fn until_waiting(lab: &Lab, pod: &str, why: &str) {
    eventually(PATIENCE, || {
        let status = lab.status();
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        let row = pods.into_iter().find(|row| row["name"] == pod);
        let row = row.unwrap_or_default();
        let message = row["message"].as_str().unwrap_or_default();
        if row["ready"] == false && message.contains(why) {
            Ok(())
        } else {
            Err(row.to_string())
        }
    });
}

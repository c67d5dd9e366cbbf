//! What a lab does with single pods: init containers, restarts, probes, ends. Needs root.

#![allow(clippy::unwrap_used, reason = "a failed test is what they are for")]

mod driver;

use std::fs;

use driver::{Lab, eventually};

/// One pod for each thing that a kubelet does.
const LIVES: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: ordered}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - {name: first, command: [sh, -c, "echo first >> $(TRACE)"], env: [{name: TRACE, value: "@/ordered"}]}
  - {name: second, command: [sh, -c, "echo second >> @/ordered"]}
  containers:
  - {name: main, command: [sh, -c, "echo main >> @/ordered; exec sleep infinity"]}
---
apiVersion: v1
kind: Pod
metadata: {name: done}
spec:
  restartPolicy: Never
  containers: [{name: c, command: ["true"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: retried}
spec:
  restartPolicy: OnFailure
  containers: [{name: c, command: [sh, -c, "test -e @/retried || { touch @/retried; exit 3; }"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: revived}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    command: [sh, -c, "rm -f @/ill; exec sleep infinity"]
    livenessProbe: {exec: {command: [sh, -c, "test ! -e @/ill"]}, periodSeconds: 1, failureThreshold: 1}
    readinessProbe: {exec: {command: ["true"]}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: on-node}
spec:
  terminationGracePeriodSeconds: 1
  hostNetwork: true
  nodeName: n2
  containers: [{name: c, command: [sleep, infinity]}]
---
apiVersion: v1
kind: Pod
metadata: {name: stubborn}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, command: [sh, -c, "trap '' TERM; while :; do sleep 1; done"]}]
"#;

#[test]
fn pods_live_as_a_kubelet_would_have_them() {
    let lab = Lab::new("lives");
    let folder = lab.folder.path().display().to_string();
    let manifests = lab.file("lab.yaml", &LIVES.replace('@', &folder));
    lab.up(&manifests);
    let pod = |name: &str| -> serde_json::Value {
        serde_json::from_str(&lab.weft(&["get", "pod", name, "-o", "json"]).ok()).unwrap()
    };

    let order = fs::read_to_string(lab.folder.path().join("ordered")).unwrap();
    assert_eq!(order, "first\nsecond\nmain\n");
    for (name, restarts) in [("done", 0), ("retried", 1)] {
        eventually("the end of a pod that ends", || {
            let status = &pod(name)["status"];
            status["phase"] == "Succeeded"
                && status["containerStatuses"][0]["restartCount"] == restarts
        });
    }

    fs::write(lab.folder.path().join("ill"), "").unwrap();
    eventually("a restart by the liveness probe", || {
        let status = &pod("revived")["status"]["containerStatuses"][0];
        // A probe may come before the new container has made itself well.
        status["restartCount"].as_u64() >= Some(1) && status["ready"] == true
    });

    assert_eq!(pod("on-node")["status"]["podIP"], "10.240.0.12");
    let links = lab.exec("on-node", "grep -c eth0 /proc/net/dev").ok();
    assert_eq!(links.trim(), "1");

    // SIGTERM is not enough for this one; a changed pod takes the place of the old.
    let old = pod("stubborn")["metadata"]["uid"].clone();
    let text = LIVES
        .replace('@', &folder)
        .replace("sleep 1; done", "sleep 2; done");
    fs::write(&manifests, text).unwrap();
    eventually("the new pod", || {
        let out = lab.weft(&["get", "pod", "stubborn", "-o", "json"]).out;
        let new: serde_json::Value = serde_json::from_str(&out).unwrap_or_default();
        new["metadata"]["uid"] != old && new["status"]["phase"] == "Running"
    });
}

#[test]
fn what_never_comes_is_named_when_the_time_is_over() {
    let lab = Lab::new("late");
    let manifests = lab.file(
        "lab.yaml",
        "
apiVersion: v1
kind: Pod
metadata: {name: late}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    command: [sleep, infinity]
    readinessProbe: {tcpSocket: {port: 9}, periodSeconds: 1, failureThreshold: 1}
",
    );
    let path = manifests.to_str().unwrap();
    let up = lab.weft(&["up", "-f", path, "--detach", "--no-mesh", "--timeout", "3"]);
    assert_eq!(up.code, 1);
    assert!(
        up.err
            .contains("pod default/late is not ready: container c: not ready: tcp"),
        "{}",
        up.err
    );
}

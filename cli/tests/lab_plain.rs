//! Labs of plain pods, driven through the command line: what the mesh stands on. Needs root. The
//! pods run this very test binary as their server.

#![allow(clippy::unwrap_used, reason = "a failed test is what they are for")]

mod driver;

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
};

use driver::{Lab, eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Set in pods: the port to serve.
const SERVE: &str = "WEFT_TEST_SERVE";

/// No test of its own: what the pods run. Answers with the hostname and the variable `VERSION`.
#[test]
fn a_pod_serves_its_hostname() {
    let Ok(port) = std::env::var(SERVE) else {
        return;
    };
    let listener = TcpListener::bind(("0.0.0.0", port.parse().unwrap())).unwrap();
    let hostname = nix::unistd::gethostname().unwrap().into_string().unwrap();
    let version = std::env::var("VERSION").unwrap_or_default();
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        // All of the request: closing before that would reset the connection.
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
            request.push(byte[0]);
        }
        let body = format!("{hostname} {version}");
        let _ = write!(
            stream,
            "HTTP/1.0 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
    }
}

fn web(replicas: u32, version: &str) -> String {
    let server = std::env::current_exe().unwrap();
    let server = server.display();
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web, namespace: shop}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: web
        command: ["{server}", --exact, a_pod_serves_its_hostname, --nocapture]
        env: [{{name: {SERVE}, value: "8080"}}, {{name: VERSION, value: {version}}}]
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{port: http}}, periodSeconds: 1}}
        lifecycle: {{preStop: {{sleep: {{seconds: 1}}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop}}
spec:
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: http}}]
---
apiVersion: v1
kind: Service
metadata: {{name: headless, namespace: shop}}
spec:
  clusterIP: None
  selector: {{app: web}}
  ports: [{{port: 8080}}]
"#
    )
}

const CLIENT: &str = "
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: other}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: client, command: [sleep, infinity]}
";

#[test]
fn a_service_is_reached_by_name_while_its_pods_come_and_go() {
    let lab = Lab::new("svc");
    let manifests = lab.file("lab.yaml", &format!("{}{CLIENT}", web(2, "v1")));
    let table = lab.up(&manifests);
    assert!(table.contains("other") && table.contains("web-"), "{table}");

    // By every form of the name, and only at home by the short one.
    for name in ["web.shop", "web.shop.svc", "web.shop.svc.cluster.local"] {
        assert!(lab.get("other/client", name).ends_with(" v1"));
    }
    assert!(lab.get("shop/web", "web").ends_with(" v1"));
    assert_ne!(lab.exec("other/client", "exec 3<>/dev/tcp/web/80").code, 0);
    let hosts = lab.exec("other/client", "grep headless /etc/hosts").ok();
    assert!(hosts.starts_with("10.244."), "{hosts}");

    // Both pods answer, and a pod reaches itself through its Service.
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..40 {
        seen.insert(lab.get("shop/web", "web"));
    }
    assert_eq!(seen.len(), 2, "{seen:?}");

    // A port that nobody serves is refused, not silent.
    let refused = lab.exec("other/client", "exec 3<>/dev/tcp/web.shop/81");
    assert!(refused.err.contains("refused"), "{}", refused.err);

    // A new template rolls out while requests go on.
    let next = lab.file("next.yaml", &web(2, "v2"));
    let applied = lab.weft(&["apply", "-f", next.to_str().unwrap()]).ok();
    assert!(
        applied.contains("deployment.apps/web configured"),
        "{applied}"
    );
    assert!(applied.contains("service/web unchanged"), "{applied}");
    let mut answers = Vec::new();
    eventually("all of v2", || {
        answers.push(lab.get("other/client", "web.shop"));
        let pods = lab.weft(&["get", "pods", "-n", "shop", "-o", "json"]).ok();
        let pods: serde_json::Value = serde_json::from_str(&pods).unwrap();
        let pods = pods["items"].as_array().unwrap().clone();
        let versions: Vec<_> = pods
            .iter()
            .map(|p| p["spec"]["containers"][0]["env"][1]["value"].clone())
            .collect();
        versions.len() == 2 && versions.iter().all(|version| version == "v2")
    });
    assert!(
        answers.iter().all(|answer| answer.contains(" v")),
        "{answers:?}"
    );

    // Scaled down, and a deleted pod comes back.
    let one = lab.file("one.yaml", &web(1, "v2"));
    lab.weft(&["apply", "-f", one.to_str().unwrap()]).ok();
    let names = || {
        let pods = lab.weft(&["get", "pods", "-n", "shop", "-o", "json"]).ok();
        let pods: serde_json::Value = serde_json::from_str(&pods).unwrap();
        let uid = |p: &serde_json::Value| p["metadata"]["uid"].as_str().unwrap().to_owned();
        pods["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(uid)
            .collect::<Vec<_>>()
    };
    eventually("one pod", || names().len() == 1);
    let before = names();
    let pods = lab.weft(&["get", "pods", "-n", "shop", "-o", "json"]).ok();
    let pods: serde_json::Value = serde_json::from_str(&pods).unwrap();
    let pod = pods["items"][0]["metadata"]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    lab.weft(&["delete", "pod", &pod, "-n", "shop"]).ok();
    eventually("another pod", || names().len() == 1 && names() != before);

    lab.weft(&["down"]).ok();
    assert_eq!(lab.traces(), [""; 0]);
    // Again: there is nothing to do.
    lab.weft(&["down"]).ok();
}

#[test]
fn files_are_followed_and_a_malformed_document_spoils_no_other() {
    let lab = Lab::new("files");
    let manifests = lab.file("lab.yaml", CLIENT);
    lab.up(&manifests);

    // The exit code and the environment of a pod.
    assert_eq!(lab.exec("other/client", "exit 7").code, 7);
    assert_eq!(lab.exec("other/client", "hostname").ok().trim(), "client");

    // A label that a command set outlives changes of other documents of the file.
    lab.weft(&["label", "ns", "other", "a=b"]).ok();
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: one, namespace: other}\n\
                   spec: {ports: [{port: 80}]}\n";
    fs::write(&manifests, format!("{CLIENT}{service}")).unwrap();
    let exists = |kind: &str, name: &str| {
        lab.weft(&["get", kind, name, "-n", "other", "-o", "json"])
            .code
            == 0
    };
    eventually("the Service", || exists("svc", "one"));
    let ns = lab.weft(&["get", "ns/other", "-o", "yaml"]).ok();
    assert!(ns.contains("a: b"), "{ns}");

    // Malformed: its last good version stays, the rest is applied, status names it.
    let bad = service.replace("80", "eighty");
    let other = service.replace("one", "two");
    fs::write(&manifests, format!("{CLIENT}{bad}{other}")).unwrap();
    eventually("the other Service", || exists("svc", "two"));
    assert!(exists("svc", "one"));
    eventually("the error", || {
        lab.weft(&["status"]).out.contains("spec.ports[0].port")
    });
    let applied = lab.weft(&["apply", "-f", manifests.to_str().unwrap()]);
    assert_eq!(applied.code, 1);
    assert!(
        applied.err.contains("lab.yaml (document 2)"),
        "{}",
        applied.err
    );
    assert!(
        applied.out.contains("service/two unchanged"),
        "{}",
        applied.out
    );

    // A container without a command is named, and no other pod minds.
    let nothing = "apiVersion: v1\nkind: Pod\nmetadata: {name: image-only, namespace: other}\n\
                   spec: {containers: [{name: c, image: nginx}]}\n";
    let nothing = lab.file("nothing.yaml", nothing);
    lab.weft(&["apply", "-f", nothing.to_str().unwrap()]).ok();
    eventually("the pod's error", || {
        let status = lab.weft(&["status"]).out;
        status.contains("pod other/image-only failed: container c has no command")
    });
    lab.weft(&["delete", "-f", nothing.to_str().unwrap()]).ok();
    assert!(!exists("pod", "image-only"));

    // What leaves the file is deleted.
    fs::write(&manifests, CLIENT).unwrap();
    eventually("the Services to go", || {
        !exists("svc", "one") && !exists("svc", "two")
    });
    assert!(exists("pod", "client"));
}

#[test]
fn a_lab_that_was_killed_is_cleaned_up() {
    let lab = Lab::new("killed");
    let manifests = lab.file("lab.yaml", CLIENT);
    lab.up(&manifests);
    let state = Path::new("/run/weft/lab")
        .join(&lab.name)
        .join("state.json");
    let state: serde_json::Value = serde_json::from_slice(&fs::read(state).unwrap()).unwrap();
    let daemon = i32::try_from(state["daemon"]["pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(daemon), Signal::SIGKILL).unwrap();
    assert!(!lab.traces().is_empty());
    lab.weft(&["down"]).ok();
    eventually("nothing left", || lab.traces().is_empty());
}

struct Foreground(Child);

impl Drop for Foreground {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn ctrl_c_takes_a_foreground_lab_down() {
    let lab = Lab::new("front");
    let manifests = lab.file("lab.yaml", CLIENT);
    let mut command = lab.command(&["up", "-f", manifests.to_str().unwrap(), "--no-mesh"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = Foreground(command.spawn().unwrap());
    eventually("the pod", || {
        lab.weft(&["get", "pods", "-A", "-o", "json"])
            .out
            .contains("10.244.")
    });
    // A second lab of the name is refused, and harms nothing.
    let second = lab.weft(&["up", "--no-mesh", "--detach"]);
    assert!(second.err.contains("is up already"), "{}", second.err);
    assert_eq!(lab.exec("other/client", "true").code, 0);

    kill(
        Pid::from_raw(child.0.id().try_into().unwrap()),
        Signal::SIGINT,
    )
    .unwrap();
    assert!(child.0.wait().unwrap().success());
    assert_eq!(lab.traces(), [""; 0]);
}

#[test]
fn who_is_not_root_is_told_so_with_exit_code_2() {
    let folder = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in("/tmp")
        .unwrap();
    let copy = folder.path().join("weft");
    // By a process of its own: a file that this one has open for writing can't be run while
    // another test's child still holds it, too.
    let weft = env!("CARGO_BIN_EXE_weft");
    assert!(
        Command::new("cp")
            .arg(weft)
            .arg(&copy)
            .status()
            .unwrap()
            .success()
    );
    for args in [&["lab", "up"][..], &["lab", "demo"], &["lab", "down"]] {
        let output = Command::new(&copy)
            .args(args)
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            error.contains("run it as root") && error.lines().count() == 1,
            "{error}"
        );
    }
}

//! The lab itself: a thin, synchronous driver of the command line.

use std::{
    env,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    Family,
    wire::{Answer, ByteReport, Dialled, LoadReport, Request},
};

/// A running lab. Dropping it takes everything down.
pub struct Lab {
    /// The lab's name, unique on this machine.
    pub name: String,
    /// What its nodes, pods and Services have addresses of.
    pub family: Family,
    files: TempDir,
}

/// What a command printed, and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
    /// Exit code; -1 for a signal.
    pub code: i32,
}

impl Output {
    /// Standard output of a command that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(
            self.code, 0,
            "failed\nstdout: {}\nstderr: {}",
            self.out, self.err
        );
        self.out
    }
}

/// Waits until `probe` returns something, and panics with its last complaint when `limit` is over.
#[track_caller]
pub fn eventually<T>(limit: Duration, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(complaint) if start.elapsed() > limit => {
                panic!("not within {limit:?}: {complaint}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// An address and a port as URLs and command lines have them.
pub fn at(address: &str, port: u16) -> String {
    let address: std::net::IpAddr = address.parse().expect("an IP address");
    std::net::SocketAddr::new(address, port).to_string()
}

impl Lab {
    /// Starts a lab of two nodes with these manifests, and waits until it is whole.
    #[track_caller]
    pub fn up(manifests: &str) -> Self {
        Self::up_in(Family::Ipv4, manifests)
    }

    /// The same with more arguments to `weft lab up`, such as `["--rp-filter", "1"]`.
    #[track_caller]
    pub fn up_with(more: &[&str], manifests: &str) -> Self {
        Self::up_in_with(Family::Ipv4, more, manifests)
    }

    /// Like [`Lab::up`], in a family.
    #[track_caller]
    pub fn up_in(family: Family, manifests: &str) -> Self {
        Self::up_in_with(family, &[], manifests)
    }

    /// Like [`Lab::up_with`], in a family.
    #[track_caller]
    pub fn up_in_with(family: Family, more: &[&str], manifests: &str) -> Self {
        let lab = Self::named_in(family);
        let file = lab.file("lab.yaml", manifests);
        let path = file.to_string_lossy().into_owned();
        let mut args = vec!["up", "-f", &path, "--detach", "--timeout", "90"];
        args.extend(["--ip-family", family.flag()]);
        args.extend(more);
        lab.weft(&args).ok();
        lab
    }

    /// A lab that is not started yet.
    pub fn named() -> Self {
        Self::named_in(Family::Ipv4)
    }

    /// A lab of a family that is not started yet: who starts it gives the flag.
    pub fn named_in(family: Family) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("t{}-{n}", std::process::id());
        Self {
            name,
            family,
            files: TempDir::new().expect("a folder for the lab's manifests"),
        }
    }

    /// A program beside `weft`.
    pub fn bin(program: &str) -> PathBuf {
        let folder = env::var_os("WEFT_BIN_DIR")
            .map(PathBuf::from)
            .unwrap_or_else(|| {
                let test = env::current_exe().expect("the test's own path");
                test.ancestors()
                    .nth(2)
                    .expect("target/debug above deps")
                    .to_owned()
            });
        let path = folder.join(program);
        assert!(
            path.exists(),
            "{} is missing; run cargo build --workspace",
            path.display()
        );
        path
    }

    /// The independent HBONE peer.
    pub fn peer() -> PathBuf {
        let path = env::var_os("WEFT_PEER").expect("WEFT_PEER names it; run through `make test`");
        PathBuf::from(path)
    }

    /// Writes a file that lasts as long as the lab.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.files.path().join(name);
        std::fs::write(&path, content).expect("a writable temporary folder");
        path
    }

    /// The lab's state folder.
    pub fn state_dir(&self) -> PathBuf {
        Path::new("/run/weft/lab").join(&self.name)
    }

    /// `weft lab --name NAME ARGS…`
    pub fn weft(&self, args: &[&str]) -> Output {
        self.weft_with_input(args, b"")
    }

    fn weft_with_input(&self, args: &[&str], input: &[u8]) -> Output {
        let mut command = Command::new(Self::bin("weft"));
        command.args(["lab", "--name", &self.name]).args(args);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("weft starts");
        let mut stdin = child.stdin.take().expect("it was piped");
        stdin.write_all(input).ok(); // a program that ends early closes it
        drop(stdin);
        let done = child.wait_with_output().expect("weft ends");
        Output {
            out: String::from_utf8_lossy(&done.stdout).into_owned(),
            err: String::from_utf8_lossy(&done.stderr).into_owned(),
            code: done.status.code().unwrap_or(-1),
        }
    }

    /// Applies manifests; what it prints.
    pub fn apply(&self, manifests: &str) -> Output {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("apply-{}.yaml", NEXT.fetch_add(1, Ordering::Relaxed));
        let path = self.file(&name, manifests);
        self.weft(&["apply", "-f", &path.to_string_lossy()])
    }

    /// Deletes what the manifests name.
    pub fn delete(&self, manifests: &str) -> Output {
        let path = self.file("delete.yaml", manifests);
        self.weft(&["delete", "-f", &path.to_string_lossy()])
    }

    /// Runs a command in a pod, `NS/POD` or `NS/DEPLOYMENT`.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Output {
        let mut args = vec!["exec", pod, "--"];
        args.extend(command);
        self.weft(&args)
    }

    /// Starts a command in a pod; its standard output is to be read from the child.
    pub fn exec_in_background(&self, pod: &str, command: &[&str]) -> Child {
        Command::new(Self::bin("weft"))
            .args(["lab", "--name", &self.name, "exec", pod, "--"])
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("weft starts")
    }

    /// Makes HTTP requests from a pod, one after the other.
    #[track_caller]
    pub fn http(&self, pod: &str, requests: &[Request]) -> Vec<Answer> {
        let input = serde_json::to_vec(requests).expect("plain data");
        let client = Self::bin("weft-lab-client").to_string_lossy().into_owned();
        let out = self
            .weft_with_input(&["exec", pod, "--", &client, "http"], &input)
            .ok();
        serde_json::from_str(&out).expect("the client prints JSON")
    }

    /// GETs one URL from a pod.
    #[track_caller]
    pub fn get(&self, pod: &str, url: &str) -> Answer {
        let request = Request {
            url: url.into(),
            ..Request::default()
        };
        self.http(pod, &[request]).remove(0)
    }

    /// Makes `count` requests from a pod, `concurrency` at a time.
    #[track_caller]
    pub fn load(
        &self,
        pod: &str,
        url: &str,
        count: u64,
        concurrency: u32,
        more: &[&str],
    ) -> LoadReport {
        let client = Self::bin("weft-lab-client").to_string_lossy().into_owned();
        let (count, concurrency) = (count.to_string(), concurrency.to_string());
        let mut command = vec![
            &*client,
            "load",
            "--url",
            url,
            "--count",
            &count,
            "--concurrency",
            &concurrency,
        ];
        command.extend(more);
        let out = self.exec(pod, &command).ok();
        serde_json::from_str(&out).expect("the client prints JSON")
    }

    /// Exchanges raw bytes with `to` (host:port) from a pod.
    #[track_caller]
    pub fn bytes(&self, pod: &str, to: &str, more: &[&str]) -> ByteReport {
        let client = Self::bin("weft-lab-client").to_string_lossy().into_owned();
        let mut command = vec![&*client, "bytes", "--to", to];
        command.extend(more);
        let out = self.exec(pod, &command).ok();
        serde_json::from_str(&out).expect("the client prints JSON")
    }

    /// One connection from a pod, by `weft-lab-client dial`.
    #[track_caller]
    pub fn dial(&self, pod: &str, to: &str, more: &[&str]) -> Dialled {
        self.dial_as(pod, &[], to, more)
    }

    /// The same by a process that `wrapper` (`setpriv …`) has prepared.
    #[track_caller]
    pub fn dial_as(&self, pod: &str, wrapper: &[&str], to: &str, more: &[&str]) -> Dialled {
        let client = Self::bin("weft-lab-client").to_string_lossy().into_owned();
        let command = [wrapper, &[&*client, "dial", "--to", to], more].concat();
        let out = self.exec(pod, &command).ok();
        serde_json::from_str(&out).expect("the client prints JSON")
    }

    /// One connection from a network namespace of the lab's own: `n1`, `n1-proxy`, `fabric`.
    #[track_caller]
    pub fn dial_in(&self, netns: &str, to: &str, more: &[&str]) -> Dialled {
        let client = Self::bin("weft-lab-client").to_string_lossy().into_owned();
        let command = [&[&*client, "dial", "--to", to], more].concat();
        serde_json::from_str(&self.run_in(netns, &command)).expect("the client prints JSON")
    }

    /// A program in a network namespace of the lab's own, and what it prints.
    #[track_caller]
    pub fn run_in(&self, netns: &str, command: &[&str]) -> String {
        let netns = format!("weft-{}-{netns}", self.name);
        let done = Command::new("ip")
            .args(["netns", "exec", &netns])
            .args(command)
            .output()
            .expect("ip starts");
        let err = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{command:?} in {netns}: {err}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    /// The first address of a node's proxy.
    #[track_caller]
    pub fn proxy_ip(&self, node: &str) -> String {
        let ip = ["ip", "-j", "addr", "show", "scope", "global"];
        let links = self.run_in(&format!("{node}-proxy"), &ip);
        let links: Value = serde_json::from_str(&links).expect("ip prints JSON");
        let all = links.as_array().expect("links").iter();
        let all = all.flat_map(|link| link["addr_info"].as_array().into_iter().flatten());
        let mut all = all.filter_map(|address| address["local"].as_str());
        all.next().expect("an address").to_owned()
    }

    /// Objects of a kind, as the API would show them.
    #[track_caller]
    pub fn objects(&self, kind: &str, namespace: &str) -> Vec<Value> {
        let out = self
            .weft(&["get", kind, "-n", namespace, "-o", "json"])
            .ok();
        let value: Value = serde_json::from_str(&out).expect("weft prints JSON");
        match value.get("items") {
            Some(Value::Array(items)) => items.clone(),
            _ => vec![value],
        }
    }

    /// One object.
    pub fn object(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let mut objects = self.objects(kind, namespace).into_iter();
        objects.find(|o| o["metadata"]["name"] == name)
    }

    /// The status of a condition of a route under its first parent: `(status, reason, message)`.
    pub fn route_condition(
        &self,
        kind: &str,
        ns: &str,
        name: &str,
        condition: &str,
    ) -> (String, String, String) {
        let route = self.object(kind, ns, name).unwrap_or_default();
        let conditions = route["status"]["parents"][0]["conditions"]
            .as_array()
            .cloned();
        let found = conditions
            .unwrap_or_default()
            .into_iter()
            .find(|c| c["type"] == condition);
        let text = |field: &str| match &found {
            Some(c) => c[field].as_str().unwrap_or_default().to_owned(),
            None => String::new(),
        };
        (text("status"), text("reason"), text("message"))
    }

    /// Where to dial the first pod whose name begins so, at its first address: `10.244.1.3:80`,
    /// `[fd00:10:244:1::3]:80`.
    #[track_caller]
    pub fn pod_at(&self, namespace: &str, prefix: &str, port: u16) -> String {
        at(&self.pod_ip(namespace, prefix), port)
    }

    /// All addresses of the first pod whose name begins so, in the order of the lab's families.
    #[track_caller]
    pub fn pod_ips(&self, namespace: &str, prefix: &str) -> Vec<String> {
        let pod = self.pod(namespace, prefix);
        let all = pod["status"]["podIPs"].as_array();
        let all = all.expect("a pod with addresses").iter();
        all.map(|ip| ip["ip"].as_str().expect("an address").to_owned())
            .collect()
    }

    /// The first address of the first pod whose name begins so.
    #[track_caller]
    pub fn pod_ip(&self, namespace: &str, prefix: &str) -> String {
        let pod = self.pod(namespace, prefix);
        pod["status"]["podIP"]
            .as_str()
            .expect("a pod with an address")
            .to_owned()
    }

    /// The first pod whose name begins so.
    #[track_caller]
    pub fn pod(&self, namespace: &str, prefix: &str) -> Value {
        let pods = self.objects("pods", namespace);
        let mut found = pods.into_iter().filter(|p| {
            let name = p["metadata"]["name"].as_str().unwrap_or_default();
            name.starts_with(prefix) && p["metadata"]["deletionTimestamp"].is_null()
        });
        found
            .next()
            .unwrap_or_else(|| panic!("no pod {namespace}/{prefix}…"))
    }

    /// Ends a part (`controller`, `agent/n1`, `proxy/n1`) in order, and keeps it away.
    #[track_caller]
    pub fn stop(&self, part: &str) {
        self.weft(&["stop", part]).ok();
    }

    /// Starts a part that was stopped, and waits until it is ready.
    #[track_caller]
    pub fn start(&self, part: &str) {
        self.weft(&["start", part]).ok();
    }

    /// Kills a part with SIGKILL; the lab starts it again.
    #[track_caller]
    pub fn kill(&self, part: &str) {
        self.weft(&["kill", part]).ok();
    }

    /// Replaces a proxy by one that starts beside it; returns when the old one has ended.
    #[track_caller]
    pub fn upgrade(&self, part: &str) -> String {
        self.weft(&["upgrade", part]).ok()
    }

    /// Reboots a node; returns when everything on it was started, ready or not.
    #[track_caller]
    pub fn reboot(&self, node: &str, more: &[&str]) -> String {
        let mut args = vec!["reboot", node, "--no-wait"];
        args.extend(more);
        self.weft(&args).ok()
    }

    /// What `weft lab status` knows.
    #[track_caller]
    pub fn status(&self) -> Value {
        let out = self.weft(&["status", "-o", "json"]).ok();
        serde_json::from_str(&out).expect("weft prints JSON")
    }

    /// The process of a part that runs.
    #[track_caller]
    pub fn pid(&self, part: &str) -> u32 {
        let status = self.status();
        let pid = status["parts"][part]["pid"].as_u64();
        let pid = pid.and_then(|pid| u32::try_from(pid).ok());
        pid.unwrap_or_else(|| panic!("{part} does not run: {}", status["parts"]))
    }

    /// The id of a pod's sandbox, as its node's agent has it on record.
    #[track_caller]
    pub fn sandbox(&self, namespace: &str, pod: &str) -> String {
        let nodes = std::fs::read_dir(self.state_dir().join("nodes")).expect("a lab has nodes");
        let folders = nodes.flatten().map(|node| node.path().join("sandboxes"));
        let records = folders.filter_map(|folder| std::fs::read_dir(folder).ok());
        let mut all = records
            .flat_map(|entries| entries.flatten())
            .filter_map(|entry| {
                let text = std::fs::read_to_string(entry.path()).ok()?;
                serde_json::from_str::<Value>(&text).ok()
            });
        let of = |record: &Value| record["namespace"] == namespace && record["pod"] == pod;
        let found = all.find(of);
        let id = found
            .as_ref()
            .and_then(|record| record["container_id"].as_str());
        id.unwrap_or_else(|| panic!("no sandbox of {namespace}/{pod}"))
            .to_owned()
    }

    /// Waits until every part and pod of the lab is ready.
    #[track_caller]
    pub fn whole(&self, limit: Duration) {
        eventually(limit, || {
            let status = self.status();
            let ready = |value: &Value| value["ready"] == true;
            let parts = status["parts"].as_object().cloned().unwrap_or_default();
            let pods = status["pods"].as_array().cloned().unwrap_or_default();
            if parts.values().all(ready) && pods.iter().all(ready) {
                return Ok(());
            }
            Err(self.weft(&["status"]).out)
        });
    }

    /// What a part of the lab logged (`controller`, `proxy/n1`, …).
    pub fn logs(&self, part: &str) -> String {
        self.weft(&["logs", part]).ok()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let status = self.weft(&["status"]);
            eprintln!(
                "lab {} at the end:\n{}{}",
                self.name, status.out, status.err
            );
            if let Some(keep) = env::var_os("WEFT_TEST_KEEP_LOGS") {
                let to = Path::new(&keep).join(&self.name);
                Command::new("cp")
                    .arg("-r")
                    .arg(self.state_dir())
                    .arg(to)
                    .status()
                    .ok();
            }
        }
        self.weft(&["down"]);
    }
}

//! An agent in this process, the real plugin program, pods in namespaces, a folder for the API.

use std::{
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot, watch},
};
use weft_cni::{
    agent,
    objects::pod_key,
    protocol::{Request, Response, SandboxStatus, Status, call},
};
use weft_source::{
    BoxFuture, Event, Object, ObjectKey, Source, SourceError, Writer, folder::FolderSource,
};

use crate::common::Pair;

pub const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until `condition` is some.
pub async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One node: run directory and API folder.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub source: Arc<dyn Source>,
    pub writer: Arc<dyn Writer>,
    add_timeout: Duration,
    pub sync_timeout: Duration,
    /// The network namespace of the node; without it the agent lets the node's rules be.
    pub netns: Option<PathBuf>,
    /// Orders the uninstall.
    pub leave: watch::Sender<bool>,
    /// Whether the agent has followed the order.
    pub left: watch::Sender<bool>,
    pub ready: watch::Sender<bool>,
}

/// A running agent, in a runtime of its own that ends with it as a process would.
pub struct Agent {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<Result<(), agent::AgentError>>>,
}

impl Agent {
    pub async fn stop(mut self) {
        self.stop.take();
        let thread = self.thread.take().unwrap();
        tokio::task::spawn_blocking(|| thread.join().unwrap().unwrap())
            .await
            .unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Node {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("api/manifests")).unwrap();
        let source = FolderSource::new(dir.path().join("api"));
        let writer = source.writer();
        Self {
            dir,
            source: Arc::new(source),
            writer: Arc::new(writer),
            add_timeout: Duration::from_secs(10),
            sync_timeout: agent::SYNC_TIMEOUT,
            netns: None,
            leave: watch::Sender::new(false),
            left: watch::Sender::new(false),
            ready: watch::Sender::new(false),
        }
    }

    pub fn impatient() -> Self {
        Self {
            add_timeout: Duration::from_millis(700),
            ..Self::new()
        }
    }

    fn spec(dir: &Path) -> String {
        format!("folder:{}", dir.join("api").display())
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn handover(&self) -> PathBuf {
        self.run_dir().join("handover.sock")
    }

    /// Where the runtime's results cache is.
    pub fn cni_cache(&self) -> PathBuf {
        self.dir.path().join("cni")
    }

    /// The API goes away or comes back, for agents that start afterwards and, if it can't be `read`,
    /// for those that run.
    pub fn flaky(&mut self) -> Arc<Flaky> {
        let flaky = Arc::new(Flaky {
            source: self.source.clone(),
            watched: tokio::sync::watch::Sender::new(true),
            read: AtomicBool::new(true),
        });
        self.source = flaky.clone();
        flaky
    }

    /// Starts an agent and waits until it lets proxies in.
    pub async fn start(&self) -> Agent {
        let _ = std::fs::remove_file(self.handover());
        let config = agent::Config {
            node: "one".into(),
            run_dir: self.run_dir(),
            drain_timeout: Duration::from_secs(5),
            add_timeout: self.add_timeout,
            sync_timeout: self.sync_timeout,
            vanished_check: Duration::from_millis(300),
            node_rules: self.netns.is_some(),
            source: self.source.clone(),
            writer: self.writer.clone(),
            cni_cache: Some(self.cni_cache()),
            chain: None,
            uninstall: agent::Uninstall {
                ordered: self.leave.subscribe(),
                done: self.left.clone(),
            },
            ready: self.ready.clone(),
            http: None,
        };
        let (stop, stopped) = oneshot::channel();
        let netns = self.netns.clone();
        let thread = std::thread::spawn(move || {
            if let Some(path) = netns {
                // The runtime's threads are this one's children, and in its namespace.
                let netns = std::fs::File::open(path).unwrap();
                nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            }
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(agent::run(config, async {
                let _ = stopped.await;
            }))
        });
        let socket = self.handover();
        eventually("the hand-over socket", async || {
            socket.exists().then_some(())
        })
        .await;
        Agent {
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn put(&self, name: &str, object: &Value) {
        let manifests = self.dir.path().join("api/manifests");
        let temporary = manifests.join(format!(".{name}"));
        std::fs::write(&temporary, object.to_string()).unwrap();
        std::fs::rename(&temporary, manifests.join(format!("{name}.json"))).unwrap();
    }

    pub fn namespace(&self, name: &str, labels: Value) {
        let metadata = json!({"name": name, "labels": labels});
        self.put(
            &format!("ns-{name}"),
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}),
        );
    }

    /// Writes the Pod object `shop/NAME`.
    pub fn pod(&self, name: &str, labels: Value) {
        let metadata = json!({"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": labels});
        let spec = json!({"nodeName": "one", "serviceAccountName": "cashier",  "containers": [{"name": "c", "readinessProbe": {"tcpSocket": {"port": 8080}}}]});
        self.put(
            &format!("pod-{name}"),
            &json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}),
        );
    }

    pub async fn captured(&self, pod: &str) -> Option<String> {
        let object = self.source.get(&pod_key("shop", pod)).await.unwrap()?;
        Some(
            object.value["metadata"]["annotations"]["weft.dev/captured"]
                .as_str()?
                .to_owned(),
        )
    }

    /// Writes what an agent would that has captured a sandbox.
    pub async fn says_captured(&self, pod: &str, sandbox: &str) {
        let annotations = [("weft.dev/captured".to_owned(), Some(sandbox.to_owned()))].into_iter();
        self.writer
            .annotate(&pod_key("shop", pod), annotations.collect())
            .await
            .unwrap();
    }

    /// Writes a Pod object as the kubelet has it once the pod runs, and what the runtime remembers of its
    /// sandbox, which no plugin of weft's has seen.
    pub fn runs_already(&self, name: &str, pair: &Pair) {
        let metadata = json!({"name": name, "namespace": "shop", "uid": format!("uid-{name}")});
        let object = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"nodeName": "one", "serviceAccountName": "cashier", "containers": [{"name": "c"}]},
            "status": {"podIP": "10.9.0.2", "podIPs": [{"ip": "10.9.0.2"}, {"ip": "fd09::2"}]},
        });
        self.put(&format!("pod-{name}"), &object);
        let results = self.cni_cache().join("results");
        std::fs::create_dir_all(&results).unwrap();
        let cached = json!({
            "kind": "cniCacheV1", "containerId": format!("sandbox-{name}"), "ifName": "eth0",
            "networkName": "pods",
            "cniArgs": [
                ["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", name],
                ["K8S_POD_UID", format!("uid-{name}")],
            ],
            "result": {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": pair.pod.path()}],
                "ips": [{"address": "10.9.0.2/24", "interface": 1}, {"address": "fd09::2/64", "interface": 1}],
            },
        });
        std::fs::write(
            results.join(format!("pods-sandbox-{name}-eth0")),
            cached.to_string(),
        )
        .unwrap();
    }

    /// Says what the controller says once every proxy knows that a pod has left.
    pub async fn acknowledge(&self, pod: &str, sandbox: &str) {
        let condition = json!({
            "type": "weft.dev/Captured", "status": "False", "reason": "Released",
            "message": sandbox, "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        self.writer
            .write_condition(&pod_key("shop", pod), condition)
            .await
            .unwrap();
    }

    /// Runs the plugin as a runtime does.
    pub async fn plugin(
        &self,
        command: &str,
        pod: &str,
        pair: &Pair,
        extra: Value,
    ) -> (bool, Value) {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "weft-cni", "node": "one",
            "runDir": self.run_dir(), "source": Self::spec(self.dir.path()),
            "prevResult": previous_result(),
        });
        config
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let arguments = format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod};K8S_POD_UID=uid-{pod}");
        let mut program = Command::new(env!("CARGO_BIN_EXE_weft-cni"));
        program
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", format!("sandbox-{pod}"))
            .env("CNI_NETNS", pair.pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", arguments);
        tokio::task::spawn_blocking(move || execute(program, &config))
            .await
            .unwrap()
    }

    pub async fn add(&self, pod: &str, pair: &Pair) -> (bool, Value) {
        self.plugin("ADD", pod, pair, json!({})).await
    }

    pub async fn status(&self) -> Status {
        let run_dir = self.run_dir();
        let asked =
            tokio::task::spawn_blocking(move || call(&run_dir, &Request::Status {}, PATIENCE));
        match asked.await.unwrap().unwrap() {
            Response::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    pub async fn sandbox_status(&self, pod: &str) -> Option<SandboxStatus> {
        self.status()
            .await
            .sandboxes
            .into_iter()
            .find(|status| status.pod == pod)
    }

    pub async fn until_state(&self, pod: &str, state: &str) {
        eventually(&format!("{pod} is {state}"), async || {
            self.sandbox_status(pod)
                .await
                .filter(|status| status.state == state)
        })
        .await;
    }
}

/// A source that can be away.
pub struct Flaky {
    source: Arc<dyn Source>,
    /// Whether watches begin.
    pub watched: tokio::sync::watch::Sender<bool>,
    /// Whether objects can be read.
    pub read: AtomicBool,
}

impl Source for Flaky {
    fn watch(&self) -> BoxFuture<'_, Result<mpsc::Receiver<Event>, SourceError>> {
        Box::pin(async move {
            let mut watched = self.watched.subscribe();
            watched.wait_for(|watched| *watched).await.unwrap();
            self.source.watch().await
        })
    }

    fn get<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<Object>, SourceError>> {
        if self.read.load(Ordering::Relaxed) {
            return self.source.get(key);
        }
        Box::pin(async { Err(SourceError::Other("the API is away".into())) })
    }
}

pub fn execute(mut program: Command, config: &Value) -> (bool, Value) {
    let mut child = program
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(config.to_string().as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.success(), value)
}

pub fn previous_result() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": "/x"}],
        "ips": [{"address": "10.9.0.2/24", "interface": 0}, {"address": "fd09::2/64", "interface": 0}],
    })
}

/// Dials from the pod (or its node) and reads who answers.
pub async fn who_answers(from: &crate::common::TestNs, to: &str) -> std::io::Result<String> {
    let to: SocketAddr = to.parse().unwrap();
    let stream = from.run(|| std::net::TcpStream::connect_timeout(&to, Duration::from_secs(2)))?;
    stream.set_nonblocking(true)?;
    let mut stream = TcpStream::from_std(stream)?;
    stream.write_all(b"?").await?;
    let mut answer = vec![0; 64];
    let length = tokio::time::timeout(PATIENCE, stream.read(&mut answer)).await??;
    answer.truncate(length);
    Ok(String::from_utf8(answer).unwrap())
}

/// A server that answers with its name.
pub fn serve(ns: &crate::common::TestNs, port: u16, name: &'static str) {
    let listener = ns.run(|| std::net::TcpListener::bind(("::", port)).unwrap());
    listener.set_nonblocking(true).unwrap();
    answer_with(
        tokio::net::TcpListener::from_std(listener).unwrap(),
        name.to_owned(),
    );
}

pub fn answer_with(listener: tokio::net::TcpListener, name: String) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let name = name.clone();
            tokio::spawn(async move {
                let mut byte = [0];
                while stream.read_exact(&mut byte).await.is_ok() {
                    let _ = stream.write_all(name.as_bytes()).await;
                }
            });
        }
    })
}

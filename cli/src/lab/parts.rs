//! The mesh's own programs. In: the lab. Out: controller, agents and proxies running in their
//! namespaces, in the order in which they need each other, started again when they die.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{process::Command, sync::oneshot, task::JoinSet, time::Instant};
use weft_api::names::{PORT_METRICS, PORT_READY};

use super::{
    http,
    lab::Lab,
    netns,
    paths::write_atomic,
    plan::{CONTROLLER_HTTP_PORT, CONTROLLER_PORT},
};

/// Back-off between starts of a part that dies.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
const LONG_RUN: Duration = Duration::from_secs(30);
/// Between looks at whether a part is ready.
const POLL: Duration = Duration::from_millis(50);
const POLL_TIMEOUT: Duration = Duration::from_secs(1);

/// The programs that the mesh needs beside `weft`.
pub(crate) const PROGRAMS: [&str; 4] = ["weft-controller", "weft-agent", "weft-cni", "weft-proxy"];

/// What `status` shows of a part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PartStatus {
    pub(crate) running: bool,
    pub(crate) ready: bool,
    pub(crate) restarts: u32,
    /// Why it is not ready, or how it ended last.
    pub(crate) message: String,
    pub(crate) pid: Option<u32>,
}

/// The parts by name: `controller`, `agent/n1`, `proxy/n1`.
#[derive(Default)]
pub(crate) struct Parts {
    status: Mutex<BTreeMap<String, PartStatus>>,
}

/// What makes a part ready.
enum Ready {
    Http(SocketAddr),
    Socket(PathBuf),
}

struct Part {
    name: String,
    program: &'static str,
    args: Vec<String>,
    netns: String,
    /// From where readiness is asked.
    probe_netns: String,
    ready: Ready,
}

impl Parts {
    /// All parts as they are.
    pub(crate) fn status(&self) -> BTreeMap<String, PartStatus> {
        self.status.lock().clone()
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut PartStatus)) {
        change(self.status.lock().entry(name.to_owned()).or_default());
    }
}

/// Starts the mesh, says when all of it is ready, and keeps it running until it is aborted.
pub(crate) async fn run(lab: Arc<Lab>, parts: Arc<Parts>, ready: oneshot::Sender<()>) {
    let mut tasks = JoinSet::new();
    match start(&lab, &parts, &mut tasks).await {
        Ok(()) => {
            let _ = ready.send(());
        }
        Err(error) => {
            let message = format!("{error:#}");
            tracing::error!(error = message, "the mesh can't be started");
            parts.change("mesh", |status| status.message = message);
        }
    }
    while tasks.join_next().await.is_some() {}
}

async fn start(lab: &Arc<Lab>, parts: &Arc<Parts>, tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    write_tokens(lab)?;
    launch(lab, parts, tasks, vec![controller(lab)]).await;
    if !lab.paths.bundle().exists() {
        bail!(
            "the controller is ready but wrote no {}",
            lab.paths.bundle().display()
        );
    }
    let agents = lab
        .plan
        .nodes
        .iter()
        .map(|node| agent(lab, &node.name, &node.netns))
        .collect();
    launch(lab, parts, tasks, agents).await;
    let proxies: anyhow::Result<Vec<Part>> = lab
        .plan
        .nodes
        .iter()
        .map(|node| {
            let attach = || lab.attach_proxy(&node.name);
            let addresses = tokio::task::block_in_place(attach)
                .with_context(|| format!("the pod network of {}'s proxy", node.name))?;
            let address = addresses.first().context("the proxy got no address")?;
            Ok(proxy(lab, node, SocketAddr::new(*address, PORT_READY)))
        })
        .collect();
    launch(lab, parts, tasks, proxies?).await;
    Ok(())
}

fn write_tokens(lab: &Lab) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut all = String::new();
    for node in &lab.plan.nodes {
        let token = format!("{}{}", super::api::new_uid(), super::api::new_uid()).replace('-', "");
        all += &format!("{token} {}\n", node.name);
        let file = lab.paths.token(&node.name);
        write_atomic(&file, token.as_bytes())?;
        fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
    }
    let file = lab.paths.tokens();
    write_atomic(&file, all.as_bytes())?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
    Ok(())
}

fn args(list: &[(&str, String)]) -> Vec<String> {
    list.iter()
        .flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()])
        .collect()
}

fn shown(path: PathBuf) -> String {
    path.display().to_string()
}

fn controller(lab: &Lab) -> Part {
    let address = lab.plan.controller();
    let http = SocketAddr::new(address, CONTROLLER_HTTP_PORT);
    Part {
        name: "controller".into(),
        program: "weft-controller",
        args: args(&[
            ("--source", format!("folder:{}", lab.paths.api().display())),
            (
                "--listen",
                SocketAddr::new(address, CONTROLLER_PORT).to_string(),
            ),
            ("--http", http.to_string()),
            ("--ca-dir", shown(lab.paths.ca())),
            ("--bundle-out", shown(lab.paths.bundle())),
            ("--node-tokens", shown(lab.paths.tokens())),
        ]),
        netns: lab.plan.fabric.netns.clone(),
        probe_netns: lab.plan.fabric.netns.clone(),
        ready: Ready::Http(http),
    }
}

fn agent(lab: &Lab, node: &str, netns: &str) -> Part {
    let run_dir = lab.paths.node(node);
    Part {
        name: format!("agent/{node}"),
        program: "weft-agent",
        ready: Ready::Socket(run_dir.join("agent.sock")),
        args: args(&[
            ("--node", node.to_owned()),
            ("--source", format!("folder:{}", lab.paths.api().display())),
            ("--run-dir", shown(run_dir)),
        ]),
        netns: netns.to_owned(),
        probe_netns: netns.to_owned(),
    }
}

fn proxy(lab: &Lab, node: &super::plan::NodePlan, ready: SocketAddr) -> Part {
    let controller = SocketAddr::new(lab.plan.controller(), CONTROLLER_PORT);
    let run_dir = lab.paths.node(&node.name);
    let any = |port| SocketAddr::new(ready.ip(), port).to_string();
    Part {
        name: format!("proxy/{}", node.name),
        program: "weft-proxy",
        args: args(&[
            ("--node", node.name.clone()),
            ("--zone", node.zone.clone()),
            ("--handover", shown(run_dir.join("handover.sock"))),
            ("--controller", format!("https://{controller}")),
            ("--trust-bundle", shown(lab.paths.bundle())),
            ("--token-file", shown(lab.paths.token(&node.name))),
            ("--snapshot-dir", shown(run_dir.join("snapshot"))),
            ("--metrics", any(PORT_METRICS)),
            ("--ready", any(PORT_READY)),
            ("--access-log", shown(lab.paths.access_log(&node.name))),
        ]),
        netns: node.proxy_netns.clone(),
        probe_netns: node.netns.clone(),
        ready: Ready::Http(ready),
    }
}

/// Starts parts and waits until all are ready; whoever waits for the lab bounds the time.
async fn launch(lab: &Arc<Lab>, parts: &Arc<Parts>, tasks: &mut JoinSet<()>, list: Vec<Part>) {
    let names: Vec<String> = list.iter().map(|part| part.name.clone()).collect();
    for part in list {
        parts.change(&part.name, |_| {});
        let part = Arc::new(part);
        tasks.spawn(supervise(
            Arc::clone(lab),
            Arc::clone(parts),
            Arc::clone(&part),
        ));
        tasks.spawn(watch_readiness(Arc::clone(parts), part));
    }
    loop {
        let status = parts.status();
        if names
            .iter()
            .all(|name| status.get(name).is_some_and(|status| status.ready))
        {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn supervise(lab: Arc<Lab>, parts: Arc<Parts>, part: Arc<Part>) {
    let mut backoff = FIRST_BACKOFF;
    loop {
        let began = Instant::now();
        let ended = match once(&lab, &parts, &part).await {
            Ok(status) => format!("ended: {status}"),
            Err(error) => format!("can't be run: {error:#}"),
        };
        tracing::warn!(part = part.name, ended, "part is started again");
        if began.elapsed() > LONG_RUN {
            backoff = FIRST_BACKOFF;
        }
        parts.change(&part.name, |status| {
            status.running = false;
            status.ready = false;
            status.pid = None;
            status.message = ended;
        });
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(MAX_BACKOFF);
        parts.change(&part.name, |status| status.restarts += 1);
    }
}

async fn once(lab: &Lab, parts: &Parts, part: &Part) -> anyhow::Result<std::process::ExitStatus> {
    let log = lab.paths.part_log(&part.name);
    let log = OpenOptions::new().create(true).append(true).open(log)?;
    let runtime = tokio::runtime::Handle::current();
    let mut child = netns::run(&part.netns, || {
        let _context = runtime.enter();
        let mut command = Command::new(lab.programs.join(part.program));
        command
            .args(&part.args)
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log);
        // The log is a file.
        command.env("NO_COLOR", "1").process_group(0).spawn()
    })?
    .with_context(|| format!("{} in {}", part.program, lab.programs.display()))?;
    parts.change(&part.name, |status| {
        status.running = true;
        status.pid = child.id();
    });
    Ok(child.wait().await?)
}

async fn watch_readiness(parts: Arc<Parts>, part: Arc<Part>) {
    loop {
        let asked = tokio::time::timeout(POLL_TIMEOUT, ask(&part)).await;
        let answer = asked.unwrap_or_else(|_| Err("no answer".into()));
        let ready = answer.is_ok();
        parts.change(&part.name, |status| {
            status.ready = ready && status.running;
            if status.running {
                status.message = answer.err().unwrap_or_default();
            }
        });
        tokio::time::sleep(if ready { POLL * 10 } else { POLL }).await;
    }
}

async fn ask(part: &Part) -> Result<(), String> {
    match &part.ready {
        Ready::Socket(path) => tokio::net::UnixStream::connect(path)
            .await
            .map(drop)
            .map_err(|error| format!("{}: {error}", path.display())),
        Ready::Http(to) => {
            let request = http::Get {
                to: *to,
                host: None,
                path: "/ready",
                headers: &[],
            };
            let answer = http::get(&part.probe_netns, request)
                .await
                .map_err(|e| format!("{e:#}"))?;
            if answer.status == 200 {
                return Ok(());
            }
            let body = String::from_utf8_lossy(&answer.body);
            Err(body.trim().replace('\n', "; "))
        }
    }
}

/// A page of the controller's, such as `/debug/invalid`.
pub(crate) async fn controller_page(lab: &Lab, path: &str) -> Option<serde_json::Value> {
    let to = SocketAddr::new(lab.plan.controller(), CONTROLLER_HTTP_PORT);
    let request = http::Get {
        to,
        host: None,
        path,
        headers: &[],
    };
    let asked = http::get(&lab.plan.fabric.netns, request);
    let answer = tokio::time::timeout(POLL_TIMEOUT, asked).await.ok()?.ok()?;
    (answer.status == 200).then(|| serde_json::from_slice(&answer.body).ok())?
}

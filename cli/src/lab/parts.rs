//! The mesh's own programs, by name: `controller`, `agent/n1`, `proxy/n1`. In: the lab, and
//! commands. Out: each part as it is wanted: running (started in the order in which they need each
//! other, and again when they die), stopped, or replaced by a successor beside it.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use hyper::body::Bytes;
use parking_lot::Mutex;
use tokio::{sync::oneshot, time};
use weft_api::names::{PORT_ADMIN, PORT_METRICS};

use super::{
    http,
    lab::Lab,
    paths::write_atomic,
    plan::NodePlan,
    programs::{self, Program, Ready},
    supervise::{Instance, PartStatus},
};

/// How long a part that a command starts may take to be ready.
const READY: Duration = Duration::from_secs(60);
/// How long a page of a part's may take.
const PAGE: Duration = Duration::from_secs(1);
/// A proxy whose message is this long in coming will not come.
const FOREVER: Duration = Duration::from_secs(3600 * 24 * 365);

/// The parts of a lab.
pub(crate) struct Parts {
    lab: Arc<Lab>,
    slots: Mutex<BTreeMap<String, Arc<Slot>>>,
    /// Why the mesh can't be started.
    failure: Mutex<Option<String>>,
}

/// A part: the process that counts, and those that it replaced.
struct Slot {
    name: String,
    /// The node, but of the controller.
    node: Option<NodePlan>,
    current: Mutex<Arc<Instance>>,
    draining: Mutex<Vec<Arc<Instance>>>,
    /// Held while a successor starts or the node reboots.
    turn: tokio::sync::Mutex<()>,
}

impl Slot {
    fn current(&self) -> Arc<Instance> {
        Arc::clone(&self.current.lock())
    }

    fn is_proxy(&self) -> bool {
        self.name.starts_with("proxy/")
    }

    fn status(&self) -> PartStatus {
        let mut status = self.current().status();
        let draining = self.draining.lock();
        status.draining = draining.iter().filter_map(|old| old.status().pid).collect();
        status
    }
}

impl Parts {
    pub(crate) fn new(lab: Arc<Lab>) -> Self {
        Self {
            lab,
            slots: Mutex::default(),
            failure: Mutex::default(),
        }
    }

    /// All parts as they are.
    pub(crate) fn status(&self) -> BTreeMap<String, PartStatus> {
        let slots = self.slots.lock();
        let mut all: BTreeMap<_, _> = slots
            .iter()
            .map(|(name, slot)| (name.clone(), slot.status()))
            .collect();
        if let Some(message) = self.failure.lock().clone() {
            let failed = PartStatus {
                message,
                ..PartStatus::default()
            };
            all.insert("mesh".into(), failed);
        }
        all
    }

    // === the start of a lab ===

    /// Starts the mesh, and says when all of it is ready.
    pub(crate) async fn run(&self, ready: oneshot::Sender<()>) {
        match self.start_all().await {
            Ok(()) => {
                let _ = ready.send(());
            }
            Err(error) => {
                let message = format!("{error:#}");
                tracing::error!(error = message, "the mesh can't be started");
                *self.failure.lock() = Some(message);
            }
        }
        std::future::pending().await
    }

    /// In the order in which they need each other; whoever waits for the lab bounds the time.
    async fn start_all(&self) -> anyhow::Result<()> {
        let lab = &self.lab;
        write_tokens(lab)?;
        let controller = self.launch("controller", None, programs::controller(lab));
        controller.ready(FOREVER).await.ok();
        if !lab.paths.bundle().exists() {
            bail!(
                "the controller is ready but wrote no {}",
                lab.paths.bundle().display()
            );
        }
        let nodes = &lab.plan.nodes;
        let agents = nodes.iter().map(|node| {
            let name = format!("agent/{}", node.name);
            self.launch(&name, Some(node), programs::agent(lab, node))
        });
        for agent in agents.collect::<Vec<_>>() {
            agent.ready(FOREVER).await.ok();
        }
        let proxies: anyhow::Result<Vec<_>> = nodes
            .iter()
            .map(|node| {
                let name = format!("proxy/{}", node.name);
                Ok(self.launch(&name, Some(node), self.attach_proxy(node)?))
            })
            .collect();
        for proxy in proxies? {
            proxy.ready(FOREVER).await.ok();
        }
        Ok(())
    }

    fn launch(&self, name: &str, node: Option<&NodePlan>, program: Program) -> Arc<Instance> {
        let instance = Instance::start(&self.lab, name, program);
        let slot = Slot {
            name: name.to_owned(),
            node: node.cloned(),
            current: Mutex::new(Arc::clone(&instance)),
            draining: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        };
        self.slots.lock().insert(name.to_owned(), Arc::new(slot));
        instance
    }

    /// Makes a pod network for one more proxy of a node, and says what to run in it.
    fn attach_proxy(&self, node: &NodePlan) -> anyhow::Result<Program> {
        let attach = || self.lab.attach_proxy(node);
        let (netns, address) = tokio::task::block_in_place(attach)
            .with_context(|| format!("the pod network of {}'s proxy", node.name))?;
        Ok(programs::proxy(&self.lab, node, &netns, address))
    }

    // === commands ===

    /// Ends a part until it is started.
    pub(crate) async fn stop(&self, name: &str, kill: bool) -> anyhow::Result<String> {
        let part = self.slot(name)?.current();
        if part.is_stopped() {
            bail!("{name} is stopped already");
        }
        let began = Instant::now();
        part.stop(!kill);
        part.ended().await;
        Ok(format!("{name} stopped{}", after(began)))
    }

    /// Starts a part that was stopped.
    pub(crate) async fn start(&self, name: &str, wait: bool) -> anyhow::Result<String> {
        let part = self.slot(name)?.current();
        if !part.is_stopped() {
            bail!("{name} is not stopped");
        }
        let began = Instant::now();
        part.resume();
        if !wait {
            return Ok(format!("{name} started"));
        }
        let ready = part.ready(READY).await;
        ready.map_err(|why| anyhow::anyhow!("{why}; it is left running"))?;
        Ok(format!("{name} started, ready{}", after(began)))
    }

    /// Kills a part with SIGKILL; it is started again.
    pub(crate) async fn kill(&self, name: &str) -> anyhow::Result<String> {
        let part = self.slot(name)?.current();
        if part.is_stopped() {
            bail!("{name} is stopped");
        }
        let pid = part.kill().await?;
        Ok(format!("{name} killed (process {pid})"))
    }

    /// Starts a proxy's successor beside it, and ends the old one once that is ready.
    pub(crate) async fn upgrade(&self, name: &str, wait: bool) -> anyhow::Result<String> {
        let slot = self.slot(name)?;
        let (Some(node), true) = (&slot.node, slot.is_proxy()) else {
            bail!("{name} has no successor beside it: only proxies do; use stop and start");
        };
        let began = Instant::now();
        let turn = slot.turn.lock().await;
        let old = slot.current();
        if old.is_stopped() {
            bail!("{name} is stopped: `weft lab start {name}` first");
        }
        let program = self.attach_proxy(node)?;
        let successor = Instance::start(&self.lab, name, program);
        if let Err(why) = successor.ready(READY).await {
            successor.stop(false);
            self.remove_proxy(node, &successor).await;
            bail!("the successor of {why}; the old one goes on");
        }
        *slot.current.lock() = Arc::clone(&successor);
        slot.draining.lock().push(Arc::clone(&old));
        old.stop(true);
        drop(turn);
        let pid = |part: &Instance| part.status().pid.unwrap_or_default();
        let (new_pid, old_pid) = (pid(&successor), pid(&old));
        let said = format!("{name}: process {new_pid} ready{}", after(began));

        let (lab, node) = (Arc::clone(&self.lab), node.clone());
        let kept = Arc::clone(&slot);
        let removal = tokio::spawn(async move {
            remove_proxy(&lab, &node, &old).await;
            kept.draining.lock().retain(|one| !Arc::ptr_eq(one, &old));
        });
        if !wait {
            return Ok(format!("{said}, {old_pid} drains"));
        }
        let began = Instant::now();
        removal.await?;
        Ok(format!("{said}, {old_pid} ended{}", after(began)))
    }

    async fn remove_proxy(&self, node: &NodePlan, instance: &Instance) {
        remove_proxy(&self.lab, node, instance).await;
    }

    /// Whether a proxy has the controller's stream, as its metrics say; none if it is no proxy, or
    /// does not answer.
    pub(crate) async fn has_controller(&self, name: &str) -> Option<bool> {
        let slot = self.slot(name).ok().filter(|slot| slot.is_proxy())?;
        let program = slot.current().program();
        let Ready::Http(ready) = program.ready else {
            return None;
        };
        let to = SocketAddr::new(ready.ip(), PORT_METRICS);
        let body = page(&program.probe_netns, to, "/metrics").await?;
        let text = String::from_utf8_lossy(&body);
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix("weft_xds_connected "))?;
        Some(value.trim() != "0")
    }

    // === a node's power ===

    /// Kills a node's parts; they stay away until [`Self::power_on`].
    pub(crate) async fn cut_power(&self, node: &str) {
        for slot in self.of_node(node) {
            // Whoever starts a successor is let finish.
            let _turn = slot.turn.lock().await;
            slot.current().power_off();
            slot.draining.lock().iter().for_each(|old| old.stop(false));
        }
    }

    /// Waits until nothing of a node's parts is left.
    pub(crate) async fn without_power(&self, node: &str) {
        for slot in self.of_node(node) {
            slot.current().ended().await;
            // Until the namespaces of those that drained are gone.
            while !slot.draining.lock().is_empty() {
                time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// The names of a node's parts.
    pub(crate) fn names_of_node(&self, node: &str) -> Vec<String> {
        let slots = self.of_node(node).into_iter();
        slots.map(|slot| slot.name.clone()).collect()
    }

    /// Starts a part of a node that has power again, unless it was stopped. The proxy gets a new
    /// pod network: its old one is gone.
    pub(crate) fn power_on(&self, name: &str) -> anyhow::Result<()> {
        let slot = self.slot(name)?;
        let part = slot.current();
        if let (Some(node), true) = (&slot.node, slot.is_proxy()) {
            part.replace(self.attach_proxy(node)?);
        }
        part.power_on();
        Ok(())
    }

    fn of_node(&self, node: &str) -> Vec<Arc<Slot>> {
        let slots = self.slots.lock();
        let of_node = |slot: &&Arc<Slot>| slot.node.as_ref().is_some_and(|n| n.name == node);
        slots.values().filter(of_node).cloned().collect()
    }

    fn slot(&self, name: &str) -> anyhow::Result<Arc<Slot>> {
        let slots = self.slots.lock();
        if let Some(slot) = slots.get(name) {
            return Ok(Arc::clone(slot));
        }
        let all: Vec<&str> = slots.keys().map(String::as_str).collect();
        if all.is_empty() {
            bail!("there is no part {name}: this lab has none (yet, or --no-mesh)");
        }
        bail!("there is no part {name}: there is {}", all.join(", "))
    }
}

/// Waits for a proxy that was told to end, and removes its pod network.
async fn remove_proxy(lab: &Lab, node: &NodePlan, instance: &Instance) {
    instance.ended().await;
    instance.retire();
    let netns = instance.program().netns.clone();
    tokio::task::block_in_place(|| lab.detach_proxy(node, &netns));
}

fn after(began: Instant) -> String {
    format!(" after {:.1} s", began.elapsed().as_secs_f64())
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

/// A page of the controller's, such as `/debug/invalid`.
pub(crate) async fn controller_page(lab: &Lab, path: &str) -> Option<serde_json::Value> {
    // The default of --debug.
    let to = SocketAddr::from(([127, 0, 0, 1], PORT_ADMIN));
    let body = page(&lab.plan.fabric.netns, to, path).await?;
    serde_json::from_slice(&body).ok()
}

async fn page(netns: &str, to: SocketAddr, path: &str) -> Option<Bytes> {
    let request = http::Get {
        to,
        host: None,
        path,
        headers: &[],
    };
    let asked = http::get(netns, request);
    let answer = time::timeout(PAGE, asked).await.ok()?.ok()?;
    (answer.status == 200).then_some(answer.body)
}

//! One sandbox: drives its state machine, one task each, so that a slow pod blocks no other.
//!
//! Flows in: what labels say (through the objects' version), and that the sandbox is going. Flows
//! out: rules and sockets in the pod, offers to proxies, the annotation, and a status to watch.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{info, warn};
use weft_api::handover;

use super::{
    Context,
    machine::{self, Event, Phase, State},
    proxies::Offer,
    report,
};
use crate::{
    listeners::Listeners,
    netns::NetNs,
    objects::Desired,
    protocol::SandboxStatus,
    rules::{self, PodRules},
    sandbox::Sandbox,
};

/// How long an attempt to have a pod served waits before it tells what is missing.
const SERVED_PATIENCE: Duration = Duration::from_secs(5);
/// First and longest wait before work is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What others may know of a sandbox.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) state: State,
    /// Whether the API knows the pod, so that `state.wanted` is a decision.
    pub(super) decided: bool,
    /// Whether the first piece of work was tried.
    pub(super) tried: bool,
    pub(super) strict: bool,
    pub(super) error: Option<String>,
}

/// A running worker.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    pub(super) pod: Arc<PodContext>,
    pub(super) view: watch::Receiver<View>,
    delete: watch::Sender<bool>,
}

/// What the work of one sandbox shares.
#[derive(Debug)]
pub(super) struct PodContext {
    pub(super) sandbox: Sandbox,
    pub(super) netns: Arc<NetNs>,
    /// Of the proxy's sockets.
    mark: u32,
    listeners: Mutex<Option<Arc<Listeners>>>,
    desired: Mutex<Option<Desired>>,
}

impl PodContext {
    /// The plan of the pod's rules.
    pub(super) fn plan(&self, phase: rules::Phase) -> Result<rules::Plan, rules::RulesError> {
        let probe_ports = self
            .desired
            .lock()
            .as_ref()
            .map(|d| d.probe_ports.clone())
            .unwrap_or_default();
        let ipv6 = rules::ipv6_is_enabled(&self.netns)?;
        Ok(rules::plan(&PodRules {
            phase,
            ipv6,
            probe_ports,
            mark: self.mark,
        }))
    }

    fn handover_pod(&self) -> handover::Pod {
        let desired = self.desired.lock().clone().unwrap_or_default();
        let bytes = |address: &std::net::IpAddr| match address {
            std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
            std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        handover::Pod {
            sandbox: self.sandbox.container_id.clone(),
            uid: self.sandbox.uid.clone(),
            namespace: self.sandbox.namespace.clone(),
            name: self.sandbox.pod.clone(),
            service_account: desired.service_account,
            addresses: self.sandbox.addresses.iter().map(bytes).collect(),
            strict: desired.strict,
            mark: self.mark,
        }
    }
}

impl Handle {
    /// Says that the sandbox is going.
    pub(super) fn delete(&self) {
        self.delete.send_replace(true);
    }

    pub(super) fn status(&self) -> SandboxStatus {
        let (view, sandbox) = (self.view.borrow(), &self.pod.sandbox);
        SandboxStatus {
            container_id: sandbox.container_id.clone(),
            namespace: sandbox.namespace.clone(),
            pod: sandbox.pod.clone(),
            addresses: sandbox.addresses.clone(),
            state: view.state.phase.as_str().into(),
            captured: view.state.redirected,
            wanted: view.decided.then_some(view.state.wanted),
            strict: view.strict,
            error: view.error.clone(),
        }
    }
}

/// Starts the worker of a sandbox.
pub(super) fn spawn(
    context: Arc<Context>,
    sandbox: Sandbox,
    netns: NetNs,
    listeners: Option<Listeners>,
) -> Handle {
    let (delete, deleted) = watch::channel(false);
    let pod = Arc::new(PodContext {
        mark: context.marks.of(&sandbox.container_id),
        sandbox,
        netns: Arc::new(netns),
        listeners: Mutex::new(listeners.map(Arc::new)),
        desired: Mutex::default(),
    });
    let (found, error) = match found(&context, &pod) {
        Ok(found) => (found, None),
        Err(error) => (false, Some(error.to_string())),
    };
    let desired = context.desired(&pod.sandbox);
    let decided = desired.is_some();
    // While the API does not know the pod, what is captured stays captured, and as it was.
    let wanted = desired.as_ref().map_or(found, |desired| desired.captured);
    let desired = match desired {
        Some(desired) => {
            remember(&context, &pod.sandbox, &desired);
            Some(desired)
        }
        None if found => recall(&context, &pod.sandbox),
        None => None,
    };
    let view = View {
        state: machine::begin(found, wanted),
        decided,
        tried: false,
        strict: desired.as_ref().is_some_and(|desired| desired.strict),
        error,
    };
    *pod.desired.lock() = desired;
    let (sender, receiver) = watch::channel(view.clone());
    let worker = Worker {
        context,
        pod: pod.clone(),
        view,
        sender,
        stale: None,
    };
    tokio::spawn(worker.run(deleted));
    Handle {
        pod,
        view: receiver,
        delete,
    }
}

/// Whether an earlier agent has left rules or a report.
fn found(context: &Context, pod: &PodContext) -> Result<bool, rules::RulesError> {
    let reported = context.reported(&pod.sandbox);
    Ok(rules::inspect(&pod.netns)?.is_some() || reported)
}

fn remember(context: &Context, sandbox: &Sandbox, desired: &Desired) {
    if desired.captured
        && let Err(error) = context.store.remember(&sandbox.container_id, desired)
    {
        warn!(pod = sandbox.pod_name(), %error, "an agent that starts while the API is away can't serve it");
    }
}

fn recall(context: &Context, sandbox: &Sandbox) -> Option<Desired> {
    context
        .store
        .recall(&sandbox.container_id)
        .unwrap_or_else(|error| {
            warn!(pod = sandbox.pod_name(), %error, "nothing is remembered of it");
            None
        })
}

struct Worker {
    context: Arc<Context>,
    pod: Arc<PodContext>,
    view: View,
    sender: watch::Sender<View>,
    /// The sandbox that was last found in the pod's annotation, and not on the node.
    stale: Option<String>,
}

impl Worker {
    async fn run(mut self, mut deleted: watch::Receiver<bool>) {
        let mut objects = self.context.objects_version.subscribe();
        let mut vanished = tokio::time::interval(self.context.vanished_check);
        let mut backoff = BACKOFF.0;
        self.tell_probed();
        // Between subscription and here labels may have changed.
        self.look();
        while self.view.state.phase != Phase::Gone {
            let phase = self.view.state.phase;
            let mut work = Box::pin(work(self.context.clone(), self.pod.clone(), phase));
            while self.view.state.phase == phase {
                tokio::select! {
                    result = &mut work => {
                        self.worked(phase, result);
                        break;
                    }
                    _ = objects.changed() => self.look(),
                    Ok(_) = deleted.wait_for(|&deleted| deleted), if !self.view.state.deleted => {
                        self.happen(Event::Deleted);
                    }
                    _ = vanished.tick() => {
                        if !self.pod.netns.is_still_there() && !self.view.state.deleted {
                            self.vanish();
                        }
                        self.look_at_report();
                    }
                }
            }
            if self.view.state.phase == phase {
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF.1);
            } else {
                backoff = BACKOFF.0;
            }
        }
        close(&self.context, &self.pod);
        self.context.forget(&self.pod);
    }

    fn worked(&mut self, phase: Phase, result: Result<(), String>) {
        self.view.tried = true;
        match result {
            Ok(()) => {
                self.view.error = None;
                self.happen(Event::Done);
            }
            Err(error) => {
                // Said once, not at each attempt.
                if self.view.error.as_ref() != Some(&error) {
                    warn!(
                        pod = self.pod.sandbox.pod_name(),
                        sandbox = self.pod.sandbox.container_id,
                        phase = phase.as_str(),
                        error,
                        "failed; trying again"
                    );
                }
                self.view.error = Some(error);
                self.happen(Event::Failed);
            }
        }
    }

    fn happen(&mut self, event: Event) {
        let before = self.view.state.phase;
        self.view.state = machine::next(self.view.state, event);
        if self.has_stale_report() {
            self.view.state = machine::next(self.view.state, Event::ReportStale);
        }
        let after = self.view.state.phase;
        if before != after {
            info!(
                pod = self.pod.sandbox.pod_name(),
                sandbox = self.pod.sandbox.container_id,
                "{}",
                after.as_str()
            );
        }
        self.tell_probed();
        self.sender.send_replace(self.view.clone());
    }

    fn tell_probed(&self) {
        let sandbox = &self.pod.sandbox;
        let mut probed = Vec::new();
        if self.view.state.redirected
            && self.view.state.phase != Phase::Gone
            && let Some(desired) = self.pod.desired.lock().as_ref()
        {
            for &address in &sandbox.addresses {
                probed.extend(desired.probe_ports.iter().map(|&port| (address, port)));
            }
        }
        self.context.probed.set(&sandbox.container_id, probed);
    }

    /// Looks at what labels say now.
    fn look(&mut self) {
        let Some(desired) = self.context.desired(&self.pod.sandbox) else {
            return;
        };
        self.look_at_report();
        let before = self.pod.desired.lock().replace(desired.clone());
        if self.view.decided && before.as_ref() == Some(&desired) {
            return;
        }
        self.view.decided = true;
        self.view.strict = desired.strict;
        remember(&self.context, &self.pod.sandbox, &desired);
        if before.is_none_or(|before| before.strict != desired.strict) {
            self.context.proxies.update(self.pod.handover_pod());
        }
        self.happen(Event::Wanted(desired.captured));
    }

    /// Somebody may have taken the annotation away, or it may be of a sandbox that is gone.
    fn look_at_report(&mut self) {
        let sandbox = &self.pod.sandbox;
        match self.view.state.phase {
            Phase::In if self.context.is_unreported(sandbox) => self.happen(Event::ReportLost),
            // Looked at in there.
            Phase::Out => self.happen(Event::Wanted(self.view.state.wanted)),
            _ => {}
        }
    }

    /// At rest outside of the mesh, with a report of a sandbox that is gone, which was not tried to be
    /// taken back before.
    fn has_stale_report(&mut self) -> bool {
        if self.view.state.phase != Phase::Out {
            return false;
        }
        let stale = self.context.stale_report(&self.pod.sandbox);
        let new = stale.is_some() && stale != self.stale;
        self.stale = stale;
        new
    }

    fn vanish(&mut self) {
        let sandbox = &self.pod.sandbox;
        warn!(
            pod = sandbox.pod_name(),
            sandbox = sandbox.container_id,
            "the network namespace has vanished without the runtime telling"
        );
        if let Err(error) = self.context.store.remove(&sandbox.container_id) {
            warn!(%error, "the sandbox's record stays");
        }
        self.happen(Event::Deleted);
    }
}

/// The work of a phase.
async fn work(context: Arc<Context>, pod: Arc<PodContext>, phase: Phase) -> Result<(), String> {
    match phase {
        Phase::Out | Phase::In | Phase::Gone => std::future::pending().await,
        Phase::Listening => {
            if pod.sandbox.addresses.is_empty() {
                return Err("the plugins before weft-cni gave the pod no address; is weft-cni last in the CNI chain?".into());
            }
            if pod.desired.lock().is_none() {
                return Err("the API does not know the pod, and nothing is remembered of it: without its service account no proxy can serve it".into());
            }
            let held = pod.listeners.lock().clone();
            let listeners = match held {
                Some(listeners) => listeners,
                None => Arc::new(in_pod(&pod, |pod| Listeners::make(&pod.netns)).await?),
            };
            *pod.listeners.lock() = Some(listeners.clone());
            // On offer as soon as they exist: a proxy's snapshot must not lack them.
            let offer = Offer {
                pod: pod.handover_pod(),
                netns: pod.netns.clone(),
                listeners,
            };
            context.proxies.offer(offer);
            Ok(())
        }
        Phase::Offering => {
            context
                .proxies
                .served(&pod.sandbox.container_id, SERVED_PATIENCE)
                .await
        }
        Phase::Redirecting => apply(&pod, rules::Phase::Joined).await,
        Phase::Reporting => report::report(&context, &pod.sandbox).await,
        Phase::Unreporting => report::withdraw(&context, &pod.sandbox).await,
        Phase::Acknowledging => {
            report::acknowledged(&context, &pod.sandbox).await;
            Ok(())
        }
        Phase::Releasing => apply(&pod, rules::Phase::Leaving).await,
        Phase::Draining => {
            context
                .proxies
                .drain(&pod.sandbox.container_id, context.drain_timeout)
                .await;
            Ok(())
        }
        Phase::Removing => {
            apply(&pod, rules::Phase::Removed).await?;
            close(&context, &pod);
            Ok(())
        }
    }
}

fn close(context: &Context, pod: &PodContext) {
    pod.listeners.lock().take();
    context.proxies.remove(&pod.sandbox.container_id);
}

async fn apply(pod: &Arc<PodContext>, phase: rules::Phase) -> Result<(), String> {
    in_pod(pod, move |pod| rules::apply(&pod.netns, &pod.plan(phase)?)).await
}

/// Runs what enters the pod's namespace off the runtime's threads.
pub(super) async fn in_pod<T: Send + 'static, E: std::fmt::Display>(
    pod: &Arc<PodContext>,
    work: impl FnOnce(&PodContext) -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    let pod = pod.clone();
    tokio::task::spawn_blocking(move || work(&pod).map_err(|error| error.to_string()))
        .await
        .unwrap_or_else(|panic| Err(format!("a defect in weft-agent: {panic}")))
}

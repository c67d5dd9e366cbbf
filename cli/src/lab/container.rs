//! Runs one container: starts it, probes it, starts it again, stops it. In: its plan. Out: its
//! state, reported at every change.

use std::{
    fs::OpenOptions,
    net::IpAddr,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::{Value, json};
use tokio::{process::Command, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    api::now,
    podspec::{ContainerPlan, PreStop},
    probe::{self, ProbePlan, Target, Threshold},
};

/// Back-off between starts: doubled after each, forgotten after a long run.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
const LONG_RUN: Duration = Duration::from_secs(60);

/// How to get into a container: `weft __pod-exec FILE COMMAND…`.
#[derive(Clone, Debug)]
pub(crate) struct Enter {
    pub(crate) weft: PathBuf,
    pub(crate) file: PathBuf,
}

impl Enter {
    fn command(&self, command: &[String]) -> Command {
        let mut process = Command::new(&self.weft);
        process.arg("__pod-exec").arg(&self.file).args(command);
        // Of its own group: a terminal's Ctrl-C is for the lab, which stops pods in order.
        process.stdin(Stdio::null()).process_group(0);
        process
    }

    /// Runs a probe's command.
    pub(crate) async fn probe(&self, command: &[String]) -> Result<(), String> {
        let mut process = self.command(command);
        process
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let output = process.output().await.map_err(|e| format!("exec: {e}"))?;
        if output.status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        Err(format!("exec: {}: {}", output.status, stderr.trim()))
    }
}

/// Where a container is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State {
    Waiting {
        reason: &'static str,
        message: String,
    },
    Running {
        since: String,
    },
    Terminated {
        code: i32,
        since: String,
        at: String,
    },
}

impl State {
    /// As in a pod's status.
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Waiting { reason, message } => {
                json!({"waiting": {"reason": reason, "message": message}})
            }
            Self::Running { since } => json!({"running": {"startedAt": since}}),
            Self::Terminated { code, since, at } => {
                let reason = if *code == 0 { "Completed" } else { "Error" };
                json!({"terminated": {
                    "exitCode": code, "reason": reason, "startedAt": since, "finishedAt": at,
                }})
            }
        }
    }
}

/// What is reported of a container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Status {
    pub(crate) state: State,
    pub(crate) last: Option<State>,
    pub(crate) ready: bool,
    pub(crate) restarts: u32,
    /// Why a probe fails.
    pub(crate) note: String,
}

impl Status {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Waiting {
                reason: "ContainerCreating",
                message: String::new(),
            },
            last: None,
            ready: false,
            restarts: 0,
            note: String::new(),
        }
    }
}

/// A container of a pod that has its network.
pub(crate) struct Container {
    /// `namespace/pod/container`, for messages.
    pub(crate) name: String,
    pub(crate) plan: ContainerPlan,
    pub(crate) enter: Enter,
    pub(crate) log: PathBuf,
    pub(crate) node_netns: String,
    pub(crate) address: IpAddr,
    pub(crate) grace: Duration,
    /// How often it was started before, in sandboxes that were lost.
    pub(crate) restarts: u32,
    /// Cancelled to stop it.
    pub(crate) stop: CancellationToken,
}

impl Container {
    /// Runs it until it has ended for good (true: with success) or was stopped.
    pub(crate) async fn run(&self, report: &(dyn Fn(&Status) + Send + Sync)) -> bool {
        let mut status = Status {
            restarts: self.restarts,
            ..Status::new()
        };
        let mut backoff = FIRST_BACKOFF;
        loop {
            let began = Instant::now();
            let since = now();
            let code = match self.once(&mut status, &since, report).await {
                Ok(exit) => exit_code(exit),
                Err(error) => {
                    tracing::warn!(container = self.name, %error, "container can't be started");
                    status.note = error.to_string();
                    128
                }
            };
            let ended = State::Terminated {
                code,
                since,
                at: now(),
            };
            status.ready = false;
            status.state = ended.clone();
            let success = code == 0;
            if self.stop.is_cancelled() || !self.plan.restart.restarts(success) {
                report(&status);
                return success;
            }
            if began.elapsed() > LONG_RUN {
                backoff = FIRST_BACKOFF;
            }
            let message = if status.note.is_empty() {
                format!("exited with {code}, starts again in {backoff:?}")
            } else {
                format!(
                    "exited with {code} ({}), starts again in {backoff:?}",
                    status.note
                )
            };
            status.last = Some(ended);
            status.state = State::Waiting {
                reason: "CrashLoopBackOff",
                message,
            };
            report(&status);
            tokio::select! {
                () = tokio::time::sleep(backoff) => {}
                () = self.stop.cancelled() => return false,
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
            status.restarts += 1;
            status.note.clear();
        }
    }

    async fn once(
        &self,
        status: &mut Status,
        since: &str,
        report: &(dyn Fn(&Status) + Send + Sync),
    ) -> std::io::Result<ExitStatus> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let mut command = self.enter.command(&[]);
        command.stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn()?;
        let pid = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .map(Pid::from_raw);
        let kill = |signal| pid.map(|pid| nix::sys::signal::kill(pid, signal));

        status.state = State::Running {
            since: since.to_owned(),
        };
        status.ready = self.plan.readiness.is_none() && self.plan.startup.is_none();
        report(status);

        let probes = async {
            let why = self.probes(status, report).await;
            tracing::warn!(container = self.name, why, "container is started again");
            why
        };
        let stopped = tokio::select! {
            exit = child.wait() => return exit,
            why = probes => {
                status.note = why;
                false
            }
            () = self.stop.cancelled() => true,
        };
        if stopped && let Some(hook) = &self.plan.pre_stop {
            let hook = async {
                match hook {
                    PreStop::Sleep(time) => tokio::time::sleep(*time).await,
                    PreStop::Exec(command) => {
                        if let Err(error) = self.enter.probe(command).await {
                            tracing::warn!(container = self.name, error, "preStop failed");
                        }
                    }
                }
            };
            tokio::select! {
                exit = child.wait() => return exit,
                () = hook => {}
                () = tokio::time::sleep(self.grace) => {}
            }
        }
        kill(Signal::SIGTERM);
        match tokio::time::timeout(self.grace, child.wait()).await {
            Ok(exit) => exit,
            Err(_) => {
                kill(Signal::SIGKILL);
                child.wait().await
            }
        }
    }

    /// Probes for as long as the container may live; ends with the reason why it must be
    /// started again.
    async fn probes(
        &self,
        status: &mut Status,
        report: &(dyn Fn(&Status) + Send + Sync),
    ) -> String {
        if let Some(startup) = &self.plan.startup {
            let mut failure = None;
            self.probe(startup, |passes, why| {
                failure = (!passes).then(|| why.to_owned());
                true
            })
            .await;
            if let Some(why) = failure {
                return format!("startup probe failed: {why}");
            }
            status.ready = self.plan.readiness.is_none();
            report(status);
        }
        let readiness = async {
            if let Some(plan) = &self.plan.readiness {
                self.probe(plan, |passes, why| {
                    status.ready = passes;
                    status.note = if passes {
                        String::new()
                    } else {
                        format!("not ready: {why}")
                    };
                    report(status);
                    false
                })
                .await;
            }
            std::future::pending::<()>().await;
        };
        let liveness = async {
            let Some(plan) = &self.plan.liveness else {
                return std::future::pending().await;
            };
            let mut failure = String::new();
            self.probe(plan, |passes, why| {
                why.clone_into(&mut failure);
                !passes
            })
            .await;
            failure
        };
        tokio::select! {
            () = readiness => String::new(),
            why = liveness => format!("liveness probe failed: {why}"),
        }
    }

    /// Runs a probe over and over; tells each confirmed change, and ends when told to.
    async fn probe(&self, plan: &ProbePlan, mut change: impl FnMut(bool, &str) -> bool) {
        tokio::time::sleep(plan.initial_delay).await;
        let target = Target {
            node_netns: &self.node_netns,
            address: self.address,
            container: &self.enter,
        };
        let mut threshold = Threshold::new(plan);
        let mut settled = false;
        loop {
            let result = probe::once(plan, &target).await;
            let why = result.as_ref().err().map_or("", String::as_str);
            if let Some(passes) = threshold.result(result.is_ok()) {
                if change(passes, why) {
                    return;
                }
                settled = passes;
            }
            // Until it first passes, ask more often than asked to: a lab should not wait for it.
            let period = if settled {
                plan.period
            } else {
                plan.period.min(FIRST_BACKOFF)
            };
            tokio::time::sleep(period).await;
        }
    }
}

fn exit_code(exit: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    exit.code()
        .or_else(|| exit.signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}

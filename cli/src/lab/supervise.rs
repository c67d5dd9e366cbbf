//! One process of a part, kept as it is wanted. In: its program, and whether it is to run. Out: the
//! process: started again when it dies, ended when it is not wanted; and its status.

use std::{
    fs::OpenOptions,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use nix::{sys::signal::Signal, unistd::Pid};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    process::{Child, Command},
    sync::watch,
    task::AbortHandle,
    time::{self, Instant},
};

use super::{
    http,
    lab::Lab,
    netns,
    programs::{Program, Ready},
};

/// Back-off between starts of a part that dies.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
const LONG_RUN: Duration = Duration::from_secs(30);
/// Between looks at whether a part is ready.
const POLL: Duration = Duration::from_millis(50);
const POLL_TIMEOUT: Duration = Duration::from_secs(1);

/// What `status` shows of a part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PartStatus {
    pub(crate) running: bool,
    pub(crate) ready: bool,
    /// It is not to run: somebody stopped it.
    pub(crate) stopped: bool,
    /// How often it was started again after it had ended by itself.
    pub(crate) restarts: u32,
    /// Why it is not ready, what does not go on though it is, or how it ended last.
    pub(crate) message: String,
    pub(crate) pid: Option<u32>,
    /// Processes of the part that were replaced and still drain.
    pub(crate) draining: Vec<u32>,
    /// Seconds since it was ready last, if it was and is not.
    pub(crate) away: Option<u64>,
    /// A proxy's: whether it has the controller's stream. None if it does not say.
    pub(crate) controller: Option<bool>,
}

/// Whether a process is to run.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Wanted {
    run: bool,
    /// Asked to end, not killed.
    gently: bool,
    /// Its node has power.
    power: bool,
}

impl Wanted {
    fn runs(self) -> bool {
        self.run && self.power
    }
}

/// How a process ended.
enum Ended {
    ByItself(ExitStatus),
    /// As wanted.
    Asked,
}

/// One process, and its successors after a crash.
pub(crate) struct Instance {
    /// `controller`, `agent/n1`, `proxy/n1`.
    part: String,
    program: Mutex<Arc<Program>>,
    wanted: watch::Sender<Wanted>,
    status: watch::Sender<PartStatus>,
    /// When it was seen ready last.
    last_ready: Mutex<Option<Instant>>,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Instance {
    /// Starts a program.
    pub(crate) fn start(lab: &Arc<Lab>, part: &str, program: Program) -> Arc<Self> {
        let wanted = Wanted {
            run: true,
            gently: true,
            power: true,
        };
        let instance = Arc::new(Self {
            part: part.to_owned(),
            program: Mutex::new(Arc::new(program)),
            wanted: watch::Sender::new(wanted),
            status: watch::Sender::default(),
            last_ready: Mutex::default(),
            tasks: Mutex::default(),
        });
        let supervisor = tokio::spawn(Arc::clone(&instance).supervise(Arc::clone(lab)));
        let watcher = tokio::spawn(Arc::clone(&instance).watch_readiness());
        *instance.tasks.lock() = vec![supervisor.abort_handle(), watcher.abort_handle()];
        instance
    }

    /// As it is.
    pub(crate) fn status(&self) -> PartStatus {
        let mut status = self.status.borrow().clone();
        status.stopped = self.is_stopped();
        let last_ready = self.last_ready.lock().filter(|_| !status.ready);
        status.away = last_ready.map(|last| last.elapsed().as_secs());
        status
    }

    /// What is, or would be, run.
    pub(crate) fn program(&self) -> Arc<Program> {
        Arc::clone(&self.program.lock())
    }

    /// Whether somebody stopped it.
    pub(crate) fn is_stopped(&self) -> bool {
        !self.wanted.borrow().run
    }

    /// Ends it until [`Self::resume`]; asks it to, or kills it.
    pub(crate) fn stop(&self, gently: bool) {
        self.wanted.send_modify(|wanted| {
            wanted.run = false;
            wanted.gently = gently;
        });
    }

    /// Starts it after a stop.
    pub(crate) fn resume(&self) {
        self.wanted.send_modify(|wanted| wanted.run = true);
    }

    /// Its node lost its power: it is killed, and stays away whatever is asked of it.
    pub(crate) fn power_off(&self) {
        self.wanted.send_modify(|wanted| wanted.power = false);
    }

    /// Its node has power again.
    pub(crate) fn power_on(&self) {
        self.wanted.send_modify(|wanted| wanted.power = true);
    }

    /// What is run from the next start on.
    pub(crate) fn replace(&self, program: Program) {
        *self.program.lock() = Arc::new(program);
    }

    /// Kills the process as it is; it is started again. Gives the process's id, once it is gone.
    pub(crate) async fn kill(&self) -> anyhow::Result<u32> {
        let pid = self.status().pid;
        let pid = pid.with_context(|| format!("{} does not run", self.part))?;
        nix::sys::signal::kill(Pid::from_raw(pid.try_into()?), Signal::SIGKILL)
            .with_context(|| format!("{}: can't kill {pid}", self.part))?;
        self.until(|status| status.pid != Some(pid)).await;
        Ok(pid)
    }

    /// Waits until no process of it runs.
    pub(crate) async fn ended(&self) {
        self.until(|status| !status.running).await;
    }

    /// Waits until it is ready, or says after the limit why it is not.
    pub(crate) async fn ready(&self, limit: Duration) -> Result<(), String> {
        match time::timeout(limit, self.until(|status| status.ready)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(format!(
                "{} is not ready after {limit:?}: {}",
                self.part,
                self.status().message
            )),
        }
    }

    /// Lets go of a process that has ended for good.
    pub(crate) fn retire(&self) {
        self.tasks.lock().iter().for_each(AbortHandle::abort);
    }

    async fn until(&self, holds: impl FnMut(&PartStatus) -> bool) {
        // The sender is in `self`: there is no error.
        let _ = self.status.subscribe().wait_for(holds).await;
    }

    async fn supervise(self: Arc<Self>, lab: Arc<Lab>) {
        let mut wanted = self.wanted.subscribe();
        let mut backoff = FIRST_BACKOFF;
        while wanted.wait_for(|wanted| wanted.runs()).await.is_ok() {
            let began = Instant::now();
            let ended = match self.once(&lab, &mut wanted).await {
                Ok(Ended::Asked) => None,
                Ok(Ended::ByItself(status)) => Some(format!("ended: {status}")),
                Err(error) => Some(format!("can't be run: {error:#}")),
            };
            self.status.send_modify(|status| {
                status.running = false;
                status.ready = false;
                status.pid = None;
                status.message = ended.clone().unwrap_or_else(|| "stopped".into());
            });
            let Some(ended) = ended else {
                backoff = FIRST_BACKOFF;
                continue;
            };
            tracing::warn!(part = self.part, ended, "part is started again");
            if began.elapsed() > LONG_RUN {
                backoff = FIRST_BACKOFF;
            }
            tokio::select! {
                () = time::sleep(backoff) => {}
                _ = wanted.wait_for(|wanted| !wanted.runs()) => {}
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
            self.status.send_modify(|status| status.restarts += 1);
        }
    }

    async fn once(&self, lab: &Lab, wanted: &mut watch::Receiver<Wanted>) -> anyhow::Result<Ended> {
        let program = self.program();
        let mut child = spawn(lab, &self.part, &program)?;
        self.status.send_modify(|status| {
            status.running = true;
            status.pid = child.id();
        });
        tokio::select! {
            ended = child.wait() => return Ok(Ended::ByItself(ended?)),
            _ = wanted.wait_for(|wanted| !wanted.runs()) => {}
        }
        let kills = |wanted: &Wanted| !wanted.gently || !wanted.power;
        if !kills(&wanted.borrow()) {
            signal(&child, Signal::SIGTERM);
            tokio::select! {
                ended = child.wait() => return ended.map(|_| Ended::Asked).map_err(Into::into),
                _ = wanted.wait_for(kills) => {}
                () = time::sleep(program.grace) => tracing::warn!(
                    part = self.part, grace = ?program.grace, "part did not end in time: killed"
                ),
            }
        }
        signal(&child, Signal::SIGKILL);
        child.wait().await?;
        Ok(Ended::Asked)
    }

    async fn watch_readiness(self: Arc<Self>) {
        loop {
            let program = self.program();
            let asked = time::timeout(POLL_TIMEOUT, ask(&program)).await;
            let answer = asked.unwrap_or_else(|_| Err("no answer".into()));
            let ready = answer.is_ok();
            if ready {
                *self.last_ready.lock() = Some(Instant::now());
            }
            self.status.send_if_modified(|status| {
                let before = (status.ready, status.message.clone());
                status.ready = ready && status.running;
                if status.running {
                    status.message = answer.unwrap_or_else(|why| why);
                }
                before != (status.ready, status.message.clone())
            });
            time::sleep(if ready { POLL * 10 } else { POLL }).await;
        }
    }
}

fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
    }
}

fn spawn(lab: &Lab, part: &str, program: &Program) -> anyhow::Result<Child> {
    let log = lab.paths.part_log(part);
    let log = OpenOptions::new().create(true).append(true).open(log)?;
    let runtime = tokio::runtime::Handle::current();
    netns::run(&program.netns, || {
        let _context = runtime.enter();
        let mut command = Command::new(lab.programs.join(program.binary));
        command
            .args(&program.args)
            .stdin(Stdio::null())
            .stderr(log.try_clone()?)
            .stdout(log);
        // The log is a file.
        command.env("NO_COLOR", "1").process_group(0).spawn()
    })?
    .with_context(|| format!("{} in {}", program.binary, lab.programs.display()))
}

/// What the part says though it is ready, or why it is not.
async fn ask(program: &Program) -> Result<String, String> {
    match &program.ready {
        Ready::Socket(path) => tokio::net::UnixStream::connect(path)
            .await
            .map(|_| String::new())
            .map_err(|error| format!("{}: {error}", path.display())),
        Ready::Http(to) => {
            let request = http::Get {
                to: *to,
                host: None,
                path: "/ready",
                headers: &[],
            };
            let answer = http::get(&program.probe_netns, request)
                .await
                .map_err(|e| format!("{e:#}"))?;
            let body = String::from_utf8_lossy(&answer.body);
            if answer.status == 200 {
                // The first line says that it is ready.
                let notes: Vec<&str> = body.lines().skip(1).collect();
                return Ok(notes.join("; "));
            }
            Err(body.trim().replace('\n', "; "))
        }
    }
}

//! `weft lab stop`, `start`, `kill`, `upgrade` and `reboot`: what goes wrong, and what is replaced,
//! on purpose. In: names of parts and nodes. Out: the lab does it, and a line says what was done.

use std::{
    hash::{BuildHasher, Hasher},
    process::ExitCode,
    time::Duration,
};

use anyhow::bail;

use super::{
    client,
    progress::{self, Outcome},
    protocol::Request,
    up,
};

/// `weft lab stop`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct StopArgs {
    /// controller, agent/NODE or proxy/NODE.
    #[arg(required = true)]
    pub(crate) parts: Vec<String>,
    /// With SIGKILL, instead of SIGTERM and the time that the part needs to drain.
    #[arg(long)]
    pub(crate) kill: bool,
}

/// `weft lab start`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct StartArgs {
    /// controller, agent/NODE or proxy/NODE.
    #[arg(required = true)]
    pub(crate) parts: Vec<String>,
    /// Return without waiting until it is ready.
    #[arg(long)]
    pub(crate) no_wait: bool,
}

/// `weft lab kill`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct KillArgs {
    /// controller, agent/NODE or proxy/NODE.
    #[arg(required = true)]
    pub(crate) parts: Vec<String>,
}

/// `weft lab upgrade`: each proxy's successor starts beside it, in a pod network of its own; once
/// it is ready the old one gets SIGTERM and drains.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct UpgradeArgs {
    /// proxy/NODE; one after the other.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub(crate) parts: Vec<String>,
    /// Every proxy.
    #[arg(long)]
    pub(crate) all: bool,
    /// Return once the old one was told to end, without waiting until it has drained.
    #[arg(long)]
    pub(crate) no_wait: bool,
}

/// `weft lab reboot`: kills the node's parts and pods at once, removes their network namespaces and
/// what is in the node's run-dir, and starts everything anew, all at once, in a shuffled order.
/// What was stopped with `weft lab stop` stays away.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct RebootArgs {
    /// The node, such as n1.
    pub(crate) node: String,
    /// The order in which parts and pods start; printed after each reboot.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Milliseconds that the node is without power.
    #[arg(long, default_value_t = 0, value_name = "MS")]
    pub(crate) away: u64,
    /// Return once everything was started, without waiting until the lab is whole.
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Seconds until a lab that is not whole is reported.
    #[arg(long, default_value_t = 120)]
    pub(crate) timeout: u64,
}

/// Stops parts.
pub(crate) fn stop(lab: &str, args: &StopArgs) -> anyhow::Result<ExitCode> {
    let kill = args.kill;
    each(lab, &args.parts, |part| Request::Stop { part, kill })
}

/// Starts parts.
pub(crate) fn start(lab: &str, args: &StartArgs) -> anyhow::Result<ExitCode> {
    let wait = !args.no_wait;
    each(lab, &args.parts, |part| Request::Start { part, wait })
}

/// Kills parts.
pub(crate) fn kill(lab: &str, args: &KillArgs) -> anyhow::Result<ExitCode> {
    each(lab, &args.parts, |part| Request::Kill { part })
}

/// Replaces proxies.
pub(crate) fn upgrade(lab: &str, args: &UpgradeArgs) -> anyhow::Result<ExitCode> {
    let parts = if args.all {
        let status = client::status(lab)?;
        let proxies = status.parts.into_keys();
        proxies.filter(|name| name.starts_with("proxy/")).collect()
    } else {
        args.parts.clone()
    };
    if parts.is_empty() {
        bail!("lab {lab} has no proxies");
    }
    let wait = !args.no_wait;
    each(lab, &parts, |part| Request::Upgrade { part, wait })
}

/// One after the other; the first that fails ends it.
fn each(
    lab: &str,
    parts: &[String],
    request: impl Fn(String) -> Request,
) -> anyhow::Result<ExitCode> {
    for part in parts {
        println!("{}", client::done(lab, &request(part.clone()))?);
    }
    Ok(ExitCode::SUCCESS)
}

/// Reboots a node.
pub(crate) fn reboot(lab: &str, args: &RebootArgs) -> anyhow::Result<ExitCode> {
    // Each process's hasher has keys of its own: dice enough for an order.
    let dice = || std::collections::hash_map::RandomState::new().build_hasher();
    let request = Request::Reboot {
        node: args.node.clone(),
        away: args.away,
        seed: args.seed.unwrap_or_else(|| dice().finish() % 10_000),
    };
    println!("{}", client::done(lab, &request)?);
    if args.no_wait {
        return Ok(ExitCode::SUCCESS);
    }
    let limit = Duration::from_secs(args.timeout);
    let outcome = progress::wait(limit, || client::status(lab).map(Some))?;
    up::report(&outcome);
    Ok(match outcome {
        Outcome::Whole(_) => ExitCode::SUCCESS,
        Outcome::Missing(..) => ExitCode::FAILURE,
    })
}

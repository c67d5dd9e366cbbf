//! `weft lab`: the mesh on one machine. Nodes are network namespaces on a bridge, pods are network
//! namespaces made by the real CNI chain, the API is a folder; every other program is the one that
//! runs on Kubernetes. This module knows the commands; each has a module of its own.

mod api;
mod apply;
mod away;
mod behind;
mod capture;
mod client;
mod cni;
mod container;
mod control;
mod controllers;
mod daemon;
mod demo;
mod deployments;
mod down;
mod endpoints;
mod exec;
mod family;
mod get;
mod handler;
mod health;
mod http;
mod kinds;
mod kubelets;
mod kubeproxy;
#[expect(clippy::module_inception, reason = "it is what the module is about")]
mod lab;
mod links;
mod logs;
mod merge;
mod netns;
mod parts;
mod paths;
mod plan;
mod pod;
mod pod_status;
mod podspec;
mod preflight;
mod probe;
mod procs;
mod programs;
mod progress;
mod protocol;
mod reboot;
mod reconcile;
mod service_ip;
mod services;
mod shim;
mod supervise;
mod sweep;
mod table;
mod up;
mod view;

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::Subcommand;

/// The lab's name if none is given.
const NAME: &str = "weft";

/// `weft lab`.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// Which lab: several run side by side.
    /// [default: weft; of the demo: demo]
    #[arg(long = "name", global = true, value_name = "NAME")]
    lab: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    /// Start a lab from manifests.
    Up(up::Args),
    /// Apply manifests to a running lab.
    Apply(apply::ApplyArgs),
    /// Delete what manifests name, or one object.
    Delete(apply::DeleteArgs),
    /// Set and remove labels of an object.
    Label(apply::LabelArgs),
    /// Run a command in a pod.
    Exec(exec::Args),
    /// Show what pods and parts wrote.
    Logs(logs::Args),
    /// Show the lab's parts, pods and routes.
    Status(get::StatusArgs),
    /// Show objects as the API would.
    Get(get::GetArgs),
    /// End a part (controller, agent/n1, proxy/n1) and keep it away.
    Stop(control::StopArgs),
    /// Start a part that was stopped.
    Start(control::StartArgs),
    /// Kill a part with SIGKILL; the lab starts it again at once.
    Kill(control::KillArgs),
    /// Replace proxies by successors that start beside them.
    Upgrade(control::UpgradeArgs),
    /// Take a node's power and give it back: everything on it is killed and starts anew.
    Reboot(control::RebootArgs),
    /// Count packets between nodes and pods that hold texts in clear.
    Capture(capture::Args),
    /// Take a lab down, also one that was killed.
    Down(down::Args),
    /// Show what the mesh does, in under a minute.
    Demo(demo::Args),
}

/// Runs a lab command.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let default = if matches!(args.command, Command::Demo(_)) {
        demo::NAME
    } else {
        NAME
    };
    let lab = args.lab.as_deref().unwrap_or(default);
    match &args.command {
        Command::Up(args) => up::run(lab, args),
        Command::Apply(args) => apply::apply(lab, args),
        Command::Delete(args) => apply::delete(lab, args),
        Command::Label(args) => apply::label(lab, args),
        Command::Exec(args) => exec::run(lab, args),
        Command::Logs(args) => logs::run(lab, args),
        Command::Status(args) => get::status(lab, args),
        Command::Get(args) => get::get(lab, args),
        Command::Stop(args) => control::stop(lab, args),
        Command::Start(args) => control::start(lab, args),
        Command::Kill(args) => control::kill(lab, args),
        Command::Upgrade(args) => control::upgrade(lab, args),
        Command::Reboot(args) => control::reboot(lab, args),
        Command::Capture(args) => capture::run(lab, args),
        Command::Down(args) => down::run(lab, args),
        Command::Demo(args) => demo::run(lab, args),
    }
}

/// Becomes a process of a pod; returns only on failure.
pub(crate) fn pod_exec(file: &Path, command: &[OsString]) -> ExitCode {
    let error = shim::run(file, command);
    eprintln!("weft: {error:#}");
    // As shells have it for what can't be run.
    ExitCode::from(127)
}

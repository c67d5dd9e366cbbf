//! `weft`, the command line: one module a subcommand.
//!
//! In: arguments. Out: text for people on stdout, errors on stderr, and an exit code: 0, 1 for
//! "it failed", 2 for "this can't work here".

mod cluster;
mod lab;
mod manifests;
mod route;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};

/// A sidecarless service mesh.
#[derive(Parser, Debug)]
#[command(name = "weft", version, about, propagate_version = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    #[command(flatten)]
    Cluster(cluster::Command),
    /// Routes in files, without a cluster.
    Route(route::Args),
    /// The whole mesh on this machine, without Kubernetes.
    Lab(lab::Args),
    /// What the lab runs in a pod's namespaces.
    #[command(name = "__pod-exec", hide = true)]
    PodExec {
        /// How to get there.
        file: PathBuf,
        /// What to run instead of the container's command.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let result = match Args::parse().command {
        Command::Cluster(command) => cluster::run(&command),
        Command::Route(args) => route::run(&args),
        Command::Lab(args) => lab::run(&args),
        Command::PodExec { file, command } => Ok(lab::pod_exec(&file, &command)),
    };
    result.unwrap_or_else(|error| {
        eprintln!("weft: {error:#}");
        ExitCode::FAILURE
    })
}

/// Logs to stderr; `WEFT_LOG` filters. In the foreground lines are for people.
fn logging(foreground: bool) {
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = EnvFilter::try_from_env("WEFT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let format = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second initialisation in one process is no reason to fail.
    let _ = if foreground {
        format.without_time().with_target(false).try_init()
    } else {
        format.with_ansi(false).try_init()
    };
}

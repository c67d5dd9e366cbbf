//! The commands for a cluster: install, uninstall, enable, disable, status, check. In: arguments and
//! a kubeconfig. Out: requests to the API, and text or JSON. What is decided of objects is pure and
//! in modules of its own; this one knows the commands.

mod api;
mod check;
mod facts;
mod install;
mod label;
mod manifests;
mod object;
mod rollout;
mod status;
#[cfg(test)]
mod tests;
mod uninstall;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::Output;
use api::{Cluster, Connection};

/// Commands for a cluster.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Install weft on a cluster, or bring it to this version.
    Install(Box<install::Args>),
    /// Take weft off a cluster: pods leave the mesh first, and nothing of it stays on the nodes.
    Uninstall(uninstall::Args),
    /// Put a namespace into the mesh; its pods go on running.
    Enable(label::Enable),
    /// Take a namespace out of the mesh; its pods go on running.
    Disable(label::Disable),
    /// The mesh's parts, nodes, namespaces, and what is not as wanted.
    Status(StatusArgs),
    /// Whether the cluster and the mesh are as they must be, and how to mend what is not.
    Check(CheckArgs),
}

#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    connection: Connection,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    connection: Connection,
    /// Before an installation: only what the cluster itself must be.
    #[arg(long)]
    pre: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// Runs a command.
pub(crate) fn run(command: &Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match command {
            Command::Install(args) => install::run(args).await,
            Command::Uninstall(args) => uninstall::run(args).await,
            Command::Enable(args) => label::enable(args).await,
            Command::Disable(args) => label::disable(args).await,
            Command::Status(args) => status(args).await,
            Command::Check(args) => check(args).await,
        }
    })
}

async fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::connect(&args.connection).await?;
    let facts = facts::gather(&cluster, facts::Depth::Objects).await?;
    let status = status::of(&facts);
    match args.output {
        Output::Text => print!("{}", status::tables(&status)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
    }
    Ok(if status.installed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::connect(&args.connection).await?;
    let (findings, failed) = if args.pre {
        let facts = facts::gather(&cluster, facts::Depth::Cluster).await?;
        check::before(&facts)
    } else {
        let facts = facts::gather(&cluster, facts::Depth::Pages).await?;
        check::after(&facts)
    };
    match args.output {
        Output::Text => print!("{}", check::text(&findings)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

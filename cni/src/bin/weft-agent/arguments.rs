//! The agent's flags. In flow arguments, out flow checked values.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use weft_cni::kubernetes::Place;

/// Captures the pods of one node: redirect rules and listening sockets in their network namespaces,
/// handed to the node's proxies.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: Option<Run>,
    /// How log lines look.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

/// What else than to run it can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Orders the agents of a cluster to leave their nodes, and waits until all have. To be run before
    /// weft's objects are deleted.
    Uninstall {
        /// The agents.
        #[arg(long, value_name = "NAMESPACE/NAME")]
        daemonset: Place,
        /// How long to wait.
        #[arg(long, default_value = "120s", value_parser = duration)]
        timeout: Duration,
    },
    /// Takes everything of weft's off this node, with neither agent nor API. What is open through the
    /// mesh is reset.
    Cleanup {
        /// As of the agent.
        #[arg(long)]
        run_dir: PathBuf,
        /// As of the agent.
        #[arg(long, value_name = "DIR")]
        cni_conf_dir: PathBuf,
        /// As of the agent.
        #[arg(long, value_name = "DIR")]
        cni_bin_dir: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Name of this node, as in spec.nodeName.
    #[arg(long)]
    pub(crate) node: String,
    /// Where objects come from: folder:DIR, kubernetes, or kubernetes:KUBECONFIG.
    #[arg(long)]
    pub(crate) source: String,
    /// Folder of agent.sock, handover.sock and the sandboxes' records; at the same path for the
    /// plugin, on the host.
    #[arg(long)]
    pub(crate) run_dir: PathBuf,
    /// How long a pod that leaves the mesh may keep open connections, as in 30s or 500ms.
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub(crate) drain_timeout: Duration,
    /// The host's network configurations, into the first of which the plugin is chained.
    #[arg(long, value_name = "DIR", requires = "cni_bin_dir")]
    pub(crate) cni_conf_dir: Option<PathBuf>,
    /// The path of --cni-conf-dir on the host, if it is another there.
    #[arg(long, value_name = "DIR", requires = "cni_conf_dir")]
    pub(crate) host_cni_conf_dir: Option<PathBuf>,
    /// The host's network plugins, where the plugin is put.
    #[arg(long, value_name = "DIR", requires = "cni_conf_dir")]
    pub(crate) cni_bin_dir: Option<PathBuf>,
    /// The plugin to install; by default weft-cni beside this program.
    #[arg(long, value_name = "FILE")]
    pub(crate) plugin: Option<PathBuf>,
    /// The host's /var/lib/cni: in its results pods that run already are found.
    #[arg(long, value_name = "DIR")]
    pub(crate) cni_cache_dir: Option<PathBuf>,
    /// The agent's own DaemonSet: its end, or its annotation weft.dev/uninstall=true, is an uninstall.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub(crate) daemonset: Option<Place>,
    /// The agent's own pod, in the DaemonSet's namespace: it is annotated once this node was left.
    #[arg(long, value_name = "NAME", requires = "daemonset")]
    pub(crate) pod: Option<String>,
    /// The service account that the plugin asks the API as while the agent is away.
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "cni_conf_dir")]
    pub(crate) plugin_account: Option<Place>,
    /// A taint to take from the node once pods can join the mesh.
    #[arg(long, value_name = "KEY")]
    pub(crate) remove_taint: Option<String>,
    /// Where /ready and /metrics are served.
    #[arg(long, value_name = "ADDR")]
    pub(crate) http: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

fn duration(text: &str) -> anyhow::Result<Duration> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number
        .parse()
        .context("give a number and a unit, as in 30s")?;
    Ok(match unit {
        "ms" => Duration::from_millis(number),
        "" | "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        _ => bail!("unit {unit:?} is none of ms, s, m"),
    })
}

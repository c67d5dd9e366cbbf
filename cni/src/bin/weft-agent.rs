//! The node agent's program.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use weft_source::Scope;

/// Captures the pods of one node: redirect rules and listening sockets in their network namespaces,
/// handed to the node's proxies.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Name of this node, as in spec.nodeName.
    #[arg(long)]
    node: String,
    /// Where objects come from: folder:DIR.
    #[arg(long)]
    source: String,
    /// Folder of agent.sock, handover.sock and the sandboxes' records.
    #[arg(long)]
    run_dir: PathBuf,
    /// How long a pod that leaves the mesh may keep open connections, as in 30s or 500ms.
    #[arg(long, default_value = "30s", value_parser = duration)]
    drain_timeout: Duration,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    log(arguments.log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("can't start the runtime")?;
    runtime.block_on(run(arguments))
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("can't wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("can't wait for SIGINT")?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let (source, writer) =
        weft_source::open(&arguments.source, Scope::Node(arguments.node.clone())).await?;
    let config = weft_cni::agent::Config {
        node: arguments.node,
        run_dir: arguments.run_dir,
        drain_timeout: arguments.drain_timeout,
        node_rules: true,
        add_timeout: weft_cni::agent::ADD_TIMEOUT,
        sync_timeout: weft_cni::agent::SYNC_TIMEOUT,
        vanished_check: weft_cni::agent::VANISHED_CHECK,
        source,
        writer,
    };
    weft_cni::agent::run(config, stop).await?;
    Ok(())
}

fn log(format: LogFormat) {
    let filter = EnvFilter::try_from_env("WEFT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => lines.json().init(),
    }
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

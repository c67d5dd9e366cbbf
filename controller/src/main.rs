//! `weft-controller`: reads flags, opens what they name, runs the controller.

use std::{
    io::{self, IsTerminal},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use weft_api::names;
use weft_controller::{
    compile::Settings,
    publish::{auth::FileTokens, root},
    run::{self, Parts},
};
use weft_source::Scope;

/// Compiles objects to proxy configuration, streams it, writes status, signs certificates.
#[derive(Parser)]
#[command(name = "weft-controller", version)]
struct Options {
    /// Where objects come from: folder:DIR.
    #[arg(long)]
    source: String,
    /// Address for xDS and the CA (gRPC over TLS).
    #[arg(long, value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Address for /ready and /metrics (plain HTTP).
    #[arg(long, value_name = "ADDR:PORT")]
    http: SocketAddr,
    /// Address for /debug, which shows the whole configuration (plain HTTP): on loopback.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:15000")]
    debug: SocketAddr,
    /// Folder of the CA's root.pem and root.key; made at the first start.
    #[arg(long, value_name = "DIR")]
    ca_dir: PathBuf,
    /// Where to write the trust bundle (PEM).
    #[arg(long, value_name = "FILE")]
    bundle_out: PathBuf,
    /// Lines "token node-name": who may call, and from which node.
    #[arg(long, value_name = "FILE")]
    node_tokens: PathBuf,
    /// Trust domain of identities.
    #[arg(long, default_value = names::DEFAULT_TRUST_DOMAIN)]
    trust_domain: String,
    /// DNS domain of the cluster.
    #[arg(long, default_value = names::DEFAULT_CLUSTER_DOMAIN)]
    cluster_domain: String,
    /// How log lines look; WEFT_LOG filters them.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    set_up_logs(options.log_format);
    weft_certs::tls::install_crypto_provider();
    match start(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the controller ends");
            ExitCode::FAILURE
        }
    }
}

async fn start(options: Options) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    tokio::spawn(stop_on_signal(shutdown.clone())?);
    let ca = root::load_or_create(&options.ca_dir, &options.trust_domain)?;
    let bundle = ca.trust_bundle().context("read the CA's root")?.to_pem();
    root::replace(&options.bundle_out, bundle.as_bytes(), 0o644)?;
    let tokens = FileTokens::open(&options.node_tokens)
        .with_context(|| format!("read the node tokens {}", options.node_tokens.display()))?;
    let (source, writer) = weft_source::open(&options.source, Scope::Mesh).await?;
    let parts = Parts {
        source,
        writer,
        authenticator: Arc::new(tokens),
        ca,
        listener: listen(options.listen).await?,
        http: listen(options.http).await?,
        debug: listen(options.debug).await?,
        settings: Settings {
            trust_domain: options.trust_domain,
            cluster_domain: options.cluster_domain,
        },
        settle: run::SETTLE,
    };
    run::run(parts, shutdown).await
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address}"))
}

fn stop_on_signal(
    shutdown: CancellationToken,
) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
    })
}

fn set_up_logs(format: LogFormat) {
    let filter = EnvFilter::try_from_env("WEFT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
}

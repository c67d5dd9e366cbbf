//! `weft-controller`: reads flags, opens what they name, runs the controller.

use std::{
    io::{self, IsTerminal},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, bail};
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
    kubernetes::{
        Place,
        bundle::Bundle,
        ca_secret,
        lease::Candidate,
        token_review::{Accounts, TokenReviews},
    },
    leadership::Leadership,
    publish::{
        auth::{Authenticator, FileTokens},
        root,
    },
    run::{self, Parts, Replicas},
};
use weft_source::Scope;

/// Compiles objects to proxy configuration, streams it, writes status, signs certificates.
#[derive(Parser)]
#[command(name = "weft-controller", version)]
struct Options {
    /// Where objects come from: folder:DIR, kubernetes, or kubernetes:KUBECONFIG.
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
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "ca",
        conflicts_with = "ca"
    )]
    ca_dir: Option<PathBuf>,
    /// Secret of the CA's root.pem and root.key, as secret:NAMESPACE/NAME; made at the first start.
    #[arg(long, value_name = "secret:NAMESPACE/NAME", value_parser = in_secret)]
    ca: Option<Place>,
    /// Secret of the operator's own CA, in the same namespace: if it is there, it is used instead.
    #[arg(long, value_name = "NAME", requires = "ca")]
    ca_secret_own: Option<String>,
    /// Where to write the trust bundle (PEM): a file, or configmap:NAMESPACE/NAME.
    #[arg(long, value_name = "FILE|configmap:NAMESPACE/NAME", value_parser = bundle_out)]
    bundle_out: BundleOut,
    /// Lines "token node-name": who may call, and from which node.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "auth",
        conflicts_with = "auth"
    )]
    node_tokens: Option<PathBuf>,
    /// How callers prove who they are, instead of a file of tokens.
    #[arg(long, value_enum)]
    auth: Option<Auth>,
    /// The audience that tokens must be for.
    #[arg(long, default_value = "weft.dev")]
    audience: String,
    /// The service account of proxies.
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        default_value = "weft-system/weft-proxy"
    )]
    proxy_account: Place,
    /// The service account of this controller's replicas.
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        default_value = "weft-system/weft-controller"
    )]
    controller_account: Place,
    /// One replica at a time writes status: the one that holds this Lease.
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "replica")]
    leader_lease: Option<Place>,
    /// This replica's name: its pod's.
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    replica: Option<String>,
    /// The Service through which proxies reach the replicas.
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        default_value = "weft-system/weft-controller"
    )]
    service: Place,
    /// The token with which this replica calls the others.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/secrets/weft.dev/token"
    )]
    peer_token_file: PathBuf,
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

#[derive(Clone)]
enum BundleOut {
    File(PathBuf),
    ConfigMap(Place),
}

#[derive(Clone, Copy, ValueEnum)]
enum Auth {
    /// Kubernetes' TokenReview.
    TokenReview,
}

fn in_secret(text: &str) -> Result<Place, String> {
    match text.split_once(':') {
        Some(("secret", place)) => place.parse(),
        _ => Err("give secret:NAMESPACE/NAME".to_owned()),
    }
}

fn bundle_out(text: &str) -> Result<BundleOut, String> {
    match text.split_once(':') {
        Some(("configmap", place)) => place.parse().map(BundleOut::ConfigMap),
        _ => Ok(BundleOut::File(text.into())),
    }
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
    tokio::select! {
        result = open_and_run(options, shutdown.clone()) => result,
        // While the API is away, opening goes on for ever.
        () = run::overdue(&shutdown) => Ok(()),
    }
}

async fn open_and_run(options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (source, writer) = weft_source::open(&options.source, Scope::Mesh).await?;
    let (ca, roots) = match (&options.ca_dir, &options.ca) {
        (Some(folder), _) => {
            let ca = root::load_or_create(folder, &options.trust_domain)?;
            let roots = ca.trust_bundle().context("read the CA's root")?;
            (ca, roots)
        }
        (None, Some(place)) => {
            let own = options.ca_secret_own.as_deref();
            ca_secret::open(&client(&options).await?, place, own, &options.trust_domain).await?
        }
        (None, None) => bail!("give --ca-dir or --ca"),
    };
    let (mut replicas, mut election) = (None, None);
    let leadership = match (&options.leader_lease, &options.replica) {
        (Some(place), Some(replica)) => {
            replicas = Some(Replicas {
                replica: replica.clone(),
                service: options.service.clone(),
                port: options.listen.port(),
                token_file: options.peer_token_file.clone(),
            });
            let (announcer, leadership) = Leadership::follower();
            let candidate = Candidate::new(client(&options).await?, place, replica);
            election = Some(tokio::spawn(candidate.run(announcer, shutdown.clone())));
            leadership
        }
        _ => Leadership::always(),
    };
    match &options.bundle_out {
        BundleOut::File(path) => root::replace(path, roots.to_pem().as_bytes(), 0o644)?,
        BundleOut::ConfigMap(place) => {
            let bundle = Bundle::new(client(&options).await?, place.clone(), roots.to_pem());
            bundle.provide().await;
            let leadership = leadership.clone();
            tokio::spawn(async move { bundle.keep(leadership).await });
        }
    }
    let authenticator: Arc<dyn Authenticator> = match (&options.node_tokens, options.auth) {
        (Some(path), _) => {
            let tokens = FileTokens::open(path)
                .with_context(|| format!("read the node tokens {}", path.display()))?;
            Arc::new(tokens)
        }
        (None, Some(Auth::TokenReview)) => {
            let accounts = Accounts {
                audience: options.audience.clone(),
                proxies: options.proxy_account.clone(),
                controllers: options.controller_account.clone(),
            };
            let client = client(&options).await?;
            Arc::new(TokenReviews::new(client, Arc::clone(&source), accounts))
        }
        (None, None) => bail!("give --node-tokens or --auth"),
    };
    let parts = Parts {
        source,
        writer,
        authenticator,
        ca,
        roots,
        leadership,
        replicas,
        listener: listen(options.listen).await?,
        http: listen(options.http).await?,
        debug: listen(options.debug).await?,
        settings: Settings {
            trust_domain: options.trust_domain,
            cluster_domain: options.cluster_domain,
        },
        settle: run::SETTLE,
    };
    let result = run::run(parts, shutdown.clone()).await;
    shutdown.cancel();
    if let Some(election) = election {
        // It gives the Lease back, so that the next need not wait for its end.
        let _ = election.await;
    }
    result
}

/// The API that objects come from, for what is kept there besides.
async fn client(options: &Options) -> anyhow::Result<kube::Client> {
    let place = match options.source.split_once(':') {
        Some(("kubernetes", place)) => place,
        None if options.source == "kubernetes" => "",
        _ => bail!(
            "secret:, configmap:, --auth token-review and --leader-lease need --source kubernetes"
        ),
    };
    Ok(weft_source::kubernetes::client(place).await?)
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

//! Puts the parts together, and runs them until they are told to stop.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use tokio::{net::TcpListener, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use weft_api::{
    ca::istio_certificate_service_server::IstioCertificateServiceServer, config,
    discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer, names,
    peer::peer_service_server::PeerServiceServer,
};
use weft_certs::{
    BundleCell, CertificateAuthority,
    bundle::TrustBundle,
    serving::ServingCell,
    tls::{controller_client_config, controller_server_config},
};
use weft_source::{Source, Writer};

use crate::{
    compile::{Settings, World},
    http::{Http, Pages},
    kubernetes::Place,
    leadership::Leadership,
    metrics::Metrics,
    pipeline::{Pipeline, update},
    publish::{
        ResourceType,
        auth::Authenticator,
        ca::CaService,
        hub::Hub,
        peers::{Peers, client::Dialer, service::StandingService},
        status::StatusWriter,
        tls,
        xds::XdsService,
    },
    state::State,
};

/// After a start, proxies have this long to come back before their absence shows in any status.
pub const SETTLE: Duration = Duration::from_secs(2);

/// Streams of a broken connection are noticed within these two together.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The most that one request may be, in bytes: a proxy that comes back names every resource that it
/// has, at about 100 bytes each.
const MAX_REQUEST: usize = 64 * 1024 * 1024;

/// How long an orderly end may take.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// The least time between two renewals of the serving certificate.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);

/// What a controller is made of.
pub struct Parts {
    /// Where objects come from.
    pub source: Arc<dyn Source>,
    /// Where status goes.
    pub writer: Arc<dyn Writer>,
    /// Who may call.
    pub authenticator: Arc<dyn Authenticator>,
    /// Signs workloads' certificates and the controller's own.
    pub ca: CertificateAuthority,
    /// The roots to trust.
    pub roots: TrustBundle,
    /// Whether this replica writes status.
    pub leadership: Leadership,
    /// The other replicas, if there may be any.
    pub replicas: Option<Replicas>,
    /// For xDS and the CA.
    pub listener: TcpListener,
    /// For readiness and metrics.
    pub http: TcpListener,
    /// For debugging: shows the whole configuration.
    pub debug: TcpListener,
    /// Trust domain and cluster domain.
    pub settings: Settings,
    /// See [`SETTLE`].
    pub settle: Duration,
}

/// How this replica finds and calls the others.
pub struct Replicas {
    /// This one's name.
    pub replica: String,
    /// The Service through which proxies reach the replicas.
    pub service: Place,
    /// The gRPC port of all of them.
    pub port: u16,
    /// The token with which this one calls.
    pub token_file: PathBuf,
}

/// Runs a controller until `shutdown`; fails if its source ends.
pub async fn run(parts: Parts, shutdown: CancellationToken) -> anyhow::Result<()> {
    let Parts {
        source,
        writer,
        authenticator,
        ca,
        roots,
        leadership,
        replicas,
        listener,
        http,
        debug,
        settings,
        settle,
    } = parts;
    let ca = Arc::new(ca);
    let metrics = Metrics::default();
    let hub = Hub::new(metrics.clone());
    let (peers, dialer) = match replicas {
        Some(replicas) => {
            let peers = Peers::new(replicas.service, replicas.replica);
            let bundle = Arc::new(BundleCell::new(roots.clone()));
            let tls = controller_client_config(bundle, names::CONTROLLER_DNS_NAME)
                .context("set up TLS towards other replicas")?;
            let dialer = Dialer {
                port: replicas.port,
                tls,
                token_file: replicas.token_file,
            };
            (Some(peers), Some(dialer))
        }
        None => (None, None),
    };
    let status = StatusWriter::new(
        Arc::clone(&hub),
        peers.clone(),
        writer,
        leadership,
        metrics.clone(),
    );
    hub.publish(vec![update(
        ResourceType::MeshConfig,
        names::MESH_CONFIG_NAME,
        Some(&mesh_config(&settings, &roots)),
    )]);
    let state = Arc::new(State::new(World::new(settings)));
    let ready = CancellationToken::new();
    let answers = Arc::new(Http {
        ready: ready.clone(),
        hub: Arc::clone(&hub),
        state: Arc::clone(&state),
        metrics: metrics.clone(),
    });
    let serving = Arc::new(ServingCell::new(serving_certificate(&ca)?));
    let tls = controller_server_config(Arc::clone(&serving)).context("set up TLS")?;

    let events = source.watch().await.context("watch the source")?;
    let synced = CancellationToken::new();
    let pipeline = Pipeline {
        state: Arc::clone(&state),
        hub: Arc::clone(&hub),
        status: Arc::clone(&status),
        peers: peers.clone(),
        metrics: metrics.clone(),
        synced: synced.clone(),
    };
    let serve = async {
        // Before everything is read, "what there is" would take from proxies what they have.
        tokio::select! {
            () = synced.cancelled() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        let address = listener.local_addr().context("listen")?;
        let standing = StandingService::new(
            Arc::clone(&hub),
            Arc::clone(&authenticator),
            shutdown.clone(),
        );
        let xds = XdsService::new(hub, Arc::clone(&authenticator), shutdown.clone());
        let xds = AggregatedDiscoveryServiceServer::new(xds).max_decoding_message_size(MAX_REQUEST);
        let ca = CaService::new(Arc::clone(&ca), authenticator, state, metrics);
        let server = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .add_service(xds)
            .add_service(PeerServiceServer::new(standing))
            .add_service(IstioCertificateServiceServer::new(ca));
        tracing::info!(%address, "serving configuration and certificates");
        ready.cancel();
        let incoming = tls::accept(listener, tls);
        let stop = shutdown.clone().cancelled_owned();
        server
            .serve_with_incoming_shutdown(incoming, stop)
            .await
            .context("serve")
    };
    let status = async {
        synced.cancelled().await;
        status.run(settle).await;
    };
    let follow = async {
        match peers.zip(dialer) {
            Some((peers, dialer)) => peers.follow(dialer).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        result = serve => result,
        () = follow => Ok(()),
        () = pipeline.run(events) => bail!("the source of objects has ended"),
        () = status => Ok(()),
        () = Arc::clone(&answers).serve(http, Pages::Open) => Ok(()),
        () = answers.serve(debug, Pages::Debug) => Ok(()),
        () = renew(&ca, &serving) => Ok(()),
        () = overdue(&shutdown) => Ok(()),
    }
}

/// Ends some time after the shutdown has begun: clients that do not hang up can't hold it up.
pub async fn overdue(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    sleep(SHUTDOWN_TIMEOUT).await;
}

fn mesh_config(settings: &Settings, roots: &TrustBundle) -> config::MeshConfig {
    config::MeshConfig {
        trust_domain: settings.trust_domain.clone(),
        cluster_domain: settings.cluster_domain.clone(),
        trust_bundle: roots.roots().map(|root| root.to_vec().into()).collect(),
    }
}

fn serving_certificate(
    ca: &CertificateAuthority,
) -> anyhow::Result<weft_certs::serving::ServingCertificate> {
    ca.serving_certificate(&[names::CONTROLLER_DNS_NAME], SystemTime::now())
        .context("make the serving certificate")
}

/// Renews the serving certificate at half its life.
async fn renew(ca: &CertificateAuthority, serving: &ServingCell) {
    loop {
        let due = serving.current().renew_at(0.0);
        let wait = due.duration_since(SystemTime::now()).unwrap_or_default();
        // Near the root's own end, and after a failure, what is due may be due already.
        sleep(wait.max(RENEWAL_PAUSE)).await;
        match serving_certificate(ca) {
            Ok(certificate) => serving.set(certificate),
            Err(error) => {
                tracing::error!(%error, "the serving certificate can't be renewed; trying again");
            }
        }
    }
}

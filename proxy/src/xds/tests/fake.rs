//! A controller's end of the protocol, led by hand: each stream that a client opens is handed to
//! the test.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::stream::BoxStream;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use prost::Message;
use prost_types::Any;
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};
use weft_api::{
    config::{MeshConfig, Service},
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
        aggregated_discovery_service_server::{
            AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
        },
    },
    names::CONTROLLER_DNS_NAME,
};
use weft_certs::{CertificateAuthority, serving::ServingCell, tls};

use crate::{
    admin::Readiness,
    controller::Controller,
    model::Locality,
    state::{Kind, State},
    telemetry::{AccessLog, Sink, Telemetry},
    xds::{Client, node, snapshot::Snapshot},
};

const PATIENCE: Duration = Duration::from_secs(20);
pub(super) const TOKEN: &str = "token-1";

/// A stream that a client opened.
pub(super) struct Opened {
    pub(super) authorization: String,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    nonce: u32,
}

impl Opened {
    pub(super) async fn request(&mut self) -> DeltaDiscoveryRequest {
        let message = timeout(PATIENCE, self.requests.message()).await;
        let message = message.expect("a request in time").expect("no error");
        message.expect("the stream is open")
    }

    /// The first four requests, by type.
    pub(super) async fn subscriptions(&mut self) -> BTreeMap<Kind, DeltaDiscoveryRequest> {
        let mut all = BTreeMap::new();
        for _ in Kind::ALL {
            let request = self.request().await;
            let kind = Kind::from_type_url(&request.type_url).expect("a known type");
            all.insert(kind, request);
        }
        assert_eq!(all.len(), 4, "each type once");
        all
    }

    /// Sends a response, and returns the request that answers it.
    pub(super) async fn exchange(
        &mut self,
        type_url: &str,
        resources: Vec<Resource>,
        removed: &[&str],
    ) -> DeltaDiscoveryRequest {
        self.nonce += 1;
        let nonce = format!("nonce-{}", self.nonce);
        let response = DeltaDiscoveryResponse {
            type_url: type_url.into(),
            resources,
            removed_resources: removed.iter().map(|name| name.to_string()).collect(),
            nonce: nonce.clone(),
            ..DeltaDiscoveryResponse::default()
        };
        self.responses
            .send(Ok(response))
            .await
            .expect("the stream is open");
        let answer = self.request().await;
        assert_eq!(
            (&*answer.type_url, answer.response_nonce.as_str()),
            (type_url, nonce.as_str())
        );
        assert!(answer.node.is_none() && answer.resource_names_subscribe.is_empty());
        answer
    }

    /// Sends and expects an ACK.
    pub(super) async fn acked(&mut self, kind: Kind, resources: Vec<Resource>, removed: &[&str]) {
        let answer = self.exchange(kind.type_url(), resources, removed).await;
        assert_eq!(answer.error_detail, None);
    }
}

struct Fake(mpsc::UnboundedSender<Opened>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Fake {
    type DeltaAggregatedResourcesStream =
        BoxStream<'static, Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let authorization = request.metadata().get("authorization");
        let authorization = authorization.and_then(|value| value.to_str().ok());
        let (responses, out) = mpsc::channel(1);
        let opened = Opened {
            authorization: authorization.unwrap_or_default().into(),
            requests: request.into_inner(),
            responses,
            nonce: 0,
        };
        // The test may have ended.
        let _ = self.0.send(opened);
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }
}

/// A controller, until it is dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    streams: mpsc::UnboundedReceiver<Opened>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(super) async fn start(ca: &CertificateAuthority) -> Self {
        let certificate = ca
            .serving_certificate(&[CONTROLLER_DNS_NAME], SystemTime::now())
            .expect("a certificate");
        let config = tls::controller_server_config(Arc::new(ServingCell::new(certificate)));
        let acceptor = TlsAcceptor::from(config.expect("a configuration"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (opened, streams) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, opened) = (acceptor.clone(), opened.clone());
                connections.spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else {
                        return;
                    };
                    let service = AggregatedDiscoveryServiceServer::new(Fake(opened));
                    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(tls), TowerToHyperService::new(service))
                        .await;
                });
            }
        });
        Self {
            address,
            streams,
            task,
        }
    }

    pub(super) async fn opened(&mut self) -> Opened {
        let opened = timeout(PATIENCE, self.streams.recv()).await;
        opened.expect("a stream in time").expect("the server runs")
    }
}

pub(super) fn ca() -> CertificateAuthority {
    let hour = Duration::from_secs(3_600);
    CertificateAuthority::generate("cluster.local", SystemTime::now(), hour).expect("a CA")
}

/// A proxy's client, until it is dropped.
pub(super) struct Proxy {
    pub(super) state: Arc<State>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) synced: watch::Receiver<bool>,
    /// Told to stop, it goes on with its configuration.
    pub(super) draining: CancellationToken,
    stop: DropGuard,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Starts one that trusts `ca`. Its files are in `dir`.
    pub(super) fn start(dir: &TempDir, ca: &CertificateAuthority, controller: SocketAddr) -> Self {
        let bundle = ca.trust_bundle().expect("a bundle");
        let (bundle_file, token_file) = (dir.path().join("root.pem"), dir.path().join("token"));
        std::fs::write(&bundle_file, bundle.to_pem()).expect("written");
        std::fs::write(&token_file, format!("{TOKEN}\n")).expect("written");
        let uri = format!("https://{controller}").parse().expect("a URI");
        let state = State::new(Locality::default());
        let readiness = Readiness::new();
        let synced = watch::Sender::new(false);
        let log = AccessLog::open(&Sink::Off).expect("no log");
        let telemetry = Telemetry::new(log);
        let client = Client {
            transport: Arc::new(Controller::new(uri, bundle_file, token_file)),
            node: node("node-a", "incarnation-1", "zone-1"),
            state: Arc::clone(&state),
            telemetry: Arc::clone(&telemetry),
            snapshot: Some(snapshot(dir.path())),
            configured: readiness.condition("configuration", "not asked for yet"),
            synced: synced.clone(),
        };
        let shutdown = CancellationToken::new();
        let draining = shutdown.child_token();
        let task = tokio::spawn(client.run(draining.clone(), shutdown.clone()));
        Self {
            state,
            readiness,
            telemetry,
            synced: synced.subscribe(),
            draining,
            stop: shutdown.drop_guard(),
            task,
        }
    }

    /// Stops it in order.
    pub(super) async fn stop(self) {
        drop(self.stop);
        self.task.await.expect("it ends without a panic");
    }

    pub(super) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let wait = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(timeout(PATIENCE, wait).await.is_ok(), "never: {what}");
    }

    pub(super) fn metric(&self, name: &str) -> Option<f64> {
        let text = self.telemetry.encode();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.parse().ok())
    }
}

pub(super) fn snapshot(dir: &Path) -> Snapshot {
    Snapshot::new(dir.join("snapshot")).expect("a directory")
}

pub(super) fn resource(kind: Kind, name: &str, version: &str, message: &impl Message) -> Resource {
    Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(Any {
            type_url: kind.type_url().into(),
            value: message.encode_to_vec(),
        }),
    }
}

/// `shop/<name>` at an address that ends in `last`.
pub(super) fn service(name: &str, version: &str, last: u8) -> Resource {
    let message = Service {
        namespace: "shop".into(),
        name: name.into(),
        vips: vec![vec![10, 96, 0, last].into()],
        ..Service::default()
    };
    resource(Kind::Service, &format!("shop/{name}"), version, &message)
}

pub(super) fn mesh(ca: &CertificateAuthority) -> Resource {
    let bundle = ca.trust_bundle().expect("a bundle");
    let message = MeshConfig {
        trust_domain: "cluster.local".into(),
        cluster_domain: "cluster.local".into(),
        trust_bundle: bundle.roots().map(|der| der.to_vec().into()).collect(),
    };
    resource(Kind::MeshConfig, "mesh", "1", &message)
}

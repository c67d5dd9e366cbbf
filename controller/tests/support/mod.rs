//! A controller over a folder, and proxies that speak to it as the real one does: gRPC over TLS.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use prost::Message;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{
    Code, Request, Status, Streaming,
    transport::{Channel, Endpoint},
};
use weft_api::{
    ca::{
        IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
    },
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, ErrorDetail, Node,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    names,
};
use weft_certs::{BundleCell, TrustBundle, tls};
use weft_controller::{
    compile::Settings,
    leadership::Leadership,
    publish::{ResourceType, auth::FileTokens, root},
    run::{Parts, run},
};

/// How long a test waits for something that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// How long a test watches for something that must not happen.
pub(crate) const CALM: Duration = Duration::from_millis(300);

/// Where a controller answers over HTTP.
pub(crate) struct Listeners {
    pub(crate) http: TcpListener,
    pub(crate) debug: TcpListener,
}

/// A running controller.
pub(crate) struct Control {
    pub(crate) folder: TempDir,
    address: SocketAddr,
    http: SocketAddr,
    debug: SocketAddr,
    bundle: TrustBundle,
    shutdown: DropGuard,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Control {
    /// Starts a controller over these objects. The tokens `a` and `b` are of `node-a` and `node-b`.
    pub(crate) async fn start(objects: &[Value]) -> Self {
        let folder = TempDir::new().unwrap();
        fs::create_dir_all(folder.path().join("api/manifests")).unwrap();
        fs::write(folder.path().join("tokens"), "a node-a\nb node-b\n").unwrap();
        for object in objects {
            apply_in(&folder, object);
        }
        Self::start_in(folder).await
    }

    /// Starts a controller over what a folder holds.
    pub(crate) async fn start_in(folder: TempDir) -> Self {
        tls::install_crypto_provider();
        let root = root::load_or_create(&folder.path().join("ca"), "cluster.local").unwrap();
        let bundle = root.trust_bundle().unwrap();
        let (source, writer) = weft_source::open(
            &format!("folder:{}", folder.path().join("api").display()),
            weft_source::Scope::Mesh,
        )
        .await
        .unwrap();
        let tokens = FileTokens::open(folder.path().join("tokens")).unwrap();
        Self::run(folder, async |listeners| Parts {
            source,
            writer,
            authenticator: Arc::new(tokens),
            ca: root,
            roots: bundle,
            leadership: Leadership::always(),
            replicas: None,
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            http: listeners.http,
            debug: listeners.debug,
            settings: Settings {
                trust_domain: "cluster.local".into(),
                cluster_domain: "cluster.local".into(),
            },
            settle: Duration::from_millis(50),
        })
        .await
    }

    /// Starts a controller of these parts.
    pub(crate) async fn run(folder: TempDir, parts: impl AsyncFnOnce(Listeners) -> Parts) -> Self {
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let debug = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (http_address, debug_address) =
            (http.local_addr().unwrap(), debug.local_addr().unwrap());
        let parts = parts(Listeners { http, debug }).await;
        let address = parts.listener.local_addr().unwrap();
        let bundle = parts.roots.clone();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(run(parts, shutdown.clone()));
        Self {
            folder,
            address,
            http: http_address,
            debug: debug_address,
            bundle,
            shutdown: shutdown.drop_guard(),
            task,
        }
    }

    /// Stops it in an orderly way; what it leaves can be started again.
    pub(crate) async fn stop(self) -> TempDir {
        drop(self.shutdown);
        timeout(PATIENCE, self.task)
            .await
            .expect("it stops")
            .unwrap()
            .unwrap();
        self.folder
    }

    pub(crate) fn apply(&self, object: &Value) {
        apply_in(&self.folder, object);
    }

    pub(crate) fn delete(&self, object: &Value) {
        fs::remove_file(manifest(&self.folder, object)).unwrap();
    }

    /// The answer to `GET path` of the HTTP interface that has it: status and body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let debug = path.starts_with("/debug/");
        self.get_from(if debug { self.debug } else { self.http }, path)
            .await
    }

    /// The answer of the interface that everybody reaches.
    pub(crate) async fn get_openly(&self, path: &str) -> (u16, String) {
        self.get_from(self.http, path).await
    }

    async fn get_from(&self, from: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(from).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (
            head.split(' ').nth(1).unwrap().parse().unwrap(),
            body.to_owned(),
        )
    }

    /// The status that weft has written of an object.
    pub(crate) fn status(&self, object: &Value) -> Value {
        let kind = object["kind"].as_str().unwrap();
        let group = object["apiVersion"]
            .as_str()
            .unwrap()
            .rsplit_once('/')
            .map_or("", |(g, _)| g);
        let metadata = &object["metadata"];
        let (namespace, name) = (
            metadata["namespace"].as_str().unwrap(),
            metadata["name"].as_str().unwrap(),
        );
        let path = format!("api/status/{kind}.{group}/{namespace}/{name}.json");
        let text = fs::read_to_string(self.folder.path().join(path)).unwrap_or("{}".into());
        serde_json::from_str(&text).unwrap()
    }

    /// Waits until a condition of an object has a status and reason.
    pub(crate) async fn condition(
        &self,
        object: &Value,
        kind: &str,
        status: &str,
        reason: &str,
    ) -> Value {
        let start = std::time::Instant::now();
        loop {
            let found = self.status(object);
            let parents = found["parents"].as_array().into_iter().flatten();
            let of_parents = parents.flat_map(|p| p["conditions"].as_array().into_iter().flatten());
            let conditions = found["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .chain(of_parents);
            let mut ours = conditions.filter(|c| c["type"] == kind);
            if let Some(c) = ours.find(|c| c["status"] == status && c["reason"] == reason) {
                return c.clone();
            }
            assert!(
                start.elapsed() < PATIENCE,
                "no {kind} {status} {reason}: {found:#}"
            );
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn channel(&self) -> Channel {
        let bundle = Arc::new(BundleCell::new(self.bundle.clone()));
        let config = tls::controller_client_config(bundle, names::CONTROLLER_DNS_NAME).unwrap();
        let connector = TlsConnector::from(config);
        let address = self.address;
        let connect = tower::service_fn(move |_| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                connector
                    .connect(tls::unnamed(), stream)
                    .await
                    .map(TokioIo::new)
            }
        });
        Endpoint::from_static("http://controller")
            .connect_with_connector(connect)
            .await
            .unwrap()
    }

    /// Opens a stream. Nothing is subscribed to.
    pub(crate) async fn stream(&self, token: &str, node: &str, id: &str) -> Result<Stream, Status> {
        let (requests, receiver) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(receiver));
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {token}").parse().unwrap());
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel().await);
        let responses = client
            .delta_aggregated_resources(request)
            .await?
            .into_inner();
        let node = Node {
            id: id.into(),
            cluster: node.into(),
            ..Node::default()
        };
        Ok(Stream {
            requests,
            responses,
            node: Some(node),
        })
    }

    /// A proxy that has subscribed to everything and has it.
    pub(crate) async fn proxy(&self, token: &str, id: &str) -> Proxy {
        self.proxy_with(token, id, Proxy::default()).await
    }

    /// The same, with what it had before.
    pub(crate) async fn proxy_with(&self, token: &str, id: &str, mut proxy: Proxy) -> Proxy {
        let mut stream = self
            .stream(token, &format!("node-{token}"), id)
            .await
            .unwrap();
        for kind in ResourceType::ALL {
            let held = &proxy.held[kind as usize];
            let request = DeltaDiscoveryRequest {
                type_url: kind.url().into(),
                resource_names_subscribe: vec!["*".into()],
                initial_resource_versions: held
                    .iter()
                    .map(|(n, h)| (n.clone(), h.0.clone()))
                    .collect(),
                ..Default::default()
            };
            stream.send(request).await;
        }
        proxy.stream = Some(stream);
        proxy
    }

    pub(crate) async fn certificate(
        &self,
        token: &str,
        identity: Option<&str>,
        csr: &str,
    ) -> Result<Vec<String>, (Code, String)> {
        let field = identity.map(|identity| {
            let value = prost_types::value::Kind::StringValue(identity.into());
            (
                "ImpersonatedIdentity".to_owned(),
                prost_types::Value { kind: Some(value) },
            )
        });
        let metadata = prost_types::Struct {
            fields: field.into_iter().collect(),
        };
        let mut request = Request::new(IstioCertificateRequest {
            csr: csr.into(),
            validity_duration: 0,
            metadata: Some(metadata),
        });
        request
            .metadata_mut()
            .insert("authorization", format!("Bearer {token}").parse().unwrap());
        let mut client = IstioCertificateServiceClient::new(self.channel().await);
        let result = client.create_certificate(request).await;
        result
            .map(|response| response.into_inner().cert_chain)
            .map_err(|status| (status.code(), status.message().to_owned()))
    }
}

fn manifest(folder: &TempDir, object: &Value) -> std::path::PathBuf {
    let metadata = &object["metadata"];
    let name = format!(
        "{}-{}-{}.json",
        object["kind"].as_str().unwrap(),
        metadata["namespace"].as_str().unwrap_or_default(),
        metadata["name"].as_str().unwrap()
    );
    folder.path().join("api/manifests").join(name)
}

fn apply_in(folder: &TempDir, object: &Value) {
    let path = manifest(folder, object);
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, object.to_string()).unwrap();
    fs::rename(temporary, path).unwrap();
}

/// A stream of requests and responses.
pub(crate) struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    node: Option<Node>,
}

impl Stream {
    pub(crate) async fn send(&mut self, mut request: DeltaDiscoveryRequest) {
        request.node = self.node.take();
        let _ = self.requests.send(request).await;
    }

    pub(crate) async fn receive(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let message = timeout(PATIENCE, self.responses.message())
            .await
            .expect("a response in time");
        message.map(|message| message.expect("the stream goes on"))
    }

    /// Whether nothing comes for a while.
    pub(crate) async fn is_calm(&mut self) -> bool {
        timeout(CALM, self.responses.message()).await.is_err()
    }
}

/// What a proxy has received of a resource: version and contents.
pub(crate) type Held = BTreeMap<String, (String, Vec<u8>)>;

/// A proxy that takes everything, but for the names it is told to refuse.
#[derive(Default)]
pub(crate) struct Proxy {
    stream: Option<Stream>,
    pub(crate) held: [Held; 4],
    pub(crate) refuse: BTreeSet<String>,
    /// Names received and, with a minus, removed, in order, by type's name.
    pub(crate) log: Vec<String>,
}

impl Proxy {
    pub(crate) fn stream(&mut self) -> &mut Stream {
        self.stream.as_mut().unwrap()
    }

    /// Ends the stream; what was received stays.
    pub(crate) fn disconnect(mut self) -> Self {
        self.stream = None;
        self.log.clear();
        self
    }

    /// Receives one response and answers it.
    pub(crate) async fn step(&mut self) {
        let response = self.stream().receive().await.unwrap();
        self.answer(response).await;
    }

    pub(crate) async fn answer(&mut self, response: DeltaDiscoveryResponse) {
        let kind = ResourceType::from_url(&response.type_url).unwrap();
        let held = &mut self.held[kind as usize];
        let mut errors = Vec::new();
        for resource in response.resources {
            self.log.push(format!("{} {}", kind.name(), resource.name));
            if self.refuse.contains(&resource.name) {
                errors.push(format!("{}: a test refuses it", resource.name));
                continue;
            }
            let body = resource.resource.unwrap().value;
            held.insert(resource.name, (resource.version, body));
        }
        for name in response.removed_resources {
            self.log.push(format!("{} -{name}", kind.name()));
            held.remove(&name);
        }
        let error = (!errors.is_empty()).then(|| ErrorDetail {
            code: 3,
            message: errors.join("\n"),
        });
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            error_detail: error,
            ..Default::default()
        };
        self.stream().send(answer).await;
    }

    /// Goes on until the condition holds.
    pub(crate) async fn until(&mut self, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            self.step().await;
        }
    }

    pub(crate) fn get<T: Message + Default>(&self, kind: ResourceType, name: &str) -> Option<T> {
        self.held[kind as usize]
            .get(name)
            .map(|(_, body)| T::decode(&body[..]).unwrap())
    }

    /// Answers in the background until the stream ends.
    pub(crate) fn go_on(mut self) -> JoinHandle<()> {
        tokio::spawn(async move {
            while let Ok(Some(response)) = self.stream().responses.message().await {
                self.answer(response).await;
            }
        })
    }
}

// === objects ===

pub(crate) fn pod(name: &str, node: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "uid": format!("uid-{name}"), "labels": {"app": "cart"}},
        "spec": {"nodeName": node, "serviceAccountName": format!("sa-{name}")},
        "status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

pub(crate) fn service(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "shop", "name": name},
        "spec": {
            "clusterIP": address, "selector": {"app": name},
            "ports": [{"port": 80, "targetPort": 8080, "appProtocol": "http"}],
        },
    })
}

pub(crate) fn route(name: &str, parent: &str, backend: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"namespace": "shop", "name": name, "generation": 1},
        "spec": {
            "parentRefs": [{"group": "core", "kind": "Service", "name": parent, "port": 80}],
            "rules": [{"backendRefs": [{"name": backend, "port": 80}]}],
        },
    })
}

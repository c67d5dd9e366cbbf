//! A mesh of a test: pods in namespaces, one proxy that serves all of them, a CA, a configuration.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{FutureExt, future::BoxFuture};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    task::JoinHandle,
};
use weft_api::{
    config::{self, MtlsMode, Tunnel},
    handover::ListenerKind,
};
use weft_certs::{BundleCell, BundleSource, CertificateAuthority, SpiffeId, Svid, SvidCell, csr};
use weft_proxy::{
    http::HttpLimits,
    identity::{Ca, CaError, Identities},
    model::Locality,
    pods::{Info, Node, Pod, Pods},
    settings::Settings,
    state::{Delta, Kind, Resource, State},
    telemetry::{AccessLog, Sink, Telemetry},
};

use crate::net::{Host, Net};

pub(crate) const TRUST_DOMAIN: &str = "cluster.local";
pub(crate) const NAMESPACE: &str = "shop";

/// How a pod is to be.
#[derive(Clone, Copy)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) account: &'static str,
    pub(crate) captured: bool,
    /// Served from the start.
    pub(crate) served: bool,
    pub(crate) strict: bool,
}

pub(crate) fn captured(name: &'static str) -> Spec {
    Spec {
        name,
        account: name,
        captured: true,
        served: true,
        strict: false,
    }
}

pub(crate) fn outside(name: &'static str) -> Spec {
    Spec {
        captured: false,
        served: false,
        ..captured(name)
    }
}

pub(crate) struct TestPod {
    pub(crate) host: Host,
    pub(crate) spec: Spec,
    pub(crate) pod: Option<Arc<Pod>>,
    /// The agent keeps them.
    listeners: Vec<(ListenerKind, std::net::TcpListener)>,
}

pub(crate) struct Mesh {
    pub(crate) pods: Vec<TestPod>,
    pub(crate) served: Arc<Pods>,
    pub(crate) state: Arc<State>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) ca: Arc<TestCa>,
    pub(crate) bundle: Arc<dyn BundleSource>,
    _net: Net,
}

impl Mesh {
    pub(crate) async fn new<const N: usize>(specs: [Spec; N]) -> Self {
        Self::with(Settings::default(), specs).await
    }

    pub(crate) async fn with<const N: usize>(settings: Settings, specs: [Spec; N]) -> Self {
        weft_certs::tls::install_crypto_provider();
        let mut net = Net::new();
        let ca = Arc::new(TestCa::new());
        let bundle: Arc<dyn BundleSource> =
            Arc::new(BundleCell::new(ca.0.trust_bundle().expect("a bundle")));
        let telemetry = Telemetry::new(AccessLog::open(&Sink::Off).expect("no log"));
        let state = State::new(Locality::default());
        let served = proxy(&ca, &bundle, &telemetry, &state, settings);
        tokio::spawn(Arc::clone(&served).follow_modes());
        let pods = specs
            .into_iter()
            .map(|spec| TestPod {
                host: net.pod(spec.captured),
                spec,
                pod: None,
                listeners: Vec::new(),
            })
            .collect();
        let mut mesh = Self {
            pods,
            served,
            state,
            telemetry,
            ca,
            bundle,
            _net: net,
        };
        for at in 0..mesh.pods.len() {
            mesh.describe(at, |_| {});
            if mesh.pods[at].spec.captured {
                mesh.bind(at);
            }
            if mesh.pods[at].spec.served {
                let served = mesh.hand_over(at, &mesh.served);
                served.ready().await.expect("a pod that is served");
                mesh.pods[at].pod = Some(served);
            }
        }
        mesh
    }

    fn bind(&mut self, at: usize) {
        let TestPod {
            host, listeners, ..
        } = &mut self.pods[at];
        *listeners = [
            (ListenerKind::Outbound, 15001),
            (ListenerKind::InboundPlaintext, 15006),
            (ListenerKind::InboundHbone, 15008),
        ]
        .map(|(kind, port)| (kind, host.bind(port)))
        .into();
    }

    /// Another proxy of the same node.
    pub(crate) fn proxy(&self, settings: Settings) -> Arc<Pods> {
        proxy(
            &self.ca,
            &self.bundle,
            &self.telemetry,
            &self.state,
            settings,
        )
    }

    /// What the agent says of a pod.
    pub(crate) fn info(&self, at: usize) -> Info {
        let TestPod { host, spec, .. } = &self.pods[at];
        Info {
            sandbox: format!("sandbox-{}", spec.name),
            uid: format!("uid-{}", spec.name),
            namespace: NAMESPACE.into(),
            name: spec.name.into(),
            service_account: spec.account.into(),
            addresses: host.addresses(),
            strict: spec.strict,
            mark: 0,
        }
    }

    /// A pod's descriptors, as the agent sends them.
    pub(crate) fn descriptors(&self, at: usize) -> (OwnedFd, Vec<(ListenerKind, OwnedFd)>) {
        let TestPod {
            host, listeners, ..
        } = &self.pods[at];
        let netns = host
            .space
            .netns
            .run(|| Ok(std::fs::File::open("/proc/thread-self/ns/net")?.into()))
            .expect("the pod's namespace");
        let listeners = listeners
            .iter()
            .map(|(kind, listener)| (*kind, listener.try_clone().expect("a descriptor").into()))
            .collect();
        (netns, listeners)
    }

    /// Gives a pod to a proxy.
    pub(crate) fn hand_over(&self, at: usize, proxy: &Pods) -> Arc<Pod> {
        let (netns, listeners) = self.descriptors(at);
        proxy.add(self.info(at), netns, listeners).expect("a pod")
    }

    /// Puts a pod into the configuration, after `change`.
    pub(crate) fn describe(&self, at: usize, change: impl FnOnce(&mut config::Workload)) {
        let TestPod { host, spec, .. } = &self.pods[at];
        let uid = format!("{NAMESPACE}/{0}/uid-{0}", spec.name);
        let mut workload = config::Workload {
            uid: uid.clone(),
            name: spec.name.to_owned(),
            namespace: NAMESPACE.to_owned(),
            service_account: spec.account.to_owned(),
            trust_domain: TRUST_DOMAIN.to_owned(),
            owner_name: spec.name.to_owned(),
            addresses: host.addresses().iter().map(|ip| octets(*ip)).collect(),
            tunnel: if spec.captured {
                Tunnel::Hbone
            } else {
                Tunnel::None
            }
            .into(),
            sandbox: if spec.captured {
                format!("sandbox-{}", spec.name)
            } else {
                String::new()
            },
            mtls: if spec.strict {
                MtlsMode::Strict
            } else {
                MtlsMode::Permissive
            }
            .into(),
            ..Default::default()
        };
        change(&mut workload);
        self.put(Kind::Workload, &uid, &workload);
    }

    pub(crate) fn put(&self, kind: Kind, name: &str, message: &impl Message) {
        let rejected = self.state.apply(Delta {
            kind,
            updated: vec![Resource {
                name: name.to_owned(),
                version: "1".to_owned(),
                body: message.encode_to_vec().into(),
            }],
            removed: vec![],
        });
        assert!(rejected.is_empty(), "{rejected:?}");
    }

    /// A Service `shop/<name>` at `vip` whose only port `port` leads to port `target` of pods.
    pub(crate) fn service(
        &self,
        name: &str,
        vip: IpAddr,
        port: u16,
        target: u16,
        endpoints: &[usize],
    ) {
        let full = format!("{NAMESPACE}/{name}");
        let service = config::Service {
            namespace: NAMESPACE.to_owned(),
            name: name.to_owned(),
            vips: vec![octets(vip)],
            ports: vec![config::ServicePort {
                port: port.into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        self.put(Kind::Service, &full, &service);
        for at in endpoints {
            self.describe(*at, |workload| {
                workload.endpoints.push(config::Endpoint {
                    service: full.clone(),
                    ports: vec![config::EndpointPort {
                        service_port: port.into(),
                        target_port: target.into(),
                    }],
                    ready: true,
                    serving: true,
                    terminating: false,
                    families: Vec::new(),
                });
            });
        }
    }

    pub(crate) fn host(&self, at: usize) -> &Host {
        &self.pods[at].host
    }

    pub(crate) fn served(&self, at: usize) -> &Arc<Pod> {
        self.pods[at].pod.as_ref().expect("a captured pod")
    }

    /// Streams of each outbound tunnel of a pod.
    pub(crate) fn tunnels(&self, at: usize) -> Vec<usize> {
        let stats = self.served(at).connector().pool().stats();
        stats.into_iter().flat_map(|one| one.streams).collect()
    }

    /// Whether the metrics have a line that starts so, with this value.
    pub(crate) fn metric(&self, line: &str, value: u64) -> bool {
        let wanted = format!("{line} {value}");
        self.telemetry.encode().lines().any(|line| line == wanted)
    }

    /// A certificate of the mesh, for peers of the test's own.
    pub(crate) fn svid(&self, account: &str) -> Arc<SvidCell> {
        let id = SpiffeId::new(TRUST_DOMAIN, NAMESPACE, account).expect("an id");
        let request = csr::Request::generate(&id).expect("a request");
        let chain = self
            .ca
            .0
            .sign(&request.csr_pem, &id, None, SystemTime::now());
        let chain = chain.expect("a chain").chain_pem;
        let cell = Arc::new(SvidCell::new());
        cell.set(Svid::from_pem(&chain, &request.key_pem).expect("an SVID"));
        cell
    }
}

fn proxy(
    ca: &Arc<TestCa>,
    bundle: &Arc<dyn BundleSource>,
    telemetry: &Arc<Telemetry>,
    state: &Arc<State>,
    settings: Settings,
) -> Arc<Pods> {
    let identities = Identities::new(
        Arc::clone(ca) as Arc<dyn Ca>,
        None,
        Arc::clone(telemetry),
        Arc::new(SystemTime::now),
        Handle::current(),
    );
    Arc::new(Pods::new(Arc::new(Node {
        state: Arc::clone(state),
        settings,
        http: HttpLimits::default(),
        telemetry: Arc::clone(telemetry),
        bundle: Arc::clone(bundle),
        identities,
        busy_threads: None,
    })))
}

/// The service account that the CA signs nothing for.
pub(crate) const UNSIGNED: &str = "unsigned";

pub(crate) struct TestCa(pub(crate) CertificateAuthority);

impl TestCa {
    fn new() -> Self {
        let day = Duration::from_secs(24 * 3600);
        let ca = CertificateAuthority::generate(TRUST_DOMAIN, SystemTime::now(), 30 * day);
        Self(ca.expect("a CA"))
    }
}

impl Ca for TestCa {
    fn sign<'a>(
        &'a self,
        identity: &'a SpiffeId,
        csr_pem: String,
    ) -> BoxFuture<'a, Result<Vec<String>, CaError>> {
        if identity.service_account() == UNSIGNED {
            return async { Err(CaError("refused".to_owned())) }.boxed();
        }
        let signed = self.0.sign(&csr_pem, identity, None, SystemTime::now());
        let signed = signed.map(|signed| signed.chain_pem);
        async move { signed.map_err(|error| CaError(error.to_string())) }.boxed()
    }
}

/// As messages carry it.
pub(crate) fn octets(ip: IpAddr) -> bytes::Bytes {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec().into(),
        IpAddr::V6(ip) => ip.octets().to_vec().into(),
    }
}

/// Waits for a condition, with a bound that only a broken test reaches.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not in time: {what}");
}

/// A connection whose close is a reset.
pub(crate) fn reset(stream: TcpStream) {
    stream.set_zero_linger().expect("the option");
    drop(stream);
}

/// The peer as the application sees it, without IPv4-in-IPv6.
pub(crate) fn seen(peer: SocketAddr) -> IpAddr {
    peer.ip().to_canonical()
}

/// Answers each byte with itself.
pub(crate) fn echo(listener: TcpListener) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    })
}

/// A byte there and back.
pub(crate) async fn ping(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"x").await?;
    stream.read_exact(&mut [0; 1]).await.map(drop)
}

/// A connection to an [`echo`] that has answered.
pub(crate) async fn dial(mesh: &Mesh, from: usize, to: SocketAddr) -> std::io::Result<TcpStream> {
    let mut stream = mesh.host(from).dial(to).await?;
    ping(&mut stream).await?;
    Ok(stream)
}

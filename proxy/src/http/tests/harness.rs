//! A pod's HTTP between clients and backends that are joined by memory: what a test sends flows in
//! through `PodHttp::serve`, and comes out at servers that the test made.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use weft_api::config::{
    self, AppProtocol, Backend, HttpFilter, HttpMatch, HttpRule, HttpTable, PathMatch, RouteRef,
    backend, http_filter, path_match, route_table,
};

use crate::{
    http::{HttpLimits, PodHttp},
    io::{BoxStream, ConnectError, Connector, Link},
    limits::PodLimits,
    model::{Client, Locality, Workload},
    settings::Settings,
    state::{Delta, Kind, Resource, State, Target},
    telemetry::{AccessLog, Sink, Telemetry},
};

pub(super) const NAMESPACE: &str = "shop";
pub(super) const SERVICE: &str = "shop/checkout";
pub(super) const VIP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), 8080);

/// What is buffered in memory in each direction of a connection: a socket's buffer.
pub(super) const PIPE: usize = 64 * 1024;

pub(super) type AnyBody = BoxBody<Bytes, hyper::Error>;
type Accept = Arc<dyn Fn(DuplexStream) + Send + Sync>;

/// The endpoints by address, and how often each was connected to.
#[derive(Default)]
pub(super) struct Network {
    endpoints: Mutex<HashMap<SocketAddr, Accept>>,
    pub(super) connects: AtomicUsize,
}

impl Connector for Network {
    fn connect<'a>(
        &'a self,
        _to: &'a Workload,
        address: SocketAddr,
    ) -> BoxFuture<'a, Result<Link, ConnectError>> {
        self.connects.fetch_add(1, Ordering::Relaxed);
        let accept = self.endpoints.lock().get(&address).cloned();
        Box::pin(async move {
            let accept = accept.ok_or(ConnectError::Refused(address))?;
            let (near, far) = duplex(PIPE);
            accept(far);
            Ok(Link::from(Box::new(near) as BoxStream))
        })
    }
}

/// One pod, its configuration and the backends.
pub(super) struct Mesh {
    pub(super) state: Arc<State>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) network: Arc<Network>,
    pub(super) pod: Arc<PodHttp>,
    pub(super) limits: Arc<PodLimits>,
    pub(super) drain: crate::drain::Drain,
    version: AtomicUsize,
}

impl Mesh {
    pub(super) fn new() -> Self {
        Self::with_limits(HttpLimits::default())
    }

    pub(super) fn with_limits(limits: HttpLimits) -> Self {
        let state = State::new(Locality::default());
        let log = AccessLog::open(&Sink::Off).expect("no sink to open");
        let telemetry = Telemetry::new(log);
        let network = Arc::new(Network::default());
        let connector: Arc<dyn Connector> = Arc::clone(&network) as _;
        let pod_limits = PodLimits::new("shop".into(), "client".into(), Settings::default());
        telemetry.pod(&pod_limits, &Arc::default());
        let pod = PodHttp::new(
            Arc::clone(&state),
            Arc::clone(&telemetry),
            connector,
            limits,
            Arc::clone(&pod_limits),
        );
        let mesh = Self {
            state,
            telemetry,
            network,
            pod,
            limits: pod_limits,
            drain: crate::drain::Drain::default(),
            version: AtomicUsize::new(0),
        };
        mesh.service("checkout", VIP.ip(), AppProtocol::Http);
        mesh
    }

    fn apply(&self, kind: Kind, name: &str, message: &impl Message) {
        let version = self.version.fetch_add(1, Ordering::Relaxed).to_string();
        let rejected = self.state.apply(Delta {
            kind,
            updated: vec![Resource {
                name: name.into(),
                version,
                body: message.encode_to_vec().into(),
            }],
            removed: vec![],
        });
        assert_eq!(rejected, [], "{name}");
    }

    pub(super) fn remove(&self, kind: Kind, name: &str) {
        let removed = vec![name.to_owned()];
        let delta = Delta {
            kind,
            updated: vec![],
            removed,
        };
        assert_eq!(self.state.apply(delta), []);
    }

    pub(super) fn service(&self, name: &str, vip: IpAddr, protocol: AppProtocol) {
        let service = config::Service {
            namespace: NAMESPACE.into(),
            name: name.into(),
            vips: vec![octets(vip)],
            ports: vec![config::ServicePort {
                port: VIP.port().into(),
                name: "http".into(),
                protocol: protocol.into(),
            }],
            ..Default::default()
        };
        self.apply(Kind::Service, &format!("{NAMESPACE}/{name}"), &service);
    }

    /// An endpoint of `service`, whose workload is called `name`.
    pub(super) fn endpoint(&self, service: &str, name: &str, address: SocketAddr) {
        let uid = format!("{NAMESPACE}/{name}/1");
        let workload = config::Workload {
            uid: uid.clone(),
            name: name.into(),
            namespace: NAMESPACE.into(),
            service_account: "default".into(),
            trust_domain: "cluster.local".into(),
            addresses: vec![octets(address.ip())],
            endpoints: vec![config::Endpoint {
                service: format!("{NAMESPACE}/{service}"),
                ports: vec![config::EndpointPort {
                    service_port: VIP.port().into(),
                    target_port: address.port().into(),
                }],
                ready: true,
                serving: true,
                terminating: false,
                families: Vec::new(),
            }],
            ..Default::default()
        };
        self.apply(Kind::Workload, &uid, &workload);
    }

    /// Puts a table in force.
    pub(super) fn routes(&self, rules: Vec<(Vec<HttpMatch>, HttpRule)>) {
        let mut table = HttpTable::default();
        for (at, (matches, mut rule)) in rules.into_iter().enumerate() {
            rule.route = Some(RouteRef {
                kind: "HTTPRoute".into(),
                namespace: NAMESPACE.into(),
                name: "route".into(),
                rule_index: at as u32,
                rule_name: String::new(),
            });
            table.rules.push(rule);
            table
                .matches
                .extend(matches.into_iter().map(|it| HttpMatch {
                    rule: at as u32,
                    ..it
                }));
        }
        let table = config::RouteTable {
            service: SERVICE.into(),
            port: VIP.port().into(),
            table: Some(route_table::Table::Http(table)),
            ..Default::default()
        };
        self.apply(
            Kind::RouteTable,
            &format!("{SERVICE}/{}", VIP.port()),
            &table,
        );
    }

    /// One rule for everything.
    pub(super) fn route(&self, rule: HttpRule) {
        self.routes(vec![(vec![HttpMatch::default()], rule)]);
    }

    /// A Service with one endpoint that `accept` serves.
    pub(super) fn raw_backend(
        &self,
        service: &str,
        last_octet: u8,
        accept: impl Fn(DuplexStream) + Send + Sync + 'static,
    ) {
        let address = SocketAddr::from(([10, 0, 0, last_octet], 80));
        if service != "checkout" {
            let vip = IpAddr::from([10, 96, 1, last_octet]);
            self.service(service, vip, AppProtocol::Http);
        }
        self.endpoint(service, &format!("{service}-{last_octet}"), address);
        self.network
            .endpoints
            .lock()
            .insert(address, Arc::new(accept));
    }

    /// No server behind this endpoint any more.
    pub(super) fn unplug(&self, last_octet: u8) {
        let address = SocketAddr::from(([10, 0, 0, last_octet], 80));
        self.network.endpoints.lock().remove(&address);
    }

    /// A Service with one HTTP endpoint whose server is `respond`.
    pub(super) fn backend<F, R>(&self, service: &str, last_octet: u8, http2: bool, respond: F)
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<AnyBody>> + Send + 'static,
    {
        self.raw_backend(service, last_octet, move |io| {
            serve(io, http2, respond.clone());
        });
    }

    /// As [`Self::backend`], HTTP/1.1, answering its name and noting what it saw.
    pub(super) fn named(&self, service: &'static str, last_octet: u8) -> Seen {
        let seen = Seen::default();
        let noted = seen.clone();
        self.backend(service, last_octet, false, move |request| {
            noted.note(&request);
            async move { text(service) }
        });
        seen
    }

    /// A client's connection, as it was captured.
    pub(super) fn connect(&self) -> DuplexStream {
        let (client, captured) = duplex(PIPE);
        let Target::Service(target) = self.state.resolve(VIP, NAMESPACE) else {
            panic!("the Service is not known");
        };
        let from = Client {
            name: "web".into(),
            namespace: NAMESPACE.into(),
            identity: "spiffe://cluster.local/ns/shop/sa/web".into(),
            owner: "web".into(),
            address: SocketAddr::from(([10, 0, 1, 1], 40000)),
        };
        let serving = Arc::clone(&self.pod).serve(captured, from, target, VIP, self.drain.clone());
        tokio::spawn(serving);
        client
    }

    /// A client that speaks HTTP/1.1.
    pub(super) async fn http1(&self) -> hyper::client::conn::http1::SendRequest<AnyBody> {
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.connect()))
                .await
                .expect("handshake");
        tokio::spawn(connection.with_upgrades());
        sender
    }

    /// A client that speaks HTTP/2 with prior knowledge.
    pub(super) async fn http2(&self) -> hyper::client::conn::http2::SendRequest<AnyBody> {
        let io = TokioIo::new(self.connect());
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
            .await
            .expect("handshake");
        tokio::spawn(connection);
        sender
    }

    /// One request over a connection of its own.
    pub(super) async fn send(&self, request: Request<AnyBody>) -> Answer {
        let response = self.http1().await.send_request(request).await;
        Answer::of(response.expect("a response")).await
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.send(get(path)).await
    }

    /// What comes back for raw bytes, until the connection is closed or quiet.
    pub(super) async fn raw(&self, bytes: &[u8]) -> String {
        let mut client = self.connect();
        client.write_all(bytes).await.expect("written");
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        // Quiet for so long, in a paused clock: nothing more can come.
        let quiet = std::time::Duration::from_secs(3);
        while let Ok(Ok(1..)) = {
            let read = tokio::time::timeout(quiet, client.read(&mut buffer)).await;
            if let Ok(Ok(length)) = read {
                answer.extend_from_slice(&buffer[..length]);
            }
            read
        } {}
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(super) fn connects(&self) -> usize {
        self.network.connects.load(Ordering::Relaxed)
    }
}

fn octets(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec().into(),
        IpAddr::V6(ip) => ip.octets().to_vec().into(),
    }
}

/// Waits for some bytes (or the end), whatever they are.
pub(super) async fn hear(io: &mut DuplexStream) {
    let mut buffer = [0; 4096];
    // The tests say what comes, and it comes in one piece.
    let _heard = io.read(&mut buffer).await;
}

/// Serves HTTP over a stream in a task of its own.
pub(super) fn serve<F, R>(io: DuplexStream, http2: bool, respond: F)
where
    F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
    R: Future<Output = Response<AnyBody>> + Send + 'static,
{
    let respond = Arc::new(respond);
    let service = service_fn(move |request| {
        let answer = respond(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let io = TokioIo::new(io);
    tokio::spawn(async move {
        if http2 {
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(io, service)
                .await
                .ok();
        } else {
            hyper::server::conn::http1::Builder::new()
                .serve_connection(io, service)
                .with_upgrades()
                .await
                .ok();
        }
    });
}

/// Requests that a backend saw.
#[derive(Clone, Default)]
pub(super) struct Seen(Arc<Mutex<Vec<http::request::Parts>>>);

impl Seen {
    pub(super) fn note<B>(&self, request: &Request<B>) {
        let mut copy = Request::new(());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.version_mut() = request.version();
        *copy.headers_mut() = request.headers().clone();
        self.0.lock().push(copy.into_parts().0);
    }

    pub(super) fn count(&self) -> usize {
        self.0.lock().len()
    }

    pub(super) fn last(&self) -> http::request::Parts {
        self.0.lock().last().cloned().expect("a request was seen")
    }
}

/// A response, read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
    pub(super) trailers: Option<HeaderMap>,
}

impl Answer {
    pub(super) async fn of(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let collected = body.collect().await.expect("a whole body");
        let trailers = collected.trailers().cloned();
        Self {
            status: head.status,
            headers: head.headers,
            body: String::from_utf8_lossy(&collected.to_bytes()).into_owned(),
            trailers,
        }
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |it| it.to_str().expect("text"))
    }
}

pub(super) fn text(body: &str) -> Response<AnyBody> {
    Response::new(full(body))
}

pub(super) fn full(body: &str) -> AnyBody {
    let bytes = Bytes::copy_from_slice(body.as_bytes());
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

/// A request to the Service.
pub(super) fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "checkout")
}

pub(super) fn get(path: &str) -> Request<AnyBody> {
    request("GET", path).body(full("")).expect("a request")
}

// --- Words for tables ---

pub(super) fn to(service: &str) -> Backend {
    weighted(service, 1)
}

pub(super) fn weighted(service: &str, weight: u32) -> Backend {
    Backend {
        weight,
        target: Some(backend::Target::Service(config::ServiceTarget {
            service: format!("{NAMESPACE}/{service}"),
            port: VIP.port().into(),
        })),
        protocol: AppProtocol::Http.into(),
        ..Default::default()
    }
}

pub(super) fn h2c(service: &str) -> Backend {
    Backend {
        protocol: AppProtocol::H2c.into(),
        ..to(service)
    }
}

pub(super) fn invalid() -> Backend {
    Backend {
        weight: 1,
        target: Some(backend::Target::Invalid(config::InvalidBackend {
            reason: "BackendNotFound".into(),
            message: "Service shop/nowhere does not exist".into(),
        })),
        ..Default::default()
    }
}

pub(super) fn rule(backends: impl Into<Vec<Backend>>) -> HttpRule {
    HttpRule {
        backends: backends.into(),
        ..Default::default()
    }
}

pub(super) fn path(kind: path_match::Kind) -> HttpMatch {
    HttpMatch {
        path: Some(PathMatch { kind: Some(kind) }),
        ..Default::default()
    }
}

pub(super) fn prefix(prefix: &str) -> HttpMatch {
    path(path_match::Kind::Prefix(prefix.into()))
}

pub(super) fn exact(exact: &str) -> HttpMatch {
    path(path_match::Kind::Exact(exact.into()))
}

pub(super) fn filter(kind: http_filter::Kind) -> HttpFilter {
    HttpFilter { kind: Some(kind) }
}

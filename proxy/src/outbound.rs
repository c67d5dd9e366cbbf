//! What a pod dials. In flow captured connections; out they flow to what their original
//! destination means: a Service's endpoints by its routes, a workload, or the world outside.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::{
    balance::LoadGuard,
    connector::Upstream,
    copy::TcpSide,
    io::ConnectError,
    model::{Client, Family},
    pods::Pod,
    prefixed::Prefixed,
    report::{Failure, Record},
    settings::is_own_port,
    sniff::{self, Hello, LARGEST_HELLO, Verdict},
    socket,
    state::{BackendTarget, L4Rule, NoEndpoint, RouteTable, ServiceTarget, Target, TlsRoutes},
    telemetry::Tunnel,
};

/// Read in one go while sniffing: a ClientHello with post-quantum key shares fits.
const PEEK: usize = 4096;

/// A captured connection whose client is known.
struct Captured {
    pod: Arc<Pod>,
    stream: TcpStream,
    /// What was read of it already.
    prefix: Bytes,
    client: Arc<Client>,
    record: Record,
    /// Counts the connection at its endpoint while it is open.
    load: Option<LoadGuard>,
}

impl From<NoEndpoint> for Failure {
    fn from(error: NoEndpoint) -> Self {
        Self::new(error.label(), error.to_string())
    }
}

/// Serves one captured connection until it ends.
pub async fn serve(pod: Arc<Pod>, stream: TcpStream, peer: SocketAddr) {
    let client = Arc::new(pod.client(socket::canonical(peer)));
    let destination = match destination(&pod, &stream) {
        Ok(destination) => destination,
        Err(failure) => {
            let mut record = Record::outbound(client, peer);
            record.failed(failure);
            socket::reset_on_close(&stream);
            pod.report().finished(record);
            return;
        }
    };
    let target = pod.state().resolve(destination, &client.namespace);
    if let Err(failure) = own_source(&pod, client.address.ip(), &target) {
        let mut record = Record::outbound(client, destination);
        record.failed(failure);
        socket::reset_on_close(&stream);
        pod.report().finished(record);
        return;
    }
    let captured = Captured {
        stream,
        prefix: Bytes::new(),
        record: Record::outbound(Arc::clone(&client), destination),
        client,
        pod,
        load: None,
    };
    match target {
        Target::Service(target) => captured.serve_service(target, destination).await,
        Target::Workload { workload, address } => {
            let ip = captured.client.address.ip();
            let mut captured = captured;
            let upstream = captured.pod.connector().open(Some(ip), &workload, address);
            let upstream = upstream.await.map_err(Failure::from);
            captured.record.endpoint = Some(address);
            captured.record.workload = Some(workload);
            captured.carry(upstream).await;
        }
        Target::Lost => {
            let mut captured = captured;
            captured.record.endpoint = Some(destination);
            let reason = format!(
                "{destination} was a captured pod's until a moment ago and is nobody's yet: not dialled in plaintext"
            );
            let lost = Err(Failure::new("pod_gone", reason));
            captured.finish(lost, Tunnel::Passthrough).await;
        }
        Target::External => {
            let ip = captured.client.address.ip();
            let upstream = captured.pod.connector().pass_through(ip, destination).await;
            let mut captured = captured;
            captured.record.endpoint = Some(destination);
            captured
                .finish(upstream.map_err(Failure::from), Tunnel::Passthrough)
                .await;
        }
    }
}

/// Where the client wanted to go, unless that is this proxy.
fn destination(pod: &Pod, stream: &TcpStream) -> Result<SocketAddr, Failure> {
    let destination = socket::original_destination(stream).map_err(|error| {
        Failure::new(
            "not_redirected",
            format!("no original destination: {error}"),
        )
    })?;
    let ip = destination.ip();
    if is_own_port(destination.port()) && (ip.is_loopback() || pod.has_address(ip)) {
        let reason = format!("{destination} is the proxy's own port, which nobody may dial");
        return Err(Failure::refused("own_port", reason));
    }
    Ok(destination)
}

/// Whether the client's address is one of the pod's. Whoever may change the pod's interfaces may give
/// it any: that of another pod opens nothing, and the mesh is dialled from the pod's own alone. What
/// is nobody's that the mesh knows, such as the address of a second interface, may go past it.
fn own_source(pod: &Pod, from: IpAddr, target: &Target) -> Result<(), Failure> {
    let passes =
        matches!(target, Target::External) && pod.state().workload_by_address(from).is_none();
    if pod.has_address(from) || passes {
        return Ok(());
    }
    let reason = format!("{from} is not an address of {}", pod.name());
    Err(Failure::refused("foreign_source", reason))
}

impl Captured {
    async fn serve_service(mut self, target: ServiceTarget, destination: SocketAddr) {
        let service = Arc::clone(&target.service.name);
        let port = target.port.port;
        self.record.service = Some(Arc::clone(&service));
        let Some(table) = target.table.clone() else {
            let upstream = self.pick(&service, port).await;
            return self.carry(upstream).await;
        };
        match &*table {
            RouteTable::Http { sniff: false, .. } => self.http(target, destination).await,
            RouteTable::Http { sniff: true, .. } => {
                if self.speaks_http().await {
                    return self.http(target, destination).await;
                }
                self.pod.report().telemetry().sniff_fallback("not_http");
                let upstream = self.pick(&service, port).await;
                self.carry(upstream).await;
            }
            RouteTable::Tcp(routes) => {
                let upstream = self.by_rule(&routes.rule).await;
                self.carry(upstream).await;
            }
            RouteTable::Tls(routes) => {
                let upstream = self.by_server_name(routes).await;
                self.carry(upstream).await;
            }
        }
    }

    async fn http(self, target: ServiceTarget, destination: SocketAddr) {
        let http = Arc::clone(self.pod.http());
        let drain = self.pod.drain().clone();
        let client = Client::clone(&self.client);
        let stream = Prefixed::new(self.stream, self.prefix);
        // Requests are reported one by one; what is wrong with the connection is the client's doing.
        if let Err(error) = http.serve(stream, client, target, destination, drain).await {
            tracing::debug!(client = %self.client.address, %destination, %error, "HTTP connection ended");
        }
    }

    /// An endpoint of a Service, and if it can't be reached another one.
    async fn pick(&mut self, service: &str, port: u16) -> Result<Upstream, Failure> {
        let mut tried = Vec::new();
        let client = self.client.address.ip();
        let family = Family::of(client);
        let mut last: Option<ConnectError> = None;
        while tried.len() < self.pod.settings().attempts {
            let mut picked = match (
                self.pod.state().pick(service, port, family, &tried),
                last.take(),
            ) {
                (Ok(picked), _) => picked,
                // What went wrong tells more than that there is nothing else to try.
                (Err(NoEndpoint::AllExcluded(..)), Some(error)) => return Err(error.into()),
                (Err(error), _) => return Err(error.into()),
            };
            self.record.endpoint = Some(picked.address);
            self.record.workload = Some(Arc::clone(&picked.workload));
            let connector = self.pod.connector();
            match connector
                .open(Some(client), &picked.workload, picked.address)
                .await
            {
                Ok(upstream) => {
                    picked.load.first_byte();
                    self.load = Some(picked.load);
                    return Ok(upstream);
                }
                Err(error) => {
                    picked.load.failed();
                    tracing::debug!(endpoint = %picked.address, %error, "endpoint failed");
                    if !error.retriable() {
                        return Err(error.into());
                    }
                    // One that has joined or left meanwhile is reached in another way now.
                    if self.pod.state().is_current(&picked.workload) {
                        tried.push(picked.address);
                    }
                    last = Some(error);
                }
            }
        }
        Err(match last {
            Some(error) => error.into(),
            None => Failure::new(
                "no_attempt",
                "no attempt is allowed by the settings".to_owned(),
            ),
        })
    }

    async fn by_rule(&mut self, rule: &L4Rule) -> Result<Upstream, Failure> {
        self.record.route = Some(rule.route.clone());
        match rule.choose().map(|backend| &backend.target) {
            Some(BackendTarget::Service { service, port }) => self.pick(service, *port).await,
            Some(BackendTarget::Invalid { reason, message }) => Err(Failure::new(
                "invalid_backend",
                format!("the route's backend does not resolve: {reason}: {message}"),
            )),
            None => Err(Failure::new(
                "no_backend",
                "no backend of the route has weight".to_owned(),
            )),
        }
    }

    async fn by_server_name(&mut self, routes: &TlsRoutes) -> Result<Upstream, Failure> {
        self.record.protocol = "tls";
        let deadline = self.pod.settings().client_hello;
        let mut verdict = Hello::More;
        self.read_until(deadline, LARGEST_HELLO, |bytes| {
            verdict = sniff::client_hello(bytes);
            verdict != Hello::More
        })
        .await;
        let name = match verdict {
            Hello::Complete(name) => name,
            Hello::Invalid => {
                return Err(Failure::new(
                    "not_tls",
                    "the client does not speak TLS".to_owned(),
                ));
            }
            Hello::More => {
                return Err(Failure::new(
                    "no_client_hello",
                    "no ClientHello in time".to_owned(),
                ));
            }
        };
        match routes.select(name.as_deref()) {
            Some(rule) => self.by_rule(rule).await,
            None => Err(Failure::new(
                "no_route",
                format!(
                    "no TLSRoute is for {}",
                    name.as_deref().unwrap_or("a client without server name")
                ),
            )),
        }
    }

    async fn speaks_http(&mut self) -> bool {
        let limit = self.pod.settings().sniff;
        let mut verdict = Verdict::More;
        self.read_until(limit, PEEK, |bytes| {
            verdict = sniff::http(bytes);
            verdict != Verdict::More
        })
        .await;
        verdict == Verdict::Http
    }

    /// Reads ahead until `enough` says so, the client ends, `most` bytes are there, or the time
    /// is over.
    async fn read_until(
        &mut self,
        limit: Duration,
        most: usize,
        mut enough: impl FnMut(&[u8]) -> bool,
    ) {
        let deadline = Instant::now() + limit;
        let mut bytes = BytesMut::from(&self.prefix[..]);
        while bytes.len() < most {
            bytes.reserve(PEEK);
            match timeout_at(deadline, self.stream.read_buf(&mut bytes)).await {
                Ok(Ok(read)) if read > 0 => {}
                // An error shows again when the stream is used.
                _ => break,
            }
            if enough(&bytes) {
                break;
            }
        }
        self.prefix = bytes.freeze();
    }

    async fn carry(self, upstream: Result<Upstream, Failure>) {
        let tried = || Tunnel::to(self.record.workload.as_deref());
        let tunnel = upstream.as_ref().map_or_else(|_| tried(), Upstream::kind);
        self.finish(upstream, tunnel).await;
    }

    async fn finish(mut self, upstream: Result<Upstream, Failure>, tunnel: Tunnel) {
        self.record.tunnel = tunnel;
        let report = self.pod.report();
        match upstream {
            Ok(upstream) => {
                report.opened(&mut self.record);
                let budget = self.pod.limits().budget();
                let client = TcpSide::with_prefix(self.stream, self.prefix, budget);
                let copied = upstream.carry(client, self.pod.drain()).await;
                self.record.copied(copied);
            }
            Err(failure) => {
                socket::reset_on_close(&self.stream);
                self.record.failed(failure);
            }
        }
        report.finished(self.record);
    }
}

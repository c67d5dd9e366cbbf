//! What the transport tells telemetry of a connection. In flows one [`Record`] per connection or
//! CONNECT; out flow metrics and one access-log line, in one place.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use tokio::time::Instant;

use crate::{
    copy::Copied,
    io::ConnectError,
    model::{Client, RouteRef, ServiceName, Workload},
    refusals::Refusals,
    telemetry::{
        ConnectionHandle, ConnectionLog, Direction, Labels, LogPeer, Peer, Side, Telemetry, Tunnel,
    },
};

/// Why a connection failed or was refused: a bounded word for metrics, and all of it for people.
#[derive(Clone, Debug)]
pub struct Failure {
    /// For metrics.
    pub label: &'static str,
    /// For people.
    pub reason: String,
    /// It was refused, and did not fail: someone asked for what he may not have.
    pub refused: bool,
}

impl Failure {
    /// Both.
    pub fn new(label: &'static str, reason: impl Into<String>) -> Self {
        Self {
            label,
            reason: reason.into(),
            refused: false,
        }
    }

    /// Of something that was refused.
    pub fn refused(label: &'static str, reason: impl Into<String>) -> Self {
        Self {
            refused: true,
            ..Self::new(label, reason)
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::new(error.label(), error.to_string())
    }
}

/// All that is known of one connection.
#[derive(Debug)]
pub struct Record {
    start: Instant,
    direction: Direction,
    /// The client's address.
    pub source: SocketAddr,
    /// The client, if it is one of this node's pods.
    client: Option<Arc<Client>>,
    /// Who the client of a tunnel proved to be.
    pub source_identity: Option<Arc<str>>,
    /// The client as the configuration knows it.
    pub source_workload: Option<Arc<Workload>>,
    /// Where the client wanted to go.
    pub destination: SocketAddr,
    /// The Service that was addressed.
    pub service: Option<ServiceName>,
    /// The route that decided.
    pub route: Option<RouteRef>,
    /// Where it went.
    pub endpoint: Option<SocketAddr>,
    /// Who is there.
    pub workload: Option<Arc<Workload>>,
    /// How it travels.
    pub tunnel: Tunnel,
    /// What the routes took it for.
    pub protocol: &'static str,
    copied: Copied,
    failure: Option<Failure>,
    open: Option<ConnectionHandle>,
}

impl Record {
    /// A connection that a pod made.
    pub fn outbound(client: Arc<Client>, destination: SocketAddr) -> Self {
        let mut record = Self::inbound(client.address, Tunnel::None);
        record.direction = Direction::Outbound;
        record.client = Some(client);
        record.destination = destination;
        record
    }

    /// A connection to a pod.
    pub fn inbound(source: SocketAddr, tunnel: Tunnel) -> Self {
        Self {
            start: Instant::now(),
            direction: Direction::Inbound,
            source,
            client: None,
            source_identity: None,
            source_workload: None,
            destination: SocketAddr::from(([0, 0, 0, 0], 0)),
            service: None,
            route: None,
            endpoint: None,
            workload: None,
            tunnel,
            protocol: "tcp",
            copied: Copied::default(),
            failure: None,
            open: None,
        }
    }

    /// Takes over what a copy came to.
    pub fn copied(&mut self, copied: Copied) {
        if let Some(error) = &copied.error {
            self.failure = Some(Failure::new(error.label(), error.to_string()));
        }
        self.copied = copied;
    }

    /// It failed, or was refused.
    pub fn failed(&mut self, failure: Failure) {
        self.failure = Some(failure);
    }

    fn labels(&self) -> Labels {
        let mut source = match (&self.client, &self.source_workload) {
            (Some(client), _) => Peer::from(&**client),
            (None, Some(workload)) => Peer::from(&**workload),
            (None, None) => Peer::unknown(),
        };
        if self.direction == Direction::Inbound {
            // What the client proved, and nothing if it proved nothing.
            source.identity = self.source_identity.clone().unwrap_or_default();
        }
        let destination = self
            .workload
            .as_deref()
            .map_or_else(Peer::unknown, Peer::from);
        let mut labels = Labels::new(self.direction, self.tunnel, source, destination);
        if let Some(service) = &self.service {
            labels = labels.service(service);
        }
        if let Some(route) = &self.route {
            labels = labels.route(route);
        }
        labels
    }

    fn log(self) -> ConnectionLog {
        let mut src = match (&self.client, &self.source_workload) {
            (Some(client), _) => LogPeer::client(client),
            (None, Some(workload)) => LogPeer::workload(workload, self.source),
            (None, None) => LogPeer::address(self.source),
        };
        if self.direction == Direction::Inbound {
            src.identity = self.source_identity.unwrap_or_default();
        }
        let address = self.endpoint.unwrap_or(self.destination);
        let dst = match &self.workload {
            Some(workload) => LogPeer::workload(workload, address),
            None => LogPeer::address(address),
        };
        let (route, rule) = match self.route {
            Some(route) => (route.name, route.rule),
            None => Default::default(),
        };
        let duration = self.start.elapsed();
        ConnectionLog {
            start: SystemTime::now() - duration,
            duration,
            direction: self.direction,
            tunnel: self.tunnel,
            src,
            dst,
            service: self.service.unwrap_or_default(),
            route,
            rule,
            protocol: self.protocol,
            bytes_in: self.copied.sent,
            bytes_out: self.copied.received,
            error: self.failure.map(|failure| failure.reason.into()),
        }
    }
}

/// Where the transport of one pod reports to.
#[derive(Clone, Debug)]
pub struct Report {
    telemetry: Arc<Telemetry>,
    refusals: Arc<Refusals>,
}

impl Report {
    /// Reports to `telemetry` what happens at this pod.
    pub fn new(telemetry: Arc<Telemetry>, namespace: Arc<str>, pod: Arc<str>) -> Self {
        let refusals = Refusals::new(Arc::clone(&telemetry), namespace, pod);
        Self {
            telemetry,
            refusals,
        }
    }

    /// Where it reports to.
    pub fn telemetry(&self) -> Arc<Telemetry> {
        Arc::clone(&self.telemetry)
    }

    /// A connection stands, both ends of it.
    pub fn opened(&self, record: &mut Record) {
        record.open = Some(self.telemetry.connection_opened(&record.labels()));
    }

    /// A connection has ended, or never stood.
    pub fn finished(&self, mut record: Record) {
        if let Some(open) = record.open.take() {
            open.sent(record.copied.sent);
            open.received(record.copied.received);
        }
        if let Some(failure) = &record.failure {
            self.telemetry.error(record.direction, failure.label);
            if failure.refused {
                self.refusals
                    .refused(failure.label, record.source, &failure.reason);
            }
        }
        if self.telemetry.logs() {
            self.telemetry.log_connection(record.log());
        }
    }

    /// A tunnel's handshake ended. The reason of a failure goes to the log: for people.
    pub fn handshake(&self, side: Side, peer: SocketAddr, result: Result<(), Failure>) {
        let result = result.map_err(|failure| {
            let (label, reason) = (failure.label, &failure.reason);
            if failure.refused {
                self.refusals.refused(label, peer, reason);
            } else {
                self.refusals.handshake(label, peer, reason);
            }
            label
        });
        self.telemetry.handshake(side, result);
    }
}

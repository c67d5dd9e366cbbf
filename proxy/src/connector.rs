//! Connections of one pod to endpoints. In flow a workload and one of its addresses; out flow
//! byte streams, over HBONE if that workload is captured, else plaintext. Captured is what the
//! configuration says of this very sandbox, so nothing is guessed from labels or tried in vain.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use arc_swap::ArcSwap;
use futures::{FutureExt, future::BoxFuture};
use tokio::{net::TcpStream, time::timeout};
use weft_api::names::PORT_HBONE;
use weft_certs::SpiffeId;

use crate::{
    copy::{Copied, TcpSide, copy},
    drain::Drain,
    hbone::{Destination, Lingering, Pool, TunnelStream},
    io::{BoxStream, ConnectError, Connector, Link},
    limits::PodLimits,
    model::Workload,
    netns::Netns,
    socket::{self, Source},
    telemetry::Tunnel,
};

/// Makes the connections of one pod.
pub struct PodConnector {
    netns: Netns,
    addresses: ArcSwap<Vec<IpAddr>>,
    pool: Pool,
    limits: Arc<PodLimits>,
}

/// A connection to an endpoint.
pub enum Upstream {
    /// In plaintext.
    Tcp(TcpStream),
    /// In a tunnel.
    Tunnel(TunnelStream),
}

impl PodConnector {
    /// For a pod in `netns` that has these addresses.
    pub fn new(netns: Netns, addresses: Vec<IpAddr>, pool: Pool, limits: Arc<PodLimits>) -> Self {
        Self {
            netns,
            addresses: ArcSwap::from_pointee(addresses),
            pool,
            limits,
        }
    }

    /// The pod's addresses have changed.
    pub fn set_addresses(&self, addresses: Vec<IpAddr>) {
        self.addresses.store(Arc::new(addresses));
    }

    /// The pod's tunnels.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// A connection to a workload's `address`, from the pod's address that its client used, if
    /// that is one.
    pub async fn open(
        &self,
        client: Option<IpAddr>,
        to: &Workload,
        address: SocketAddr,
    ) -> Result<Upstream, ConnectError> {
        let source = self.source(client, address);
        if !to.captured {
            let from = source.map_or(Source::Any, Source::Local);
            return self.tcp(from, address).await;
        }
        let tunnel = SocketAddr::new(address.ip(), PORT_HBONE);
        let identity: SpiffeId = to
            .identity
            .parse()
            .map_err(|error| ConnectError::Identity {
                address: tunnel,
                expected: to.identity.to_string(),
                reason: format!("the configuration gives no valid identity: {error}"),
            })?;
        let destination = Destination {
            source,
            address: tunnel,
            identity,
            sandbox: Arc::clone(&to.sandbox),
        };
        timeout(
            self.limits.settings().connect,
            self.pool.open(&destination, address),
        )
        .await
        .unwrap_or(Err(ConnectError::TimedOut(address)))
        .map(Upstream::Tunnel)
    }

    /// A connection to something that the mesh does not know, from the client's own address if that
    /// is the pod's; else the kernel chooses, by the interface that leads there.
    pub async fn pass_through(
        &self,
        client: IpAddr,
        address: SocketAddr,
    ) -> Result<Upstream, ConnectError> {
        let from = if self.addresses.load().contains(&client) {
            Source::Local(client)
        } else {
            Source::Any
        };
        self.tcp(from, address).await
    }

    async fn tcp(&self, from: Source, to: SocketAddr) -> Result<Upstream, ConnectError> {
        let settings = self.limits.settings();
        let liveness = settings.liveness();
        socket::connect(&self.netns, from, to, settings.connect, liveness)
            .await
            .map(Upstream::Tcp)
    }

    /// The pod's address to dial `to` from; `None` leaves it to the kernel.
    fn source(&self, client: Option<IpAddr>, to: SocketAddr) -> Option<IpAddr> {
        let fits = |ip: &IpAddr| ip.is_ipv4() == to.is_ipv4();
        let addresses = self.addresses.load();
        client
            .filter(|ip| fits(ip) && addresses.contains(ip))
            .or_else(|| addresses.iter().copied().find(fits))
    }
}

impl Connector for PodConnector {
    fn sweep(&self) {
        self.pool.probe();
    }

    fn connect<'a>(
        &'a self,
        to: &'a Workload,
        address: SocketAddr,
    ) -> BoxFuture<'a, Result<Link, ConnectError>> {
        async move {
            Ok(match self.open(None, to, address).await? {
                Upstream::Tcp(stream) => Link::from(Box::new(stream) as BoxStream),
                Upstream::Tunnel(stream) => Link {
                    leaving: stream.leaving(),
                    stream: Box::new(Lingering::new(stream)),
                },
            })
        }
        .boxed()
    }
}

impl Upstream {
    /// How it travels.
    pub fn kind(&self) -> Tunnel {
        match self {
            Self::Tcp(_) => Tunnel::Plaintext,
            Self::Tunnel(_) => Tunnel::Hbone,
        }
    }

    /// Carries bytes between the client and it, until both have ended or are to be closed.
    pub async fn carry(self, client: TcpSide, drain: &Drain) -> Copied {
        match self {
            Self::Tcp(stream) => {
                let server = TcpSide::new(stream, client.budget());
                copy(client, server, drain).await
            }
            Self::Tunnel(stream) => copy(client, stream, drain).await,
        }
    }
}

//! The listening sockets in a pod's network namespace, which the agent makes and keeps, so that a
//! proxy that crashes leaves connections queued instead of refused.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
};

use socket2::{Domain, Protocol, Socket, Type};
use weft_api::{
    handover::ListenerKind,
    names::{PORT_HBONE, PORT_INBOUND_PLAINTEXT, PORT_OUTBOUND},
};

use crate::{netns::NetNs, rules::RulesError};

/// Connections that wait while no proxy accepts; the kernel caps it by `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Lets connections move between listeners of one address and port.
const MIGRATE: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

const PORTS: [(ListenerKind, u16); 3] = [
    (ListenerKind::Outbound, PORT_OUTBOUND),
    (ListenerKind::InboundPlaintext, PORT_INBOUND_PLAINTEXT),
    (ListenerKind::InboundHbone, PORT_HBONE),
];

/// Why a pod has no listening sockets.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The namespace can't be used.
    #[error(transparent)]
    NetNs(#[from] RulesError),
    /// One socket failed.
    #[error("can't listen on port {port} in the pod's network namespace: {source}{}", advice(.source))]
    Socket {
        /// The port.
        port: u16,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::AddrInUse {
        "; the pod's own program holds it, and weft needs 15001, 15006 and 15008: move it, or label the pod weft.dev/mesh=disabled"
    } else {
        ""
    }
}

/// The listening sockets of one pod.
#[derive(Debug)]
pub struct Listeners {
    sockets: Vec<(ListenerKind, Socket)>,
}

impl Listeners {
    /// Makes them. Where a proxy still holds earlier ones of a former agent, both exist side by
    /// side; what waits in the earlier ones when the proxy lets go of them moves to these.
    pub fn make(netns: &NetNs) -> Result<Self, ListenError> {
        let ipv6 = crate::rules::ipv6_is_enabled(netns)?;
        let make = || {
            // Of this network namespace. By default the queue of a listener that closes is reset.
            if let Err(error) = std::fs::write(MIGRATE, "1") {
                tracing::debug!(%error, "connections that wait in a former agent's sockets may be lost");
            }
            let listen = |(kind, port)| match listen(ipv6, port) {
                Ok(socket) => Ok((kind, socket)),
                Err(source) => Err(ListenError::Socket { port, source }),
            };
            PORTS.into_iter().map(listen).collect::<Result<_, _>>()
        };
        let sockets = netns.run(make).map_err(RulesError::from)??;
        Ok(Self { sockets })
    }

    /// What each descriptor is for, as protobuf has it.
    pub fn kinds(&self) -> Vec<i32> {
        self.sockets.iter().map(|&(kind, _)| kind.into()).collect()
    }

    /// The descriptors, in the same order.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets.iter().map(|(_, socket)| socket.as_fd())
    }
}

fn listen(ipv6: bool, port: u16) -> io::Result<Socket> {
    let (domain, address) = if ipv6 {
        (
            Domain::IPV6,
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
        )
    } else {
        (
            Domain::IPV4,
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
        )
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if ipv6 {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

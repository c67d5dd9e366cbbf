//! The listening sockets in a pod's network namespace, which the agent makes and keeps, so that a
//! proxy that crashes leaves connections queued instead of refused. An agent that restarts gets
//! them back from the proxy.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufRead, BufReader},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Once,
};

use socket2::{Domain, Protocol, Socket, Type};
use weft_api::{
    handover::ListenerKind,
    names::{PORT_HBONE, PORT_INBOUND_PLAINTEXT, PORT_OUTBOUND},
};

use crate::{
    netns::{NetNs, NetNsError},
    rules::RulesError,
};

/// Connections that wait while no proxy accepts; the kernel caps it by `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Lets connections move between listeners of one address and port.
const MIGRATE: &str = "net/ipv4/tcp_migrate_req";

/// Whether it was said that this can't be set; the reason is the same for every pod.
static SAID: Once = Once::new();

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

/// Why sockets that a proxy gave back are not used.
#[derive(Debug, thiserror::Error)]
pub enum ReturnedError {
    /// They are of another pod, or of one whose sandbox was made anew.
    #[error("they came with another network namespace than the sandbox's")]
    OtherNamespace,
    /// One that a pod needs is missing, or there twice.
    #[error("not one socket each for 15001, 15006 and 15008 came back")]
    Incomplete,
    /// One does not do what it is there for.
    #[error("the socket for port {0} does not listen there in the pod's network namespace")]
    NotListening(u16),
    /// It could not be found out.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// It could not be found out.
    #[error("can't list the pod's listening sockets: {0}")]
    List(#[from] io::Error),
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
            if let Err(error) = crate::sysctl::set(MIGRATE, "1") {
                SAID.call_once(|| {
                    tracing::warn!(%error, sysctl = MIGRATE, "can't be set in pods: should an agent restart while no proxy holds a pod's sockets, connections that wait in them are lost");
                });
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

    /// Those that a former agent made and a proxy gave back, if they are what they should be: what
    /// is redirected to them must reach them.
    pub fn returned(
        netns: &NetNs,
        came_with: BorrowedFd<'_>,
        returned: Vec<(ListenerKind, OwnedFd)>,
    ) -> Result<Self, ReturnedError> {
        if !netns.is(came_with) {
            return Err(ReturnedError::OtherNamespace);
        }
        let mut returned: Vec<_> = returned
            .into_iter()
            .map(|(kind, fd)| (kind, Socket::from(fd)))
            .collect();
        returned.sort_by_key(|&(kind, _)| i32::from(kind));
        let kinds = returned.iter().map(|&(kind, _)| kind);
        if !kinds.eq(PORTS.iter().map(|&(kind, _)| kind)) {
            return Err(ReturnedError::Incomplete);
        }
        let listening = netns.run(listening)??;
        for ((_, socket), (_, port)) in returned.iter().zip(PORTS) {
            let inode = rustix::fs::fstat(socket).map_err(io::Error::from)?.st_ino;
            if !listening.contains(&(port, inode)) {
                return Err(ReturnedError::NotListening(port));
            }
        }
        Ok(Self { sockets: returned })
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

/// Port and inode of each socket that listens in this thread's network namespace.
fn listening() -> io::Result<HashSet<(u16, u64)>> {
    let mut found = HashSet::new();
    for table in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        let lines = match File::open(table) {
            Ok(file) => BufReader::new(file).lines(),
            // No IPv6 in this kernel.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for line in lines.skip(1) {
            match listener(&line?) {
                Some(entry) => found.insert(entry),
                // Those that listen come first; connections may be many.
                None => break,
            };
        }
    }
    Ok(found)
}

/// Port and inode of a line of `/proc/net/tcp`, if it is of a socket that listens.
fn listener(line: &str) -> Option<(u16, u64)> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace();
    let (_, port) = fields.nth(1)?.rsplit_once(':')?;
    if fields.nth(1)? != LISTEN {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    Some((u16::from_str_radix(port, 16).ok()?, inode))
}

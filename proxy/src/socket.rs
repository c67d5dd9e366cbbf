//! Sockets that the proxy makes in pods' namespaces, and what the kernel knows of captured ones.
//! In flow a namespace and addresses; out flow connected TCP streams with the right mark, source
//! and keepalives.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::{io::ConnectError, netns::Netns, ports::TRIES};

/// Unanswered questions until the connection counts as dead: with the defaults, 60 s + 4 · 15 s = 2
/// minutes after the last byte.
const KEEPALIVE_PROBES: u32 = 4;

/// How TCP finds out that a peer has vanished without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// A peer that is silent for so long is asked whether it still lives.
    pub idle: Duration,
    /// Between two questions.
    pub interval: Duration,
    /// What was sent and is not acknowledged for so long breaks the connection (TCP_USER_TIMEOUT).
    /// So does a peer that acknowledges but does not read, hence only between proxies.
    pub unacknowledged: Option<Duration>,
}

/// Where a new connection's source address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// One of the pod's own addresses.
    Local(IpAddr),
    /// An address of another pod: towards an application that is to see its real client.
    Transparent(IpAddr),
    /// Whatever the kernel chooses.
    Any,
}

/// Connects from inside `netns`, marked so that the pod's redirects let it pass.
pub async fn connect(
    netns: &Netns,
    source: Source,
    to: SocketAddr,
    limit: Duration,
    liveness: Liveness,
) -> Result<TcpStream, ConnectError> {
    let connected = async {
        // Only who dials in another's name must choose the port.
        let first = match source {
            Source::Transparent(_) => 0,
            Source::Local(_) | Source::Any => TRIES,
        };
        let mut number = first;
        loop {
            let port = netns.ports().of_try(number);
            match attempt(netns, source, port, to, liveness).await {
                Err(error) if port != 0 && is_taken(&error) => number += 1,
                done => return done,
            }
        }
    };
    match tokio::time::timeout(limit, connected).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(ConnectError::from_io(to, &error)),
        Err(_) => Err(ConnectError::TimedOut(to)),
    }
}

/// From one port, or from any (0).
async fn attempt(
    netns: &Netns,
    source: Source,
    port: u16,
    to: SocketAddr,
    liveness: Liveness,
) -> io::Result<TcpStream> {
    let socket = netns.run(|| prepare(netns.mark(), source, port, to, liveness))?;
    // The socket stays in its namespace; connecting may happen outside of it.
    socket.connect(to).await
}

/// The port listens, or has a connection between the same addresses and ports, or had one lately.
fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
    )
}

fn prepare(
    mark: u32,
    source: Source,
    port: u16,
    to: SocketAddr,
    liveness: Liveness,
) -> io::Result<TcpSocket> {
    let socket = Socket::new(
        Domain::for_address(to),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_mark(mark)?;
    socket.set_tcp_nodelay(true)?;
    set_liveness(SockRef::from(&socket), liveness)?;
    let from = match source {
        Source::Any => None,
        Source::Local(ip) => Some(ip),
        Source::Transparent(ip) => {
            match to {
                SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
                SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
            }
            Some(ip)
        }
    };
    if let Some(ip) = from.filter(|ip| ip.is_ipv4() == to.is_ipv4()) {
        if port == 0 {
            // The kernel picks one at connect time, per destination, so the ephemeral range is not
            // used up by binds.
            setsockopt(&socket, IpBindAddressNoPort, &true)?;
        } else {
            // Of connections to other destinations, too; and who wants to listen on it still can.
            socket.set_reuse_address(true)?;
        }
        socket.bind(&SocketAddr::new(ip, port).into())?;
    }
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// Sets what every accepted connection needs: no delay, and keepalives.
pub fn tune(stream: &TcpStream, liveness: Liveness) -> io::Result<()> {
    stream.set_nodelay(true)?;
    set_liveness(SockRef::from(stream), liveness)
}

fn set_liveness(socket: SockRef<'_>, liveness: Liveness) -> io::Result<()> {
    // The kernel counts in whole seconds.
    let second = Duration::from_secs(1);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(liveness.idle.max(second))
            .with_interval(liveness.interval.max(second))
            .with_retries(KEEPALIVE_PROBES),
    )?;
    match liveness.unacknowledged {
        Some(limit) => socket.set_tcp_user_timeout(Some(limit)),
        None => Ok(()),
    }
}

/// Closing the stream will reset the connection, so that the peer does not take an end that was
/// not in order for one that was.
pub fn reset_on_close(stream: &TcpStream) {
    // Fails only on a socket that is gone, which nobody will take for closed in order.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Where a redirected connection was going to.
pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    // An IPv4 connection on a dual-stack listener shows a mapped address; netfilter knows it as IPv4.
    let v4 = match stream.local_addr()? {
        SocketAddr::V4(_) => true,
        SocketAddr::V6(address) => address.ip().to_ipv4_mapped().is_some(),
    };
    let address = if v4 {
        socket.original_dst_v4()?
    } else {
        socket.original_dst_v6()?
    };
    address
        .as_socket()
        .map(canonical)
        .ok_or_else(|| io::Error::other("the original destination is no IP address"))
}

/// The address without IPv4-in-IPv6 mapping, flow label and scope of it.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

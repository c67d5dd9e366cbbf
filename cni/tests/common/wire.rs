//! Connections in test namespaces, bounded in time.

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use weft_cni::rules::{Phase, PodRules, apply, plan};

use super::TestNs;

pub const PATIENCE: Duration = Duration::from_secs(5);
pub const PROBED: u16 = 8080;
/// The secret of the sandbox.
pub const MARK: u32 = 0x5ec3_e701;

pub fn set(ns: &TestNs, phase: Phase) {
    apply(
        &ns.open(),
        &plan(&PodRules {
            phase,
            ipv6: true,
            probe_ports: vec![PROBED],
            mark: MARK,
        }),
    )
    .unwrap();
}

pub fn listen(ns: &TestNs, port: u16) -> TcpListener {
    ns.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap())
}

pub fn dial(ns: &TestNs, to: &str) -> std::io::Result<TcpStream> {
    dial_with(ns, to, |_| Ok(()))
}

pub fn dial_with(
    ns: &TestNs,
    to: &str,
    prepare: impl FnOnce(&Socket) -> std::io::Result<()> + Send,
) -> std::io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    ns.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        prepare(&socket)?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

/// Accepts within a bounded time.
pub fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    assert_eq!(
        poll(&mut fds, PollTimeout::from(5000_u16)).unwrap(),
        1,
        "nothing to accept"
    );
    let (stream, peer) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    (
        stream,
        SocketAddr::new(peer.ip().to_canonical(), peer.port()),
    )
}

pub fn exchange(one: &mut TcpStream, other: &mut TcpStream) {
    let mut seen = [0; 4];
    for _ in 0..2 {
        one.write_all(b"ping").unwrap();
        other.read_exact(&mut seen).unwrap();
        other.write_all(b"pong").unwrap();
        one.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"pong");
    }
}

/// The proxy's way to the application: from the client's address, with the answer led back.
pub fn dial_as(pod: &TestNs, client: &str, target: &str) -> std::io::Result<TcpStream> {
    let client: SocketAddr = client.parse().unwrap();
    dial_with(pod, target, |socket| {
        socket.set_mark(MARK)?;
        // For an IPv6 socket too: the kernel keeps one flag for both families.
        socket.set_ip_transparent_v4(true)?;
        socket.bind(&client.into())
    })
}

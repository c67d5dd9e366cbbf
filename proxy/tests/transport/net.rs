//! Network namespaces of a test: pods' and the wire between them. All is gone with its guard.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use weft_proxy::netns::{Netns, remember_home};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// What the agent puts into a captured pod.
const RULES: &str = "
table inet weft_test {
  chain keep_source { type filter hook prerouting priority -150; meta mark 0x539 ct mark set 0x111; }
  chain return_source { type route hook output priority -150; ct mark 0x111 meta mark set 0x111; }
  chain outbound {
    type nat hook output priority -100;
    meta mark 0x539 accept
    meta mark 0x111 accept
    ip daddr 127.0.0.0/8 accept
    ip6 daddr ::1 accept
    oifname lo accept
    meta l4proto tcp tcp flags & (syn|ack) == syn redirect to :15001
  }
  chain inbound {
    type nat hook prerouting priority -100;
    tcp dport 15008 accept
    meta l4proto tcp redirect to :15006
  }
}";

/// A namespace that is removed with it.
pub(crate) struct Space {
    name: String,
    pub(crate) netns: Netns,
}

impl Space {
    pub(crate) fn new() -> Self {
        remember_home().expect("the own namespace");
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("weft-proxy-test-{}-{count}", std::process::id());
        run(&["ip", "netns", "add", &name]);
        let file = File::open(format!("/run/netns/{name}")).expect("the namespace's file");
        let space = Self {
            name,
            netns: Netns::new(file.into()),
        };
        space.ip("link set lo up");
        space
    }

    pub(crate) fn ip(&self, arguments: &str) {
        let mut words = vec!["ip", "-n", &self.name];
        words.extend(arguments.split_whitespace());
        run(&words);
    }

    fn capture(&self) {
        let mut nft = Command::new("ip")
            .args(["netns", "exec", &self.name, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("nft runs");
        std::io::Write::write_all(&mut nft.stdin.take().expect("a pipe"), RULES.as_bytes())
            .expect("nft reads");
        assert!(
            nft.wait().expect("nft ends").success(),
            "nft took the rules"
        );
        for family in ["-4", "-6"] {
            self.ip(&format!("{family} rule add fwmark 0x111 lookup 100"));
            self.ip(&format!(
                "{family} route add local default dev lo table 100"
            ));
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

fn run(words: &[&str]) {
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .expect("the program runs");
    assert!(
        output.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Pods on one wire.
pub(crate) struct Net {
    switch: Space,
    pods: u8,
}

impl Net {
    pub(crate) fn new() -> Self {
        let switch = Space::new();
        switch.ip("link add br0 type bridge");
        switch.ip("link set br0 up");
        Self { switch, pods: 0 }
    }

    /// A namespace on the wire with an address of each family; redirected if `captured`.
    pub(crate) fn pod(&mut self, captured: bool) -> Host {
        self.pods += 1;
        let number = self.pods;
        let space = Space::new();
        let host = Host {
            v4: Ipv4Addr::new(10, 77, 0, number),
            v6: Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, number.into()),
            space,
        };
        let (wire, name) = (&self.switch, &host.space.name);
        wire.ip(&format!(
            "link add p{number} type veth peer name eth0 netns {name}"
        ));
        wire.ip(&format!("link set p{number} master br0 up"));
        let space = &host.space;
        space.ip("link set eth0 up");
        space.ip(&format!("addr add {}/24 dev eth0", host.v4));
        space.ip(&format!("addr add {}/64 dev eth0 nodad", host.v6));
        space.ip("route add default dev eth0");
        space.ip("-6 route add default dev eth0");
        if captured {
            space.capture();
        }
        host
    }
}

/// A pod's namespace and addresses.
pub(crate) struct Host {
    pub(crate) space: Space,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

impl Host {
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        vec![self.v4.into(), self.v6.into()]
    }

    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.v4.into(), port)
    }

    /// A listener on all addresses of both families.
    pub(crate) fn bind(&self, port: u16) -> std::net::TcpListener {
        let make = || {
            let socket = Socket::new(
                Domain::IPV6,
                Type::STREAM.nonblocking(),
                Some(Protocol::TCP),
            )?;
            socket.set_only_v6(false)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
            socket.listen(1024)?;
            Ok(socket.into())
        };
        self.space.netns.run(make).expect("a listener in the pod")
    }

    /// The application listens.
    pub(crate) fn listen(&self, port: u16) -> TcpListener {
        TcpListener::from_std(self.bind(port)).expect("a listener for the runtime")
    }

    /// The application dials.
    pub(crate) async fn dial(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let make = || match to {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        };
        self.space.netns.run(make)?.connect(to).await
    }

    /// The ports that its connections get.
    pub(crate) fn client_ports(&self, ports: std::ops::RangeInclusive<u16>) {
        let make = || {
            std::fs::write(
                "/proc/sys/net/ipv4/ip_local_port_range",
                format!("{} {}", ports.start(), ports.end()),
            )
        };
        self.space.netns.run(make).expect("the ports are set");
    }

    /// Takes an address that may be somebody else's.
    pub(crate) fn claim(&self, ip: IpAddr) {
        self.space.ip(&format!("addr add {ip}/32 dev eth0"));
    }

    /// The application dials from this IPv4 address.
    pub(crate) async fn dial_from(
        &self,
        from: SocketAddr,
        to: SocketAddr,
    ) -> std::io::Result<TcpStream> {
        let make = || {
            let socket = TcpSocket::new_v4()?;
            socket.bind(from)?;
            Ok(socket)
        };
        self.space.netns.run(make)?.connect(to).await
    }
}

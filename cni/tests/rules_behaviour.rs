//! What the rules do to real connections, with plain sockets in the proxy's place.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use common::{
    Pair,
    wire::{MARK, PROBED, accept, dial, dial_as, dial_with, exchange, listen, set},
};
use nix::sys::socket::{getsockopt, sockopt};
use weft_api::names::{
    PORT_HBONE, PORT_INBOUND_PLAINTEXT, PORT_OUTBOUND, PROBE_SOURCE_V4, PROBE_SOURCE_V6,
};
use weft_cni::rules::Phase;

fn original_destination(stream: &TcpStream) -> SocketAddr {
    if stream.peer_addr().unwrap().ip().to_canonical().is_ipv4() {
        let address = getsockopt(stream, sockopt::OriginalDst).unwrap();
        SocketAddr::new(
            IpAddr::from(address.sin_addr.s_addr.to_ne_bytes()),
            u16::from_be(address.sin_port),
        )
    } else {
        let address = getsockopt(stream, sockopt::Ip6tOriginalDst).unwrap();
        SocketAddr::new(
            IpAddr::from(address.sin6_addr.s6_addr),
            u16::from_be(address.sin6_port),
        )
    }
}

#[test]
fn a_dial_to_any_remote_address_lands_on_15001_and_tells_where_it_was_going() {
    let pair = Pair::new();
    let proxy = listen(&pair.pod, PORT_OUTBOUND);
    set(&pair.pod, Phase::Joined);
    for target in [
        "192.0.2.10:80",
        "10.9.0.1:443",
        "[2001:db8::1]:80",
        "[fd09::1]:9",
    ] {
        let mut client = dial(&pair.pod, target).unwrap();
        let (mut accepted, peer) = accept(&proxy);
        assert_eq!(original_destination(&accepted).to_string(), target);
        assert_eq!(peer, client.local_addr().unwrap());
        exchange(&mut client, &mut accepted);
    }
}

#[test]
fn a_connection_from_outside_lands_on_15006_but_hbone_and_probes_go_straight() {
    let pair = Pair::new();
    let (proxy, hbone) = (
        listen(&pair.pod, PORT_INBOUND_PLAINTEXT),
        listen(&pair.pod, PORT_HBONE),
    );
    let application = listen(&pair.pod, PROBED);
    set(&pair.pod, Phase::Joined);
    for target in ["10.9.0.2:8080", "[fd09::2]:8080", "10.9.0.2:9090"] {
        let mut client = dial(&pair.node, target).unwrap();
        let (mut accepted, peer) = accept(&proxy);
        assert_eq!(original_destination(&accepted).to_string(), target);
        assert_eq!(peer, client.local_addr().unwrap());
        exchange(&mut client, &mut accepted);
    }
    let mut client = dial(&pair.node, "10.9.0.2:15008").unwrap();
    exchange(&mut client, &mut accept(&hbone).0);

    // The reserved source reaches the probed port, and no other.
    for (source, pod) in [
        (IpAddr::from(PROBE_SOURCE_V4), "10.9.0.2"),
        (PROBE_SOURCE_V6.into(), "[fd09::2]"),
    ] {
        // Else it can't be bound to before a worker of the kernel's has looked for duplicates.
        let nodad = if source.is_ipv6() { "nodad" } else { "" };
        pair.node.ip(&format!("addr add {source} dev lo {nodad}"));
        let source = SocketAddr::new(source, 0);
        let from_probe = |port| {
            let to = format!("{pod}:{port}");
            dial_with(&pair.node, &to, |s| s.bind(&source.into()))
        };
        let mut probe = from_probe(8080).unwrap();
        let (mut accepted, peer) = accept(&application);
        assert_eq!(peer.ip(), source.ip());
        exchange(&mut probe, &mut accepted);
        let _other = from_probe(9090).unwrap();
        assert_eq!(original_destination(&accept(&proxy).0).port(), 9090);
    }
}

#[test]
fn loopback_the_pods_own_address_and_the_proxys_own_sockets_are_not_redirected() {
    let pair = Pair::new();
    let application = listen(&pair.pod, 7000);
    set(&pair.pod, Phase::Joined);
    for target in [
        "127.0.0.1:7000",
        "127.9.9.9:7000",
        "[::1]:7000",
        "10.9.0.2:7000",
    ] {
        let mut client = dial(&pair.pod, target).unwrap();
        exchange(&mut client, &mut accept(&application).0);
    }
    let remote = listen(&pair.node, 7001);
    for target in ["10.9.0.1:7001", "[fd09::1]:7001"] {
        let mut client = dial_with(&pair.pod, target, |s| s.set_mark(MARK)).unwrap();
        exchange(&mut client, &mut accept(&remote).0);
    }
}

#[test]
fn open_connections_live_through_joining_leaving_and_joining_again() {
    let pair = Pair::new();
    let (remote, application) = (listen(&pair.node, 7000), listen(&pair.pod, 7001));
    let (proxy, inbound) = (
        listen(&pair.pod, PORT_OUTBOUND),
        listen(&pair.pod, PORT_INBOUND_PLAINTEXT),
    );
    // Open before the pod joins: never touched, in both directions, and with the pod silent first.
    let mut outbound = dial(&pair.pod, "10.9.0.1:7000").unwrap();
    let mut outbound_peer = accept(&remote).0;
    let mut incoming = dial(&pair.node, "10.9.0.2:7001").unwrap();
    let mut incoming_peer = accept(&application).0;
    set(&pair.pod, Phase::Joined);
    exchange(&mut outbound, &mut outbound_peer);
    exchange(&mut incoming, &mut incoming_peer);

    // Opened while joined: redirected, and lives on while the pod leaves.
    let mut redirected = dial(&pair.pod, "10.9.0.1:7000").unwrap();
    let mut redirected_peer = accept(&proxy).0;
    let mut plaintext = dial(&pair.node, "10.9.0.2:7001").unwrap();
    let mut plaintext_peer = accept(&inbound).0;
    exchange(&mut redirected, &mut redirected_peer);
    exchange(&mut plaintext, &mut plaintext_peer);
    set(&pair.pod, Phase::Leaving);
    exchange(&mut redirected, &mut redirected_peer);
    exchange(&mut plaintext, &mut plaintext_peer);
    let mut straight = dial(&pair.pod, "10.9.0.1:7000").unwrap();
    let mut straight_peer = accept(&remote).0;
    exchange(&mut straight, &mut straight_peer);

    set(&pair.pod, Phase::Joined);
    exchange(&mut redirected, &mut redirected_peer);
    exchange(&mut straight, &mut straight_peer);
    set(&pair.pod, Phase::Leaving);
    set(&pair.pod, Phase::Removed);
    // What was never redirected does not notice the end either.
    for (one, other) in [
        (&mut outbound, &mut outbound_peer),
        (&mut incoming, &mut incoming_peer),
        (&mut straight, &mut straight_peer),
    ] {
        exchange(one, other);
    }
}

#[test]
fn what_was_redirected_once_does_not_bend_a_later_connection_between_the_same_ports() {
    let pair = Pair::new();
    let remote = listen(&pair.node, 7000);
    let proxy = listen(&pair.pod, PORT_OUTBOUND);
    let from_one_port = || {
        dial_with(&pair.pod, "10.9.0.1:7000", |socket| {
            socket.set_reuse_address(true)?;
            socket.bind(&"10.9.0.2:45000".parse::<SocketAddr>().unwrap().into())
        })
        .unwrap()
    };
    set(&pair.pod, Phase::Joined);
    let mut redirected = from_one_port();
    let mut redirected_peer = accept(&proxy).0;
    exchange(&mut redirected, &mut redirected_peer);
    // The client's end goes at once, without a state that would keep its port.
    socket2::SockRef::from(&redirected)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    set(&pair.pod, Phase::Leaving);
    set(&pair.pod, Phase::Removed);
    drop((redirected, redirected_peer));

    let mut straight = from_one_port();
    let mut straight_peer = accept(&remote).0;
    exchange(&mut straight, &mut straight_peer);
    set(&pair.pod, Phase::Joined);
    exchange(&mut straight, &mut straight_peer);
}

#[test]
fn the_application_sees_the_clients_address_and_its_answer_reaches_the_proxy() {
    let pair = Pair::new();
    let application = listen(&pair.pod, 7000);
    set(&pair.pod, Phase::Joined);
    for (client, target) in [
        ("10.9.0.1:0", "10.9.0.2:7000"),
        ("192.0.2.7:0", "10.9.0.2:7000"),
        ("[2001:db8::7]:0", "[fd09::2]:7000"),
    ] {
        let mut upstream = dial_as(&pair.pod, client, target).unwrap();
        let (mut accepted, peer) = accept(&application);
        assert_eq!(peer.ip(), client.parse::<SocketAddr>().unwrap().ip());
        exchange(&mut upstream, &mut accepted);
        // The answers' way also outlives the redirects.
        set(&pair.pod, Phase::Leaving);
        exchange(&mut upstream, &mut accepted);
        set(&pair.pod, Phase::Joined);
    }
}

#[test]
fn with_a_plaintext_client_connected_the_proxy_still_reaches_the_application_as_that_client() {
    let pair = Pair::new();
    let (application, inbound) = (
        listen(&pair.pod, 7000),
        listen(&pair.pod, PORT_INBOUND_PLAINTEXT),
    );
    set(&pair.pod, Phase::Joined);
    let mut client = dial(&pair.node, "10.9.0.2:7000").unwrap();
    let (mut downstream, peer) = accept(&inbound);
    let mut upstream = dial_as(&pair.pod, &format!("{}:0", peer.ip()), "10.9.0.2:7000").unwrap();
    let (mut accepted, seen) = accept(&application);
    assert_eq!(seen.ip(), peer.ip());
    exchange(&mut upstream, &mut accepted);
    exchange(&mut client, &mut downstream);
}

#[test]
fn answers_find_the_proxy_whatever_rp_filter_says() {
    for rp_filter in [0, 1, 2] {
        let pair = Pair::new();
        let (application, inbound) = (
            listen(&pair.pod, 7000),
            listen(&pair.pod, PORT_INBOUND_PLAINTEXT),
        );
        for (ns, link) in [(&pair.pod, "eth0"), (&pair.node, "veth0")] {
            for of in ["all", "default", "lo", link] {
                ns.output(&format!(
                    "sysctl -qw net.ipv4.conf.{of}.rp_filter={rp_filter}"
                ));
            }
        }
        set(&pair.pod, Phase::Joined);
        for client in ["10.9.0.1:0", "192.0.2.7:0"] {
            let mut upstream = dial_as(&pair.pod, client, "10.9.0.2:7000").unwrap();
            exchange(&mut upstream, &mut accept(&application).0);
        }
        let mut plaintext = dial(&pair.node, "10.9.0.2:7000").unwrap();
        exchange(&mut plaintext, &mut accept(&inbound).0);
    }
}

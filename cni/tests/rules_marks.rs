//! Processes of a pod that mark their sockets: what they reach, and what they can learn.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    io::ErrorKind,
    net::SocketAddr,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use common::{
    Pair, TestNs,
    wire::{MARK, accept, dial, dial_as, dial_with, exchange, listen, set},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use weft_api::names::{MARK_PROXY, MARK_TRANSPARENT, PORT_OUTBOUND};
use weft_cni::rules::Phase;

// linux/filter.h, linux/bpf_common.h: loads the packet's mark.
const BPF_LD_W_ABS: u16 = 0x20;
const SKF_AD_MARK: u32 = (-0x1000_i32 + 20).cast_unsigned();
const BPF_JEQ_K: u16 = 0x15;
const BPF_RET_K: u16 = 0x06;
const ETH_P_ALL: u16 = 0x0003;

#[test]
fn no_mark_but_the_sandboxs_own_passes_the_redirects() {
    let pair = Pair::new();
    let proxy = listen(&pair.pod, PORT_OUTBOUND);
    let remote = listen(&pair.node, 7001);
    set(&pair.pod, Phase::Joined);
    for (own, target) in [
        ("10.9.0.2:0", "10.9.0.1:7001"),
        ("[fd09::2]:0", "[fd09::1]:7001"),
    ] {
        let own: SocketAddr = own.parse().unwrap();
        for mark in [1, MARK_PROXY, MARK ^ 1] {
            let mut client = dial_with(&pair.pod, target, |socket| {
                socket.set_mark(mark)?;
                socket.bind(&own.into())
            })
            .unwrap();
            exchange(&mut client, &mut accept(&proxy).0);
        }
        let mut own = dial_with(&pair.pod, target, |s| s.set_mark(MARK)).unwrap();
        exchange(&mut own, &mut accept(&remote).0);
    }
}

/// The mark of answers leads to `lo`: past the redirects, to the pod's own sockets.
#[test]
fn the_mark_of_answers_leads_nobody_anywhere() {
    let pair = Pair::new();
    let (_own, _remote) = (listen(&pair.pod, 7001), listen(&pair.node, 7001));
    set(&pair.pod, Phase::Joined);
    for (own, target) in [
        ("10.9.0.2:0", "10.9.0.1:7001"),
        ("0.0.0.0:0", "192.0.2.9:7001"),
        ("[fd09::2]:0", "[fd09::1]:7001"),
        ("[::]:0", "[2001:db8::9]:7001"),
    ] {
        let (own, to): (SocketAddr, SocketAddr) = (own.parse().unwrap(), target.parse().unwrap());
        let refused = pair.pod.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            socket.set_mark(MARK_TRANSPARENT).unwrap();
            socket.bind(&own.into()).unwrap();
            socket.connect_timeout(&to.into(), Duration::from_millis(300))
        });
        // Without an address of its own the kernel finds no way at all.
        let kind = refused.unwrap_err().kind();
        let expected = [ErrorKind::TimedOut, ErrorKind::NetworkUnreachable];
        assert!(expected.contains(&kind), "{target}: {kind:?}");
    }
}

#[test]
fn a_pod_that_guesses_marks_gets_a_hundred_tries_and_ten_a_second_and_others_go_on() {
    let pair = Pair::new();
    let proxy = listen(&pair.pod, PORT_OUTBOUND);
    set(&pair.pod, Phase::Joined);
    let start = Instant::now();
    let to: SocketAddr = "192.0.2.10:80".parse().unwrap();
    let _guesses: Vec<_> = pair.pod.run(|| {
        let guess = |mark| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
            socket.set_mark(mark).unwrap();
            let _in_progress = socket.connect(&to.into());
            socket
        };
        (1..=400).map(guess).collect()
    });
    let mut accepted = 0;
    while is_ready(&proxy, Duration::from_millis(200)) {
        proxy.accept().unwrap();
        accepted += 1;
    }
    let allowed = 100 + 10 * (start.elapsed().as_secs() + 1);
    assert!((90..=allowed).contains(&accepted), "{accepted} of 400");
    let mut unmarked = dial(&pair.pod, "192.0.2.10:80").unwrap();
    exchange(&mut unmarked, &mut accept(&proxy).0);
}

/// A packet socket, which CAP_NET_RAW allows, may filter by mark.
#[test]
fn the_secret_mark_is_on_no_packet_that_a_process_of_the_pod_can_see() {
    let pair = Pair::new();
    let (remote, application) = (listen(&pair.node, 7001), listen(&pair.pod, 7000));
    set(&pair.pod, Phase::Joined);
    let (secret, none) = (tap(&pair.pod, MARK), tap(&pair.pod, 0));
    let mut out = dial_with(&pair.pod, "10.9.0.1:7001", |s| s.set_mark(MARK)).unwrap();
    exchange(&mut out, &mut accept(&remote).0);
    let mut to_application = dial_as(&pair.pod, "192.0.2.7:0", "10.9.0.2:7000").unwrap();
    exchange(&mut to_application, &mut accept(&application).0);
    assert!(is_ready(&none, Duration::from_secs(2)), "the filter works");
    assert!(!is_ready(&secret, Duration::from_millis(200)));
}

/// A packet socket that sees the packets with this mark.
fn tap(ns: &TestNs, mark: u32) -> Socket {
    let step = SockFilter::new;
    ns.run(|| {
        // With protocol 0 it sees nothing until it has its filter and is bound.
        let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).unwrap();
        let filter = [
            step(BPF_LD_W_ABS, 0, 0, SKF_AD_MARK),
            step(BPF_JEQ_K, 0, 1, mark),
            step(BPF_RET_K, 0, 0, u32::from(u16::MAX)),
            step(BPF_RET_K, 0, 0, 0),
        ];
        socket.attach_filter(&filter).unwrap();
        // What came before the filter.
        socket.set_nonblocking(true).unwrap();
        let mut seen = [std::mem::MaybeUninit::uninit(); 1];
        while socket.recv(&mut seen).is_ok() {}
        socket
    })
}

fn is_ready(socket: &impl AsFd, limit: Duration) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(limit).unwrap();
    poll(&mut fds, limit).unwrap() == 1
}

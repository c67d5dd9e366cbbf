//! What an agent that restarts gets back from proxies.

use std::{collections::BTreeSet, os::fd::OwnedFd};

use serde_json::json;
use weft_api::handover::from_agent::Message;

use crate::{
    common::{Pair, TestNs},
    enabled,
    harness::{Agent, Node, who_answers},
    proxy::{Pods, Proxy},
};

/// Port and inode of each listening socket of weft's in a namespace.
fn listening(ns: &TestNs) -> BTreeSet<(String, String)> {
    let table = ns.output("cat /proc/net/tcp /proc/net/tcp6");
    let socket = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let port = fields.get(1)?.rsplit_once(':')?.1.to_owned();
        let ours = ["3A99", "3A9E", "3AA0"].contains(&&*port) && fields[3] == "0A";
        ours.then(|| (port, fields[9].to_owned()))
    };
    table.lines().filter_map(socket).collect()
}

/// A pod of the mesh, its agent, and a proxy that serves it.
async fn joined(node: &Node, pair: &Pair) -> (Agent, Proxy) {
    node.namespace("shop", enabled());
    node.pod("web", json!({}));
    let agent = node.start().await;
    let proxy = Proxy::start(&node.handover(), "first").await;
    assert!(node.add("web", pair).await.0);
    node.until_state("web", "in").await;
    (agent, proxy)
}

fn answer() -> crate::proxy::Answer {
    Box::new(|_| Some(String::new()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_restarts_goes_on_with_the_sockets_that_the_proxy_gives_back() {
    let (node, pair) = (Node::new(), Pair::new());
    let (mut agent, mut proxy) = joined(&node, &pair).await;
    let before = listening(&pair.pod);
    assert_eq!(before.len(), 3);
    for _ in 0..5 {
        agent.stop().await;
        agent = node.start().await;
        let held = std::mem::take(&mut *proxy.holds.lock());
        let next = Proxy::holding(&node.handover(), "first", answer(), held).await;
        proxy.stop().await;
        proxy = next;
        assert!(matches!(proxy.next().await, Message::Add(_)));
        node.until_state("web", "in").await;
        assert_eq!(listening(&pair.pod), before);
        assert_eq!(
            who_answers(&pair.pod, "192.0.2.1:80").await.unwrap(),
            "first 1"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_that_are_not_the_pods_own_are_not_taken_for_them() {
    let (node, pair, other) = (Node::new(), Pair::new(), TestNs::new());
    let (agent, proxy) = joined(&node, &pair).await;
    let before = listening(&pair.pod);
    let held = std::mem::take(&mut *proxy.holds.lock());
    let (kinds, right) = held.into_values().next().unwrap();
    let copy = |fd: &OwnedFd| fd.try_clone().unwrap();
    let foreign: OwnedFd = std::fs::File::open(other.path()).unwrap().into();
    let elsewhere: Vec<OwnedFd> = other.run(|| {
        let listen = |port| std::net::TcpListener::bind(("::", port)).unwrap().into();
        [15001, 15006, 15008].map(listen).into()
    });
    let wrong: [(Vec<i32>, Vec<OwnedFd>); 4] = [
        // Another pod's namespace.
        (
            kinds.clone(),
            [&foreign, &right[1], &right[2], &right[3]].map(copy).into(),
        ),
        // One is missing.
        (kinds[..2].into(), right[..3].iter().map(copy).collect()),
        // Outbound connections would be taken for inbound ones.
        (
            kinds.clone(),
            [&right[0], &right[2], &right[1], &right[3]]
                .map(copy)
                .into(),
        ),
        // The right ports of another pod.
        (
            kinds.clone(),
            std::iter::once(&right[0])
                .chain(&elsewhere)
                .map(copy)
                .collect(),
        ),
    ];
    drop(agent);
    for held in wrong {
        let agent = node.start().await;
        let held = Pods::from([("sandbox-web".to_owned(), held)]);
        let mut next = Proxy::holding(&node.handover(), "next", answer(), held).await;
        assert!(matches!(next.next().await, Message::Add(_)));
        node.until_state("web", "in").await;
        let fresh = listening(&pair.pod);
        assert_eq!(fresh.difference(&before).count(), 3, "{fresh:?}");
        agent.stop().await;
        next.stop().await;
    }
    // The right ones still are.
    let _agent = node.start().await;
    let held = Pods::from([("sandbox-web".to_owned(), (kinds, right))]);
    let _next = Proxy::holding(&node.handover(), "last", answer(), held).await;
    node.until_state("web", "in").await;
    assert_eq!(listening(&pair.pod), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_gives_nothing_back_is_served_with_new_sockets() {
    let (node, pair) = (Node::new(), Pair::new());
    let (agent, proxy) = joined(&node, &pair).await;
    agent.stop().await;
    let _agent = node.start().await;
    let mut old = Proxy::start(&node.handover(), "old").await;
    assert!(matches!(old.next().await, Message::Add(_)));
    assert!(matches!(old.next().await, Message::SnapshotSent(_)));
    proxy.stop().await;
    assert_eq!(
        who_answers(&pair.pod, "192.0.2.1:80").await.unwrap(),
        "old 1"
    );
}

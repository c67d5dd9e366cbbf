//! Pods that run already when the agent comes to the node.

use std::net::TcpStream;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    common::Pair,
    enabled,
    harness::{Node, eventually, serve, who_answers},
    proxy::Proxy,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_ran_before_the_agent_came_joins_without_losing_what_is_open() {
    let (node, pair) = (Node::new(), Pair::new());
    node.namespace("shop", json!({}));
    node.runs_already("web", &pair);
    serve(&pair.node, 7000, "direct");
    let open = pair
        .pod
        .run(|| TcpStream::connect("10.9.0.1:7000"))
        .unwrap();
    let _agent = node.start().await;
    let _proxy = Proxy::start(&node.handover(), "p").await;
    node.until_state("web", "out").await;

    node.namespace("shop", enabled());
    node.until_state("web", "in").await;
    assert_eq!(node.captured("web").await.as_deref(), Some("sandbox-web"));
    assert_eq!(
        who_answers(&pair.pod, "10.9.0.1:7000").await.unwrap(),
        "p 1"
    );
    open.set_nonblocking(true).unwrap();
    let mut open = tokio::net::TcpStream::from_std(open).unwrap();
    open.write_all(b"?").await.unwrap();
    let mut answer = [0; 6];
    open.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"direct");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_of_the_cache_whose_namespace_is_gone_or_the_hosts_own_is_left_alone() {
    let (node, gone, pair) = (Node::new(), Pair::new(), Pair::new());
    node.namespace("shop", enabled());
    node.runs_already("gone", &gone);
    gone.pod.remove();
    node.runs_already("web", &pair);
    // As of a pod on the host's network, should a runtime ever write that down.
    node.runs_already("host", &pair);
    let cached = node.cni_cache().join("results/pods-sandbox-host-eth0");
    let text = std::fs::read_to_string(&cached).unwrap();
    let own = text.replace(pair.pod.path().to_str().unwrap(), "/proc/self/ns/net");
    assert_ne!(own, text);
    std::fs::write(&cached, own).unwrap();
    let _agent = node.start().await;
    let _proxy = Proxy::start(&node.handover(), "p").await;
    node.until_state("web", "in").await;
    assert_eq!(node.status().await.sandboxes.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_waits_for_a_proxy_and_goes_with_it() {
    let node = Node::new();
    let _agent = node.start().await;
    eventually("the agent has read the objects", async || {
        node.status().await.synced.then_some(())
    })
    .await;
    assert!(!*node.ready.borrow());
    let proxy = Proxy::start(&node.handover(), "p").await;
    let mut ready = node.ready.subscribe();
    ready.wait_for(|ready| *ready).await.unwrap();
    drop(proxy);
    ready.wait_for(|ready| !*ready).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_of_a_sandbox_that_went_with_the_nodes_power_is_taken_back() {
    let (node, pair) = (Node::new(), Pair::new());
    node.namespace("shop", json!({}));
    node.runs_already("web", &pair);
    node.says_captured("web", "sandbox-before").await;
    let _agent = node.start().await;
    let _proxy = Proxy::start(&node.handover(), "p").await;
    eventually("the report is taken back", async || {
        node.captured("web").await.is_none().then_some(())
    })
    .await;

    // What joins writes its own over it.
    node.says_captured("web", "sandbox-before").await;
    node.namespace("shop", enabled());
    eventually("the report names the sandbox that there is", async || {
        (node.captured("web").await.as_deref() == Some("sandbox-web")).then_some(())
    })
    .await;
}

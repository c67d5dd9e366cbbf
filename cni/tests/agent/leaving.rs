//! Pods that leave, think better of it, or vanish.

use std::net::TcpStream;

use serde_json::json;
use weft_api::handover::from_agent::Message;

use crate::{
    common::Pair,
    enabled,
    harness::{Node, eventually, serve, who_answers},
    is_clean,
    proxy::Proxy,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_whose_label_comes_back_while_it_drains_joins_again_at_once() {
    let (node, pair) = (Node::new(), Pair::new());
    node.namespace("shop", enabled());
    node.pod("web", json!({}));
    serve(&pair.node, 7000, "direct");
    let _agent = node.start().await;
    // It never says that it has drained.
    let mut proxy =
        Proxy::start_with(&node.handover(), "p", Box::new(|_| Some(String::new()))).await;
    proxy.never_drains();
    assert!(node.add("web", &pair).await.0);
    node.until_state("web", "in").await;
    let open = pair
        .pod
        .run(|| TcpStream::connect("192.0.2.1:80"))
        .expect("a captured connection");
    node.namespace("shop", json!({}));
    eventually("report back", async || {
        node.captured("web").await.is_none().then_some(())
    })
    .await;
    node.acknowledge("web", "sandbox-web").await;
    node.until_state("web", "leaving: draining").await;
    assert_eq!(
        who_answers(&pair.pod, "10.9.0.1:7000").await.unwrap(),
        "direct"
    );
    node.namespace("shop", enabled());
    node.until_state("web", "in").await;
    assert_eq!(
        who_answers(&pair.pod, "10.9.0.1:7000").await.unwrap(),
        "p 1"
    );
    assert_eq!(node.captured("web").await.as_deref(), Some("sandbox-web"));
    // The rules never went, so what was open before still is.
    open.set_nonblocking(true).unwrap();
    let mut stream = tokio::net::TcpStream::from_std(open).unwrap();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream.write_all(b"?").await.unwrap();
    let mut answer = [0; 3];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"p 1");
    let mut seen = Vec::new();
    while let Ok(message) = proxy.received.try_recv() {
        seen.push(message);
    }
    assert!(
        matches!(
            &seen[..],
            [
                Message::SnapshotSent(_),
                Message::Add(_),
                Message::Drain(_),
                Message::Add(_)
            ]
        ),
        "{seen:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_whose_namespace_vanishes_without_the_runtime_telling_is_cleaned_up() {
    let (node, pair) = (Node::new(), Pair::new());
    node.namespace("shop", enabled());
    node.pod("web", json!({}));
    let _agent = node.start().await;
    let mut proxy = Proxy::start(&node.handover(), "p").await;
    assert!(node.add("web", &pair).await.0);
    node.until_state("web", "in").await;
    assert!(!is_clean(&pair));
    // Its path is gone; what the agent holds keeps the namespace itself alive.
    pair.pod.remove();
    eventually("the sandbox is forgotten", async || {
        node.sandbox_status("web").await.is_none().then_some(())
    })
    .await;
    assert!(matches!(proxy.next().await, Message::SnapshotSent(_)));
    assert!(matches!(proxy.next().await, Message::Add(_)));
    assert!(matches!(proxy.next().await, Message::Remove(_)));
    eventually("the report is taken back", async || {
        node.captured("web").await.is_none().then_some(())
    })
    .await;
    let records = std::fs::read_dir(node.run_dir().join("sandboxes")).unwrap();
    assert_eq!(records.count(), 0);
}

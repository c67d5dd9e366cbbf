//! Leaving the node for good.

use serde_json::json;
use weft_cni::agent;

use crate::{
    common::Pair,
    enabled,
    harness::{Node, serve, who_answers},
    is_clean,
    proxy::Proxy,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uninstall_takes_every_pod_out_in_order_and_can_be_taken_back() {
    let (node, pair, late) = (Node::new(), Pair::new(), Pair::new());
    node.namespace("shop", enabled());
    node.pod("web", json!({}));
    node.pod("late", json!({}));
    serve(&pair.node, 7000, "direct");
    let agent = node.start().await;
    let _proxy = Proxy::start(&node.handover(), "p").await;
    assert!(node.add("web", &pair).await.0);
    node.until_state("web", "in").await;
    assert!(!*node.left.borrow());

    node.leave.send_replace(true);
    // The controller's word is waited for, as ever.
    node.until_state("web", "leaving: waiting for other proxies")
        .await;
    node.acknowledge("web", "sandbox-web").await;
    let mut left = node.left.subscribe();
    left.wait_for(|left| *left).await.unwrap();
    assert_eq!(node.captured("web").await, None);
    assert!(is_clean(&pair));
    assert_eq!(
        who_answers(&pair.pod, "10.9.0.1:7000").await.unwrap(),
        "direct"
    );
    // A pod that the runtime still brings starts outside the mesh.
    assert!(node.add("late", &late).await.0);
    assert!(is_clean(&late));

    node.leave.send_replace(false);
    node.until_state("web", "in").await;
    node.until_state("late", "in").await;
    assert!(!*node.left.borrow());

    node.leave.send_replace(true);
    node.until_state("late", "leaving: waiting for other proxies")
        .await;
    left.wait_for(|left| *left).await.unwrap();
    agent.stop().await;
    agent::clear(&node.run_dir()).unwrap();
    let names: Vec<_> = std::fs::read_dir(node.run_dir()).unwrap().collect();
    assert!(names.is_empty(), "{names:?}");
    agent::clear(&node.run_dir()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_report_stays_of_a_sandbox_that_went_with_the_nodes_power_and_came_again_without_the_plugin()
 {
    let node = Node::new();
    node.namespace("shop", enabled());
    node.pod("web", json!({}));
    node.says_captured("web", "sandbox-from-before").await;
    let agent = node.start().await;
    node.leave.send_replace(true);
    let mut left = node.left.subscribe();
    left.wait_for(|left| *left).await.unwrap();
    assert_eq!(node.captured("web").await, None);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_that_died_has_left_is_stripped_without_it() {
    let (node, pair) = (Node::new(), Pair::new());
    node.namespace("shop", enabled());
    node.pod("web", json!({}));
    let agent = node.start().await;
    {
        let _proxy = Proxy::start(&node.handover(), "p").await;
        assert!(node.add("web", &pair).await.0);
        node.until_state("web", "in").await;
    }
    agent.stop().await;
    assert!(!is_clean(&pair));
    let failures = agent::strip(&node.run_dir(), false);
    assert!(failures.is_empty(), "{failures:?}");
    assert!(is_clean(&pair));
}

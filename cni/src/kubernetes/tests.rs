#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Node, Pod, ServiceAccount},
};
use kube::{Api, Client, client::Body, config::Kubeconfig};
use serde_json::{Value, json};
use tokio::sync::watch;
use weft_source::kubernetes::fake::FakeApi;

use super::{kubeconfig::Server, order::Owner, uninstall::UninstallError, *};
use crate::testing::until;

fn name(text: &str) -> Place {
    text.parse().unwrap()
}

fn daemonset(uid: &str, metadata: Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"namespace": "weft-system", "name": "weft-cni", "uid": uid},
        "spec": {
            "selector": {"matchLabels": {"app": "weft-cni"}},
            "template": {"metadata": {"labels": {"app": "weft-cni"}}},
        },
    });
    let all = object["metadata"].as_object_mut().unwrap();
    all.extend(metadata.as_object().unwrap().clone());
    object
}

fn ordered() -> Value {
    json!({"annotations": {ANNOTATION_UNINSTALL: "true"}})
}

#[test]
fn a_name_has_a_namespace() {
    let parsed = name("weft-system/weft-cni");
    assert_eq!(parsed.to_string(), "weft-system/weft-cni");
    for text in ["", "weft-cni", "/a", "a/", "a/b/c"] {
        assert!(text.parse::<Place>().is_err(), "{text}");
    }
}

#[test]
fn only_a_daemonset_that_goes_for_good_orders_to_leave() {
    let seen = |states: &[Option<Value>]| {
        let mut owner = Owner::default();
        for state in states {
            let state = state.clone();
            let found: Option<DaemonSet> = state.map(|s| serde_json::from_value(s).unwrap());
            owner.see(found.as_ref());
        }
        owner.is_ordered()
    };
    let there = || Some(daemonset("u1", json!({})));
    let with = |metadata: Value| Some(daemonset("u1", metadata));
    let ends = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
    let orphans = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["orphan"]});
    let refused = json!({"annotations": {ANNOTATION_UNINSTALL: "false"}});
    let cases = [
        ("nothing was seen", vec![], false),
        ("it was never there", vec![None, None], false),
        ("it is there", vec![there()], false),
        ("it is annotated", vec![there(), with(ordered())], true),
        ("annotated otherwise", vec![with(refused)], false),
        (
            "the order is taken back",
            vec![with(ordered()), there()],
            false,
        ),
        ("it is being deleted", vec![there(), with(ends)], true),
        ("it is gone", vec![there(), None], true),
        (
            "its pods are to outlive it",
            vec![there(), with(orphans.clone())],
            false,
        ),
        (
            "its pods have outlived it",
            vec![there(), with(orphans), None],
            false,
        ),
        (
            "another has its name",
            vec![there(), Some(daemonset("u2", json!({})))],
            true,
        ),
    ];
    for (what, states, expected) in cases {
        assert_eq!(seen(&states), expected, "{what}");
    }
}

#[tokio::test]
async fn the_order_is_followed_as_it_is_given_and_taken_back_and_found_at_the_end() {
    let api = FakeApi::new();
    api.put(daemonset("u1", json!({})));
    let (sender, mut order) = watch::channel(false);
    let follow = || {
        let client = api.client();
        Arc::new(order::Follower::new(
            client,
            name("weft-system/weft-cni"),
            sender.clone(),
        ))
    };
    let follower = follow();
    let running = follower.clone();
    let task = tokio::spawn(async move { running.run().await });
    follower.settled().await;
    assert!(!*order.borrow());
    api.put(daemonset("u1", ordered()));
    order.wait_for(|order| *order).await.unwrap();
    api.put(daemonset("u1", json!({})));
    order.wait_for(|order| !*order).await.unwrap();
    api.delete(&daemonset("u1", json!({})));
    order.wait_for(|order| *order).await.unwrap();
    task.abort();

    // One that could not watch looks when it is told to end.
    sender.send_replace(false);
    api.put(daemonset("u1", json!({})));
    let late = follow();
    late.look().await;
    assert!(!*order.borrow());
    api.fail("GET", 403);
    late.look().await;
    assert!(!*order.borrow(), "no answer is no order");
    api.delete(&daemonset("u1", json!({})));
    late.look().await;
    assert!(*order.borrow());
}

#[tokio::test]
async fn the_taint_goes_when_pods_can_join_and_others_stay() {
    let api = FakeApi::new();
    let taint = |key: &str| json!({"key": key, "effect": "NoSchedule"});
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
        "spec": {"podCIDR": "10.0.0.0/24", "taints": [taint("a"), taint("weft.dev/not-ready"), taint("b")]},
    });
    api.put(node.clone());
    let ready = watch::Sender::new(false);
    let task = tokio::spawn(taint::remove_when_ready(
        api.client(),
        "n1".into(),
        "weft.dev/not-ready".into(),
        ready.subscribe(),
    ));
    let keys = || {
        let node = api.object("nodes", "", "n1").unwrap();
        let taints = node["spec"]["taints"].as_array().unwrap().iter();
        taints
            .map(|t| t["key"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(api.count("nodes"), 0, "not before it is ready");
    // Somebody else changes the node at the same time.
    api.fail("PATCH", 409);
    ready.send_replace(true);
    until("the taint is gone", || keys() == ["a", "b"]).await;
    assert_eq!(
        api.object("nodes", "", "n1").unwrap()["spec"]["podCIDR"],
        "10.0.0.0/24"
    );
    // The node is registered anew.
    ready.send_replace(false);
    tokio::task::yield_now().await;
    api.put(node);
    ready.send_replace(true);
    until("the taint is gone again", || keys() == ["a", "b"]).await;
    task.abort();
}

#[test]
fn a_node_without_the_taint_is_not_touched() {
    let node = |spec: Value| -> Node { serde_json::from_value(json!({"spec": spec})).unwrap() };
    for spec in [
        json!({}),
        json!({"taints": []}),
        json!({"taints": [{"key": "x", "effect": "NoExecute"}]}),
    ] {
        assert_eq!(taint::without(&node(spec), "weft.dev/not-ready"), None);
    }
}

#[test]
fn the_kubeconfig_is_one_and_names_the_server_as_pods_see_it() {
    let environment = |host: &str| {
        let host = host.to_owned();
        Server::of_this_pod(move |name| {
            Some(match name {
                "KUBERNETES_SERVICE_HOST" => host.clone(),
                _ => "443".into(),
            })
        })
    };
    assert!(environment("").is_none());
    assert_eq!(
        environment("10.96.0.1").unwrap().url,
        "https://10.96.0.1:443"
    );
    let server = environment("fd00::1").unwrap().url;
    assert_eq!(server, "https://[fd00::1]:443");
    let text = kubeconfig::text(&server, b"root", "secret");
    let read = Kubeconfig::from_yaml(&text).unwrap();
    assert_eq!(read.current_context.as_deref(), Some("weft"));
    let cluster = read.clusters[0].cluster.as_ref().unwrap();
    assert_eq!(cluster.server.as_deref(), Some("https://[fd00::1]:443"));
    assert_eq!(
        cluster.certificate_authority_data.as_deref(),
        Some("cm9vdA==")
    );
    assert!(text.contains(r#""token": "secret""#));
}

#[tokio::test]
async fn a_token_is_asked_for_the_plugins_account_alone_and_bounded() {
    let service = tower::service_fn(|request: http::Request<Body>| async move {
        let path = request.uri().path().to_owned();
        assert_eq!(
            path,
            "/api/v1/namespaces/weft-system/serviceaccounts/weft-cni-plugin/token"
        );
        let body = request.into_body().collect_bytes().await.unwrap();
        let mut granted: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(granted["spec"]["expirationSeconds"], 24 * 3600);
        granted["spec"]["expirationSeconds"] = 7200.into();
        granted["status"] = json!({"token": "t", "expirationTimestamp": "2026-01-01T02:00:00Z"});
        let body = Body::from(granted.to_string().into_bytes());
        Ok::<_, std::convert::Infallible>(http::Response::new(body))
    });
    let client = Client::new(service, "default");
    let accounts: Api<ServiceAccount> = Api::namespaced(client, "weft-system");
    let token = kubeconfig::request(&accounts, "weft-cni-plugin")
        .await
        .unwrap();
    assert_eq!(
        (token.value.as_str(), token.life),
        ("t", Duration::from_secs(7200))
    );
}

fn agent(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": "weft-system", "name": name, "labels": {"app": "weft-cni"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "weft-cni", "uid": "u1"}],
        },
        "spec": {"nodeName": node, "containers": []},
    })
}

#[tokio::test]
async fn an_uninstall_is_over_when_every_agent_says_that_its_node_was_left() {
    let api = FakeApi::new();
    let daemonset_name = name("weft-system/weft-cni");
    let client = api.client();
    let long = Duration::from_secs(60);
    // Without agents there is nobody to wait for.
    uninstall::uninstall(&client, &daemonset_name, long)
        .await
        .unwrap();
    api.put(daemonset("u1", json!({})));
    api.put(agent("a", "n1"));
    api.put(agent("b", "n2"));
    let error = uninstall::uninstall(&client, &daemonset_name, Duration::ZERO)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, UninstallError::NotInTime(nodes) if nodes == "n1, n2"),
        "{error}"
    );
    let annotations =
        &api.object("daemonsets", "weft-system", "weft-cni").unwrap()["metadata"]["annotations"];
    assert_eq!(annotations[ANNOTATION_UNINSTALL], "true");

    let left = watch::Sender::new(false);
    for pod in ["weft-system/a", "weft-system/b"] {
        tokio::spawn(uninstall::report(api.client(), name(pod), left.subscribe()));
    }
    left.send_replace(true);
    uninstall::uninstall(&client, &daemonset_name, long)
        .await
        .unwrap();
    // The order is taken back, and with it what the agents have said.
    left.send_replace(false);
    let said = |pod: &str| {
        let pod = api.object("pods", "weft-system", pod).unwrap();
        pod["metadata"]["annotations"][ANNOTATION_UNINSTALLED]
            .as_str()
            .map(str::to_owned)
    };
    until("the word is taken back", || {
        said("a").is_none() && said("b").is_none()
    })
    .await;
}

#[test]
fn only_the_daemonsets_own_pods_on_a_node_are_waited_for() {
    let pod = |value: Value| -> Pod { serde_json::from_value(value).unwrap() };
    let mut done = agent("done", "n1");
    done["metadata"]["annotations"] = json!({ANNOTATION_UNINSTALLED: "true"});
    let mut foreign = agent("foreign", "n2");
    foreign["metadata"]["ownerReferences"] = json!([]);
    let mut unplaced = agent("unplaced", "");
    unplaced["spec"] = json!({"containers": []});
    let pods = [done, foreign, unplaced, agent("runs", "n3")].map(pod);
    assert_eq!(uninstall::waiting(&pods, Some("u1")), ["n3"]);
}

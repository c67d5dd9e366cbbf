use std::collections::HashMap;

use super::fake::{Opened, Proxy, Server, TOKEN, ca, mesh, service};
use crate::state::Kind;

/// Answers each type once, with these Services.
async fn answer_all(stream: &mut Opened, services: Vec<weft_api::discovery::Resource>) {
    stream.acked(Kind::MeshConfig, vec![mesh(&ca())], &[]).await;
    stream.acked(Kind::Workload, vec![], &[]).await;
    stream.acked(Kind::RouteTable, vec![], &[]).await;
    stream.acked(Kind::Service, services, &[]).await;
}

fn versions(list: &[(&str, &str)]) -> HashMap<String, String> {
    let list = list.iter();
    list.map(|(name, version)| (name.to_string(), version.to_string()))
        .collect()
}

#[tokio::test]
async fn the_first_requests_say_who_asks_and_ask_for_everything() {
    let (dir, ca) = (tempfile::tempdir().expect("a directory"), ca());
    let mut server = Server::start(&ca).await;
    let _proxy = Proxy::start(&dir, &ca, server.address);
    let mut stream = server.opened().await;
    assert_eq!(stream.authorization, format!("Bearer {TOKEN}"));

    let requests = stream.subscriptions().await;
    let nodes: Vec<_> = requests.values().filter_map(|r| r.node.as_ref()).collect();
    let [node] = nodes[..] else {
        panic!("one request names the node, not {}", nodes.len());
    };
    assert_eq!(
        (&*node.id, &*node.cluster),
        ("node-a/incarnation-1", "node-a")
    );
    assert_eq!(node.locality.as_ref().map(|l| &*l.zone), Some("zone-1"));
    for request in requests.values() {
        assert_eq!(request.resource_names_subscribe, ["*"]);
        assert!(request.initial_resource_versions.is_empty());
        assert!(request.response_nonce.is_empty());
    }
}

#[tokio::test]
async fn a_proxy_is_ready_once_every_type_was_answered() {
    let (dir, ca) = (tempfile::tempdir().expect("a directory"), ca());
    let mut server = Server::start(&ca).await;
    let proxy = Proxy::start(&dir, &ca, server.address);
    let mut stream = server.opened().await;
    stream.subscriptions().await;

    stream.acked(Kind::MeshConfig, vec![mesh(&ca)], &[]).await;
    stream
        .acked(Kind::Service, vec![service("a", "1", 1)], &[])
        .await;
    stream.acked(Kind::RouteTable, vec![], &[]).await;
    assert_eq!(
        proxy.readiness.reasons(),
        ["configuration: the controller has not yet sent: workload"]
    );
    stream.acked(Kind::Workload, vec![], &[]).await;
    assert!(proxy.readiness.reasons().is_empty());
    assert_eq!(proxy.state.count(Kind::Service), 1);
    assert_eq!(proxy.metric("weft_xds_connected"), Some(1.0));
    assert_eq!(
        proxy.metric("weft_xds_resources{type=\"service\"}"),
        Some(1.0)
    );
}

#[tokio::test]
async fn a_nack_names_what_was_refused_and_keeps_the_last_good_one() {
    let (dir, ca) = (tempfile::tempdir().expect("a directory"), ca());
    let mut server = Server::start(&ca).await;
    let proxy = Proxy::start(&dir, &ca, server.address);
    let mut stream = server.opened().await;
    stream.subscriptions().await;
    answer_all(&mut stream, vec![service("a", "1", 1)]).await;

    let mut broken = service("a", "2", 1);
    broken.resource.as_mut().expect("a body").value = vec![0xff; 3];
    let mut mistyped = service("c", "1", 3);
    mistyped.resource.as_mut().expect("a body").type_url = Kind::Workload.type_url().into();
    let url = Kind::Service.type_url();
    let nack = stream
        .exchange(url, vec![broken, service("b", "1", 2), mistyped], &[])
        .await;
    let error = nack.error_detail.expect("a NACK");
    assert_eq!(error.code, 3);
    let lines: Vec<_> = error.message.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines.iter().any(|l| l.starts_with("shop/a: not decodable")),
        "{lines:?}"
    );
    assert!(
        lines.iter().any(|l| l.starts_with("shop/c: it is of type")),
        "{lines:?}"
    );
    assert_eq!(
        proxy.state.versions(Kind::Service),
        versions(&[("shop/a", "1"), ("shop/b", "1")])
    );
    assert_eq!(
        proxy.metric("weft_xds_rejected_resources_total{type=\"service\"}"),
        Some(2.0)
    );

    // The stream goes on, and a good one mends it.
    stream
        .acked(Kind::Service, vec![service("a", "3", 1)], &["shop/b"])
        .await;
    assert_eq!(
        proxy.state.versions(Kind::Service),
        versions(&[("shop/a", "3")])
    );
}

#[tokio::test]
async fn a_type_that_nobody_asked_for_is_nacked() {
    let (dir, ca) = (tempfile::tempdir().expect("a directory"), ca());
    let mut server = Server::start(&ca).await;
    let _proxy = Proxy::start(&dir, &ca, server.address);
    let mut stream = server.opened().await;
    stream.subscriptions().await;
    let nack = stream
        .exchange("type.googleapis.com/other", vec![], &[])
        .await;
    assert!(
        nack.error_detail
            .expect("a NACK")
            .message
            .contains("was not asked for")
    );
}

#[tokio::test]
async fn a_new_stream_names_what_is_held_and_receives_only_what_changed() {
    let (dir, ca) = (tempfile::tempdir().expect("a directory"), ca());
    let mut server = Server::start(&ca).await;
    let proxy = Proxy::start(&dir, &ca, server.address);
    let mut stream = server.opened().await;
    stream.subscriptions().await;
    let three = vec![
        service("a", "1", 1),
        service("b", "1", 2),
        service("c", "1", 3),
    ];
    answer_all(&mut stream, three).await;
    let mut broken = service("b", "2", 2);
    broken.resource = None;
    stream
        .exchange(Kind::Service.type_url(), vec![broken], &[])
        .await;

    std::fs::write(dir.path().join("token"), "token-2").expect("written");
    drop(stream);
    let mut stream = server.opened().await;
    assert_eq!(stream.authorization, "Bearer token-2", "read anew");
    let requests = stream.subscriptions().await;
    assert_eq!(
        requests[&Kind::Service].initial_resource_versions,
        versions(&[("shop/a", "1"), ("shop/b", "1"), ("shop/c", "1")]),
        "what was refused is not held"
    );
    assert!(
        proxy.readiness.reasons().is_empty(),
        "it serves what it has"
    );

    // Meanwhile b changed and c is gone; a is not sent.
    stream
        .acked(Kind::Service, vec![service("b", "3", 2)], &["shop/c"])
        .await;
    assert_eq!(
        proxy.state.versions(Kind::Service),
        versions(&[("shop/a", "1"), ("shop/b", "3")])
    );
    assert_eq!(
        proxy.metric("weft_xds_connection_failures_total"),
        Some(1.0)
    );
}

#[tokio::test]
async fn a_proxy_starts_from_its_snapshot_while_the_controller_is_away() {
    let (dir, ca) = (tempfile::tempdir().expect("a directory"), ca());
    let mut server = Server::start(&ca).await;
    let address = server.address;
    let proxy = Proxy::start(&dir, &ca, address);
    let mut stream = server.opened().await;
    stream.subscriptions().await;
    answer_all(&mut stream, vec![service("a", "1", 1)]).await;
    let snapshot = super::fake::snapshot(dir.path());
    proxy
        .until("the snapshot is saved", |_| snapshot.path().exists())
        .await;
    proxy.stop().await;
    drop((stream, server));

    let proxy = Proxy::start(&dir, &ca, address);
    proxy
        .until("ready without a controller", |p| {
            p.readiness.reasons().is_empty()
        })
        .await;
    assert_eq!(
        proxy.state.versions(Kind::Service),
        versions(&[("shop/a", "1")])
    );
    assert_eq!(proxy.state.mesh().trust_bundle.len(), 1);
    proxy
        .until("failures are counted", |p| {
            p.metric("weft_xds_connection_failures_total") >= Some(1.0)
        })
        .await;
    assert!(proxy.readiness.reasons().is_empty());
    assert_eq!(proxy.metric("weft_xds_connected"), Some(0.0));
    assert!(*proxy.synced.borrow(), "nothing is there to wait for");
    proxy.stop().await;

    // One that is there may only be slow.
    let slow = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let proxy = Proxy::start(&dir, &ca, slow.local_addr().expect("its address"));
    let _open = slow.accept().await.expect("the proxy dials");
    assert!(!*proxy.synced.borrow());
    proxy
        .until("served from the snapshot alone", |p| *p.synced.borrow())
        .await;
}

#[tokio::test]
async fn a_proxy_that_drains_leaves_the_snapshot_to_its_successor() {
    let (dir, ca) = (tempfile::tempdir().expect("a directory"), ca());
    let mut server = Server::start(&ca).await;
    let proxy = Proxy::start(&dir, &ca, server.address);
    let mut stream = server.opened().await;
    stream.subscriptions().await;
    answer_all(&mut stream, vec![service("a", "1", 1)]).await;
    proxy.draining.cancel();
    let snapshot = super::fake::snapshot(dir.path());
    proxy
        .until("what it knew is saved", |_| snapshot.path().exists())
        .await;
    std::fs::write(snapshot.path(), "the successor's").expect("written");
    let more = vec![service("b", "1", 2)];
    stream.acked(Kind::Service, more, &[]).await;
    proxy
        .until("it is in force", |p| {
            p.state.versions(Kind::Service).len() == 2
        })
        .await;
    proxy.stop().await;
    let left = std::fs::read(snapshot.path()).expect("it is there");
    assert_eq!(left, b"the successor's");
}

#[tokio::test]
async fn pods_are_served_by_what_the_controller_says_not_by_an_older_snapshot() {
    let (dir, ca) = (tempfile::tempdir().expect("a directory"), ca());
    let mut server = Server::start(&ca).await;
    let proxy = Proxy::start(&dir, &ca, server.address);
    let mut stream = server.opened().await;
    stream.subscriptions().await;
    answer_all(&mut stream, vec![service("a", "1", 1)]).await;
    assert!(*proxy.synced.borrow());
    let snapshot = super::fake::snapshot(dir.path());
    proxy
        .until("the snapshot is saved", |_| snapshot.path().exists())
        .await;
    proxy.stop().await;
    drop(stream);

    let proxy = Proxy::start(&dir, &ca, server.address);
    let mut stream = server.opened().await;
    stream.subscriptions().await;
    assert!(proxy.readiness.reasons().is_empty(), "it has the snapshot");
    stream.acked(Kind::MeshConfig, vec![mesh(&ca)], &[]).await;
    assert!(!*proxy.synced.borrow());
    for kind in [Kind::Service, Kind::Workload, Kind::RouteTable] {
        stream.acked(kind, vec![], &[]).await;
    }
    assert!(*proxy.synced.borrow());
}

#[tokio::test]
async fn a_change_that_is_still_gathered_is_saved_when_the_proxy_stops() {
    let (dir, ca) = (tempfile::tempdir().expect("a directory"), ca());
    let mut server = Server::start(&ca).await;
    let proxy = Proxy::start(&dir, &ca, server.address);
    let mut stream = server.opened().await;
    stream.subscriptions().await;
    answer_all(&mut stream, vec![service("a", "1", 1)]).await;
    proxy.stop().await;
    let loaded = crate::state::State::new(crate::model::Locality::default());
    assert!(super::fake::snapshot(dir.path()).load(&loaded));
    assert_eq!(loaded.versions(Kind::Service), versions(&[("shop/a", "1")]));
}

#[tokio::test]
async fn a_controller_that_another_ca_signed_is_not_believed() {
    let dir = tempfile::tempdir().expect("a directory");
    let (ours, theirs) = (ca(), ca());
    let mut server = Server::start(&theirs).await;
    let proxy = Proxy::start(&dir, &ours, server.address);
    proxy
        .until("failures are counted", |p| {
            p.metric("weft_xds_connection_failures_total") >= Some(2.0)
        })
        .await;
    assert_eq!(proxy.metric("weft_xds_connected"), Some(0.0));
    let reasons = proxy.readiness.reasons();
    assert!(reasons[0].contains("has not yet sent"), "{reasons:?}");
    drop(proxy);
    let none = tokio::time::timeout(std::time::Duration::from_millis(10), server.opened()).await;
    assert!(none.is_err(), "no stream was ever opened");
}

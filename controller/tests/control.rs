//! The controller as proxies see it, over real gRPC and TLS.

#![allow(clippy::unwrap_used)]

#[path = "control/replicas.rs"]
mod replicas;
mod support;

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use support::*;
use tokio::time::sleep;
use tonic::Code;
use weft_api::{
    config,
    discovery::DeltaDiscoveryRequest,
    names::{ANNOTATION_CAPTURED, CONDITION_CAPTURED, CONDITION_PROGRAMMED, CONTROLLER_NAME},
};
use weft_certs::{SpiffeId, csr};
use weft_controller::publish::ResourceType::{MeshConfig, RouteTable, Service, Workload};

const TABLE: &str = "shop/cart/80";

fn shop() -> Vec<Value> {
    vec![
        pod("one", "node-a", "10.1.0.1"),
        pod("two", "node-b", "10.1.0.2"),
        service("cart", "10.2.0.1"),
        service("other", "10.2.0.2"),
        route("canary", "cart", "other"),
    ]
}

fn has_table(proxy: &Proxy) -> bool {
    proxy.held[RouteTable as usize].contains_key(TABLE)
}

#[tokio::test]
async fn a_proxy_gets_everything_at_first_and_then_only_what_changes() {
    let control = Control::start(&shop()).await;
    let mut proxy = control.proxy("a", "1").await;
    proxy.until(has_table).await;
    let types: Vec<&str> = proxy
        .log
        .iter()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(
        types,
        [
            "MeshConfig",
            "Service",
            "Service",
            "Workload",
            "Workload",
            "RouteTable"
        ],
        "{:?}",
        proxy.log
    );
    let mesh: config::MeshConfig = proxy.get(MeshConfig, "mesh").unwrap();
    assert_eq!(
        (mesh.trust_domain.as_str(), mesh.trust_bundle.len()),
        ("cluster.local", 1)
    );
    let workload: config::Workload = proxy.get(Workload, "shop/one/uid-one").unwrap();
    assert_eq!(workload.node, "node-a");

    proxy.log.clear();
    control.apply(&pod("one", "node-a", "10.1.0.9"));
    proxy.until(|proxy| !proxy.log.is_empty()).await;
    assert_eq!(proxy.log, ["Workload shop/one/uid-one"]);
    control.delete(&pod("two", "node-b", "10.1.0.2"));
    proxy.until(|proxy| proxy.log.len() > 1).await;
    assert_eq!(proxy.log[1..], ["Workload -shop/two/uid-two"]);
    assert!(proxy.stream().is_calm().await, "nothing else is sent");
}

#[tokio::test]
async fn a_proxy_that_reconnects_gets_only_what_changed_even_from_another_controller() {
    let control = Control::start(&shop()).await;
    let mut proxy = control.proxy("a", "1").await;
    proxy.until(has_table).await;
    let proxy = proxy.disconnect();
    control.apply(&pod("one", "node-a", "10.1.0.9"));
    control.delete(&pod("two", "node-b", "10.1.0.2"));
    let folder = control.stop().await;

    let control = Control::start_in(folder).await;
    let mut proxy = control.proxy_with("a", "2", proxy).await;
    proxy.until(|proxy| proxy.log.len() >= 2).await;
    assert_eq!(
        proxy.log,
        ["Workload shop/one/uid-one", "Workload -shop/two/uid-two"]
    );
    // Every type is greeted, so that the proxy knows that it has everything.
    proxy.step().await;
    assert!(proxy.stream().is_calm().await);
    assert_eq!(proxy.log.len(), 2, "{:?}", proxy.log);
}

#[tokio::test]
async fn a_refused_resource_shows_in_status_and_loses_nothing_else() {
    let control = Control::start(&shop()).await;
    let canary = route("canary", "cart", "other");
    let mut proxy = control.proxy("a", "1").await;
    proxy.refuse.insert(TABLE.into());
    proxy
        .until(|proxy| proxy.log.contains(&format!("RouteTable {TABLE}")))
        .await;
    let rejected = control
        .condition(&canary, CONDITION_PROGRAMMED, "False", "Rejected")
        .await;
    let message = rejected["message"].as_str().unwrap();
    for part in ["node-a", TABLE, "a test refuses it"] {
        assert!(message.contains(part), "{message}");
    }
    control
        .condition(&canary, "Accepted", "True", "Accepted")
        .await;

    // Not sent again as it is; another table in one response with a refused one is taken.
    assert!(proxy.stream().is_calm().await);
    control.apply(&route("canary", "cart", "cart"));
    control.apply(&route("second", "other", "cart"));
    proxy
        .until(|proxy| proxy.log.contains(&"RouteTable shop/other/80".to_owned()))
        .await;
    control
        .condition(
            &route("second", "other", "cart"),
            CONDITION_PROGRAMMED,
            "True",
            "Programmed",
        )
        .await;
    control
        .condition(&canary, CONDITION_PROGRAMMED, "False", "Rejected")
        .await;
    assert!(proxy.held[RouteTable as usize].contains_key("shop/other/80"));

    proxy.refuse.clear();
    control.apply(&canary);
    proxy.until(has_table).await;
    let programmed = control
        .condition(&canary, CONDITION_PROGRAMMED, "True", "Programmed")
        .await;
    assert_eq!(programmed["observedGeneration"], 1);
    let (_, metrics) = control.get("/metrics").await;
    assert!(
        metrics.contains("weft_controller_nacks_total{type=\"RouteTable\"} 2"),
        "{metrics}"
    );
}

#[tokio::test]
async fn programmed_waits_for_every_connected_proxy_and_names_the_nodes() {
    let control = Control::start(&shop()).await;
    let canary = route("canary", "cart", "other");
    control
        .condition(&canary, CONDITION_PROGRAMMED, "False", "NoProxies")
        .await;
    let quick = control.proxy("a", "1").await.go_on();
    control
        .condition(&canary, CONDITION_PROGRAMMED, "True", "Programmed")
        .await;

    // A second process on the same node counts for itself.
    let mut slow = control.proxy("a", "2").await;
    let waiting = control
        .condition(&canary, CONDITION_PROGRAMMED, "False", "NotAcknowledged")
        .await;
    assert!(
        waiting["message"].as_str().unwrap().contains("node-a"),
        "{waiting}"
    );
    slow.until(has_table).await;
    let programmed = control
        .condition(&canary, CONDITION_PROGRAMMED, "True", "Programmed")
        .await;

    let status = control.status(&canary);
    let parents = status["parents"].as_array().unwrap();
    assert_eq!(parents.len(), 1);
    assert_eq!(parents[0]["controllerName"], CONTROLLER_NAME);
    assert_eq!(parents[0]["parentRef"], canary["spec"]["parentRefs"][0]);
    let time = programmed["lastTransitionTime"].as_str().unwrap();
    assert_eq!(
        (time.len(), &time[19..]),
        (20, "Z"),
        "whole seconds, UTC: {time}"
    );

    drop(slow);
    quick.abort();
    control
        .condition(&canary, CONDITION_PROGRAMMED, "False", "NoProxies")
        .await;
    control.delete(&canary);
    let start = Instant::now();
    while control.status(&canary) != json!({}) {
        assert!(
            start.elapsed() < PATIENCE,
            "the status of a deleted route stays"
        );
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_status_follows_a_change_within_a_fraction_of_a_second() {
    let control = Control::start(&shop()).await;
    let proxy = control.proxy("a", "1").await.go_on();
    let mut delays = Vec::new();
    for i in 0..10 {
        let name = format!("route-{i}");
        let start = Instant::now();
        let route = route(&name, "cart", "other");
        control.apply(&route);
        control
            .condition(&route, CONDITION_PROGRAMMED, "True", "Programmed")
            .await;
        delays.push(start.elapsed());
    }
    delays.sort();
    assert!(
        delays[5] < Duration::from_millis(250),
        "median {:?}",
        delays[5]
    );
    proxy.abort();
}

#[tokio::test]
async fn calls_without_the_right_token_are_refused() {
    let control = Control::start(&shop()).await;
    let Err(unknown) = control.stream("wrong", "node-a", "1").await else {
        panic!("let in")
    };
    assert_eq!(unknown.code(), Code::Unauthenticated, "{unknown}");

    for (node, id, expected) in [
        ("node-b", "1", Code::PermissionDenied),
        ("", "1", Code::PermissionDenied),
        ("node-a", "", Code::InvalidArgument),
    ] {
        let mut stream = control.stream("a", node, id).await.unwrap();
        let request = DeltaDiscoveryRequest {
            type_url: Service.url().into(),
            ..Default::default()
        };
        stream.send(request).await;
        let refused = stream.receive().await.unwrap_err();
        assert_eq!(refused.code(), expected, "{refused}");
    }
    let (_, proxies) = control.get("/debug/proxies").await;
    assert_eq!(serde_json::from_str::<Value>(&proxies).unwrap(), json!([]));
}

#[tokio::test]
async fn certificates_are_signed_for_pods_of_the_callers_node_alone() {
    let finished = {
        let mut pod = pod("done", "node-a", "10.1.0.3");
        pod["status"]["phase"] = json!("Succeeded");
        pod
    };
    let mut objects = shop();
    objects.push(finished);
    let control = Control::start(&objects).await;
    let id = |account: &str| format!("spiffe://cluster.local/ns/shop/sa/{account}");
    let own: SpiffeId = id("sa-one").parse().unwrap();
    let request = csr::Request::generate(&own).unwrap();
    let csr = request.csr_pem.as_str();

    let chain = control
        .certificate("a", Some(own.as_str()), csr)
        .await
        .unwrap();
    assert_eq!(chain.len(), 2, "leaf and root");
    let now = std::time::SystemTime::now();
    let svid = weft_certs::Svid::from_pem(&chain, &request.key_pem);
    let svid = svid.expect("key and chain belong together");
    assert_eq!(svid.id(), &own);
    assert!(svid.not_after() > now + Duration::from_secs(23 * 3600));

    let start = Instant::now();
    for (token, identity, code, part) in [
        (
            "a",
            Some(id("sa-two")),
            Code::PermissionDenied,
            "shop/sa-two runs on node node-a",
        ),
        (
            "b",
            Some(id("sa-one")),
            Code::PermissionDenied,
            "shop/sa-one runs on node node-b",
        ),
        ("a", Some(id("sa-done")), Code::PermissionDenied, "sa-done"),
    ] {
        let (found, message) = control
            .certificate(token, identity.as_deref(), csr)
            .await
            .unwrap_err();
        assert_eq!(found, code, "{message}");
        assert!(message.contains(part), "{message}");
    }
    assert!(
        start.elapsed() > Duration::from_secs(5),
        "each had time to appear"
    );
    let foreign = "spiffe://elsewhere/ns/shop/sa/sa-one".to_owned();
    for (token, identity, csr, code, part) in [
        (
            "a",
            Some(foreign),
            csr,
            Code::PermissionDenied,
            "trust domain",
        ),
        (
            "a",
            None,
            csr,
            Code::InvalidArgument,
            "ImpersonatedIdentity",
        ),
        (
            "a",
            Some("root".into()),
            csr,
            Code::InvalidArgument,
            "no identity",
        ),
        (
            "a",
            Some(id("sa-one")),
            "nonsense",
            Code::InvalidArgument,
            "sa-one",
        ),
        ("x", Some(id("sa-one")), csr, Code::Unauthenticated, "token"),
    ] {
        let (found, message) = control
            .certificate(token, identity.as_deref(), csr)
            .await
            .unwrap_err();
        assert_eq!(found, code, "{message}");
        assert!(message.contains(part), "{message}");
    }
    let (_, metrics) = control.get("/metrics").await;
    for line in [
        "weft_controller_certificates_total{result=\"signed\",reason=\"\"} 1",
        "weft_controller_certificates_total{result=\"refused\",reason=\"not_on_node\"} 3",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
}

#[tokio::test]
async fn a_request_that_is_early_waits_for_its_pod() {
    let control = Control::start(&shop()).await;
    let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/sa-late".parse().unwrap();
    let request = csr::Request::generate(&id).unwrap();
    let (signed, ()) = tokio::join!(
        control.certificate("a", Some(id.as_str()), &request.csr_pem),
        async {
            sleep(Duration::from_millis(300)).await;
            control.apply(&pod("late", "node-a", "10.1.0.7"));
        }
    );
    signed.unwrap();
}

#[tokio::test]
async fn a_slow_proxy_gets_the_newest_state_and_delays_nobody() {
    let control = Control::start(&shop()).await;
    let mut slow = control.proxy("a", "slow").await;
    slow.until(has_table).await;
    let mut quick = control.proxy("b", "quick").await;
    quick.until(has_table).await;
    slow.log.clear();
    // The slow one has the first change and does not answer; thirty more follow.
    control.apply(&pod("one", "node-a", "10.1.1.0"));
    let unanswered = slow.stream().receive().await.unwrap();
    for i in 1..=30 {
        let address = format!("10.1.1.{i}");
        control.apply(&pod("one", "node-a", &address));
        let octets: Vec<u8> = address
            .split('.')
            .map(|part| part.parse().unwrap())
            .collect();
        quick
            .until(|quick| {
                let workload: config::Workload = quick.get(Workload, "shop/one/uid-one").unwrap();
                workload.addresses[0] == octets
            })
            .await;
    }
    assert!(slow.stream().is_calm().await, "one response is unanswered");
    slow.answer(unanswered).await;
    slow.step().await;
    let workload: config::Workload = slow.get(Workload, "shop/one/uid-one").unwrap();
    assert_eq!(workload.addresses[0][..], [10, 1, 1, 30]);
    assert!(slow.stream().is_calm().await);
    assert_eq!(slow.log.len(), 2, "{:?}", slow.log);
}

#[tokio::test]
async fn a_pods_capture_is_confirmed_when_every_proxy_knows_of_it() {
    let control = Control::start(&shop()).await;
    let quick = control.proxy("a", "1").await.go_on();
    let mut slow = control.proxy("b", "2").await;
    slow.until(has_table).await;
    let one = pod("one", "node-a", "10.1.0.1");
    let annotate = |sandbox: Option<&str>| {
        let folder = control.folder.path().join("api/annotations/Pod./shop");
        fs::create_dir_all(&folder).unwrap();
        match sandbox {
            Some(sandbox) => {
                fs::write(
                    folder.join(".tmp"),
                    json!({ANNOTATION_CAPTURED: sandbox}).to_string(),
                )
                .unwrap();
                fs::rename(folder.join(".tmp"), folder.join("one.json")).unwrap();
            }
            None => fs::remove_file(folder.join("one.json")).unwrap(),
        }
    };
    annotate(Some("box"));
    let update = slow.stream().receive().await.unwrap();
    sleep(CALM).await;
    assert_eq!(
        control.status(&one),
        json!({}),
        "not before the slow proxy knows"
    );
    slow.answer(update).await;
    let workload: config::Workload = slow.get(Workload, "shop/one/uid-one").unwrap();
    assert_eq!(workload.tunnel(), config::Tunnel::Hbone);
    let captured = control
        .condition(&one, CONDITION_CAPTURED, "True", "Acknowledged")
        .await;
    assert_eq!(captured["message"], "box");

    annotate(None);
    let update = slow.stream().receive().await.unwrap();
    sleep(CALM).await;
    assert_eq!(
        control.status(&one)["conditions"][0]["status"],
        "True",
        "a proxy still may dial"
    );
    slow.answer(update).await;
    let left = control
        .condition(&one, CONDITION_CAPTURED, "False", "Acknowledged")
        .await;
    assert_eq!(left["message"], "box");
    quick.abort();
}

#[tokio::test]
async fn a_change_of_one_among_five_thousand_sends_one_resource() {
    let mut objects = shop();
    for i in 0..5000 {
        objects.push(pod(
            &format!("p{i}"),
            "node-a",
            &format!("10.3.{}.{}", i / 250, i % 250),
        ));
    }
    let control = Control::start(&objects).await;
    let mut proxy = control.proxy("a", "1").await;
    proxy.until(has_table).await;
    assert_eq!(proxy.held[Workload as usize].len(), 5002);
    proxy.log.clear();
    let start = Instant::now();
    control.apply(&pod("p77", "node-a", "10.9.9.9"));
    proxy.step().await;
    let delay = start.elapsed();
    assert_eq!(proxy.log, ["Workload shop/p77/uid-p77"]);
    assert!(delay < Duration::from_secs(1), "{delay:?}");
    assert!(proxy.stream().is_calm().await);
}

#[tokio::test]
async fn bad_documents_are_listed_and_lose_nothing() {
    let control = Control::start(&shop()).await;
    let mut proxy = control.proxy("a", "1").await;
    proxy.until(has_table).await;
    proxy.log.clear();
    let bad = control.folder.path().join("api/manifests/bad.yaml");
    fs::write(&bad, "kind: [").unwrap();
    let start = Instant::now();
    let listed = loop {
        let (_, body) = control.get("/debug/invalid").await;
        let listed: Value = serde_json::from_str(&body).unwrap();
        if listed != json!([]) {
            break listed;
        }
        assert!(start.elapsed() < PATIENCE);
        sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(listed[0]["origin"], "manifests/bad.yaml");
    assert!(
        listed[0]["error"].as_str().unwrap().contains("YAML"),
        "{listed}"
    );
    assert!(
        proxy.stream().is_calm().await,
        "nothing is taken from proxies"
    );
    fs::remove_file(bad).unwrap();
    while control.get("/debug/invalid").await.1.trim() != "[]" {
        assert!(start.elapsed() < PATIENCE);
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_http_interface_tells_readiness_and_what_is_in_force() {
    let control = Control::start(&shop()).await;
    let mut proxy = control.proxy("a", "1").await;
    proxy.until(has_table).await;
    assert_eq!(control.get("/ready").await.0, 200);
    // Who is not on the controller's host does not see them.
    for page in ["tables", "proxies", "invalid", ""] {
        let (status, body) = control.get_openly(&format!("/debug/{page}")).await;
        assert_eq!((status, body.contains('{')), (403, false), "{page}");
    }
    let (status, tables) = control.get("/debug/tables").await;
    let tables: Value = serde_json::from_str(&tables).unwrap();
    assert_eq!(
        (status, &tables["RouteTable"][TABLE]["service"]),
        (200, &json!("shop/cart"))
    );
    let (_, proxies) = control.get("/debug/proxies").await;
    let proxies: Value = serde_json::from_str(&proxies).unwrap();
    assert_eq!(proxies[0]["node"], "node-a");
    assert_eq!(proxies[0]["types"]["Service"]["acknowledged"], 2);
    let (_, metrics) = control.get("/metrics").await;
    for line in [
        "weft_controller_proxies 1",
        "weft_controller_objects{kind=\"Pod\"} 2",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    assert_eq!(control.get("/other").await.0, 404);
}

#[tokio::test]
async fn a_newer_stream_of_a_process_takes_the_older_ones_place() {
    let control = Control::start(&shop()).await;
    let mut old = control.proxy("a", "same").await;
    old.until(has_table).await;
    let mut new = control.proxy("a", "same").await;
    new.until(has_table).await;
    let ended = loop {
        match old.stream().receive().await {
            Ok(response) => old.answer(response).await,
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Aborted);
    let (_, proxies) = control.get("/debug/proxies").await;
    assert_eq!(
        serde_json::from_str::<Value>(&proxies)
            .unwrap()
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

//! Two replicas of the controller over one API: a proxy is connected to one of them, and status, which
//! one of them writes, tells of all proxies.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::support::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, time::sleep};
use weft_api::names::CONDITION_PROGRAMMED;
use weft_certs::{CertificateAuthority, tls};
use weft_controller::{
    compile::Settings,
    kubernetes::{
        Place, ca_secret,
        token_review::{Accounts, TokenReviews},
    },
    leadership::{Announcer, Leadership},
    publish::ResourceType::RouteTable,
    run::{Parts, Replicas},
};
use weft_source::{
    Scope,
    kubernetes::{KubernetesSource, fake::FakeApi},
};

const TABLE: &str = "shop/cart/80";

struct Cluster {
    api: Arc<FakeApi>,
    folder: TempDir,
    port: u16,
}

struct Replica {
    control: Control,
    announcer: Announcer,
}

fn place(text: &str) -> Place {
    text.parse().unwrap()
}

impl Cluster {
    async fn new() -> Self {
        tls::install_crypto_provider();
        let api = FakeApi::new();
        api.define("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes");
        // Token `a` is of the proxy of node-a, `replica` of a replica of the controller.
        api.on_create("tokenreviews", |review| {
            let token = review["spec"]["token"].as_str().unwrap_or_default();
            let (account, extra) = match token {
                "replica" => ("weft-controller", json!({})),
                node => (
                    "weft-proxy",
                    json!({ "authentication.kubernetes.io/node-name": [format!("node-{node}")] }),
                ),
            };
            let mut answer = review.clone();
            answer["status"] = json!({ "authenticated": true, "audiences": ["weft.dev"], "user": {
                "username": format!("system:serviceaccount:weft-system:{account}"), "extra": extra,
            }});
            answer
        });
        for object in [
            pod("one", "node-a", "10.1.0.1"),
            service("cart", "10.2.0.1"),
            service("other", "10.2.0.2"),
            route("canary", "cart", "other"),
        ] {
            api.put(object);
        }
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("token"), "replica\n").unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        Self { api, folder, port }
    }

    /// The endpoints of the controller's Service: replicas by name, at 127.0.0.NUMBER.
    fn endpoints(&self, replicas: &[(&str, u8)]) {
        let endpoints: Vec<Value> = replicas
            .iter()
            .map(|(name, number)| {
                json!({
                    "addresses": [format!("127.0.0.{number}")], "conditions": { "serving": true },
                    "targetRef": { "kind": "Pod", "name": name },
                })
            })
            .collect();
        self.api.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": "weft-system", "name": "weft-controller-x",
                "labels": { "kubernetes.io/service-name": "weft-controller" },
            },
            "addressType": "IPv4", "ports": [], "endpoints": endpoints,
        }));
    }

    async fn start(&self, name: &str, number: u8) -> Replica {
        let client = self.api.client();
        let source = Arc::new(KubernetesSource::new(client.clone(), Scope::Mesh));
        let writer = Arc::new(source.writer());
        let accounts = Accounts {
            audience: "weft.dev".into(),
            proxies: place("weft-system/weft-proxy"),
            controllers: place("weft-system/weft-controller"),
        };
        let authenticator = TokenReviews::new(client.clone(), Arc::clone(&source) as _, accounts);
        let secret = place("weft-system/weft-ca");
        let (ca, roots): (CertificateAuthority, _) =
            ca_secret::open(&client, &secret, None, "cluster.local")
                .await
                .unwrap();
        let (announcer, leadership) = Leadership::follower();
        let address = format!("127.0.0.{number}");
        let control = Control::run(TempDir::new().unwrap(), async |listeners| Parts {
            source,
            writer,
            authenticator: Arc::new(authenticator),
            ca,
            roots,
            leadership,
            replicas: Some(Replicas {
                replica: name.into(),
                service: place("weft-system/weft-controller"),
                port: self.port,
                token_file: self.folder.path().join("token"),
            }),
            listener: TcpListener::bind((address.as_str(), self.port))
                .await
                .unwrap(),
            http: listeners.http,
            debug: listeners.debug,
            settings: Settings {
                trust_domain: "cluster.local".into(),
                cluster_domain: "cluster.local".into(),
            },
            settle: Duration::from_millis(500),
        })
        .await;
        Replica { control, announcer }
    }

    fn programmed(&self) -> Value {
        let route = self.api.object("httproutes", "shop", "canary").unwrap();
        let conditions = route
            .pointer("/status/parents/0/conditions")
            .and_then(Value::as_array);
        let found = conditions
            .into_iter()
            .flatten()
            .find(|c| c["type"] == CONDITION_PROGRAMMED);
        found.cloned().unwrap_or_default()
    }

    async fn programmed_is(&self, status: &str, part: &str) {
        let start = Instant::now();
        loop {
            let found = self.programmed();
            let message = found["message"].as_str().unwrap_or_default();
            if found["status"] == status && message.contains(part) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "not {status} {part:?}: {found}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Changes the route, so that every proxy must hear of it anew.
    fn change(&self, generation: i64) {
        let mut changed = route(
            "canary",
            "cart",
            if generation % 2 == 0 { "cart" } else { "other" },
        );
        changed["metadata"]["generation"] = generation.into();
        let old = self.api.object("httproutes", "shop", "canary").unwrap();
        changed["status"] = old["status"].clone();
        self.api.put(changed);
    }
}

fn for_long() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(3600)
}

#[tokio::test]
async fn the_leader_waits_for_proxies_of_the_other_replica_and_its_death_takes_nothing_away() {
    let cluster = Cluster::new().await;
    cluster.endpoints(&[("one", 1), ("two", 2)]);
    let one = cluster.start("one", 1).await;
    let two = cluster.start("two", 2).await;
    assert_eq!(cluster.programmed(), Value::Null, "nobody leads");
    let _a = one.control.proxy("a", "proxy-a").await.go_on();
    one.announcer.leads(for_long());
    cluster.programmed_is("True", "").await;

    let mut b = two.control.proxy("b", "proxy-b").await;
    cluster.programmed_is("False", "node-b").await;
    b.until(|proxy| proxy.held[RouteTable as usize].contains_key(TABLE))
        .await;
    let b = b.go_on();
    cluster.programmed_is("True", "").await;

    // The other replica ends; its proxy comes back to this one.
    two.control.stop().await;
    b.abort();
    cluster.endpoints(&[("one", 1)]);
    let mut b = one.control.proxy("b", "proxy-b").await;
    b.until(|proxy| proxy.held[RouteTable as usize].contains_key(TABLE))
        .await;
    cluster.change(2);
    cluster.programmed_is("False", "node-b").await;
    let _b = b.go_on();
    cluster.programmed_is("True", "").await;
}

#[tokio::test]
async fn who_takes_over_knows_all_proxies_and_who_was_leader_writes_no_more() {
    let cluster = Cluster::new().await;
    cluster.endpoints(&[("one", 1), ("two", 2)]);
    let one = cluster.start("one", 1).await;
    let two = cluster.start("two", 2).await;
    let _a = one.control.proxy("a", "proxy-a").await.go_on();
    let _b = two.control.proxy("b", "proxy-b").await.go_on();
    one.announcer.leads(for_long());
    cluster.programmed_is("True", "").await;

    one.announcer.follows();
    cluster.change(2);
    let mut c = one.control.proxy("c", "proxy-c").await;
    sleep(CALM).await;
    let status = cluster.programmed();
    assert_eq!(
        status["observedGeneration"], 1,
        "nobody leads, nobody writes: {status}"
    );

    two.announcer.leads(for_long());
    cluster.programmed_is("False", "node-c").await;
    c.until(|proxy| proxy.held[RouteTable as usize].contains_key(TABLE))
        .await;
    let _c = c.go_on();
    cluster.programmed_is("True", "").await;
    assert_eq!(cluster.programmed()["observedGeneration"], 2);
}

#[tokio::test]
async fn a_replica_that_cannot_be_asked_is_named() {
    let cluster = Cluster::new().await;
    // Something listens there and says nothing.
    let mute = TcpListener::bind(("127.0.0.9", cluster.port))
        .await
        .unwrap();
    cluster.endpoints(&[("one", 1), ("mute", 9)]);
    let one = cluster.start("one", 1).await;
    let _a = one.control.proxy("a", "proxy-a").await.go_on();
    one.announcer.leads(for_long());
    cluster.programmed_is("False", "mute").await;
    drop(mute);
    // Nobody listens any more: there are no proxies.
    cluster.programmed_is("True", "").await;
}

#[tokio::test]
async fn proxies_may_not_ask_how_others_stand() {
    let cluster = Cluster::new().await;
    cluster.endpoints(&[("one", 1)]);
    let one = cluster.start("one", 1).await;
    for (token, expected) in [
        ("replica", Ok(())),
        ("a", Err(tonic::Code::PermissionDenied)),
    ] {
        let mut client = weft_api::peer::peer_service_client::PeerServiceClient::new(
            one.control.channel().await,
        );
        let mut request = tonic::Request::new(weft_api::peer::FollowRequest {});
        let token = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", token);
        let result = client.follow(request).await;
        assert_eq!(result.map(drop).map_err(|status| status.code()), expected);
    }
    let refused = one.control.stream("replica", "node-a", "x").await;
    assert_eq!(
        refused.err().map(|status| status.code()),
        Some(tonic::Code::PermissionDenied)
    );
}

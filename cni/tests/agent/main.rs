//! The agent with real namespaces, the real plugin program and a proxy that really accepts.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

#[path = "../common/mod.rs"]
mod common;
mod harness;
mod leaving;
mod proxy;
mod restart;
mod running;
mod uninstall;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::Pair;
use harness::{Node, eventually, execute, previous_result, serve, who_answers};
use proxy::Proxy;
use serde_json::{Value, json};
use weft_api::handover::from_agent::Message;
use weft_cni::agent;

const ENABLED: &str = "weft.dev/mesh";

fn enabled() -> Value {
    json!({ENABLED: "enabled"})
}

fn is_clean(pair: &Pair) -> bool {
    pair.pod.output("nft list ruleset").is_empty() && !pair.pod.output("ip rule").contains("0x111")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_pod_of_the_mesh_is_captured_before_add_returns_and_reported_and_gone_after_del() {
    let (node, pair) = (Node::new(), Pair::new());
    node.namespace(
        "shop",
        json!({ENABLED: "enabled", "weft.dev/mtls": "strict"}),
    );
    node.pod("web", json!({}));
    let _agent = node.start().await;
    let mut proxy = Proxy::start(&node.handover(), "p").await;
    assert_eq!(
        proxy.next().await,
        Message::SnapshotSent(Default::default())
    );

    let (added, result) = node.add("web", &pair).await;
    assert!(added, "{result}");
    assert_eq!(result, previous_result());
    let Message::Add(add) = proxy.next().await else {
        panic!()
    };
    let pod = add.pod.unwrap();
    assert_eq!(
        (pod.sandbox.as_str(), pod.uid.as_str()),
        ("sandbox-web", "uid-web")
    );
    assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("shop", "web"));
    assert_eq!(
        (pod.service_account.as_str(), pod.strict),
        ("cashier", true)
    );
    assert_eq!(
        (pod.addresses, add.listeners),
        (
            vec![
                vec![10, 9, 0, 2],
                vec![0xfd, 0x09, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]
            ],
            vec![1, 2, 3]
        )
    );
    assert_eq!(who_answers(&pair.pod, "192.0.2.1:80").await.unwrap(), "p 1");
    assert_eq!(who_answers(&pair.node, "10.9.0.2:80").await.unwrap(), "p 2");
    assert_eq!(
        who_answers(&pair.node, "10.9.0.2:15008").await.unwrap(),
        "p 3"
    );
    let sandbox = eventually("annotation", async || node.captured("web").await).await;
    assert_eq!(sandbox, "sandbox-web");
    node.until_state("web", "in").await;

    let (checked, answer) = node.plugin("CHECK", "web", &pair, json!({})).await;
    assert!(checked, "{answer}");
    pair.pod.output("nft flush chain inet weft prerouting");
    let (checked, answer) = node.plugin("CHECK", "web", &pair, json!({})).await;
    assert!(!checked);
    assert!(
        answer["msg"].as_str().unwrap().contains("shop/web"),
        "{answer}"
    );
    assert!(node.plugin("STATUS", "web", &pair, json!({})).await.0);

    for _ in 0..2 {
        assert!(node.plugin("DEL", "web", &pair, json!({})).await.0);
        assert!(is_clean(&pair));
    }
    let removed = eventually("removal", async || Some(proxy.next().await)).await;
    assert!(matches!(removed, Message::Remove(remove) if remove.sandbox == "sandbox-web"));
    assert!(node.status().await.sandboxes.is_empty());
    eventually("annotation gone", async || {
        node.captured("web").await.is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_pods_join_and_leave_with_the_label_in_the_documented_order() {
    let (node, pair) = (Node::new(), Pair::new());
    node.namespace("shop", json!({}));
    node.pod("web", json!({}));
    let _agent = node.start().await;
    let mut proxy = Proxy::start(&node.handover(), "p").await;
    assert!(node.add("web", &pair).await.0);
    serve(&pair.node, 7000, "direct");
    assert_eq!(
        who_answers(&pair.pod, "10.9.0.1:7000").await.unwrap(),
        "direct"
    );
    assert!(is_clean(&pair));
    proxy.next().await;

    for round in 0..2 {
        node.namespace("shop", enabled());
        node.until_state("web", "in").await;
        assert_eq!(node.captured("web").await.as_deref(), Some("sandbox-web"));
        assert_eq!(
            who_answers(&pair.pod, "10.9.0.1:7000").await.unwrap(),
            "p 1"
        );
        assert!(matches!(proxy.next().await, Message::Add(_)));

        node.namespace("shop", json!({}));
        eventually("report back", async || {
            node.captured("web").await.is_none().then_some(())
        })
        .await;
        // Until the controller has spoken, tunnels come; what is new in plaintext goes straight.
        node.until_state("web", "leaving: waiting for other proxies")
            .await;
        assert_eq!(
            who_answers(&pair.pod, "10.9.0.1:7000").await.unwrap(),
            "direct"
        );
        assert_eq!(
            who_answers(&pair.node, "10.9.0.2:15008").await.unwrap(),
            "p 3"
        );
        assert!(proxy.received.try_recv().is_err());
        if round == 0 {
            node.acknowledge("web", "sandbox-web").await;
        } // In the second round the old word does not count, and the time-out does.
        assert!(matches!(proxy.next().await, Message::Drain(_)));
        assert!(matches!(proxy.next().await, Message::Remove(_)));
        node.until_state("web", "out").await;
        assert!(is_clean(&pair));
        assert_eq!(
            who_answers(&pair.pod, "10.9.0.1:7000").await.unwrap(),
            "direct"
        );
        assert!(who_answers(&pair.node, "10.9.0.2:15008").await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_that_somebody_takes_away_is_written_again() {
    let (node, pair) = (Node::new(), Pair::new());
    node.namespace("shop", enabled());
    node.pod("web", json!({}));
    let _agent = node.start().await;
    let _proxy = Proxy::start(&node.handover(), "p").await;
    assert!(node.add("web", &pair).await.0);
    let reported = async || node.captured("web").await;
    eventually("the report", reported).await;
    node.until_state("web", "in").await;
    let key = weft_cni::objects::pod_key("shop", "web");
    let set = async |value: Option<&str>| {
        let value = value.map(str::to_owned);
        let annotations = BTreeMap::from([("weft.dev/captured".to_owned(), value)]);
        node.writer.annotate(&key, annotations).await.unwrap();
    };
    // A watch shows nothing of what is written and taken away within an instant: then once more.
    eventually("the report again", async || {
        set(Some("sandbox-web")).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        set(None).await;
        let again = async {
            while reported().await.is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(1), again)
            .await
            .ok()
    })
    .await;
    node.until_state("web", "in").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_opts_out_and_in_by_its_own_label_and_its_mode_is_told() {
    let (node, pair) = (Node::new(), Pair::new());
    node.namespace("shop", enabled());
    node.pod("web", json!({ENABLED: "disabled"}));
    let _agent = node.start().await;
    let mut proxy = Proxy::start(&node.handover(), "p").await;
    proxy.next().await;
    assert!(node.add("web", &pair).await.0);
    assert!(is_clean(&pair));
    node.pod("web", json!({}));
    node.until_state("web", "in").await;
    assert!(matches!(proxy.next().await, Message::Add(add) if !add.pod.as_ref().unwrap().strict));
    node.pod("web", json!({"weft.dev/mtls": "strict"}));
    assert!(
        matches!(proxy.next().await, Message::Update(update) if update.pod.as_ref().unwrap().strict)
    );
    assert!(node.sandbox_status("web").await.unwrap().strict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_proxy_a_pod_of_the_mesh_is_refused_for_now_and_others_start() {
    let (node, pair) = (Node::impatient(), Pair::new());
    node.namespace("shop", enabled());
    node.pod("web", json!({}));
    node.pod("plain", json!({ENABLED: "disabled"}));
    let _agent = node.start().await;
    let (added, error) = node.add("web", &pair).await;
    assert!(!added);
    assert_eq!(error["code"], 11);
    assert!(
        error["msg"]
            .as_str()
            .unwrap()
            .contains("shop/web can't be captured"),
        "{error}"
    );
    assert!(node.add("plain", &pair).await.0);
    eventually("refused pod forgotten", async || {
        node.sandbox_status("web").await.is_none().then_some(())
    })
    .await;
    assert!(is_clean(&pair));

    // A pod that the API does not know is not let through either.
    let (added, error) = node.add("unknown", &pair).await;
    assert!(!added);
    assert!(
        error["msg"].as_str().unwrap().contains("does not know"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_reconnects_and_a_second_one_get_everything_again() {
    let (node, pair) = (Node::new(), Pair::new());
    node.namespace("shop", enabled());
    node.pod("web", json!({}));
    let _agent = node.start().await;
    let first = Proxy::start(&node.handover(), "first").await;
    assert!(node.add("web", &pair).await.0);
    // While no proxy is there, connections wait in the sockets that the agent holds.
    drop(first);
    eventually("disconnect", async || {
        node.status().await.proxies.is_empty().then_some(())
    })
    .await;
    let waiting = who_answers(&pair.pod, "192.0.2.1:80");
    let starting = async {
        let mut second = Proxy::start(&node.handover(), "second").await;
        assert!(matches!(second.next().await, Message::Add(_)));
        assert!(matches!(second.next().await, Message::SnapshotSent(_)));
        second
    };
    let (answer, second) = tokio::join!(waiting, starting);
    assert_eq!(answer.unwrap(), "second 1");

    // An upgrade: both accept, then the old one goes.
    let mut third = Proxy::start(&node.handover(), "third").await;
    assert!(matches!(third.next().await, Message::Add(_)));
    eventually("both", async || {
        (node.status().await.proxies.len() == 2).then_some(())
    })
    .await;
    drop(second);
    for _ in 0..20 {
        assert_eq!(
            who_answers(&pair.pod, "192.0.2.1:80").await.unwrap(),
            "third 1"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_restarts_takes_its_pods_up_and_leaves_them_captured_meanwhile() {
    let (node, pair) = (Node::new(), Pair::new());
    node.namespace("shop", enabled());
    node.pod("web", json!({}));
    let agent = node.start().await;
    let first = Proxy::start(&node.handover(), "first").await;
    assert!(node.add("web", &pair).await.0);
    node.until_state("web", "in").await;
    agent.stop().await;
    assert_eq!(
        who_answers(&pair.pod, "192.0.2.1:80").await.unwrap(),
        "first 1"
    );

    // The former proxy still holds the former sockets; the new ones are on offer before any proxy
    // is let in.
    let _agent = node.start().await;
    let mut second = Proxy::start(&node.handover(), "second").await;
    assert!(matches!(second.next().await, Message::Add(_)));
    assert!(matches!(second.next().await, Message::SnapshotSent(_)));
    node.until_state("web", "in").await;
    first.stop().await;
    assert_eq!(
        who_answers(&pair.pod, "192.0.2.1:80").await.unwrap(),
        "second 1"
    );
    assert_eq!(node.captured("web").await.as_deref(), Some("sandbox-web"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_starts_while_the_api_is_away_serves_its_pods_as_before() {
    let (mut node, pair) = (Node::new(), Pair::new());
    let api = node.flaky();
    node.sync_timeout = Duration::from_millis(200);
    node.namespace(
        "shop",
        json!({ENABLED: "enabled", "weft.dev/mtls": "strict"}),
    );
    node.pod("web", json!({}));
    let agent = node.start().await;
    let mut proxy = Proxy::start(&node.handover(), "p").await;
    proxy.next().await;
    assert!(node.add("web", &pair).await.0);
    let Message::Add(before) = proxy.next().await else {
        panic!()
    };
    node.until_state("web", "in").await;
    agent.stop().await;
    // Its sockets would go on answering beside the next one's.
    proxy.stop().await;

    api.watched.send_replace(false);
    let _agent = node.start().await;
    let mut proxy = Proxy::start(&node.handover(), "again").await;
    // As it was: with its service account, and strict.
    assert_eq!(proxy.next().await, Message::Add(before));
    assert!(matches!(proxy.next().await, Message::SnapshotSent(_)));
    assert_eq!(
        who_answers(&pair.pod, "192.0.2.1:80").await.unwrap(),
        "again 1"
    );
    let status = node.sandbox_status("web").await.unwrap();
    assert_eq!((status.wanted, status.captured), (None, true));

    // What changed meanwhile takes effect when it is back.
    node.namespace("shop", enabled());
    api.watched.send_replace(true);
    assert!(
        matches!(proxy.next().await, Message::Update(update) if !update.pod.as_ref().unwrap().strict)
    );
    node.until_state("web", "in").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_of_a_namespace_that_cannot_be_read_does_not_start_unprotected() {
    let (mut node, pair) = (Node::new(), Pair::new());
    let api = node.flaky();
    let _agent = node.start().await;
    eventually("the watch", async || {
        node.status().await.synced.then_some(())
    })
    .await;
    // The watch has not told of the namespace yet, and the API does not answer.
    api.read.store(false, Ordering::Relaxed);
    let (added, error) = node.add("web", &pair).await;
    assert!(!added);
    assert_eq!(error["code"], 11, "{error}");
    assert!(
        error["msg"].as_str().unwrap().contains("shop/web"),
        "{error}"
    );
    assert!(is_clean(&pair));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_that_went_while_the_agent_was_away_is_noticed() {
    let (node, pair) = (Node::new(), Pair::new());
    node.namespace("shop", enabled());
    node.pod("web", json!({}));
    let agent = node.start().await;
    let proxy = Proxy::start(&node.handover(), "p").await;
    assert!(node.add("web", &pair).await.0);
    node.until_state("web", "in").await;
    agent.stop().await;
    drop(proxy);
    node.namespace("shop", json!({}));
    let _agent = node.start().await;
    // It leaves in order: until then it is served, by proxies that come as well.
    let mut proxy = Proxy::start(&node.handover(), "p").await;
    assert!(
        matches!(proxy.next().await, Message::Add(add) if add.pod.as_ref().unwrap().service_account == "cashier")
    );
    assert!(matches!(proxy.next().await, Message::SnapshotSent(_)));
    eventually("report back", async || {
        node.captured("web").await.is_none().then_some(())
    })
    .await;
    assert_eq!(
        who_answers(&pair.node, "10.9.0.2:15008").await.unwrap(),
        "p 3"
    );
    node.acknowledge("web", "sandbox-web").await;
    assert!(matches!(proxy.next().await, Message::Drain(_)));
    assert!(matches!(proxy.next().await, Message::Remove(_)));
    node.until_state("web", "out").await;
    assert!(is_clean(&pair));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_no_proxy_can_serve_blocks_no_other_and_is_offered_again() {
    let (node, slow, quick) = (Node::new(), Pair::new(), Pair::new());
    node.namespace("shop", json!({}));
    node.pod("slow", json!({}));
    node.pod("quick", json!({}));
    let _agent = node.start().await;
    let refusals = Arc::new(AtomicUsize::new(0));
    let count = refusals.clone();
    let answer = move |add: &weft_api::handover::AddPod| {
        let is_slow = add.pod.as_ref().unwrap().name == "slow";
        let refuse = is_slow && count.fetch_add(1, Ordering::Relaxed) < 2;
        Some(if refuse {
            "no certificate yet".to_owned()
        } else {
            String::new()
        })
    };
    let _proxy = Proxy::start_with(&node.handover(), "p", Box::new(answer)).await;
    assert!(node.add("slow", &slow).await.0);
    assert!(node.add("quick", &quick).await.0);
    node.namespace("shop", enabled());
    node.until_state("quick", "in").await;
    assert_eq!(
        who_answers(&quick.pod, "192.0.2.1:80").await.unwrap(),
        "p 1"
    );
    assert!(
        refusals.load(Ordering::Relaxed) < 3,
        "the slow one was not to be served yet"
    );
    // Not served means not redirected: its connections work as before.
    assert!(is_clean(&slow));
    node.until_state("slow", "in").await;
    assert_eq!(refusals.load(Ordering::Relaxed), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_probes_reach_a_captured_pod_directly_on_probed_ports_alone() {
    let (mut node, pair) = (Node::new(), Pair::new());
    node.netns = Some(pair.node.path());
    node.namespace(
        "shop",
        json!({ENABLED: "enabled", "weft.dev/mtls": "strict"}),
    );
    node.pod("web", json!({}));
    let _agent = node.start().await;
    let _proxy = Proxy::start(&node.handover(), "p").await;
    serve(&pair.pod, 8080, "direct");
    serve(&pair.pod, 9090, "direct");
    serve(&pair.node, 7000, "node");
    assert!(node.add("web", &pair).await.0);
    for address in ["10.9.0.2", "[fd09::2]"] {
        eventually("probe passes", async || {
            let answer = who_answers(&pair.node, &format!("{address}:8080")).await;
            // The first waits while the link's own IPv6 address is checked for doubles.
            answer.is_ok_and(|answer| answer == "direct").then_some(())
        })
        .await;
        let other = who_answers(&pair.node, &format!("{address}:9090")).await;
        assert_eq!(other.unwrap(), "p 2");
    }

    // By a Service's address it is a connection like any other.
    pair.node.ip("route add 192.0.2.80/32 dev veth0");
    pair.node.output("nft add table inet service");
    pair.node
        .output("nft add chain inet service output { type nat hook output priority -100 ; }");
    pair.node
        .output("nft add rule inet service output ip daddr 192.0.2.80 dnat ip to 10.9.0.2");
    assert_eq!(
        who_answers(&pair.node, "192.0.2.80:8080").await.unwrap(),
        "p 2"
    );
    pair.node.output("nft delete table inet service");

    // A pod that bears the reserved source itself gets nowhere.
    let mark = weft_cni::marks::Marks::open(&node.run_dir())
        .unwrap()
        .of("sandbox-web");
    pair.pod.ip("addr add 169.254.7.128/32 dev lo");
    pair.node.ip("route add 169.254.7.128/32 dev veth0");
    let spoof = |source: &'static str| {
        pair.pod.run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.set_mark(mark)?;
            socket.bind(&source.parse::<std::net::SocketAddr>().unwrap().into())?;
            let to: std::net::SocketAddr = "10.9.0.1:7000".parse().unwrap();
            socket.connect_timeout(&to.into(), Duration::from_millis(500))
        })
    };
    assert!(spoof("10.9.0.2:0").is_ok());
    assert_eq!(
        spoof("169.254.7.128:0").unwrap_err().kind(),
        std::io::ErrorKind::TimedOut
    );

    // Nothing stays in the node once no pod is captured.
    assert!(node.plugin("DEL", "web", &pair, json!({})).await.0);
    eventually("node is clean", async || {
        pair.node
            .output("nft list ruleset")
            .is_empty()
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gc_and_a_second_agent_and_garbage_on_the_socket_do_no_harm() {
    let (node, pair, other) = (Node::new(), Pair::new(), Pair::new());
    node.namespace("shop", enabled());
    node.pod("web", json!({}));
    node.pod("old", json!({}));
    let _agent = node.start().await;
    let _proxy = Proxy::start(&node.handover(), "p").await;
    assert!(node.add("web", &pair).await.0);
    assert!(node.add("old", &other).await.0);
    let keep =
        json!({"cni.dev/valid-attachments": [{"containerID": "sandbox-web", "ifname": "eth0"}]});
    assert!(node.plugin("GC", "web", &pair, keep).await.0);
    assert!(is_clean(&other));
    assert_eq!(node.status().await.sandboxes.len(), 1);
    assert_eq!(who_answers(&pair.pod, "192.0.2.1:80").await.unwrap(), "p 1");

    let second = agent::Config {
        node: "one".into(),
        run_dir: node.run_dir(),
        drain_timeout: Duration::from_secs(1),
        add_timeout: Duration::from_secs(1),
        sync_timeout: Duration::from_secs(1),
        vanished_check: agent::VANISHED_CHECK,
        node_rules: false,
        source: node.source.clone(),
        writer: node.writer.clone(),
        cni_cache: None,
        chain: None,
        uninstall: agent::Uninstall::never(),
        ready: tokio::sync::watch::Sender::new(false),
        http: None,
    };
    let refused = agent::run(second, std::future::pending()).await;
    assert!(matches!(refused, Err(agent::AgentError::InUse(_))));
    use std::io::{Read, Write};
    let socket = node.run_dir().join("agent.sock");
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        stream.write_all(b"nonsense\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert!(answer.await.unwrap().contains("can't be understood"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plugin_works_last_in_a_real_chain_at_1_0_0() {
    let Some(bridge) = ["/usr/lib/cni/bridge", "/opt/cni/bin/bridge"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
    else {
        panic!("the CNI plugin bridge is missing: install containernetworking-plugins");
    };
    let (node, pair) = (Node::new(), Pair::new());
    node.namespace("shop", enabled());
    node.pod("web", json!({}));
    let _agent = node.start().await;
    let _proxy = Proxy::start(&node.handover(), "p").await;
    let sandbox = common::TestNs::new();
    let config = json!({
        "cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "weft0",
        "isGateway": true,
        "ipam": {"type": "host-local", "dataDir": node.dir.path().join("ipam"),
                 "ranges": [[{"subnet": "10.77.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
    });
    let mut program = std::process::Command::new("ip");
    program
        .args(["netns", "exec", &pair.node.name, bridge])
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", "sandbox-web")
        .env("CNI_NETNS", sandbox.path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", std::path::Path::new(bridge).parent().unwrap());
    let (made, result) = execute(program, &config);
    assert!(made, "{result}");
    let chained = Pair {
        pod: sandbox,
        node: common::TestNs::new(),
    };
    let extra = json!({"cniVersion": "1.0.0", "prevResult": result});
    let (added, passed) = node.plugin("ADD", "web", &chained, extra).await;
    assert!(added, "{passed}");
    assert_eq!(passed, result);
    assert_eq!(
        who_answers(&chained.pod, "192.0.2.1:80").await.unwrap(),
        "p 1"
    );
    let addresses = node.sandbox_status("web").await.unwrap().addresses;
    assert_eq!(format!("{}/24", addresses[0]), result["ips"][0]["address"]);
}

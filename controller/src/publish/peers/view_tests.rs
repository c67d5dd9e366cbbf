use std::collections::BTreeSet;

use serde_json::json;

use super::*;

const TABLE: ResourceType = ResourceType::RouteTable;

fn slice(endpoints: &[(&str, &str, bool)]) -> Event {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(name, address, serving)| {
            json!({
                "addresses": [address], "targetRef": { "kind": "Pod", "name": name },
                "conditions": { "ready": serving, "serving": serving },
            })
        })
        .collect();
    Event::Applied(Object {
        key: ObjectKey {
            group: "discovery.k8s.io".into(),
            kind: "EndpointSlice".into(),
            namespace: "weft-system".into(),
            name: "s".into(),
        },
        value: Arc::new(json!({
            "metadata": { "labels": { "kubernetes.io/service-name": "weft-controller" } },
            "endpoints": endpoints,
        })),
    })
}

/// This replica is `a`; `b` is another.
fn peers() -> Arc<Peers> {
    let peers = Peers::new("weft-system/weft-controller".parse().unwrap(), "a".into());
    peers.observe(&slice(&[("a", "10.0.0.1", true), ("b", "10.0.0.2", true)]));
    peers
}

fn version(text: &str) -> Option<Version> {
    Version::parse(text)
}

fn snapshot(nodes: &[&str], entries: &[(&str, Entry)]) -> Snapshot {
    Snapshot {
        nodes: nodes.iter().map(ToString::to_string).collect(),
        entries: entries
            .iter()
            .map(|(name, entry)| ((TABLE, name.to_string()), entry.clone()))
            .collect(),
    }
}

fn entry(version_: &str, waiting: &[&str]) -> Entry {
    Entry {
        version: version(version_),
        waiting: waiting.iter().map(ToString::to_string).collect(),
        rejected: Vec::new(),
    }
}

fn standing(peers: &Peers, name: &str, now: Option<Version>) -> Standing {
    let name = name.to_owned();
    let mut standing = Standing::default();
    peers.add_standing(TABLE, &[(&name, now)], &mut standing);
    standing
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_has_not_answered_is_not_taken_for_one_without_proxies() {
    let peers = peers();
    let found = standing(&peers, "t", version("1"));
    assert_eq!(found.unknown, set(&["b"]));
    assert!(!found.is_acknowledged());
    assert!(peers.is_unsettled(Duration::ZERO));
    peers.report("b", snapshot(&[], &[]), true);
    assert!(standing(&peers, "t", version("1")).is_acknowledged());
    assert!(!peers.is_unsettled(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn only_an_acknowledgement_of_this_very_version_counts() {
    let peers = peers();
    let refused = Entry {
        rejected: vec![("n2".into(), "why".into())],
        ..entry("1", &[])
    };
    let known = [
        ("acked", entry("1", &[])),
        ("waits", entry("1", &["n1"])),
        ("refused", refused),
    ];
    peers.report("b", snapshot(&["n1", "n2"], &known), true);
    for (name, now, waiting) in [
        ("acked", version("1"), &[][..]),
        ("acked", version("2"), &["n1", "n2"]),
        ("acked", None, &["n1", "n2"]),
        ("waits", version("1"), &["n1"]),
        ("new here", version("1"), &["n1", "n2"]),
        ("gone everywhere", None, &[]),
        ("refused", version("1"), &[]),
    ] {
        let found = standing(&peers, name, now);
        assert_eq!(found.waiting, set(waiting), "{name} {now:?}");
        assert_eq!(found.proxies, 2);
        assert_eq!(found.rejected.len(), usize::from(name == "refused"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_is_told_by_name_and_a_proxy_that_comes_or_goes_touches_everything() {
    let peers = peers();
    peers.report("b", snapshot(&["n1"], &[("t", entry("1", &["n1"]))]), true);
    assert_eq!(peers.take_touched(), None);
    peers.report("b", snapshot(&["n1"], &[("t", entry("1", &[]))]), false);
    assert_eq!(peers.take_touched(), Some([(TABLE, "t".to_owned())].into()));
    assert!(standing(&peers, "t", version("1")).is_acknowledged());
    assert_eq!(peers.take_touched(), Some(HashSet::new()));
    peers.report("b", snapshot(&["n1"], &[("t", Entry::default())]), false);
    assert!(standing(&peers, "t", None).is_acknowledged());
    peers.report("b", snapshot(&["n1", "n2"], &[]), false);
    assert_eq!(peers.take_touched(), None);
}

#[tokio::test(start_paused = true)]
async fn the_proxies_of_a_replica_that_is_lost_have_a_moment_to_come_back_elsewhere() {
    let settle = Duration::from_secs(2);
    for how in ["refuses", "gone", "another pod"] {
        let peers = peers();
        peers.report("b", snapshot(&["n1"], &[]), true);
        match how {
            "refuses" => peers.silent("b", true),
            "gone" => peers.observe(&slice(&[("a", "10.0.0.1", true)])),
            _ => {
                peers.observe(&slice(&[("b", "10.0.0.3", true)]));
                peers.report("b", snapshot(&[], &[]), true);
            }
        }
        assert!(peers.is_unsettled(settle), "{how}");
        assert_eq!(
            standing(&peers, "t", version("1")),
            Standing::default(),
            "{how}"
        );
        tokio::time::advance(settle).await;
        assert!(!peers.is_unsettled(settle), "{how}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_is_silent_counts_until_kubernetes_says_too_that_it_does_not_serve() {
    let peers = peers();
    peers.report("b", snapshot(&["n1"], &[]), true);
    peers.silent("b", false);
    tokio::time::advance(FORGET).await;
    peers.silent("b", false);
    assert_eq!(
        standing(&peers, "t", None).unknown,
        set(&["b"]),
        "it serves others, perhaps"
    );
    assert!(peers.is_unsettled(Duration::ZERO));
    peers.observe(&slice(&[("a", "10.0.0.1", true), ("b", "10.0.0.2", false)]));
    assert!(standing(&peers, "t", None).is_acknowledged());
    assert!(!peers.is_unsettled(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn other_services_and_this_replica_itself_are_no_peers() {
    let peers = peers();
    let Event::Applied(Object { mut key, .. }) = slice(&[]) else {
        unreachable!()
    };
    key.name = "other".into();
    let value = Arc::new(json!({
        "metadata": { "labels": { "kubernetes.io/service-name": "shop" } },
        "endpoints": [{ "addresses": ["10.0.0.9"], "targetRef": { "name": "x" } }],
    }));
    peers.observe(&Event::Applied(Object {
        key: key.clone(),
        value,
    }));
    peers.observe(&Event::Deleted(key));
    assert_eq!(peers.members().into_keys().collect::<Vec<_>>(), ["b"]);
}

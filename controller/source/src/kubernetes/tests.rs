use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;
use weft_api::names::CONTROLLER_NAME;

use super::{fake::FakeApi, *};
use crate::Writer;

const GATEWAY: &str = "gateway.networking.k8s.io";

fn object(api: &str, kind: &str, namespace: &str, name: &str) -> Value {
    let mut value = json!({ "apiVersion": api, "kind": kind, "metadata": { "name": name } });
    if !namespace.is_empty() {
        value["metadata"]["namespace"] = namespace.into();
    }
    value
}

fn pod(name: &str, node: &str) -> Value {
    let mut pod = object("v1", "Pod", "ns", name);
    pod["spec"] = json!({ "nodeName": node });
    pod
}

fn route(name: &str) -> Value {
    object(&format!("{GATEWAY}/v1"), "HTTPRoute", "ns", name)
}

fn define_routes(api: &FakeApi) {
    api.define(GATEWAY, "v1", "HTTPRoute", "httproutes");
}

/// A watch, and what it tells as words: `+Pod ns/a`, `-Pod ns/a`, `synced`.
struct Watch(mpsc::Receiver<Event>);

impl Watch {
    async fn start(api: &Arc<FakeApi>, scope: Scope) -> Self {
        let source = KubernetesSource::new(api.client(), scope);
        Self(source.watch().await.unwrap())
    }

    async fn event(&mut self) -> Event {
        let event = timeout(Duration::from_secs(300), self.0.recv()).await;
        event
            .expect("an event in time")
            .expect("a watch that goes on")
    }

    async fn next(&mut self) -> String {
        match self.event().await {
            Event::Applied(object) => format!("+{}", object.key),
            Event::Deleted(key) => format!("-{key}"),
            Event::Synced => "synced".to_owned(),
            Event::Invalid { origin, error } => format!("!{origin}: {error}"),
            Event::Valid { origin } => format!("valid {origin}"),
        }
    }

    async fn until_synced(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        loop {
            match self.next().await {
                word if word == "synced" => break,
                word => told.push(word),
            }
        }
        told.sort();
        told
    }
}

fn key(kind: &str, group: &str, name: &str) -> ObjectKey {
    ObjectKey {
        group: group.into(),
        kind: kind.into(),
        namespace: "ns".into(),
        name: name.into(),
    }
}

#[tokio::test(start_paused = true)]
async fn what_there_is_is_told_once_then_what_changes_streamed_or_in_pages() {
    for streaming in [false, true] {
        let api = FakeApi::new();
        define_routes(&api);
        if streaming {
            api.stream_lists();
        }
        for index in 0..1200 {
            api.put(pod(&format!("p{index:04}"), "n1"));
        }
        api.put(object("v1", "Namespace", "", "ns"));
        api.put(route("r"));
        let mut watch = Watch::start(&api, Scope::Mesh).await;
        let told = watch.until_synced().await;
        assert_eq!(told.len(), 1202, "streaming: {streaming}");
        assert!(told.contains(&"+Namespace ns".to_owned()));
        assert!(told.contains(&"+HTTPRoute ns/r".to_owned()));
        let pages = api.count("GET /api/v1/pods?&limit=500");
        assert_eq!(
            pages,
            if streaming { 0 } else { 3 },
            "streaming: {streaming}"
        );

        let mut changed = pod("p0001", "n1");
        changed["spec"]["x"] = 1.into();
        api.put(changed);
        match watch.event().await {
            Event::Applied(object) => {
                assert_eq!(object.value["spec"]["x"], 1);
                assert_eq!(object.value["kind"], "Pod");
                assert_eq!(object.value["apiVersion"], "v1");
                assert!(object.value["metadata"].get("managedFields").is_none());
            }
            other => panic!("{other:?}"),
        }
        api.delete(&pod("p0002", "n1"));
        assert_eq!(watch.next().await, "-Pod ns/p0002");
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_after_an_expired_watch_tells_what_changed_and_what_vanished_and_nothing_else() {
    for streaming in [false, true] {
        let api = FakeApi::new();
        if streaming {
            api.stream_lists();
        }
        for name in ["a", "b", "c"] {
            api.put(pod(name, "n1"));
        }
        let mut watch = Watch::start(&api, Scope::Node("n1".into())).await;
        assert_eq!(watch.until_synced().await.len(), 3);
        // While nobody can hear it: the next attempts to watch fail.
        api.fail("watch=true", 500);
        api.fail("watch=true", 500);
        api.compact();
        api.delete(&pod("a", "n1"));
        let mut changed = pod("b", "n1");
        changed["spec"]["x"] = 1.into();
        api.put(changed);
        api.compact();
        let mut told = [watch.next().await, watch.next().await];
        told.sort();
        assert_eq!(told, ["+Pod ns/b", "-Pod ns/a"], "streaming: {streaming}");
        api.put(pod("d", "n1"));
        assert_eq!(watch.next().await, "+Pod ns/d", "streaming: {streaming}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_hears_of_namespaces_and_its_own_pods_alone() {
    let api = FakeApi::new();
    define_routes(&api);
    api.put(route("r"));
    api.put(object("v1", "Namespace", "", "ns"));
    api.put(pod("mine", "n1"));
    api.put(pod("other", "n2"));
    let mut watch = Watch::start(&api, Scope::Node("n1".into())).await;
    let told = watch.until_synced().await;
    assert_eq!(told, ["+Namespace ns", "+Pod ns/mine"]);
    api.put(pod("other2", "n2"));
    api.put(pod("mine2", "n1"));
    assert_eq!(watch.next().await, "+Pod ns/mine2");
    assert_eq!(api.count(GATEWAY), 0, "nothing is asked of the Gateway API");
}

#[tokio::test(start_paused = true)]
async fn kinds_come_and_go_with_their_definitions() {
    let api = FakeApi::new();
    let mut watch = Watch::start(&api, Scope::Mesh).await;
    assert_eq!(watch.until_synced().await, [""; 0]);

    define_routes(&api);
    api.define(GATEWAY, "v1alpha2", "TLSRoute", "tlsroutes");
    api.put(route("r"));
    api.put(object(
        &format!("{GATEWAY}/v1alpha2"),
        "TLSRoute",
        "ns",
        "t",
    ));
    let mut told = [watch.next().await, watch.next().await];
    told.sort();
    assert_eq!(told, ["+HTTPRoute ns/r", "+TLSRoute ns/t"]);

    // A moment without discovery takes nothing away.
    api.fail(&format!("GET /apis/{GATEWAY}/v1"), 404);
    api.undefine(GATEWAY, "tlsroutes");
    assert_eq!(watch.next().await, "-TLSRoute ns/t");
    api.put(route("r2"));
    assert_eq!(watch.next().await, "+HTTPRoute ns/r2");

    // It comes back, in a version that is better.
    api.define(GATEWAY, "v1", "TLSRoute", "tlsroutes");
    api.put(object(&format!("{GATEWAY}/v1"), "TLSRoute", "ns", "t"));
    match watch.event().await {
        Event::Applied(object) => {
            assert_eq!(object.key.kind, "TLSRoute");
            assert_eq!(object.value["apiVersion"], format!("{GATEWAY}/v1"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_read_fails_alone() {
    let api = FakeApi::new();
    api.put(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": "ns" } }));
    let mut odd = pod("odd", "n1");
    odd["metadata"]["labels"] = json!("no map");
    odd["spec"]["containers"] = json!(7);
    api.put(odd);
    api.put(pod("good", "n1"));
    let mut watch = Watch::start(&api, Scope::Mesh).await;
    assert_eq!(
        watch.until_synced().await,
        [
            "!pods of the API: it has no metadata.name",
            "+Pod ns/good",
            "+Pod ns/odd"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_server_refuses_is_tried_again_and_synced_waits_for_it() {
    let api = FakeApi::new();
    for _ in 0..4 {
        api.fail("GET /api/v1/pods", 403);
    }
    api.fail("GET /apis", 503);
    api.fail(&format!("GET /apis/{GATEWAY}/v1"), 503);
    define_routes(&api);
    api.put(pod("p", "n1"));
    api.put(route("r"));
    let mut watch = Watch::start(&api, Scope::Mesh).await;
    let told = watch.until_synced().await;
    assert_eq!(told, ["+HTTPRoute ns/r", "+Pod ns/p"]);
}

#[tokio::test]
async fn one_object_is_read_if_it_is_there() {
    let api = FakeApi::new();
    api.put(pod("p", "n1"));
    let source = KubernetesSource::new(api.client(), Scope::Node("n1".into()));
    let found = source.get(&key("Pod", "", "p")).await.unwrap().unwrap();
    assert_eq!(found.key, key("Pod", "", "p"));
    assert_eq!(found.value["spec"]["nodeName"], "n1");
    assert_eq!(source.get(&key("Pod", "", "q")).await.unwrap(), None);
    api.fail("GET /api/v1/namespaces/ns/pods/p", 500);
    let error = source
        .get(&key("Pod", "", "p"))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("read Pod ns/p: "), "{error}");
}

fn entry(controller: &str, note: &str) -> Value {
    json!({
        "controllerName": controller,
        "parentRef": { "name": "s" },
        "conditions": [{ "type": "Accepted", "message": note }],
    })
}

fn parents(api: &FakeApi, name: &str) -> Value {
    api.object("httproutes", "ns", name).unwrap()["status"]["parents"].clone()
}

#[tokio::test(start_paused = true)]
async fn other_controllers_entries_outlive_ours_even_if_they_are_written_at_the_same_time() {
    let api = FakeApi::new();
    define_routes(&api);
    let mut first = route("r");
    first["status"] = json!({ "parents": [entry("other", "1"), entry(CONTROLLER_NAME, "old")] });
    api.put(first.clone());
    let source = KubernetesSource::new(api.client(), Scope::Mesh);
    let mut watch = Watch(source.watch().await.unwrap());
    watch.until_synced().await;
    let writer = source.writer();
    let key = key("HTTPRoute", GATEWAY, "r");

    let ours = |note: &str| vec![entry(CONTROLLER_NAME, note)];
    writer.write_route_parents(&key, ours("new")).await.unwrap();
    let expected = json!([entry("other", "1"), entry(CONTROLLER_NAME, "new")]);
    assert_eq!(parents(&api, "r"), expected);
    assert_eq!(
        api.count("GET /apis/gateway.networking.k8s.io/v1/namespaces/ns/httproutes/r"),
        0
    );

    // The watch has not told of this yet when we write.
    first["status"]["parents"] = json!([entry("other", "2"), entry("third", "1")]);
    api.put(first);
    writer
        .write_route_parents(&key, ours("newer"))
        .await
        .unwrap();
    let expected = json!([
        entry("other", "2"),
        entry("third", "1"),
        entry(CONTROLLER_NAME, "newer")
    ]);
    assert_eq!(parents(&api, "r"), expected);

    writer.write_route_parents(&key, Vec::new()).await.unwrap();
    assert_eq!(
        parents(&api, "r"),
        json!([entry("other", "2"), entry("third", "1")])
    );
}

#[tokio::test]
async fn a_route_that_is_gone_is_said_to_be_so() {
    let api = FakeApi::new();
    define_routes(&api);
    let writer = KubernetesSource::new(api.client(), Scope::Mesh).writer();
    let key = key("HTTPRoute", GATEWAY, "r");
    for result in [
        writer.write_route_parents(&key, Vec::new()).await,
        writer.write_condition(&key, json!({ "type": "X" })).await,
        writer.annotate(&key, BTreeMap::new()).await,
    ] {
        assert!(
            matches!(result, Err(SourceError::NotFound(_))),
            "{result:?}"
        );
    }
}

#[tokio::test]
async fn conditions_and_annotations_of_others_stay() {
    let api = FakeApi::new();
    let mut p = pod("p", "n1");
    p["metadata"]["annotations"] = json!({ "theirs": "1", "ours": "old", "gone": "x" });
    p["status"] =
        json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] });
    api.put(p);
    let writer = KubernetesSource::new(api.client(), Scope::Node("n1".into())).writer();
    let key = key("Pod", "", "p");
    for status in ["True", "False"] {
        let condition = json!({ "type": "weft.dev/Captured", "status": status });
        writer.write_condition(&key, condition).await.unwrap();
    }
    let annotations = BTreeMap::from([
        ("ours".to_owned(), Some("new".to_owned())),
        ("gone".to_owned(), None),
    ]);
    writer.annotate(&key, annotations).await.unwrap();
    let now = api.object("pods", "ns", "p").unwrap();
    assert_eq!(
        now["metadata"]["annotations"],
        json!({ "theirs": "1", "ours": "new" })
    );
    assert_eq!(
        now["status"],
        json!({ "phase": "Running", "conditions": [
            { "type": "Ready", "status": "True" },
            { "type": "weft.dev/Captured", "status": "False" },
        ]})
    );
}

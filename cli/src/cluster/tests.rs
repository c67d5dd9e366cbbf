//! Commands against an API server in memory, which knows objects by their paths, applies, merges and
//! deletes them, and tells the order of what was asked of it.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::{Client, client::Body};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{
    api::{Cluster, path},
    install::install,
    label,
    manifests::{self, Given, MANAGED_BY, MANAGER},
    object::{name, text},
    uninstall::{How, uninstall},
};

#[derive(Default)]
struct Server {
    objects: BTreeMap<String, Value>,
    version: u64,
    /// `METHOD path` of what changed something.
    writes: Vec<String>,
    /// Plays the agents: the order to leave is carried out at once.
    agents_leave: bool,
}

impl Server {
    fn put(&mut self, path: &str, mut object: Value) -> Value {
        // Only a change is another version.
        let old = self.objects.get(path);
        let same = old.is_some_and(|old| {
            let mut old = old.clone();
            old["metadata"]["resourceVersion"] = object["metadata"]["resourceVersion"].clone();
            old == object
        });
        if same {
            return self.objects[path].clone();
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    fn answer(&mut self, method: &Method, uri: &http::Uri, body: &[u8]) -> (u16, Value) {
        let path = uri.path();
        if method != Method::GET {
            self.writes.push(format!("{method} {path}"));
        }
        let missing = || {
            (
                404,
                json!({"kind": "Status", "status": "Failure", "code": 404, "message": "not found", "reason": "NotFound"}),
            )
        };
        let here = self.objects.get(path).cloned();
        match (method, here) {
            (&Method::PATCH, here) => {
                let patch: Value = serde_json::from_slice(body).expect("a patch is JSON");
                let mut object = here.unwrap_or_else(|| json!({}));
                merge(&mut object, &patch);
                if self.agents_leave
                    && patch.pointer("/metadata/annotations/weft.dev~1uninstall")
                        == Some(&"true".into())
                {
                    for (path, object) in &mut self.objects {
                        if path.contains("/pods/weft-cni-") {
                            merge(
                                object,
                                &json!({"metadata": {"annotations": {"weft.dev/uninstalled": "true"}}}),
                            );
                        }
                    }
                }
                (200, self.put(path, object))
            }
            (&Method::DELETE, Some(object)) => {
                self.objects.remove(path);
                (200, object)
            }
            (_, Some(object)) => (200, object),
            (&Method::GET, None) if is_list(path) => {
                let items: Vec<_> = self
                    .objects
                    .iter()
                    .filter(|(at, object)| in_list(at, path) && selected(object, uri.query()))
                    .map(|(_, object)| object)
                    .collect();
                (200, json!({"items": items}))
            }
            _ => missing(),
        }
    }
}

fn is_list(path: &str) -> bool {
    path.ends_with('s')
        && !path.contains("/daemonsets/")
        && !path.contains("/namespaces/weft-system/leases/")
}

/// Whether an object's path is in a list of one namespace, or of all.
fn in_list(at: &str, list: &str) -> bool {
    let (folder, _) = at.rsplit_once('/').unwrap_or(("", at));
    let mut parts: Vec<_> = folder.split('/').collect();
    if folder == list {
        return true;
    }
    if let Some(index) = parts.iter().position(|part| *part == "namespaces")
        && parts.len() > index + 2
    {
        parts.drain(index..index + 2);
    }
    parts.join("/") == list
}

fn selected(object: &Value, query: Option<&str>) -> bool {
    let query = query.unwrap_or("");
    let selector = query
        .split('&')
        .find_map(|part| part.strip_prefix("labelSelector="));
    let selector = selector
        .unwrap_or("")
        .replace("%2F", "/")
        .replace("%3D", "=")
        .replace("%2C", ",");
    selector
        .split(',')
        .filter(|part| !part.is_empty())
        .all(|part| {
            let (key, value) = part.split_once('=').expect("an equality");
            super::object::label(object, key) == Some(value)
        })
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in fields {
        if value.is_null() {
            target.as_object_mut().expect("an object").remove(key);
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}

#[derive(Clone, Default)]
struct Api(Arc<Mutex<Server>>);

impl Api {
    fn cluster(&self) -> Cluster {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.expect("in memory").to_bytes();
                let (status, answer) = api.0.lock().answer(&head.method, &head.uri, &body);
                let answer = serde_json::to_vec(&answer).expect("JSON");
                let response = Response::builder().status(status).body(Body::from(answer));
                Ok::<_, Infallible>(response.expect("a response"))
            }
        });
        Cluster::new(Client::new(service, "default"))
    }

    fn put(&self, object: Value) {
        self.0.lock().put(&path(&object), object);
    }

    fn get(&self, path: &str) -> Option<Value> {
        self.0.lock().objects.get(path).cloned()
    }

    fn has(&self, kind: &str) -> bool {
        let server = self.0.lock();
        server
            .objects
            .values()
            .any(|object| text(object, "/kind") == kind)
    }

    fn writes(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().writes)
    }
}

const DAEMONS: &str = "/apis/apps/v1/namespaces/weft-system/daemonsets/weft-cni";

fn given(values: &[(&str, &str)]) -> Given {
    values
        .iter()
        .map(|(name, value)| ((*name).into(), (*value).into()))
        .collect()
}

fn how(force: bool, purge: bool) -> How {
    How {
        timeout: Duration::from_secs(1),
        purge,
        force,
    }
}

#[tokio::test]
async fn installing_applies_every_object_and_the_namespace_first() {
    let api = Api::default();
    let objects = install(&api.cluster(), Given::new())
        .await
        .expect("installed");
    let expected: Vec<_> = objects
        .iter()
        .map(|object| format!("PATCH {}", path(object)))
        .collect();
    assert_eq!(api.writes(), expected);
    assert_eq!(expected[0], "PATCH /api/v1/namespaces/weft-system");
    assert!(expected.contains(&format!("PATCH {DAEMONS}")));
}

#[tokio::test]
async fn installing_again_keeps_what_was_given_but_the_tag_and_deletes_what_is_no_more() {
    let api = Api::default();
    let cluster = api.cluster();
    let first = given(&[
        ("trustDomain", "a.b"),
        ("image.tag", "v9"),
        ("networkPolicies.enabled", "true"),
    ]);
    install(&cluster, first).await.expect("installed");
    assert!(api.has("NetworkPolicy"));
    // Somebody else's is none of our business.
    api.put(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine", "namespace": "weft-system", "labels": {"app.kubernetes.io/part-of": "weft"}}}));

    install(&cluster, given(&[("networkPolicies.enabled", "false")]))
        .await
        .expect("installed");
    let daemons = api.get(DAEMONS).expect("it is there");
    let image = text(&daemons, "/spec/template/spec/containers/0/image");
    assert_eq!(
        image,
        concat!("weft.dev/weft-cni:", env!("CARGO_PKG_VERSION"))
    );
    let controller = api.get("/apis/apps/v1/namespaces/weft-system/deployments/weft-controller");
    assert!(
        controller
            .expect("it is there")
            .to_string()
            .contains("--trust-domain=a.b")
    );
    assert!(!api.has("NetworkPolicy"));
    assert!(
        api.get("/api/v1/namespaces/weft-system/configmaps/mine")
            .is_some()
    );
}

#[tokio::test]
async fn what_helm_installed_is_left_to_helm() {
    let api = Api::default();
    api.put(json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "weft-cni", "namespace": "weft-system", "labels": {(MANAGED_BY): "Helm"}}}));
    let error = install(&api.cluster(), Given::new())
        .await
        .expect_err("refused");
    assert!(error.to_string().contains("installed by Helm"), "{error}");
    let error = uninstall(&api.cluster(), &how(true, true))
        .await
        .expect_err("refused");
    assert!(error.to_string().contains("helm uninstall"), "{error}");
    assert_eq!(api.writes(), Vec::<String>::new());
}

/// An installed mesh with an agent on each of two nodes.
async fn installed(agents_leave: bool) -> Api {
    let api = Api::default();
    install(&api.cluster(), Given::new())
        .await
        .expect("installed");
    for node in ["a", "b"] {
        api.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}));
        api.put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("weft-cni-{node}"), "namespace": "weft-system", "labels": {"app.kubernetes.io/name": "weft-cni"}}, "spec": {"nodeName": node}}));
    }
    api.0.lock().agents_leave = agents_leave;
    api.writes();
    api
}

#[tokio::test]
async fn uninstalling_orders_the_agents_to_leave_before_anything_is_deleted() {
    let api = installed(true).await;
    uninstall(&api.cluster(), &how(false, false))
        .await
        .expect("uninstalled");
    let writes = api.writes();
    assert_eq!(writes[0], format!("PATCH {DAEMONS}"));
    assert_eq!(writes[1], format!("DELETE {DAEMONS}"));
    let all = manifests::objects(&Given::new()).expect("good values");
    for object in &all[1..] {
        assert!(api.get(&path(object)).is_none(), "{}", name(object));
    }
    assert!(api.get("/api/v1/namespaces/weft-system").is_some());

    uninstall(&api.cluster(), &how(false, true))
        .await
        .expect("purged");
    assert!(api.get("/api/v1/namespaces/weft-system").is_none());
}

#[tokio::test]
async fn nothing_is_deleted_while_a_node_has_not_left_unless_it_is_forced() {
    let api = installed(false).await;
    let error = uninstall(&api.cluster(), &how(false, false))
        .await
        .expect_err("refused");
    assert!(
        error
            .to_string()
            .contains("nodes a, b have not let their pods leave"),
        "{error}"
    );
    assert_eq!(api.writes(), [format!("PATCH {DAEMONS}")]);

    uninstall(&api.cluster(), &how(true, false))
        .await
        .expect("forced");
    assert!(api.get(DAEMONS).is_none());
}

#[tokio::test]
async fn a_namespace_keeps_its_other_labels_and_one_that_is_not_there_is_named() {
    let api = Api::default();
    api.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "x"}}}));
    let labels = json!({"weft.dev/mesh": "enabled"});
    label::change(&api.cluster(), "shop", &labels)
        .await
        .expect("changed");
    let shop = api.get("/api/v1/namespaces/shop").expect("it is there");
    assert_eq!(
        shop["metadata"]["labels"],
        json!({"team": "x", "weft.dev/mesh": "enabled"})
    );
    let error = label::change(&api.cluster(), "shp", &labels)
        .await
        .expect_err("refused");
    assert!(
        error.to_string().contains("namespace shp does not exist"),
        "{error}"
    );
}

#[test]
fn every_object_of_ours_can_be_found_again_by_its_labels() {
    for object in manifests::objects(&Given::new()).expect("good values") {
        let label = |key| super::object::label(&object, key);
        assert_eq!(label(MANAGED_BY), Some(MANAGER), "{}", name(&object));
        assert_eq!(
            label("app.kubernetes.io/part-of"),
            Some("weft"),
            "{}",
            name(&object)
        );
    }
}

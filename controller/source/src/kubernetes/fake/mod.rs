//! An API server in memory, for tests: lists in pages or streams, watches, versions, patches, and
//! faults on demand.
//!
//! It knows as much of the real one's rules as weft relies on: versions rise with every change; a
//! write under an old version, and a second creation, are conflicts (409); a watch from before what
//! the server remembers is gone (410); server-side apply replaces `parents` and merges `conditions`.

mod patch;
mod store;

use std::{collections::BTreeMap, convert::Infallible, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::{Client, client::Body};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use store::{Place, Store};

/// Answers a creation itself: the object in, the answer out.
type Hook = Box<dyn Fn(&Value) -> Value + Send + Sync>;

/// The server.
pub struct FakeApi {
    store: Mutex<Store>,
    /// Counts changes, so that watches wake up.
    changed: watch::Sender<u64>,
    settings: Mutex<Settings>,
}

#[derive(Default)]
struct Settings {
    /// Whether lists can be streamed.
    streaming: bool,
    /// Faults to come: part of `METHOD path?query`, the status.
    faults: Vec<(String, u16)>,
    /// Every request, as `METHOD path?query`.
    requests: Vec<String>,
    /// By plural.
    hooks: BTreeMap<String, Hook>,
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl FakeApi {
    /// A server without objects that serves the kinds which Kubernetes brings.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            store: Mutex::default(),
            changed: watch::Sender::new(0),
            settings: Mutex::default(),
        })
    }

    /// A client of this server.
    pub fn client(self: &Arc<Self>) -> Client {
        let server = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = Arc::clone(&server);
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// Lets lists be streamed.
    pub fn stream_lists(&self) {
        self.settings.lock().streaming = true;
    }

    /// Serves a kind of a CustomResourceDefinition.
    pub fn define(&self, group: &str, version: &str, kind: &str, plural: &str) {
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("{plural}.{group}") },
        });
        {
            let mut store = self.store.lock();
            store.define(group, version, kind, plural);
            store.put(
                &Place::of(&definition, "customresourcedefinitions"),
                definition,
            );
        }
        self.notify();
    }

    /// Serves a kind no more: its objects are gone, its watches end.
    pub fn undefine(&self, group: &str, plural: &str) {
        self.store.lock().undefine(group, plural);
        self.notify();
    }

    /// Creates or replaces an object, whoever owns it.
    pub fn put(&self, object: Value) {
        let mut store = self.store.lock();
        let plural = store.plural(&object);
        store.put(&Place::of(&object, &plural), object);
        drop(store);
        self.notify();
    }

    /// Removes an object.
    pub fn delete(&self, object: &Value) {
        let mut store = self.store.lock();
        let plural = store.plural(object);
        store.delete(&Place::of(object, &plural));
        drop(store);
        self.notify();
    }

    /// An object as it is, by its kind's plural, namespace and name.
    pub fn object(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.store.lock().find(plural, namespace, name)
    }

    /// Forgets changes so far: watches from before are told that they have expired, open ones end.
    pub fn compact(&self) {
        self.store.lock().compact();
        self.notify();
    }

    /// Lets the next request whose `METHOD path?query` contains `part` fail.
    pub fn fail(&self, part: &str, status: u16) {
        self.settings.lock().faults.push((part.to_owned(), status));
    }

    /// Answers creations of a kind with what `hook` says.
    pub fn on_create(&self, plural: &str, hook: impl Fn(&Value) -> Value + Send + Sync + 'static) {
        let hooks = &mut self.settings.lock().hooks;
        hooks.insert(plural.to_owned(), Box::new(hook));
    }

    /// How many requests there were whose `METHOD path?query` contains `part`.
    pub fn count(&self, part: &str) -> usize {
        let settings = self.settings.lock();
        settings
            .requests
            .iter()
            .filter(|r| r.contains(part))
            .count()
    }

    fn notify(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    async fn answer(self: Arc<Self>, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let body = body
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        let target = parts
            .uri
            .path_and_query()
            .map_or("/", |target| target.as_str());
        let line = format!("{} {target}", parts.method);
        if let Some(code) = self.settings.lock().fault(line) {
            return status(code, "a fault that the test asked for");
        }
        let query: BTreeMap<String, String> = parts
            .uri
            .query()
            .into_iter()
            .flat_map(|query| query.split('&'))
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.replace("%3D", "=")))
            .collect();
        let segments: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
        if segments == ["apis"] {
            return json_answer(200, &self.store.lock().groups());
        }
        let (group, version, rest) = match *segments.as_slice() {
            ["api", version, ref rest @ ..] => ("", version, rest),
            ["apis", group, version, ref rest @ ..] => (group, version, rest),
            _ => return status(404, "no such path"),
        };
        if !self.store.lock().serves(group, version) {
            return status(404, "no such version");
        }
        if rest.is_empty() {
            return json_answer(200, &self.store.lock().resources(group, version));
        }
        let Some((place, sub)) = Place::parse(group, version, rest) else {
            return status(404, "no such path");
        };
        if !self.store.lock().has(&place) {
            return status(404, "no such kind");
        }
        let result = match (parts.method, place.name.is_empty()) {
            (Method::GET, true) if query.get("watch").is_some_and(|watch| watch == "true") => {
                return self.watch(place, &query);
            }
            (Method::GET, true) => self.store.lock().list(&place, &query),
            (Method::GET, false) => self.store.lock().get(&place),
            (Method::POST, true) => self.create(place, &body),
            (Method::PUT, false) => self.store.lock().replace(&place, &body),
            (Method::PATCH, false) => {
                let kind = parts.headers.get("content-type");
                let apply = kind.is_some_and(|kind| kind.as_bytes().ends_with(b"apply-patch+yaml"));
                self.store.lock().patch(&place, sub, apply, &body)
            }
            _ => return status(405, "not served"),
        };
        self.notify();
        match result {
            Ok(value) => json_answer(200, &value),
            Err((code, message)) => status(code, &message),
        }
    }

    fn create(&self, place: Place, body: &[u8]) -> store::Result {
        let object = store::read(body)?;
        if let Some(hook) = self.settings.lock().hooks.get(&place.plural) {
            return Ok(hook(&object));
        }
        self.store.lock().create(place, object)
    }

    fn watch(self: Arc<Self>, place: Place, query: &BTreeMap<String, String>) -> Answer {
        let from = query.get("resourceVersion").map_or("", String::as_str);
        let initial = query.contains_key("sendInitialEvents");
        if initial && !self.settings.lock().streaming {
            return status(422, "sendInitialEvents is forbidden");
        }
        let store = self.store.lock();
        let mut first = Vec::new();
        let version = if initial {
            first = store.initial_events(&place, query);
            store.version()
        } else {
            from.parse().unwrap_or_default()
        };
        drop(store);
        let fields = query.get("fieldSelector").cloned();
        let changes = self.changed.subscribe();
        let later = stream::unfold(Some((version, changes)), move |state| {
            let (server, place, fields) = (Arc::clone(&self), place.clone(), fields.clone());
            async move {
                let (version, mut changes) = state?;
                loop {
                    changes.borrow_and_update();
                    let since = server
                        .store
                        .lock()
                        .since(&place, version, fields.as_deref());
                    match since {
                        Ok((_, lines)) if lines.is_empty() => changes.changed().await.ok()?,
                        Ok((now, lines)) => {
                            return Some((stream::iter(lines), Some((now, changes))));
                        }
                        Err(line) => return Some((stream::iter(vec![line]), None)),
                    }
                }
            }
        });
        let lines = stream::iter(first).chain(later.flatten());
        let frames = lines.map(|line| Ok(Frame::data(Bytes::from(format!("{line}\n")))));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }
}

impl Settings {
    fn fault(&mut self, line: String) -> Option<u16> {
        let fault = self.faults.iter().position(|(part, _)| line.contains(part));
        self.requests.push(line);
        fault.map(|index| self.faults.remove(index).1)
    }
}

fn status(code: u16, message: &str) -> Answer {
    let reason = match code {
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        _ => "Failure",
    };
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": code, "reason": reason, "message": message,
    });
    json_answer(code, &body)
}

fn json_answer(code: u16, value: &Value) -> Answer {
    let body = Full::new(Bytes::from(value.to_string())).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = code.try_into().expect("tests name real status codes");
    answer
}

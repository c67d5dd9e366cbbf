//! Answers commands, and applies the followed files. In: requests. Out: changes of the API and
//! answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use weft_source::ObjectKey;

use super::{
    api::Outcome,
    away,
    behind::{Known, behind},
    controllers, kinds,
    kubelets::Kubelets,
    lab::Lab,
    merge::object_at,
    parts::{self, Parts},
    protocol::{Answer, Applied, Request},
    reboot, service_ip,
    view::{self, LabStatus},
};
use crate::manifests::{self, Document, Invalid, Text};

/// Order in which a set of objects is applied: what others refer to comes first.
const ORDER: [&str; 4] = ["Namespace", "ServiceAccount", "Service", "EndpointSlice"];

/// Answers for one lab.
pub(crate) struct Handler {
    lab: Arc<Lab>,
    parts: Arc<Parts>,
    kubelets: Arc<Kubelets>,
    files: Vec<PathBuf>,
    started: AtomicBool,
    followed: Mutex<Followed>,
}

#[derive(Default)]
struct Followed {
    /// What the files held when they were read last, and which file it was.
    held: BTreeMap<ObjectKey, (String, Value)>,
    invalid: Vec<Invalid>,
}

impl Handler {
    pub(crate) fn new(
        lab: Arc<Lab>,
        parts: Arc<Parts>,
        kubelets: Arc<Kubelets>,
        files: Vec<PathBuf>,
    ) -> Self {
        Self {
            lab,
            parts,
            kubelets,
            files,
            started: AtomicBool::new(false),
            followed: Mutex::default(),
        }
    }

    /// The lab's controllers run from here on.
    pub(crate) fn started(&self) {
        self.started.store(true, Ordering::Release);
    }

    /// Answers a command.
    pub(crate) async fn handle(&self, request: Request) -> Answer {
        match request {
            Request::Apply(texts) => Answer::Applied(self.apply(&texts)),
            Request::Delete(texts) => Answer::Applied(self.delete(&texts)),
            Request::Status => Answer::Status(Box::new(self.status().await)),
            Request::Get {
                kind,
                namespace,
                name,
            } => self.get(&kind, namespace.as_deref(), name.as_deref()),
            Request::DeleteObject {
                kind,
                namespace,
                name,
            } => self.with_object(&kind, &namespace, &name, |key| {
                controllers::delete(&self.lab.api, key).map(|_| Outcome::Deleted)
            }),
            Request::Label {
                kind,
                namespace,
                name,
                labels,
            } => self.with_object(&kind, &namespace, &name, |key| {
                let before = self.lab.api.get(key);
                self.lab.api.update(key, |object| {
                    let own = object_at(object, &["metadata", "labels"]);
                    for (label, value) in labels {
                        match value {
                            Some(value) => own.insert(label, value.into()),
                            None => own.remove(&label),
                        };
                    }
                })?;
                let same = before == self.lab.api.get(key);
                Ok(if same {
                    Outcome::Unchanged
                } else {
                    Outcome::Configured
                })
            }),
            Request::Stop { part, kill } => done(self.parts.stop(&part, kill).await),
            Request::Start { part, wait } => done(self.parts.start(&part, wait).await),
            Request::Kill { part } => done(self.parts.kill(&part).await),
            Request::Upgrade { part, wait } => done(self.parts.upgrade(&part, wait).await),
            Request::Reboot { node, away, seed } => {
                let order = reboot::Order {
                    away: Duration::from_millis(away),
                    seed,
                };
                done(reboot::run(&self.lab, &self.parts, &self.kubelets, &node, order).await)
            }
        }
    }

    fn with_object(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        work: impl FnOnce(&ObjectKey) -> std::io::Result<Outcome>,
    ) -> Answer {
        let Some((group, kind)) = kinds::resolve(kind, &self.lab.api.keys()) else {
            return Answer::Error(format!("there is no kind {kind:?} in the lab"));
        };
        let namespace = if weft_source::defaults::is_cluster_scoped(&kind) {
            ""
        } else {
            namespace
        };
        let key = super::api::key(&group, &kind, namespace, name);
        if self.lab.api.get(&key).is_none() {
            return Answer::Error(format!("{key} not found"));
        }
        match work(&key) {
            Ok(outcome) => Answer::Applied(Applied {
                done: vec![(key, outcome)],
                errors: Vec::new(),
            }),
            Err(error) => Answer::Error(format!("{key}: {error}")),
        }
    }

    fn apply(&self, texts: &[Text]) -> Applied {
        let (documents, mut applied) = parsed(texts);
        for document in documents {
            match self.apply_one(&document) {
                Ok(outcome) => applied.done.push((document.key, outcome)),
                Err(error) => applied.errors.push(error),
            }
        }
        applied
    }

    fn apply_one(&self, document: &Document) -> Result<Outcome, String> {
        let say = |why: String| format!("{}: {}: {why}", document.origin, document.key);
        self.check_cluster_ip(document).map_err(&say)?;
        self.lab
            .api
            .apply(&document.key, &document.value)
            .map_err(|error| say(error.to_string()))
    }

    /// What the API server would refuse of families and addresses that the user chose.
    fn check_cluster_ip(&self, document: &Document) -> Result<(), String> {
        let key = &document.key;
        if key.kind != "Service" || !key.group.is_empty() {
            return Ok(());
        }
        let spec = &document.value["spec"];
        service_ip::check(spec, &self.lab.plan)?;
        let taken = self.lab.api.list("", "Service");
        for wanted in service_ip::named(spec) {
            let has = |service: &Value| service_ip::named(&service["spec"]).contains(&wanted);
            let mut others = taken.iter().filter(|(other, _)| other != key);
            if wanted != "None"
                && let Some((other, _)) = others.find(|(_, service)| has(service))
            {
                return Err(format!("spec.clusterIP: {wanted} belongs to {other}"));
            }
        }
        Ok(())
    }

    fn delete(&self, texts: &[Text]) -> Applied {
        let (documents, mut applied) = parsed(texts);
        for document in documents.into_iter().rev() {
            match controllers::delete(&self.lab.api, &document.key) {
                Ok(true) => applied.done.push((document.key, Outcome::Deleted)),
                Ok(false) => applied.errors.push(format!("{} not found", document.key)),
                Err(error) => applied.errors.push(format!("{}: {error}", document.key)),
            }
        }
        applied
    }

    /// Applies what changed in the followed files, and deletes what is no longer in them. A
    /// document that can't be used leaves its object, and all others of its file, as they were.
    pub(crate) fn follow(&self) {
        let mut followed = self.followed.lock();
        let mut invalid = Vec::new();
        let mut texts = Vec::new();
        for path in &self.files {
            match manifests::read(std::slice::from_ref(path)) {
                Ok(read) => texts.extend(read),
                Err(message) => {
                    invalid.push(Invalid {
                        file: path.display().to_string(),
                        message,
                    });
                }
            }
        }
        let parsed = manifests::parse(&texts);
        invalid.extend(parsed.errors);
        let mut held = BTreeMap::new();
        for document in in_order(parsed.documents) {
            // Only what changed in the file: a command may have changed the object since.
            let before = followed.held.get(&document.key);
            let same = before.is_some_and(|(_, value)| *value == document.value);
            let held_now = (document.file.clone(), document.value.clone());
            held.insert(document.key.clone(), held_now);
            if same {
                continue;
            }
            match self.apply_one(&document) {
                Ok(Outcome::Unchanged) => {}
                Ok(outcome) => tracing::info!("{} {outcome}", kinds::reference(&document.key)),
                Err(message) => {
                    // So that it is tried, and told, again.
                    held.insert(document.key, (document.file.clone(), Value::Null));
                    invalid.push(Invalid {
                        file: document.file,
                        message,
                    });
                }
            }
        }
        let broken: BTreeSet<&str> = invalid.iter().map(|i| i.file.as_str()).collect();
        for (key, (file, value)) in &followed.held {
            if held.contains_key(key) {
                continue;
            }
            // A followed path that can't be read is broken as a whole, with all below it.
            if broken
                .iter()
                .any(|broken| std::path::Path::new(file).starts_with(broken))
            {
                held.insert(key.clone(), (file.clone(), value.clone()));
                continue;
            }
            match controllers::delete(&self.lab.api, key) {
                Ok(_) => tracing::info!("{} deleted", kinds::reference(key)),
                Err(error) => tracing::error!(%error, object = %key, "can't be deleted"),
            }
        }
        for new in invalid.iter().filter(|new| !followed.invalid.contains(new)) {
            tracing::warn!("{}", new.message);
        }
        *followed = Followed { held, invalid };
    }

    fn get(&self, kind: &str, namespace: Option<&str>, name: Option<&str>) -> Answer {
        let keys = self.lab.api.keys();
        let Some((group, kind)) = kinds::resolve(kind, &keys) else {
            return Answer::Error(format!("there is no kind {kind:?} in the lab"));
        };
        let scoped = !weft_source::defaults::is_cluster_scoped(&kind);
        let wanted = keys.iter().filter(|key| {
            key.group == group
                && key.kind == kind
                && (!scoped || namespace.is_none_or(|namespace| namespace == key.namespace))
                && name.is_none_or(|name| name == key.name)
        });
        let objects: Vec<Value> = wanted.filter_map(|key| self.lab.api.show(key)).collect();
        match name {
            Some(name) if objects.is_empty() => {
                let namespace = namespace.filter(|_| scoped).unwrap_or_default();
                Answer::Error(format!(
                    "{} not found",
                    super::api::key(&group, &kind, namespace, name)
                ))
            }
            _ => Answer::Objects(objects),
        }
    }

    async fn status(&self) -> LabStatus {
        let mut behind = Vec::new();
        let mut controller_invalid = None;
        let mut parts = self.parts.status();
        if self.lab.mesh {
            let page = |path| parts::controller_page(&self.lab, path);
            // One after the other: a proxy that has acknowledged what is in the tables by then
            // knows them.
            let tables = page("/debug/tables").await.unwrap_or_default();
            let proxies = page("/debug/proxies").await.unwrap_or_default();
            controller_invalid = page("/debug/invalid").await;
            // Nobody to ask: what that means is said instead.
            if parts
                .get("controller")
                .is_none_or(|part| part.away.is_none())
            {
                behind = self.behind(&Known {
                    tables: &tables,
                    proxies: &proxies,
                });
            }
            let asked = parts.iter_mut().map(async |(name, part)| {
                part.controller = self.parts.has_controller(name).await;
            });
            futures::future::join_all(asked).await;
        }
        let api = &self.lab.api;
        if self.lab.settled.load(Ordering::Acquire) != api.version() {
            behind.push("the nodes' Service rules are not up to date".into());
        }
        let keys = api.keys();
        let pods = keys
            .iter()
            .filter(|key| key.group.is_empty() && key.kind == "Pod");
        let routes = keys.iter().filter(|key| kinds::is_route(key));
        let shown = |key: &ObjectKey| api.show(key).unwrap_or_else(|| json!({}));
        LabStatus {
            name: self.lab.plan.name.clone(),
            mesh: self.lab.mesh,
            folder: self.lab.paths.root().display().to_string(),
            started: self.started.load(Ordering::Acquire),
            behind,
            away: away::lines(&parts),
            parts,
            pods: pods.map(|key| view::pod_row(&shown(key))).collect(),
            routes: routes
                .flat_map(|key| view::route_rows(&shown(key)))
                .collect(),
            invalid: self.followed.lock().invalid.clone(),
            controller_invalid,
        }
    }

    fn behind(&self, known: &Known<'_>) -> Vec<String> {
        let services = self.lab.api.list("", "Service");
        let slices = self.lab.api.list("discovery.k8s.io", "EndpointSlice");
        let services: Vec<&Value> = services.iter().map(|(_, value)| &**value).collect();
        let slices: Vec<&Value> = slices.iter().map(|(_, value)| &**value).collect();
        let nodes = self.lab.plan.nodes.iter().map(|node| node.name.as_str());
        behind(nodes, &services, &slices, known)
    }
}

/// Documents in the order in which they are applied, and what could not be read.
fn parsed(texts: &[Text]) -> (Vec<Document>, Applied) {
    let parsed = manifests::parse(texts);
    let errors = parsed.errors.into_iter().map(|invalid| invalid.message);
    let applied = Applied {
        errors: errors.collect(),
        ..Applied::default()
    };
    (in_order(parsed.documents), applied)
}

fn done(result: anyhow::Result<String>) -> Answer {
    match result {
        Ok(said) => Answer::Done(said),
        Err(error) => Answer::Error(format!("{error:#}")),
    }
}

fn in_order(mut documents: Vec<Document>) -> Vec<Document> {
    let rank = |document: &Document| {
        ORDER
            .iter()
            .position(|kind| *kind == document.key.kind)
            .unwrap_or(ORDER.len())
    };
    documents.sort_by_key(rank);
    documents
}

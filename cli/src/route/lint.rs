//! What the controller would say of the routes in some files. In: texts. Out: a [`Report`]. Pure: the
//! files are read as the folder that stands for the API is read, and compiled by the controller's own
//! compiler, so that conditions, reasons and messages are those of status.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;
use weft_controller::compile::{self, RouteStatus, Settings, World};
use weft_source::{Object, ObjectKey, defaults};

use super::services::{self, References};
use crate::manifests::{self, Text};

/// API group of the routes.
const GATEWAY: &str = "gateway.networking.k8s.io";

/// Conditions whose `True` is bad news.
const BAD_IF_TRUE: [&str; 2] = ["PartiallyInvalid", "Conflicted"];

/// What there is to say of some files.
#[derive(Debug, Default, Serialize, PartialEq)]
pub(super) struct Report {
    pub(super) routes: Vec<Route>,
    /// Objects besides routes that are not what they should be.
    pub(super) objects: Vec<Problem>,
    /// What could not be read at all: file, document and field, and what to do.
    pub(super) unread: Vec<String>,
    /// What was taken for granted.
    pub(super) notes: Vec<String>,
}

/// A route and what status would say of it.
#[derive(Debug, Serialize, PartialEq)]
pub(super) struct Route {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// File and document.
    pub(super) origin: String,
    pub(super) verdict: Verdict,
    /// One for each parentRef that names a Service.
    pub(super) parents: Vec<Parent>,
    /// What to look at, beyond what status says.
    pub(super) hints: Vec<String>,
}

/// How a route is.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(super) enum Verdict {
    /// As it should be.
    Fine,
    /// Something of it is not in force as it is written.
    Problem,
    /// It names no Service as its parent: nothing for a mesh.
    NotOurs,
}

/// An entry of `status.parents`.
#[derive(Debug, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(super) struct Parent {
    pub(super) parent_ref: Value,
    pub(super) conditions: Vec<Condition>,
}

/// A condition, as in status.
#[derive(Debug, Serialize, PartialEq)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) type_: String,
    pub(super) status: &'static str,
    pub(super) reason: String,
    pub(super) message: String,
}

/// An object that is not what it should be.
#[derive(Debug, Serialize, PartialEq)]
pub(super) struct Problem {
    /// File and document.
    pub(super) origin: String,
    pub(super) message: String,
}

/// An object of the files, as the API would show it.
struct Given {
    object: Object,
    file: String,
    origin: String,
}

impl Report {
    /// Whether anything that was read is not as it should be.
    pub(super) fn has_problems(&self) -> bool {
        !self.objects.is_empty() || self.count(Verdict::Problem) > 0
    }

    /// How many routes there are of one verdict.
    pub(super) fn count(&self, verdict: Verdict) -> usize {
        let of = |route: &&Route| route.verdict == verdict;
        self.routes.iter().filter(of).count()
    }
}

impl Condition {
    /// Whether it says that something is wrong.
    pub(super) fn is_bad(&self) -> bool {
        (self.status == "True") == BAD_IF_TRUE.contains(&self.type_.as_str())
    }
}

impl From<&compile::Condition> for Condition {
    fn from(condition: &compile::Condition) -> Self {
        Self {
            type_: condition.type_.clone(),
            status: if condition.status { "True" } else { "False" },
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        }
    }
}

/// Says what the controller would say if the texts were all that the cluster holds; with
/// `assume_services`, and the Services that its routes name.
pub(super) fn lint(texts: &[Text], assume_services: bool) -> Report {
    let mut report = Report::default();
    let given = gather(texts, &mut report);

    let mut missing = References::new();
    for Given { object, .. } in given.values() {
        if is_route(&object.key) {
            services::named_by(object, &mut missing);
        }
    }
    missing.retain(|key, _| !given.contains_key(key));

    // Neither domain shows in what is said of routes.
    let mut world = World::new(Settings {
        trust_domain: "cluster.local".into(),
        cluster_domain: "cluster.local".into(),
    });
    for Given { object, .. } in given.values() {
        world.apply(object);
    }
    if assume_services {
        for (key, named) in std::mem::take(&mut missing) {
            let (service, words) = named.assume(&key);
            report.notes.push(format!("assumed: {words}"));
            world.apply(&service);
        }
    }
    let compiled = world.compile();
    for (key, status) in &compiled.routes {
        let Some(given) = given.get(key) else {
            continue;
        };
        // A route that can't be read has parents, and so a status, wherever those can be.
        match compiled.invalid.get(key) {
            Some(message) if status.parents.is_empty() && !lists_parents(&given.object.value) => {
                report.objects.push(Problem {
                    origin: given.origin.clone(),
                    message: message.clone(),
                });
            }
            _ => report.routes.push(route(given, status, &missing)),
        }
    }
    for (key, message) in &compiled.invalid {
        let Some(given) = given
            .get(key)
            .filter(|_| !compiled.routes.contains_key(key))
        else {
            continue;
        };
        report.objects.push(Problem {
            origin: given.origin.clone(),
            message: message.clone(),
        });
    }
    report
}

/// Reads the objects, each as the API would show it.
fn gather(texts: &[Text], report: &mut Report) -> BTreeMap<ObjectKey, Given> {
    let parsed = manifests::parse_with(texts, manifests::check);
    let errors = parsed.errors.into_iter().map(|invalid| invalid.message);
    report.unread.extend(errors);
    let mut all = BTreeMap::<ObjectKey, Given>::new();
    for document in parsed.documents {
        let (key, mut value, origin) = (document.key, document.value, document.origin);
        if let Some(before) = all.get(&key) {
            if before.file == document.file {
                let (first, again) = (&before.origin, &origin);
                report.unread.push(format!(
                    "{again}: {key} is in this file already ({first}); remove one of them"
                ));
                continue;
            }
            let place = &before.origin;
            report.notes.push(format!(
                "{origin}: {key} takes the place of that in {place}"
            ));
            keep_age(&before.object.value, &mut value);
        }
        defaults::apply(&mut value);
        let given = Given {
            object: Object {
                key: key.clone(),
                value: value.into(),
            },
            file: document.file,
            origin,
        };
        all.insert(key, given);
    }
    all
}

/// An object that is applied anew is as old as it was.
fn keep_age(before: &Value, value: &mut Value) {
    const AGE: &str = "creationTimestamp";
    let age = before.get("metadata").and_then(|m| m.get(AGE)).cloned();
    let metadata = value.get_mut("metadata").and_then(Value::as_object_mut);
    if let (Some(age), Some(metadata)) = (age, metadata) {
        metadata.entry(AGE).or_insert(age);
    }
}

fn is_route(key: &ObjectKey) -> bool {
    key.group == GATEWAY && key.kind.ends_with("Route")
}

/// Whether a route's parentRefs are a list, or there are none.
fn lists_parents(route: &Value) -> bool {
    let spec = route.get("spec").and_then(Value::as_object);
    let fits = |value: &Value| value.is_array() || value.is_null();
    spec.is_some_and(|spec| spec.get("parentRefs").is_none_or(fits))
}

fn route(given: &Given, status: &RouteStatus, missing: &References) -> Route {
    let key = &given.object.key;
    let parents: Vec<Parent> = status
        .parents
        .iter()
        .map(|parent| Parent {
            parent_ref: parent.parent_ref.clone(),
            conditions: parent.conditions.iter().map(Condition::from).collect(),
        })
        .collect();
    let conditions = || parents.iter().flat_map(|parent| &parent.conditions);
    let mistaken = mistaken_parents(&given.object.value);
    let verdict = if !mistaken.is_empty() || conditions().any(Condition::is_bad) {
        Verdict::Problem
    } else if parents.is_empty() {
        Verdict::NotOurs
    } else {
        Verdict::Fine
    };
    let mut hints = mistaken;
    if !parents.is_empty() {
        hints.extend(not_given(&given.object, missing));
    }
    if key.kind == "TCPRoute" && conditions().any(|condition| condition.reason == "Conflicted") {
        hints.push(
            "of several TCPRoutes the oldest has the port; of those whose files give no \
             creationTimestamp, the first by name"
                .into(),
        );
    }
    Route {
        kind: key.kind.clone(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        origin: given.origin.clone(),
        verdict,
        parents,
        hints,
    }
}

/// parentRefs that were surely meant to name a Service, and do not.
fn mistaken_parents(route: &Value) -> Vec<String> {
    let refs = route.pointer("/spec/parentRefs").and_then(Value::as_array);
    let refs = refs.into_iter().flatten().enumerate();
    let mistaken = refs.filter(|(_, parent)| {
        let is = |field: &str, text: &str| parent.get(field).and_then(Value::as_str) == Some(text);
        is("kind", "Service") && is("group", GATEWAY)
    });
    mistaken
        .map(|(index, _)| {
            format!(
                "spec.parentRefs[{index}]: a Service is of the core group, and without a group \
                 this is one of {GATEWAY}; write group: \"\""
            )
        })
        .collect()
}

/// The Services that a route names and that are in no file.
fn not_given(route: &Object, missing: &References) -> Option<String> {
    let mut named = References::new();
    services::named_by(route, &mut named);
    let names: BTreeSet<String> = named
        .keys()
        .filter(|key| missing.contains_key(key))
        .map(|key| format!("{}/{}", key.namespace, key.name))
        .collect();
    if names.is_empty() {
        return None;
    }
    let names = names.into_iter().collect::<Vec<_>>().join(", ");
    Some(format!(
        "not in the files: Service {names}. If the cluster has it, give it too, or use --assume-services"
    ))
}

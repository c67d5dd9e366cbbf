//! Objects and their history.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::patch;

/// An answer, or the status and message of a failure.
pub(super) type Result = std::result::Result<Value, (u16, String)>;

/// Built-in kinds: group, version, kind, plural.
const BUILT_IN: [(&str, &str, &str, &str); 12] = [
    ("", "v1", "Namespace", "namespaces"),
    ("", "v1", "Pod", "pods"),
    ("", "v1", "Node", "nodes"),
    ("", "v1", "Service", "services"),
    ("", "v1", "Secret", "secrets"),
    ("", "v1", "ConfigMap", "configmaps"),
    ("", "v1", "ServiceAccount", "serviceaccounts"),
    ("apps", "v1", "DaemonSet", "daemonsets"),
    ("coordination.k8s.io", "v1", "Lease", "leases"),
    ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
    ("authentication.k8s.io", "v1", "TokenReview", "tokenreviews"),
    (
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
    ),
];

/// Where an object, or a collection if the name is empty, lives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) group: String,
    pub(super) plural: String,
    /// Empty for cluster-scoped kinds, and for a collection over all namespaces.
    pub(super) namespace: String,
    pub(super) name: String,
    /// Of the request; an object is the same in all of its versions.
    version: String,
}

#[derive(Clone)]
struct Change {
    version: u64,
    place: Place,
    kind: &'static str,
    object: Value,
}

pub(super) struct Store {
    /// Group, version, kind, plural.
    kinds: Vec<(String, String, String, String)>,
    objects: BTreeMap<(String, String, String, String), Value>,
    changes: Vec<Change>,
    version: u64,
    compacted: u64,
}

impl Default for Store {
    fn default() -> Self {
        let kinds = BUILT_IN.map(|(g, v, k, p)| (g.into(), v.into(), k.into(), p.into()));
        Self {
            kinds: kinds.into(),
            objects: BTreeMap::new(),
            changes: Vec::new(),
            version: 100,
            compacted: 0,
        }
    }
}

impl Place {
    pub(super) fn of(object: &Value, plural: &str) -> Self {
        let text = |path: &str| {
            object
                .pointer(path)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let (group, version) = text("/apiVersion").split_once('/').unwrap_or(("", "v1"));
        Self {
            group: group.into(),
            plural: plural.into(),
            namespace: text("/metadata/namespace").into(),
            name: text("/metadata/name").into(),
            version: version.into(),
        }
    }

    /// Of a path's segments after group and version; beside it the subresource.
    pub(super) fn parse<'a>(
        group: &str,
        version: &str,
        segments: &[&'a str],
    ) -> Option<(Self, &'a str)> {
        let (namespace, rest) = match *segments {
            ["namespaces", namespace, ref rest @ ..] if !rest.is_empty() => (namespace, rest),
            ref rest => ("", rest),
        };
        let (plural, name, sub) = match *rest {
            [plural] => (plural, "", ""),
            [plural, name] => (plural, name, ""),
            [plural, name, sub] => (plural, name, sub),
            _ => return None,
        };
        let place = Self {
            group: group.into(),
            plural: plural.into(),
            namespace: namespace.into(),
            name: name.into(),
            version: version.into(),
        };
        Some((place, sub))
    }

    fn key(&self) -> (String, String, String, String) {
        let Self {
            group,
            plural,
            namespace,
            name,
            ..
        } = self;
        (
            group.clone(),
            plural.clone(),
            namespace.clone(),
            name.clone(),
        )
    }

    /// Whether an object is in this collection.
    fn holds(&self, other: &Self) -> bool {
        self.group == other.group
            && self.plural == other.plural
            && (self.namespace.is_empty() || self.namespace == other.namespace)
    }
}

impl Store {
    pub(super) fn define(&mut self, group: &str, version: &str, kind: &str, plural: &str) {
        self.kinds
            .push((group.into(), version.into(), kind.into(), plural.into()));
    }

    pub(super) fn undefine(&mut self, group: &str, plural: &str) {
        self.kinds
            .retain(|(g, _, _, p)| (g.as_str(), p.as_str()) != (group, plural));
        self.objects
            .retain(|(g, p, _, _), _| (g.as_str(), p.as_str()) != (group, plural));
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "metadata": { "name": format!("{plural}.{group}") },
        });
        self.delete(&Place::of(&definition, "customresourcedefinitions"));
    }

    pub(super) fn serves(&self, group: &str, version: &str) -> bool {
        self.kinds
            .iter()
            .any(|(g, v, _, _)| g == group && v == version)
    }

    pub(super) fn has(&self, place: &Place) -> bool {
        self.kinds.iter().any(|(group, version, _, plural)| {
            *group == place.group && *version == place.version && *plural == place.plural
        })
    }

    pub(super) fn plural(&self, object: &Value) -> String {
        let kind = object["kind"].as_str().unwrap_or_default();
        let known = self.kinds.iter().find(|(_, _, name, _)| name == kind);
        known.expect("tests use kinds that are served").3.clone()
    }

    pub(super) fn resources(&self, group: &str, version: &str) -> Value {
        let kinds = self
            .kinds
            .iter()
            .filter(|(g, v, _, _)| g == group && v == version);
        let resources: Vec<_> = kinds
            .flat_map(|(_, _, kind, plural)| {
                [plural.clone(), format!("{plural}/status")].map(|name| {
                    json!({"name": name, "kind": kind, "namespaced": true, "singularName": "", "verbs": []})
                })
            })
            .collect();
        json!({"groupVersion": format!("{group}/{version}"), "resources": resources})
    }

    pub(super) fn groups(&self) -> Value {
        let mut groups: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (group, version, _, _) in self.kinds.iter().filter(|(group, ..)| !group.is_empty()) {
            groups.entry(group).or_default().insert(version);
        }
        let groups: Vec<Value> = groups
            .into_iter()
            .map(|(group, versions)| {
                let versions = versions.iter().map(|version| {
                    json!({ "groupVersion": format!("{group}/{version}"), "version": version })
                });
                json!({ "name": group, "versions": versions.collect::<Vec<_>>() })
            })
            .collect();
        json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn compact(&mut self) {
        self.version += 1;
        self.compacted = self.version;
        self.changes.clear();
    }

    pub(super) fn find(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let found = self
            .objects
            .iter()
            .find(|((_, p, ns, n), _)| p == plural && ns == namespace && n == name);
        found.map(|(_, object)| object.clone())
    }

    pub(super) fn put(&mut self, place: &Place, mut object: Value) -> Value {
        self.version += 1;
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = self.version.to_string().into();
        metadata["managedFields"] = json!([{ "manager": "test" }]);
        if metadata.get("uid").is_none() {
            metadata["uid"] = format!("uid-{}", self.version).into();
        }
        let old = self.objects.insert(place.key(), object.clone());
        let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
        self.note(place, kind, object.clone());
        object
    }

    pub(super) fn delete(&mut self, place: &Place) {
        if let Some(mut object) = self.objects.remove(&place.key()) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = self.version.to_string().into();
            self.note(place, "DELETED", object);
        }
    }

    fn note(&mut self, place: &Place, kind: &'static str, object: Value) {
        self.changes.push(Change {
            version: self.version,
            place: place.clone(),
            kind,
            object,
        });
    }

    pub(super) fn get(&self, place: &Place) -> Result {
        let object = self.objects.get(&place.key()).cloned();
        object.ok_or_else(|| (404, format!("{} not found", place.name)))
    }

    pub(super) fn list(&self, place: &Place, query: &BTreeMap<String, String>) -> Result {
        let fields = query.get("fieldSelector").map(String::as_str);
        let all = self.matching(place, fields);
        let start = query
            .get("continue")
            .and_then(|token| token.parse().ok())
            .unwrap_or(0);
        let limit = query
            .get("limit")
            .and_then(|limit| limit.parse().ok())
            .unwrap_or(usize::MAX);
        let mut items: Vec<Value> = all.iter().skip(start).take(limit).cloned().collect();
        for item in &mut items {
            // As the real server does for built-in kinds.
            if let Some(item) = item.as_object_mut() {
                item.remove("kind");
                item.remove("apiVersion");
            }
        }
        let next = start.saturating_add(limit);
        let token = if next < all.len() {
            next.to_string()
        } else {
            String::new()
        };
        Ok(json!({
            "kind": "List", "apiVersion": "v1",
            "metadata": { "resourceVersion": self.version.to_string(), "continue": token },
            "items": items,
        }))
    }

    fn matching(&self, place: &Place, fields: Option<&str>) -> Vec<Value> {
        let objects = self.objects.iter().filter(|((g, p, ns, _), _)| {
            *g == place.group
                && *p == place.plural
                && (place.namespace.is_empty() || *ns == place.namespace)
        });
        objects
            .map(|(_, object)| object)
            .filter(|object| selected(object, fields))
            .cloned()
            .collect()
    }

    pub(super) fn initial_events(
        &self,
        place: &Place,
        query: &BTreeMap<String, String>,
    ) -> Vec<Value> {
        let fields = query.get("fieldSelector").map(String::as_str);
        let objects = self.matching(place, fields).into_iter();
        let mut events: Vec<Value> = objects
            .map(|object| json!({ "type": "ADDED", "object": object }))
            .collect();
        events.push(json!({ "type": "BOOKMARK", "object": {
            "apiVersion": "v1", "kind": "Bookmark",
            "metadata": {
                "resourceVersion": self.version.to_string(),
                "annotations": { "k8s.io/initial-events-end": "true" },
            },
        }}));
        events
    }

    /// What has happened to a collection since a version, and up to which; or the line that says that
    /// this is no longer known.
    pub(super) fn since(
        &self,
        place: &Place,
        version: u64,
        fields: Option<&str>,
    ) -> std::result::Result<(u64, Vec<Value>), Value> {
        if version < self.compacted || !self.has(place) {
            let message = "the version is too old";
            return Err(json!({ "type": "ERROR", "object": {
                "kind": "Status", "apiVersion": "v1", "status": "Failure",
                "code": 410, "reason": "Expired", "message": message,
            }}));
        }
        let changes = self.changes.iter().filter(|change| {
            change.version > version
                && place.holds(&change.place)
                && selected(&change.object, fields)
        });
        let lines = changes
            .map(|c| json!({ "type": c.kind, "object": c.object }))
            .collect();
        Ok((self.version, lines))
    }

    pub(super) fn create(&mut self, mut place: Place, object: Value) -> Result {
        place.name = Place::of(&object, &place.plural).name;
        if self.objects.contains_key(&place.key()) {
            return Err((409, format!("{} already exists", place.name)));
        }
        Ok(self.put(&place, object))
    }

    pub(super) fn replace(&mut self, place: &Place, body: &[u8]) -> Result {
        let object = read(body)?;
        let old = self.get(place)?;
        check_version(&old, &object)?;
        Ok(self.put(place, object))
    }

    pub(super) fn patch(&mut self, place: &Place, sub: &str, apply: bool, body: &[u8]) -> Result {
        let patch = read(body)?;
        let exists = self.objects.contains_key(&place.key());
        if !exists && apply && sub.is_empty() {
            return Ok(self.put(place, patch));
        }
        let old = self.get(place)?;
        check_version(&old, &patch)?;
        let part = |value: &Value| match sub {
            "" => value.clone(),
            sub => json!({ sub: value.get(sub) }),
        };
        let mut new = old.clone();
        if apply {
            patch::apply(&mut new, &part(&patch));
        } else {
            patch::merge(&mut new, &part(&patch));
        }
        new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
        if new == old {
            return Ok(old);
        }
        Ok(self.put(place, new))
    }
}

fn check_version(old: &Value, new: &Value) -> std::result::Result<(), (u16, String)> {
    let version = |object: &Value| object.pointer("/metadata/resourceVersion").cloned();
    match version(new) {
        Some(wanted) if Some(&wanted) != version(old).as_ref() => {
            Err((409, "the object has been modified".to_owned()))
        }
        _ => Ok(()),
    }
}

pub(super) fn read(body: &[u8]) -> Result {
    serde_json::from_slice(body).map_err(|error| (400, error.to_string()))
}

fn selected(object: &Value, fields: Option<&str>) -> bool {
    let Some((field, wanted)) = fields.and_then(|fields| fields.split_once('=')) else {
        return true;
    };
    let path = format!("/{}", field.replace('.', "/"));
    object.pointer(&path).and_then(Value::as_str) == Some(wanted)
}

//! The lab's API server. In: objects as users apply them and as the lab's controllers make them.
//! Out: objects as the API would show them, kept in memory and, one JSON file each, in the folder
//! that stands for the API; whoever waits on [`Api::changes`] is told.
//!
//! What the server owns (uid, creationTimestamp, generation, clusterIP, nodeName, status) outlives
//! an apply; labels and annotations merge with what was applied last, as kubectl's do.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use weft_source::ObjectKey;

use super::paths::write_atomic;

/// What an apply did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Created,
    Configured,
    Unchanged,
    Deleted,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
        })
    }
}

/// All objects.
pub(crate) struct Api {
    folder: PathBuf,
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    objects: BTreeMap<ObjectKey, Arc<Value>>,
    /// As the user wrote them, for the three-way merge.
    applied: BTreeMap<ObjectKey, Value>,
    /// Pods that come back, changed, when the one that is being deleted is gone.
    successors: BTreeMap<ObjectKey, Value>,
}

/// The key of an object of the core group.
pub(crate) fn core(kind: &str, namespace: &str, name: &str) -> ObjectKey {
    key("", kind, namespace, name)
}

/// A key.
pub(crate) fn key(group: &str, kind: &str, namespace: &str, name: &str) -> ObjectKey {
    ObjectKey {
        group: group.into(),
        kind: kind.into(),
        namespace: namespace.into(),
        name: name.into(),
    }
}

impl Api {
    /// An empty API over a folder.
    pub(crate) fn new(folder: PathBuf) -> io::Result<Self> {
        for part in ["manifests", "status", "annotations"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let (changes, _) = watch::channel(0);
        Ok(Self {
            folder,
            inner: Mutex::default(),
            changes,
        })
    }

    /// Told at every change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Applies a user's object.
    pub(crate) fn apply(&self, key: &ObjectKey, manifest: &Value) -> io::Result<Outcome> {
        let mut inner = self.inner.lock();
        let last = inner.applied.insert(key.clone(), manifest.clone());
        let live = inner.objects.get(key).cloned();
        let new = merge(
            live.as_deref(),
            last.as_ref(),
            manifest.clone(),
            &now,
            &new_uid,
        );
        if let Some(live) = live
            && is_pod(key)
            && (is_terminating(&live) || desired(&live) != desired(&new))
        {
            // A pod's spec can't change: it is replaced.
            inner.successors.insert(key.clone(), manifest.clone());
            let mut going = Value::clone(&live);
            mark_deleted(&mut going);
            self.store(&mut inner, key, going)?;
            return Ok(Outcome::Configured);
        }
        self.store(&mut inner, key, new)
    }

    /// Marks an object as being deleted; false if there is none. Whoever runs it removes it.
    pub(crate) fn mark_deleted(&self, key: &ObjectKey) -> io::Result<bool> {
        self.inner.lock().successors.remove(key);
        self.update(key, mark_deleted)
    }

    /// Writes an object that a controller of the lab owns.
    pub(crate) fn put(&self, key: &ObjectKey, object: Value) -> io::Result<Outcome> {
        let mut inner = self.inner.lock();
        let live = inner.objects.get(key).cloned();
        let new = merge(live.as_deref(), None, object, &now, &new_uid);
        self.store(&mut inner, key, new)
    }

    /// Changes an object in place; false if there is none.
    pub(crate) fn update(
        &self,
        key: &ObjectKey,
        change: impl FnOnce(&mut Value),
    ) -> io::Result<bool> {
        let mut inner = self.inner.lock();
        let Some(live) = inner.objects.get(key) else {
            return Ok(false);
        };
        let mut new = Value::clone(live);
        change(&mut new);
        self.store(&mut inner, key, new).map(|_| true)
    }

    /// Removes an object and what was written about it; false if there was none.
    pub(crate) fn remove(&self, key: &ObjectKey) -> io::Result<bool> {
        let mut inner = self.inner.lock();
        inner.applied.remove(key);
        if inner.objects.remove(key).is_none() {
            return Ok(false);
        }
        for part in ["manifests", "status", "annotations"] {
            match fs::remove_file(self.file(part, key)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if let Some(manifest) = inner.successors.remove(key) {
            let new = merge(None, None, manifest.clone(), &now, &new_uid);
            inner.applied.insert(key.clone(), manifest);
            self.store(&mut inner, key, new)?;
        }
        self.changes.send_modify(|version| *version += 1);
        Ok(true)
    }

    /// An object without overlays.
    pub(crate) fn get(&self, key: &ObjectKey) -> Option<Arc<Value>> {
        self.inner.lock().objects.get(key).cloned()
    }

    /// All keys.
    pub(crate) fn keys(&self) -> Vec<ObjectKey> {
        self.inner.lock().objects.keys().cloned().collect()
    }

    /// All objects of a kind without overlays.
    pub(crate) fn list(&self, group: &str, kind: &str) -> Vec<(ObjectKey, Arc<Value>)> {
        let inner = self.inner.lock();
        let of_kind = inner
            .objects
            .iter()
            .filter(|(k, _)| k.group == group && k.kind == kind);
        of_kind
            .map(|(key, value)| (key.clone(), Arc::clone(value)))
            .collect()
    }

    /// An object with what weft's parts wrote about it laid over.
    pub(crate) fn show(&self, key: &ObjectKey) -> Option<Value> {
        let mut value = Value::clone(&*self.get(key)?);
        let read = |part| -> Option<Map<String, Value>> {
            serde_json::from_slice(&fs::read(self.file(part, key)).ok()?).ok()
        };
        if let Some(annotations) = read("annotations") {
            object_at(&mut value, &["metadata", "annotations"]).extend(annotations);
        }
        if let Some(status) = read("status") {
            overlay_status(object_at(&mut value, &["status"]), status);
        }
        Some(value)
    }

    fn store(&self, inner: &mut Inner, key: &ObjectKey, new: Value) -> io::Result<Outcome> {
        let outcome = match inner.objects.get(key) {
            Some(live) if **live == new => return Ok(Outcome::Unchanged),
            Some(_) => Outcome::Configured,
            None => Outcome::Created,
        };
        write_atomic(
            &self.file("manifests", key),
            &serde_json::to_vec_pretty(&new)?,
        )?;
        inner.objects.insert(key.clone(), Arc::new(new));
        self.changes.send_modify(|version| *version += 1);
        Ok(outcome)
    }

    fn file(&self, part: &str, key: &ObjectKey) -> PathBuf {
        let namespace = if key.namespace.is_empty() {
            "_"
        } else {
            &key.namespace
        };
        self.folder
            .join(part)
            .join(format!("{}.{}", key.kind, key.group))
            .join(namespace)
            .join(format!("{}.json", key.name))
    }
}

fn is_pod(key: &ObjectKey) -> bool {
    key.group.is_empty() && key.kind == "Pod"
}

fn is_terminating(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

fn mark_deleted(object: &mut Value) {
    if is_terminating(object) {
        return;
    }
    let grace = object["spec"]["terminationGracePeriodSeconds"].clone();
    let metadata = object_at(object, &["metadata"]);
    metadata.insert("deletionTimestamp".into(), now().into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace);
}

/// Fields of the spec that the lab fills in and an apply that does not name them leaves alone.
const ALLOCATED: &[(&str, &[&str])] = &[
    (
        "Service",
        &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"],
    ),
    ("Pod", &["nodeName"]),
];

/// The object that results from applying `new` over `live`.
fn merge(
    live: Option<&Value>,
    last: Option<&Value>,
    mut new: Value,
    now: &dyn Fn() -> String,
    uid: &dyn Fn() -> String,
) -> Value {
    let kind = new["kind"].as_str().unwrap_or_default().to_owned();
    if let Some(live) = live {
        for field in ["labels", "annotations"] {
            let merged = merge_map(
                live["metadata"][field].as_object(),
                last.and_then(|last| last["metadata"][field].as_object()),
                new["metadata"][field].as_object(),
            );
            if !merged.is_empty() {
                object_at(&mut new, &["metadata"]).insert(field.into(), merged.into());
            }
        }
        for field in [
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "generation",
        ] {
            if let Some(value) = live["metadata"].get(field) {
                object_at(&mut new, &["metadata"]).insert(field.into(), value.clone());
            }
        }
        let allocated = ALLOCATED
            .iter()
            .find(|(of, _)| *of == kind)
            .map_or(&[][..], |(_, f)| f);
        for field in allocated {
            if let Some(value) = live["spec"].get(*field)
                && new["spec"].get(*field).is_none_or(Value::is_null)
                && new["spec"].is_object()
            {
                new["spec"][*field] = value.clone();
            }
        }
        if let Some(status) = live.get("status") {
            new["status"] = status.clone();
        }
    } else {
        let metadata = object_at(&mut new, &["metadata"]);
        metadata.insert("uid".into(), uid().into());
        metadata.insert("creationTimestamp".into(), now().into());
        metadata.insert("generation".into(), 1.into());
    }
    weft_source::defaults::apply(&mut new);
    if let Some(live) = live
        && desired(live) != desired(&new)
    {
        let generation = live["metadata"]["generation"].as_u64().unwrap_or(0) + 1;
        new["metadata"]["generation"] = generation.into();
    }
    new
}

/// What a user asks for: all but what generation does not count.
fn desired(object: &Value) -> Map<String, Value> {
    let mut desired = object.as_object().cloned().unwrap_or_default();
    desired.remove("metadata");
    desired.remove("status");
    desired
}

fn merge_map(
    live: Option<&Map<String, Value>>,
    last: Option<&Map<String, Value>>,
    new: Option<&Map<String, Value>>,
) -> Map<String, Value> {
    let dropped = |key: &String| last.is_some_and(|last| last.contains_key(key));
    let kept = live.into_iter().flatten().filter(|(key, _)| !dropped(key));
    kept.chain(new.into_iter().flatten())
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// The object at a path, made where it is missing.
pub(crate) fn object_at<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    let mut at = value;
    for field in path {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[*field];
    }
    if !at.is_object() {
        *at = json!({});
    }
    at.as_object_mut().expect("it was made an object above")
}

/// Conditions are laid over by type, every other field as a whole.
fn overlay_status(status: &mut Map<String, Value>, over: Map<String, Value>) {
    for (field, value) in over {
        let (Some(own), Some(conditions)) = (
            status.get_mut(&field).and_then(Value::as_array_mut),
            value.as_array(),
        ) else {
            status.insert(field, value);
            continue;
        };
        if field != "conditions" {
            *own = conditions.clone();
            continue;
        }
        for condition in conditions {
            own.retain(|o| o["type"] != condition["type"]);
            own.push(condition.clone());
        }
    }
}

/// Now, as the API writes it.
pub(crate) fn now() -> String {
    let now = time::OffsetDateTime::now_utc();
    let now = now.replace_nanosecond(0).unwrap_or(now);
    now.format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}

/// A new random uid.
pub(crate) fn new_uid() -> String {
    let uuid = fs::read_to_string(Path::new("/proc/sys/kernel/random/uuid"));
    uuid.unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(live: Option<&Value>, last: Option<&Value>, new: Value) -> Value {
        merge(live, last, new, &|| "2026-01-01T00:00:00Z".into(), &|| {
            "u-1".into()
        })
    }

    fn service(spec: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "a", "namespace": "x"}, "spec": spec})
    }

    #[test]
    fn what_the_server_owns_outlives_an_apply() {
        let mut live = merged(None, None, service(json!({"ports": [{"port": 80}]})));
        assert_eq!(live["metadata"]["uid"], "u-1");
        assert_eq!(live["metadata"]["generation"], 1);
        live["spec"]["clusterIP"] = "10.96.0.9".into();
        live["status"] = json!({"x": 1});
        let new = merged(Some(&live), None, service(json!({"ports": [{"port": 81}]})));
        assert_eq!(new["spec"]["clusterIP"], "10.96.0.9");
        assert_eq!(new["spec"]["ports"][0]["port"], 81);
        assert_eq!(new["status"]["x"], 1);
        assert_eq!(new["metadata"]["generation"], 2);
        let again = merged(Some(&new), None, service(json!({"ports": [{"port": 81}]})));
        assert_eq!(again, new);
    }

    #[test]
    fn labels_merge_with_what_was_applied_last() {
        let with = |labels: Value| {
            let mut object = service(json!({}));
            object["metadata"]["labels"] = labels;
            object
        };
        let last = with(json!({"a": "1", "b": "1"}));
        let mut live = merged(None, None, last.clone());
        live["metadata"]["labels"]["mine"] = "yes".into();
        let new = merged(Some(&live), Some(&last), with(json!({"a": "2"})));
        assert_eq!(new["metadata"]["labels"], json!({"a": "2", "mine": "yes"}));
        assert_eq!(new["metadata"]["generation"], 1);
    }

    #[test]
    fn a_written_condition_replaces_only_its_own_type() {
        let mut status =
            json!({"conditions": [{"type": "Ready"}, {"type": "X", "status": "False"}]});
        let over = json!({"conditions": [{"type": "X", "status": "True"}], "parents": [1]});
        overlay_status(
            status.as_object_mut().unwrap(),
            over.as_object().unwrap().clone(),
        );
        let expected = json!({
            "conditions": [{"type": "Ready"}, {"type": "X", "status": "True"}], "parents": [1],
        });
        assert_eq!(status, expected);
    }

    #[test]
    fn objects_are_files_that_come_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let api = Api::new(folder.path().to_owned()).unwrap();
        let key = core("Service", "x", "a");
        let manifest = service(json!({}));
        assert_eq!(api.apply(&key, &manifest).unwrap(), Outcome::Created);
        assert_eq!(api.apply(&key, &manifest).unwrap(), Outcome::Unchanged);
        let file = folder.path().join("manifests/Service./x/a.json");
        assert!(file.exists());
        assert!(api.remove(&key).unwrap());
        assert!(!file.exists());
        assert!(!api.remove(&key).unwrap());
    }
}

//! The lab's API server. In: objects as users apply them and as the lab's controllers make them.
//! Out: objects as the API would show them, kept in memory and, one JSON file each, in the folder
//! that stands for the API; whoever waits on [`Api::changes`] is told.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::sync::watch;
use weft_source::ObjectKey;

use super::{
    merge::{desired, merge, object_at, overlay_status},
    paths::write_atomic,
};

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

    /// Counts changes.
    pub(crate) fn version(&self) -> u64 {
        *self.changes.borrow()
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
    use serde_json::json;

    fn service(spec: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "a", "namespace": "x"}, "spec": spec})
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

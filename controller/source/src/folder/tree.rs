//! The folder's files as objects: contents of files in, events out. Pure.
//!
//! What the files say and what has been told are kept apart, so that only differences are told. A
//! file that can't be read in full keeps the last good objects that it no longer shows.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value};
use weft_api::names::CONTROLLER_NAME;

use super::{
    layout::{self, Role},
    parse::parse_with_origins,
};
use crate::{Event, Object, ObjectKey, defaults};

/// What a file holds now.
#[derive(Debug)]
pub(super) enum Content {
    Text(String),
    /// It is there, but can't be read: why.
    Unreadable(String),
    Gone,
}

/// All files that have been read.
#[derive(Default)]
pub(super) struct Tree {
    files: BTreeMap<PathBuf, File>,
    /// Which files hold an object: the first by path order is the one that counts.
    holders: HashMap<ObjectKey, BTreeSet<PathBuf>>,
    overlays: HashMap<ObjectKey, Overlay>,
    problems: Problems,
    /// Origins of second and later holders, to be taken back when the key is looked at again.
    duplicates: HashMap<ObjectKey, Vec<String>>,

    told: HashMap<ObjectKey, Arc<Value>>,
    /// Objects to look at before the next telling.
    dirty: BTreeSet<ObjectKey>,
}

#[derive(Default)]
struct File {
    objects: BTreeMap<ObjectKey, Held>,
    problems: Vec<String>,
}

struct Held {
    value: Arc<Value>,
    origin: String,
}

#[derive(Default)]
struct Overlay {
    status: Option<Map<String, Value>>,
    annotations: Option<Map<String, Value>>,
}

impl Tree {
    /// Takes over what a file holds now.
    pub(super) fn set(&mut self, path: &Path, content: Content) {
        match layout::role(path) {
            Some(Role::Manifest) => self.set_manifest(path, content),
            Some(Role::Status(key)) => {
                self.set_overlay(path, key, content, |overlay| &mut overlay.status);
            }
            Some(Role::Annotations(key)) => {
                self.set_overlay(path, key, content, |overlay| &mut overlay.annotations);
            }
            None => {}
        }
    }

    /// The files known at or below a path.
    pub(super) fn paths_under(&self, path: &Path) -> Vec<PathBuf> {
        let from = self
            .files
            .range::<Path, _>((Bound::Included(path), Bound::Unbounded));
        from.map(|(known, _)| known)
            .take_while(|known| known.starts_with(path))
            .cloned()
            .collect()
    }

    pub(super) fn holds(&self, key: &ObjectKey) -> bool {
        self.holders.contains_key(key)
    }

    /// The file whose object counts.
    pub(super) fn holder(&self, key: &ObjectKey) -> Option<&Path> {
        Some(self.holders.get(key)?.first()?)
    }

    /// An object as the API would show it.
    pub(super) fn object(&self, key: &ObjectKey) -> Option<Object> {
        let held = self.files.get(self.holder(key)?)?.objects.get(key)?;
        let value = match self.overlays.get(key) {
            Some(overlay) => Arc::new(overlay.lay_over(&held.value)),
            None => Arc::clone(&held.value),
        };
        Some(Object {
            key: key.clone(),
            value,
        })
    }

    /// What has changed since the last telling.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for key in std::mem::take(&mut self.dirty) {
            self.note_duplicates(&key);
            match self.object(&key) {
                Some(object) if self.told.get(&key) != Some(&object.value) => {
                    self.told.insert(key, Arc::clone(&object.value));
                    events.push(Event::Applied(object));
                }
                Some(_) => {}
                None => {
                    if self.told.remove(&key).is_some() {
                        events.push(Event::Deleted(key));
                    }
                }
            }
        }
        self.problems.tell(&mut events);
        events
    }

    fn set_manifest(&mut self, path: &Path, content: Content) {
        let mut old = self.files.remove(path).unwrap_or_default();
        for origin in &old.problems {
            self.problems.remove(origin, None);
        }
        for key in old.objects.keys() {
            self.dirty.insert(key.clone());
            if let Some(holders) = self.holders.get_mut(key) {
                holders.remove(path);
                if holders.is_empty() {
                    self.holders.remove(key);
                }
            }
        }
        let place = path.display().to_string();
        let mut new = File::default();
        let mut complete = true;
        match content {
            Content::Gone => return,
            Content::Unreadable(error) => {
                complete = false;
                self.add_problem(&mut new, place.clone(), error);
            }
            Content::Text(text) => {
                for (origin, result) in parse_with_origins(&text, &place) {
                    match result {
                        Ok(object) if new.objects.contains_key(&object.key) => {
                            let error = format!(
                                "{} is in this file already; this one is ignored: remove one of them",
                                object.key
                            );
                            self.add_problem(&mut new, origin, error);
                        }
                        Ok(object) => {
                            let mut value = Arc::unwrap_or_clone(object.value);
                            defaults::apply(&mut value);
                            let value = Arc::new(value);
                            new.objects.insert(object.key, Held { value, origin });
                        }
                        Err(error) => {
                            complete = false;
                            self.add_problem(&mut new, origin, error.error);
                        }
                    }
                }
            }
        }
        if !complete {
            old.objects.retain(|key, _| !new.objects.contains_key(key));
            for (key, mut held) in old.objects {
                held.origin = format!("{place} (last good {key})");
                new.objects.insert(key, held);
            }
        }
        for key in new.objects.keys() {
            self.dirty.insert(key.clone());
            self.holders
                .entry(key.clone())
                .or_default()
                .insert(path.to_owned());
        }
        self.files.insert(path.to_owned(), new);
    }

    fn set_overlay(
        &mut self,
        path: &Path,
        key: ObjectKey,
        content: Content,
        part: impl Fn(&mut Overlay) -> &mut Option<Map<String, Value>>,
    ) {
        let old = self.files.remove(path).unwrap_or_default();
        for origin in &old.problems {
            self.problems.remove(origin, None);
        }
        let mut file = File::default();
        let parsed = match content {
            Content::Gone => Ok(None),
            Content::Unreadable(error) => Err(error),
            Content::Text(text) => serde_json::from_str(&text)
                .map(Some)
                .map_err(|error| format!("is not a JSON object: {error}")),
        };
        let gone = matches!(parsed, Ok(None));
        match parsed {
            Ok(value) => {
                let overlay = self.overlays.entry(key.clone()).or_default();
                *part(overlay) = value;
                if overlay.status.is_none() && overlay.annotations.is_none() {
                    self.overlays.remove(&key);
                }
                self.dirty.insert(key);
            }
            // The last good overlay stays.
            Err(error) => self.add_problem(&mut file, path.display().to_string(), error),
        }
        if !gone {
            self.files.insert(path.to_owned(), file);
        }
    }

    fn add_problem(&mut self, file: &mut File, origin: String, error: String) {
        file.problems.push(origin.clone());
        self.problems.insert(origin, None, error);
    }

    fn note_duplicates(&mut self, key: &ObjectKey) {
        for origin in self.duplicates.remove(key).unwrap_or_default() {
            self.problems.remove(&origin, Some(key));
        }
        let Some(holders) = self.holders.get(key) else {
            return;
        };
        let mut holders = holders.iter();
        let Some(first) = holders.next() else { return };
        let mut origins = Vec::new();
        for held in holders.filter_map(|path| self.files.get(path)?.objects.get(key)) {
            let error = format!(
                "{key} is in {} already; this one is ignored: remove one of them",
                first.display()
            );
            self.problems.insert(held.origin.clone(), Some(key), error);
            origins.push(held.origin.clone());
        }
        if !origins.is_empty() {
            self.duplicates.insert(key.clone(), origins);
        }
    }
}

// === impl Problems ===

/// What is wrong, by origin and, for duplicates, object; and what of it has been told.
#[derive(Default)]
struct Problems {
    current: BTreeMap<(String, Option<ObjectKey>), String>,
    told: HashMap<String, String>,
    dirty: BTreeSet<String>,
}

impl Problems {
    fn insert(&mut self, origin: String, key: Option<&ObjectKey>, error: String) {
        self.dirty.insert(origin.clone());
        self.current.insert((origin, key.cloned()), error);
    }

    fn remove(&mut self, origin: &str, key: Option<&ObjectKey>) {
        self.dirty.insert(origin.to_owned());
        self.current.remove(&(origin.to_owned(), key.cloned()));
    }

    fn tell(&mut self, events: &mut Vec<Event>) {
        for origin in std::mem::take(&mut self.dirty) {
            let first = self.current.range((origin.clone(), None)..).next();
            let error = first
                .filter(|((of, _), _)| *of == origin)
                .map(|(_, error)| error);
            match error {
                Some(error) if self.told.get(&origin) != Some(error) => {
                    self.told.insert(origin.clone(), error.clone());
                    events.push(Event::Invalid {
                        origin,
                        error: error.clone(),
                    });
                }
                Some(_) => {}
                None => {
                    if self.told.remove(&origin).is_some() {
                        events.push(Event::Valid { origin });
                    }
                }
            }
        }
    }
}

// === impl Overlay ===

impl Overlay {
    fn lay_over(&self, value: &Value) -> Value {
        let mut value = value.clone();
        if let Some(annotations) = &self.annotations
            && let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut)
            && let Some(under) = object_in(metadata, "annotations")
        {
            under.extend(annotations.clone());
        }
        if let Some(status) = &self.status
            && let Some(object) = value.as_object_mut()
            && let Some(under) = object_in(object, "status")
        {
            for (field, over) in status {
                let merged = match (field.as_str(), under.remove(field), over) {
                    ("conditions", Some(Value::Array(under)), Value::Array(over)) => {
                        merge(under, over, |u| {
                            over.iter().any(|o| o.get("type") == u.get("type"))
                        })
                    }
                    // Weft's own entries come from the overlay alone.
                    ("parents", Some(Value::Array(under)), Value::Array(over)) => {
                        merge(under, over, |u| {
                            let controller = u.get("controllerName");
                            controller.and_then(Value::as_str) == Some(CONTROLLER_NAME)
                                || over.iter().any(|o| {
                                    o.get("controllerName") == controller
                                        && o.get("parentRef") == u.get("parentRef")
                                })
                        })
                    }
                    _ => over.clone(),
                };
                under.insert(field.clone(), merged);
            }
        }
        value
    }
}

fn merge(mut under: Vec<Value>, over: &[Value], replaced: impl Fn(&Value) -> bool) -> Value {
    under.retain(|entry| !replaced(entry));
    under.extend_from_slice(over);
    Value::Array(under)
}

fn object_in<'a>(
    object: &'a mut Map<String, Value>,
    field: &str,
) -> Option<&'a mut Map<String, Value>> {
    let value = object.entry(field).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut()
}

//! Writes statuses and annotations into the folder. Each file is replaced by rename, so a reader
//! sees the old one or the new one, and not at all if nothing changes.

use std::{
    collections::BTreeMap,
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use weft_api::names::CONTROLLER_NAME;

use super::{Shared, io_error, layout};
use crate::{BoxFuture, ObjectKey, SourceError, Writer};

/// Makes names of temporary files unique within the process.
static TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// Writes to the folder. Each file has one writing process; within it, writes take turns.
pub struct FolderWriter {
    shared: Arc<Shared>,
    turn: Mutex<()>,
}

impl FolderWriter {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            turn: Mutex::new(()),
        }
    }

    /// Changes the JSON object in a file; an empty one is no file. `adds` says whether something is
    /// written (not only taken away): that needs the object to exist.
    fn update(
        &self,
        key: &ObjectKey,
        path: Option<std::path::PathBuf>,
        adds: bool,
        change: impl FnOnce(&mut Map<String, Value>),
    ) -> Result<(), SourceError> {
        let path = path.ok_or_else(|| {
            SourceError::Other(format!(
                "{key} can't be written: its name is no valid file name"
            ))
        })?;
        if adds && !self.shared.exists(key)? {
            return Err(SourceError::NotFound(key.clone()));
        }
        let path = self.shared.root.join(path);
        let _turn = self.turn.lock();
        let old = read(&path).map_err(|e| io_error("read", &path, e))?;
        let mut new = old.clone().unwrap_or_default();
        change(&mut new);
        if old.as_ref() == Some(&new) || (old.is_none() && new.is_empty()) {
            return Ok(());
        }
        if new.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(io_error("remove", &path, error))
                }
                _ => Ok(()),
            };
        }
        replace(&path, &new).map_err(|e| io_error("write", &path, e))
    }
}

impl Writer for FolderWriter {
    fn write_route_parents<'a>(
        &'a self,
        key: &'a ObjectKey,
        parents: Vec<Value>,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            self.update(
                key,
                layout::status_path(key),
                !parents.is_empty(),
                |status| {
                    let mut entries = take_list(status, "parents");
                    entries.retain(|e| e.get("controllerName") != Some(&json!(CONTROLLER_NAME)));
                    entries.extend(parents);
                    put_list(status, "parents", entries);
                },
            )
        })
    }

    fn write_condition<'a>(
        &'a self,
        key: &'a ObjectKey,
        condition: Value,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            self.update(key, layout::status_path(key), true, |status| {
                let mut conditions = take_list(status, "conditions");
                match conditions
                    .iter_mut()
                    .find(|c| c.get("type") == condition.get("type"))
                {
                    Some(old) => *old = condition,
                    None => conditions.push(condition),
                }
                put_list(status, "conditions", conditions);
            })
        })
    }

    fn annotate<'a>(
        &'a self,
        key: &'a ObjectKey,
        annotations: BTreeMap<String, Option<String>>,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let adds = annotations.values().any(Option::is_some);
            self.update(key, layout::annotations_path(key), adds, |file| {
                for (name, value) in annotations {
                    match value {
                        Some(value) => file.insert(name, value.into()),
                        None => file.remove(&name),
                    };
                }
            })
        })
    }
}

fn take_list(object: &mut Map<String, Value>, field: &str) -> Vec<Value> {
    match object.remove(field) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

fn put_list(object: &mut Map<String, Value>, field: &str, list: Vec<Value>) {
    if !list.is_empty() {
        object.insert(field.into(), list.into());
    }
}

fn read(path: &Path) -> io::Result<Option<Map<String, Value>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            let path = path.display();
            tracing::warn!(%path, %error, "what this file held is no JSON object and is replaced");
            Map::new()
        }))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn replace(path: &Path, value: &Map<String, Value>) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(folder)?;
    let name = format!(
        ".{}.{}.{}.tmp",
        path.file_name().unwrap_or_default().to_string_lossy(),
        std::process::id(),
        TEMPORARY.fetch_add(1, Ordering::Relaxed),
    );
    let temporary = folder.join(name);
    let written = fs::write(&temporary, serde_json::to_vec_pretty(value)?)
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

//! A folder that stands for the API: `manifests/` holds objects as users apply them, `status/` and
//! `annotations/` hold what weft's parts write back, laid over them.
//!
//! Flows in: files (read at the start, then followed with inotify). Flows out: [`Event`]s, and the
//! files that [`FolderWriter`] replaces by rename.

mod layout;
mod parse;
mod tree;
mod watch;
mod writer;

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::RwLock;
use tokio::sync::mpsc;

pub use parse::{ParseError, parse_documents, parse_with_origins};
pub use writer::FolderWriter;

use crate::{BoxFuture, Event, Object, ObjectKey, Source, SourceError};
use tree::{Content, Tree};

/// Events that may wait for a slow reader; what comes on top waits in inotify's queue, and if that
/// overflows in a new reading of the folder.
const EVENT_QUEUE: usize = 1024;

/// Reads objects from a folder.
pub struct FolderSource {
    shared: Arc<Shared>,
}

/// What the source and its writers have in common.
struct Shared {
    root: PathBuf,
    /// The file that holds an object, as a running watch knows it: it saves reading all of them.
    index: RwLock<HashMap<ObjectKey, PathBuf>>,
}

impl FolderSource {
    /// A source over the folder at `root`. Nothing is read yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let shared = Shared {
            root: root.into(),
            index: RwLock::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// A writer of statuses and annotations of the same folder.
    pub fn writer(&self) -> FolderWriter {
        FolderWriter::new(Arc::clone(&self.shared))
    }
}

impl Source for FolderSource {
    fn watch(&self) -> BoxFuture<'_, Result<mpsc::Receiver<Event>, SourceError>> {
        Box::pin(async {
            let watcher = watch::Watcher::new(Arc::clone(&self.shared))?;
            let (sender, receiver) = mpsc::channel(EVENT_QUEUE);
            tokio::spawn(watcher.run(sender));
            Ok(receiver)
        })
    }

    fn get<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<Object>, SourceError>> {
        Box::pin(async { self.shared.read(key) })
    }
}

impl Shared {
    /// Reads one object from the files as they are now.
    fn read(&self, key: &ObjectKey) -> Result<Option<Object>, SourceError> {
        let known = self.index.read().get(key).cloned();
        if let Some(path) = known
            && let Some(object) = self.read_from([path], key)
        {
            return Ok(Some(object));
        }
        // Without its root the source is away: that must not pass for "there is no such object".
        fs::metadata(&self.root).map_err(|source| io_error("read", &self.root, source))?;
        let mut paths = Vec::new();
        list(&self.root, Path::new(layout::MANIFESTS), &mut paths)
            .map_err(|source| io_error("read", &self.root.join(layout::MANIFESTS), source))?;
        paths.sort();
        Ok(self.read_from(paths, key))
    }

    fn read_from(
        &self,
        paths: impl IntoIterator<Item = PathBuf>,
        key: &ObjectKey,
    ) -> Option<Object> {
        let mut tree = Tree::default();
        for path in paths {
            // Parsing is what costs: skip what can't hold the object.
            match read_content(&self.root.join(&path)) {
                Content::Text(text) if text.contains(&key.name) => {
                    tree.set(&path, Content::Text(text));
                }
                _ => continue,
            }
            if tree.holds(key) {
                break;
            }
        }
        for path in [layout::status_path(key), layout::annotations_path(key)]
            .into_iter()
            .flatten()
        {
            tree.set(&path, read_content(&self.root.join(&path)));
        }
        tree.object(key)
    }

    fn exists(&self, key: &ObjectKey) -> Result<bool, SourceError> {
        Ok(self.index.read().contains_key(key) || self.read(key)?.is_some())
    }
}

/// Lists the files under a folder that count, relative to `root`. A folder that is not there is empty.
fn list(root: &Path, folder: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let entries = match fs::read_dir(root.join(folder)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if layout::is_hidden(&path) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            list(root, &path, found)?;
        } else if layout::is_read(&path) {
            found.push(path);
        }
    }
    Ok(())
}

fn read_content(path: &Path) -> Content {
    match fs::read(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Content::Text(text),
            Err(_) => Content::Unreadable("is not UTF-8; save it as UTF-8 text".into()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Content::Gone,
        Err(error) => Content::Unreadable(format!("can't be read: {error}")),
    }
}

fn io_error(what: &str, path: &Path, source: io::Error) -> SourceError {
    SourceError::Io {
        what: format!("{what} {}", path.display()),
        source,
    }
}

#[cfg(test)]
mod tests;

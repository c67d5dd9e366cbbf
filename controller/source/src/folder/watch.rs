//! Follows the folder: inotify's events in, [`Event`]s out.
//!
//! Every folder is watched before it is listed, so nothing falls between the two. inotify is used
//! directly: wrappers ask for events of reading as well, with which each reader of the folder wakes
//! all others. A file is read when its writer closes it or when it is renamed into place.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsString,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::{io::unix::AsyncFd, sync::mpsc, task::spawn_blocking, time::sleep};

use super::{Shared, io_error, layout, read_content, tree::Content, tree::Tree};
use crate::{Event, Object, SourceError};

/// Changes that come closer together than this are read together.
const DEBOUNCE: Duration = Duration::from_millis(5);

/// Room for some hundred events a read.
const BUFFER: usize = 64 * 1024;

pub(super) struct Watcher {
    inotify: AsyncFd<Inotify>,
    state: State,
}

/// What a reading of files needs, apart from inotify's descriptor, so that it can be done on a
/// thread for blocking work.
struct State {
    shared: Arc<Shared>,
    watches: Watches,
    folders: HashMap<WatchDescriptor, PathBuf>,
    root: WatchDescriptor,
    tree: Tree,
}

/// What inotify has told.
#[derive(Default)]
struct Changes {
    paths: BTreeSet<PathBuf>,
    /// Events were lost: everything may have changed.
    overflow: bool,
    root_gone: bool,
}

struct Raw {
    descriptor: WatchDescriptor,
    mask: EventMask,
    name: Option<OsString>,
}

impl Watcher {
    pub(super) fn new(shared: Arc<Shared>) -> Result<Self, SourceError> {
        let inotify = Inotify::init().map_err(|source| SourceError::Io {
            what: "begin to watch files (is fs.inotify.max_user_instances too low?)".into(),
            source,
        })?;
        let mut watches = inotify.watches();
        let root = watches
            .add(&shared.root, mask())
            .map_err(|source| io_error("watch the folder", &shared.root, source))?;
        // The constructor that takes its place is unsafe: it asks for a descriptor that is kept open,
        // as `Inotify` keeps its own.
        #[expect(deprecated)]
        let inotify = AsyncFd::new(inotify)
            .map_err(|source| io_error("watch the folder", &shared.root, source))?;
        let folders = HashMap::from([(root.clone(), PathBuf::new())]);
        Ok(Self {
            inotify,
            state: State {
                shared,
                watches,
                folders,
                root,
                tree: Tree::default(),
            },
        })
    }

    /// Tells everything, then changes, until the receiver is dropped or the folder is removed.
    pub(super) async fn run(self, sender: mpsc::Sender<Event>) {
        let Self { mut inotify, state } = self;
        let shared = Arc::clone(&state.shared);
        tokio::select! {
            () = sender.closed() => {}
            result = follow(&mut inotify, state, &sender) => if let Err(error) = result {
                let root = shared.root.display();
                tracing::error!(%root, %error, "the folder of manifests is no longer followed");
            }
        }
        // Nobody keeps it true any more.
        shared.index.write().clear();
    }
}

async fn follow(
    inotify: &mut AsyncFd<Inotify>,
    mut state: State,
    sender: &mpsc::Sender<Event>,
) -> io::Result<()> {
    let mut changes = Changes {
        overflow: true,
        ..Changes::default()
    };
    let mut synced = false;
    loop {
        let events;
        (state, events) = spawn_blocking(move || {
            let events = state.process(changes);
            (state, events)
        })
        .await
        .map_err(io::Error::other)?;
        for event in events {
            if sender.send(event).await.is_err() {
                return Ok(());
            }
        }
        if !synced {
            synced = true;
            if sender.send(Event::Synced).await.is_err() {
                return Ok(());
            }
        }
        changes = state.collect(next(inotify).await?);
        if !changes.root_gone {
            sleep(DEBOUNCE).await;
            let more = state.collect(drain(inotify.get_mut())?);
            changes.paths.extend(more.paths);
            changes.overflow |= more.overflow;
            changes.root_gone |= more.root_gone;
        }
        if changes.root_gone {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the folder was removed",
            ));
        }
    }
}

/// Waits for events.
async fn next(inotify: &mut AsyncFd<Inotify>) -> io::Result<Vec<Raw>> {
    loop {
        let mut ready = inotify.readable_mut().await?;
        let result = ready.try_io(|inotify| match drain(inotify.get_mut()) {
            Ok(events) if events.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            result => result,
        });
        if let Ok(result) = result {
            return result;
        }
    }
}

/// Reads the events that are there now.
fn drain(inotify: &mut Inotify) -> io::Result<Vec<Raw>> {
    let mut buffer = vec![0; BUFFER];
    let mut events = Vec::new();
    loop {
        match inotify.read_events(&mut buffer) {
            Ok(read) => events.extend(read.map(|event| Raw {
                descriptor: event.wd,
                mask: event.mask,
                name: event.name.map(ToOwned::to_owned),
            })),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(events),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn mask() -> WatchMask {
    WatchMask::CLOSE_WRITE
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVE
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR
}

// === impl State ===

impl State {
    /// Turns inotify's events into paths that may have changed.
    fn collect(&mut self, events: Vec<Raw>) -> Changes {
        let mut changes = Changes::default();
        for event in events {
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                changes.overflow = true;
                continue;
            }
            if event.mask.contains(EventMask::IGNORED) {
                changes.root_gone |= event.descriptor == self.root;
                self.folders.remove(&event.descriptor);
                continue;
            }
            if let (Some(folder), Some(name)) = (self.folders.get(&event.descriptor), event.name) {
                let path = folder.join(name);
                // A file that was just made is read once it is closed; a link has nobody to close it.
                let half_written = event.mask == EventMask::CREATE && self.is_being_written(&path);
                if !layout::is_hidden(&path) && !half_written {
                    changes.paths.insert(path);
                }
            }
        }
        changes
    }

    fn is_being_written(&self, path: &Path) -> bool {
        fs::symlink_metadata(self.shared.root.join(path))
            .is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1)
    }

    /// Reads what has changed.
    fn process(&mut self, changes: Changes) -> Vec<Event> {
        if changes.overflow {
            self.scan(Path::new(""));
        } else {
            for path in changes.paths {
                match fs::symlink_metadata(self.shared.root.join(&path)) {
                    Ok(metadata) if metadata.is_dir() => self.scan(&path),
                    Ok(_) => self.read(&path),
                    Err(_) => self.forget(self.tree.paths_under(&path)),
                }
            }
        }
        let events = self.tree.take_events();
        let mut index = self.shared.index.write();
        for event in &events {
            match event {
                Event::Deleted(key) => {
                    index.remove(key);
                }
                Event::Applied(Object { key, .. }) => {
                    if let Some(path) = self.tree.holder(key) {
                        index.insert(key.clone(), path.to_owned());
                    }
                }
                _ => {}
            }
        }
        events
    }

    /// Reads a folder with all below it, and forgets what is no longer there.
    fn scan(&mut self, folder: &Path) {
        let mut gone: BTreeSet<_> = self.tree.paths_under(folder).into_iter().collect();
        self.scan_into(folder, &mut gone);
        self.forget(gone);
    }

    fn scan_into(&mut self, folder: &Path, gone: &mut BTreeSet<PathBuf>) {
        if !layout::is_followed(folder) {
            return;
        }
        let path = self.shared.root.join(folder);
        match self.watches.add(&path, mask()) {
            Ok(descriptor) => {
                self.folders.insert(descriptor, folder.to_owned());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                let path = path.display();
                tracing::error!(%path, %error, "changes of this folder are not seen (is fs.inotify.max_user_watches too low?)");
            }
        }
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    // It may hold what we know: keep that.
                    gone.retain(|known| !known.starts_with(folder));
                    tracing::error!(path = %path.display(), %error, "a folder of manifests can't be listed");
                }
                return;
            }
        };
        for entry in entries.flatten() {
            let path = folder.join(entry.file_name());
            if layout::is_hidden(&path) {
                continue;
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.scan_into(&path, gone);
            } else {
                gone.remove(&path);
                self.read(&path);
            }
        }
    }

    fn read(&mut self, path: &Path) {
        if layout::is_read(path) {
            self.tree
                .set(path, read_content(&self.shared.root.join(path)));
        }
    }

    fn forget(&mut self, paths: impl IntoIterator<Item = PathBuf>) {
        for path in paths {
            self.tree.set(&path, Content::Gone);
        }
    }
}

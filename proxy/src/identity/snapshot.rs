//! Certificates and keys on a memory-backed volume. In flow SVIDs as they are renewed; out they
//! flow again when a successor starts. Files are readable by the proxy's user alone, and replaced
//! by rename, so that none is ever half there.
//!
//! Two proxies share the folder during an upgrade, and learn at different times which identities are
//! needed: each deletes only what itself has written or read, or what is too old for the other to
//! have just written.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    sync::Arc,
};

use foldhash::HashMap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use weft_certs::{SpiffeId, Svid, svid::SvidError};

use crate::files::{self, Version};

/// A folder of SVIDs.
#[derive(Clone, Debug)]
pub struct Snapshot {
    folder: PathBuf,
    /// The files as this process knows them.
    known: Arc<Mutex<HashMap<PathBuf, Version>>>,
}

/// The snapshot can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file or the folder.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not what was written.
    #[error("{path}: {source}")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Not an SVID.
    #[error("{path}: {source}")]
    Svid {
        /// Which.
        path: PathBuf,
        /// Why.
        source: SvidError,
    },
}

#[derive(Serialize, Deserialize)]
struct Stored {
    identity: String,
    chain: Vec<String>,
    key: String,
}

impl Snapshot {
    /// Makes the folder if it is not there.
    pub fn open(folder: PathBuf) -> Result<Self, SnapshotError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|source| SnapshotError::File {
                path: folder.clone(),
                source,
            })?;
        files::clear(&folder);
        Ok(Self {
            folder,
            known: Arc::default(),
        })
    }

    /// The SVID of an identity, if there is one.
    pub fn load(&self, id: &SpiffeId) -> Result<Option<Svid>, SnapshotError> {
        let path = self.path(id);
        let read = || -> io::Result<Vec<u8>> {
            let mut file = fs::File::open(&path)?;
            let version = Version::of(&file.metadata()?);
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            self.known.lock().insert(path.clone(), version);
            Ok(bytes)
        };
        let bytes = match read() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SnapshotError::File { path, source }),
        };
        let stored: Stored =
            serde_json::from_slice(&bytes).map_err(|source| SnapshotError::Syntax {
                path: path.clone(),
                source,
            })?;
        let svid = Svid::from_pem(&stored.chain, &stored.key)
            .map_err(|source| SnapshotError::Svid { path, source })?;
        Ok((svid.id() == id).then_some(svid))
    }

    /// Replaces the SVID of its identity.
    pub fn save(&self, svid: &Svid) -> Result<(), SnapshotError> {
        let (chain, key) = svid.to_pem();
        let path = self.path(svid.id());
        let stored = Stored {
            identity: svid.id().as_str().to_owned(),
            chain,
            key,
        };
        let bytes = serde_json::to_vec(&stored).map_err(|source| SnapshotError::Syntax {
            path: path.clone(),
            source,
        })?;
        match files::replace(&path, &[&bytes]) {
            Ok(version) => {
                self.known.lock().insert(path, version);
                Ok(())
            }
            Err(source) => Err(SnapshotError::File { path, source }),
        }
    }

    /// Deletes the SVIDs of identities that `keep` does not want.
    pub fn retain(&self, keep: impl Fn(&SpiffeId) -> bool) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let stored = fs::read(&path)
                .ok()
                .and_then(|bytes| serde_json::from_slice::<Stored>(&bytes).ok());
            // A file that is not ours, or being written, stays.
            let stale = stored
                .and_then(|stored| stored.identity.parse::<SpiffeId>().ok())
                .is_some_and(|id| !keep(&id));
            let is_anothers = entry.metadata().is_ok_and(|file| {
                self.known.lock().get(&path) != Some(&Version::of(&file)) && !files::is_old(&file)
            });
            if !stale || is_anothers {
                continue;
            }
            self.known.lock().remove(&path);
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "can't delete a stale key");
            }
        }
    }

    fn path(&self, id: &SpiffeId) -> PathBuf {
        // For people; what counts is the identity inside, which is checked.
        let name = format!(
            "{}_{}_{}.json",
            id.trust_domain(),
            id.namespace(),
            id.service_account()
        );
        self.folder.join(name)
    }
}

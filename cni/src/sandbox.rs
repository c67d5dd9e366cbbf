//! Records of the sandboxes on a node, one file each, so that an agent that starts knows every pod
//! that runs already, in the mesh or not.
//!
//! The plugin writes a record at ADD and removes it at DEL; the agent only reads, and removes the
//! record of a sandbox whose network namespace has vanished. Beside it the agent remembers what the
//! API said of a pod that it captures, to serve it as before if it starts while the API is away.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::objects::Desired;

/// One sandbox as the runtime described it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// The CNI container id: the sandbox's key everywhere in weft.
    pub container_id: String,
    /// Path of the network namespace.
    pub netns: PathBuf,
    /// Name of the interface in the pod.
    pub ifname: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod; empty if the runtime does not tell.
    #[serde(default)]
    pub uid: String,
    /// The pod's addresses, from the plugins before in the chain.
    pub addresses: Vec<IpAddr>,
}

impl Sandbox {
    /// The pod as `namespace/name`.
    pub fn pod_name(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }
}

/// Whether an id is one that CNI allows; only such an id may become part of a path.
pub fn is_valid_id(id: &str) -> bool {
    id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// Why a record can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The container id can't be part of a file name.
    #[error("container id {0:?} is not one that CNI allows")]
    Id(String),
    /// A file operation failed.
    #[error("can't {what} {path}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The record is no JSON of a sandbox.
    #[error("can't read the sandbox record {path}: {source}; remove it if its pod is gone")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
}

/// Extension of the file with what the API said of a captured sandbox's pod.
const DESIRED: &str = "desired";

/// The records of one node: `RUN_DIR/sandboxes/<container id>.json`.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// The records below a run directory; nothing is touched yet.
    pub fn new(run_dir: &Path) -> Self {
        Self {
            dir: Self::folder(run_dir),
        }
    }

    /// Where the records of a run directory are.
    pub(crate) fn folder(run_dir: &Path) -> PathBuf {
        run_dir.join("sandboxes")
    }

    fn path(&self, id: &str) -> Result<PathBuf, SandboxError> {
        self.file(id, "json")
    }

    fn file(&self, id: &str, extension: &str) -> Result<PathBuf, SandboxError> {
        if is_valid_id(id) {
            Ok(self.dir.join(format!("{id}.{extension}")))
        } else {
            Err(SandboxError::Id(id.to_owned()))
        }
    }

    /// Writes down what the API says of a sandbox's pod.
    pub fn remember(&self, id: &str, desired: &Desired) -> Result<(), SandboxError> {
        self.replace(id, &self.file(id, DESIRED)?, desired)
    }

    /// What was remembered of a sandbox's pod.
    pub fn recall(&self, id: &str) -> Result<Option<Desired>, SandboxError> {
        read(&self.file(id, DESIRED)?)
    }

    /// Writes a record; a reader sees the old one or the new one, never half of it.
    pub fn write(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        let id = &sandbox.container_id;
        self.replace(id, &self.path(id)?, sandbox)
    }

    fn replace(&self, id: &str, path: &Path, what: &impl Serialize) -> Result<(), SandboxError> {
        let failed = |source| SandboxError::Io {
            what: "write",
            path: path.to_owned(),
            source,
        };
        fs::create_dir_all(&self.dir).map_err(failed)?;
        let text = serde_json::to_vec_pretty(what).map_err(|e| failed(e.into()))?;
        let temporary = self.dir.join(format!(".{id}.{}", std::process::id()));
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, path))
            .map_err(failed)
    }

    /// Removes a record, and what is remembered; that it is gone already is no error.
    pub fn remove(&self, id: &str) -> Result<(), SandboxError> {
        for path in [self.path(id)?, self.file(id, DESIRED)?] {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(SandboxError::Io {
                        what: "remove",
                        path,
                        source,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads one record.
    pub fn read(&self, id: &str) -> Result<Option<Sandbox>, SandboxError> {
        read(&self.path(id)?)
    }

    /// Reads all records; each that can't be read is an error of its own.
    pub fn list(&self) -> Vec<Result<Sandbox, SandboxError>> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(source) => {
                return vec![Err(SandboxError::Io {
                    what: "list",
                    path: self.dir.clone(),
                    source,
                })];
            }
        };
        let mut paths: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "json")
            })
            .collect();
        paths.sort();
        paths
            .iter()
            .filter_map(|path| read(path).transpose())
            .collect()
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, SandboxError> {
    match fs::read(path) {
        Ok(text) => {
            serde_json::from_slice(&text)
                .map(Some)
                .map_err(|source| SandboxError::Malformed {
                    path: path.to_owned(),
                    source,
                })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SandboxError::Io {
            what: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sandbox(id: &str) -> Sandbox {
        Sandbox {
            container_id: id.into(),
            netns: "/var/run/netns/a".into(),
            ifname: "eth0".into(),
            namespace: "shop".into(),
            pod: "web".into(),
            uid: "u".into(),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        }
    }

    #[test]
    fn records_come_back_as_written_and_a_broken_one_fails_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        assert!(store.list().is_empty());
        for id in ["b", "a"] {
            store.write(&sandbox(id)).unwrap();
        }
        fs::write(dir.path().join("sandboxes/c.json"), "{").unwrap();
        let list = store.list();
        assert_eq!(list[0].as_ref().unwrap(), &sandbox("a"));
        assert_eq!(list[1].as_ref().unwrap(), &sandbox("b"));
        assert!(matches!(list[2], Err(SandboxError::Malformed { .. })));
        let desired = Desired {
            captured: true,
            strict: true,
            service_account: "cashier".into(),
            probe_ports: vec![8080],
        };
        store.remember("a", &desired).unwrap();
        assert_eq!(store.recall("a").unwrap(), Some(desired));
        assert_eq!(store.recall("b").unwrap(), None);
        store.remove("a").unwrap();
        store.remove("a").unwrap();
        assert_eq!(store.read("a").unwrap(), None);
        assert_eq!(store.recall("a").unwrap(), None);
        assert_eq!(store.read("b").unwrap(), Some(sandbox("b")));
    }

    #[test]
    fn an_id_that_would_leave_the_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        for id in ["", "../x", "a/b", ".hidden", "-x", "a b", "ä"] {
            assert!(
                matches!(store.write(&sandbox(id)), Err(SandboxError::Id(_))),
                "{id}"
            );
            assert!(matches!(store.remove(id), Err(SandboxError::Id(_))), "{id}");
        }
    }
}

//! The marks of the proxy's sockets in pods. In flows a container id, out flows a number that nobody
//! in the pod can know or guess: whoever knows it passes the pod's redirects.
//!
//! Derived from a key of the node, so that an agent that restarts says the same again and nothing
//! has to be kept per sandbox.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};
use weft_api::names::{MARK_PROXY, MARK_TRANSPARENT};

/// The key's file in the run directory.
const FILE: &str = "marks.key";
const KEY: usize = 32;

/// Where the key is.
pub(crate) fn path(run_dir: &Path) -> PathBuf {
    run_dir.join(FILE)
}

/// The key can't be read or made.
#[derive(Debug, thiserror::Error)]
#[error(
    "can't {what} {path}: {source}; without the key of its marks the proxy can't be told from the pod's own programs"
)]
pub struct MarksError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Knows the mark of every sandbox of this node.
pub struct Marks {
    key: [u8; KEY],
}

impl Marks {
    /// With the key of the run directory, which is made if there is none.
    pub fn open(run_dir: &Path) -> Result<Self, MarksError> {
        let path = path(run_dir);
        let failed = |what| {
            let path = path.clone();
            move |source| MarksError { what, path, source }
        };
        match fs::read(&path) {
            Ok(bytes) => match bytes.try_into() {
                Ok(key) => return Ok(Self { key }),
                // Half of a file, for it was not synced before the machine went down.
                Err(_) => tracing::warn!(path = %path.display(), "no key; making a new one"),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("read")(error)),
        }
        let key: [u8; KEY] = rand::random();
        let temporary = run_dir.join(format!(".{FILE}.{}", std::process::id()));
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(&key))
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(failed("write"))?;
        Ok(Self { key })
    }

    /// The mark of a sandbox. Never one that means something to the rules, or nothing at all.
    pub fn of(&self, container_id: &str) -> u32 {
        let taken = [0, MARK_PROXY, MARK_TRANSPARENT];
        let mut digest = Sha256::new()
            .chain_update(self.key)
            .chain_update(container_id);
        loop {
            let bytes = digest.finalize();
            let mark = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            if !taken.contains(&mark) {
                return mark;
            }
            digest = Sha256::new().chain_update(self.key).chain_update(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{collections::HashSet, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn marks_outlive_the_agent_and_differ_by_sandbox_and_node() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let marks = Marks::open(here.path()).unwrap();
        let again = Marks::open(here.path()).unwrap();
        let other = Marks::open(there.path()).unwrap();
        let ids: Vec<_> = (0..1000).map(|n| format!("sandbox-{n}")).collect();
        let distinct: HashSet<_> = ids.iter().map(|id| marks.of(id)).collect();
        // Of 1,000 numbers of 32 bits two are the same once in ten thousand runs.
        assert!(distinct.len() > 995, "{}", distinct.len());
        for id in &ids {
            assert_eq!(marks.of(id), again.of(id));
            assert_ne!(marks.of(id), MARK_TRANSPARENT);
        }
        assert!(ids.iter().filter(|id| marks.of(id) == other.of(id)).count() < 5);
        let mode = fs::metadata(here.path().join(FILE)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }

    #[test]
    fn half_a_key_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "half").unwrap();
        let marks = Marks::open(dir.path()).unwrap();
        assert_eq!(marks.of("a"), Marks::open(dir.path()).unwrap().of("a"));
    }
}

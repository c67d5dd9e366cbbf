//! Files of the snapshot's folder, which two proxies share during an upgrade: replaced by rename, never
//! half there, and readable by the proxy's user alone.

use std::{
    fs::{self, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};

/// Of names of files that are being written. A random part keeps two writers apart: by its process id
/// a proxy in a container is no different from any other.
const TEMPORARY: &str = ".writing-";
/// Longer than two proxies of an upgrade are there at the same time: what is older, no other proxy has
/// just written.
const OVERLAP: Duration = Duration::from_secs(600);

/// Tells a file from the one that took its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    inode: u64,
    modified: (i64, i64),
}

impl Version {
    /// Of a file.
    pub(crate) fn of(file: &Metadata) -> Self {
        Self {
            inode: file.ino(),
            modified: (file.mtime(), file.mtime_nsec()),
        }
    }
}

/// Replaces a file by these pieces.
pub(crate) fn replace(path: &Path, pieces: &[&[u8]]) -> io::Result<Version> {
    let temporary = path.with_file_name(format!("{TEMPORARY}{:016x}", rand::random::<u64>()));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        for piece in pieces {
            file.write_all(piece)?;
        }
        let version = Version::of(&file.metadata()?);
        fs::rename(&temporary, path)?;
        Ok(version)
    })();
    if written.is_err() {
        // Best effort: what is wrong is said by the first error.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Whether a file is so old that no other proxy has just written it.
pub(crate) fn is_old(file: &Metadata) -> bool {
    file.modified()
        .ok()
        .and_then(|modified| modified.elapsed().ok())
        .is_some_and(|age| age > OVERLAP)
}

/// Removes what proxies that crashed while they wrote have left in a folder.
pub(crate) fn clear(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_temporary = entry.file_name().to_string_lossy().starts_with(TEMPORARY);
        if is_temporary && entry.metadata().is_ok_and(|file| is_old(&file)) {
            // It is small, and looked for again at the next start.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::PermissionsExt, time::SystemTime};

    use super::*;

    #[test]
    fn a_replaced_file_is_another_version_and_only_old_leftovers_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let first = replace(&path, &[b"one"]).expect("written");
        assert_eq!(first, Version::of(&fs::metadata(&path).expect("there")));
        let second = replace(&path, &[b"t", b"wo"]).expect("written");
        assert_ne!(first, second);
        assert_eq!(fs::read(&path).expect("there"), b"two");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let (old, new) = (
            folder.path().join(".writing-1"),
            folder.path().join(".writing-2"),
        );
        for path in [&old, &new] {
            fs::write(path, "half").expect("written");
        }
        let then = SystemTime::now() - 2 * OVERLAP;
        File::options()
            .write(true)
            .open(&old)
            .and_then(|file| file.set_modified(then))
            .expect("aged");
        clear(folder.path());
        assert!(!old.exists());
        assert!(new.exists() && path.exists());
    }
}

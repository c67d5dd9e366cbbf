//! Files of the host that others read at any time: replaced by rename, and on the disk before that.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::InstallError;

/// What it is to replace is written first to `.NAME.weft-new` beside it: no runtime takes that for a
/// configuration or a plugin. A name for each file, for chain and kubeconfig are written at once.
const TEMPORARY: &str = "weft-new";

/// The mode of a file.
pub(super) enum Mode {
    /// This one.
    Is(u32),
    /// That of another file, or the usual one of a configuration.
    Like(PathBuf),
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::Io { what, path, source }
}

/// A file's text; `None` if there is no such file (any more).
pub(super) fn read(path: &Path) -> Result<Option<String>, InstallError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", path)(source)),
    }
}

/// Replaces a file. Over a power cut there is the old one or the new one, never an empty one.
pub(super) fn replace(path: &Path, contents: &[u8], mode: &Mode) -> Result<(), InstallError> {
    let mode = match mode {
        Mode::Is(mode) => *mode,
        Mode::Like(other) => {
            fs::metadata(other).map_or(0o644, |metadata| metadata.permissions().mode())
        }
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{TEMPORARY}"));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(contents)?;
        file.set_permissions(Permissions::from_mode(mode & 0o777))?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder(path)
    })();
    if written.is_err() {
        // Best effort: what is wrong is said by the first error.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(failed("write", path))
}

/// Renames a file.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), InstallError> {
    fs::rename(from, to)
        .and_then(|()| sync_folder(to))
        .map_err(failed("rename", from))
}

/// Removes a file; that it is gone already is no error.
pub(super) fn remove(path: &Path) -> Result<(), InstallError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result
            .and_then(|()| sync_folder(path))
            .map_err(failed("remove", path)),
    }
}

/// Copies a program to where it is run from, unless it is there.
pub(super) fn install_binary(from: &Path, to: &Path) -> Result<(), InstallError> {
    let program = fs::read(from).map_err(failed("read", from))?;
    let is_there = fs::metadata(to).is_ok_and(|there| {
        there.permissions().mode() & 0o777 == 0o755
            && usize::try_from(there.len()) == Ok(program.len())
    }) && fs::read(to).is_ok_and(|there| there == program);
    if is_there {
        return Ok(());
    }
    replace(to, &program, &Mode::Is(0o755))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn files_that_are_replaced_at_once_in_one_folder_get_each_its_own_text() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["10-pods.conflist", "weft.kubeconfig"];
        thread::scope(|scope| {
            for name in names {
                let path = folder.path().join(name);
                scope.spawn(move || {
                    for round in 0..100 {
                        let text = format!("{name} {round}");
                        replace(&path, text.as_bytes(), &Mode::Is(0o600)).unwrap();
                        assert_eq!(read(&path).unwrap(), Some(text));
                    }
                });
            }
        });
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, names);
    }
}

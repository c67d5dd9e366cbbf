//! The CA's root on disk: made once, then loaded.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    time::SystemTime,
};

use anyhow::{Context, bail};
use weft_certs::{CertificateAuthority, ca::ROOT_LIFETIME};

/// Loads the CA of a folder (`root.pem`, `root.key`), or makes it if there is none.
pub fn load_or_create(folder: &Path, trust_domain: &str) -> anyhow::Result<CertificateAuthority> {
    fs::create_dir_all(folder)
        .with_context(|| format!("make the CA's folder {}", folder.display()))?;
    // Two controllers that start at once must not make two roots.
    let lock = File::create(folder.join(".lock")).context("lock the CA's folder")?;
    lock.lock().context("lock the CA's folder")?;
    let (certificate, key) = (folder.join("root.pem"), folder.join("root.key"));
    match (read(&certificate)?, read(&key)?) {
        (Some(chain), Some(key_pem)) => {
            let mode = fs::metadata(&key)?.permissions().mode();
            if mode & 0o077 != 0 {
                tracing::warn!(
                    key = %key.display(), mode = format!("{:o}", mode & 0o777),
                    "others may read the CA's key; chmod it to 600"
                );
            }
            CertificateAuthority::load(trust_domain, &chain, &key_pem)
                .with_context(|| format!("load the CA from {}", folder.display()))
        }
        (Some(_), None) => bail!(
            "{} is there, but {} is not: restore it, or remove the former to begin with a new root that \
             no running proxy trusts",
            certificate.display(),
            key.display(),
        ),
        // A key alone is what an interrupted first start leaves: nobody trusts it yet.
        (None, _) => {
            let ca = CertificateAuthority::generate(trust_domain, SystemTime::now(), ROOT_LIFETIME)
                .context("make the CA's root")?;
            let (chain, key_pem) = ca.to_pem();
            replace(&key, key_pem.as_bytes(), 0o600)?;
            replace(&certificate, chain.as_bytes(), 0o644)?;
            tracing::info!(folder = %folder.display(), trust_domain, "made a new root");
            Ok(ca)
        }
    }
}

/// Writes a file so that readers see all of it or what was there before.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> anyhow::Result<()> {
    let write = || -> io::Result<()> {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        // The umask may have taken something away, or the file may be an old one.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(contents)?;
        // A root that is lost in a crash is lost for every certificate.
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_made_once_and_kept_private() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("ca");
        let made = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| load_or_create(&path, "test.local").unwrap()))
                .collect();
            threads
                .into_iter()
                .map(|t| t.join().unwrap().to_pem())
                .collect::<Vec<_>>()
        });
        assert!(
            made.iter().all(|pem| *pem == made[0]),
            "one root, however many start at once"
        );
        let mode = fs::metadata(path.join("root.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_lost_key_is_named_and_a_foreign_trust_domain_refused() {
        let folder = tempfile::TempDir::new().unwrap();
        load_or_create(folder.path(), "test.local").unwrap();
        fs::remove_file(folder.path().join("root.key")).unwrap();
        let error = load_or_create(folder.path(), "test.local")
            .unwrap_err()
            .to_string();
        assert!(error.contains("root.key is not: restore it"), "{error}");
        fs::remove_file(folder.path().join("root.pem")).unwrap();
        fs::write(folder.path().join("root.key"), "interrupted").unwrap();
        load_or_create(folder.path(), "test.local").unwrap();
    }
}

//! Puts the plugin onto the node and into the runtime's network configuration, keeps it there, and
//! takes it off again.
//!
//! Flows in: the folders of the host's CNI configuration and binaries, and what is to be there.
//! Flows out: the binary, our entry last in the chain ([`chain`]), the plugin's kubeconfig; and
//! whether that is so ([`keep`]). Every file is replaced by rename, so no runtime reads half of one.

pub mod chain;
mod files;
mod keep;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use chain::{ChainError, Entry, PLUGIN};
pub use keep::{State, keep};

/// The plugin's kubeconfig, in the configuration's folder.
pub const KUBECONFIG: &str = "weft.kubeconfig";
/// Added to the name of a configuration of a single plugin that a list of ours has taken the place of.
const SAVED: &str = ".weft-saved";

/// Why the node could not be brought into order.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
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
    /// The configuration that the runtime uses is of a form that the plugin can't be in.
    #[error("can't chain weft-cni into {path}: {source}")]
    Chain {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ChainError,
    },
}

/// What was found, and done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chain {
    /// The configuration in this file ends with our entry, as it did before.
    InPlace(PathBuf),
    /// It does now.
    Put(PathBuf),
    /// There is no configuration to chain into.
    Missing,
}

/// Where everything belongs on a node.
#[derive(Clone, Debug)]
pub struct Installer {
    /// The network configurations, as the runtime reads them.
    pub conf_dir: PathBuf,
    /// The plugins' binaries.
    pub bin_dir: PathBuf,
    /// Our entry in the chain.
    pub entry: Entry,
    /// The plugin to install; none for [`Installer::remove`] alone.
    pub plugin: PathBuf,
}

impl Installer {
    /// Puts binary and chain in order; changes nothing that is.
    pub fn put(&self) -> Result<Chain, InstallError> {
        // First: a chain that names a binary which is not there keeps every pod from starting.
        files::install_binary(&self.plugin, &self.bin_dir.join(PLUGIN))?;
        for name in self.configurations()? {
            let path = self.conf_dir.join(&name);
            let Some(text) = files::read(&path)? else {
                continue;
            };
            let failed = |source| InstallError::Chain {
                path: path.clone(),
                source,
            };
            let put = if chain::is_list(&name) {
                chain::chained(&text, &self.entry).map(|text| text.map(|text| (path.clone(), text)))
            } else {
                let list = path.with_extension("conflist");
                chain::listed(&text, &self.entry).map(|text| Some((list, text)))
            };
            match put {
                Ok(None) => return Ok(Chain::InPlace(path)),
                Ok(Some((list, text))) => {
                    files::replace(&list, text.as_bytes(), &files::Mode::Like(path.clone()))?;
                    if list != path {
                        // From now on the list is first.
                        files::rename(&path, &saved(&path))?;
                    }
                    return Ok(Chain::Put(list));
                }
                // Runtimes pass over it, or use none at all; what follows may become the first.
                Err(source @ ChainError::Malformed(_)) => {
                    tracing::debug!(error = %failed(source), "a configuration is passed over");
                }
                Err(source) => return Err(failed(source)),
            }
        }
        Ok(Chain::Missing)
    }

    /// Takes our entry out of every configuration, then kubeconfig and binary away. What can't be
    /// done is told at the end, and does not keep the rest from being done.
    pub fn remove(&self) -> Result<(), InstallError> {
        let mut outcome = Ok(());
        let mut attempt = |result: Result<(), InstallError>| {
            if let (Err(error), Ok(())) = (result, &outcome) {
                outcome = Err(error);
            }
        };
        match self.configurations() {
            Ok(names) => {
                for name in names.iter().filter(|name| chain::is_list(name)) {
                    attempt(self.take_out(&self.conf_dir.join(name)));
                }
            }
            Err(error) => attempt(Err(error)),
        }
        attempt(files::remove(&self.conf_dir.join(KUBECONFIG)));
        if outcome.is_ok() {
            // A chain that still names it needs it.
            outcome = files::remove(&self.bin_dir.join(PLUGIN));
        }
        outcome
    }

    /// Writes the plugin's kubeconfig; only root may read it.
    pub fn write_kubeconfig(&self, text: &str) -> Result<(), InstallError> {
        let path = self.conf_dir.join(KUBECONFIG);
        files::replace(&path, text.as_bytes(), &files::Mode::Is(0o600))
    }

    fn take_out(&self, list: &Path) -> Result<(), InstallError> {
        let Some(text) = files::read(list)? else {
            return Ok(());
        };
        for extension in ["conf", "json"] {
            let single = list.with_extension(extension);
            let Some(was) = files::read(&saved(&single))? else {
                continue;
            };
            if !single.exists() && chain::is_made_of(&text, &was) {
                // While both are there the runtime goes by the first of them: either will do.
                files::rename(&saved(&single), &single)?;
                return files::remove(list);
            }
            // Somebody has changed the list, or written the single one anew.
            files::remove(&saved(&single))?;
        }
        match chain::unchained(&text) {
            Ok(Some(text)) => {
                files::replace(list, text.as_bytes(), &files::Mode::Like(list.to_owned()))
            }
            // What can't be read names us nowhere that a runtime could see.
            Ok(None) | Err(_) => Ok(()),
        }
    }

    fn configurations(&self) -> Result<Vec<String>, InstallError> {
        let failed = |source| InstallError::Io {
            what: "list",
            path: self.conf_dir.clone(),
            source,
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.conf_dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // A name that is no text is none that a runtime's configuration has.
            if let Ok(name) = entry.file_name().into_string()
                && entry.path().is_file()
            {
                names.push(name);
            }
        }
        Ok(chain::in_order(names))
    }
}

fn saved(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(SAVED);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests;

//! Becomes a process of a pod: `weft __pod-exec FILE [COMMAND…]`, and `weft lab exec`.
//!
//! In: a [`PodExec`] (a file that the lab wrote for the container). Out: this very process runs
//! the command in the pod's network namespace, with the pod's hostname, `/etc/hosts` and no name
//! server, so signals, the terminal and the exit code need no forwarding.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};
use serde::{Deserialize, Serialize};

/// How to enter a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PodExec {
    pub(crate) netns: PathBuf,
    pub(crate) hostname: String,
    /// Laid over `/etc/hosts`.
    pub(crate) hosts: PathBuf,
    /// Laid over `/etc/resolv.conf`.
    pub(crate) resolv: PathBuf,
    pub(crate) working_dir: Option<PathBuf>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) command: Vec<String>,
    /// Where programs are looked for before `PATH`: the folder of weft's own binaries.
    pub(crate) programs: PathBuf,
}

/// Reads the file, enters the pod and becomes the command. Returns only on failure.
pub(crate) fn run(file: &Path, command: &[OsString]) -> anyhow::Error {
    match enter(file, command) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn enter(file: &Path, command: &[OsString]) -> anyhow::Result<std::convert::Infallible> {
    let text = fs::read(file).with_context(|| format!("can't read {}", file.display()))?;
    let exec: PodExec = serde_json::from_slice(&text)?;
    let command: Vec<OsString> = if command.is_empty() {
        exec.command.iter().map(OsString::from).collect()
    } else {
        command.to_vec()
    };
    let (program, args) = command.split_first().context("no command")?;

    let netns = fs::File::open(&exec.netns)
        .with_context(|| format!("the pod's network namespace {}", exec.netns.display()))?;
    setns(netns, CloneFlags::CLONE_NEWNET).context("can't enter the pod's network namespace")?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
        .context("can't make the pod's mount namespace")?;
    let none = None::<&str>;
    // Slave: what the host unmounts goes away here too, what happens here stays here.
    mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)
        .context("can't detach the pod's mounts")?;
    bind(&exec.hosts, "/etc/hosts")?;
    bind(&exec.resolv, "/etc/resolv.conf")?;
    nix::unistd::sethostname(&exec.hostname).context("can't set the hostname")?;

    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let found = find(Path::new(program), &exec.programs, &path)
        .with_context(|| format!("program {} not found", program.display()))?;
    let mut process = Command::new(found);
    process
        .arg0(program)
        .args(args)
        .env_clear()
        .env("PATH", path);
    for inherited in ["HOME", "LANG", "TERM"] {
        if let Some(value) = std::env::var_os(inherited) {
            process.env(inherited, value);
        }
    }
    process.env("HOSTNAME", &exec.hostname).envs(&exec.env);
    if let Some(folder) = &exec.working_dir {
        process.current_dir(folder);
    }
    Err(process.exec()).with_context(|| format!("can't run {}", program.display()))
}

fn bind(from: &Path, to: &str) -> anyhow::Result<()> {
    let none = None::<&str>;
    match mount(Some(from), to, none, MsFlags::MS_BIND, none) {
        // A host without the file needs no cover for it.
        Err(nix::errno::Errno::ENOENT) if !Path::new(to).exists() => Ok(()),
        result => result.with_context(|| format!("can't lay {} over {to}", from.display())),
    }
}

/// A path is taken as it is; a name is looked for beside `weft`, then in `PATH`.
fn find(program: &Path, first: &Path, path: &std::ffi::OsStr) -> Option<PathBuf> {
    if program.components().count() > 1 || program.has_root() {
        return Some(program.to_owned());
    }
    std::iter::once(first.to_owned())
        .chain(std::env::split_paths(path))
        .map(|folder| folder.join(program))
        .find(|candidate| {
            nix::unistd::access(candidate, nix::unistd::AccessFlags::X_OK).is_ok()
                && candidate.is_file()
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_program_is_looked_for_beside_weft_and_then_in_the_path() {
        let own = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        for (folder, name) in [(&own, "both"), (&other, "both"), (&other, "one")] {
            let file = folder.path().join(name);
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(other.path().join("data"), "").unwrap();
        let find = |name: &str| find(Path::new(name), own.path(), other.path().as_os_str());
        assert_eq!(find("both"), Some(own.path().join("both")));
        assert_eq!(find("one"), Some(other.path().join("one")));
        assert_eq!(find("data"), None);
        assert_eq!(find("/bin/x"), Some("/bin/x".into()));
        assert_eq!(find("./x"), Some("./x".into()));
    }
}

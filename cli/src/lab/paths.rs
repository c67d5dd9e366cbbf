//! Where a lab keeps its things, and the record by which a later `down` finds what to stop.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use nix::{sys::signal::Signal, unistd::Pid};
use serde::{Deserialize, Serialize};

/// The folder of all labs.
pub(crate) const ROOT: &str = "/run/weft/lab";

/// The folder of one lab.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    root: PathBuf,
}

impl Paths {
    pub(crate) fn of(lab: &str) -> Self {
        Self {
            root: Path::new(ROOT).join(lab),
        }
    }
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }
    pub(crate) fn state(&self) -> PathBuf {
        self.root.join("state.json")
    }
    pub(crate) fn socket(&self) -> PathBuf {
        self.root.join("lab.sock")
    }
    /// The folder that stands for the API.
    pub(crate) fn api(&self) -> PathBuf {
        self.root.join("api")
    }
    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }
    pub(crate) fn daemon_log(&self) -> PathBuf {
        self.logs().join("lab.log")
    }
    /// The log of a part: `controller`, `agent/n1`, `proxy/n1`.
    pub(crate) fn part_log(&self, part: &str) -> PathBuf {
        self.logs().join(format!("{}.log", part.replace('/', "-")))
    }
    /// The proxy's access log, JSON lines.
    pub(crate) fn access_log(&self, node: &str) -> PathBuf {
        self.logs().join(format!("access-{node}.log"))
    }
    pub(crate) fn container_log(&self, namespace: &str, pod: &str, container: &str) -> PathBuf {
        self.logs()
            .join("pods")
            .join(format!("{namespace}_{pod}_{container}.log"))
    }
    /// Run-dir of a node's agent and plugin.
    pub(crate) fn node(&self, node: &str) -> PathBuf {
        self.root.join("nodes").join(node)
    }
    /// Files of one pod: hosts and how to enter its containers.
    pub(crate) fn pod(&self, namespace: &str, pod: &str) -> PathBuf {
        self.root.join("pods").join(format!("{namespace}_{pod}"))
    }
    /// How to enter a container.
    pub(crate) fn container(&self, namespace: &str, pod: &str, container: &str) -> PathBuf {
        self.pod(namespace, pod).join(format!("{container}.json"))
    }
    pub(crate) fn tokens(&self) -> PathBuf {
        self.root.join("tokens")
    }
    pub(crate) fn token(&self, node: &str) -> PathBuf {
        self.root.join(format!("token-{node}"))
    }
    pub(crate) fn bundle(&self) -> PathBuf {
        self.root.join("bundle.pem")
    }
    pub(crate) fn ca(&self) -> PathBuf {
        self.root.join("ca")
    }
    pub(crate) fn cni(&self) -> PathBuf {
        self.root.join("cni")
    }
}

/// All labs that have a folder.
pub(crate) fn labs() -> Vec<String> {
    let Ok(entries) = fs::read_dir(ROOT) else {
        return Vec::new();
    };
    let mut labs: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| super::plan::check_name(name).is_ok())
        .collect();
    labs.sort();
    labs
}

/// A process, told from a later one with the same id by its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// Clock ticks since boot, field 22 of `/proc/PID/stat`.
    pub(crate) start: u64,
}

impl Process {
    /// The record of a running process.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, start) = parse_stat(&stat)
            .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is not as proc(5) says")))?;
        let pid = i32::try_from(pid).map_err(io::Error::other)?;
        Ok(Self { pid, start })
    }

    /// Whether it still runs.
    pub(crate) fn runs(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .ok()
            .and_then(|stat| parse_stat(&stat))
            .is_some_and(|(state, start)| state != 'Z' && start == self.start)
    }

    /// Sends it a signal if it still runs.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.runs() {
            let _ = nix::sys::signal::kill(Pid::from_raw(self.pid), signal);
        }
    }
}

/// State and start time; the command's name, in parentheses, may hold anything.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// What is recorded of a running lab.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) name: String,
    /// The `weft lab up` process.
    pub(crate) daemon: Process,
    pub(crate) nodes: u8,
    pub(crate) mesh: bool,
}

impl State {
    pub(crate) fn read(paths: &Paths) -> anyhow::Result<Option<Self>> {
        let path = paths.state();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("can't read {}", path.display()))?,
        };
        let state = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged: run `weft lab down`", path.display()))?;
        Ok(Some(state))
    }

    pub(crate) fn write(&self, paths: &Paths) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        write_atomic(&paths.state(), &text).context("can't record the lab's state")
    }
}

/// Replaces a file in one step, so that nobody reads half of it.
pub(crate) fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    // Dot-files are not read by those who follow the folder.
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let temporary = folder.join(name);
    fs::write(&temporary, content)?;
    fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_its_successor_by_its_start_time() {
        let mut me = Process::of(std::process::id()).unwrap();
        assert!(me.runs());
        me.start += 1;
        assert!(!me.runs());
    }

    #[test]
    fn a_command_name_with_parentheses_and_spaces_is_skipped() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        assert_eq!(parse_stat(stat), Some(('S', 4242)));
        assert_eq!(parse_stat("7 (a) S 1"), None);
    }
}

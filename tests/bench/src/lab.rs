//! The lab in which everything runs, driven through the command line.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A running lab; dropping it takes it down.
pub(crate) struct Lab {
    bin: PathBuf,
    name: String,
}

impl Lab {
    pub(crate) fn up(bin: &Path, manifests: &Path) -> Result<Self> {
        let lab = Self {
            bin: bin.to_owned(),
            name: format!("bench{}", std::process::id()),
        };
        let path = manifests.to_str().context("a path")?;
        lab.weft(&["up", "-f", path, "--detach", "--timeout", "120"])?;
        Ok(lab)
    }

    fn weft(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(self.bin.join("weft"));
        command
            .args(["lab", "--name", &self.name])
            .args(args)
            .stderr(Stdio::piped());
        let output = command.output().context("weft does not start")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("weft lab {} failed: {said}", args.join(" "));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs a subcommand of this program in a pod, and reads its JSON.
    pub(crate) fn bench<T: DeserializeOwned>(&self, pod: &str, args: &[&str]) -> Result<T> {
        let own = self.bin.join("weft-bench");
        let mut command = vec!["exec", pod, "--", own.to_str().context("a path")?];
        command.extend(args);
        Ok(serde_json::from_str(&self.weft(&command)?)?)
    }

    pub(crate) fn pod_ip(&self, namespace: &str, name: &str) -> Result<String> {
        let out = self.weft(&["get", "pods", "-n", namespace, "-o", "json"])?;
        let pods: Value = serde_json::from_str(&out)?;
        let pods = pods["items"].as_array().cloned().unwrap_or_default();
        let pod = pods.iter().find(|p| p["metadata"]["name"] == name);
        let ip = pod.and_then(|p| p["status"]["podIP"].as_str());
        Ok(ip
            .with_context(|| format!("no pod {namespace}/{name} with an address"))?
            .to_owned())
    }

    /// The proxies' processes.
    pub(crate) fn proxies(&self) -> Result<Vec<u32>> {
        let status: Value = serde_json::from_str(&self.weft(&["status", "-o", "json"])?)?;
        let parts = status["parts"].as_object().cloned().unwrap_or_default();
        let proxies = parts.iter().filter(|(name, _)| name.starts_with("proxy/"));
        let pids: Vec<u32> = proxies
            .filter_map(|(_, p)| u32::try_from(p["pid"].as_u64()?).ok())
            .collect();
        if pids.is_empty() {
            bail!("weft lab status names no proxies: {status}");
        }
        Ok(pids)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.weft(&["down"]) {
            eprintln!("{error:#}; try: weft lab down --name {}", self.name);
        }
    }
}

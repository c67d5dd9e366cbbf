//! Runs a chain of CNI plugins as a container runtime would: ADD in order with `prevResult`
//! handed on, DEL in reverse, each in the node's network namespace.

use std::{
    io::Write,
    net::IpAddr,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{
    family::Family,
    netns,
    paths::Process,
    plan::{NodePlan, POD_BRIDGE},
};

/// What Debian's plugins know.
pub(crate) const VERSION: &str = "1.0.0";
/// How long a plugin may take: far more than one that waits for an agent or a proxy does.
const LIMIT: Duration = Duration::from_secs(60);
/// Where plugins are looked for when `CNI_PATH` does not say.
const DEFAULT_PATHS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// Where plugins are looked for: `CNI_PATH` or the usual places, then weft's own folder.
pub(crate) fn search_path(own: &Path) -> Vec<PathBuf> {
    let mut path: Vec<PathBuf> = match std::env::var_os("CNI_PATH") {
        Some(list) => std::env::split_paths(&list).collect(),
        None => DEFAULT_PATHS.iter().map(PathBuf::from).collect(),
    };
    path.push(own.to_owned());
    path
}

/// Finds a plugin.
pub(crate) fn find(path: &[PathBuf], plugin: &str) -> Option<PathBuf> {
    path.iter()
        .map(|folder| folder.join(plugin))
        .find(|file| file.is_file())
}

/// The configuration list of a node: the primary plugin, and weft's after it if there is a mesh.
pub(crate) fn conflist(node: &NodePlan, data: &Path, weft: Option<Value>) -> Value {
    let ranges: Vec<_> = node
        .pod_cidrs
        .iter()
        .map(|cidr| json!([{"subnet": cidr.to_string()}]))
        .collect();
    let routes: Vec<_> = node
        .pod_cidrs
        .iter()
        .map(|cidr| json!({"dst": Family::of(cidr.address).any()}))
        .collect();
    let bridge = json!({
        "type": "bridge",
        "bridge": POD_BRIDGE,
        "isGateway": true,
        "ipMasq": false,
        "hairpinMode": true,
        "ipam": {
            "type": "host-local",
            "dataDir": data,
            "ranges": ranges,
            "routes": routes,
        },
    });
    let plugins: Vec<_> = std::iter::once(bridge).chain(weft).collect();
    json!({"cniVersion": VERSION, "name": "lab", "plugins": plugins})
}

/// A pod's attachment.
pub(crate) struct Sandbox<'a> {
    pub(crate) conflist: &'a Value,
    pub(crate) path: &'a [PathBuf],
    pub(crate) node_netns: &'a str,
    pub(crate) container_id: &'a str,
    pub(crate) netns: &'a Path,
    /// `K8S_POD_…`.
    pub(crate) args: Vec<(&'static str, String)>,
}

impl Sandbox<'_> {
    /// Attaches; gives the chain's result. A failed chain is taken back, as runtimes do.
    pub(crate) fn add(&self) -> anyhow::Result<Value> {
        let mut result = None;
        for plugin in self.plugins() {
            match self.invoke("ADD", plugin, result.as_ref()) {
                Ok(next) => result = next,
                Err(error) => {
                    let _ = self.delete(result.as_ref());
                    return Err(error);
                }
            }
        }
        result.context("the CNI chain has no result")
    }

    /// Detaches. Every plugin is asked, whatever the others say.
    pub(crate) fn delete(&self, result: Option<&Value>) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        for plugin in self.plugins().iter().rev() {
            if let Err(error) = self.invoke("DEL", plugin, result) {
                outcome = Err(error);
            }
        }
        outcome
    }

    fn plugins(&self) -> &[Value] {
        self.conflist["plugins"]
            .as_array()
            .map_or(&[], Vec::as_slice)
    }

    fn invoke(
        &self,
        command: &str,
        plugin: &Value,
        previous: Option<&Value>,
    ) -> anyhow::Result<Option<Value>> {
        let kind = plugin["type"]
            .as_str()
            .context("a plugin of the conflist has no type")?;
        let program = find(self.path, kind)
            .with_context(|| format!("CNI plugin {kind} not found in {:?}", self.path))?;
        let config = plugin_config(self.conflist, plugin, previous);
        let args: Vec<_> = std::iter::once("IgnoreUnknown=1".to_owned())
            .chain(
                self.args
                    .iter()
                    .map(|(key, value)| format!("{key}={value}")),
            )
            .collect();
        let run = || -> anyhow::Result<Output> {
            let mut child = Command::new(program)
                .env("CNI_COMMAND", command)
                .env("CNI_CONTAINERID", self.container_id)
                .env("CNI_NETNS", self.netns)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_ARGS", args.join(";"))
                .env("CNI_PATH", std::env::join_paths(self.path)?)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let mut stdin = child.stdin.take().context("the plugin's stdin")?;
            // A plugin that exits before it has read all says why on stdout.
            let _ = stdin.write_all(config.to_string().as_bytes());
            drop(stdin);
            Ok(wait_bounded(child)?)
        };
        let output = netns::run(self.node_netns, run)?
            .with_context(|| format!("CNI plugin {kind} can't be run"))?;
        let answer: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        if let Some(signal) = output.status.signal() {
            bail!("CNI {command} by {kind}: ended by signal {signal}; it may take {LIMIT:?}");
        }
        if !output.status.success() {
            return Err(plugin_error(command, kind, answer.as_ref(), &output.stderr));
        }
        if command == "ADD" && answer.is_none() {
            bail!("CNI {command} by {kind}: its result is not JSON");
        }
        Ok(answer)
    }
}

/// Waits for a plugin, and kills it when its time is over.
fn wait_bounded(child: Child) -> std::io::Result<Output> {
    let process = Process::of(child.id())?;
    std::thread::scope(|scope| {
        let (done, ended) = mpsc::channel::<()>();
        scope.spawn(move || {
            if ended.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
                process.signal(Signal::SIGKILL);
            }
        });
        let output = child.wait_with_output();
        drop(done);
        output
    })
}

/// What a plugin gets on stdin.
fn plugin_config(list: &Value, plugin: &Value, previous: Option<&Value>) -> Value {
    let mut config = plugin.clone();
    config["cniVersion"] = list["cniVersion"].clone();
    config["name"] = list["name"].clone();
    if let Some(previous) = previous {
        config["prevResult"] = previous.clone();
    }
    config
}

fn plugin_error(command: &str, kind: &str, answer: Option<&Value>, stderr: &[u8]) -> anyhow::Error {
    let text = |field: &str| {
        answer
            .and_then(|a| a[field].as_str())
            .filter(|t| !t.is_empty())
    };
    let stderr = String::from_utf8_lossy(stderr);
    let why = match (text("msg"), text("details")) {
        (Some(msg), Some(details)) => format!("{msg} ({details})"),
        (Some(msg), None) => msg.to_owned(),
        _ if !stderr.trim().is_empty() => stderr.trim().to_owned(),
        _ => "no reason given".to_owned(),
    };
    anyhow!("CNI {command} by {kind}: {why}")
}

/// The pod's addresses in a result.
pub(crate) fn addresses(result: &Value) -> Vec<IpAddr> {
    result["ips"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::{family::IpFamily, plan::Plan};

    #[test]
    fn a_plugin_gets_the_lists_name_and_version_and_the_previous_result() {
        let plan = Plan::new("x", 1, None, IpFamily::Dual).unwrap();
        let list = conflist(
            &plan.nodes[0],
            Path::new("/d"),
            Some(json!({"type": "weft-cni"})),
        );
        let config = plugin_config(&list, &list["plugins"][1], Some(&json!({"ips": []})));
        let expected = json!({
            "cniVersion": "1.0.0", "name": "lab", "type": "weft-cni", "prevResult": {"ips": []},
        });
        assert_eq!(config, expected);
        let ipam = &list["plugins"][0]["ipam"];
        let ranges = json!([[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]]);
        assert_eq!(ipam["ranges"], ranges);
        assert_eq!(
            ipam["routes"],
            json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}])
        );
    }

    #[test]
    fn a_plugins_error_says_what_it_said() {
        let cases = [
            (
                Some(json!({"msg": "no proxy", "details": "n1"})),
                "",
                "no proxy (n1)",
            ),
            (Some(json!({"msg": "no proxy"})), "x", "no proxy"),
            (None, "panic\n", "panic"),
            (None, "", "no reason given"),
        ];
        for (answer, stderr, expected) in cases {
            let error = plugin_error("ADD", "weft-cni", answer.as_ref(), stderr.as_bytes());
            assert_eq!(
                error.to_string(),
                format!("CNI ADD by weft-cni: {expected}")
            );
        }
    }

    #[test]
    fn addresses_are_read_from_the_result() {
        let result = json!({"ips": [{"address": "10.244.1.2/24"}, {"address": "fd00::2/64"}]});
        let texts: Vec<_> = addresses(&result).iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.244.1.2", "fd00::2"]);
    }
}

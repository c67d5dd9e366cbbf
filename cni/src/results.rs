//! libcni's results cache: what the runtime's network plugins said of each sandbox when it was made.
//!
//! Flows in: the cache's files (`kind: cniCacheV1`), which containerd and CRI-O both keep below
//! `/var/lib/cni/results`. Flows out: the pods' sandboxes, as the plugin would have recorded them. That
//! is how pods are found that were started without `weft-cni` in the chain, with no look into `/proc`.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    objects::PodFacts,
    plugin::addresses,
    sandbox::{Sandbox, is_valid_id},
};

/// The interface of the pod network: runtimes call it so in every pod. Others are of second networks.
const POD_INTERFACE: &str = "eth0";

/// A cached result, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    #[serde(default)]
    container_id: String,
    #[serde(default)]
    if_name: String,
    /// Since libcni 1.2.
    #[serde(default)]
    netns: String,
    #[serde(default)]
    cni_args: Option<Vec<(String, String)>>,
    #[serde(default)]
    result: Value,
}

/// A pod's sandbox from a cached result; `None` if it is of no pod, of another interface, or does not
/// tell the network namespace.
///
/// # Errors
/// It is no JSON of a cached result.
pub fn parse(text: &[u8]) -> Result<Option<Sandbox>, serde_json::Error> {
    let cached: Cached = serde_json::from_slice(text)?;
    let arguments = cached.cni_args.unwrap_or_default();
    let argument = |name: &str| {
        let found = arguments.iter().find(|(key, _)| key == name);
        found.map_or(String::new(), |(_, value)| value.clone())
    };
    let (namespace, pod) = (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME"));
    let netns = if cached.netns.is_empty() {
        netns_of(&cached.result, &cached.if_name)
    } else {
        Some(cached.netns)
    };
    let of_a_pod = cached.if_name == POD_INTERFACE && !namespace.is_empty() && !pod.is_empty();
    let Some(netns) = netns.filter(|_| of_a_pod && is_valid_id(&cached.container_id)) else {
        return Ok(None);
    };
    Ok(Some(Sandbox {
        addresses: addresses(&cached.result),
        container_id: cached.container_id,
        netns: PathBuf::from(netns),
        ifname: cached.if_name,
        namespace,
        pod,
        uid: argument("K8S_POD_UID"),
    }))
}

/// The sandbox of an interface: the one that is named, else any that is not the host's.
fn netns_of(result: &Value, interface: &str) -> Option<String> {
    let interfaces = result["interfaces"].as_array()?;
    let sandbox = |interface: &Value| {
        let sandbox = interface["sandbox"].as_str().unwrap_or_default();
        (!sandbox.is_empty()).then(|| sandbox.to_owned())
    };
    let named = interfaces.iter().filter(|i| i["name"] == interface);
    named.chain(interfaces).find_map(sandbox)
}

/// Reads all of a folder; what can't be read is passed over, for it is the runtime's.
///
/// # Errors
/// The folder can't be listed; that it is not there is no error.
pub fn read(dir: &Path) -> io::Result<Vec<Sandbox>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let Ok(text) = fs::read(&path) else {
            continue; // It is gone by now.
        };
        match parse(&text) {
            Ok(sandbox) => found.extend(sandbox),
            Err(error) => tracing::debug!(path = %path.display(), %error, "no cached result"),
        }
    }
    Ok(found)
}

/// Those that should be recorded: not known yet, and of a pod that the API has on this node. A pod is
/// the same if its UID is, and if one of its addresses is: the runtime may still remember a former
/// sandbox of it, or not tell the UID.
pub fn adoptable<'a>(
    cached: Vec<Sandbox>,
    is_known: impl Fn(&str) -> bool,
    pod: impl Fn(&Sandbox) -> Option<&'a PodFacts>,
) -> Vec<Sandbox> {
    let mut taken = HashSet::new();
    cached
        .into_iter()
        .filter(|sandbox| !is_known(&sandbox.container_id))
        .filter_map(|mut sandbox| {
            let facts = pod(&sandbox).filter(|facts| facts.may_be_captured())?;
            let same_address = sandbox
                .addresses
                .iter()
                .any(|address| facts.addresses.contains(address));
            let first = same_address && taken.insert(sandbox.container_id.clone());
            if sandbox.uid.is_empty() {
                sandbox.uid.clone_from(&facts.uid);
            }
            first.then_some(sandbox)
        })
        .collect()
}

#[cfg(test)]
mod tests;

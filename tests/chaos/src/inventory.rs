//! What a lab holds of the machine, counted: descriptors, threads and memory of the mesh's parts;
//! sockets, rules, routes and tracked connections of every network namespace; what proxies say that
//! they hold. Two counts and a comparison, so that a leak shows.

use std::{collections::BTreeMap, fs, net::IpAddr, process::Command};

use anyhow::{Context as _, bail};
use serde_json::Value;
use weft_lab_tests::Lab;

use crate::mesh;

/// Counts by what is counted: `agent/n1 descriptors`, `p.shop.web sockets`, `network namespaces`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory(pub BTreeMap<String, u64>);

/// A count that grew by more than it may.
#[derive(Clone, Debug, PartialEq)]
pub struct Leak {
    /// What is counted.
    pub what: String,
    /// Before.
    pub before: u64,
    /// After.
    pub after: u64,
}

/// Share that memory may grow by, in percent; allocators keep what they had at the busiest time.
const MEMORY_PERCENT: u64 = 20;

/// Counts what a lab holds now.
pub fn take(lab: &Lab) -> anyhow::Result<Inventory> {
    let mut counts = BTreeMap::new();
    let status = mesh::status(lab)?;
    for part in status["parts"].as_object().into_iter().flatten() {
        let name = part.0;
        let Some(pid) = mesh::pid(&status, name) else {
            bail!("{name} does not run");
        };
        let entries = |folder: &str| -> anyhow::Result<u64> {
            let path = format!("/proc/{pid}/{folder}");
            let count = fs::read_dir(&path).with_context(|| path.clone())?.count();
            Ok(u64::try_from(count)?)
        };
        counts.insert(format!("{name} descriptors"), entries("fd")?);
        counts.insert(format!("{name} threads"), entries("task")?);
        counts.insert(format!("{name} memory KiB"), resident(pid)?);
    }
    let prefix = format!("weft-{}-", lab.name);
    let mut namespaces = 0;
    for entry in fs::read_dir("/run/netns").context("/run/netns")? {
        let netns = entry?.file_name().to_string_lossy().into_owned();
        let Some(short) = netns.strip_prefix(&prefix) else {
            continue;
        };
        namespaces += 1;
        for (what, count) in in_netns(&netns)? {
            counts.insert(format!("{short} {what}"), count);
        }
        if let Some(node) = short.strip_suffix("-proxy") {
            for (what, count) in of_proxy(&netns)? {
                counts.insert(format!("proxy/{node} {what}"), count);
            }
        }
    }
    counts.insert("network namespaces".into(), namespaces);
    Ok(Inventory(counts))
}

fn resident(pid: i32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("VmRSS of {pid}"))
}

/// One shell a namespace, for it is asked of many.
const SCRIPT: &str = r#"
echo "sockets $(ss -Htan state all exclude time-wait | wc -l)"
echo "nft_lines $(nft list ruleset | wc -l)"
echo "ip_rules $( (ip -4 rule; ip -6 rule 2>/dev/null) | wc -l)"
echo "routes $( (ip -4 route show table all; ip -6 route show table all 2>/dev/null) | grep -vc ' dev lo .*cache' )"
# What waits for its end to be forgotten is no leak; what counts as open without a socket is.
echo "tracked_connections $(conntrack -L -p tcp 2>/dev/null | grep -Ec 'SYN_|ESTABLISHED' )"
echo "links $(ip -o link | wc -l)"
"#;

fn in_netns(netns: &str) -> anyhow::Result<Vec<(String, u64)>> {
    let text = enter(netns, &["sh", "-c", SCRIPT])?;
    let mut counts = Vec::new();
    for line in text.lines() {
        let (what, count) = line.split_once(' ').context("a name and a number")?;
        let count = count
            .trim()
            .parse()
            .with_context(|| format!("{netns}: {line}"))?;
        counts.push((what.replace('_', " "), count));
    }
    Ok(counts)
}

fn enter(netns: &str, command: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("ip")
        .args(["netns", "exec", netns])
        .args(command)
        .output()
        .context("ip netns exec")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a proxy says of itself: pods, tunnels, streams in them, series of its metrics.
fn of_proxy(netns: &str) -> anyhow::Result<Vec<(String, u64)>> {
    let page = |path: &str| -> anyhow::Result<Value> {
        let url = format!("http://127.0.0.1:15000{path}");
        let text = enter(netns, &["curl", "-s", "--max-time", "5", &url])?;
        serde_json::from_str(&text).with_context(|| format!("{netns} {path}: {text:?}"))
    };
    let length = |value: &Value| match value {
        Value::Array(list) => list.len(),
        Value::Object(map) => map.len(),
        _ => 0,
    };
    let pods = page("/pods")?;
    let open: u64 = items(&pods).filter_map(|pod| pod["open"].as_u64()).sum();
    let metrics = format!(
        "http://{}/metrics",
        std::net::SocketAddr::new(address(netns)?, weft_api::names::PORT_METRICS)
    );
    let metrics = enter(netns, &["curl", "-s", "--max-time", "5", &metrics])?;
    let series = metrics.lines().filter(|line| !line.starts_with('#'));
    Ok(vec![
        ("pods".into(), u64::try_from(length(&pods))?),
        ("open".into(), open),
        ("tunnels".into(), tunnels(&page("/tunnels")?)),
        ("metric series".into(), u64::try_from(series.count())?),
    ])
}

fn items(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(list) => Box::new(list.iter()),
        Value::Object(map) => Box::new(map.values()),
        _ => Box::new(std::iter::empty()),
    }
}

/// Tunnels of all pods, whatever else the page holds.
fn tunnels(page: &Value) -> u64 {
    let of_pod = |pod: &Value| pod["tunnels"].as_array().map_or(0, Vec::len);
    let count: usize = items(page).map(of_pod).sum();
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn address(netns: &str) -> anyhow::Result<IpAddr> {
    let text = enter(netns, &["ip", "-j", "addr", "show", "scope", "global"])?;
    let links: Value =
        serde_json::from_str(&text).with_context(|| format!("{netns}: addresses"))?;
    let mut all = items(&links).flat_map(|link| items(&link["addr_info"]));
    let first = all.find_map(|info| info["local"].as_str()?.parse().ok());
    first.with_context(|| format!("{netns} has no address"))
}

impl Inventory {
    /// The same with the pods of a namespace, nodes, agents and proxies each taken together: pods
    /// that replace others have other names, and other nodes.
    pub fn by_namespace(&self) -> Self {
        let mut sums: BTreeMap<String, u64> = BTreeMap::new();
        for (what, count) in &self.0 {
            let (holder, rest) = what.split_once(' ').unwrap_or((what, ""));
            let pod = holder
                .strip_prefix("p.")
                .and_then(|pod| pod.split_once('.'));
            let holder = match pod {
                Some((namespace, _)) => format!("pods of {namespace}"),
                None if holder.contains("-proxy") => "networks of proxies".into(),
                None if holder.starts_with("agent/") => "agents".into(),
                None if holder.starts_with("proxy/") => "proxies".into(),
                None if is_node(holder) => "nodes".into(),
                None => holder.to_owned(),
            };
            *sums.entry(format!("{holder} {rest}")).or_default() += count;
        }
        Self(sums)
    }

    /// What grew by more than it may. `allowed` says by how much a count may grow, by its name.
    pub fn leaks(&self, before: &Inventory, allowed: impl Fn(&str, u64) -> u64) -> Vec<Leak> {
        let mut leaks = Vec::new();
        for (what, &after) in &self.0 {
            let was = before.0.get(what).copied().unwrap_or_default();
            if after > was + allowed(what, was) {
                leaks.push(Leak {
                    what: what.clone(),
                    before: was,
                    after,
                });
            }
        }
        leaks
    }
}

fn is_node(name: &str) -> bool {
    let number = name.strip_prefix('n');
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// What counts may grow by when everything is as it was: memory by a fifth. Series of metrics come with
/// the pairs of workloads that met, by the way they met, and go ten minutes later; their number is
/// bounded by that, and not by how much happened. Proxies' own connections to the controller. All else
/// not at all.
pub fn as_before(what: &str, before: u64) -> u64 {
    if what.ends_with(" KiB") {
        before * MEMORY_PERCENT / 100
    } else if what.ends_with(" metric series") {
        before * 3 + 500
    } else if is_of_proxies(what) {
        CONTROL_CONNECTIONS
    } else {
        0
    }
}

/// A proxy's connections to the controller, for configuration and certificates, come and go by need.
const CONTROL_CONNECTIONS: u64 = 4;

fn is_of_proxies(what: &str) -> bool {
    let holder = what.starts_with("prox") || what.contains("-proxy") || what.contains("of proxies");
    holder && (what.ends_with(" sockets") || what.ends_with(" descriptors"))
}

impl std::fmt::Display for Leak {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: {} before, {} after",
            self.what, self.before, self.after
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(counts: &[(&str, u64)]) -> Inventory {
        Inventory(counts.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect())
    }

    #[test]
    fn a_count_that_grew_is_a_leak_and_memory_may_grow_by_a_fifth() {
        let before = inventory(&[("a descriptors", 10), ("a memory KiB", 1000)]);
        let grown = |what: &str, count| {
            let mut after = before.clone();
            after.0.insert(what.into(), count);
            after.leaks(&before, as_before)
        };
        assert_eq!(grown("a descriptors", 10), []);
        assert_eq!(grown("a descriptors", 9), []);
        assert_eq!(grown("a descriptors", 11).len(), 1);
        let own = |what: &str| as_before(what, 5);
        assert_eq!(own("networks of proxies sockets"), CONTROL_CONNECTIONS);
        assert_eq!(own("n1-proxy sockets"), CONTROL_CONNECTIONS);
        assert_eq!(own("proxy/n1 tunnels"), 0);
        assert_eq!(own("p.shop.web sockets"), 0);
        assert_eq!(grown("a memory KiB", 1200), []);
        assert_eq!(grown("a memory KiB", 1201).len(), 1);
        assert_eq!(
            grown("new sockets", 1).len(),
            1,
            "what was not there counts as 0"
        );
    }

    #[test]
    fn pods_that_were_replaced_are_counted_with_their_namespace() {
        let counts = |name: &str| {
            let what = format!("p.shop.{name} sockets");
            inventory(&[(&what, 3), ("p.shop.b sockets", 2), ("n1 routes", 7)]).by_namespace()
        };
        assert_eq!(counts("a-1"), counts("a-2"));
        assert_eq!(counts("a-1").0["pods of shop sockets"], 5);
        assert_eq!(counts("a-1").0["nodes routes"], 7);
    }

    #[test]
    fn tunnels_are_counted_over_all_pods() {
        let page = serde_json::json!([{"tunnels": [1, 2]}, {"tunnels": []}, {}]);
        assert_eq!(tunnels(&page), 2);
    }
}

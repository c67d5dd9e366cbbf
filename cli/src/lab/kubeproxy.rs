//! kube-proxy's work on a node, for pods outside the mesh and for the node itself. In: Services
//! with their endpoints. Out: a script for `nft -f -`, one transaction, that leaves the hooks and
//! so every open connection alone. Pure but for [`load`].

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context, bail};

use super::{family::Family, netns, plan::Cidr, services::Backends};

/// The table's name in every node's namespace. Both families are in it, each with a map and a set
/// of its own, since an nftables map has keys of one type.
const TABLE: &str = "inet weft-services";

/// What a family is called in nftables.
struct Words {
    family: Family,
    /// In expressions: `ip daddr`.
    ip: &'static str,
    /// Type of its addresses.
    address: &'static str,
    /// Address and port to chain.
    ports: &'static str,
    /// Pairs of one address with itself.
    hairpin: &'static str,
    /// Keeps the families' chains apart.
    suffix: &'static str,
}

const FAMILIES: [Words; 2] = [
    Words {
        family: Family::V4,
        ip: "ip",
        address: "ipv4_addr",
        ports: "ports4",
        hairpin: "hairpin4",
        suffix: "",
    },
    Words {
        family: Family::V6,
        ip: "ip6",
        address: "ipv6_addr",
        ports: "ports6",
        hairpin: "hairpin6",
        suffix: "-ipv6",
    },
];

/// The rules of one node as they were last loaded.
#[derive(Default)]
pub(crate) struct Rules {
    chains: BTreeSet<String>,
    script: String,
}

/// What a node's rules depend on besides the Services.
pub(crate) struct NodeRules<'a> {
    pub(crate) pod_cidrs: &'a [Cidr],
    pub(crate) service_cidrs: &'a [Cidr],
    /// Replies between two pods of the node pass its address translation.
    pub(crate) bridge_netfilter: bool,
}

impl Rules {
    /// The script that replaces the rules; none if nothing changed. [`Rules::loaded`] confirms it.
    pub(crate) fn script(&self, node: &NodeRules<'_>, services: &[Backends]) -> Option<Script> {
        let (chains, body) = body(node, services);
        if body == self.script {
            return None;
        }
        let mut text = String::new();
        let base = [
            ("prerouting", "type nat hook prerouting priority dstnat"),
            ("output", "type nat hook output priority -100"),
            ("postrouting", "type nat hook postrouting priority srcnat"),
            ("forward", "type filter hook forward priority filter"),
            ("local", "type filter hook output priority filter"),
        ];
        let _ = writeln!(text, "add table {TABLE}");
        for (chain, hook) in base {
            let _ = writeln!(text, "add chain {TABLE} {chain} {{ {hook}; }}");
        }
        let _ = writeln!(text, "flush table {TABLE}");
        for Words {
            address,
            ports,
            hairpin,
            ..
        } in FAMILIES
        {
            let _ = writeln!(
                text,
                "add map {TABLE} {ports} {{ type {address} . inet_proto . inet_service : verdict; }}\n\
                 add set {TABLE} {hairpin} {{ type {address} . {address}; }}\n\
                 flush map {TABLE} {ports}\nflush set {TABLE} {hairpin}"
            );
        }
        for gone in self.chains.difference(&chains) {
            let _ = writeln!(text, "delete chain {TABLE} {gone}");
        }
        text += &body;
        Some(Script { text, chains, body })
    }

    /// Remembers what is in force.
    pub(crate) fn loaded(&mut self, script: Script) {
        self.chains = script.chains;
        self.script = script.body;
    }
}

/// A transaction.
pub(crate) struct Script {
    pub(crate) text: String,
    chains: BTreeSet<String>,
    body: String,
}

fn body(node: &NodeRules<'_>, services: &[Backends]) -> (BTreeSet<String>, String) {
    let mut text = String::new();
    let mut chains = BTreeSet::new();
    for words in &FAMILIES {
        of_family(words, node, services, &mut chains, &mut text);
    }
    (chains, text)
}

/// The rules of one family. A Service's address of a family leads to endpoints of that family
/// alone.
fn of_family(
    words: &Words,
    node: &NodeRules<'_>,
    services: &[Backends],
    chains: &mut BTreeSet<String>,
    text: &mut String,
) {
    let Words {
        family,
        ip,
        ports,
        hairpin,
        suffix,
        ..
    } = words;
    let mut elements = Vec::new();
    let mut hairpins = BTreeSet::new();
    for service in services {
        for port in &service.ports {
            let endpoints: Vec<_> = port
                .endpoints
                .iter()
                .filter(|(address, _)| Family::of(*address) == *family)
                .collect();
            if endpoints.is_empty() || !matches!(port.protocol.as_str(), "tcp" | "udp" | "sctp") {
                continue;
            }
            let chain = format!(
                "svc-{}/{}/{}-{}{suffix}",
                service.namespace, service.name, port.protocol, port.port
            );
            let chain = chain.replace(['/', '.'], "_");
            let _ = writeln!(text, "add chain {TABLE} {chain}");
            let map: Vec<_> = endpoints
                .iter()
                .enumerate()
                .map(|(i, (address, port))| format!("{i} : {address} . {port}"))
                .collect();
            let _ = writeln!(
                text,
                "add rule {TABLE} {chain} meta l4proto {} dnat {ip} to numgen random mod {} map {{ {} }}",
                port.protocol,
                endpoints.len(),
                map.join(", ")
            );
            let own = service.cluster_ips.iter();
            for address in own.filter(|address| Family::of(**address) == *family) {
                elements.push(format!(
                    "{address} . {} . {} : goto {chain}",
                    port.protocol, port.port
                ));
            }
            hairpins.extend(endpoints.iter().map(|(address, _)| address.to_string()));
            chains.insert(chain);
        }
    }
    for chain in ["prerouting", "output"] {
        let _ = writeln!(
            text,
            "add rule {TABLE} {chain} {ip} daddr . meta l4proto . th dport vmap @{ports}"
        );
    }
    if !elements.is_empty() {
        let elements = elements.join(", ");
        let _ = writeln!(text, "add element {TABLE} {ports} {{ {elements} }}");
    }
    if !hairpins.is_empty() {
        let pairs: Vec<_> = hairpins.iter().map(|ip| format!("{ip} . {ip}")).collect();
        let pairs = pairs.join(", ");
        let _ = writeln!(text, "add element {TABLE} {hairpin} {{ {pairs} }}");
    }
    // A pod that reaches itself through its Service must not see its own address as the client's.
    let _ = writeln!(
        text,
        "add rule {TABLE} postrouting ct status dnat {ip} saddr . {ip} daddr @{hairpin} masquerade"
    );
    let own = |cidr: &&Cidr| Family::of(cidr.address) == *family;
    if !node.bridge_netfilter {
        // The bridge would carry replies past the translation.
        for cidr in node.pod_cidrs.iter().filter(own) {
            let _ = writeln!(
                text,
                "add rule {TABLE} postrouting ct status dnat {ip} saddr {cidr} {ip} daddr {cidr} masquerade"
            );
        }
    }
    // What is still addressed to a Service after translation has no endpoint.
    for cidr in node.service_cidrs.iter().filter(own) {
        for chain in ["forward", "local"] {
            let _ = writeln!(
                text,
                "add rule {TABLE} {chain} {ip} daddr {cidr} meta l4proto tcp reject with tcp reset\n\
                 add rule {TABLE} {chain} {ip} daddr {cidr} reject"
            );
        }
    }
}

/// Loads a script in a node's namespace.
pub(crate) fn load(node_netns: &str, script: &str) -> anyhow::Result<()> {
    let output = netns::run(node_netns, || -> anyhow::Result<_> {
        let mut child = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("nft can't be run: apt-get install nftables")?;
        let mut stdin = child.stdin.take().context("nft's stdin")?;
        stdin.write_all(script.as_bytes())?;
        drop(stdin);
        Ok(child.wait_with_output()?)
    })??;
    if !output.status.success() {
        bail!(
            "{node_netns}: nft: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::services::PortBackends;

    use crate::lab::{family::IpFamily, plan::Plan};

    fn service(name: &str, endpoints: &[&str]) -> Backends {
        Backends {
            namespace: "shop".into(),
            name: name.into(),
            cluster_ips: vec![
                "10.96.0.9".parse().unwrap(),
                "fd00:10:96::9".parse().unwrap(),
            ],
            ports: vec![PortBackends {
                protocol: "tcp".into(),
                port: 80,
                endpoints: endpoints
                    .iter()
                    .map(|e| (e.parse().unwrap(), 8080))
                    .collect(),
            }],
            addresses: Vec::new(),
        }
    }

    fn script(rules: &Rules, services: &[Backends]) -> Option<Script> {
        let plan = Plan::new("x", 1, None, IpFamily::Dual).unwrap();
        let node = NodeRules {
            pod_cidrs: &plan.nodes[0].pod_cidrs,
            service_cidrs: &plan.service_cidrs(),
            bridge_netfilter: true,
        };
        rules.script(&node, services)
    }

    #[test]
    fn a_port_leads_to_a_random_ready_endpoint_of_the_address_s_family() {
        let endpoints = ["10.0.0.1", "10.0.0.2", "fd00::1"];
        let script = script(&Rules::default(), &[service("web", &endpoints)]);
        let script = script.unwrap().text;
        for line in [
            "add rule inet weft-services svc-shop_web_tcp-80 meta l4proto tcp dnat ip to \
             numgen random mod 2 map { 0 : 10.0.0.1 . 8080, 1 : 10.0.0.2 . 8080 }",
            "add element inet weft-services ports4 { 10.96.0.9 . tcp . 80 : goto svc-shop_web_tcp-80 }",
            "add element inet weft-services hairpin4 { 10.0.0.1 . 10.0.0.1, 10.0.0.2 . 10.0.0.2 }",
            "add rule inet weft-services svc-shop_web_tcp-80-ipv6 meta l4proto tcp dnat ip6 to \
             numgen random mod 1 map { 0 : fd00::1 . 8080 }",
            "add element inet weft-services ports6 { fd00:10:96::9 . tcp . 80 : goto svc-shop_web_tcp-80-ipv6 }",
            "add element inet weft-services hairpin6 { fd00::1 . fd00::1 }",
        ] {
            assert!(script.contains(line), "{line}\nnot in\n{script}");
        }
    }

    #[test]
    fn an_update_deletes_only_the_chains_that_are_gone() {
        let mut rules = Rules::default();
        let both = [service("a", &["10.0.0.1"]), service("b", &["10.0.0.2"])];
        let first = script(&rules, &both).unwrap();
        rules.loaded(first);
        assert!(script(&rules, &both).is_none());
        let script = script(&rules, &both[..1]).unwrap().text;
        assert!(script.contains("delete chain inet weft-services svc-shop_b_tcp-80"));
        assert!(!script.contains("delete chain inet weft-services svc-shop_a_tcp-80"));
        assert!(!script.contains("delete table"));
    }

    #[test]
    fn a_service_without_endpoints_is_left_to_the_reject_rule() {
        let script = script(&Rules::default(), &[service("a", &[])])
            .unwrap()
            .text;
        assert!(!script.contains("svc-shop_a"));
        for range in ["ip daddr 10.96.0.0/16", "ip6 daddr fd00:10:96::/112"] {
            let line = format!("{range} meta l4proto tcp reject with tcp reset");
            assert!(script.contains(&line), "{line}");
        }
    }
}

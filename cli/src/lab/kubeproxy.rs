//! kube-proxy's work on a node, for pods outside the mesh and for the node itself. In: Services
//! with their endpoints. Out: a script for `nft -f -`, one transaction, that leaves the hooks and
//! so every open connection alone. Pure but for [`load`].

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::Write as _,
    net::IpAddr,
    process::{Command, Stdio},
};

use anyhow::{Context, bail};

use super::{
    netns,
    plan::{Cidr, SERVICE_CIDR},
    services::Backends,
};

/// The table's name in every node's namespace.
const TABLE: &str = "ip weft-services";

/// The rules of one node as they were last loaded.
#[derive(Default)]
pub(crate) struct Rules {
    chains: BTreeSet<String>,
    script: String,
}

/// What a node's rules depend on besides the Services.
pub(crate) struct NodeRules<'a> {
    pub(crate) pod_cidrs: &'a [Cidr],
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
        let _ = writeln!(
            text,
            "add map {TABLE} ports {{ type ipv4_addr . inet_proto . inet_service : verdict; }}\n\
             add set {TABLE} hairpin {{ type ipv4_addr . ipv4_addr; }}\n\
             flush table {TABLE}\nflush map {TABLE} ports\nflush set {TABLE} hairpin"
        );
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
    let mut elements = Vec::new();
    let mut hairpins = BTreeSet::new();
    for service in services {
        for port in &service.ports {
            let endpoints: Vec<_> = port
                .endpoints
                .iter()
                .filter(|(ip, _)| ip.is_ipv4())
                .collect();
            if endpoints.is_empty() || !matches!(port.protocol.as_str(), "tcp" | "udp" | "sctp") {
                continue;
            }
            let chain = format!(
                "svc-{}/{}/{}-{}",
                service.namespace, service.name, port.protocol, port.port
            );
            let chain = chain.replace(['/', '.'], "_");
            let _ = writeln!(text, "add chain {TABLE} {chain}");
            let map: Vec<_> = endpoints
                .iter()
                .enumerate()
                .map(|(i, (ip, port))| format!("{i} : {ip} . {port}"))
                .collect();
            let _ = writeln!(
                text,
                "add rule {TABLE} {chain} meta l4proto {} dnat ip to numgen random mod {} map {{ {} }}",
                port.protocol,
                endpoints.len(),
                map.join(", ")
            );
            for ip in service.cluster_ips.iter().filter(|ip| ip.is_ipv4()) {
                elements.push(format!(
                    "{ip} . {} . {} : goto {chain}",
                    port.protocol, port.port
                ));
            }
            hairpins.extend(endpoints.iter().map(|(ip, _)| ip.to_string()));
            chains.insert(chain);
        }
    }
    let lookup = "ip daddr . meta l4proto . th dport vmap @ports";
    for chain in ["prerouting", "output"] {
        let _ = writeln!(text, "add rule {TABLE} {chain} {lookup}");
    }
    if !elements.is_empty() {
        let _ = writeln!(
            text,
            "add element {TABLE} ports {{ {} }}",
            elements.join(", ")
        );
    }
    if !hairpins.is_empty() {
        let pairs: Vec<_> = hairpins.iter().map(|ip| format!("{ip} . {ip}")).collect();
        let _ = writeln!(
            text,
            "add element {TABLE} hairpin {{ {} }}",
            pairs.join(", ")
        );
    }
    // A pod that reaches itself through its Service must not see its own address as the client's.
    let _ = writeln!(
        text,
        "add rule {TABLE} postrouting ct status dnat ip saddr . ip daddr @hairpin masquerade"
    );
    if !node.bridge_netfilter {
        // The bridge would carry replies past the translation.
        for cidr in node
            .pod_cidrs
            .iter()
            .filter(|cidr| matches!(cidr.address, IpAddr::V4(_)))
        {
            let _ = writeln!(
                text,
                "add rule {TABLE} postrouting ct status dnat ip saddr {cidr} ip daddr {cidr} masquerade"
            );
        }
    }
    // What is still addressed to a Service after translation has no endpoint.
    for chain in ["forward", "local"] {
        let _ = writeln!(
            text,
            "add rule {TABLE} {chain} ip daddr {SERVICE_CIDR} meta l4proto tcp reject with tcp reset\n\
             add rule {TABLE} {chain} ip daddr {SERVICE_CIDR} reject"
        );
    }
    (chains, text)
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

    fn service(name: &str, endpoints: &[&str]) -> Backends {
        Backends {
            namespace: "shop".into(),
            name: name.into(),
            cluster_ips: vec!["10.96.0.9".parse().unwrap()],
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

    const NODE: NodeRules<'static> = NodeRules {
        pod_cidrs: &[],
        bridge_netfilter: true,
    };

    #[test]
    fn a_port_leads_to_a_random_ready_endpoint() {
        let script = Rules::default()
            .script(&NODE, &[service("web", &["10.0.0.1", "10.0.0.2"])])
            .unwrap()
            .text;
        for line in [
            "add rule ip weft-services svc-shop_web_tcp-80 meta l4proto tcp dnat ip to \
             numgen random mod 2 map { 0 : 10.0.0.1 . 8080, 1 : 10.0.0.2 . 8080 }",
            "add element ip weft-services ports { 10.96.0.9 . tcp . 80 : goto svc-shop_web_tcp-80 }",
            "add element ip weft-services hairpin { 10.0.0.1 . 10.0.0.1, 10.0.0.2 . 10.0.0.2 }",
        ] {
            assert!(script.contains(line), "{line}\nnot in\n{script}");
        }
    }

    #[test]
    fn an_update_deletes_only_the_chains_that_are_gone() {
        let mut rules = Rules::default();
        let both = [service("a", &["10.0.0.1"]), service("b", &["10.0.0.2"])];
        let script = rules.script(&NODE, &both).unwrap();
        rules.loaded(script);
        assert!(rules.script(&NODE, &both).is_none());
        let script = rules.script(&NODE, &both[..1]).unwrap().text;
        assert!(script.contains("delete chain ip weft-services svc-shop_b_tcp-80"));
        assert!(!script.contains("delete chain ip weft-services svc-shop_a_tcp-80"));
        assert!(!script.contains("delete table"));
    }

    #[test]
    fn a_service_without_endpoints_is_left_to_the_reject_rule() {
        let script = Rules::default()
            .script(&NODE, &[service("a", &[])])
            .unwrap()
            .text;
        assert!(!script.contains("svc-shop_a"));
        assert!(script.contains("ip daddr 10.96.0.0/16 meta l4proto tcp reject with tcp reset"));
    }
}

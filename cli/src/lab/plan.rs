//! Names and addresses of a lab. In: its name, the number of nodes and zones. Out: every network
//! namespace, address and subnet; nothing else in the lab invents one.
//!
//! Addresses are lists, one entry a family, all in the order of the lab's families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::family::{Family, IpFamily};

/// Most nodes that the address plan has room for.
pub(crate) const MAX_NODES: u8 = 50;
/// Longest name of a lab: socket paths below its state folder must stay under 108 bytes.
pub(crate) const MAX_NAME: usize = 30;
/// The controller's xDS and CA port, and its HTTP port.
pub(crate) const CONTROLLER_PORT: u16 = weft_api::names::PORT_CONTROLLER;
pub(crate) const CONTROLLER_HTTP_PORT: u16 = weft_api::names::PORT_METRICS;
/// The bridge that joins the nodes, in the fabric's namespace.
pub(crate) const FABRIC_BRIDGE: &str = "br0";
/// The bridge that joins a node's pods, in the node's namespace.
pub(crate) const POD_BRIDGE: &str = "cni0";
/// A node's link to the fabric.
pub(crate) const NODE_LINK: &str = "eth0";

/// A subnet, or an address with its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Cidr {
    const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            prefix,
        }
    }

    /// `fd00:10:a:b::host`: the same digits as IPv4's, in IPv6.
    const fn v6(a: u16, b: u16, host: u16, prefix: u8) -> Self {
        Self {
            address: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, a, b, 0, 0, 0, host)),
            prefix,
        }
    }

    /// Whether an address is in the subnet.
    pub(crate) fn contains(self, address: IpAddr) -> bool {
        let same = |a: u128, b: u128, bits: u8| {
            let host = u32::from(bits - self.prefix);
            a.checked_shr(host) == b.checked_shr(host)
        };
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.into(), b.into(), 128),
            _ => false,
        }
    }
}

/// Where clusterIPs of a family come from.
const fn service_cidr(family: Family) -> Cidr {
    match family {
        Family::V4 => Cidr::v4(10, 96, 0, 0, 16),
        Family::V6 => Cidr::v6(0x96, 0, 0, 112),
    }
}

/// An address in the network between the nodes.
const fn fabric_address(family: Family, host: u8) -> Cidr {
    match family {
        Family::V4 => Cidr::v4(10, 240, 0, host, 24),
        Family::V6 => Cidr::v6(0x240, 0, host as u16, 64),
    }
}

/// The addresses of a node's pods.
const fn pod_cidr(family: Family, node: u8) -> Cidr {
    match family {
        Family::V4 => Cidr::v4(10, 244, node, 0, 24),
        Family::V6 => Cidr::v6(0x244, node as u16, 0, 64),
    }
}

/// The whole lab.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) families: IpFamily,
    pub(crate) fabric: Fabric,
    pub(crate) nodes: Vec<NodePlan>,
    /// The `rp_filter` of nodes and pods; none: strict on nodes, pods as the machine has it.
    pub(crate) rp_filter: Option<u8>,
}

/// The namespace that holds the bridge and the controller.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fabric {
    pub(crate) netns: String,
    pub(crate) addresses: Vec<Cidr>,
}

/// One node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NodePlan {
    pub(crate) name: String,
    pub(crate) zone: String,
    pub(crate) netns: String,
    /// In the network between the nodes.
    pub(crate) addresses: Vec<Cidr>,
    pub(crate) pod_cidrs: Vec<Cidr>,
}

impl NodePlan {
    /// The addresses by which others reach the node.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.addresses.iter().map(|cidr| cidr.address).collect()
    }

    /// The pod network of one of the node's proxies: the first, or one that runs beside others.
    pub(crate) fn proxy_netns(&self, number: usize) -> String {
        match number {
            1 => format!("{}-proxy", self.netns),
            number => format!("{}-proxy{number}", self.netns),
        }
    }

    /// Whether a network namespace is that of one of the node's proxies.
    pub(crate) fn is_proxy_netns(&self, netns: &str) -> bool {
        netns.strip_prefix(&self.netns).is_some_and(is_proxy_suffix)
    }
}

/// Whether text is what [`NodePlan::proxy_netns`] puts behind the node's own.
fn is_proxy_suffix(text: &str) -> bool {
    text.strip_prefix("-proxy")
        .is_some_and(|number| number.chars().all(|c| c.is_ascii_digit()))
}

/// Why a lab can't be planned.
#[derive(Debug, thiserror::Error, PartialEq)]
pub(crate) enum PlanError {
    #[error(
        "lab name {0:?} is not a DNS label of at most {MAX_NAME} characters (a-z, 0-9 and -): choose another"
    )]
    Name(String),
    #[error("{0} nodes: a lab has 1 to {MAX_NODES}")]
    Nodes(u8),
    #[error("{0} zones: a lab has at least 1, and not more than nodes")]
    Zones(u8),
}

impl Plan {
    /// Plans a lab; nodes are spread over the zones in turn.
    pub(crate) fn new(
        name: &str,
        nodes: u8,
        zones: Option<u8>,
        families: IpFamily,
    ) -> Result<Self, PlanError> {
        check_name(name)?;
        if nodes == 0 || nodes > MAX_NODES {
            return Err(PlanError::Nodes(nodes));
        }
        let zones = zones.unwrap_or(nodes);
        if zones == 0 || zones > nodes {
            return Err(PlanError::Zones(zones));
        }
        let of_each =
            |of: &dyn Fn(Family) -> Cidr| families.list().iter().map(|f| of(*f)).collect();
        let nodes = (1..=nodes)
            .map(|i| NodePlan {
                name: format!("n{i}"),
                zone: format!("zone-{}", (i - 1) % zones + 1),
                netns: format!("weft-{name}-n{i}"),
                addresses: of_each(&|family| fabric_address(family, 10 + i)),
                pod_cidrs: of_each(&|family| pod_cidr(family, i)),
            })
            .collect();
        Ok(Self {
            name: name.to_owned(),
            families,
            fabric: Fabric {
                netns: format!("weft-{name}-fabric"),
                addresses: of_each(&|family| fabric_address(family, 1)),
            },
            nodes,
            rp_filter: None,
        })
    }

    /// The address of the controller.
    pub(crate) fn controller(&self) -> IpAddr {
        self.fabric.addresses[0].address
    }

    /// Where clusterIPs come from, in each of the lab's families.
    pub(crate) fn service_cidrs(&self) -> Vec<Cidr> {
        let families = self.families.list().iter();
        families.map(|family| service_cidr(*family)).collect()
    }

    /// Where clusterIPs of a family come from, if the lab has it.
    pub(crate) fn service_cidr(&self, family: Family) -> Option<Cidr> {
        let has = self.families.list().contains(&family);
        has.then(|| service_cidr(family))
    }

    /// A node by its name.
    pub(crate) fn node(&self, name: &str) -> Option<&NodePlan> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The network namespace of a pod. Dots, which neither lab names nor namespaces have, keep
    /// `a-b`/`c` and `a`/`b-c` apart.
    pub(crate) fn pod_netns(&self, namespace: &str, name: &str) -> String {
        format!("weft-{}-p.{namespace}.{name}", self.name)
    }
}

/// Whether a name can be a lab's: it becomes part of network namespaces' names and of paths.
pub(crate) fn check_name(name: &str) -> Result<(), PlanError> {
    let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let valid = !name.is_empty()
        && name.len() <= MAX_NAME
        && name.chars().all(label)
        && !name.starts_with('-')
        && !name.ends_with('-');
    if valid {
        Ok(())
    } else {
        Err(PlanError::Name(name.to_owned()))
    }
}

/// Whether a network namespace belongs to the lab, by its name alone: what `down` goes by when
/// there is no record left.
pub(crate) fn owns_netns(lab: &str, netns: &str) -> bool {
    let Some(rest) = netns
        .strip_prefix("weft-")
        .and_then(|r| r.strip_prefix(lab))
        .and_then(|r| r.strip_prefix('-'))
    else {
        return false;
    };
    let node = |text: &str| {
        text.strip_prefix('n')
            .is_some_and(|n| !n.is_empty() && n.chars().all(|c| c.is_ascii_digit()))
    };
    rest == "fabric"
        || rest.starts_with("p.")
        || node(rest)
        || rest
            .find("-proxy")
            .is_some_and(|at| node(&rest[..at]) && is_proxy_suffix(&rest[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_get_distinct_names_addresses_and_subnets() {
        let plan = Plan::new("weft", 3, Some(2), IpFamily::Dual).unwrap();
        let of = |f: fn(&NodePlan) -> String| plan.nodes.iter().map(f).collect::<Vec<_>>();
        assert_eq!(
            of(|n| n.netns.clone()),
            ["weft-weft-n1", "weft-weft-n2", "weft-weft-n3"]
        );
        assert_eq!(of(|n| n.zone.clone()), ["zone-1", "zone-2", "zone-1"]);
        assert_eq!(
            of(|n| n.addresses[0].to_string()),
            ["10.240.0.11/24", "10.240.0.12/24", "10.240.0.13/24"]
        );
        assert_eq!(
            of(|n| n.addresses[1].to_string()),
            [
                "fd00:10:240::b/64",
                "fd00:10:240::c/64",
                "fd00:10:240::d/64"
            ]
        );
        assert_eq!(
            of(|n| n.pod_cidrs[0].to_string()),
            ["10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"]
        );
        assert_eq!(
            of(|n| n.pod_cidrs[1].to_string()),
            [
                "fd00:10:244:1::/64",
                "fd00:10:244:2::/64",
                "fd00:10:244:3::/64"
            ]
        );
        assert_eq!(plan.controller().to_string(), "10.240.0.1");
    }

    #[test]
    fn a_single_stack_lab_has_addresses_of_its_family_alone() {
        for (families, controller) in [
            (IpFamily::Ipv4, "10.240.0.1"),
            (IpFamily::Ipv6, "fd00:10:240::1"),
        ] {
            let plan = Plan::new("weft", 1, None, families).unwrap();
            assert_eq!(plan.controller().to_string(), controller);
            let node = &plan.nodes[0];
            let counts = [
                plan.fabric.addresses.len(),
                node.addresses.len(),
                node.pod_cidrs.len(),
                plan.service_cidrs().len(),
            ];
            assert_eq!(counts, [1; 4], "{families}");
        }
    }

    #[test]
    fn a_subnet_contains_its_own_addresses_of_its_own_family() {
        let cases = [
            (Cidr::v4(10, 96, 0, 0, 16), "10.96.255.255", true),
            (Cidr::v4(10, 96, 0, 0, 16), "10.97.0.0", false),
            (Cidr::v4(10, 96, 0, 0, 16), "::ffff:10.96.0.1", false),
            (Cidr::v6(0x96, 0, 0, 112), "fd00:10:96::ffff", true),
            (Cidr::v6(0x96, 0, 0, 112), "fd00:10:96::1:0", false),
        ];
        for (cidr, address, expected) in cases {
            let address = address.parse().unwrap();
            assert_eq!(cidr.contains(address), expected, "{cidr} {address}");
        }
    }

    #[test]
    fn a_lab_that_does_not_fit_is_refused() {
        let cases = [
            ("weft", 0, None, PlanError::Nodes(0)),
            ("weft", 51, None, PlanError::Nodes(51)),
            ("weft", 2, Some(3), PlanError::Zones(3)),
            ("weft", 2, Some(0), PlanError::Zones(0)),
            ("a.b", 2, None, PlanError::Name("a.b".into())),
            ("-a", 2, None, PlanError::Name("-a".into())),
            ("", 2, None, PlanError::Name(String::new())),
        ];
        for (name, nodes, zones, expected) in cases {
            let plan = Plan::new(name, nodes, zones, IpFamily::default());
            assert_eq!(plan, Err(expected));
        }
    }

    #[test]
    fn proxies_of_a_node_that_run_side_by_side_have_namespaces_of_their_own() {
        let node = &Plan::new("a", 11, None, IpFamily::default()).unwrap().nodes[0];
        assert_eq!(node.proxy_netns(1), "weft-a-n1-proxy");
        assert_eq!(node.proxy_netns(2), "weft-a-n1-proxy2");
        for number in [1, 2, 30] {
            assert!(node.is_proxy_netns(&node.proxy_netns(number)));
        }
        for other in ["weft-a-n1", "weft-a-n11-proxy", "weft-a-n1-proxyx"] {
            assert!(!node.is_proxy_netns(other), "{other}");
        }
    }

    #[test]
    fn a_netns_belongs_to_one_lab_even_if_one_name_begins_another() {
        let cases = [
            ("a", "weft-a-fabric", true),
            ("a", "weft-a-n1", true),
            ("a", "weft-a-n12-proxy", true),
            ("a", "weft-a-n12-proxy2", true),
            ("a", "weft-a-n1-proxy2-fabric", false),
            ("a", "weft-a-proxy", false),
            ("a", "weft-a-p.shop.client-1", true),
            ("a", "weft-a-n1-fabric", false),
            ("a-n1", "weft-a-n1-fabric", true),
            ("a", "weft-a-n1-n1-proxy", false),
            ("a", "weft-a-b-n1", false),
            ("a", "weft-a-n", false),
            ("a", "something-else", false),
        ];
        for (lab, netns, expected) in cases {
            assert_eq!(owns_netns(lab, netns), expected, "{lab} {netns}");
        }
    }
}

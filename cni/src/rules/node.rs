//! The rules in the node's own namespace that let the kubelet's probes through to captured pods.
//!
//! Masqueraded traffic carries the node's address too, so that address proves nothing, and a
//! packet's mark does not cross a veth. Connections that the host itself opens to a probed port of a
//! captured pod therefore get a reserved source, which the pod's rules accept on exactly these
//! ports; packets that come *in* with that source are dropped. What remains: any process of the
//! host can reach probed ports.
//!
//! Two tables of one name: what is routed is seen by family inet; what a bridge carries from one pod
//! to another is seen there only with br_netfilter, so family bridge drops the source as well.

use std::{fs, net::IpAddr};

use rustix::io::Errno;
use weft_api::names::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};

use super::{
    RulesError,
    apply::replace_table,
    plan::{Action, Chain, ChainKind, Family, Hook, Match, Rule, Set, Table, rule},
};

/// Name of the tables.
pub const NODE_TABLE: &str = "weft-node";

/// Connection mark of probes in the node's namespace.
const MARK_PROBE: u32 = 0x7765_0001;
/// Before connection tracking: spoofed packets cost nothing more.
const PRIORITY_RAW: i32 = -300;
/// After destination NAT (-100): a connection to a Service is no probe.
const PRIORITY_FILTER: i32 = 0;
/// Just before the standard source NAT (100): the first translation counts.
const PRIORITY_SOURCE: i32 = 99;

/// Addresses and ports that are probed.
const PROBED_V4: &str = "probed4";
const PROBED_V6: &str = "probed6";

/// With both of these the family inet sees what bridges carry.
const BRIDGED_IS_SEEN: [&str; 2] = [
    "/proc/sys/net/bridge/bridge-nf-call-iptables",
    "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
];

/// The node's two tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    inet: Table,
    bridge: Table,
}

/// Plans the node's rules, from the addresses and ports that the kubelet probes in captured pods;
/// without any there is nothing to protect, and the tables go.
pub fn plan_node(probed: &[(IpAddr, u16)]) -> NodePlan {
    let any = !probed.is_empty();
    let only_if = |chains: Vec<Chain>| if any { chains } else { Vec::new() };
    let mut elements = probed.to_vec();
    elements.sort_unstable();
    // The last pod of an address may still be on its way out.
    elements.dedup();
    let table = |family, sets, chains| Table {
        family,
        name: NODE_TABLE,
        comment: "probes",
        sets,
        chains: only_if(chains),
    };
    let set = |name, ipv6| Set {
        name,
        ipv6,
        elements: elements.clone(),
    };
    NodePlan {
        inet: table(
            Family::Inet,
            vec![set(PROBED_V4, false), set(PROBED_V6, true)],
            inet_chains(),
        ),
        bridge: table(Family::Bridge, Vec::new(), vec![spoofed()]),
    }
}

fn inet_chains() -> Vec<Chain> {
    let mark = |is_probed| {
        rule(
            [Match::NotDestinationNat, is_probed],
            Action::SetConnectionMark(MARK_PROBE),
        )
    };
    let source = |action| rule([Match::ConnectionMark(MARK_PROBE)], action);
    vec![
        spoofed(),
        chain(
            "probes",
            ChainKind::Filter,
            Hook::Output,
            PRIORITY_FILTER,
            vec![
                rule([Match::StateNotNew], Action::Accept),
                mark(Match::DestinationInV4(PROBED_V4)),
                mark(Match::DestinationInV6(PROBED_V6)),
            ],
        ),
        // Each acts on its own family only.
        chain(
            "source",
            ChainKind::Nat,
            Hook::Postrouting,
            PRIORITY_SOURCE,
            vec![
                source(Action::SourceV4(PROBE_SOURCE_V4)),
                source(Action::SourceV6(PROBE_SOURCE_V6)),
            ],
        ),
    ]
}

fn spoofed() -> Chain {
    chain(
        "spoofed",
        ChainKind::Filter,
        Hook::Prerouting,
        PRIORITY_RAW,
        vec![
            rule([Match::SourceV4(PROBE_SOURCE_V4)], Action::Drop),
            rule([Match::SourceV6(PROBE_SOURCE_V6)], Action::Drop),
        ],
    )
}

fn chain(
    name: &'static str,
    kind: ChainKind,
    hook: Hook,
    priority: i32,
    rules: Vec<Rule>,
) -> Chain {
    Chain {
        name,
        kind,
        hook,
        priority,
        rules,
    }
}

/// Puts the node's rules into force in the namespace that the calling thread is in. What comes back
/// without an error is what could not be done and a person should know.
pub fn apply_node(plan: &NodePlan) -> Result<Option<String>, RulesError> {
    replace(&plan.inet)?;
    let Err(error) = replace(&plan.bridge) else {
        return Ok(None);
    };
    let is_on = |path| fs::read_to_string(path).is_ok_and(|on| on.trim() == "1");
    if BRIDGED_IS_SEEN.into_iter().all(is_on) {
        return Ok(None);
    }
    Ok(Some(format!(
        "a pod can bear the probes' source ({PROBE_SOURCE_V4}, {PROBE_SOURCE_V6}) towards pods on its own bridge: {error}; load nf_tables for bridges, or br_netfilter"
    )))
}

fn replace(table: &Table) -> Result<(), RulesError> {
    match replace_table(table) {
        // Of a family that the kernel lacks there is nothing to delete either.
        Err(error)
            if table.chains.is_empty()
                && [Errno::NOENT, Errno::OPNOTSUPP, Errno::AFNOSUPPORT]
                    .into_iter()
                    .any(|errno| error.is(errno)) =>
        {
            Ok(())
        }
        result => result,
    }
}

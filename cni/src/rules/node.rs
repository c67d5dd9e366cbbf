//! The rules in the node's own namespace that let the kubelet's probes through to captured pods.
//!
//! Masqueraded traffic carries the node's address too, so that address proves nothing, and a
//! packet's mark does not cross a veth. Connections that the host itself opens to a probed port of a
//! captured pod therefore get a reserved link-local source, which the pod's rules accept on exactly
//! these ports; packets that come *in* with that source are dropped. What remains: any process of
//! the host can reach probed ports.
//!
//! IPv4 only so far: a link-local IPv6 source would need an answer to neighbour discovery on each
//! pod's link. Until then IPv6 probes of a strict pod are refused like other plaintext.

use std::net::IpAddr;

use weft_api::names::{PROBE_SOURCE_V4, PROBE_SOURCE_V6};

use super::{
    RulesError,
    apply::replace_table,
    plan::{Action, Chain, ChainKind, Hook, Match, Rule, rule},
};

/// Name of the table (family inet) in the node's namespace.
pub const NODE_TABLE: &str = "weft-node";

/// Connection mark of probes in the node's namespace.
const MARK_PROBE: u32 = 0x7765_0001;
/// Before connection tracking: spoofed packets cost nothing more.
const PRIORITY_RAW: i32 = -300;
/// After destination NAT (-100): a connection to a Service is no probe.
const PRIORITY_FILTER: i32 = 0;
/// Just before the standard source NAT (100): the first translation counts.
const PRIORITY_SOURCE: i32 = 99;

/// Plans the node's rules, from the addresses and ports that the kubelet probes in captured pods.
pub fn plan_node(probed: &[(IpAddr, u16)]) -> Vec<Chain> {
    let mut marks = vec![rule([Match::StateNotNew], Action::Accept)];
    marks.extend(
        probed
            .iter()
            .filter_map(|&(address, port)| mark(address, port)),
    );
    if marks.len() == 1 {
        return Vec::new();
    }
    let spoofed = vec![
        rule([Match::SourceV4(PROBE_SOURCE_V4)], Action::Drop),
        rule([Match::SourceV6(PROBE_SOURCE_V6)], Action::Drop),
    ];
    let source = vec![rule(
        [Match::ConnectionMark(MARK_PROBE)],
        Action::SourceV4(PROBE_SOURCE_V4),
    )];
    let chain = |name, kind, hook, priority, rules| Chain {
        name,
        kind,
        hook,
        priority,
        rules,
    };
    vec![
        chain(
            "spoofed",
            ChainKind::Filter,
            Hook::Prerouting,
            PRIORITY_RAW,
            spoofed,
        ),
        chain(
            "probes",
            ChainKind::Filter,
            Hook::Output,
            PRIORITY_FILTER,
            marks,
        ),
        chain(
            "source",
            ChainKind::Nat,
            Hook::Postrouting,
            PRIORITY_SOURCE,
            source,
        ),
    ]
}

fn mark(address: IpAddr, port: u16) -> Option<Rule> {
    let IpAddr::V4(address) = address else {
        return None;
    };
    Some(rule(
        [
            Match::NotDestinationNat,
            Match::DestinationV4(address),
            Match::TcpDestinationPort(port),
        ],
        Action::SetConnectionMark(MARK_PROBE),
    ))
}

/// Puts the node's rules into force in the namespace that the calling thread is in; without chains
/// the table is removed.
pub fn apply_node(chains: &[Chain]) -> Result<(), RulesError> {
    match replace_table(NODE_TABLE, "probes", chains) {
        Err(error) if chains.is_empty() && error.is(rustix::io::Errno::NOENT) => Ok(()),
        result => result,
    }
}

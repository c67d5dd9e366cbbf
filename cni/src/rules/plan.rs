//! What belongs into a pod's namespace, as data: no sockets, no kernel encoding.
//!
//! Why the rules are as they are (each was measured):
//! - Only packets that *open* a connection are redirected. Conntrack begins with these rules, takes
//!   what is already open for new, and a redirect would reset it: a pod keeps its connections
//!   when it joins.
//! - While a pod leaves, its NAT chains stay with `ct state new accept`: with the last NAT chain
//!   conntrack is unhooked too, and what is redirected would be reset.
//! - The proxy reaches the application from the client's address. The answers are led back to the
//!   proxy by a connection mark, restored in a `type route` chain: a filter chain would set the mark
//!   and not look the route up again.
//!
//! Against processes of the pod that may mark their sockets (CAP_NET_RAW is enough, and usual):
//! - The mark that passes is a secret of the sandbox. It is taken off each packet after routing, for
//!   a packet socket's filter, a raw socket or `tcp_fwmark_accept` would read it from there; so the
//!   connection mark is set on the way out. Connections with another mark are few a second: to
//!   guess one of 2^32 takes years.
//! - The way back to the proxy is for answers that the connection mark names. What a process marks
//!   so itself is dropped: it was routed to `lo` already, so the redirects would let it pass, and
//!   without the mark it would be routed anew.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_api::names::{
    MARK_TRANSPARENT, PORT_HBONE, PORT_INBOUND_PLAINTEXT, PORT_OUTBOUND, PROBE_SOURCE_V4,
    PROBE_SOURCE_V6, ROUTE_TABLE_TRANSPARENT,
};

/// Name of weft's table (family inet).
pub const TABLE: &str = "weft";

/// Priority of destination NAT, as the standard `dstnat`.
const PRIORITY_NAT: i32 = -100;
/// Priority of the standard `mangle`: marks are set before NAT.
const PRIORITY_MANGLE: i32 = -150;
/// After everything else on the way out.
const PRIORITY_LAST: i32 = 300;
/// Connections with a foreign mark that a pod may open at once and then a second: well above what a
/// program with marks of its own opens, and 2^32 marks take 13 years.
const FOREIGN_MARKS: Rate = Rate {
    per_second: 10,
    burst: 100,
};
/// Priority of the ip rule: after `local` (0), before `main` (32766) and what CNIs use.
const PRIORITY_POLICY: u32 = 100;

/// What a pod needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRules {
    /// How far the pod is in or out of the mesh.
    pub phase: Phase,
    /// Whether IPv6 is enabled in the namespace.
    pub ipv6: bool,
    /// Ports that the kubelet probes, which the reserved probe source may reach directly.
    pub probe_ports: Vec<u16>,
    /// The mark of the proxy's sockets: a secret of the sandbox.
    pub mark: u32,
}

/// How far a pod is in or out of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// New connections are redirected to the proxy.
    Joined,
    /// New connections go straight; redirected ones that are open live on.
    Leaving,
    /// Nothing of weft is left.
    Removed,
}

impl Phase {
    /// The word that the table's comment carries.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Joined => "joined",
            Phase::Leaving => "leaving",
            Phase::Removed => "removed",
        }
    }
}

/// What has to be in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Goes into the table's comment, for people and for [`super::inspect`].
    pub phase: Phase,
    /// The chains of table `inet weft`; the table is deleted if there are none.
    pub chains: Vec<Chain>,
    /// Rules and routes for answers to the proxy; removed where `present` is false.
    pub routes: Vec<TransparentRoute>,
}

/// A table that is put into force as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Which packets it sees.
    pub family: Family,
    /// Its name.
    pub name: &'static str,
    /// For people.
    pub comment: &'static str,
    /// Its sets.
    pub sets: Vec<Set>,
    /// Its chains; without any the table is deleted.
    pub chains: Vec<Chain>,
}

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6 that is routed or local.
    Inet,
    /// Frames that come in through a port of a bridge, whether they are bridged or routed.
    Bridge,
}

/// A set of addresses with TCP ports, all of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// IPv6 instead of IPv4.
    pub ipv6: bool,
    /// Its elements; those of the other family are left out.
    pub elements: Vec<(IpAddr, u16)>,
}

/// How often something may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In the long run.
    pub per_second: u64,
    /// At once.
    pub burst: u32,
}

/// A base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: ChainKind,
    /// Where it hooks in.
    pub hook: Hook,
    /// Its priority there.
    pub priority: i32,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// A chain's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    /// Filtering and marking.
    Filter,
    /// Address translation: sees the first packet of each connection.
    Nat,
    /// Marking with a new route look-up.
    Route,
}

/// A netfilter hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets that come in, before routing.
    Prerouting,
    /// Packets that pass through.
    Forward,
    /// Packets of local processes.
    Output,
    /// Packets that go out, after routing.
    Postrouting,
}

/// All matches must hold, then the action is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Matches.
    pub matches: Vec<Match>,
    /// Action.
    pub action: Action,
}

/// A condition on a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// The packet's mark.
    Mark(u32),
    /// Any other mark of the packet, and none.
    MarkNot(u32),
    /// The connection's mark.
    ConnectionMark(u32),
    /// The packet is the first of its connection.
    StateNew,
    /// The packet belongs to a connection that is known already.
    StateNotNew,
    /// The connection's destination was not translated (conntrack status lacks `dnat`).
    NotDestinationNat,
    /// The packet goes from the connection's responder to its originator.
    DirectionReply,
    /// Name of the interface that the packet goes out through.
    OutInterface(&'static str),
    /// Any address of 127.0.0.0/8.
    DestinationLoopbackV4,
    /// Exactly this destination.
    DestinationV6(Ipv6Addr),
    /// The destination and TCP port are in this set of IPv4 addresses.
    DestinationInV4(&'static str),
    /// The destination and TCP port are in this set of IPv6 addresses.
    DestinationInV6(&'static str),
    /// Exactly this source.
    SourceV4(Ipv4Addr),
    /// Exactly this source.
    SourceV6(Ipv6Addr),
    /// TCP to this port.
    TcpDestinationPort(u16),
    /// TCP that opens a connection: SYN without ACK.
    TcpOpens,
    /// Packets that came so far in the rule come more often than this.
    Over(Rate),
}

/// What happens to a packet that matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The chain ends, the packet goes on.
    Accept,
    /// The packet is dropped.
    Drop,
    /// The connection goes to this port of the local host.
    Redirect(u16),
    /// Sets the packet's mark.
    SetMark(u32),
    /// Sets the connection's mark.
    SetConnectionMark(u32),
    /// The connection appears to come from this address.
    SourceV4(Ipv4Addr),
    /// The connection appears to come from this address.
    SourceV6(Ipv6Addr),
}

/// `ip rule fwmark MARK lookup TABLE` and `ip route local default dev lo table TABLE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransparentRoute {
    /// IPv6 instead of IPv4.
    pub ipv6: bool,
    /// Whether it has to be there or has to be gone.
    pub present: bool,
    /// The rule's priority.
    pub priority: u32,
    /// The packet mark that the rule matches.
    pub mark: u32,
    /// The routing table.
    pub table: u32,
}

/// Plans the rules of one pod.
pub fn plan(pod: &PodRules) -> Plan {
    let (output, prerouting) = match pod.phase {
        Phase::Joined => (output(pod), prerouting(pod)),
        Phase::Leaving => (let_new_through(), let_new_through()),
        Phase::Removed => {
            return Plan {
                phase: pod.phase,
                chains: Vec::new(),
                routes: routes(pod, false),
            };
        }
    };
    let chain = |name, kind, hook, priority, rules| Chain {
        name,
        kind,
        hook,
        priority,
        rules,
    };
    Plan {
        phase: pod.phase,
        chains: vec![
            chain(
                "marks",
                ChainKind::Route,
                Hook::Output,
                PRIORITY_MANGLE,
                marks(pod),
            ),
            chain(
                "hide",
                ChainKind::Filter,
                Hook::Postrouting,
                PRIORITY_LAST,
                vec![rule([Match::Mark(pod.mark)], Action::SetMark(0))],
            ),
            chain("output", ChainKind::Nat, Hook::Output, PRIORITY_NAT, output),
            chain(
                "prerouting",
                ChainKind::Nat,
                Hook::Prerouting,
                PRIORITY_NAT,
                prerouting,
            ),
        ],
        routes: routes(pod, true),
    }
}

fn marks(pod: &PodRules) -> Vec<Rule> {
    vec![
        rule([Match::Mark(MARK_TRANSPARENT)], Action::Drop),
        // To the application, from the client's address.
        rule(
            [Match::Mark(pod.mark), Match::OutInterface("lo")],
            Action::SetConnectionMark(MARK_TRANSPARENT),
        ),
        rule(
            [
                Match::MarkNot(0),
                Match::MarkNot(pod.mark),
                Match::TcpOpens,
                Match::Over(FOREIGN_MARKS),
            ],
            Action::Drop,
        ),
        rule(
            [
                Match::DirectionReply,
                Match::ConnectionMark(MARK_TRANSPARENT),
            ],
            Action::SetMark(MARK_TRANSPARENT),
        ),
    ]
}

fn output(pod: &PodRules) -> Vec<Rule> {
    let mut rules = vec![
        rule([Match::Mark(pod.mark)], Action::Accept),
        rule([Match::DestinationLoopbackV4], Action::Accept),
    ];
    if pod.ipv6 {
        rules.push(rule(
            [Match::DestinationV6(Ipv6Addr::LOCALHOST)],
            Action::Accept,
        ));
    }
    // The pod's own address is reached through lo as well.
    rules.push(rule([Match::OutInterface("lo")], Action::Accept));
    rules.push(rule([Match::TcpOpens], Action::Redirect(PORT_OUTBOUND)));
    rules
}

fn prerouting(pod: &PodRules) -> Vec<Rule> {
    let mut rules = vec![rule(
        [Match::TcpDestinationPort(PORT_HBONE)],
        Action::Accept,
    )];
    for &port in &pod.probe_ports {
        let to_port = Match::TcpDestinationPort(port);
        rules.push(rule(
            [Match::SourceV4(PROBE_SOURCE_V4), to_port.clone()],
            Action::Accept,
        ));
        if pod.ipv6 {
            rules.push(rule(
                [Match::SourceV6(PROBE_SOURCE_V6), to_port],
                Action::Accept,
            ));
        }
    }
    rules.push(rule(
        [Match::TcpOpens],
        Action::Redirect(PORT_INBOUND_PLAINTEXT),
    ));
    rules
}

fn let_new_through() -> Vec<Rule> {
    vec![rule([Match::StateNew], Action::Accept)]
}

fn routes(pod: &PodRules, present: bool) -> Vec<TransparentRoute> {
    let families: &[bool] = if pod.ipv6 { &[false, true] } else { &[false] };
    let route = |&ipv6| TransparentRoute {
        ipv6,
        present,
        priority: PRIORITY_POLICY,
        mark: MARK_TRANSPARENT,
        table: ROUTE_TABLE_TRANSPARENT,
    };
    families.iter().map(route).collect()
}

pub(crate) fn rule<const N: usize>(matches: [Match; N], action: Action) -> Rule {
    Rule {
        matches: matches.into(),
        action,
    }
}

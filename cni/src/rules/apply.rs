//! Puts a plan into force, and reads back what is in force.
//!
//! The table is replaced as a whole in one nf_tables transaction: applying twice changes nothing,
//! a failure changes nothing, and what an older version left in it is gone.

use std::{collections::BTreeMap, net::Ipv6Addr};

use netlink_packet_core::{DefaultNla, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage},
    nftables::{NfTablesMessage, RuleAttribute},
    none::ControlMessage,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkFlags, LinkMessage},
    route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute as PolicyAttribute, RuleMessage as PolicyMessage},
};
use rustix::{io::Errno, net::netlink};

use super::{
    encode,
    netlink::{Netlink, Request, RulesError},
    plan::{Family, Phase, Plan, TABLE, Table, TransparentRoute},
    sets,
};
use crate::netns::NetNs;

/// `NFNL_SUBSYS_NFTABLES`, which opens a batch.
const SUBSYSTEM_NFTABLES: u16 = 10;
/// Attributes of a tracked connection, and the status of one whose destination is translated
/// (linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h).
const CTA_STATUS: u16 = 3;
const CTA_MARK: u16 = 8;
const CTA_MARK_MASK: u16 = 21;
const CTA_STATUS_MASK: u16 = 26;
const IPS_DST_NAT: u32 = 1 << 5;
/// Names of iptables' tables, in the namespace of the calling thread.
const LEGACY_TABLES: [&str; 2] = [
    "/proc/thread-self/net/ip_tables_names",
    "/proc/thread-self/net/ip6_tables_names",
];

/// Route netlink is protocol 0, a socket's default.
const NETLINK_ROUTE: Option<rustix::net::Protocol> = None;
/// Of the network namespace of the thread that reads it.
const IPV6_DISABLED: &str = "/proc/sys/net/ipv6/conf/lo/disable_ipv6";
/// The loopback interface's index in every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// What was found in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The phase that the table's comment tells; `None` if it is not one of weft's.
    pub phase: Option<Phase>,
    /// Rules in each chain.
    pub rules: BTreeMap<String, usize>,
}

impl Observed {
    /// Whether what is there is what `plan` put there.
    pub fn matches(&self, plan: &Plan) -> bool {
        let planned = plan
            .chains
            .iter()
            .map(|chain| (chain.name.to_owned(), chain.rules.len()));
        self.phase == Some(plan.phase) && self.rules == planned.collect()
    }
}

/// Puts `plan` into force in the pod's namespace.
pub fn apply(netns: &NetNs, plan: &Plan) -> Result<(), RulesError> {
    netns.run(|| apply_here(plan))?
}

/// Reads what is in force; `None` if there is no table of weft's.
pub fn inspect(netns: &NetNs) -> Result<Option<Observed>, RulesError> {
    netns.run(inspect_here)?
}

/// Whether IPv6 is enabled in the namespace, on the loopback interface above all. That this is up
/// is not asked: where the runtime leaves it down, the rules bring it up.
pub fn ipv6_is_enabled(netns: &NetNs) -> Result<bool, RulesError> {
    let look = || match std::fs::read_to_string(IPV6_DISABLED) {
        Ok(disabled) => disabled.trim() == "0",
        // No IPv6 in this kernel, or no /proc to ask.
        Err(_) => std::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok(),
    };
    Ok(netns.run(look)?)
}

/// As [`apply`], for the namespace that the calling thread is in.
pub(crate) fn apply_here(plan: &Plan) -> Result<(), RulesError> {
    let add = plan.phase != Phase::Removed;
    if add {
        // Answers must have their way back before the first connection is redirected.
        apply_routes(&plan.routes)?;
    }
    let result = replace_table(&Table {
        family: Family::Inet,
        name: TABLE,
        comment: plan.phase.as_str(),
        sets: Vec::new(),
        chains: plan.chains.clone(),
    });
    match result {
        Err(error) if !add && error.is(Errno::NOENT) => {}
        result => result?,
    }
    if !add {
        apply_routes(&plan.routes)?;
        if let Err(error) = forget_connections() {
            tracing::debug!(%error, "tracked connections stay until they time out");
        }
    }
    Ok(())
}

/// Removes what connection tracking remembers. Without rules it is not told how connections go on, but
/// keeps them, for days if it takes them for open: when the pod joins again, a new connection between
/// the same ports would be translated as the old one was. Where others have rules only what was
/// redirected or proxied is removed: theirs is still true.
fn forget_connections() -> Result<(), RulesError> {
    let delete = |what: &str, attributes: &[(u16, u32)]| {
        let attributes = attributes.iter().map(|(kind, value)| {
            ConntrackAttribute::Other(DefaultNla::new(*kind, value.to_be_bytes().to_vec()))
        });
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
        let message = ConntrackMessage::Delete(attributes.collect());
        Request::new(what, NetfilterMessage::new(header, message), 0)
    };
    let redirected = [(CTA_STATUS, IPS_DST_NAT), (CTA_STATUS_MASK, IPS_DST_NAT)];
    let proxied = [
        (CTA_MARK, weft_api::names::MARK_TRANSPARENT),
        (CTA_MARK_MASK, u32::MAX),
    ];
    let requests = if others_have_rules()? {
        vec![
            delete("forget redirected connections", &redirected),
            delete("forget proxied connections", &proxied),
        ]
    } else {
        vec![delete("forget all connections", &[])]
    };
    Netlink::open(Some(netlink::NETFILTER))?.execute(None, requests, None)
}

/// Whether tables are there, of nf_tables or of iptables before it.
fn others_have_rules() -> Result<bool, RulesError> {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    let tables = NetfilterMessage::new(header, encode::get_tables());
    let netlink = Netlink::open(Some(netlink::NETFILTER))?;
    let tables = netlink.query(Request::new("list tables", tables, NLM_F_DUMP))?;
    let legacy = LEGACY_TABLES
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok());
    Ok(!tables.is_empty() || legacy.into_iter().any(|names| !names.trim().is_empty()))
}

/// Replaces (or, without chains, deletes) a table in one transaction.
pub(crate) fn replace_table(table: &Table) -> Result<(), RulesError> {
    let mut requests = Vec::new();
    let name = format!("{} {}", family_name(table.family), table.name);
    let mut push = |what: String, message, flags| {
        requests.push(Request::new(what, message_of(table.family, message), flags));
    };
    let new = || encode::new_table(table.name, table.comment);
    if table.chains.is_empty() {
        push(
            format!("delete table {name}"),
            encode::delete_table(table.name),
            0,
        );
    } else {
        // To make it first is what lets it be deleted unconditionally.
        push(format!("add table {name}"), new(), NLM_F_CREATE);
        push(
            format!("replace table {name}"),
            encode::delete_table(table.name),
            0,
        );
        push(format!("add table {name}"), new(), NLM_F_CREATE);
        for (set, id) in table.sets.iter().zip(1..) {
            push(
                format!("add set {name} {}", set.name),
                sets::new_set(table.name, set, id),
                NLM_F_CREATE,
            );
            for elements in sets::new_elements(table.name, set) {
                push(
                    format!("add elements of set {name} {}", set.name),
                    elements,
                    NLM_F_CREATE,
                );
            }
        }
    }
    for chain in &table.chains {
        push(
            format!("add chain {name} {}", chain.name),
            encode::new_chain(table.name, chain),
            NLM_F_CREATE,
        );
        for (index, rule) in chain.rules.iter().enumerate() {
            push(
                format!("add rule {} of chain {name} {}", index + 1, chain.name),
                encode::new_rule(table.name, table.family, chain, rule),
                NLM_F_CREATE | NLM_F_APPEND,
            );
        }
    }
    Netlink::open(Some(netlink::NETFILTER))?.execute(
        Some(control(ControlMessage::BatchBegin)),
        requests,
        Some(control(ControlMessage::BatchEnd)),
    )
}

fn inspect_here() -> Result<Option<Observed>, RulesError> {
    let netlink = Netlink::open(Some(netlink::NETFILTER))?;
    let get = Request::new("get table inet weft", inet(encode::get_table(TABLE)), 0);
    let tables = match netlink.query(get) {
        Err(error) if error.is(Errno::NOENT) => return Ok(None),
        answer => answer?,
    };
    let comment = tables.iter().find_map(|message| match &message.inner {
        NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(table)) => {
            encode::comment(&table.attributes)
        }
        _ => None,
    });
    let phase = [Phase::Joined, Phase::Leaving]
        .into_iter()
        .find(|phase| comment == Some(phase.as_str()));
    let get = Request::new(
        "list rules of table inet weft",
        inet(encode::get_rules(TABLE)),
        NLM_F_DUMP,
    );
    let mut rules = BTreeMap::new();
    for message in netlink.query(get)? {
        let NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(rule)) = message.inner else {
            continue;
        };
        for attribute in rule.attributes {
            if let RuleAttribute::Chain(chain) = attribute {
                *rules.entry(chain).or_default() += 1;
            }
        }
    }
    Ok(Some(Observed { phase, rules }))
}

fn apply_routes(routes: &[TransparentRoute]) -> Result<(), RulesError> {
    let netlink = Netlink::open(NETLINK_ROUTE)?;
    let one = |request| netlink.execute(None, vec![request], None);
    let present = routes.iter().any(|route| route.present);
    if present {
        // A redirect leads to the loopback address; not every runtime brings the interface up.
        one(Request::new("bring lo up", loopback_up(), 0))?;
    }
    for route in routes {
        let (policy, local) = (policy(route), local_default(route));
        if route.present {
            let flags = NLM_F_CREATE | NLM_F_EXCL;
            let add = RouteNetlinkMessage::NewRoute(local);
            unless(
                Errno::EXIST,
                one(Request::new(
                    "add local default dev lo table 100",
                    add,
                    flags,
                )),
            )?;
            let add = RouteNetlinkMessage::NewRule(policy);
            unless(
                Errno::EXIST,
                one(Request::new("add ip rule fwmark 0x111", add, flags)),
            )?;
        } else {
            let delete = RouteNetlinkMessage::DelRule(policy);
            unless(
                Errno::NOENT,
                one(Request::new("delete ip rule fwmark 0x111", delete, 0)),
            )?;
            let delete = RouteNetlinkMessage::DelRoute(local);
            unless(
                Errno::SRCH,
                one(Request::new("delete routes of table 100", delete, 0)),
            )?;
        }
    }
    Ok(())
}

fn unless(harmless: Errno, result: Result<(), RulesError>) -> Result<(), RulesError> {
    match result {
        Err(error) if error.is(harmless) => Ok(()),
        result => result,
    }
}

fn family(route: &TransparentRoute) -> AddressFamily {
    if route.ipv6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    }
}

fn policy(route: &TransparentRoute) -> PolicyMessage {
    let mut message = PolicyMessage::default();
    message.header.family = family(route);
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        PolicyAttribute::Priority(route.priority),
        PolicyAttribute::FwMark(route.mark),
        PolicyAttribute::Table(route.table),
    ];
    message
}

fn local_default(route: &TransparentRoute) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route);
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Host;
    message.header.kind = RouteType::Local;
    message.attributes = vec![
        RouteAttribute::Table(route.table),
        RouteAttribute::Oif(LOOPBACK_INDEX),
    ];
    message
}

fn loopback_up() -> RouteNetlinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = LOOPBACK_INDEX;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    RouteNetlinkMessage::SetLink(link)
}

fn inet(message: NfTablesMessage) -> NetfilterMessage {
    message_of(Family::Inet, message)
}

fn message_of(family: Family, message: NfTablesMessage) -> NetfilterMessage {
    let family = match family {
        Family::Inet => NetfilterProtoFamily::Inet,
        Family::Bridge => NetfilterProtoFamily::Bridge,
    };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::Inet => "inet",
        Family::Bridge => "bridge",
    }
}

fn control(message: ControlMessage) -> NetfilterMessage {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM_NFTABLES);
    NetfilterMessage::new(header, message)
}

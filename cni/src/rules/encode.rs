//! From a plan to nf_tables messages, laid out as the `nft` program lays its own out, so that
//! `nft list ruleset` prints them as a person would have written them.

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions,
    Hook as HookAttribute, HookNumber, Immediate, InetHookNumber, ListAttribute, Lookup, Meta,
    MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute, RuleMessage,
    TableAttribute, TableMessage, Verdict, VerdictAttribute,
};

use super::plan::{Action, Chain, ChainKind, Family, Hook, Match, Rate, Rule};

// Verdicts of linux/netfilter.h, which the message crate has no names for.
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

// linux/netfilter/nf_tables.h
const PAYLOAD_NETWORK_HEADER: u32 = 1;
const PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_SREG: u16 = 4;
const NFT_CT_STATE: u32 = 0;
const NFT_CT_DIRECTION: u32 = 1;
const NFT_CT_STATUS: u32 = 2;
const NFT_CT_MARK: u32 = 3;
const NFTA_REDIR_REG_PROTO_MIN: u16 = 1;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFT_NAT_SNAT: u32 = 0;
const NFTA_LIMIT_RATE: u16 = 1;
const NFTA_LIMIT_UNIT: u16 = 2;
const NFTA_LIMIT_BURST: u16 = 3;
const NFTA_LIMIT_TYPE: u16 = 4;
const NFTA_LIMIT_FLAGS: u16 = 5;
const NFT_LIMIT_PKTS: u32 = 0;
const NFT_LIMIT_F_INV: u32 = 1;
/// `NFTNL_UDATA_TABLE_COMMENT`: nft shows it as the table's comment.
const USERDATA_COMMENT: u8 = 0;

// linux/netfilter/nf_conntrack_common.h
const CT_STATE_NEW: u32 = 1 << 3;
const IPS_DST_NAT: u32 = 1 << 5;
const CT_DIRECTION_REPLY: u8 = 1;

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const IPPROTO_TCP: u8 = 6;
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;
/// Length of an interface's name in the kernel, the terminating zero included.
const IFNAMSIZ: usize = 16;

const DATA: Register = Register::Reg1;
/// What follows an address of four bytes in [`DATA`], and one of sixteen.
const AFTER_V4: Register = Register::Reg32_01;
const AFTER_V6: Register = Register::Reg2;

pub(super) fn new_table(name: &str, comment: &str) -> NfTablesMessage {
    let attributes = vec![
        TableAttribute::Name(name.into()),
        TableAttribute::UserData(userdata(comment)),
    ];
    NfTablesMessage::NewTable(TableMessage { attributes })
}

pub(super) fn delete_table(name: &str) -> NfTablesMessage {
    let attributes = vec![TableAttribute::Name(name.into())];
    NfTablesMessage::DeleteTable(TableMessage { attributes })
}

pub(super) fn get_table(name: &str) -> NfTablesMessage {
    let attributes = vec![TableAttribute::Name(name.into())];
    NfTablesMessage::GetTable(TableMessage { attributes })
}

/// Asks for all tables; in a dump.
pub(super) fn get_tables() -> NfTablesMessage {
    NfTablesMessage::GetTable(TableMessage {
        attributes: Vec::new(),
    })
}

pub(super) fn get_rules(table: &str) -> NfTablesMessage {
    let attributes = vec![RuleAttribute::Table(table.into())];
    NfTablesMessage::GetRule(RuleMessage { attributes })
}

pub(super) fn new_chain(table: &str, chain: &Chain) -> NfTablesMessage {
    let kind = match chain.kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
        ChainKind::Route => "route",
    };
    let hook = match chain.hook {
        Hook::Prerouting => InetHookNumber::PreRouting,
        Hook::Forward => InetHookNumber::Forward,
        Hook::Output => InetHookNumber::LocalOut,
        Hook::Postrouting => InetHookNumber::PostRouting,
    };
    NfTablesMessage::NewChain(ChainMessage {
        attributes: vec![
            ChainAttribute::Table(table.into()),
            ChainAttribute::Name(chain.name.into()),
            ChainAttribute::Hook(vec![
                HookAttribute::Number(HookNumber::Inet(hook)),
                // Signed in meaning, unsigned on the wire.
                HookAttribute::Priority(chain.priority.cast_unsigned()),
            ]),
            ChainAttribute::Policy(NF_ACCEPT),
            ChainAttribute::Type(kind.into()),
        ],
    })
}

pub(super) fn new_rule(table: &str, family: Family, chain: &Chain, rule: &Rule) -> NfTablesMessage {
    let mut expressions = Vec::new();
    for condition in &rule.matches {
        encode_match(family, condition, &mut expressions);
    }
    encode_action(&rule.action, &mut expressions);
    NfTablesMessage::NewRule(RuleMessage {
        attributes: vec![
            RuleAttribute::Table(table.into()),
            RuleAttribute::Chain(chain.name.into()),
            RuleAttribute::Expressions(expressions.into_iter().map(List::from).collect()),
        ],
    })
}

type List = ListAttribute<ExpressionAttribute>;

fn encode_match(family: Family, condition: &Match, out: &mut Vec<Expressions>) {
    match condition {
        Match::Mark(mark) => out.extend([meta(MetaKey::Mark), equal(mark.to_ne_bytes())]),
        Match::MarkNot(mark) => out.extend([meta(MetaKey::Mark), not_equal(mark.to_ne_bytes())]),
        Match::ConnectionMark(mark) => out.extend([ct(NFT_CT_MARK), equal(mark.to_ne_bytes())]),
        Match::StateNew => {
            out.extend([
                ct(NFT_CT_STATE),
                and(CT_STATE_NEW.to_ne_bytes()),
                not_equal([0; 4]),
            ]);
        }
        Match::StateNotNew => {
            out.extend([
                ct(NFT_CT_STATE),
                and(CT_STATE_NEW.to_ne_bytes()),
                equal([0; 4]),
            ]);
        }
        Match::NotDestinationNat => {
            out.extend([
                ct(NFT_CT_STATUS),
                and(IPS_DST_NAT.to_ne_bytes()),
                equal([0; 4]),
            ]);
        }
        Match::DirectionReply => out.extend([ct(NFT_CT_DIRECTION), equal([CT_DIRECTION_REPLY])]),
        Match::OutInterface(name) => {
            let mut padded = [0; IFNAMSIZ];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            out.extend([meta(MetaKey::Oifname), equal(padded)]);
        }
        Match::DestinationLoopbackV4 => out.extend(network(family, false, 16, [127])),
        Match::DestinationV6(address) => {
            out.extend(network(family, true, 24, address.octets()));
        }
        Match::DestinationInV4(set) => {
            out.extend(version(family, false));
            out.extend(tcp());
            out.extend([
                payload(PAYLOAD_NETWORK_HEADER, 16, 4),
                payload_into(AFTER_V4, PAYLOAD_TRANSPORT_HEADER, 2, 2),
                lookup(set),
            ]);
        }
        Match::DestinationInV6(set) => {
            out.extend(version(family, true));
            out.extend(tcp());
            out.extend([
                payload(PAYLOAD_NETWORK_HEADER, 24, 16),
                payload_into(AFTER_V6, PAYLOAD_TRANSPORT_HEADER, 2, 2),
                lookup(set),
            ]);
        }
        Match::SourceV4(address) => out.extend(network(family, false, 12, address.octets())),
        Match::SourceV6(address) => out.extend(network(family, true, 8, address.octets())),
        Match::TcpDestinationPort(port) => {
            out.extend(tcp());
            out.extend([
                payload(PAYLOAD_TRANSPORT_HEADER, 2, 2),
                equal(port.to_be_bytes()),
            ]);
        }
        Match::TcpOpens => {
            out.extend(tcp());
            out.push(payload(PAYLOAD_TRANSPORT_HEADER, 13, 1));
            out.extend([and([TCP_SYN | TCP_ACK]), equal([TCP_SYN])]);
        }
        Match::Over(rate) => out.push(over(*rate)),
    }
}

fn encode_action(action: &Action, out: &mut Vec<Expressions>) {
    match action {
        Action::Accept => out.push(verdict(NF_ACCEPT)),
        Action::Drop => out.push(verdict(NF_DROP)),
        Action::Redirect(port) => out.extend([
            load(port.to_be_bytes()),
            other("redir", [(NFTA_REDIR_REG_PROTO_MIN, DATA.into())]),
        ]),
        Action::SetMark(mark) => out.extend([
            load(mark.to_ne_bytes()),
            Expressions::Meta(vec![Meta::Key(MetaKey::Mark), Meta::SourceRegister(DATA)]),
        ]),
        Action::SetConnectionMark(mark) => out.extend([
            load(mark.to_ne_bytes()),
            other(
                "ct",
                [(NFTA_CT_KEY, NFT_CT_MARK), (NFTA_CT_SREG, DATA.into())],
            ),
        ]),
        Action::SourceV4(address) => {
            out.extend([load(address.octets()), source_nat(NFPROTO_IPV4)]);
        }
        Action::SourceV6(address) => {
            out.extend([load(address.octets()), source_nat(NFPROTO_IPV6)]);
        }
    }
}

fn meta(key: MetaKey) -> Expressions {
    Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(DATA)])
}

fn ct(key: u32) -> Expressions {
    other("ct", [(NFTA_CT_KEY, key), (NFTA_CT_DREG, DATA.into())])
}

fn source_nat(family: u8) -> Expressions {
    other(
        "nat",
        [
            (NFTA_NAT_TYPE, NFT_NAT_SNAT),
            (NFTA_NAT_FAMILY, family.into()),
            (NFTA_NAT_REG_ADDR_MIN, DATA.into()),
        ],
    )
}

fn payload(base: u32, offset: u32, length: u32) -> Expressions {
    payload_into(DATA, base, offset, length)
}

fn lookup(set: &str) -> Expressions {
    Expressions::Lookup(vec![Lookup::Set(set.into()), Lookup::SourceRegister(DATA)])
}

/// Matches while there are more packets than the rate allows.
fn over(rate: Rate) -> Expressions {
    let nla = |kind, bytes: &[u8]| DefaultNla::new(kind, bytes.to_vec());
    Expressions::Other {
        expression_type: "limit".into(),
        attributes: vec![
            nla(NFTA_LIMIT_RATE, &rate.per_second.to_be_bytes()),
            nla(NFTA_LIMIT_UNIT, &1_u64.to_be_bytes()),
            nla(NFTA_LIMIT_BURST, &rate.burst.to_be_bytes()),
            nla(NFTA_LIMIT_TYPE, &NFT_LIMIT_PKTS.to_be_bytes()),
            nla(NFTA_LIMIT_FLAGS, &NFT_LIMIT_F_INV.to_be_bytes()),
        ],
    }
}

fn payload_into(register: Register, base: u32, offset: u32, length: u32) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(register),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

/// Compares bytes of the network header after the check that it is of the right version.
fn network<const N: usize>(
    family: Family,
    ipv6: bool,
    offset: u32,
    bytes: [u8; N],
) -> [Expressions; 4] {
    let length = u32::try_from(N).expect("an address is short");
    let [is, version] = version(family, ipv6);
    [
        is,
        version,
        payload(PAYLOAD_NETWORK_HEADER, offset, length),
        equal(bytes),
    ]
}

/// Whether it is IPv4 or IPv6.
fn version(family: Family, ipv6: bool) -> [Expressions; 2] {
    match family {
        Family::Inet => {
            let version = if ipv6 { NFPROTO_IPV6 } else { NFPROTO_IPV4 };
            [meta(MetaKey::Nfproto), equal([version])]
        }
        Family::Bridge => {
            let kind: u16 = if ipv6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
            [meta(MetaKey::EtherTypeProtocol), equal(kind.to_be_bytes())]
        }
    }
}

fn tcp() -> [Expressions; 2] {
    [meta(MetaKey::L4Proto), equal([IPPROTO_TCP])]
}

fn equal<const N: usize>(bytes: [u8; N]) -> Expressions {
    compare(Operator::Equal, bytes)
}

fn not_equal<const N: usize>(bytes: [u8; N]) -> Expressions {
    compare(Operator::NotEqual, bytes)
}

fn compare<const N: usize>(operator: Operator, bytes: [u8; N]) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(DATA),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(bytes.into())),
    ])
}

fn and<const N: usize>(mask: [u8; N]) -> Expressions {
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(DATA),
        Bitwise::DestinationRegister(DATA),
        Bitwise::Length(u32::try_from(N).expect("a mask is short")),
        Bitwise::Mask(DataAttribute::Value(mask.into())),
        Bitwise::Xor(DataAttribute::Value([0; N].into())),
    ])
}

fn load<const N: usize>(bytes: [u8; N]) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(DATA),
        Immediate::Data(DataAttribute::Value(bytes.into())),
    ])
}

fn verdict(code: u32) -> Expressions {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(
            Verdict::Other(code),
        )])),
    ])
}

/// An expression that the message crate has no type for; its attributes are 32-bit numbers.
fn other<const N: usize>(name: &str, attributes: [(u16, u32); N]) -> Expressions {
    let nla = |(kind, value): (u16, u32)| DefaultNla::new(kind, value.to_be_bytes().into());
    Expressions::Other {
        expression_type: name.into(),
        attributes: attributes.into_iter().map(nla).collect(),
    }
}

/// A comment as nft writes it: type, length, text with its terminating zero.
fn userdata(comment: &str) -> Vec<u8> {
    let length = u8::try_from(comment.len() + 1).expect("comments are a few words");
    let mut bytes = vec![USERDATA_COMMENT, length];
    bytes.extend_from_slice(comment.as_bytes());
    bytes.push(0);
    bytes
}

/// Reads back what [`new_table`] wrote.
pub(super) fn comment(attributes: &[TableAttribute]) -> Option<&str> {
    attributes.iter().find_map(|attribute| match attribute {
        TableAttribute::UserData(bytes) => match bytes.as_slice() {
            [USERDATA_COMMENT, _, text @ .., 0] => std::str::from_utf8(text).ok(),
            _ => None,
        },
        _ => None,
    })
}

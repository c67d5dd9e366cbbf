//! From a set to nf_tables messages. Elements come in parts: a list of netlink attributes holds
//! 64 KiB at most.

use std::net::IpAddr;

use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetAttribute, SetElementAttribute,
    SetElementList, SetElementMessage, SetMessage,
};

use super::plan::Set;

/// Elements in one message: of 40 bytes at most.
const PART: usize = 1000;

// Types of nft, by which it shows the set: address, concatenated with a port.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PORT: u32 = 13;
const TYPE_BITS: u32 = 6;

/// A new set. `id` tells it from the others of the same transaction.
pub(super) fn new_set(table: &str, set: &Set, id: u32) -> NfTablesMessage {
    let (address, length) = if set.ipv6 {
        (TYPE_IPV6, 16)
    } else {
        (TYPE_IPV4, 4)
    };
    NfTablesMessage::NewSet(SetMessage {
        attributes: vec![
            SetAttribute::Table(table.into()),
            SetAttribute::Name(set.name.into()),
            SetAttribute::KeyType(address << TYPE_BITS | TYPE_PORT),
            // A port takes a whole register.
            SetAttribute::KeyLen(length + 4),
            SetAttribute::Id(id),
        ],
    })
}

/// Its elements.
pub(super) fn new_elements(table: &str, set: &Set) -> Vec<NfTablesMessage> {
    let keys: Vec<_> = set
        .elements
        .iter()
        .filter(|(address, _)| address.is_ipv6() == set.ipv6)
        .map(|&(address, port)| {
            let key = SetElementAttribute::Key(DataAttribute::Value(key(address, port)));
            ListAttribute::Element(vec![key])
        })
        .collect();
    keys.chunks(PART)
        .map(|part| {
            NfTablesMessage::NewSetElement(SetElementMessage {
                attributes: vec![
                    SetElementList::Table(table.into()),
                    SetElementList::Set(set.name.into()),
                    SetElementList::Elements(part.to_vec()),
                ],
            })
        })
        .collect()
}

fn key(address: IpAddr, port: u16) -> Vec<u8> {
    let mut key = match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    key.extend(port.to_be_bytes());
    key.extend([0, 0]);
    key
}

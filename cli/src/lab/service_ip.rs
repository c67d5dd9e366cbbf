//! The addresses of Services. In: what a Service asks for (`ipFamilies`, `ipFamilyPolicy`,
//! `clusterIP`, `clusterIPs`), the ranges of the lab, what others have. Out: the fields as the API
//! server would fill them in, or what it would refuse. Pure.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde_json::{Map, Value, json};

use super::{
    family::Family,
    plan::{Cidr, Plan},
};

/// First address that is given out; those before it are left for a DNS server and the like.
const FIRST: u32 = 16;
/// The address of a Service that has none of its own.
const HEADLESS: &str = "None";
/// Values of `ipFamilyPolicy`.
const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

/// What a Service asks for.
struct Asked {
    policy: &'static str,
    families: Vec<Family>,
    addresses: Vec<IpAddr>,
    headless: bool,
}

/// What the API server would refuse of a Service, besides an address that another has.
pub(crate) fn check(spec: &Value, lab: &Plan) -> Result<(), String> {
    if is_alias(spec) {
        return Ok(());
    }
    let asked = Asked::read(spec, lab)?;
    if asked.policy == SINGLE && asked.families.len().max(asked.addresses.len()) > 1 {
        return Err(format!(
            "spec.ipFamilyPolicy: {SINGLE} has one family: use {PREFER} or {REQUIRE}"
        ));
    }
    Ok(())
}

/// The address fields of a Service as they should be; none if they are so. Families that the
/// policy leaves out are given back, those that it adds get an address.
pub(crate) fn fill(
    namespace: &str,
    name: &str,
    spec: &Value,
    lab: &Plan,
    taken: &BTreeSet<IpAddr>,
) -> Result<Option<Map<String, Value>>, String> {
    if is_alias(spec) {
        return Ok(None);
    }
    let asked = Asked::read(spec, lab)?;
    let mut families = asked.families;
    if asked.policy == SINGLE {
        families.truncate(1);
    } else {
        let all = lab.families.list().iter();
        let more: Vec<_> = all.filter(|f| !families.contains(f)).copied().collect();
        families.extend(more);
    }
    let mut addresses = Vec::new();
    if asked.headless {
        addresses.push(HEADLESS.to_owned());
    } else {
        for family in &families {
            let given = asked
                .addresses
                .iter()
                .find(|ip| Family::of(**ip) == *family);
            let address = match given {
                Some(address) => *address,
                None => lab
                    .service_cidr(*family)
                    .and_then(|cidr| allocate(cidr, namespace, name, taken))
                    .ok_or_else(|| format!("no {} address is left", family.name()))?,
            };
            addresses.push(address.to_string());
        }
    }
    let names: Vec<_> = families.iter().map(|family| family.name()).collect();
    let wanted = json!({
        "clusterIP": addresses.first(),
        "clusterIPs": addresses,
        "ipFamilies": names,
        "ipFamilyPolicy": asked.policy,
    });
    let Value::Object(wanted) = wanted else {
        return Ok(None);
    };
    let same = wanted
        .iter()
        .all(|(field, value)| spec.get(field) == Some(value));
    Ok((!same).then_some(wanted))
}

/// An alias has no addresses.
fn is_alias(spec: &Value) -> bool {
    !spec.is_object() || spec["type"] == "ExternalName"
}

/// The addresses that a Service names, as texts.
pub(crate) fn named(spec: &Value) -> Vec<&str> {
    let list = spec["clusterIPs"].as_array().into_iter().flatten();
    let mut all: Vec<&str> = Vec::new();
    for text in std::iter::once(&spec["clusterIP"]).chain(list) {
        let text = text.as_str().unwrap_or_default();
        if !text.is_empty() && !all.contains(&text) {
            all.push(text);
        }
    }
    all
}

impl Asked {
    fn read(spec: &Value, lab: &Plan) -> Result<Self, String> {
        let mut families = Vec::new();
        for value in spec["ipFamilies"].as_array().into_iter().flatten() {
            let text = value.as_str().unwrap_or_default();
            let family = Family::from_name(text)
                .ok_or_else(|| format!("spec.ipFamilies: {text:?} is neither IPv4 nor IPv6"))?;
            has(lab, family).map_err(|why| format!("spec.ipFamilies: {why}"))?;
            if families.contains(&family) {
                return Err(format!("spec.ipFamilies: {text} is there twice"));
            }
            families.push(family);
        }
        let texts = named(spec);
        let headless = texts.contains(&HEADLESS);
        let mut addresses: Vec<IpAddr> = Vec::new();
        for text in texts.iter().filter(|_| !headless) {
            let address = address(text, lab).map_err(|why| format!("spec.clusterIPs: {why}"))?;
            // A first address that was changed takes the place of the one that was allocated.
            if addresses
                .iter()
                .all(|a| Family::of(*a) != Family::of(address))
            {
                addresses.push(address);
            }
        }
        if families.is_empty() {
            families = addresses.iter().map(|a| Family::of(*a)).collect();
        }
        if let Some(address) = addresses
            .iter()
            .find(|a| !families.contains(&Family::of(**a)))
        {
            return Err(format!(
                "spec.clusterIPs: {address} is of no family in spec.ipFamilies"
            ));
        }
        let policy = match spec["ipFamilyPolicy"].as_str() {
            Some(SINGLE) => SINGLE,
            Some(PREFER) => PREFER,
            Some(REQUIRE) => REQUIRE,
            None | Some("") if families.len() > 1 => REQUIRE,
            None | Some("") => SINGLE,
            Some(other) => {
                return Err(format!(
                    "spec.ipFamilyPolicy: {other:?} is none of {SINGLE}, {PREFER} and {REQUIRE}"
                ));
            }
        };
        if policy == REQUIRE && lab.families.list().len() == 1 {
            return Err(format!(
                "spec.ipFamilyPolicy: {REQUIRE}, but this lab has {} only: start it with \
                 --ip-family dual, or use {PREFER}",
                lab.families.list()[0].name()
            ));
        }
        if families.is_empty() {
            families.push(lab.families.list()[0]);
        }
        Ok(Self {
            policy,
            families,
            addresses,
            headless,
        })
    }
}

fn has(lab: &Plan, family: Family) -> Result<(), String> {
    if lab.families.list().contains(&family) {
        return Ok(());
    }
    Err(format!(
        "this lab has no {0}: start it with --ip-family {1} or dual",
        family.name(),
        family.name().to_lowercase()
    ))
}

fn address(text: &str, lab: &Plan) -> Result<IpAddr, String> {
    let address: IpAddr = text
        .parse()
        .map_err(|_| format!("{text:?} is no IP address"))?;
    has(lab, Family::of(address))?;
    match lab.service_cidr(Family::of(address)) {
        Some(cidr) if cidr.contains(address) => Ok(address),
        Some(cidr) => Err(format!("{text:?} is no address of {cidr}")),
        None => Err(format!("{text:?} is of a family without Services")),
    }
}

/// An address for a Service: the same in every lab as long as nobody else has taken it.
fn allocate(cidr: Cidr, namespace: &str, name: &str, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let bits = if cidr.address.is_ipv4() { 32 } else { 128 };
    let size = 1_u32.checked_shl(u32::from(bits - cidr.prefix))? - 1 - FIRST;
    let hash = format!("{namespace}/{name}")
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
    (0..size)
        .map(|step| {
            let offset = FIRST + (hash % size + step) % size;
            match cidr.address {
                IpAddr::V4(network) => Ipv4Addr::from(u32::from(network) + offset).into(),
                IpAddr::V6(network) => {
                    Ipv6Addr::from(u128::from(network) + u128::from(offset)).into()
                }
            }
        })
        .find(|address| !taken.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::family::IpFamily;

    fn plan(families: IpFamily) -> Plan {
        Plan::new("x", 1, None, families).unwrap()
    }

    fn filled(spec: &Value, families: IpFamily) -> Value {
        let taken = BTreeSet::new();
        let filled = fill("shop", "web", spec, &plan(families), &taken);
        filled.unwrap().map_or(Value::Null, Value::Object)
    }

    #[test]
    fn a_service_gets_the_families_that_its_policy_and_the_lab_allow() {
        use IpFamily::{Dual, Ipv4, Ipv6};
        let cases: [(Value, IpFamily, &str, &[&str]); 9] = [
            (json!({}), Ipv4, SINGLE, &["IPv4"]),
            (json!({}), Ipv6, SINGLE, &["IPv6"]),
            (json!({}), Dual, SINGLE, &["IPv4"]),
            (json!({"ipFamilies": ["IPv6"]}), Dual, SINGLE, &["IPv6"]),
            (json!({"ipFamilyPolicy": PREFER}), Ipv6, PREFER, &["IPv6"]),
            (
                json!({"ipFamilyPolicy": PREFER}),
                Dual,
                PREFER,
                &["IPv4", "IPv6"],
            ),
            (
                json!({"ipFamilyPolicy": REQUIRE, "ipFamilies": ["IPv6"]}),
                Dual,
                REQUIRE,
                &["IPv6", "IPv4"],
            ),
            (
                json!({"ipFamilies": ["IPv6", "IPv4"]}),
                Dual,
                REQUIRE,
                &["IPv6", "IPv4"],
            ),
            (
                json!({"clusterIP": "fd00:10:96::77"}),
                Dual,
                SINGLE,
                &["IPv6"],
            ),
        ];
        for (spec, families, policy, expected) in cases {
            let filled = filled(&spec, families);
            assert_eq!(filled["ipFamilyPolicy"], policy, "{spec} {families}");
            assert_eq!(filled["ipFamilies"], json!(expected), "{spec} {families}");
            let addresses: Vec<_> = filled["clusterIPs"]
                .as_array()
                .unwrap()
                .iter()
                .map(|ip| Family::of(ip.as_str().unwrap().parse().unwrap()).name())
                .collect();
            assert_eq!(addresses, expected, "{spec} {families}");
            assert_eq!(filled["clusterIP"], filled["clusterIPs"][0]);
        }
    }

    #[test]
    fn a_policy_that_changes_adds_and_gives_back_the_second_address() {
        let mut spec = filled(&json!({}), IpFamily::Dual);
        assert_eq!(filled(&spec, IpFamily::Dual), Value::Null);
        let first = spec["clusterIP"].clone();
        spec["ipFamilyPolicy"] = PREFER.into();
        let mut spec = filled(&spec, IpFamily::Dual);
        assert_eq!(spec["clusterIPs"].as_array().unwrap().len(), 2);
        assert_eq!(spec["clusterIP"], first);
        spec["ipFamilyPolicy"] = SINGLE.into();
        assert_eq!(filled(&spec, IpFamily::Dual)["clusterIPs"], json!([first]));
    }

    #[test]
    fn a_headless_service_has_families_and_no_address() {
        let spec = json!({"clusterIP": "None", "clusterIPs": ["None"], "ipFamilyPolicy": PREFER});
        let filled = filled(&spec, IpFamily::Dual);
        assert_eq!(filled["clusterIPs"], json!(["None"]));
        assert_eq!(filled["ipFamilies"], json!(["IPv4", "IPv6"]));
    }

    #[test]
    fn what_the_lab_does_not_have_is_refused_and_the_way_out_named() {
        use IpFamily::{Dual, Ipv4, Ipv6};
        let cases = [
            (
                json!({"ipFamilies": ["IPv6"]}),
                Ipv4,
                "--ip-family ipv6 or dual",
            ),
            (
                json!({"ipFamilies": ["IPv4"]}),
                Ipv6,
                "--ip-family ipv4 or dual",
            ),
            (
                json!({"ipFamilyPolicy": REQUIRE}),
                Ipv6,
                "IPv6 only: start it with --ip-family dual",
            ),
            (json!({"clusterIP": "10.96.0.9"}), Ipv6, "no IPv4"),
            (
                json!({"clusterIP": "10.97.0.9"}),
                Ipv4,
                "no address of 10.96.0.0/16",
            ),
            (
                json!({"clusterIP": "fd00:10:97::9"}),
                Dual,
                "no address of fd00:10:96::/112",
            ),
            (json!({"clusterIP": "nine"}), Ipv4, "no IP address"),
            (
                json!({"ipFamilies": ["IPv5"]}),
                Dual,
                "neither IPv4 nor IPv6",
            ),
            (json!({"ipFamilies": ["IPv6", "IPv6"]}), Dual, "twice"),
            (json!({"ipFamilyPolicy": "Both"}), Dual, "none of"),
            (
                json!({"ipFamilyPolicy": SINGLE, "ipFamilies": ["IPv6", "IPv4"]}),
                Dual,
                "one family",
            ),
            (
                json!({"ipFamilies": ["IPv6"], "clusterIP": "10.96.0.9"}),
                Dual,
                "of no family in spec.ipFamilies",
            ),
        ];
        for (spec, families, expected) in cases {
            let error = check(&spec, &plan(families)).unwrap_err();
            assert!(error.contains(expected), "{spec} {families}: {error}");
        }
        check(
            &json!({"type": "ExternalName", "ipFamilies": ["IPv6"]}),
            &plan(Ipv4),
        )
        .unwrap();
    }

    #[test]
    fn addresses_are_stable_distinct_and_inside_the_range() {
        for family in IpFamily::Dual.list() {
            let cidr = plan(IpFamily::Dual).service_cidr(*family).unwrap();
            let mut taken = BTreeSet::new();
            for i in 0..500 {
                let address = allocate(cidr, "shop", &format!("s{i}"), &taken).unwrap();
                assert!(cidr.contains(address), "{address}");
                assert!(taken.insert(address));
            }
            let first = allocate(cidr, "shop", "s0", &BTreeSet::new()).unwrap();
            assert!(taken.contains(&first));
            let again = allocate(cidr, "shop", "s0", &BTreeSet::from([first]));
            assert_ne!(again, Some(first));
        }
    }
}

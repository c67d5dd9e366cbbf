//! The law of deltas: whatever came in whatever order, what is in force is what a fresh load of
//! the final set would be.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{
    model::Workload,
    state::{RouteTable, Target},
};

const SERVICES: [&str; 3] = ["shop/a", "shop/b", "web/c"];
const VIPS: [&str; 3] = ["10.96.0.1", "10.96.0.2", "fd00::1"];
const IPS: [&str; 3] = ["10.0.0.1", "10.0.0.2", "fd01::1"];
const NAMESPACES: [&str; 2] = ["", "web"];

/// A change of one resource. `None`: it is removed.
#[derive(Clone, Debug)]
struct Change {
    kind: Kind,
    name: String,
    to: Option<(Resource, bool)>,
}

fn change(kind: Kind, name: String, message: impl Message, fate: u8) -> Change {
    let mut resource = resource(&name, &message);
    let to = match fate {
        0 => None,
        1 => {
            // Not decodable.
            resource.body = Bytes::from_static(&[0xff; 3]);
            Some((resource, false))
        }
        _ => Some((resource, true)),
    };
    Change { kind, name, to }
}

fn a_workload() -> impl Strategy<Value = Change> {
    (
        0u8..6,
        0..4usize,
        0..IPS.len(),
        prop::collection::vec((0..SERVICES.len(), 80u32..82, 0u8..3), 0..4),
        prop::collection::vec(any::<bool>(), 3),
    )
        .prop_map(|(fate, name, ip, memberships, flags)| {
            let mut workload = pod(&format!("pod-{name}"), IPS[ip], &[]);
            if flags[0] {
                workload = captured(workload);
            }
            if flags[1] {
                workload.node = "node-a".into();
            }
            if flags[2] {
                workload.zone = "zone-1".into();
            }
            workload.endpoints = memberships
                .into_iter()
                .map(|(service, port, readiness)| Endpoint {
                    service: SERVICES[service].into(),
                    ports: vec![EndpointPort {
                        service_port: port,
                        target_port: port + 8_000,
                    }],
                    ready: readiness == 0,
                    serving: readiness < 2,
                    terminating: readiness == 1,
                    families: Vec::new(),
                })
                .collect();
            change(Kind::Workload, workload.uid.clone(), workload, fate)
        })
}

fn a_service() -> impl Strategy<Value = Change> {
    (0u8..6, 0..SERVICES.len(), 0..VIPS.len(), any::<bool>()).prop_map(
        |(fate, name, vip, second_port)| {
            let mut service = service(SERVICES[name], &[VIPS[vip]]);
            if second_port {
                let port = ServicePort {
                    port: 81,
                    ..service.ports[0].clone()
                };
                service.ports.push(port);
            }
            change(Kind::Service, SERVICES[name].into(), service, fate)
        },
    )
}

fn a_table() -> impl Strategy<Value = Change> {
    (
        0u8..6,
        0..SERVICES.len(),
        80u32..82,
        0..NAMESPACES.len(),
        0..3u8,
    )
        .prop_map(|(fate, name, port, namespace, route)| {
            let mut table = table(SERVICES[name], NAMESPACES[namespace], &format!("r{route}"));
            table.port = port;
            change(Kind::RouteTable, table_name(&table), table, fate)
        })
}

fn a_change() -> impl Strategy<Value = Change> {
    prop_oneof![3 => a_workload(), 1 => a_service(), 1 => a_table()]
}

fn route(table: &RouteTable) -> String {
    match table {
        RouteTable::Tcp(tcp) => tcp.rule.route.name.to_string(),
        other => other.protocol().into(),
    }
}

/// A workload, but for its history, which each order of changes has its own of.
fn shown(workload: &Workload) -> String {
    let mut shown = workload.clone();
    shown.capture_changes = 0;
    format!("{shown:?}")
}

/// Everything that look-ups can see.
fn view(state: &State) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for ip in VIPS.iter().chain(&IPS) {
        let ip: IpAddr = ip.parse().expect("an address");
        for port in [80, 81] {
            for namespace in NAMESPACES {
                let target = match state.resolve((ip, port).into(), namespace) {
                    Target::Service(t) => {
                        format!(
                            "{:?} {:?} {:?}",
                            t.service,
                            t.port,
                            t.table.as_deref().map(route)
                        )
                    }
                    Target::Workload { workload, .. } => shown(&workload),
                    // Of what was before, on purpose, and for a minute only.
                    Target::Lost => "external".into(),
                    Target::External => "external".into(),
                };
                seen.insert(format!("{ip} {port} {namespace:?}: {target}"));
            }
        }
        let workload = state.workload_by_address(ip);
        seen.insert(format!("{ip} is {:?}", workload.as_deref().map(shown)));
    }
    for service in SERVICES {
        for port in [80, 81] {
            seen.insert(format!(
                "{service} {port}: {:?}",
                state.service_port(service, port)
            ));
            for namespace in NAMESPACES {
                let table = state.route_table(service, port, namespace);
                seen.insert(format!(
                    "{service} {port} {namespace:?} {:?}",
                    table.as_deref().map(route)
                ));
            }
            let picks = state.pick(service, port, Family::V4, &[]).map(|_| ());
            seen.insert(format!("{service} {port} pick {picks:?}"));
            state.with_service(service, |known| {
                for (endpoint, readiness) in
                    known.port(port).iter().flat_map(|p| p.endpoints.iter())
                {
                    seen.insert(format!(
                        "{service} {port} {readiness:?} {:?} {}",
                        endpoint.targets,
                        shown(&endpoint.workload)
                    ));
                }
            });
        }
    }
    for name in 0..4 {
        let workload = state.workload(&format!("shop/pod-{name}/uid"));
        seen.insert(format!("{:?}", workload.as_deref().map(shown)));
    }
    seen
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_interleaving_of_deltas_ends_as_a_fresh_load_of_the_final_set(
        changes in prop::collection::vec((a_change(), 0u8..3), 1..60),
        shuffle: u64,
    ) {
        let state = state();
        let mut last_good: BTreeMap<(Kind, String), Resource> = BTreeMap::new();
        // Some changes share a delta with the next.
        let mut delta: Option<Delta> = None;
        let apply = |delta: Option<Delta>| {
            if let Some(delta) = delta {
                state.apply(delta);
            }
        };
        for (change, joined) in changes {
            let mentioned = |d: &Delta| {
                d.updated.iter().any(|r| r.name == change.name) || d.removed.contains(&change.name)
            };
            if joined > 0 || delta.as_ref().is_some_and(|d| d.kind != change.kind || mentioned(d)) {
                apply(delta.take());
            }
            let open = delta.get_or_insert(Delta {
                kind: change.kind,
                updated: Vec::new(),
                removed: Vec::new(),
            });
            let key = (change.kind, change.name.clone());
            match change.to {
                Some((resource, good)) => {
                    open.updated.push(resource.clone());
                    if good {
                        last_good.insert(key, resource);
                    }
                }
                None => {
                    open.removed.push(change.name);
                    last_good.remove(&key);
                }
            }
        }
        apply(delta);

        // The final set, each resource alone, in some other order.
        let fresh = super::state();
        let mut final_set: Vec<_> = last_good.iter().collect();
        final_set.sort_by_key(|((kind, name), _)| {
            let text = format!("{shuffle}{kind:?}{name}");
            text.bytes().fold(shuffle, |h, b| h.rotate_left(5) ^ u64::from(b))
        });
        for ((kind, _), resource) in &final_set {
            prop_assert_eq!(set(&fresh, *kind, vec![(*resource).clone()]), []);
        }
        prop_assert_eq!(view(&state), view(&fresh));
        for kind in Kind::ALL {
            let held: BTreeMap<_, _> = state.resources(kind).into_iter().map(|r| (r.name.clone(), r)).collect();
            let expected: BTreeMap<_, _> = last_good
                .iter()
                .filter(|((k, _), _)| *k == kind)
                .map(|((_, name), resource)| (name.clone(), resource.clone()))
                .collect();
            prop_assert_eq!(held, expected);
        }

        // And nothing is left of what is removed.
        for (kind, name) in last_good.into_keys() {
            remove(&state, kind, &name);
        }
        prop_assert_eq!(view(&state), view(&super::state()));
        for service in SERVICES {
            prop_assert!(state.with_service(service, |_| ()).is_none(), "{} is forgotten", service);
        }
    }
}

//! What is compiled step by step is what would be compiled at once, and costs what the change costs.

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use weft_source::{Object, ObjectKey};

use super::{Compiled, World, fresh, objects, world};
use crate::compile::{Changes, Work};

/// Versions of objects that depend on each other in every way that the compiler knows.
fn pool() -> Vec<Object> {
    let mut pool = Vec::new();
    let mut add = |yaml: &str| pool.extend(objects(yaml));
    for labels in [
        "{}",
        "{topology.kubernetes.io/zone: z1}",
        "{topology.kubernetes.io/zone: z2}",
    ] {
        add(&format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: n1, labels: {labels}}}}}"
        ));
    }
    for labels in ["{}", "{weft.dev/mtls: strict}"] {
        add(&format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: a, labels: {labels}}}}}"
        ));
    }
    for (name, uid, rest) in [
        ("p1", "u1", "status: {podIP: 10.1.0.1}"),
        ("p1", "u2", "status: {podIP: 10.1.0.9}"),
        ("p1", "u1", "status: {podIP: 10.1.0.1, phase: Failed}"),
        ("p2", "u3", "status: {podIP: 10.1.0.2}"),
        ("p2", "u3", "status: {podIP: 10.1.0.1}"),
        ("p2", "u3", "status: {}"),
        ("p3", "u4", "status: {podIP: 10.1.0.2}"),
    ] {
        for host_network in [false, true] {
            add(&format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{namespace: a, name: {name}, uid: {uid}}}, spec: {{nodeName: n1, hostNetwork: {host_network}}}, {rest}}}"
            ));
        }
    }
    for ports in [
        "{port: 80, name: http}",
        "{port: 80, name: web}, {port: 81, name: tcp}",
        "{port: 80, name: web, appProtocol: grpc}",
    ] {
        for service in ["s1", "s2"] {
            add(&format!(
                "{{apiVersion: v1, kind: Service, metadata: {{namespace: a, name: {service}}}, spec: {{clusterIP: 10.0.0.1, ports: [{ports}]}}}}"
            ));
        }
    }
    add(
        "{apiVersion: v1, kind: Service, metadata: {namespace: a, name: s1}, spec: {clusterIP: None, ports: [{port: 80}]}}",
    );
    for slice in ["e1", "e2"] {
        for service in ["s1", "s2"] {
            for endpoint in [
                "addresses: [10.1.0.1], targetRef: {kind: Pod, name: p1}",
                "addresses: [10.1.0.1], conditions: {ready: false}, targetRef: {kind: Pod, name: p1}",
                "addresses: [10.1.0.2]",
                "addresses: [10.1.0.1]",
            ] {
                add(&format!(
                    "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{namespace: a, name: {slice}, labels: {{kubernetes.io/service-name: {service}}}}}, ports: [{{name: web, port: 8080}}, {{name: http, port: 9090}}], endpoints: [{{{endpoint}}}]}}"
                ));
            }
        }
    }
    for kind in ["HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute"] {
        for (namespace, name) in [("a", "r1"), ("a", "r2"), ("b", "r1")] {
            for parent in ["name: s1", "name: s1, port: 80", "name: s2"] {
                for backend in ["s1", "s2"] {
                    add(&format!(
                        "{{apiVersion: gateway.networking.k8s.io/v1, kind: {kind}, metadata: {{namespace: {namespace}, name: {name}}}, spec: {{parentRefs: [{{group: '', kind: Service, namespace: a, {parent}}}], rules: [{{backendRefs: [{{name: {backend}, namespace: a, port: 80}}]}}]}}}}"
                    ));
                }
            }
        }
    }
    pool
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Apply(usize),
    Delete(usize),
    Compile,
}

fn steps(pool: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..pool).prop_map(Step::Apply),
        2 => (0..pool).prop_map(Step::Delete),
        2 => Just(Step::Compile),
    ];
    proptest::collection::vec(step, 1..120)
}

/// Compiles, and checks that exactly what differs is said to have changed.
fn compile_and_check(world: &mut World, before: &Compiled) -> Result<Compiled, TestCaseError> {
    fn differing<K: Ord + Clone, V: PartialEq>(
        old: &BTreeMap<K, V>,
        new: &BTreeMap<K, V>,
    ) -> std::collections::BTreeSet<K> {
        let keys = old.keys().chain(new.keys());
        keys.filter(|key| old.get(key) != new.get(key))
            .cloned()
            .collect()
    }
    let after = world.compile().clone();
    let expected = Changes {
        workloads: differing(&before.workloads, &after.workloads),
        services: differing(&before.services, &after.services),
        route_tables: differing(&before.route_tables, &after.route_tables),
        routes: differing(&before.routes, &after.routes),
    };
    prop_assert_eq!(&after.changes, &expected);
    Ok(after)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_history_of_a_world_compiles_to_what_its_objects_compile_to_afresh(
        steps in steps(pool().len()),
    ) {
        let pool = pool();
        let mut world = world([]);
        let mut now = BTreeMap::<ObjectKey, Object>::new();
        let mut compiled = world.compile().clone();
        for step in steps {
            match step {
                Step::Apply(index) => {
                    world.apply(&pool[index]);
                    now.insert(pool[index].key.clone(), pool[index].clone());
                }
                Step::Delete(index) => {
                    world.delete(&pool[index].key);
                    now.remove(&pool[index].key);
                }
                Step::Compile => compiled = compile_and_check(&mut world, &compiled)?,
            }
        }
        let mut last = compile_and_check(&mut world, &compiled)?;
        last.changes = Changes::default();
        prop_assert_eq!(&last, &fresh(now.values()));
        // In whatever order they come.
        prop_assert_eq!(last, fresh(now.values().rev()));
        prop_assert!(world.compile().changes.is_empty());
        prop_assert_eq!(world.last_work(), Work::default());
    }
}

const PODS: usize = 5000;
const SERVICES: usize = 500;

/// 5,000 pods behind 500 Services of which each has a slice and a route.
fn city() -> World {
    let mut all = Vec::new();
    for index in 0..SERVICES {
        let node = index % 50;
        if index < 50 {
            all.extend(objects(&format!(
                "{{apiVersion: v1, kind: Node, metadata: {{name: n{node}}}}}"
            )));
        }
        all.extend(objects(&service(index, "{}", "http")));
        let per_service = PODS / SERVICES;
        all.extend((0..per_service).map(|pod| self::pod(index, pod, "{}")));
        all.push(slice(index, true));
        all.push(route(index, 1));
    }
    let mut world = world(&all);
    assert_eq!(world.compile().workloads.len(), PODS);
    assert_eq!(world.compile().route_tables.len(), SERVICES);
    world
}

fn service(index: usize, labels: &str, port: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{namespace: a, name: s{index}, labels: {labels}}}, spec: {{clusterIP: 10.{}.{}.1, ports: [{{port: 80, name: {port}}}]}}}}",
        index / 250,
        index % 250
    )
}

fn pod(service: usize, pod: usize, annotations: &str) -> Object {
    let node = service % 50;
    objects(&format!("{{apiVersion: v1, kind: Pod, metadata: {{namespace: a, name: p{service}-{pod}, annotations: {annotations}}}, spec: {{nodeName: n{node}}}, status: {{podIP: 11.{}.{}.{pod}}}}}", service / 250, service % 250)).remove(0)
}

fn slice(index: usize, first_ready: bool) -> Object {
    let endpoints: Vec<_> = (0..PODS / SERVICES)
        .map(|pod| {
            let ready = pod > 0 || first_ready;
            format!("{{addresses: [11.{}.{}.{pod}], conditions: {{ready: {ready}}}, targetRef: {{kind: Pod, name: p{index}-{pod}}}}}", index / 250, index % 250)
        })
        .collect();
    objects(&format!("{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{namespace: a, name: e{index}, labels: {{kubernetes.io/service-name: s{index}}}}}, ports: [{{name: http, port: 8080}}], endpoints: [{}]}}", endpoints.join(", "))).remove(0)
}

/// Routes half of a Service's requests to the next Service.
fn route(index: usize, weight: usize) -> Object {
    let next = (index + 1) % SERVICES;
    objects(&format!("{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{namespace: a, name: r{index}}}, spec: {{parentRefs: [{{group: '', kind: Service, name: s{index}}}], rules: [{{backendRefs: [{{name: s{index}, port: 80, weight: {weight}}}, {{name: s{next}, port: 80}}]}}]}}}}")).remove(0)
}

#[test]
fn a_change_in_a_large_cluster_costs_what_changed() {
    let mut world = city();
    let none = Work::default();
    let mut cost = |objects: &[Object]| {
        for object in objects {
            world.apply(object);
        }
        world.compile();
        world.last_work()
    };
    assert_eq!(cost(&[]), none);
    assert_eq!(cost(&[pod(7, 3, "{}")]), none, "applied again as it was");
    assert_eq!(
        cost(&[pod(7, 3, "{weft.dev/captured: s}")]),
        Work {
            workloads: 1,
            ..none
        }
    );
    assert_eq!(
        cost(&[slice(7, false)]),
        Work {
            slices: 1,
            workloads: 1,
            ..none
        }
    );
    assert_eq!(
        cost(&[route(7, 9)]),
        Work {
            routes: 1,
            attachments: 1,
            statuses: 1,
            ..none
        }
    );
    assert_eq!(
        cost(&objects(&service(7, "{irrelevant: label}", "http"))),
        none
    );
    // What the port speaks matters to itself, to its endpoints (renamed: all ten) and to two routes.
    assert_eq!(
        cost(&objects(&service(7, "{}", "grpc"))),
        Work {
            services: 1,
            slices: 1,
            workloads: 10,
            routes: 2,
            attachments: 2,
            statuses: 2
        }
    );
    // A node's place matters to its pods.
    let node = objects(
        "{apiVersion: v1, kind: Node, metadata: {name: n7, labels: {topology.kubernetes.io/zone: z}}}",
    );
    assert_eq!(
        cost(&node),
        Work {
            workloads: 100,
            ..none
        }
    );
    // A new pod's address matters to nobody yet.
    let newcomer = objects(
        "{apiVersion: v1, kind: Pod, metadata: {namespace: a, name: new}, status: {podIP: 12.0.0.1}}",
    );
    assert_eq!(
        cost(&newcomer),
        Work {
            workloads: 1,
            ..none
        }
    );
}

#[test]
fn what_a_compilation_leaves_alone_is_not_even_copied() {
    let mut world = city();
    let before = world.compile().clone();
    world.apply(&pod(7, 3, "{weft.dev/captured: s}"));
    let after = world.compile();
    let moved = after
        .workloads
        .iter()
        .filter(|(name, workload)| !Arc::ptr_eq(workload, &before.workloads[*name]))
        .count();
    assert_eq!(moved, 1);
}

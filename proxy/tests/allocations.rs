//! What every connection and request asks of the state and tells telemetry must not allocate:
//! counted here on a mesh of 10,000 workloads.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use prost::Message;
use weft_api::config;
use weft_proxy::{
    balance::Weighted,
    model::{Family, Locality},
    state::{Delta, Kind, Resource, State},
    telemetry::{AccessLog, Direction, Labels, Peer, Sink, Telemetry, Tunnel},
};

const WORKLOADS: u32 = 10_000;
const SERVICES: u32 = 200;
const ROUNDS: u32 = 20_000;

fn workload_ip(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 1)) + i)
}

fn vip(i: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 1)) + i)
}

fn mesh() -> Arc<State> {
    let state = State::new(Locality {
        node: "node-1".into(),
        zone: "zone-1".into(),
    });
    let apply = |kind, updated: Vec<(String, Vec<u8>)>| {
        let updated = updated.into_iter().map(|(name, body)| Resource {
            name,
            version: "1".into(),
            body: body.into(),
        });
        let delta = Delta {
            kind,
            updated: updated.collect(),
            removed: Vec::new(),
        };
        assert_eq!(state.apply(delta), []);
    };
    let services = (0..SERVICES).map(|i| {
        let service = config::Service {
            namespace: "shop".into(),
            name: format!("service-{i}"),
            vips: vec![vip(i).octets().to_vec().into()],
            ports: vec![config::ServicePort {
                port: 80,
                ..config::ServicePort::default()
            }],
            ..config::Service::default()
        };
        (format!("shop/service-{i}"), service.encode_to_vec())
    });
    apply(Kind::Service, services.collect());
    let workloads = (0..WORKLOADS).map(|i| {
        let uid = format!("shop/pod-{i}/{i}");
        let workload = config::Workload {
            uid: uid.clone(),
            name: format!("pod-{i}"),
            namespace: "shop".into(),
            node: format!("node-{}", i % 100),
            zone: format!("zone-{}", i % 3),
            addresses: vec![workload_ip(i).octets().to_vec().into()],
            endpoints: vec![config::Endpoint {
                service: format!("shop/service-{}", i % SERVICES),
                ports: vec![config::EndpointPort {
                    service_port: 80,
                    target_port: 8080,
                }],
                ready: true,
                serving: true,
                terminating: false,
                families: Vec::new(),
            }],
            ..config::Workload::default()
        };
        (uid, workload.encode_to_vec())
    });
    apply(Kind::Workload, workloads.collect());
    state
}

/// Runs `work` many times, prints what one costs, and returns how often all of them allocated.
fn allocations(name: &str, mut work: impl FnMut(u32)) -> u64 {
    // What is made at first use (the thread's random numbers, ...) is made now.
    work(0);
    let mut took = Duration::ZERO;
    let counted = allocation_counter::measure(|| {
        let started = Instant::now();
        (0..ROUNDS).for_each(&mut work);
        took = started.elapsed();
    });
    println!("{name}: {:?}", took / ROUNDS);
    counted.count_total
}

#[test]
fn the_way_of_a_request_allocates_nothing() {
    let state = mesh();
    let at = |ip: Ipv4Addr, port| SocketAddr::new(IpAddr::V4(ip), port);
    let names: Vec<String> = (0..SERVICES).map(|i| format!("shop/service-{i}")).collect();

    // That the counter counts.
    assert!(allocations("a box", |i| drop(black_box(Box::new(i)))) > 0);

    let resolve = allocations("resolve a Service's address", |i| {
        black_box(state.resolve(at(vip(i % SERVICES), 80), "web"));
    });
    assert_eq!(resolve, 0);
    let resolve = allocations("resolve a pod's address", |i| {
        black_box(state.resolve(at(workload_ip(i % WORKLOADS), 80), "web"));
    });
    assert_eq!(resolve, 0);
    let table = allocations("route_table", |i| {
        black_box(state.route_table(&names[(i % SERVICES) as usize], 80, "web"));
    });
    assert_eq!(table, 0);
    let pick = allocations("pick, answer, end", |i| {
        let mut picked = state
            .pick(&names[(i % SERVICES) as usize], 80, Family::V4, &[])
            .expect("an endpoint");
        picked.load.first_byte();
    });
    assert_eq!(pick, 0);

    let weights = Weighted::new([90, 10]);
    let choose = allocations("weighted choice", |_| {
        black_box(weights.choose());
    });
    assert_eq!(choose, 0);

    let telemetry = Telemetry::new(AccessLog::open(&Sink::Off).expect("no log"));
    let labels = Labels::new(
        Direction::Outbound,
        Tunnel::Hbone,
        Peer::unknown(),
        Peer::unknown(),
    );
    let look_up = allocations("look up a series", |_| {
        black_box(telemetry.requests(&labels));
    });
    assert_eq!(look_up, 0);
    let requests = telemetry.requests(&labels);
    let record = allocations("record a request", |i| {
        let took = Duration::from_micros(u64::from(i));
        requests.record(200, Some(took), took);
    });
    assert_eq!(record, 0);
}

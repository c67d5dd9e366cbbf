//! What agent and proxy may do in a container that has dropped all capabilities but theirs.
#![allow(clippy::unwrap_used)]

mod common;

use common::TestNs;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use weft_cni::{
    listeners::Listeners,
    netns::NetNs,
    rules::{self, Phase, PodRules},
};

/// Runs `work` on a thread of its own, and on those that it starts, with these capabilities alone.
fn with<T: Send>(capabilities: CapabilitySet, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let limited = scope.spawn(|| {
            let sets = CapabilitySets {
                effective: capabilities,
                permitted: capabilities,
                inheritable: CapabilitySet::empty(),
            };
            set_capabilities(None, sets).unwrap();
            work()
        });
        limited.join().unwrap()
    })
}

/// What an agent does to a pod that joins and leaves.
fn join_and_leave(pod: &TestNs) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let netns = NetNs::open(&pod.path()).map_err(|error| text(&error))?;
    let plan = |phase| {
        rules::ipv6_is_enabled(&netns).map(|ipv6| {
            rules::plan(&PodRules {
                phase,
                ipv6,
                probe_ports: vec![8080],
                mark: 7,
            })
        })
    };
    let listeners = Listeners::make(&netns).map_err(|error| text(&error))?;
    for phase in [Phase::Joined, Phase::Leaving, Phase::Removed] {
        let plan = plan(phase).map_err(|error| text(&error))?;
        rules::apply(&netns, &plan).map_err(|error| text(&error))?;
        let found = rules::inspect(&netns).map_err(|error| text(&error))?;
        assert_eq!(found.is_some(), phase != Phase::Removed);
    }
    drop(listeners);
    Ok(())
}

/// What a proxy does in a pod: a socket that bears a mark and a source that is not the pod's.
fn dial(pod: &TestNs) -> Result<(), String> {
    let netns = NetNs::open(&pod.path()).map_err(|error| error.to_string())?;
    let dialled = netns.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_mark(7)?;
        socket.set_ip_transparent_v4(true)?;
        let foreign: std::net::SocketAddr = ([192, 0, 2, 9], 0).into();
        socket.bind(&foreign.into())
    });
    dialled
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())
}

#[test]
fn a_pod_joins_and_leaves_with_two_capabilities_and_with_no_fewer() {
    let pod = TestNs::new();
    let both = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN;
    assert_eq!(with(both, || join_and_leave(&pod)), Ok(()));
    assert_eq!(with(both, || dial(&pod)), Ok(()));
    for one in [CapabilitySet::SYS_ADMIN, CapabilitySet::NET_ADMIN] {
        assert!(with(one, || join_and_leave(&pod)).is_err(), "{one:?}");
        assert!(with(one, || dial(&pod)).is_err(), "{one:?}");
    }
    // The sysctl was set all the same, as the pod has it.
    let set = pod.run(|| std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req"));
    assert_eq!(set.unwrap().trim(), "1");
}

//! Network namespaces for tests: unique names, removed when dropped.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod wire;

use std::{
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use weft_cni::netns::NetNs;

static NEXT: AtomicU32 = AtomicU32::new(0);

pub fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A fresh network namespace with `lo` up.
pub struct TestNs {
    pub name: String,
}

impl TestNs {
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("weftcni-{}-{number}", std::process::id());
        ip(&format!("netns add {name}"));
        let ns = Self { name };
        ns.ip("link set lo up");
        ns
    }

    /// As its drop does, but now.
    pub fn remove(&self) {
        ip(&format!("netns del {}", self.name));
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/var/run/netns").join(&self.name)
    }

    pub fn open(&self) -> NetNs {
        NetNs::open(&self.path()).unwrap()
    }

    pub fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.name));
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.open().run(work).unwrap()
    }

    /// Output of a program in the namespace.
    pub fn output(&self, command: &str) -> String {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.name])
            .args(command.split_whitespace())
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for TestNs {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .output();
    }
}

/// A pod at 10.9.0.2 and fd09::2, and its node at 10.9.0.1 and fd09::1, through which its default routes go.
pub struct Pair {
    pub pod: TestNs,
    pub node: TestNs,
}

impl Pair {
    pub fn new() -> Self {
        let (pod, node) = (TestNs::new(), TestNs::new());
        pod.ip(&format!(
            "link add eth0 type veth peer name veth0 netns {}",
            node.name
        ));
        for (ns, link, host) in [(&pod, "eth0", 2), (&node, "veth0", 1)] {
            ns.ip(&format!("addr add 10.9.0.{host}/24 dev {link}"));
            ns.ip(&format!("addr add fd09::{host}/64 dev {link} nodad"));
            ns.ip(&format!("link set {link} up"));
        }
        pod.ip("route add default via 10.9.0.1");
        pod.ip("-6 route add default via fd09::1");
        Self { pod, node }
    }
}

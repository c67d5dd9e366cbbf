//! Parts that are killed with -9 under traffic, and come back.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    time::Duration,
};

use weft_lab_tests::{Family, Lab, Traffic, eventually, in_families};

const MANIFESTS: &str = include_str!("../manifests/lives.yaml");
const SOON: Duration = Duration::from_secs(30);
const RESTARTS: usize = 20;

/// The name of a pod's network namespace.
fn netns(lab: &Lab, pod: &str) -> String {
    format!("weft-{}-p.{}", lab.name, pod.replace('/', "."))
}

fn inside(netns: &str, command: &[&str]) -> String {
    let done = Command::new("ip")
        .args(["netns", "exec", netns])
        .args(command)
        .output()
        .expect("ip runs");
    assert!(done.status.success(), "{netns}: {command:?}: {done:?}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Port and inode of each listening socket of weft's in a pod.
fn sockets(netns: &str) -> BTreeSet<(String, String)> {
    let table = inside(netns, &["cat", "/proc/net/tcp", "/proc/net/tcp6"]);
    let socket = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let port = fields.get(1)?.rsplit_once(':')?.1.to_owned();
        let ours = ["3A99", "3A9E", "3AA0"].contains(&&*port) && fields[3] == "0A";
        ours.then(|| (port, fields[9].to_owned()))
    };
    table.lines().filter_map(socket).collect()
}

/// What redirects a pod's connections.
fn rules(netns: &str) -> String {
    let commands: [&[&str]; 4] = [
        &["nft", "list", "table", "inet", "weft"],
        &["ip", "rule"],
        &["ip", "route", "show", "table", "100"],
        &["ip", "-6", "rule"],
    ];
    commands.map(|command| inside(netns, command)).join("\n")
}

/// How many descriptors of each kind that can leak a process has: connections come and go.
fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a process") {
        let Ok(target) = entry.and_then(|entry| std::fs::read_link(entry.path())) else {
            continue;
        };
        let target = target.to_string_lossy().into_owned();
        let kind = target.split_once(':').map_or(&*target, |(kind, _)| kind);
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    kinds
}

/// What an agent says of the pods that it found, once for each start that found some.
fn taken_up(lab: &Lab, agent: &str) -> Vec<String> {
    let log = lab.logs(agent);
    let lines = log
        .lines()
        .filter(|line| line.contains("pods are taken up"));
    lines.map(str::to_owned).collect()
}

/// Waits until these pods (`namespace/name`) are captured, or not.
fn captured(lab: &Lab, expected: &[(&str, bool)]) {
    eventually(SOON, || {
        let status = lab.status();
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        for (name, captured) in expected {
            let (namespace, name) = name.split_once('/').expect("namespace/name");
            let pod = pods
                .iter()
                .find(|pod| pod["namespace"] == namespace && pod["name"] == name);
            if pod.is_none_or(|pod| pod["ready"] != true || pod["captured"] != *captured) {
                return Err(format!("{namespace}/{name}: {pod:?}"));
            }
        }
        Ok(())
    });
}

/// A namespace in the mesh or not, with a pod on the second node.
fn with_pod(namespace: &str, mesh: &str) -> String {
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}, labels: {{weft.dev/mesh: {mesh}}}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: pod, namespace: {namespace}}}
spec: {{nodeName: n2, containers: [{{name: sleep, command: [sleep, infinity]}}]}}
"
    )
}

in_families!(agents_are_killed_under_traffic_and_go_on_with_the_same_sockets: ipv4, ipv6);

fn agents_are_killed_under_traffic_and_go_on_with_the_same_sockets(family: Family) {
    let more = [with_pod("joins", "disabled"), with_pod("leaves", "enabled")];
    let more = [more.join("---\n"), with_pod("goes", "enabled")].join("---\n");
    let lab = Lab::up_in_with(
        family,
        &["--agent-arg", "--drain-timeout=1s"],
        &format!("{MANIFESTS}---\n{more}"),
    );
    let pods = ["shop/client", "shop/server"].map(|pod| netns(&lab, pod));
    let before: Vec<_> = pods.iter().map(|pod| sockets(pod)).collect();
    assert!(
        before.iter().all(|sockets| sockets.len() == 3),
        "{before:?}"
    );
    let proxies = ["proxy/n1", "proxy/n2"].map(|part| lab.pid(part));
    let open = || proxies.map(|pid| descriptors(pid).values().sum::<usize>());

    let mut traffic = Traffic::from(&lab, "shop/client");
    let http = "http://server.shop/";
    traffic.client("new", http, &["--rate", "250", "-c", "16"]);
    traffic.client("kept", http, &["--rate", "50", "-c", "4", "--keep-alive"]);
    let tcp = "tcp://server.shop:9000";
    traffic.client("TCP", tcp, &["--rate", "100", "-c", "8", "--data", "x"]);
    traffic.stream("server.shop:9000", 3_000);
    let mut proxies_open = None;
    let mut agents_open = BTreeMap::new();
    for round in 0..RESTARTS {
        let part = ["agent/n1", "agent/n2"][round % 2];
        let before = taken_up(&lab, part).len();
        lab.weft(&["stop", part, "--kill"]).ok();
        lab.start(part);
        eventually(SOON, || match taken_up(&lab, part).len() {
            now if now > before => Ok(()),
            _ => Err(lab.logs(part)),
        });
        let fds: usize = descriptors(lab.pid(part)).values().sum();
        let first = *agents_open.entry(part).or_insert(fds);
        assert!(
            fds <= first + 2,
            "{part} has {fds} descriptors open, at first {first}"
        );
        if round == 3 {
            proxies_open = Some(open());
        }
    }
    for stream in traffic.streams() {
        assert_eq!(stream.end, "ended by itself", "{stream:?}");
    }
    // Under the same traffic as then.
    let first = proxies_open.expect("it was looked at");
    eventually(SOON, || {
        let now = open();
        let grown = now.iter().zip(first).any(|(now, first)| *now > first + 30);
        if grown {
            Err(format!("{now:?}, at first {first:?}"))
        } else {
            Ok(())
        }
    });
    traffic.nothing_failed(200);
    let after: Vec<_> = pods.iter().map(|pod| sockets(pod)).collect();
    assert_eq!(after, before);
    for (agent, pods) in [("agent/n1", 1), ("agent/n2", 3)] {
        let all = format!("captured={pods} returned={pods}");
        let restarts = taken_up(&lab, agent);
        assert_eq!(restarts.len(), RESTARTS / 2);
        assert!(
            restarts.iter().all(|line| line.contains(&all)),
            "{restarts:?}"
        );
    }

    // What changes while the agent is away is right afterwards.
    captured(
        &lab,
        &[
            ("joins/pod", false),
            ("leaves/pod", true),
            ("goes/pod", true),
        ],
    );
    lab.weft(&["stop", "agent/n2", "--kill"]).ok();
    lab.apply(&with_pod("joins", "enabled")).ok();
    lab.apply(&with_pod("leaves", "disabled")).ok();
    lab.apply(&with_pod("comes", "enabled")).ok();
    lab.weft(&["delete", "pod", "pod", "-n", "goes"]).ok();
    lab.start("agent/n2");
    captured(
        &lab,
        &[
            ("joins/pod", true),
            ("leaves/pod", false),
            ("comes/pod", true),
        ],
    );
    eventually(SOON, || {
        let status = lab.status();
        let gone = |pod: &serde_json::Value| pod["namespace"] != "goes";
        match status["pods"]
            .as_array()
            .is_some_and(|pods| pods.iter().all(gone))
        {
            true => Ok(()),
            false => Err(status["pods"].to_string()),
        }
    });
    assert!(rules(&netns(&lab, "joins/pod")).contains("redirect to :15001"));
    let left = inside(&netns(&lab, "leaves/pod"), &["nft", "list", "ruleset"]);
    assert_eq!(left, "");
    assert_eq!(sockets(&netns(&lab, "leaves/pod")), BTreeSet::new());
}

in_families!(proxies_are_killed_and_new_connections_wait_for_their_successors_with_and_without_a_controller: ipv4, ipv6);

fn proxies_are_killed_and_new_connections_wait_for_their_successors_with_and_without_a_controller(
    family: Family,
) {
    const REQUESTS: &str = "30";
    let lab = Lab::up_in(family, MANIFESTS);
    let pods = ["shop/client", "shop/server"].map(|pod| netns(&lab, pod));
    let before: Vec<_> = pods.iter().map(|pod| rules(pod)).collect();
    let echo = Lab::bin("weft-echo").to_string_lossy().into_owned();
    let get = [
        "client",
        "http://server.shop/",
        "-n",
        REQUESTS,
        "-c",
        REQUESTS,
    ];
    let end = ["--timeout", "30s", "--summary", "-o", "json"];
    let command = [&[&*echo], &get[..], &end[..]].concat();
    for controller in ["there", "away"] {
        if controller == "away" {
            lab.weft(&["stop", "controller", "--kill"]).ok();
        }
        for part in ["proxy/n1", "proxy/n2"] {
            lab.weft(&["stop", part, "--kill"]).ok();
            let clients = lab.exec_in_background("shop/client", &command);
            eventually(SOON, || {
                let waiting = ["ss", "-Htn", "state", "established", "dport", "= :80"];
                match inside(&pods[0], &waiting).lines().count() {
                    30 => Ok(()),
                    other => Err(format!("{other} wait")),
                }
            });
            lab.start(part);
            let done = clients.wait_with_output().expect("it ends");
            let summary = String::from_utf8_lossy(&done.stdout).into_owned();
            assert!(
                done.status.success(),
                "controller {controller}, {part}: {summary}"
            );
            eprintln!("controller {controller}, {part}: {summary}");
        }
    }
    let after: Vec<_> = pods.iter().map(|pod| rules(pod)).collect();
    assert_eq!(after, before);
}

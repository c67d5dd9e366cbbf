//! The command lines of the mesh's own programs. In: the lab's plan, paths and the arguments that
//! its user added. Out: what to run where, and how to see that it is ready.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use weft_api::names::{PORT_METRICS, PORT_READY};

use super::{
    lab::Lab,
    plan::{CONTROLLER_HTTP_PORT, CONTROLLER_PORT, NodePlan},
};

/// The programs that the mesh needs beside `weft`.
pub(crate) const PROGRAMS: [&str; 4] = ["weft-controller", "weft-agent", "weft-cni", "weft-proxy"];

/// How long proxies and agents let connections drain if they are not told otherwise.
const DRAIN: Duration = Duration::from_secs(30);
/// What a part may take to end beyond its drain.
const GRACE: Duration = Duration::from_secs(15);

/// Arguments that the lab's user added to those of the parts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Extra {
    pub(crate) proxy: Vec<String>,
    pub(crate) agent: Vec<String>,
}

/// What makes a part ready.
#[derive(Clone, Debug)]
pub(crate) enum Ready {
    /// Its `/ready` answers 200.
    Http(SocketAddr),
    /// It listens.
    Socket(PathBuf),
}

/// One program, ready to be started.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) binary: &'static str,
    pub(crate) args: Vec<String>,
    pub(crate) netns: String,
    /// From where readiness is asked.
    pub(crate) probe_netns: String,
    pub(crate) ready: Ready,
    /// How long it may take to end after SIGTERM.
    pub(crate) grace: Duration,
}

/// The controller, in the fabric's namespace.
pub(crate) fn controller(lab: &Lab) -> Program {
    let address = lab.plan.controller();
    let http = SocketAddr::new(address, CONTROLLER_HTTP_PORT);
    let listen = SocketAddr::new(address, CONTROLLER_PORT);
    Program {
        binary: "weft-controller",
        args: args(
            &[
                ("--source", format!("folder:{}", lab.paths.api().display())),
                ("--listen", listen.to_string()),
                ("--http", http.to_string()),
                ("--ca-dir", shown(lab.paths.ca())),
                ("--bundle-out", shown(lab.paths.bundle())),
                ("--node-tokens", shown(lab.paths.tokens())),
            ],
            &[],
        ),
        netns: lab.plan.fabric.netns.clone(),
        probe_netns: lab.plan.fabric.netns.clone(),
        ready: Ready::Http(http),
        grace: GRACE,
    }
}

/// A node's agent, in the node's namespace.
pub(crate) fn agent(lab: &Lab, node: &NodePlan) -> Program {
    let run_dir = lab.paths.node(&node.name);
    let extra = &lab.extra.agent;
    Program {
        binary: "weft-agent",
        ready: Ready::Socket(run_dir.join("agent.sock")),
        args: args(
            &[
                ("--node", node.name.clone()),
                ("--source", format!("folder:{}", lab.paths.api().display())),
                ("--run-dir", shown(run_dir)),
            ],
            extra,
        ),
        netns: node.netns.clone(),
        probe_netns: node.netns.clone(),
        grace: GRACE,
    }
}

/// A node's proxy, in a pod network of its own that has this address.
pub(crate) fn proxy(lab: &Lab, node: &NodePlan, netns: &str, address: IpAddr) -> Program {
    let controller = SocketAddr::new(lab.plan.controller(), CONTROLLER_PORT);
    let run_dir = lab.paths.node(&node.name);
    let any = |port| SocketAddr::new(address, port);
    let extra = &lab.extra.proxy;
    Program {
        binary: "weft-proxy",
        args: args(
            &[
                ("--node", node.name.clone()),
                ("--zone", node.zone.clone()),
                ("--handover", shown(run_dir.join("handover.sock"))),
                ("--controller", format!("https://{controller}")),
                ("--trust-bundle", shown(lab.paths.bundle())),
                ("--token-file", shown(lab.paths.token(&node.name))),
                ("--snapshot-dir", shown(run_dir.join("snapshot"))),
                ("--metrics", any(PORT_METRICS).to_string()),
                ("--ready", any(PORT_READY).to_string()),
                ("--access-log", shown(lab.paths.access_log(&node.name))),
            ],
            extra,
        ),
        netns: netns.to_owned(),
        probe_netns: node.netns.clone(),
        ready: Ready::Http(any(PORT_READY)),
        grace: drain(extra).unwrap_or(DRAIN) + GRACE,
    }
}

fn shown(path: PathBuf) -> String {
    path.display().to_string()
}

/// The lab's own flags, then the user's: what he sets, the lab does not.
fn args(own: &[(&str, String)], extra: &[String]) -> Vec<String> {
    let is = |word: &String, flag: &str| {
        word.strip_prefix(flag)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    };
    own.iter()
        .filter(|(flag, _)| !extra.iter().any(|word| is(word, flag)))
        .flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()])
        .chain(extra.iter().cloned())
        .collect()
}

/// The drain time that arguments set, in the programs' own notation.
fn drain(extra: &[String]) -> Option<Duration> {
    const FLAG: &str = "--drain-timeout";
    let at = extra.iter().rposition(|word| word.starts_with(FLAG))?;
    let text = match extra[at].strip_prefix(FLAG)?.strip_prefix('=') {
        Some(text) => text,
        None => extra.get(at + 1)?,
    };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number = digits.parse().ok()?;
    Some(match &text[digits.len()..] {
        "ms" => Duration::from_millis(number),
        "m" => Duration::from_secs(number * 60),
        _ => Duration::from_secs(number),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(ToOwned::to_owned).collect()
    }

    #[test]
    fn what_the_user_sets_replaces_what_the_lab_would_set() {
        let own = [("--node", "n1".to_owned()), ("--ready", "x:1".to_owned())];
        let cases = [
            ("", "--node n1 --ready x:1"),
            ("--workers 1", "--node n1 --ready x:1 --workers 1"),
            ("--ready y:2", "--node n1 --ready y:2"),
            ("--ready=y:2", "--node n1 --ready=y:2"),
            ("--ready-not", "--node n1 --ready x:1 --ready-not"),
        ];
        for (extra, expected) in cases {
            assert_eq!(args(&own, &words(extra)), words(expected), "{extra}");
        }
    }

    #[test]
    fn a_part_gets_the_time_to_end_that_its_drain_needs() {
        let cases = [
            ("", None),
            ("--drain-timeout 5s", Some(5_000)),
            ("--drain-timeout=500ms --workers 1", Some(500)),
            ("--drain-timeout 2m", Some(120_000)),
            ("--drain-timeout 7", Some(7_000)),
            ("--drain-timeout", None),
        ];
        for (extra, expected) in cases {
            let expected = expected.map(Duration::from_millis);
            assert_eq!(drain(&words(extra)), expected, "{extra}");
        }
    }
}

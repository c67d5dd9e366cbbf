//! What happens to the lab. Dice in; an event, and what it does, out. Each event is over when the lab
//! has followed: parts are ready, pods too, and nothing is on its way out.

use std::{fmt, time::Duration};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};
use weft_chaos::{
    judge::{Incident, IncidentKind},
    mesh,
    record::now,
};
use weft_lab_tests::Lab;

use crate::scene::{self, NODES, Scene};

/// For the lab to follow an event, on a machine that does other things too.
pub(crate) const FOLLOWS: Duration = Duration::from_secs(120);

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// SIGKILL for a proxy.
    ProxyKill(&'static str),
    /// A proxy's successor starts beside it.
    ProxyUpgrade(&'static str),
    /// SIGKILL for an agent.
    AgentKill(&'static str),
    /// SIGKILL for the controller.
    ControllerKill,
    /// The controller is away for so many milliseconds.
    ControllerAway(u64),
    /// A Deployment gets another number of replicas.
    Scale(usize, u32),
    /// A Deployment's template changes.
    Roll(usize),
    /// A pod of a Deployment is deleted.
    DeletePod(usize),
    /// Weights of the route.
    Weights([u32; 2]),
    /// A second route on the port comes and goes.
    ExtraRoute,
    /// A version of the route that cannot be used.
    BrokenRoute,
    /// `vault` refuses plaintext for so many milliseconds.
    Strict(u64),
    /// Everything of a node is killed.
    Reboot(&'static str),
}

/// Names that `--only` knows.
pub(crate) const KINDS: [&str; 13] = [
    "proxy-kill",
    "proxy-upgrade",
    "agent-kill",
    "controller-kill",
    "controller-away",
    "scale",
    "roll",
    "delete-pod",
    "weights",
    "extra-route",
    "broken-route",
    "strict",
    "reboot",
];

impl Event {
    /// The event's kind, as in `--only` and in the table.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Event::ProxyKill(_) => "proxy-kill",
            Event::ProxyUpgrade(_) => "proxy-upgrade",
            Event::AgentKill(_) => "agent-kill",
            Event::ControllerKill => "controller-kill",
            Event::ControllerAway(_) => "controller-away",
            Event::Scale(..) => "scale",
            Event::Roll(_) => "roll",
            Event::DeletePod(_) => "delete-pod",
            Event::Weights(_) => "weights",
            Event::ExtraRoute => "extra-route",
            Event::BrokenRoute => "broken-route",
            Event::Strict(_) => "strict",
            Event::Reboot(_) => "reboot",
        }
    }

    /// Whether joins and leaves have to rest meanwhile. A pod that leaves while the controller is
    /// away for longer than the agent waits for it is still dialled over tunnels: that is documented,
    /// and no subject here.
    pub(crate) fn wants_rest(&self) -> bool {
        matches!(self, Event::ControllerAway(_) | Event::Reboot(_))
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |index: &usize| ["v1", "v2"][*index];
        f.write_str(self.kind())?;
        match self {
            Event::ProxyKill(node)
            | Event::ProxyUpgrade(node)
            | Event::AgentKill(node)
            | Event::Reboot(node) => write!(f, " {node}"),
            Event::ControllerAway(ms) | Event::Strict(ms) => write!(f, " {ms} ms"),
            Event::Scale(index, replicas) => write!(f, " {} to {replicas}", name(index)),
            Event::Roll(index) | Event::DeletePod(index) => write!(f, " {}", name(index)),
            Event::Weights([v1, v2]) => write!(f, " {v1}:{v2}"),
            Event::ControllerKill | Event::ExtraRoute | Event::BrokenRoute => Ok(()),
        }
    }
}

/// The next event.
pub(crate) fn choose(dice: &mut StdRng, only: &[String]) -> Event {
    let node = |dice: &mut StdRng| *NODES.choose(dice).expect("there are nodes");
    loop {
        // Reboots are rare: each explains failures for a while, and would hide others.
        let event = match dice.random_range(0..25) {
            0 | 1 => Event::ProxyKill(node(dice)),
            2..=4 => Event::ProxyUpgrade(node(dice)),
            5 | 6 => Event::AgentKill(node(dice)),
            7 | 8 => Event::ControllerKill,
            9 => Event::ControllerAway(dice.random_range(500..4000)),
            10..=12 => Event::Scale(dice.random_range(0..2), dice.random_range(1..4)),
            13..=15 => Event::Roll(dice.random_range(0..2)),
            16 | 17 => Event::DeletePod(dice.random_range(0..2)),
            18 | 19 => Event::Weights([dice.random_range(0..5), dice.random_range(1..5)]),
            20 | 21 => Event::ExtraRoute,
            22 => Event::BrokenRoute,
            23 => Event::Strict(dice.random_range(500..3000)),
            _ => Event::Reboot(node(dice)),
        };
        if only.is_empty() || only.iter().any(|kind| kind == event.kind()) {
            return event;
        }
    }
}

/// Does it, and waits until the lab has followed. What it ends by design is told.
pub(crate) fn perform(
    lab: &Lab,
    event: &Event,
    scene: &mut Scene,
) -> anyhow::Result<Option<Incident>> {
    let mut incident = None;
    match event {
        Event::ProxyKill(node) => {
            incident = Some(kill_proxy(lab, node)?);
        }
        Event::ProxyUpgrade(node) => mesh::run(lab, &["upgrade", &format!("proxy/{node}")])?,
        Event::AgentKill(node) => mesh::run(lab, &["kill", &format!("agent/{node}")])?,
        Event::ControllerKill => mesh::run(lab, &["kill", "controller"])?,
        Event::ControllerAway(ms) => {
            mesh::run(lab, &["stop", "controller"])?;
            std::thread::sleep(Duration::from_millis(*ms));
            mesh::run(lab, &["start", "controller"])?;
        }
        Event::Scale(index, replicas) => {
            scene.replicas[*index] = *replicas;
            apply(lab, &scene.deployment(*index))?;
        }
        Event::Roll(index) => {
            scene.revisions[*index] += 1;
            apply(lab, &scene.deployment(*index))?;
        }
        Event::DeletePod(index) => {
            let status = mesh::status(lab)?;
            let prefix = ["v1-", "v2-"][*index];
            let pods = status["pods"].as_array().into_iter().flatten();
            let name = pods
                .filter(|pod| pod["namespace"] == "shop" && pod["ready"] == true)
                .filter_map(|pod| pod["name"].as_str())
                .find(|name| name.starts_with(prefix));
            let name = name.with_context(|| format!("no pod {prefix}… is ready"))?;
            mesh::run(lab, &["delete", "pod", name, "-n", "shop"])?;
        }
        Event::Weights(weights) => {
            scene.weights = *weights;
            apply(lab, &scene.route())?;
        }
        Event::ExtraRoute => {
            apply(lab, &scene::extra_route())?;
            delete(lab, &scene::extra_route())?;
        }
        Event::BrokenRoute => {
            // The lab says that it can't be used, with an exit code; what counts is the traffic.
            lab.apply(&scene.broken_route());
            std::thread::sleep(Duration::from_millis(500));
            apply(lab, &scene.route())?;
        }
        Event::Strict(ms) => strict(lab, *ms)?,
        Event::Reboot(node) => {
            let from = now();
            mesh::run(lab, &["reboot", node])?;
            follows(lab)?;
            incident = Some(Incident {
                kind: IncidentKind::NodeRebooted,
                node: (*node).to_owned(),
                from,
                until: now(),
            });
        }
    }
    follows(lab)?;
    Ok(incident)
}

/// Waits until all parts and pods are ready, and nothing is on its way out.
pub(crate) fn follows(lab: &Lab) -> anyhow::Result<()> {
    mesh::wait(FOLLOWS, || {
        let status = mesh::status(lab).map_err(|error| format!("{error:#}"))?;
        mesh::unready(&status).map_or(Ok(()), Err)
    })
}

fn apply(lab: &Lab, manifests: &str) -> anyhow::Result<()> {
    let output = lab.apply(manifests);
    if output.code != 0 {
        bail!("weft lab apply: {}{}", output.out, output.err);
    }
    Ok(())
}

fn delete(lab: &Lab, manifests: &str) -> anyhow::Result<()> {
    let output = lab.delete(manifests);
    if output.code != 0 {
        bail!("weft lab delete: {}{}", output.out, output.err);
    }
    Ok(())
}

/// By its process, so that the time until which its connections were open is known exactly.
fn kill_proxy(lab: &Lab, node: &str) -> anyhow::Result<Incident> {
    let status = mesh::status(lab)?;
    let part = format!("proxy/{node}");
    let pid = mesh::pid(&status, &part).with_context(|| format!("{part} does not run"))?;
    let from = now();
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    mesh::wait(Duration::from_secs(20), || match is_running(pid) {
        true => Err(format!("process {pid} has not ended")),
        false => Ok(()),
    })?;
    let until = now();
    mesh::wait(FOLLOWS, || {
        let status = mesh::status(lab).map_err(|error| format!("{error:#}"))?;
        match mesh::pid(&status, &part) {
            Some(other) if other != pid => Ok(()),
            _ => Err(format!("{part} was not started again")),
        }
    })?;
    Ok(Incident {
        kind: IncidentKind::ProxyKilled,
        node: node.to_owned(),
        from,
        until,
    })
}

/// A process that has ended may still be there as a zombie: its sockets are not. They go with its last
/// thread, which may outlive the first.
fn is_running(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().any(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        let state = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next());
        !matches!(state, None | Some('Z' | 'X'))
    })
}

/// Strict, then permissive again. Meanwhile a client outside is refused.
fn strict(lab: &Lab, ms: u64) -> anyhow::Result<()> {
    let reaches = |expected: bool| {
        mesh::wait(Duration::from_secs(30), || {
            let answer = lab.exec(
                "plain/client",
                &[
                    "weft-echo",
                    "client",
                    "--timeout",
                    "5s",
                    "http://web.vault/",
                ],
            );
            match (answer.code == 0) == expected {
                true => Ok(()),
                false => Err(format!(
                    "plaintext to vault: expected {expected}, got {}{}",
                    answer.out, answer.err
                )),
            }
        })
    };
    mesh::run(lab, &["label", "ns", "vault", "weft.dev/mtls=strict"])?;
    reaches(false)?;
    std::thread::sleep(Duration::from_millis(ms));
    mesh::run(lab, &["label", "ns", "vault", "weft.dev/mtls-"])?;
    reaches(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    #[test]
    fn a_seed_stands_for_one_sequence_and_every_kind_comes() {
        let sequence = |seed| {
            let mut dice = StdRng::seed_from_u64(seed);
            (0..300).map(|_| choose(&mut dice, &[])).collect::<Vec<_>>()
        };
        assert_eq!(sequence(7), sequence(7));
        assert_ne!(sequence(7), sequence(8));
        for kind in KINDS {
            assert!(
                sequence(7).iter().any(|event| event.kind() == kind),
                "{kind}"
            );
        }
        let mut dice = StdRng::seed_from_u64(1);
        assert_eq!(choose(&mut dice, &["roll".into()]).kind(), "roll");
    }
}

//! A pod's status, as a kubelet would write it. In: what is known of its containers. Out: JSON.
//! Pure but for the time of day in conditions.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{
    api::now,
    container::{State, Status},
};

/// What is known of a pod; becomes its status.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) node_addresses: Vec<IpAddr>,
    pub(super) started: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) initialized: bool,
    pub(super) init: Vec<(String, Status)>,
    pub(super) containers: Vec<(String, Status)>,
}

/// The status that a report amounts to. `always`: containers are started again whatever happens.
pub(super) fn status(report: &Report, always: bool) -> Value {
    let ended = |(_, status): &(String, Status)| match status.state {
        State::Terminated { code, .. } => Some(code),
        _ => None,
    };
    let has = !report.containers.is_empty();
    let codes: Option<Vec<i32>> = report.containers.iter().map(ended).collect();
    let init_failed = report.init.iter().filter_map(ended).any(|code| code != 0);
    let running = report
        .containers
        .iter()
        .any(|(_, s)| s.state != Status::new().state);
    let phase = match codes {
        Some(codes) if has && !always => {
            if codes.iter().all(|code| *code == 0) {
                "Succeeded"
            } else {
                "Failed"
            }
        }
        _ if init_failed => "Failed",
        _ if running => "Running",
        _ => "Pending",
    };
    let ready = has && phase == "Running" && report.containers.iter().all(|(_, s)| s.ready);
    let waiting: Vec<String> = report
        .init
        .iter()
        .chain(&report.containers)
        .filter(|(_, s)| !s.ready)
        .filter_map(|(name, s)| match &s.state {
            State::Waiting { message, .. } if !message.is_empty() => {
                Some(format!("container {name}: {message}"))
            }
            State::Running { .. } if !s.note.is_empty() => {
                Some(format!("container {name}: {}", s.note))
            }
            State::Terminated { code, .. } if *code != 0 => {
                Some(format!("container {name}: exited with {code}"))
            }
            _ => None,
        })
        .collect();
    let condition = |kind: &str, holds: bool, message: &str| {
        let mut condition = json!({
            "type": kind,
            "status": if holds { "True" } else { "False" },
            "lastTransitionTime": now(),
        });
        if !message.is_empty() {
            condition["message"] = message.into();
        }
        condition
    };
    let containers = |all: &[(String, Status)]| -> Value {
        all.iter()
            .map(|(name, status)| {
                json!({
                    "name": name,
                    "ready": status.ready,
                    "started": matches!(status.state, State::Running { .. }),
                    "restartCount": status.restarts,
                    "state": status.state.to_json(),
                    "lastState": status.last.as_ref().map_or(json!({}), State::to_json),
                    "image": "",
                    "imageID": "",
                })
            })
            .collect()
    };
    let message = if report.message.is_empty() {
        waiting.join("; ")
    } else {
        report.message.clone()
    };
    let mut value = json!({
        "phase": phase,
        "conditions": [
            condition("PodScheduled", true, ""),
            condition("Initialized", report.initialized, ""),
            condition("ContainersReady", ready, &waiting.join("; ")),
            condition("Ready", ready, &message),
        ],
        "hostIP": report.node_addresses.first().map(ToString::to_string),
        "hostIPs": ips(&report.node_addresses),
        "startTime": report.started,
        "containerStatuses": containers(&report.containers),
    });
    if !report.init.is_empty() {
        value["initContainerStatuses"] = containers(&report.init);
    }
    if let Some(first) = report.addresses.first() {
        value["podIP"] = first.to_string().into();
        value["podIPs"] = ips(&report.addresses);
    }
    if !report.reason.is_empty() {
        value["reason"] = report.reason.into();
        value["message"] = report.message.clone().into();
    }
    value
}

/// A list of addresses as the API has them.
fn ips(addresses: &[IpAddr]) -> Value {
    let each = addresses.iter();
    each.map(|ip| json!({"ip": ip.to_string()})).collect()
}

/// A condition that has not changed keeps the time since when it holds.
pub(super) fn keep_transition_times(mut status: Value, old: &Value) -> Value {
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        let before = old["conditions"].as_array().into_iter().flatten();
        let same =
            |o: &&Value| o["type"] == condition["type"] && o["status"] == condition["status"];
        if let Some(before) = before.into_iter().find(same) {
            condition["lastTransitionTime"] = before["lastTransitionTime"].clone();
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(states: Vec<Status>) -> Report {
        Report {
            node_addresses: vec!["10.240.0.11".parse().unwrap()],
            started: String::new(),
            addresses: vec!["10.244.1.2".parse().unwrap()],
            reason: "",
            message: String::new(),
            initialized: true,
            init: Vec::new(),
            containers: states.into_iter().map(|s| ("c".to_owned(), s)).collect(),
        }
    }

    fn in_state(state: State, ready: bool) -> Status {
        Status {
            state,
            ready,
            ..Status::new()
        }
    }

    #[test]
    fn a_pods_phase_and_readiness_follow_from_its_containers() {
        let running = |ready| {
            in_state(
                State::Running {
                    since: String::new(),
                },
                ready,
            )
        };
        let ended = |code| {
            in_state(
                State::Terminated {
                    code,
                    since: String::new(),
                    at: String::new(),
                },
                false,
            )
        };
        let cases = [
            (vec![running(true), running(true)], true, "Running", "True"),
            (
                vec![running(true), running(false)],
                true,
                "Running",
                "False",
            ),
            (vec![Status::new()], true, "Pending", "False"),
            (vec![ended(0), ended(0)], false, "Succeeded", "False"),
            (vec![ended(0), ended(3)], false, "Failed", "False"),
            (vec![ended(3)], true, "Running", "False"),
        ];
        for (containers, always, phase, ready) in cases {
            let value = status(&report(containers.clone()), always);
            assert_eq!(value["phase"], phase, "{containers:?}");
            assert_eq!(value["conditions"][3]["status"], ready, "{containers:?}");
        }
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_changes() {
        let old = json!({"conditions": [
            {"type": "A", "status": "True", "lastTransitionTime": "then"},
            {"type": "B", "status": "False", "lastTransitionTime": "then"},
        ]});
        let new = json!({"conditions": [
            {"type": "A", "status": "True", "lastTransitionTime": "now"},
            {"type": "B", "status": "True", "lastTransitionTime": "now"},
        ]});
        let kept = keep_transition_times(new, &old);
        assert_eq!(kept["conditions"][0]["lastTransitionTime"], "then");
        assert_eq!(kept["conditions"][1]["lastTransitionTime"], "now");
    }
}

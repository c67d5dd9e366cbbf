//! Probes. In: a container's probe and its pod's address. Out: whether the container passes,
//! after the thresholds. HTTP, TCP and gRPC probes come from the node's network namespace as a
//! kubelet's do.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Container, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{health, http, netns};

/// What a probe does.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Handler {
    Http {
        host: Option<String>,
        port: u16,
        path: String,
        headers: Vec<(String, String)>,
    },
    Tcp {
        port: u16,
    },
    /// gRPC's health protocol; the service's name may be empty.
    Grpc {
        port: u16,
        service: String,
    },
    Exec(Vec<String>),
}

/// A probe with its defaults applied.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ProbePlan {
    pub(crate) handler: Handler,
    pub(crate) initial_delay: Duration,
    pub(crate) period: Duration,
    pub(crate) timeout: Duration,
    pub(crate) successes: u32,
    pub(crate) failures: u32,
}

impl ProbePlan {
    /// Plans a probe of a container, whose ports it may name.
    pub(crate) fn new(probe: &Probe, container: &Container) -> Result<Self, String> {
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(value.and_then(|v| v.try_into().ok()).unwrap_or(default))
        };
        let count = |value: Option<i32>, default| {
            value
                .and_then(|v| v.try_into().ok())
                .filter(|v| *v > 0)
                .unwrap_or(default)
        };
        let handler = if let Some(http) = &probe.http_get {
            if http
                .scheme
                .as_deref()
                .is_some_and(|scheme| scheme != "HTTP")
            {
                return Err(
                    "httpGet.scheme: the lab probes HTTP only; use tcpSocket or exec".into(),
                );
            }
            Handler::Http {
                host: http.host.clone(),
                port: port_of(&http.port, container)?,
                path: http
                    .path
                    .clone()
                    .filter(|p| !p.is_empty())
                    .unwrap_or_else(|| "/".into()),
                headers: http
                    .http_headers
                    .iter()
                    .flatten()
                    .map(|header| (header.name.clone(), header.value.clone()))
                    .collect(),
            }
        } else if let Some(tcp) = &probe.tcp_socket {
            Handler::Tcp {
                port: port_of(&tcp.port, container)?,
            }
        } else if let Some(exec) = &probe.exec {
            Handler::Exec(exec.command.clone().unwrap_or_default())
        } else if let Some(grpc) = &probe.grpc {
            Handler::Grpc {
                port: port_of(&IntOrString::Int(grpc.port), container)?,
                service: grpc.service.clone().unwrap_or_default(),
            }
        } else {
            return Err("the lab knows httpGet, tcpSocket, grpc and exec probes".into());
        };
        Ok(Self {
            handler,
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
            successes: count(probe.success_threshold, 1),
            failures: count(probe.failure_threshold, 3),
        })
    }
}

fn port_of(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_ref() == Some(name))
            .map(|port| port.container_port)
            .ok_or_else(|| format!("no port of the container is named {name:?}"))?,
    };
    u16::try_from(number).map_err(|_| format!("{number} is not a port"))
}

/// Counts results in a row. Pure.
#[derive(Debug)]
pub(crate) struct Threshold {
    successes: u32,
    failures: u32,
    last: Option<bool>,
    streak: u32,
    confirmed: Option<bool>,
}

impl Threshold {
    pub(crate) fn new(plan: &ProbePlan) -> Self {
        Self {
            successes: plan.successes,
            failures: plan.failures,
            last: None,
            streak: 0,
            confirmed: None,
        }
    }

    /// Takes a result; says the new state when one is confirmed that differs from the last.
    pub(crate) fn result(&mut self, success: bool) -> Option<bool> {
        self.streak = if self.last == Some(success) {
            self.streak.saturating_add(1)
        } else {
            1
        };
        self.last = Some(success);
        let needed = if success {
            self.successes
        } else {
            self.failures
        };
        if self.streak < needed || self.confirmed == Some(success) {
            return None;
        }
        self.confirmed = Some(success);
        self.confirmed
    }
}

/// Where a probe is run from and to.
pub(crate) struct Target<'a> {
    pub(crate) node_netns: &'a str,
    pub(crate) address: IpAddr,
    /// Runs a command in the container; true if it ended with 0.
    pub(crate) container: &'a super::container::Enter,
}

/// Runs a probe once; the error says why it failed.
pub(crate) async fn once(plan: &ProbePlan, target: &Target<'_>) -> Result<(), String> {
    let work = async {
        match &plan.handler {
            Handler::Tcp { port } => {
                let to = SocketAddr::new(target.address, *port);
                netns::connect(target.node_netns, to)
                    .await
                    .map(drop)
                    .map_err(|e| format!("tcp {to}: {e}"))
            }
            Handler::Http {
                host,
                port,
                path,
                headers,
            } => {
                let to = SocketAddr::new(target.address, *port);
                let request = http::Get {
                    to,
                    host: host.as_deref(),
                    path,
                    headers,
                };
                let status = http::get(target.node_netns, request)
                    .await
                    .map_err(|e| format!("http {to}{path}: {e:#}"))?
                    .status;
                if (200..400).contains(&status) {
                    Ok(())
                } else {
                    Err(format!("http {to}{path}: answered {status}"))
                }
            }
            Handler::Grpc { port, service } => {
                let to = SocketAddr::new(target.address, *port);
                health::check(target.node_netns, to, service)
                    .await
                    .map_err(|e| format!("grpc {to}: {e:#}"))
            }
            Handler::Exec(command) => target.container.probe(command).await,
        }
    };
    tokio::time::timeout(plan.timeout, work)
        .await
        .unwrap_or_else(|_| Err(format!("no answer in {:?}", plan.timeout)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plan(probe: serde_json::Value) -> Result<ProbePlan, String> {
        let container: Container = serde_json::from_value(
            json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}),
        )
        .unwrap();
        ProbePlan::new(&serde_json::from_value(probe).unwrap(), &container)
    }

    #[test]
    fn a_probe_gets_the_defaults_of_the_api() {
        let plan = plan(json!({"httpGet": {"port": "web"}})).unwrap();
        let handler = Handler::Http {
            host: None,
            port: 8080,
            path: "/".into(),
            headers: Vec::new(),
        };
        assert_eq!(plan.handler, handler);
        assert_eq!(plan.period, Duration::from_secs(10));
        assert_eq!((plan.successes, plan.failures), (1, 3));
    }

    #[test]
    fn probes_that_the_lab_cannot_run_say_so() {
        let cases = [
            (json!({}), "the lab knows"),
            (json!({"grpc": {"port": 0x10000}}), "not a port"),
            (json!({"httpGet": {"port": "nope"}}), "\"nope\""),
            (json!({"tcpSocket": {"port": 70000}}), "not a port"),
            (json!({"httpGet": {"port": 1, "scheme": "HTTPS"}}), "scheme"),
        ];
        for (probe, expected) in cases {
            let error = plan(probe).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_state_changes_only_after_its_threshold_in_a_row() {
        let mut plan = plan(json!({"tcpSocket": {"port": 1}})).unwrap();
        plan.successes = 2;
        let mut threshold = Threshold::new(&plan);
        let cases = [
            (true, None),
            (false, None),
            (true, None),
            (true, Some(true)),
            (false, None),
            (false, None),
            (true, None),
            (false, None),
            (false, None),
            (false, Some(false)),
        ];
        for (i, (result, expected)) in cases.into_iter().enumerate() {
            assert_eq!(threshold.result(result), expected, "step {i}");
        }
    }
}

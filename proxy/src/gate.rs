//! Who may read the proxy's metrics and readiness. In flows the address of a client, out flows
//! whether it is answered.
//!
//! Both ports are on the pod network, where every pod reaches them, and show who talks to whom. A
//! kubelet and scrapers on a node's own network come from addresses that are no pod's; a scraper
//! that is a pod is let in by its namespace. A pod's address is taken from the configuration, so
//! it is as good as the network: no pod can hold a connection from an address that is not its own
//! unless it can take that address away from the other.

use std::{net::IpAddr, sync::Arc};

use crate::{state::State, telemetry::Telemetry};

/// Lets everybody in.
const ANY: &str = "*";

/// Guards one listener.
#[derive(Clone, Debug)]
pub struct Gate {
    port: &'static str,
    namespaces: Arc<[String]>,
    state: Arc<State>,
    telemetry: Arc<Telemetry>,
}

impl Gate {
    /// Of pods, those in `namespaces` may come; `*`: all. `port` names the listener for metrics.
    pub fn new(
        port: &'static str,
        namespaces: &[String],
        state: Arc<State>,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        Self {
            port,
            namespaces: namespaces.into(),
            state,
            telemetry,
        }
    }

    /// Whether a client at `from` may come; if not, why not.
    pub fn admit(&self, from: IpAddr) -> Result<(), String> {
        let Some(pod) = self.state.workload_by_address(from) else {
            return Ok(());
        };
        let is_admitted = |namespace: &String| *namespace == ANY || **namespace == *pod.namespace;
        if self.namespaces.iter().any(is_admitted) {
            return Ok(());
        }
        self.telemetry.scrape_refused(self.port);
        Err(format!(
            "pods of namespace {0} may not read this: start weft-proxy with --scrape-from {0} if they shall",
            pod.namespace
        ))
    }
}

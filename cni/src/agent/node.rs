//! Keeps the rules of the node's own namespace in step with the captured pods.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::rules::{apply_node, plan_node};

/// Before rules that failed are tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// What the kubelet probes in captured pods.
#[derive(Debug, Default)]
pub(super) struct Probed {
    ports: Mutex<BTreeMap<String, Vec<(IpAddr, u16)>>>,
    warning: Mutex<Option<String>>,
    changed: Notify,
}

impl Probed {
    /// Sets a sandbox's; none if it is not captured.
    pub(super) fn set(&self, sandbox: &str, probed: Vec<(IpAddr, u16)>) {
        let mut ports = self.ports.lock();
        let before = if probed.is_empty() {
            ports.remove(sandbox)
        } else {
            ports.insert(sandbox.to_owned(), probed.clone())
        };
        if before.unwrap_or_default() != probed {
            self.changed.notify_one();
        }
    }

    /// What a person should know of the node's rules.
    pub(super) fn warning(&self) -> Option<String> {
        self.warning.lock().clone()
    }

    fn warn(&self, warning: Option<String>) {
        let before = std::mem::replace(&mut *self.warning.lock(), warning.clone());
        // Said once, not at each attempt.
        if let Some(warning) = warning.filter(|warning| before.as_ref() != Some(warning)) {
            warn!("{warning}");
        }
    }

    /// Applies for ever what is set; changes that come together are applied together.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            let all: Vec<_> = self.ports.lock().values().flatten().copied().collect();
            let applied = tokio::task::spawn_blocking(move || apply_node(&plan_node(&all))).await;
            match applied {
                Ok(Ok(warning)) => {
                    debug!("the node's rules for probes are in force");
                    self.warn(warning);
                    self.changed.notified().await;
                }
                Ok(Err(error)) => {
                    self.warn(Some(format!(
                        "the node's rules for probes can't be set, so probes of strict pods fail: {error}; trying again"
                    )));
                    tokio::time::sleep(AGAIN).await;
                }
                Err(_) => return,
            }
        }
    }
}

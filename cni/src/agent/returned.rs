//! Listening sockets that proxies give back to an agent that has restarted.
//!
//! Flows in: per pod, what each proxy holds, as it connects. Flows out: to the start, which waits
//! for them a bounded time. What comes later than that is closed: the pod has other sockets then.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};
use tracing::warn;
use weft_api::handover::{Held, ListenerKind};

use crate::{listeners::Listeners, netns::NetNs};

/// What one proxy holds of one pod.
#[derive(Debug)]
struct Returned {
    netns: OwnedFd,
    sockets: Vec<(ListenerKind, OwnedFd)>,
}

/// What came back and was not taken yet; `None` once nothing is taken any more.
#[derive(Debug)]
pub(super) struct Returns {
    pods: Mutex<Option<HashMap<String, Vec<Returned>>>>,
    changed: watch::Sender<()>,
}

impl Default for Returns {
    fn default() -> Self {
        Self {
            pods: Mutex::new(Some(HashMap::new())),
            changed: watch::Sender::new(()),
        }
    }
}

impl Returns {
    /// A proxy gives a pod's descriptors back: the network namespace, then the sockets.
    pub(super) fn put(&self, held: Held, descriptors: Vec<OwnedFd>) {
        let kinds: Vec<_> = held.listeners().collect();
        let mut descriptors = descriptors.into_iter();
        if let Some(pods) = &mut *self.pods.lock()
            && let Some(netns) = descriptors.next()
            && descriptors.len() == kinds.len()
        {
            let sockets = kinds.into_iter().zip(descriptors).collect();
            let returned = Returned { netns, sockets };
            pods.entry(held.sandbox).or_default().push(returned);
        }
        self.changed.send_replace(());
    }

    /// Waits until something came back of each of these, for `patience` at the most.
    pub(super) async fn wait(&self, sandboxes: &[String], patience: Duration) {
        let mut changed = self.changed.subscribe();
        let all = async {
            loop {
                let there =
                    self.pods.lock().as_ref().is_none_or(|pods| {
                        sandboxes.iter().all(|sandbox| pods.contains_key(sandbox))
                    });
                if there || changed.changed().await.is_err() {
                    return;
                }
            }
        };
        // What did not come in time is made anew.
        let _ = timeout(patience, all).await;
    }

    /// The sockets of a sandbox, if some that came back are right.
    pub(super) fn take(&self, sandbox: &str, pod: &str, netns: &NetNs) -> Option<Listeners> {
        let returned = self.pods.lock().as_mut()?.remove(sandbox)?;
        returned.into_iter().find_map(|returned| {
            Listeners::returned(netns, returned.netns.as_fd(), returned.sockets)
                .inspect_err(|error| {
                    warn!(pod, sandbox, %error, "sockets that a proxy gave back are not used");
                })
                .ok()
        })
    }

    /// Nothing is taken any more: what is left, and what comes, is closed.
    pub(super) fn close(&self) {
        *self.pods.lock() = None;
    }
}

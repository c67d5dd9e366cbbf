//! Whether the agent is to leave its node for good, or only to make room for its successor.
//!
//! Flows in: the agent's own DaemonSet. Flows out: the order to leave: it bears the annotation
//! [`ANNOTATION_UNINSTALL`], or is at an end itself. When in doubt there is none: pods stay protected.

use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::{sync::watch, time::timeout};
use tracing::{info, warn};

use super::{ANNOTATION_UNINSTALL, Place, YES};

/// How long a look at the DaemonSet at the end may take, of the time that the kubelet leaves.
const PATIENCE: Duration = Duration::from_secs(5);
/// A finalizer by which pods outlive their DaemonSet: it is to be replaced, not to go.
const ORPHAN: &str = "orphan";

/// What is known of the agent's own DaemonSet. Pure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The first one that was seen; another of the same name is none of this agent's.
    uid: Option<String>,
    orphaning: bool,
    ordered: bool,
}

impl Owner {
    /// Takes in what the API has under the DaemonSet's name now.
    pub fn see(&mut self, found: Option<&DaemonSet>) {
        let own = found.filter(|found| self.uid.is_none() || self.uid == found.uid());
        self.ordered = match own {
            Some(own) => {
                self.uid = own.uid();
                self.orphaning = own.finalizers().iter().any(|finalizer| finalizer == ORPHAN);
                let annotated = own
                    .annotations()
                    .get(ANNOTATION_UNINSTALL)
                    .is_some_and(|value| value == YES);
                let ends = own.metadata.deletion_timestamp.is_some();
                annotated || (ends && !self.orphaning)
            }
            // One that was never there is a mistake in a flag, and no order.
            None => self.uid.is_some() && !self.orphaning,
        };
    }

    /// Whether the agent is to leave.
    pub fn is_ordered(&self) -> bool {
        self.ordered
    }
}

/// Follows the DaemonSet.
pub struct Follower {
    client: Client,
    daemonset: Place,
    owner: watch::Sender<Owner>,
    ordered: watch::Sender<bool>,
}

impl Follower {
    /// Tells `ordered`.
    pub fn new(client: Client, daemonset: Place, ordered: watch::Sender<bool>) -> Self {
        Self {
            client,
            daemonset,
            owner: watch::Sender::default(),
            ordered,
        }
    }

    /// Follows for ever.
    pub async fn run(&self) {
        let selected =
            watcher::Config::default().fields(&format!("metadata.name={}", self.daemonset.name));
        let events = watcher(self.api(), selected).default_backoff();
        self.follow(events).await;
    }

    async fn follow(&self, events: impl Stream<Item = Result<Event<DaemonSet>, watcher::Error>>) {
        let mut events = std::pin::pin!(events);
        let mut listed = None;
        let mut failing = false;
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed = None,
                Ok(Event::InitApply(found)) if self.is_it(&found) => listed = Some(found),
                Ok(Event::InitDone) => self.see(listed.take().as_ref()),
                Ok(Event::Apply(found)) if self.is_it(&found) => self.see(Some(&found)),
                Ok(Event::Delete(gone)) if self.is_it(&gone) => self.see(None),
                Ok(_) => {}
                Err(error) if failing => tracing::debug!(%error, "again"),
                Err(error) => {
                    failing = true;
                    warn!(%error, daemonset = %self.daemonset, "can't be watched: an uninstall would be taken for an upgrade");
                    continue;
                }
            }
            failing = false;
        }
    }

    /// Waits until the DaemonSet was seen, so that an agent that starts into an uninstall does nothing
    /// that it would have to undo; but not for long.
    pub async fn settled(&self) {
        let mut owner = self.owner.subscribe();
        let seen = owner.wait_for(|owner| owner.uid.is_some());
        if timeout(PATIENCE, seen).await.is_err() {
            warn!(daemonset = %self.daemonset, "is not there or can't be read: is --daemonset right? Until it is seen an uninstall is taken for an upgrade");
        }
    }

    /// Looks once more, for an agent that was told to end.
    pub async fn look(&self) {
        match timeout(PATIENCE, self.api().get_opt(&self.daemonset.name)).await {
            Ok(Ok(found)) => self.see(found.as_ref()),
            Ok(Err(error)) => warn!(%error, daemonset = %self.daemonset, "can't be read"),
            Err(_) => warn!(daemonset = %self.daemonset, "can't be read in time"),
        }
    }

    fn see(&self, found: Option<&DaemonSet>) {
        let mut ordered = false;
        self.owner.send_modify(|owner| {
            owner.see(found);
            ordered = owner.is_ordered();
        });
        self.ordered.send_if_modified(|before| {
            let changed = *before != ordered;
            if changed {
                info!(ordered, daemonset = %self.daemonset, "uninstall");
            }
            *before = ordered;
            changed
        });
    }

    fn is_it(&self, found: &DaemonSet) -> bool {
        found.name_any() == self.daemonset.name
    }

    fn api(&self) -> Api<DaemonSet> {
        Api::namespaced(self.client.clone(), &self.daemonset.namespace)
    }
}

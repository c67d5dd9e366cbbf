//! Tells other replicas how the proxies that are connected to this one stand.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use weft_api::peer::{self, FollowRequest, Refusal, Report, peer_service_server::PeerService};

use super::Entry;
use crate::publish::{
    ResourceType,
    auth::{Authenticator, Caller, caller},
    hub::{Hub, Subscription},
};

/// What changes within this time is told together.
const GATHER: Duration = Duration::from_millis(20);

/// The most resources in one part of a report.
const PART: usize = 5000;

/// Serves what `hub` knows to other replicas.
pub struct StandingService {
    hub: Arc<Hub>,
    authenticator: Arc<dyn Authenticator>,
    shutdown: CancellationToken,
}

impl StandingService {
    /// Serves until `shutdown`.
    pub fn new(
        hub: Arc<Hub>,
        authenticator: Arc<dyn Authenticator>,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            hub,
            authenticator,
            shutdown,
        }
    }
}

#[tonic::async_trait]
impl PeerService for StandingService {
    type FollowStream = ReceiverStream<Result<Report, Status>>;

    async fn follow(
        &self,
        request: Request<FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        match caller(&self.authenticator, request.metadata()).await? {
            Caller::Controller { replica } => tracing::info!(replica, "a replica follows this one"),
            Caller::Proxy { .. } => {
                return Err(Status::permission_denied(
                    "this is for the controller's replicas",
                ));
            }
        }
        let (sender, receiver) = mpsc::channel(4);
        let (subscription, shutdown) = (self.hub.subscribe(), self.shutdown.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = tell(subscription, &sender) => {}
                () = sender.closed() => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn tell(subscription: Subscription, sender: &mpsc::Sender<Result<Report, Status>>) {
    let mut told: HashMap<(ResourceType, Arc<str>), Entry> = HashMap::new();
    loop {
        let dirty = subscription.take();
        let (nodes, entries) = subscription.hub().report(&dirty, told.keys());
        let mut changed = Vec::new();
        for (key, entry) in entries {
            let nothing = Entry::default();
            if told.get(&key).unwrap_or(&nothing) != &entry {
                changed.push(encode(key.0, &key.1, &entry));
                match entry.is_void() {
                    true => told.remove(&key),
                    false => told.insert(key, entry),
                };
            }
        }
        while changed.len() > PART {
            let rest = changed.split_off(PART);
            let part = Report {
                changed,
                partial: true,
                ..Report::default()
            };
            if sender.send(Ok(part)).await.is_err() {
                return;
            }
            changed = rest;
        }
        let report = Report {
            nodes,
            changed,
            partial: false,
        };
        if sender.send(Ok(report)).await.is_err() {
            return;
        }
        subscription.changed().await;
        sleep(GATHER).await;
    }
}

fn encode(kind: ResourceType, name: &str, entry: &Entry) -> peer::Standing {
    let rejected = entry.rejected.iter().map(|(node, reason)| Refusal {
        node: node.clone(),
        reason: reason.clone(),
    });
    peer::Standing {
        type_url: kind.url().into(),
        name: name.into(),
        version: entry
            .version
            .map(|version| version.to_string())
            .unwrap_or_default(),
        waiting: entry.waiting.clone(),
        rejected: rejected.collect(),
    }
}

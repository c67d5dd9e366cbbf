//! The delta xDS service: one stream a proxy, over which the hub's [`Session`] speaks.
//!
//! [`Session`]: super::session::Session

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use weft_api::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_server::AggregatedDiscoveryService,
};

use super::{
    ResourceType,
    auth::{Authenticator, authenticate},
    hub::{Connection, Hub},
};

/// Streams configuration to proxies.
pub struct XdsService {
    hub: Arc<Hub>,
    authenticator: Arc<dyn Authenticator>,
    shutdown: CancellationToken,
}

type Responses = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

impl XdsService {
    /// Serves what `hub` holds until `shutdown`, then ends the streams.
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
impl AggregatedDiscoveryService for XdsService {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let node = authenticate(&self.authenticator, request.metadata()).await?;
        // One response a type is on its way at the most: there is always room.
        let (sender, receiver) = mpsc::channel(2 * ResourceType::ALL.len());
        let stream = Stream {
            inbound: request.into_inner(),
            outbound: sender.clone(),
            node,
        };
        let (hub, shutdown) = (Arc::clone(&self.hub), self.shutdown.clone());
        tokio::spawn(async move {
            let end = tokio::select! {
                end = stream.run(&hub) => end,
                () = sender.closed() => Ok(()),
                () = shutdown.cancelled() => Err(Status::unavailable("the controller is shutting down")),
            };
            if let Err(status) = end {
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

struct Stream {
    inbound: Streaming<DeltaDiscoveryRequest>,
    outbound: Responses,
    /// Where the caller runs, as its token says.
    node: String,
}

impl Stream {
    async fn run(mut self, hub: &Arc<Hub>) -> Result<(), Status> {
        let Some(first) = self.inbound.message().await? else {
            return Ok(());
        };
        let connection = self.identify(&first, hub)?;
        let id = first
            .node
            .as_ref()
            .map(|node| node.id.clone())
            .unwrap_or_default();
        tracing::info!(node = self.node, id, "a proxy connected");
        let end = self.converse(first, &connection).await;
        let reason = end
            .as_ref()
            .err()
            .map_or("closed", |status| status.message());
        tracing::info!(node = self.node, id, reason, "a proxy disconnected");
        end
    }

    fn identify(
        &self,
        first: &DeltaDiscoveryRequest,
        hub: &Arc<Hub>,
    ) -> Result<Connection, Status> {
        let node = first.node.as_ref().ok_or_else(|| {
            Status::invalid_argument("the stream's first request must say which node it comes from")
        })?;
        if node.cluster != self.node {
            return Err(Status::permission_denied(format!(
                "the token is for node {:?}, but the proxy says that it runs on {:?}",
                self.node, node.cluster
            )));
        }
        if node.id.is_empty() {
            return Err(Status::invalid_argument(
                "node.id is empty; it must be unique per process",
            ));
        }
        Ok(hub.connect(&node.id, &self.node))
    }

    async fn converse(
        &mut self,
        first: DeltaDiscoveryRequest,
        connection: &Connection,
    ) -> Result<(), Status> {
        connection.request(first);
        loop {
            for response in connection.responses() {
                if self.outbound.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
            tokio::select! {
                request = self.inbound.message() => match request? {
                    Some(request) => connection.request(request),
                    None => return Ok(()),
                },
                () = connection.woken() => {}
                () = connection.superseded() => {
                    return Err(Status::aborted("a newer stream of the same proxy took over"));
                }
            }
        }
    }
}

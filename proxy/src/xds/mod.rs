//! The configuration's way in: a delta xDS client. Resources of the controller flow in over one
//! stream, changes of the [`State`] and ACKs or NACKs flow out.
//!
//! A proxy serves what it has whether or not the controller is there: from the snapshot of its
//! predecessor at the start, from the last state when the stream breaks. A new stream names the
//! versions that are held, so that only what changed comes again.

mod backoff;
mod session;
pub mod snapshot;

#[cfg(test)]
mod tests;

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::{
    sync::{mpsc, watch},
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use weft_api::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Locality, Node,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};

use self::{backoff::Backoff, session::Session, snapshot::Snapshot};
use crate::{
    admin::Condition,
    controller::{Controller, ControllerError},
    state::{Kind, State},
    telemetry::Telemetry,
};

/// The biggest response that is read: about 100,000 workloads in one message.
const MAX_RESPONSE: usize = 64 * 1024 * 1024;
/// How long a start waits for what has changed since the snapshot. Meanwhile connections queue; by an
/// old configuration, what has joined the mesh since would be dialled in plaintext. A controller
/// that can't be connected to is not waited for.
const CATCH_UP: Duration = Duration::from_secs(2);
/// Requests that wait to be sent: the first four, then one per response.
const REQUESTS: usize = 8;

/// Why a stream could not be opened, or ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// There is no connection.
    #[error(transparent)]
    Controller(#[from] ControllerError),
    /// The controller (or what is between) says so.
    #[error("{}: {}", .0.code(), .0.message())]
    Status(#[from] tonic::Status),
    /// The stream ended in order: the controller stops, probably.
    #[error("the controller closed the stream")]
    Closed,
}

/// Opens streams. The controller's connection does; tests bring their own.
pub trait Transport: Send + Sync + 'static {
    /// A stream on which `requests` are sent.
    fn open(
        &self,
        requests: mpsc::Receiver<DeltaDiscoveryRequest>,
    ) -> BoxFuture<'_, Result<Streaming<DeltaDiscoveryResponse>, StreamError>>;
}

impl Transport for Controller {
    fn open(
        &self,
        requests: mpsc::Receiver<DeltaDiscoveryRequest>,
    ) -> BoxFuture<'_, Result<Streaming<DeltaDiscoveryResponse>, StreamError>> {
        Box::pin(async move {
            let mut client = AggregatedDiscoveryServiceClient::new(self.channel().await?)
                .max_decoding_message_size(MAX_RESPONSE);
            let request = self.request(ReceiverStream::new(requests)).await?;
            let response = client.delta_aggregated_resources(request).await?;
            Ok(response.into_inner())
        })
    }
}

/// Who this proxy is to the controller.
pub fn node(node: &str, incarnation: &str, zone: &str) -> Node {
    Node {
        id: format!("{node}/{incarnation}"),
        cluster: node.to_owned(),
        metadata: None,
        locality: Some(Locality {
            zone: zone.to_owned(),
            ..Locality::default()
        }),
        user_agent_name: concat!("weft-proxy/", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

/// The client. [`Client::run`] is its life.
pub struct Client {
    /// How streams are opened.
    pub transport: Arc<dyn Transport>,
    /// See [`node`].
    pub node: Node,
    /// What changes.
    pub state: Arc<State>,
    /// What is counted.
    pub telemetry: Arc<Telemetry>,
    /// Where the configuration outlives the process; `None`: nowhere.
    pub snapshot: Option<Snapshot>,
    /// Holds once there is a configuration.
    pub configured: Condition,
    /// For those who need one to serve by: true, and for ever so, once the controller has sent it.
    /// While the controller is away a snapshot will do.
    pub synced: watch::Sender<bool>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("node", &self.node.id)
            .finish()
    }
}

impl Client {
    /// Loads the snapshot, then keeps a stream open until `shutdown`. Changes are saved until
    /// `draining`: then the snapshot is the successor's, which may know more.
    pub async fn run(self, draining: CancellationToken, shutdown: CancellationToken) {
        let mut session = Session::new(Arc::clone(&self.state), Arc::clone(&self.telemetry));
        if let Some(snapshot) = &self.snapshot
            && snapshot.load(&self.state)
        {
            session.loaded();
            self.configured.ready();
        }
        let is_synced = self.synced.subscribe();
        let loaded = session.is_synced();
        let make_do = async {
            if loaded {
                time::sleep(CATCH_UP).await;
                self.serve_now();
            }
            std::future::pending().await
        };
        let save = async {
            if let Some(snapshot) = &self.snapshot {
                snapshot
                    .keep(Arc::clone(&self.state), is_synced, &draining)
                    .await;
            }
        };
        let stream = async {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = make_do => {}
                () = self.streams(&mut session) => {}
            }
            self.telemetry.xds_connected(false);
        };
        tokio::join!(save, stream);
    }

    /// There is a configuration to serve by.
    fn serve_now(&self) {
        let first = |was: &mut bool| !std::mem::replace(was, true);
        self.synced.send_if_modified(first);
    }

    /// One stream after the other, for ever.
    async fn streams(&self, session: &mut Session) {
        let mut backoff = Backoff::default();
        let mut told = false;
        loop {
            let mut answered = false;
            let reason = self
                .stream(session, |session| {
                    if !answered {
                        answered = true;
                        tracing::info!("the controller sends configuration");
                    }
                    if session.is_fresh() {
                        self.serve_now();
                    }
                    if session.is_synced() {
                        self.configured.ready();
                    } else {
                        self.configured.unready(session.missing());
                    }
                })
                .await;
            if matches!(
                reason,
                StreamError::Controller(ControllerError::Connect { .. })
            ) && session.is_synced()
            {
                // It may be away for long: a snapshot will do, and connections wait for it.
                self.serve_now();
            }
            self.telemetry.xds_connected(false);
            self.telemetry.xds_failed();
            if answered {
                backoff = Backoff::default();
                told = false;
            }
            // Once, for a person; then quietly, for the metric tells on.
            if told {
                tracing::debug!("no configuration from the controller: {reason}");
            } else {
                told = true;
                tracing::warn!(
                    "no configuration from the controller, the last one stays in force: {reason}"
                );
            }
            if !session.is_synced() {
                self.configured
                    .unready(format!("{}: {reason}", session.missing()));
            } else {
                self.configured.note(format!(
                    "not connected to the controller, the last configuration stays in force: {reason}"
                ));
            }
            time::sleep(backoff.next(rand::random())).await;
        }
    }

    /// One stream, and why it ended. `handled` is called after each response.
    async fn stream(&self, session: &mut Session, handled: impl FnMut(&Session)) -> StreamError {
        match self.try_stream(session, handled).await {
            Ok(never) => match never {},
            Err(reason) => reason,
        }
    }

    async fn try_stream(
        &self,
        session: &mut Session,
        mut handled: impl FnMut(&Session),
    ) -> Result<Infallible, StreamError> {
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        let mut node = Some(self.node.clone());
        for kind in Kind::ALL {
            // The channel has room for all of them.
            let _ = requests.try_send(session.subscribe(kind, node.take()));
        }
        let mut responses = self.transport.open(outgoing).await?;
        self.telemetry.xds_connected(true);
        while let Some(response) = responses.message().await? {
            let request = session.handle(response);
            handled(session);
            // An error means that the stream is over, and the next message says why.
            let _ = requests.send(request).await;
        }
        Err(StreamError::Closed)
    }
}

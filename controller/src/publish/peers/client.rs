//! Follows what the other replicas tell.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Endpoint, Uri},
};
use weft_api::peer::{FollowRequest, Report, Standing, peer_service_client::PeerServiceClient};

use super::{Entry, Key, Peers, Snapshot};
use crate::publish::{ResourceType, cache::Version};

/// How long connecting, and the beginning of an answer, may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// A connection on which nothing is heard for twice as long is broken.
const KEEPALIVE: Duration = Duration::from_secs(3);

/// The pause before another attempt.
const RETRY: Duration = Duration::from_millis(500);

/// The most that one part of a report may be, in bytes.
const MAX_REPORT: usize = 64 * 1024 * 1024;

/// The way to the other replicas.
pub struct Dialer {
    /// Their gRPC port.
    pub port: u16,
    /// Verifies their serving certificate.
    pub tls: Arc<ClientConfig>,
    /// The token with which this replica calls.
    pub token_file: PathBuf,
}

/// Why a replica is not followed any more.
enum End {
    /// Nobody listens at its address.
    Absent,
    /// Anything else.
    Broken(String),
}

impl<E: std::error::Error> From<E> for End {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            text.push_str(&format!(": {error}"));
            source = error.source();
        }
        Self::Broken(text)
    }
}

impl Peers {
    /// Follows every other replica, for ever.
    pub async fn follow(self: Arc<Self>, dialer: Dialer) {
        let dialer = Arc::new(dialer);
        let mut tasks = JoinSet::new();
        let mut running = BTreeMap::new();
        loop {
            let members = self.members();
            running.retain(
                |name: &String, (address, task): &mut (_, tokio::task::AbortHandle)| {
                    let stays = members
                        .get(name)
                        .is_some_and(|member| member.address == *address);
                    if !stays {
                        task.abort();
                    }
                    stays
                },
            );
            for (name, member) in members {
                running.entry(name.clone()).or_insert_with(|| {
                    let address = SocketAddr::new(member.address, dialer.port);
                    let (peers, dialer) = (Arc::clone(&self), Arc::clone(&dialer));
                    let task = async move { peers.follow_one(&name, address, &dialer).await };
                    (member.address, tasks.spawn(task))
                });
            }
            tokio::select! {
                () = self.members_changed.notified() => {}
                Some(_) = tasks.join_next() => {}
            }
        }
    }

    async fn follow_one(&self, replica: &str, address: SocketAddr, dialer: &Dialer) {
        loop {
            match self.listen(replica, address, dialer).await {
                End::Absent => self.silent(replica, true),
                End::Broken(error) => {
                    tracing::info!(replica, %address, error, "another replica can't be followed");
                    self.silent(replica, false);
                }
            }
            sleep(RETRY).await;
        }
    }

    async fn listen(&self, replica: &str, address: SocketAddr, dialer: &Dialer) -> End {
        match self.try_listen(replica, address, dialer).await {
            Ok(()) => End::Broken("it has ended the stream".to_owned()),
            Err(end) => end,
        }
    }

    async fn try_listen(
        &self,
        replica: &str,
        address: SocketAddr,
        dialer: &Dialer,
    ) -> Result<(), End> {
        // Dialled here, not by tonic: whether anybody listens must be known for certain.
        let stream = match timeout(PATIENCE, TcpStream::connect(address)).await? {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(End::Absent);
            }
            stream => stream?,
        };
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::clone(&dialer.tls));
        let tls = connector.connect(weft_certs::tls::unnamed(), stream);
        let mut tls = Some(timeout(PATIENCE, tls).await??);
        let connector = tower::service_fn(move |_: Uri| {
            // One connection is all there is: a new one is made by beginning anew.
            let stream = tls.take().ok_or(io::ErrorKind::NotConnected);
            async move { stream.map(TokioIo::new).map_err(io::Error::from) }
        });
        let endpoint = Endpoint::from_static("http://replica")
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect_with_connector(connector);
        let mut client = PeerServiceClient::new(timeout(PATIENCE, channel).await??)
            .max_decoding_message_size(MAX_REPORT);
        let token = tokio::fs::read_to_string(&dialer.token_file).await?;
        let token: MetadataValue<Ascii> = format!("Bearer {}", token.trim()).parse()?;
        let mut request = Request::new(FollowRequest {});
        request.metadata_mut().insert("authorization", token);
        let reports = timeout(PATIENCE, client.follow(request)).await??;
        let mut reports = reports.into_inner();
        let mut entries = HashMap::new();
        let mut first = true;
        while let Some(Report {
            nodes,
            changed,
            partial,
        }) = reports.message().await?
        {
            for standing in changed {
                entries.extend(decode(standing)?);
            }
            if !partial {
                let entries = std::mem::take(&mut entries);
                self.report(replica, Snapshot { nodes, entries }, first);
                first = false;
            }
        }
        Ok(())
    }
}

/// A type that is not known here is of no interest either.
fn decode(standing: Standing) -> Result<Option<(Key, Entry)>, Status> {
    let Some(kind) = ResourceType::from_url(&standing.type_url) else {
        return Ok(None);
    };
    let version = match standing.version.as_str() {
        "" => None,
        text => Some(Version::parse(text).ok_or_else(|| {
            Status::data_loss(format!("{}: {text:?} is no version", standing.name))
        })?),
    };
    let rejected = standing.rejected.into_iter().map(|r| (r.node, r.reason));
    let entry = Entry {
        version,
        waiting: standing.waiting,
        rejected: rejected.collect(),
    };
    Ok(Some(((kind, standing.name), entry)))
}

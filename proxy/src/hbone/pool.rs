//! The tunnels of one pod. In flow a destination (address and identity) and where its
//! application listens; out flow open CONNECTs.
//!
//! A pool belongs to one pod, so that no two pods share a tunnel: the far application sees its
//! client's address. No lock is held while waiting. All who want a destination to which there
//! is no room share one handshake, and all learn if it failed.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Weak},
    time::Duration,
};

use foldhash::{HashMap, HashMapExt};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_certs::{BundleSource, SpiffeId, SvidSource, tls};

use super::{
    Usage,
    connect::{Driver, Failure, Tunnel},
    describe,
    stream::TunnelStream,
    watch::{End, watch as watch_tunnel},
};
use crate::{
    io::{ConnectError, Leaving},
    limits::{Limit, PodLimits},
    netns::Netns,
    report::{Failure as Reported, Report},
    share,
    socket::{self, Source},
    telemetry::{GaugeGuard, Side},
};

/// Tunnels that turn out to be closing, one after the other, until a CONNECT gives up: a peer
/// that drains several at once.
const CLOSING_TUNNELS: usize = 5;

/// How long a tunnel of a pod that goes may take to say good-bye: what it has to send is a few frames.
const GOODBYE: Duration = Duration::from_millis(250);

/// One end to dial, and who must be there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The pod's own address to dial from.
    pub source: Option<IpAddr>,
    /// Where HBONE is spoken.
    pub address: SocketAddr,
    /// Who must be there.
    pub identity: SpiffeId,
    /// In which sandbox: a pod that comes to an address after another of the same identity is not
    /// at the end of that one's tunnels.
    pub sandbox: Arc<str>,
}

/// What `/tunnels` shows of one destination.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PoolStats {
    /// Where the tunnels go.
    pub address: SocketAddr,
    /// Who is there.
    pub identity: String,
    /// Open streams of each tunnel.
    pub streams: Vec<usize>,
}

/// The tunnels of one pod.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    netns: Netns,
    identity: SpiffeId,
    svid: Arc<dyn SvidSource>,
    bundle: Arc<dyn BundleSource>,
    limits: Arc<PodLimits>,
    report: Report,
    destinations: Mutex<HashMap<Destination, Tunnels>>,
    /// Tells the tunnels to end.
    goodbye: CancellationToken,
    /// Their tasks.
    running: TaskTracker,
}

#[derive(Default)]
struct Tunnels {
    open: Vec<Arc<Tunnel>>,
    /// The handshake under way.
    connecting: Option<watch::Receiver<Option<Result<(), ConnectError>>>>,
}

enum Lease {
    Tunnel(Arc<Tunnel>, StreamGuard),
    Wait(watch::Receiver<Option<Result<(), ConnectError>>>),
}

/// Counts one stream of a tunnel until it is dropped.
#[derive(Debug)]
pub struct StreamGuard(Arc<Usage>);

impl StreamGuard {
    /// For a stream that `usage` has counted.
    pub(super) fn new(usage: Arc<Usage>) -> Self {
        Self(usage)
    }

    pub(super) fn usage(&self) -> &Usage {
        &self.0
    }

    pub(super) fn leaving(&self) -> Leaving {
        let usage = Arc::clone(&self.0);
        Leaving::new(move || usage.is_closed())
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl Pool {
    /// An empty pool of a pod in `netns` whose identity is `identity`.
    pub fn new(
        netns: Netns,
        identity: SpiffeId,
        svid: Arc<dyn SvidSource>,
        bundle: Arc<dyn BundleSource>,
        limits: Arc<PodLimits>,
        report: Report,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                netns,
                identity,
                svid,
                bundle,
                limits,
                report,
                destinations: Mutex::new(HashMap::new()),
                goodbye: CancellationToken::new(),
                running: TaskTracker::new(),
            }),
        }
    }

    /// A stream to the application at `to`, through a tunnel to `destination`. The caller bounds
    /// the time.
    pub async fn open(
        &self,
        destination: &Destination,
        to: SocketAddr,
    ) -> Result<TunnelStream, ConnectError> {
        if !self.inner.limits.admit().await {
            return Err(ConnectError::Limit("bytes buffered for the pod"));
        }
        let mut closing = 0;
        let mut broken = false;
        loop {
            match self.inner.lease(destination)? {
                Lease::Tunnel(tunnel, guard) => {
                    match tunnel.connect(to, &destination.sandbox).await {
                        Ok((send, recv)) => {
                            let budget = self.inner.limits.budget().clone();
                            return Ok(TunnelStream::new(send, recv, guard, budget));
                        }
                        Err(Failure::Final(error)) => return Err(error),
                        // A CONNECT carries nothing yet, so it may be sent twice. Once: who breaks a
                        // new tunnel as well would break them all.
                        Err(Failure::Broken(reason)) => {
                            if std::mem::replace(&mut broken, true) {
                                let address = destination.address;
                                return Err(ConnectError::TunnelBroken(address, reason));
                            }
                        }
                        Err(Failure::NotSent) => {
                            closing += 1;
                            if closing >= CLOSING_TUNNELS {
                                return Err(ConnectError::TunnelBroken(
                                    destination.address,
                                    "every tunnel was about to close".to_owned(),
                                ));
                            }
                        }
                    }
                }
                Lease::Wait(mut done) => {
                    let result = match done.wait_for(Option::is_some).await {
                        Ok(result) => result.clone(),
                        Err(_) => None,
                    };
                    result.unwrap_or_else(|| {
                        Err(ConnectError::TunnelBroken(
                            destination.address,
                            "the handshake was given up".to_owned(),
                        ))
                    })?;
                }
            }
        }
    }

    /// Finds out which tunnels' peers have said good-bye, and closes those to new streams. A tunnel
    /// that nobody opens streams in would not notice.
    pub fn probe(&self) {
        let destinations = self.inner.destinations.lock();
        for tunnel in destinations.values().flat_map(|tunnels| &tunnels.open) {
            tunnel.probe();
        }
    }

    /// The pod goes: ends every tunnel in order, with a reset for what is open in it.
    pub async fn close(&self) {
        self.inner.goodbye.cancel();
        self.inner.running.close();
        let _ = tokio::time::timeout(GOODBYE, self.inner.running.wait()).await;
    }

    /// The tunnels that are open.
    pub fn stats(&self) -> Vec<PoolStats> {
        let destinations = self.inner.destinations.lock();
        destinations
            .iter()
            .map(|(destination, tunnels)| PoolStats {
                address: destination.address,
                identity: destination.identity.as_str().to_owned(),
                streams: tunnels
                    .open
                    .iter()
                    .map(|tunnel| tunnel.usage.open_streams())
                    .collect(),
            })
            .collect()
    }
}

impl Inner {
    /// A place in an open tunnel, or the handshake to wait for.
    fn lease(self: &Arc<Self>, destination: &Destination) -> Result<Lease, ConnectError> {
        let mut destinations = self.destinations.lock();
        let tunnels = match destinations.get_mut(destination) {
            Some(tunnels) => tunnels,
            None => destinations.entry(destination.clone()).or_default(),
        };
        tunnels.open.retain(|tunnel| !tunnel.usage.is_closed());
        // The first with room: streams gather in few tunnels, and the others fall idle.
        if let Some(tunnel) = tunnels.open.iter().find(|tunnel| tunnel.acquire()) {
            let guard = StreamGuard::new(Arc::clone(&tunnel.usage));
            return Ok(Lease::Tunnel(Arc::clone(tunnel), guard));
        }
        if let Some(connecting) = &tunnels.connecting
            && connecting.has_changed().is_ok()
        {
            return Ok(Lease::Wait(connecting.clone()));
        }
        if tunnels.open.len() >= self.limits.settings().tunnels_per_destination {
            self.limits.shed(Limit::TunnelsPerDestination);
            return Err(ConnectError::Limit("tunnels to one destination"));
        }
        let (done, connecting) = watch::channel(None);
        tunnels.connecting = Some(connecting.clone());
        // A task of its own: whoever asked first may go away without failing the others.
        share::spawn(Arc::clone(self).establish(destination.clone(), done));
        Ok(Lease::Wait(connecting))
    }

    async fn establish(
        self: Arc<Self>,
        destination: Destination,
        done: watch::Sender<Option<Result<(), ConnectError>>>,
    ) {
        let result = self.handshake(&destination).await;
        let reported = result.as_ref().map(drop).map_err(Clone::clone);
        self.report.handshake(
            Side::Client,
            destination.address,
            reported.map_err(|error| {
                let is_impostor = matches!(error, ConnectError::Identity { .. });
                Reported {
                    refused: is_impostor,
                    ..Reported::from(error)
                }
            }),
        );
        let result = {
            let mut destinations = self.destinations.lock();
            let tunnels = destinations.entry(destination.clone()).or_default();
            tunnels.connecting = None;
            match result {
                Ok((tunnel, driver)) => {
                    share::spawn(self.running.track_future(drive(
                        driver,
                        Arc::downgrade(&self),
                        destination,
                        Arc::clone(&tunnel.usage),
                        Arc::clone(&self.limits),
                        self.report.telemetry().tunnel_opened(Side::Client),
                        self.goodbye.clone(),
                    )));
                    tunnels.open.push(Arc::new(tunnel));
                    Ok(())
                }
                Err(error) => {
                    if tunnels.open.is_empty() {
                        destinations.remove(&destination);
                    }
                    Err(error)
                }
            }
        };
        done.send_replace(Some(result));
    }

    async fn handshake(&self, to: &Destination) -> Result<(Tunnel, Driver), ConnectError> {
        if self.svid.svid().is_none() {
            return Err(ConnectError::NoCertificate(
                self.identity.as_str().to_owned(),
            ));
        }
        let settings = self.limits.settings();
        let source = to.source.map_or(Source::Any, Source::Local);
        let tls = tls::client_config(
            Arc::clone(&self.svid),
            Arc::clone(&self.bundle),
            [to.identity.clone()],
        )
        .map_err(|error| ConnectError::Io(to.address, error.to_string()))?;
        let tcp = socket::connect(
            &self.netns,
            source,
            to.address,
            settings.connect,
            settings.tunnel_liveness(),
        )
        .await?;
        tokio::time::timeout(
            settings.handshake,
            Tunnel::establish(tcp, tls, &to.identity, &self.limits),
        )
        .await
        .unwrap_or(Err(ConnectError::TimedOut(to.address)))
    }

    fn forget(&self, destination: &Destination, usage: &Arc<Usage>) {
        let mut destinations = self.destinations.lock();
        if let Some(tunnels) = destinations.get_mut(destination) {
            tunnels
                .open
                .retain(|tunnel| !Arc::ptr_eq(&tunnel.usage, usage));
            if tunnels.open.is_empty() && tunnels.connecting.is_none() {
                destinations.remove(destination);
            }
        }
    }
}

/// Runs a tunnel until it ends, and takes it out of the pool.
async fn drive(
    mut driver: Driver,
    pool: Weak<Inner>,
    destination: Destination,
    usage: Arc<Usage>,
    limits: Arc<PodLimits>,
    _open: GaugeGuard,
    goodbye: CancellationToken,
) {
    let settings = limits.settings();
    let pings = driver.ping_pong();
    let watching = async {
        match pings {
            Some(pings) => watch_tunnel(pings, &usage, settings).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(watching);
    let to_say = loop {
        tokio::select! {
            result = &mut driver => {
                if let Err(error) = result
                    && usage.open_streams() > 0
                {
                    tracing::debug!(address = %destination.address, error = describe(&error), "tunnel broke");
                }
                break None;
            }
            end = &mut watching => break match end {
                End::Idle => Some(settings.handshake),
                End::Dead => {
                    tracing::warn!(
                        address = %destination.address,
                        "tunnel does not answer pings, its streams are reset: is the node alive?"
                    );
                    None
                }
            },
            () = goodbye.cancelled() => break Some(GOODBYE),
            () = usage.windows.busy() => {
                // A size that the peer has not acknowledged yet must be waited for.
                if let Some(sizes) = usage.windows.larger()
                    && driver.set_initial_window_size(sizes.stream).is_ok()
                {
                    driver.set_target_window_size(sizes.tunnel);
                    usage.windows.grown(sizes);
                }
            }
        }
    };
    usage.close();
    if let Some(pool) = pool.upgrade() {
        pool.forget(&destination, &usage);
    }
    if let Some(limit) = to_say {
        // No handle is left, so the connection resets what is still open, says good-bye and ends.
        let _ = tokio::time::timeout(limit, driver).await;
    }
}

//! Certificates of the identities that this node's pods have. In flow identities (a pod comes, a
//! pod goes) and certificate chains from a CA; out flow SVIDs that are always there, renewed at
//! half of their lifetime, and dropped when no pod of this node has the identity any more.
//!
//! Keys are made here and leave only for the snapshot, which lets a successor serve while the
//! controller is away.

use std::{
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use foldhash::{HashMap, HashMapExt};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::watch};
use tokio_util::sync::CancellationToken;
use weft_certs::{SpiffeId, Svid, SvidCell, SvidSource, csr};

use crate::telemetry::Telemetry;

pub mod ca;
pub mod snapshot;

use snapshot::Snapshot;

/// First wait after a failure: a controller that is just being restarted is back soon.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
/// Longest wait between attempts: the CA must survive all nodes asking at this rate.
const LONGEST_BACKOFF: Duration = Duration::from_secs(15);
/// Longest sleep until a renewal: clocks are set, machines are suspended.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);

/// Signs certificate requests.
pub trait Ca: Send + Sync + 'static {
    /// The chain (PEM, leaf first) for a request of this identity.
    fn sign<'a>(
        &'a self,
        identity: &'a SpiffeId,
        csr_pem: String,
    ) -> BoxFuture<'a, Result<Vec<String>, CaError>>;
}

/// The CA gave no certificate.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct CaError(pub String);

/// Where the time comes from.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The identities of this node.
#[derive(Clone)]
pub struct Identities {
    inner: Arc<Inner>,
}

struct Inner {
    ca: Arc<dyn Ca>,
    snapshot: Option<Snapshot>,
    telemetry: Arc<Telemetry>,
    clock: Clock,
    /// Renewals run here, away from the data path.
    runtime: Handle,
    held: Mutex<HashMap<SpiffeId, Weak<Identity>>>,
}

/// What is known of one identity's certificate.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Why there is no certificate, or no newer one; `None`: all is well.
    pub error: Option<String>,
    /// When the certificate in use ends; `None`: there is none.
    pub not_after: Option<SystemTime>,
}

/// An identity that some pod of this node has. Dropped with its last pod.
pub struct Identity {
    id: SpiffeId,
    svid: Arc<SvidCell>,
    status: watch::Sender<Status>,
    renewal: CancellationToken,
}

impl Drop for Identity {
    fn drop(&mut self) {
        self.renewal.cancel();
    }
}

impl Identities {
    /// None yet. `runtime` is where renewals run.
    pub fn new(
        ca: Arc<dyn Ca>,
        snapshot: Option<Snapshot>,
        telemetry: Arc<Telemetry>,
        clock: Clock,
        runtime: Handle,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                ca,
                snapshot,
                telemetry,
                clock,
                runtime,
                held: Mutex::new(HashMap::new()),
            }),
        }
    }

    /// Holds an identity for a pod: all pods of one service account share it.
    pub fn hold(&self, id: &SpiffeId) -> Arc<Identity> {
        let mut held = self.inner.held.lock();
        if let Some(identity) = held.get(id).and_then(Weak::upgrade) {
            return identity;
        }
        let stop = CancellationToken::new();
        let identity = Arc::new(Identity {
            id: id.clone(),
            svid: Arc::new(SvidCell::new()),
            status: watch::Sender::new(Status {
                error: Some("the CA has not answered yet".to_owned()),
                not_after: None,
            }),
            renewal: stop.clone(),
        });
        held.insert(id.clone(), Arc::downgrade(&identity));
        let renewal = renew(Arc::clone(&self.inner), Renewed::of(&identity));
        self.inner.runtime.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = renewal => {}
            }
        });
        identity
    }

    /// Forgets the identities that are not wanted any more, and their keys on the snapshot; what
    /// still holds one of them keeps its certificate, but it is not renewed. A proxy that is `ending`
    /// leaves the snapshot alone: it is its successor's, which has pods that this one never sees.
    pub fn sweep(&self, wanted: impl Fn(&SpiffeId) -> bool, ending: bool) {
        let mut held = self.inner.held.lock();
        held.retain(|id, identity| {
            let keep = wanted(id);
            if !keep && let Some(identity) = identity.upgrade() {
                identity.renewal.cancel();
            }
            if !keep {
                self.inner.telemetry.certificate(id.as_str(), None);
            }
            keep
        });
        if !ending && let Some(snapshot) = &self.inner.snapshot {
            snapshot.retain(|id| held.contains_key(id));
        }
    }
}

impl Identity {
    /// The SPIFFE id.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The certificate of the moment.
    pub fn svid(&self) -> Arc<dyn SvidSource> {
        Arc::clone(&self.svid) as Arc<dyn SvidSource>
    }

    /// What is known of it.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Ready once there is a certificate.
    pub async fn ready(&self) {
        let mut status = self.status.subscribe();
        // Ends early only with the identity itself, which `self` keeps.
        let _ = status.wait_for(|status| status.not_after.is_some()).await;
    }
}

/// What a renewal writes to. It does not hold the identity: pods do.
struct Renewed {
    id: SpiffeId,
    svid: Arc<SvidCell>,
    status: watch::Sender<Status>,
}

impl Renewed {
    fn of(identity: &Identity) -> Self {
        Self {
            id: identity.id.clone(),
            svid: Arc::clone(&identity.svid),
            status: identity.status.clone(),
        }
    }

    fn set(&self, svid: Svid, telemetry: &Telemetry) {
        let not_after = svid.not_after();
        self.svid.set(svid);
        self.status.send_replace(Status {
            error: None,
            not_after: Some(not_after),
        });
        telemetry.certificate(self.id.as_str(), Some(not_after));
    }
}

/// Keeps one identity's certificate fresh, for ever.
async fn renew(inner: Arc<Inner>, identity: Renewed) {
    if let Some(snapshot) = &inner.snapshot {
        match snapshot.load(&identity.id) {
            Ok(Some(svid)) if svid.is_valid_at((inner.clock)()) => {
                tracing::info!(identity = %identity.id.as_str(), "certificate taken from the snapshot");
                identity.set(svid, &inner.telemetry);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(identity = %identity.id.as_str(), %error, "snapshot"),
        }
    }
    // Nodes and identities that started together must not renew together.
    let mut jitter = rand::random::<f64>();
    let mut backoff = FIRST_BACKOFF;
    loop {
        if let Some(svid) = identity.svid.svid() {
            let due = svid.renew_at(jitter);
            if let Ok(left) = due.duration_since((inner.clock)())
                && !left.is_zero()
            {
                tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
                continue;
            }
        }
        match request(&*inner.ca, &identity.id).await {
            Ok(svid) => {
                if let Some(snapshot) = &inner.snapshot
                    && let Err(error) = snapshot.save(&svid)
                {
                    tracing::warn!(identity = %identity.id.as_str(), %error, "can't save the certificate: a restart needs the controller");
                }
                identity.set(svid, &inner.telemetry);
                jitter = rand::random();
                backoff = FIRST_BACKOFF;
                // A CA whose certificates are due at once must not be asked without pause.
                tokio::time::sleep(FIRST_BACKOFF).await;
            }
            Err(error) => {
                tracing::warn!(identity = %identity.id.as_str(), %error, retry = ?backoff, "no certificate");
                identity.status.send_modify(|status| {
                    status.error = Some(error.to_string());
                    // The old one serves as long as it is valid.
                    if status.not_after.is_some_and(|end| end <= (inner.clock)()) {
                        status.not_after = None;
                    }
                });
                tokio::time::sleep(backoff.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await;
                backoff = (backoff * 2).min(LONGEST_BACKOFF);
            }
        }
    }
}

async fn request(ca: &dyn Ca, id: &SpiffeId) -> Result<Svid, CaError> {
    let request = csr::Request::generate(id).map_err(|error| CaError(error.to_string()))?;
    let chain = ca.sign(id, request.csr_pem).await?;
    let svid =
        Svid::from_pem(&chain, &request.key_pem).map_err(|error| CaError(error.to_string()))?;
    if svid.id() != id {
        return Err(CaError(format!(
            "the CA signed {} instead of {}",
            svid.id().as_str(),
            id.as_str()
        )));
    }
    Ok(svid)
}

#[cfg(test)]
mod tests;

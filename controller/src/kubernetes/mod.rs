//! What the controller does on Kubernetes alone: the CA's root in a Secret, the trust bundle in a
//! ConfigMap, tokens through TokenReview, leader election by a Lease, the mesh's XMesh.

pub mod bundle;
pub mod ca_secret;
pub mod lease;
pub mod token_review;

use std::{future::Future, time::Duration};

use kube::runtime::watcher::DefaultBackoff;
use tokio::time::sleep;

pub use weft_source::kubernetes::Place;

/// Under which name the API books our fields.
pub(crate) const FIELD_MANAGER: &str = "weft-controller";

/// Asks the API until it answers, later and later. What it says no to for good is in the result of
/// `attempt` itself.
pub(crate) async fn until_answered<T, F>(what: &str, mut attempt: impl FnMut() -> F) -> T
where
    F: Future<Output = kube::Result<T>>,
{
    let mut backoff = DefaultBackoff::default();
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) => {
                let hint = match &error {
                    kube::Error::Api(status) if status.code == 403 => {
                        "; give the controller's service account the right to"
                    }
                    _ => "",
                };
                tracing::warn!(%error, "can't {what}; trying again{hint}");
            }
        }
        sleep(backoff.next().unwrap_or(Duration::from_secs(30))).await;
    }
}

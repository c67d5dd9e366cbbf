//! What the controller does on Kubernetes alone: the CA's root in a Secret, the trust bundle in a
//! ConfigMap, tokens through TokenReview, leader election by a Lease, the mesh's XMesh.

pub mod bundle;
pub mod ca_secret;
pub mod lease;
pub mod token_review;

use std::{fmt, future::Future, str::FromStr, time::Duration};

use kube::runtime::watcher::DefaultBackoff;
use tokio::time::sleep;

/// Under which name the API books our fields.
pub(crate) const FIELD_MANAGER: &str = "weft-controller";

/// Where a namespaced object is; in flags `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self {
                    namespace: namespace.into(),
                    name: name.into(),
                })
            }
            _ => Err(format!("{text:?} is not of the form NAMESPACE/NAME")),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

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

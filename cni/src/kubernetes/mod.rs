//! What the agent does with the Kubernetes API beyond namespaces and pods.
//!
//! Flows in: a client, and the agent's own DaemonSet ([`order`]). Flows out: the plugin's kubeconfig
//! ([`kubeconfig`]), the node's taint taken away ([`taint`]), and the order to leave ([`uninstall`]).

pub mod kubeconfig;
pub mod order;
pub mod taint;
pub mod uninstall;

use std::{fmt, str::FromStr, time::Duration};

/// First and longest wait before a call of the API is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Annotation on the agent's DaemonSet: [`YES`] is the order to leave the nodes.
pub const ANNOTATION_UNINSTALL: &str = "weft.dev/uninstall";
/// Annotation on an agent's pod: [`YES`] once nothing of weft's is left on its node.
pub const ANNOTATION_UNINSTALLED: &str = "weft.dev/uninstalled";
/// The value that counts.
pub const YES: &str = "true";

/// The name of an object, as `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl FromStr for Name {
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

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Tries something of the API until it is done. The reason why it is not is said once.
async fn persist<T, F: Future<Output = Result<T, kube::Error>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> T {
    let mut wait = BACKOFF.0;
    let mut said = String::new();
    loop {
        let error = match attempt().await {
            Ok(done) => return done,
            Err(error) => error.to_string(),
        };
        if said != error {
            tracing::warn!(error, "can't {what}; trying again");
            said = error;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(BACKOFF.1);
    }
}

#[cfg(test)]
mod tests;

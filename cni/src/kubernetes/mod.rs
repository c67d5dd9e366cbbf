//! What the agent does with the Kubernetes API beyond namespaces and pods.
//!
//! Flows in: a client, and the agent's own DaemonSet ([`order`]). Flows out: the plugin's kubeconfig
//! ([`kubeconfig`]), the node's taint taken away ([`taint`]), and the order to leave ([`uninstall`]).

pub mod kubeconfig;
pub mod order;
pub mod taint;
pub mod uninstall;

use std::time::Duration;

pub use weft_source::kubernetes::Place;

/// First and longest wait before a call of the API is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Annotation on the agent's DaemonSet: [`YES`] is the order to leave the nodes.
pub const ANNOTATION_UNINSTALL: &str = "weft.dev/uninstall";
/// Annotation on an agent's pod: [`YES`] once nothing of weft's is left on its node.
pub const ANNOTATION_UNINSTALLED: &str = "weft.dev/uninstalled";
/// The value that counts.
pub const YES: &str = "true";

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

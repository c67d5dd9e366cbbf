//! The way to the API server.

use std::path::Path;

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::SourceError;

/// Connects as `place` says: a kubeconfig's path; or, if it is empty, as the pod that this runs in,
/// else as `KUBECONFIG` (or `~/.kube/config`) says. Nothing is sent yet.
pub async fn client(place: &str) -> Result<Client, SourceError> {
    // A process that has chosen before keeps its choice.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let other = |what: String| SourceError::Other(what);
    let config = if place.is_empty() {
        match Config::incluster() {
            Ok(config) => config,
            Err(_) => Config::from_kubeconfig(&KubeConfigOptions::default())
                .await
                .map_err(|error| {
                    other(format!(
                        "the API server is not known: run in a pod, or set KUBECONFIG: {error}"
                    ))
                })?,
        }
    } else {
        let kubeconfig = Kubeconfig::read_from(Path::new(place))
            .map_err(|error| other(format!("read the kubeconfig {place}: {error}")))?;
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(|error| other(format!("use the kubeconfig {place}: {error}")))?
    };
    let server = config.cluster_url.to_string();
    Client::try_from(config).map_err(|error| other(format!("connect to {server}: {error}")))
}

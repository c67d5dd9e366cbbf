//! The plugin's own way to the API: a kubeconfig with a token that is bounded in time, renewed at half
//! of its life.
//!
//! Flows in: tokens of the plugin's ServiceAccount (TokenRequest). Flows out: the file that the chained
//! entry names. The plugin uses it only while the agent is away.

use std::{io, path::PathBuf, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, Client, api::PostParams};
use serde_json::json;
use tokio::{sync::watch, time::timeout};
use tracing::{info, warn};

use super::{BACKOFF, Place, persist};
use crate::install::{InstallError, Installer};

/// How long a token is asked for. The server may shorten it.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// Even a server with a clock of its own is not asked more often.
const SHORTEST: Duration = Duration::from_secs(60);
/// Where the kubelet puts the API server's root into every pod.
const ROOT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// How the plugin reaches the API server.
#[derive(Clone, Debug)]
pub struct Server {
    /// `https://ADDRESS:PORT`
    pub url: String,
    /// Its root, PEM; read anew for each token.
    pub root: PathBuf,
}

impl Server {
    /// As every pod is told it, through `get`, which reads the environment.
    pub fn of_this_pod(get: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let host = get("KUBERNETES_SERVICE_HOST").filter(|host| !host.is_empty())?;
        let port = get("KUBERNETES_SERVICE_PORT")?;
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        Some(Self {
            url: format!("https://{host}:{port}"),
            root: ROOT.into(),
        })
    }
}

/// A kubeconfig. JSON is YAML too.
pub fn text(server: &str, root: &[u8], token: &str) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "weft", "cluster": {
            "server": server,
            "certificate-authority-data": BASE64_STANDARD.encode(root),
        }}],
        "users": [{"name": "weft-cni", "user": {"token": token}}],
        "contexts": [{"name": "weft", "context": {"cluster": "weft", "user": "weft-cni"}}],
        "current-context": "weft",
    });
    format!("{config:#}\n")
}

/// Keeps the kubeconfig fresh, unless the node is being left.
pub async fn keep(
    client: Client,
    account: Place,
    server: Server,
    installer: Installer,
    mut uninstall: watch::Receiver<bool>,
) {
    let accounts: Api<ServiceAccount> = Api::namespaced(client, &account.namespace);
    let what = format!("get a token of service account {account} for the plugin");
    while uninstall.wait_for(|ordered| !ordered).await.is_ok() {
        let token = persist(&what, || request(&accounts, &account.name)).await;
        if *uninstall.borrow() {
            continue;
        }
        let written = write(&server, &installer, &token.value).await;
        let next = match written {
            Ok(()) => {
                info!(life = ?token.life, "the plugin's kubeconfig is fresh");
                (token.life / 2).max(SHORTEST)
            }
            Err(error) => {
                warn!(%error, "the plugin's kubeconfig is not fresh; trying again");
                BACKOFF.1
            }
        };
        // After an order that was taken back the file is gone.
        let _ = timeout(next, uninstall.changed()).await;
    }
}

pub(super) struct Token {
    pub(super) value: String,
    pub(super) life: Duration,
}

pub(super) async fn request(
    accounts: &Api<ServiceAccount>,
    name: &str,
) -> Result<Token, kube::Error> {
    let request = TokenRequest {
        spec: TokenRequestSpec {
            expiration_seconds: i64::try_from(LIFE.as_secs()).ok(),
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let parameters = PostParams::default();
    let granted = accounts
        .create_token_request(name, &parameters, &request)
        .await?;
    // The server says how long it gave: its clock may be another.
    let seconds = granted.spec.expiration_seconds.unwrap_or_default();
    Ok(Token {
        value: granted
            .status
            .map(|status| status.token)
            .unwrap_or_default(),
        life: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()).min(LIFE),
    })
}

async fn write(server: &Server, installer: &Installer, token: &str) -> Result<(), WriteError> {
    let (server, installer, token) = (server.clone(), installer.clone(), token.to_owned());
    let write = move || {
        let root = std::fs::read(&server.root).map_err(|source| WriteError::Root {
            path: server.root.clone(),
            source,
        })?;
        Ok(installer.write_kubeconfig(&text(&server.url, &root, &token))?)
    };
    tokio::task::spawn_blocking(write).await.unwrap_or(Ok(())) // An error: the runtime ends.
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("can't read the API server's root from {path}: {source}")]
    Root {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Install(#[from] InstallError),
}

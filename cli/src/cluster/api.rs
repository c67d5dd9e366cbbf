//! The cluster's API, as these commands use it: objects as JSON by their paths, and pages of pods
//! through the API's port-forward. In: a kubeconfig. Out: JSON.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use http::{Method, Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc2822};
use weft_api::names::SYSTEM_NAMESPACE;

use super::object::{name, namespace, text};

/// Who applies: by this the API knows which fields are ours.
pub(crate) const FIELD_MANAGER: &str = "weft-cli";
/// Objects a request: what the API's own clients ask for.
const PAGE: usize = 500;
/// More than any page of weft's parts needs.
const MAX_BODY: usize = 16 << 20;
/// How long a page of a pod may take.
const PAGE_TIME: Duration = Duration::from_secs(5);

/// Which cluster.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Connection {
    /// The kubeconfig; else $KUBECONFIG, else ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context; else its current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

/// A cluster's API.
#[derive(Clone)]
pub(crate) struct Cluster {
    client: Client,
}

impl Cluster {
    pub(crate) async fn connect(to: &Connection) -> anyhow::Result<Self> {
        let options = KubeConfigOptions {
            context: to.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = match &to.kubeconfig {
            Some(file) => {
                let kubeconfig = Kubeconfig::read_from(file)?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await
            }
            None => Config::from_kubeconfig(&options).await,
        }
        .context("no cluster to talk to: set KUBECONFIG, or give --kubeconfig and --context")?;
        let url = config.cluster_url.clone();
        let client = Client::try_from(config)?;
        let cluster = Self { client };
        cluster
            .get("/version")
            .await
            .with_context(|| format!("the API server at {url} does not answer"))?;
        Ok(cluster)
    }

    #[cfg(test)]
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: Vec<u8>,
    ) -> kube::Result<Value> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, kind)
            .body(body)
            .map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }

    /// One object, or another document; `None` if it is not there.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Option<Value>> {
        present(
            self.call(Method::GET, path, "application/json", Vec::new())
                .await,
        )
        .with_context(|| format!("can't get {path}"))
    }

    /// All objects below a path; `None` if there is no such kind.
    pub(crate) async fn list(&self, path: &str) -> anyhow::Result<Option<Vec<Value>>> {
        let mut all = Vec::new();
        let mut next = String::new();
        loop {
            let more = if path.contains('?') { '&' } else { '?' };
            let mut uri = format!("{path}{more}limit={PAGE}");
            if !next.is_empty() {
                uri.push_str("&continue=");
                uri.push_str(&next);
            }
            let Some(mut page) = self.get(&uri).await? else {
                return Ok(None);
            };
            next = text(&page, "/metadata/continue").to_owned();
            if let Some(Value::Array(items)) = page.get_mut("items").map(Value::take) {
                all.extend(items);
            }
            if next.is_empty() {
                return Ok(Some(all));
            }
        }
    }

    /// Server-side apply; returns the object as it is then.
    pub(crate) async fn apply(&self, object: &Value) -> anyhow::Result<Value> {
        let path = path(object);
        let uri = format!("{path}?fieldManager={FIELD_MANAGER}&force=true");
        let body = serde_json::to_vec(object)?;
        self.call(Method::PATCH, &uri, "application/apply-patch+yaml", body)
            .await
            .with_context(|| format!("can't apply {}", short(object)))
    }

    /// A JSON merge patch.
    pub(crate) async fn merge(&self, path: &str, patch: &Value) -> anyhow::Result<Value> {
        let uri = format!("{path}?fieldManager={FIELD_MANAGER}");
        let body = serde_json::to_vec(patch)?;
        self.call(Method::PATCH, &uri, "application/merge-patch+json", body)
            .await
            .with_context(|| format!("can't change {path}"))
    }

    /// Deletes an object and, in the background, what belongs to it; tells whether it was there.
    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<bool> {
        let uri = format!("{path}?propagationPolicy=Background");
        let deleted = self.call(Method::DELETE, &uri, "application/json", Vec::new());
        let deleted = present(deleted.await).with_context(|| format!("can't delete {path}"))?;
        Ok(deleted.is_some())
    }

    /// What time it is for the API server; to the second.
    pub(crate) async fn clock(&self) -> anyhow::Result<OffsetDateTime> {
        let request = Request::get("/version").body(Body::empty())?;
        let response = self.client.send(request).await?;
        let date = response.headers().get(header::DATE);
        let date = date.and_then(|date| date.to_str().ok());
        let date = date.context("the API server's answers bear no date")?;
        OffsetDateTime::parse(date, &Rfc2822).with_context(|| format!("not a date: {date}"))
    }

    /// A page of a pod of weft's, by the port that it listens on in its own network, loopback
    /// included.
    pub(crate) async fn page(
        &self,
        pod: &str,
        port: u16,
        page: &str,
    ) -> anyhow::Result<(u16, Bytes)> {
        let fetch = async {
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
            let mut forwarder = pods.portforward(pod, &[port]).await?;
            let stream = forwarder.take_stream(port).context("no stream")?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let connection = tokio::spawn(connection);
            let request = Request::get(page)
                .header(header::HOST, "localhost")
                .header(header::CONNECTION, "close")
                .body(Empty::<Bytes>::new())?;
            let response = sender.send_request(request).await?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
            connection.abort();
            anyhow::Ok((status, body))
        };
        match tokio::time::timeout(PAGE_TIME, fetch).await {
            Ok(result) => result,
            Err(_) => bail!("no answer within {} s", PAGE_TIME.as_secs()),
        }
        .with_context(|| format!("can't read {page} on port {port} of {SYSTEM_NAMESPACE}/{pod}"))
    }
}

fn present(result: kube::Result<Value>) -> anyhow::Result<Option<Value>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether an error is the API's refusal of rights.
pub(crate) fn is_forbidden(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(kube::Error::Api(status)) if status.code == 403)
    })
}

/// `kind/name`, as kubectl writes it.
pub(crate) fn short(object: &Value) -> String {
    format!("{}/{}", text(object, "/kind").to_lowercase(), name(object))
}

/// Where the API has an object.
pub(crate) fn path(object: &Value) -> String {
    let within = match namespace(object) {
        "" => String::new(),
        namespace => format!("namespaces/{namespace}/"),
    };
    let (version, kind) = (text(object, "/apiVersion"), text(object, "/kind"));
    format!(
        "{}/{within}{}/{}",
        root(version),
        plural(kind),
        name(object)
    )
}

/// Where the API has the kinds of a version.
pub(crate) fn root(version: &str) -> String {
    let prefix = if version.contains('/') { "apis" } else { "api" };
    format!("/{prefix}/{version}")
}

/// The resource of a kind: by the rule that all kinds of the manifests follow.
pub(crate) fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{kind}s"),
    }
}

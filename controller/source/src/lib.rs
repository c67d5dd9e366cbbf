//! Where objects come from: Kubernetes, or a folder of manifests, behind one interface.
//!
//! Flows in: objects as the API (or the folder that stands for it) shows them, with the API's
//! defaults applied and otherwise untouched, as JSON. Flows out: a stream of [`Event`]s, and
//! through [`Writer`] the few things that weft's parts write back.
//! Objects stay undecoded here: a malformed one must fail alone, where it is read.

pub mod defaults;
pub mod folder;
pub mod kubernetes;

use std::{collections::BTreeMap, fmt, future::Future, pin::Pin, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;

/// Identifies an object in the API.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectKey {
    /// API group; empty for the core group.
    pub group: String,
    /// Kind, as in `HTTPRoute`.
    pub kind: String,
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// An object as the API shows it: `apiVersion`, `kind`, `metadata`, `spec`, `status`, …
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Which object it is.
    pub key: ObjectKey,
    /// The whole object.
    pub value: Arc<Value>,
}

/// What a source tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The object is new or has changed.
    Applied(Object),
    /// The object is gone.
    Deleted(ObjectKey),
    /// Everything that existed when the watch began has been told. Sent once.
    Synced,
    /// Something could not be read as an object; it affects nothing else. `origin` says where
    /// (a file and document index), `error` what is wrong and what to do.
    Invalid {
        /// File (and document), or the object's key.
        origin: String,
        /// What is wrong.
        error: String,
    },
    /// What was told as [`Event::Invalid`] for this origin holds no longer.
    Valid {
        /// The origin, as it was told.
        origin: String,
    },
}

/// A boxed future, so that the traits below are object safe.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A source of objects.
pub trait Source: Send + Sync {
    /// Begins a watch of all kinds that weft reads. Events of one object are in order. The watch
    /// ends when the receiver is dropped.
    fn watch(&self) -> BoxFuture<'_, Result<mpsc::Receiver<Event>, SourceError>>;

    /// Reads one object now (the CNI plugin's and the agent's fall-back).
    fn get<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<Object>, SourceError>>;
}

/// What weft's parts write back.
pub trait Writer: Send + Sync {
    /// Replaces the `status.parents` entries of a route that belong to weft's controllerName;
    /// other controllers' entries stay. `parents` are RouteParentStatus values.
    fn write_route_parents<'a>(
        &'a self,
        key: &'a ObjectKey,
        parents: Vec<Value>,
    ) -> BoxFuture<'a, Result<(), SourceError>>;

    /// Sets one condition (by its `type`) in `status.conditions`.
    fn write_condition<'a>(
        &'a self,
        key: &'a ObjectKey,
        condition: Value,
    ) -> BoxFuture<'a, Result<(), SourceError>>;

    /// Sets annotations, or removes those whose value is `None`.
    fn annotate<'a>(
        &'a self,
        key: &'a ObjectKey,
        annotations: BTreeMap<String, Option<String>>,
    ) -> BoxFuture<'a, Result<(), SourceError>>;

    /// Sets conditions (by their `type`) and `supportedFeatures` in the status of an XMesh. Sources
    /// that know no such objects do nothing.
    fn write_mesh<'a>(
        &'a self,
        key: &'a ObjectKey,
        status: Value,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        let _ = (key, status);
        Box::pin(async { Ok(()) })
    }

    /// Makes an XMesh of weft's controllerName, if that kind is served and there is none of that name.
    fn create_mesh<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), SourceError>> {
        let _ = name;
        Box::pin(async { Ok(()) })
    }
}

/// Both directions of one source.
pub type SourceAndWriter = (Arc<dyn Source>, Arc<dyn Writer>);

/// Which objects a part of weft needs. `get` and the writer are not bound to it: what they may do
/// is a matter of the caller's rights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All kinds that the controller reads, of the whole cluster.
    Mesh,
    /// Namespaces, and the pods of this node: what agent and plugin need. The folder, small as it
    /// is, shows everything all the same.
    Node(String),
}

/// Opens what `spec` names: `folder:DIR`, `kubernetes` (from within a pod, else as `KUBECONFIG`
/// says) or `kubernetes:FILE` (a kubeconfig).
pub async fn open(spec: &str, scope: Scope) -> Result<SourceAndWriter, SourceError> {
    let (kind, place) = spec.split_once(':').unwrap_or((spec, ""));
    match (kind, place) {
        ("folder", root) if !root.is_empty() => {
            let source = folder::FolderSource::new(root);
            let writer = source.writer();
            Ok((Arc::new(source), Arc::new(writer)))
        }
        ("kubernetes", place) => {
            let client = kubernetes::client(place).await?;
            let source = kubernetes::KubernetesSource::new(client, scope);
            let writer = source.writer();
            Ok((Arc::new(source), Arc::new(writer)))
        }
        _ => Err(SourceError::Other(format!(
            "source {spec:?} is not known; give folder:DIR, kubernetes or kubernetes:KUBECONFIG"
        ))),
    }
}

/// Why a source could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The source can't be reached or read at all.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, with the path or address.
        what: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The object to write to does not exist.
    #[error("{0} does not exist")]
    NotFound(ObjectKey),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

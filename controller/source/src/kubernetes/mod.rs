//! The Kubernetes API as the source.
//!
//! Flows in: lists and watches of the kinds of a [`Scope`], as undecoded JSON without
//! `managedFields`. Flows out: [`Event`]s, and what [`KubernetesWriter`] sends back.
//!
//! - Kinds that come from CustomResourceDefinitions may be absent. Which of them are served, and in
//!   which version, is asked of discovery: when the metadata of a definition changes, and every
//!   minute besides, in case that may not be watched. When a kind is gone, so are its objects.
//! - Objects are told again only if their version changed; what vanished while a watch was broken is
//!   told as deleted.

mod client;
mod kinds;
mod place;
mod raw;
mod reflect;
mod seen;
mod watch;
mod writer;

#[cfg(any(test, feature = "fake"))]
pub mod fake;

use std::{collections::BTreeMap, sync::Arc};

use kube::{Api, Client, core::ApiResource};
use parking_lot::RwLock;
use tokio::sync::mpsc;

pub use client::client;
pub use place::Place;
pub use writer::KubernetesWriter;

use crate::{BoxFuture, Event, Object, ObjectKey, Scope, Source, SourceError};
use kinds::Kind;
use raw::Raw;
use seen::Seen;

/// Events that may wait for a slow reader; then the watches wait, too.
const EVENT_QUEUE: usize = 1024;

/// Reads objects from the API.
pub struct KubernetesSource {
    shared: Arc<Shared>,
    scope: Scope,
}

/// What the source and its writers have in common.
struct Shared {
    client: Client,
    seen: Arc<Seen>,
    /// In which version custom kinds are served, as the watch has found.
    served: RwLock<BTreeMap<&'static str, ApiResource>>,
}

impl KubernetesSource {
    /// A source over what `client` reaches. Nothing is read yet.
    pub fn new(client: Client, scope: Scope) -> Self {
        let shared = Shared {
            client,
            seen: Arc::default(),
            served: RwLock::default(),
        };
        Self {
            shared: Arc::new(shared),
            scope,
        }
    }

    /// A writer of statuses and annotations of the same API.
    pub fn writer(&self) -> KubernetesWriter {
        KubernetesWriter::new(Arc::clone(&self.shared))
    }
}

impl Source for KubernetesSource {
    fn watch(&self) -> BoxFuture<'_, Result<mpsc::Receiver<Event>, SourceError>> {
        Box::pin(async {
            let (sender, receiver) = mpsc::channel(EVENT_QUEUE);
            let watch = watch::run(Arc::clone(&self.shared), self.scope.clone(), sender);
            tokio::spawn(watch);
            Ok(receiver)
        })
    }

    fn get<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<Object>, SourceError>> {
        Box::pin(async move {
            let (api, resource) = self.shared.api(key)?;
            let raw = api.get_opt(&key.name).await;
            match raw.map_err(|error| failed("read", key, &error))? {
                None => Ok(None),
                Some(raw) => raw
                    .into_object(&resource)
                    .map(Some)
                    .map_err(|(_, error)| SourceError::Other(format!("{key}: {error}"))),
            }
        })
    }
}

impl Shared {
    /// The API of an object's kind, in the version that is served.
    fn api(&self, key: &ObjectKey) -> Result<(Api<Raw>, ApiResource), SourceError> {
        let kind = Kind::of_key(key).ok_or_else(|| {
            SourceError::Other(format!("{key} is of a kind that weft does not read"))
        })?;
        let served = self.served.read().get(kind.kind).cloned();
        let resource = served.unwrap_or_else(|| kind.best());
        let client = self.client.clone();
        let api = match key.namespace.as_str() {
            "" => Api::all_with(client, &resource),
            namespace => Api::namespaced_with(client, namespace, &resource),
        };
        Ok((api, resource))
    }
}

/// An error of the API as a source's.
fn failed(action: &str, key: &ObjectKey, error: &kube::Error) -> SourceError {
    match error {
        kube::Error::Api(status) if status.code == 404 => SourceError::NotFound(key.clone()),
        kube::Error::Api(status) if status.code == 403 => SourceError::Other(format!(
            "{action} {key}: {status}; give this service account the right to"
        )),
        error => SourceError::Other(format!("{action} {key}: {error}")),
    }
}

#[cfg(test)]
mod tests;

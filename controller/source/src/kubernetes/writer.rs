//! Writes status and annotations to the API.
//!
//! `status.parents` of routes is an atomic list in the Gateway API's definitions: server-side apply
//! can't own a part of it. So the whole list is applied, other controllers' entries as they were last
//! seen, under the condition that the object is still in the version in which they were seen; if it is
//! not (409), it is read anew. Conditions of pods and meshes merge by their type: there only what is
//! ours is sent. Annotations are a merge patch.

use std::{collections::BTreeMap, sync::Arc};

use kube::{
    Api, Error,
    api::{DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use weft_api::names::CONTROLLER_NAME;

use super::{Shared, failed, raw::Raw, seen::Route};
use crate::{BoxFuture, ObjectKey, SourceError, Writer};

/// The name under which the API books our fields.
const FIELD_MANAGER: &str = "weft-controller";

/// How often a route's status is tried again on a version that turned out to be old.
const CONFLICTS: usize = 5;

/// Writes to the API.
pub struct KubernetesWriter {
    shared: Arc<Shared>,
}

impl KubernetesWriter {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn route_parents(&self, key: &ObjectKey, parents: Vec<Value>) -> Result<(), SourceError> {
        let (api, resource) = self.shared.api(key)?;
        let mut known = self.shared.seen.route(key);
        let mut conflict = None;
        for _ in 0..=CONFLICTS {
            let route = match known.take() {
                Some(route) => route,
                None => {
                    let raw = api.get(&key.name).await;
                    self.note(key, raw.map_err(|error| failed("read", key, &error))?)
                }
            };
            let all: Vec<&Value> = route.foreign.iter().chain(&parents).collect();
            let body = json!({
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                "metadata": {
                    "name": key.name,
                    "namespace": key.namespace,
                    "resourceVersion": route.version,
                },
                "status": { "parents": all },
            });
            let params = PatchParams::apply(FIELD_MANAGER).force();
            match api
                .patch_status(&key.name, &params, &Patch::Apply(&body))
                .await
            {
                Ok(raw) => {
                    self.note(key, raw);
                    return Ok(());
                }
                Err(Error::Api(status)) if status.code == 409 => conflict = Some(status),
                Err(error) => return Err(failed("write the status of", key, &error)),
            }
        }
        let conflict = conflict.map(|status| status.message).unwrap_or_default();
        Err(SourceError::Other(format!(
            "write the status of {key}: it changes all the time: {conflict}"
        )))
    }

    /// The next write builds upon what this answer shows.
    fn note(&self, key: &ObjectKey, raw: Raw) -> Route {
        let route = Route::of(raw.value());
        self.shared.seen.update(key, &route);
        route
    }

    async fn apply_status(&self, key: &ObjectKey, status: Value) -> Result<(), SourceError> {
        let (api, resource) = self.shared.api(key)?;
        let mut metadata = json!({ "name": key.name });
        if !key.namespace.is_empty() {
            metadata["namespace"] = key.namespace.as_str().into();
        }
        let body = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": metadata,
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let written = api
            .patch_status(&key.name, &params, &Patch::Apply(&body))
            .await;
        written
            .map(drop)
            .map_err(|error| failed("write the status of", key, &error))
    }
}

impl Writer for KubernetesWriter {
    fn write_route_parents<'a>(
        &'a self,
        key: &'a ObjectKey,
        parents: Vec<Value>,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(self.route_parents(key, parents))
    }

    fn write_condition<'a>(
        &'a self,
        key: &'a ObjectKey,
        condition: Value,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(self.apply_status(key, json!({ "conditions": [condition] })))
    }

    fn write_mesh<'a>(
        &'a self,
        key: &'a ObjectKey,
        status: Value,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(self.apply_status(key, status))
    }

    fn create_mesh<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let Some(resource) = self.shared.served.read().get("XMesh").cloned() else {
                return Ok(());
            };
            let spec = json!({ "spec": { "controllerName": CONTROLLER_NAME } });
            let mesh = DynamicObject::new(name, &resource).data(spec);
            let api: Api<DynamicObject> = Api::all_with(self.shared.client.clone(), &resource);
            let params = PostParams {
                field_manager: Some(FIELD_MANAGER.to_owned()),
                ..PostParams::default()
            };
            match api.create(&params, &mesh).await {
                Ok(_) => Ok(()),
                Err(Error::Api(status)) if status.code == 409 => Ok(()),
                Err(error) => Err(SourceError::Other(format!(
                    "make the XMesh {name}: {error}"
                ))),
            }
        })
    }

    fn annotate<'a>(
        &'a self,
        key: &'a ObjectKey,
        annotations: BTreeMap<String, Option<String>>,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let (api, _) = self.shared.api(key)?;
            // A null removes.
            let body = json!({ "metadata": { "annotations": annotations } });
            let params = PatchParams::default();
            let written = api
                .patch_metadata(&key.name, &params, &Patch::Merge(&body))
                .await;
            written
                .map(drop)
                .map_err(|error| failed("annotate", key, &error))
        })
    }
}

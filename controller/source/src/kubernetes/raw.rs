//! An object as the API sends it, of which only the few fields that a watch needs are read.
//!
//! Decoding never fails: one object that is not what it should be must not stop the list or watch
//! that it comes in.

use std::{borrow::Cow, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, core::ApiResource};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::{Object, ObjectKey};

/// An object, undecoded.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    /// Name, namespace and version only.
    metadata: ObjectMeta,
    value: Value,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            // Who set which field is a large part of many objects, and nothing to weft.
            metadata.remove("managedFields");
        }
        let field = |name: &str| Some(value.get("metadata")?.get(name)?.as_str()?.to_owned());
        let metadata = ObjectMeta {
            name: field("name"),
            namespace: field("namespace"),
            resource_version: field("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, value })
    }
}

impl Raw {
    /// The object's version; empty if it tells none.
    pub(super) fn version(&self) -> &str {
        self.metadata
            .resource_version
            .as_deref()
            .unwrap_or_default()
    }

    /// The whole object.
    pub(super) fn value(&self) -> &Value {
        &self.value
    }

    /// The object with its key, or where it came from and what is wrong with it.
    pub(super) fn into_object(self, kind: &ApiResource) -> Result<Object, (String, String)> {
        let Self {
            metadata,
            mut value,
        } = self;
        let name = metadata.name.unwrap_or_default();
        let namespace = metadata.namespace.unwrap_or_default();
        let key = ObjectKey {
            group: kind.group.clone(),
            kind: kind.kind.clone(),
            namespace,
            name,
        };
        let Some(fields) = value.as_object_mut().filter(|_| !key.name.is_empty()) else {
            let origin = format!("{} of the API", kind.plural);
            return Err((origin, "it has no metadata.name".to_owned()));
        };
        // Lists of built-in kinds leave these out.
        fields.insert("apiVersion".into(), kind.api_version.as_str().into());
        fields.insert("kind".into(), kind.kind.as_str().into());
        Ok(Object {
            key,
            value: Arc::new(value),
        })
    }
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = kube::core::DynamicResourceScope;

    fn kind(kind: &ApiResource) -> Cow<'_, str> {
        kind.kind.as_str().into()
    }

    fn group(kind: &ApiResource) -> Cow<'_, str> {
        kind.group.as_str().into()
    }

    fn version(kind: &ApiResource) -> Cow<'_, str> {
        kind.version.as_str().into()
    }

    fn api_version(kind: &ApiResource) -> Cow<'_, str> {
        kind.api_version.as_str().into()
    }

    fn plural(kind: &ApiResource) -> Cow<'_, str> {
        kind.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

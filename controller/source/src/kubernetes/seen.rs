//! What of the objects that were seen is needed to write their status.

use std::collections::HashMap;

use parking_lot::RwLock;
use serde_json::Value;
use weft_api::names::CONTROLLER_NAME;

use super::kinds::Kind;
use crate::{Object, ObjectKey};

/// Of each route, its version and other controllers' part in its status: a write says that it
/// builds upon them, and is refused if they are no longer so.
#[derive(Default)]
pub(super) struct Seen {
    routes: RwLock<HashMap<ObjectKey, Route>>,
}

/// A route as it was seen.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) version: String,
    /// Entries of `status.parents` that are not ours.
    pub(super) foreign: Vec<Value>,
}

impl Seen {
    /// Notes an object, if it is a route.
    pub(super) fn note(&self, object: &Object) {
        let Object { key, value } = object;
        if is_route(key) {
            self.routes.write().insert(key.clone(), Route::of(value));
        }
    }

    /// Forgets an object.
    pub(super) fn forget(&self, key: &ObjectKey) {
        if is_route(key) {
            self.routes.write().remove(key);
        }
    }

    /// A route as it was last seen.
    pub(super) fn route(&self, key: &ObjectKey) -> Option<Route> {
        self.routes.read().get(key).cloned()
    }

    /// Notes a route as an answer showed it, if it is still there.
    pub(super) fn update(&self, key: &ObjectKey, route: &Route) {
        if let Some(known) = self.routes.write().get_mut(key) {
            *known = route.clone();
        }
    }
}

impl Route {
    pub(super) fn of(value: &Value) -> Self {
        let version = value.pointer("/metadata/resourceVersion");
        let parents = value.pointer("/status/parents").and_then(Value::as_array);
        let foreign = parents.into_iter().flatten().filter(|entry| {
            entry.get("controllerName").and_then(Value::as_str) != Some(CONTROLLER_NAME)
        });
        Self {
            version: version.and_then(Value::as_str).unwrap_or_default().into(),
            foreign: foreign.cloned().collect(),
        }
    }
}

fn is_route(key: &ObjectKey) -> bool {
    Kind::of_key(key).is_some_and(|kind| kind.custom && kind.kind.ends_with("Route"))
}

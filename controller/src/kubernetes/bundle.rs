//! The trust bundle in a ConfigMap, for proxies to mount and for whoever else verifies certificates
//! of the mesh.

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;

use super::{FIELD_MANAGER, Place, until_answered};
use crate::leadership::Leadership;

/// The key that holds the roots.
const KEY: &str = "root-cert.pem";

/// The ConfigMap, and what it should hold.
pub struct Bundle {
    api: Api<ConfigMap>,
    place: Place,
    pem: String,
}

impl Bundle {
    /// Keeps `pem` in the ConfigMap at `place`.
    pub fn new(client: Client, place: Place, pem: String) -> Self {
        let api = Api::namespaced(client, &place.namespace);
        Self { api, place, pem }
    }

    /// Writes the ConfigMap if it is not there: the first replica's, before it serves anybody.
    pub async fn provide(&self) {
        let what = format!("read the ConfigMap {}", self.place);
        let name = &self.place.name;
        let found = until_answered(&what, || self.api.get_opt(name)).await;
        if found.is_none() {
            self.write().await;
        }
    }

    /// Keeps the ConfigMap as it should be, while this replica leads: if two replicas that know
    /// different roots both did, there would be no end to it.
    pub async fn keep(&self, mut leadership: Leadership) {
        loop {
            leadership.acquired().await;
            tokio::select! {
                () = self.repair() => {}
                () = leadership.lost() => {}
            }
        }
    }

    async fn repair(&self) {
        let fields = format!("metadata.name={}", self.place.name);
        let config = watcher::Config::default().fields(&fields);
        let events = watcher(self.api.clone(), config).default_backoff();
        pin_mut!(events);
        let mut found = false;
        while let Some(event) = events.next().await {
            let fine = match event {
                Ok(watcher::Event::Init) => {
                    found = false;
                    true
                }
                Ok(watcher::Event::InitApply(map) | watcher::Event::Apply(map)) => {
                    found = true;
                    self.is_held_by(&map)
                }
                Ok(watcher::Event::InitDone) => found,
                Ok(watcher::Event::Delete(_)) => false,
                Err(error) => {
                    let place = &self.place;
                    tracing::warn!(%place, %error, "the trust bundle's ConfigMap can't be watched");
                    true
                }
            };
            if !fine {
                self.write().await;
            }
        }
    }

    fn is_held_by(&self, map: &ConfigMap) -> bool {
        let held = map.data.as_ref().and_then(|data| data.get(KEY));
        held == Some(&self.pem)
    }

    async fn write(&self) {
        let body = Patch::Apply(json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": self.place.name, "namespace": self.place.namespace },
            "data": { KEY: self.pem },
        }));
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let what = format!("write the trust bundle to the ConfigMap {}", self.place);
        let (api, name) = (&self.api, &self.place.name);
        until_answered(&what, || api.patch(name, &params, &body)).await;
        tracing::info!(config_map = %self.place, "wrote the trust bundle");
    }
}

//! One kind of the API: what the server lists and watches in, [`Event`]s out.
//!
//! Like kube's own watcher, but with lists that are never older than what was seen before (the
//! watcher's streaming lists may come from a cache that lags behind, and keep objects that vanish
//! while a list is broken off), and with events only for objects that differ from what was told.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt, pin_mut};
use kube::{
    Api, Error,
    api::{ListParams, WatchEvent, WatchParams},
    core::ApiResource,
    runtime::watcher::DefaultBackoff,
};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{raw::Raw, seen::Seen};
use crate::{Event, Object, ObjectKey};

/// The most objects of one answer where the server has no streaming lists.
const PAGE: u32 = 500;

/// A watch on which nothing comes for so long is taken up anew: the server sends bookmarks about
/// once a minute, so its connection may be dead.
const IDLE: Duration = Duration::from_secs(150);

/// One kind that is followed.
pub(super) struct Reflector {
    pub(super) api: Api<Raw>,
    pub(super) resource: ApiResource,
    /// As in `spec.nodeName=NAME`; none for all objects.
    pub(super) fields: Option<String>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) seen: Arc<Seen>,
    /// Versions of the objects that were told.
    pub(super) told: HashMap<ObjectKey, String>,
    /// The server has refused streaming lists.
    pub(super) paged: bool,
}

/// Why following stopped for now.
enum Broken {
    /// The server said no, or the connection broke.
    Failed(Error),
    /// Changes since the last version are no longer to be had: list anew.
    Expired,
    /// Nobody reads the events any more.
    Unheard,
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(status) if status.code == 410 => Self::Expired,
            error => Self::Failed(error),
        }
    }
}

impl<T> From<mpsc::error::SendError<T>> for Broken {
    fn from(_: mpsc::error::SendError<T>) -> Self {
        Self::Unheard
    }
}

impl Reflector {
    /// Follows the kind until nobody reads the events, or the future is dropped. `listed` is called
    /// each time that all objects are known.
    pub(super) async fn run(&mut self, listed: impl Fn()) {
        let mut backoff = DefaultBackoff::default();
        let mut version = None;
        loop {
            let result = match &mut version {
                None => match self.list().await {
                    Ok(now) => {
                        listed();
                        version = Some(now);
                        backoff = DefaultBackoff::default();
                        continue;
                    }
                    Err(broken) => Err(broken),
                },
                Some(version) => self.watch(version).await,
            };
            match result {
                // The server ends each watch after some minutes.
                Ok(()) => continue,
                Err(Broken::Unheard) => return,
                Err(Broken::Expired) => version = None,
                Err(Broken::Failed(Error::Api(status)))
                    if version.is_none() && !self.paged && refuses_streaming(status.code) =>
                {
                    let kind = &self.resource.kind;
                    tracing::debug!(%kind, %status, "the server has no streaming lists");
                    self.paged = true;
                    continue;
                }
                Err(Broken::Failed(error)) => {
                    let kind = &self.resource.kind;
                    let hint = match &error {
                        Error::Api(status) if status.code == 403 => {
                            "; give this service account get, list and watch for it"
                        }
                        _ => "",
                    };
                    tracing::warn!(%kind, %error, "a kind can't be watched; trying again{hint}");
                }
            }
            sleep(backoff.next().unwrap_or(IDLE)).await;
        }
    }

    /// The objects as they are now, and what has vanished. Returns their common version.
    async fn list(&mut self) -> Result<String, Broken> {
        let mut present = HashSet::new();
        let version = if self.paged {
            self.list_pages(&mut present).await?
        } else {
            self.list_stream(&mut present).await?
        };
        let gone: Vec<_> = self
            .told
            .keys()
            .filter(|key| !present.contains(*key))
            .cloned()
            .collect();
        for key in gone {
            self.delete(key).await?;
        }
        Ok(version)
    }

    async fn list_pages(&mut self, present: &mut HashSet<ObjectKey>) -> Result<String, Broken> {
        let mut params = ListParams {
            field_selector: self.fields.clone(),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        loop {
            let list = self.api.list(&params).await?;
            for raw in list.items {
                present.extend(self.apply(raw).await?);
            }
            params.continue_token = list.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                return Ok(list.metadata.resource_version.unwrap_or_default());
            }
        }
    }

    async fn list_stream(&mut self, present: &mut HashSet<ObjectKey>) -> Result<String, Broken> {
        let params = WatchParams {
            send_initial_events: true,
            ..self.watch_params()
        };
        // No version: as fresh as a list.
        let stream = self.api.watch(&params, "").await?;
        pin_mut!(stream);
        while let Some(event) = next(&mut stream).await {
            match event? {
                WatchEvent::Added(raw) | WatchEvent::Modified(raw) => {
                    present.extend(self.apply(raw).await?);
                }
                WatchEvent::Deleted(raw) => {
                    if let Ok(object) = raw.into_object(&self.resource) {
                        present.remove(&object.key);
                    }
                }
                WatchEvent::Bookmark(mark) => {
                    let end = mark.metadata.annotations.get("k8s.io/initial-events-end");
                    if end.is_some_and(|end| end == "true") {
                        return Ok(mark.metadata.resource_version);
                    }
                }
                WatchEvent::Error(status) => return Err(Error::Api(status).into()),
            }
        }
        // Broken off: begin again, after a pause.
        let end = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        Err(Error::ReadEvents(end).into())
    }

    async fn watch(&mut self, version: &mut String) -> Result<(), Broken> {
        let stream = self.api.watch(&self.watch_params(), version).await?;
        pin_mut!(stream);
        while let Some(event) = next(&mut stream).await {
            match event? {
                WatchEvent::Added(raw) | WatchEvent::Modified(raw) => {
                    let now = raw.version().to_owned();
                    self.apply(raw).await?;
                    *version = now;
                }
                WatchEvent::Deleted(raw) => {
                    let now = raw.version().to_owned();
                    if let Ok(object) = raw.into_object(&self.resource) {
                        self.delete(object.key).await?;
                    }
                    *version = now;
                }
                WatchEvent::Bookmark(mark) => *version = mark.metadata.resource_version,
                WatchEvent::Error(status) => return Err(Error::Api(status).into()),
            }
        }
        Ok(())
    }

    fn watch_params(&self) -> WatchParams {
        WatchParams {
            field_selector: self.fields.clone(),
            ..WatchParams::default()
        }
    }

    /// Tells of an object, unless this version of it was told. Returns its key, if it has one.
    async fn apply(&mut self, raw: Raw) -> Result<Option<ObjectKey>, Broken> {
        let version = raw.version().to_owned();
        let object = match raw.into_object(&self.resource) {
            Ok(object) => object,
            Err((origin, error)) => {
                self.events.send(Event::Invalid { origin, error }).await?;
                return Ok(None);
            }
        };
        let Object { key, .. } = &object;
        if !version.is_empty() && self.told.get(key) == Some(&version) {
            return Ok(Some(object.key));
        }
        let key = key.clone();
        self.seen.note(&object);
        self.events.send(Event::Applied(object)).await?;
        self.told.insert(key.clone(), version);
        Ok(Some(key))
    }

    async fn delete(&mut self, key: ObjectKey) -> Result<(), Broken> {
        self.seen.forget(&key);
        // Told first: following may be broken off at any time, and takes up from what is noted.
        self.events.send(Event::Deleted(key.clone())).await?;
        self.told.remove(&key);
        Ok(())
    }

    /// Tells that all objects are gone: their kind is.
    pub(super) async fn clear(&mut self) {
        let keys: Vec<_> = self.told.keys().cloned().collect();
        for key in keys {
            if self.delete(key).await.is_err() {
                return;
            }
        }
    }
}

/// Servers refuse parameters that they don't know as a bad or unprocessable request.
fn refuses_streaming(code: u16) -> bool {
    matches!(code, 400 | 422)
}

async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    timeout(IDLE, stream.next()).await.ok().flatten()
}

//! What the controller knows: the world of objects, and what could not be read of it.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use weft_source::ObjectKey;

use crate::compile::World;

/// Shared by the pipeline, which changes it, and the services, which ask.
pub struct State {
    world: RwLock<World>,
    /// Counts batches of objects.
    revision: watch::Sender<u64>,
    invalid: Mutex<Invalid>,
}

/// What can't be read, and why.
#[derive(Default)]
struct Invalid {
    /// As the source tells it, by file and document.
    documents: BTreeMap<String, String>,
    /// As the compiler tells it.
    objects: BTreeMap<ObjectKey, String>,
}

/// Something that can't be read, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InvalidEntry {
    /// A file and document, or an object.
    pub origin: String,
    /// What is wrong.
    pub error: String,
}

impl State {
    /// Begins with this world.
    pub fn new(world: World) -> Self {
        Self {
            world: RwLock::new(world),
            revision: watch::Sender::new(0),
            invalid: Mutex::default(),
        }
    }

    /// Changes the world.
    pub fn update<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let result = change(&mut self.world.write());
        self.revision.send_modify(|revision| *revision += 1);
        result
    }

    /// Whether a pod of that service account runs on the node, or does before `patience` ends.
    pub async fn runs_on(
        &self,
        node: &str,
        namespace: &str,
        service_account: &str,
        patience: Duration,
    ) -> bool {
        let deadline = Instant::now() + patience;
        let mut revision = self.revision.subscribe();
        loop {
            if self
                .world
                .read()
                .is_running_on(node, namespace, service_account)
            {
                return true;
            }
            if !matches!(timeout_at(deadline, revision.changed()).await, Ok(Ok(()))) {
                return false;
            }
        }
    }

    /// Notes that a document can't be read (with the reason), or can again. Returns whether that is
    /// news.
    pub fn set_invalid_document(&self, origin: &str, error: Option<&str>) -> bool {
        let mut invalid = self.invalid.lock();
        match error {
            Some(error) => {
                invalid
                    .documents
                    .insert(origin.into(), error.into())
                    .as_deref()
                    != Some(error)
            }
            None => invalid.documents.remove(origin).is_some(),
        }
    }

    /// Notes which objects the compiler can't read. Returns what is news.
    pub fn set_invalid_objects(&self, objects: &BTreeMap<ObjectKey, String>) -> Vec<InvalidEntry> {
        let mut invalid = self.invalid.lock();
        if invalid.objects == *objects {
            return Vec::new();
        }
        let news = objects
            .iter()
            .filter(|(key, error)| invalid.objects.get(key) != Some(error));
        let news = news.map(|(key, error)| entry(key, error)).collect();
        invalid.objects.clone_from(objects);
        news
    }

    /// Everything that can't be read now.
    pub fn invalid(&self) -> Vec<InvalidEntry> {
        let invalid = self.invalid.lock();
        let documents = invalid
            .documents
            .iter()
            .map(|(origin, error)| entry(origin, error));
        documents
            .chain(invalid.objects.iter().map(|(key, error)| entry(key, error)))
            .collect()
    }
}

fn entry(origin: impl ToString, error: &str) -> InvalidEntry {
    InvalidEntry {
        origin: origin.to_string(),
        error: error.to_owned(),
    }
}

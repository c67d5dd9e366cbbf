//! The resources in force as the controller sent them, with their versions: what a snapshot saves
//! and a resumed stream names. Only the one who applies looks at this, never the data path.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use foldhash::fast::RandomState;

use super::resource::Kind;

/// A resource as the controller sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Its name, unique within its kind.
    pub name: String,
    /// The controller's version of it, opaque.
    pub version: String,
    /// The encoded message.
    pub body: Bytes,
}

/// A change of some resources of one kind.
#[derive(Clone, Debug)]
pub struct Delta {
    /// The kind.
    pub kind: Kind,
    /// New or changed.
    pub updated: Vec<Resource>,
    /// Names of those that are gone.
    pub removed: Vec<String>,
}

/// A resource that was refused. The last good one of its name stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {reason}")]
pub struct Rejected {
    /// The resource's name.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// A refusal that still stands: neither a good version nor a removal came since.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) version: String,
    pub(super) reason: String,
    pub(super) at: SystemTime,
}

#[derive(Debug)]
pub(super) struct HeldResource {
    pub(super) version: Box<str>,
    pub(super) body: Bytes,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Held {
    kinds: [HashMap<Arc<str>, HeldResource, RandomState>; 4],
    pub(super) rejections: BTreeMap<(Kind, String), Standing>,
}

impl Held {
    pub(super) fn of(&self, kind: Kind) -> &HashMap<Arc<str>, HeldResource, RandomState> {
        &self.kinds[kind as usize]
    }

    pub(super) fn accept(&mut self, kind: Kind, resource: Resource) {
        self.rejections.remove(&(kind, resource.name.clone()));
        let held = HeldResource {
            version: resource.version.into(),
            body: resource.body,
        };
        self.kinds[kind as usize].insert(resource.name.into(), held);
    }

    pub(super) fn reject(&mut self, kind: Kind, resource: Resource, reason: &str) {
        let standing = Standing {
            version: resource.version,
            reason: reason.to_owned(),
            at: SystemTime::now(),
        };
        self.rejections.insert((kind, resource.name), standing);
    }

    pub(super) fn remove(&mut self, kind: Kind, name: &str) {
        self.rejections.remove(&(kind, name.to_owned()));
        self.kinds[kind as usize].remove(name);
    }
}

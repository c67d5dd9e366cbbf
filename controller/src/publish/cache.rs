//! The resources as they are now, encoded, by type and name.

use std::{collections::BTreeMap, sync::Arc};

use sha2::{Digest, Sha256};

use super::ResourceType;

/// A resource's version: a hash of its contents, so that it outlives the controller. A proxy that
/// comes back to another controller is sent only what differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version(u64);

/// An encoded resource.
#[derive(Clone, Debug)]
pub struct Published {
    /// Its version.
    pub version: Version,
    /// Protobuf.
    pub body: Arc<[u8]>,
}

/// One resource's new contents, or its removal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// Type of the resource.
    pub kind: ResourceType,
    /// Name of the resource.
    pub name: String,
    /// Protobuf; none if the resource is gone.
    pub body: Option<Vec<u8>>,
}

/// All resources.
#[derive(Debug, Default)]
pub struct Cache {
    types: [BTreeMap<Arc<str>, Published>; ResourceType::ALL.len()],
}

impl Cache {
    /// Takes an update over. Gives the name back if it changed anything.
    pub fn apply(&mut self, update: Update) -> Option<Arc<str>> {
        let resources = &mut self.types[update.kind as usize];
        let known = resources.get_key_value(update.name.as_str());
        let name = known.map_or_else(|| update.name.as_str().into(), |(name, _)| Arc::clone(name));
        let Some(body) = update.body else {
            return resources.remove(&name).map(|_| name);
        };
        let version = Version::of(&body);
        if known.is_some_and(|(_, old)| old.version == version) {
            return None;
        }
        resources.insert(
            Arc::clone(&name),
            Published {
                version,
                body: body.into(),
            },
        );
        Some(name)
    }

    /// All resources of a type.
    pub fn all(&self, kind: ResourceType) -> &BTreeMap<Arc<str>, Published> {
        &self.types[kind as usize]
    }

    /// One resource.
    pub fn get(&self, kind: ResourceType, name: &str) -> Option<&Published> {
        self.all(kind).get(name)
    }

    /// The version of one resource; none if it does not exist.
    pub fn version(&self, kind: ResourceType, name: &str) -> Option<Version> {
        self.get(kind, name).map(|resource| resource.version)
    }
}

impl Version {
    fn of(body: &[u8]) -> Self {
        let digest: [u8; 32] = Sha256::digest(body).into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }

    /// Reads a version from the wire; one that is not ours equals no other.
    pub fn parse(text: &str) -> Option<Self> {
        u64::from_str_radix(text, 16).ok().map(Self)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

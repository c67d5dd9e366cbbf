//! A hash map in shards, each behind its own lock, so that a writer (the one that applies the
//! configuration) stops few readers, and shortly even when a shard grows.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::{BuildHasher, Hash},
};

use foldhash::fast::RandomState;
use parking_lot::RwLock;

/// Enough that growing one of 10,000 entries copies some hundreds of them.
const SHARDS: usize = 16;

type Shard<K, V> = RwLock<HashMap<K, V, RandomState>>;

/// The map.
#[derive(Debug)]
pub(super) struct Sharded<K, V> {
    shards: [Shard<K, V>; SHARDS],
    chooser: RandomState,
}

impl<K: Hash + Eq, V> Default for Sharded<K, V> {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| RwLock::default()),
            chooser: RandomState::default(),
        }
    }
}

impl<K: Hash + Eq, V> Sharded<K, V> {
    /// Reads the value of a key under the shard's read lock.
    pub(super) fn with<Q, R>(&self, key: &Q, read: impl FnOnce(&V) -> R) -> Option<R>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.shard(key).read().get(key).map(read)
    }

    /// All values, shard by shard.
    pub(super) fn values(&self) -> Vec<V>
    where
        V: Clone,
    {
        let shards = self.shards.iter();
        shards
            .flat_map(|shard| shard.read().values().cloned().collect::<Vec<_>>())
            .collect()
    }

    /// Inserts, returning what was there.
    pub(super) fn insert(&self, key: K, value: V) -> Option<V> {
        self.shard(&key).write().insert(key, value)
    }

    /// Removes, returning what was there.
    pub(super) fn remove<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.shard(key).write().remove(key)
    }

    /// Changes a value in place (made by default if absent); `change` returns whether it stays.
    pub(super) fn change(&self, key: K, change: impl FnOnce(&mut V) -> bool)
    where
        K: Clone,
        V: Default,
    {
        let mut shard = self.shard(&key).write();
        let value = shard.entry(key.clone()).or_default();
        if !change(value) {
            shard.remove(&key);
        }
    }

    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> &Shard<K, V> {
        // Not the low bits: each map uses its own hasher, but any bits of this one do.
        &self.shards[self.chooser.hash_one(key) as usize % SHARDS]
    }
}

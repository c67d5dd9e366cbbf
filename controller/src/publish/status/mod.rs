//! Status of routes and pods: what the compiler says and how the proxies stand, as conditions.

mod book;
mod conditions;
mod task;

use std::collections::BTreeSet;

pub use book::{Book, Write};
pub use task::StatusWriter;

/// How the connected proxies, of all replicas, stand towards some resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// How many proxies are connected.
    pub proxies: usize,
    /// Nodes of the proxies that have not acknowledged all of them.
    pub waiting: BTreeSet<String>,
    /// Resource, reason and node of every refusal.
    pub rejected: BTreeSet<(String, String, String)>,
    /// Other replicas of the controller whose proxies are not known.
    pub unknown: BTreeSet<String>,
}

impl Standing {
    /// Whether every proxy has acknowledged everything; true without proxies.
    pub fn is_acknowledged(&self) -> bool {
        self.waiting.is_empty() && self.rejected.is_empty() && self.unknown.is_empty()
    }
}

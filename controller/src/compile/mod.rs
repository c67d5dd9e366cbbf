//! The compiler: Kubernetes and Gateway API objects in, tables for proxies and route status out.
//!
//! Flows in: [`weft_source::Object`]s, one at a time, as undecoded JSON ([`World::apply`],
//! [`World::delete`]). Flows out: [`Compiled`], the resources of `weft_api::config` by name and
//! the status of each route. Nothing here knows a socket, a clock or a file.
//!
//! An object is read alone and tolerantly: what can't be understood in one rule of one route is
//! said in that route's status and changes nothing else. A compilation costs in proportion to
//! what changed since the last one ([`Work`] counts it), and the result is the same as if all
//! objects had been applied afresh in any order. The one thing that is remembered: a version of an
//! object that can't be read at all leaves the last good version of that object in force, and says so.
//!
//! # Choices where the standard leaves one
//! - A regular expression path ranks between exact and prefix paths; two of them rank equal in
//!   that respect, so methods, headers and parameters decide, then age and order.
//! - A GRPCRoute's regular expressions rank below exact services and methods, above none.
//! - A rule whose matches can't be compiled is left out; a rule whose matches are fine and
//!   whose filters, timeouts or backendRefs are not answers 500. Both are said in `PartiallyInvalid`,
//!   or in `Accepted` when no rule of the route is left.
//! - A CORS filter of backendRefs is the rule's if they all have the same; else the rule answers 500.
//! - A route of which nothing is usable does not attach, or stays as in its last good version.
//! - A route that names a port (`port`, `sectionName`) makes it what the route says. A route
//!   for all ports leaves out those that the Service declares to be something else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;
use weft_api::config;
use weft_source::ObjectKey;

mod backends;
mod cors;
mod durations;
mod endpoints;
mod filters;
mod grpc;
mod http;
mod inventory;
mod l4;
mod objects;
mod parents;
mod patterns;
mod precedence;
mod resolve;
mod retry;
mod routes;
mod routing;
mod services;
mod status;
mod tables;
mod workloads;
mod world;

#[cfg(test)]
mod tests;

pub use world::World;

/// What the compiler must know besides objects.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Trust domain of the mesh's identities.
    pub trust_domain: String,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
}

/// Everything that follows from the objects, by name. Entries that a compilation leaves alone
/// keep their `Arc`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compiled {
    /// Workload resources.
    pub workloads: BTreeMap<String, Arc<config::Workload>>,
    /// Service resources.
    pub services: BTreeMap<String, Arc<config::Service>>,
    /// RouteTable resources.
    pub route_tables: BTreeMap<String, Arc<config::RouteTable>>,
    /// The status of every route object. One without parents is none of ours: entries of ours
    /// that an earlier version left in its status are stale.
    pub routes: BTreeMap<ObjectKey, RouteStatus>,
    /// Objects that could not be read (the last good version is in force, if there was one), or
    /// that say something which had to be read with caution: the reason of each.
    pub invalid: BTreeMap<ObjectKey, String>,
    /// What differs from the compilation before.
    pub changes: Changes,
}

/// Names whose entries were added, replaced or removed by the last compilation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Of [`Compiled::workloads`].
    pub workloads: BTreeSet<String>,
    /// Of [`Compiled::services`].
    pub services: BTreeSet<String>,
    /// Of [`Compiled::route_tables`].
    pub route_tables: BTreeSet<String>,
    /// Of [`Compiled::routes`].
    pub routes: BTreeSet<ObjectKey>,
}

impl Changes {
    /// Whether the last compilation changed nothing.
    pub fn is_empty(&self) -> bool {
        self.workloads.is_empty()
            && self.services.is_empty()
            && self.route_tables.is_empty()
            && self.routes.is_empty()
    }
}

/// How much the last compilation computed anew: it must grow with the change, not with the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Workload resources built.
    pub workloads: usize,
    /// EndpointSlices resolved to workloads.
    pub slices: usize,
    /// Service resources built.
    pub services: usize,
    /// Routes whose backendRefs were resolved.
    pub routes: usize,
    /// Services whose routes were attached and merged.
    pub attachments: usize,
    /// Route statuses put together.
    pub statuses: usize,
}

/// The status of a route, towards the parents that are ours.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteStatus {
    /// `metadata.generation` that this is about.
    pub generation: i64,
    /// One entry per parentRef of ours, in the order of the route.
    pub parents: Vec<ParentStatus>,
}

/// The status of a route towards one parent.
#[derive(Clone, Debug, PartialEq)]
pub struct ParentStatus {
    /// The parentRef as the user wrote it.
    pub parent_ref: Value,
    /// `Accepted`, `ResolvedRefs`, and `PartiallyInvalid` only where it applies.
    pub conditions: Vec<Condition>,
    /// The RouteTables that carry the route for this parent; empty if there is nothing to program.
    pub tables: Vec<String>,
}

/// A condition, without times and generation: those are its writer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The condition's type.
    pub type_: String,
    /// `True` or `False`.
    pub status: bool,
    /// The standard's reason.
    pub reason: String,
    /// For people.
    pub message: String,
}

//! The redirect rules in a pod's network namespace.
//!
//! [`plan`] is pure: from what a pod needs to chains, rules and routes. [`apply`] puts a plan into
//! force in one transaction, over netlink; [`inspect`] reads back what is there. Nothing else of
//! the namespace's rules is touched: everything lives in one table of our own.

mod apply;
mod encode;
mod netlink;
mod node;
mod plan;
mod sets;

pub use apply::{Observed, apply, inspect, ipv6_is_enabled};
pub use netlink::RulesError;
pub use node::{NODE_TABLE, NodePlan, apply_node, plan_node};
pub use plan::{
    Action, Chain, ChainKind, Family, Hook, Match, Phase, Plan, PodRules, Rate, Rule, Set, TABLE,
    Table, TransparentRoute, plan,
};

//! Capture of pods' traffic: the CNI plugin, the node's agent, and the redirect rules.
//!
//! The plugin ([`plugin`]) runs once for each sandbox that the runtime makes or removes, and asks
//! the agent. The agent ([`agent`]) puts rules ([`rules`]) and listening sockets ([`listeners`])
//! into the pods' network namespaces ([`netns`]), hands both to the node's proxies, and reports
//! which pods are captured. It never accepts a connection and never sees a key.

pub mod agent;
pub mod install;
pub mod kubernetes;
pub mod listeners;
pub mod marks;
pub mod netns;
pub mod objects;
pub mod plugin;
pub mod protocol;
pub mod results;
pub mod rules;
pub mod sandbox;
mod sysctl;
#[cfg(test)]
mod testing;

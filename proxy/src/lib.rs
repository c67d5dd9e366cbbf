//! Weft's data plane: one proxy a node. Connections of the node's pods flow in through the
//! listening sockets that the agent hands over; configuration flows in over xDS, certificates
//! from the CA; connections to applications and tunnels to other nodes' proxies flow out.

pub mod admin;
pub mod balance;
pub mod budget;
pub mod connector;
pub mod controller;
pub mod copy;
pub mod drain;
mod files;
pub mod flags;
pub mod gate;
pub mod handover;
pub mod hbone;
pub mod http;
pub mod identity;
pub mod inbound;
pub mod io;
pub mod limits;
pub mod model;
pub mod netns;
pub mod outbound;
pub mod pages;
pub mod pods;
mod ports;
pub mod prefixed;
pub mod refusals;
pub mod report;
mod resolve;
pub mod settings;
pub mod share;
pub mod sniff;
pub mod socket;
pub mod state;
pub mod telemetry;
pub mod trust;
pub mod xds;

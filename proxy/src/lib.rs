//! Weft's data plane: one proxy a node. Connections of the node's pods flow in through the
//! listening sockets that the agent hands over; configuration flows in over xDS, certificates
//! from the CA; connections to applications and tunnels to other nodes' proxies flow out.

pub mod admin;
pub mod balance;
pub mod controller;
pub mod copy;
pub mod http;
pub mod io;
pub mod model;
pub mod netns;
pub mod prefixed;
pub mod settings;
pub mod sniff;
pub mod socket;
pub mod state;
pub mod telemetry;
pub mod xds;

//! Weft's data plane: one proxy a node. Connections of the node's pods flow in through the
//! listening sockets that the agent hands over; configuration flows in over xDS, certificates
//! from the CA; connections to applications and tunnels to other nodes' proxies flow out.

pub mod balance;
pub mod http;
pub mod io;
pub mod model;
pub mod state;
pub mod telemetry;

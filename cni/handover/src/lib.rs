//! The socket between a node's agent and its proxies: both ends.
//!
//! Flows in and out: messages of `weft.handover.v1`, one a packet, with file descriptors beside
//! them. `SOCK_SEQPACKET` keeps message boundaries, so descriptors can't be attributed to the
//! wrong message. What a message means is up to the two ends; this crate only carries it.

mod connection;
mod error;
mod listener;

pub use connection::Connection;
pub use error::HandoverError;
pub use listener::Listener;

/// Longest encoded message. A pod with its addresses takes a few hundred bytes; the bound keeps a
/// confused peer from making this end allocate.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Most descriptors beside one message: a network namespace and its listening sockets are four.
pub const MAX_DESCRIPTORS: usize = 16;

#[cfg(test)]
mod tests;

//! Choosing where a connection or request goes. Candidates with their measured load flow in, one
//! of them flows out. Everything that decides is pure: time and randomness are parameters.
//!
//! - [`weighted`]: the share of each backend of a rule;
//! - [`p2c`]: which endpoint of a Service, by power of two choices;
//! - [`ewma`]: what an endpoint costs, from the latencies seen;
//! - [`health`]: when an endpoint that refuses connections is left alone for a while;
//! - [`load`]: the three above kept in atomics, one [`Load`] an endpoint.

pub mod ewma;
pub mod health;
pub mod load;
pub mod p2c;
pub mod weighted;

#[cfg(test)]
mod tests;

pub use load::{Load, LoadGuard};
pub use weighted::Weighted;

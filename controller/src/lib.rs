//! The controller: reads objects from a source, compiles them to tables, and publishes those
//! (delta xDS), certificates and route status.

pub mod compile;
pub mod http;
pub mod kubernetes;
pub mod leadership;
pub mod metrics;
pub mod pipeline;
pub mod publish;
pub mod run;
pub mod state;

//! The controller: reads objects from a source, compiles them to tables, and publishes those
//! (delta xDS), certificates and route status.

pub mod compile;

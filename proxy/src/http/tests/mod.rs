//! Tests of the HTTP layer: pure functions by tables, and whole exchanges between real clients and
//! real servers that are joined by memory instead of a network.

mod cases;
mod connections;
mod cors;
mod draining;
mod filters;
mod harness;
mod limits;
mod matching;
mod preflight;
mod retries;
mod smuggling;
mod streams;
mod timeouts;
mod upgrades;
mod versions;

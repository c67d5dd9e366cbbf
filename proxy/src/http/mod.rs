//! HTTP for captured connections. A pod's byte stream whose port speaks HTTP flows in, requests
//! are matched against the route table in force, changed by its filters, and flow out through
//! pools of upstream connections that belong to that pod alone.

pub mod filter;
pub mod matching;
pub mod path;
pub mod redirect;
pub mod table;

pub use matching::RequestHead;
pub use table::{HttpRoutes, Rule, Selected};

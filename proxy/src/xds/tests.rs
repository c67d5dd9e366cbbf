//! Tests of the client against a delta server in this process, over real TLS.

mod backoff;
mod fake;
mod session;
mod snapshot;
mod streams;

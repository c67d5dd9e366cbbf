//! Tests of the client against a delta server in this process, over real TLS.

mod backoff;
mod fake;
mod snapshot;
mod streams;

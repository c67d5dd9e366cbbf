//! weft-echo: a server that says what it saw and misbehaves on demand, and a client that counts.
//!
//! For demos, tests and benches. In come HTTP/1.1, HTTP/2, gRPC and plain TCP; out go
//! [`answer::Answer`]s (JSON) that let a test verify a request at its far end. How to ask for
//! delays, failures and streams is described in [`behaviour`].

pub mod answer;
pub mod behaviour;
mod body;
pub mod client;
mod grpc;
mod heads;
mod health;
mod http;
pub mod server;
mod tcp;
mod upgrade;

/// The gRPC echo service, generated from `proto/weft/echo/v1/echo.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod proto {
    tonic::include_proto!("weft.echo.v1");
}

/// gRPC's health service, generated from `proto/grpc/health/v1/health.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod health_proto {
    tonic::include_proto!("grpc.health.v1");
}

/// Any error, as the body and service traits want it.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

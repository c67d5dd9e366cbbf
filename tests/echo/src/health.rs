//! gRPC's health service: the readiness that `POST /readyz` switches flows out to those who ask by
//! gRPC, such as kubelets.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tonic::{Request, Response, Status};

use crate::health_proto::health_check_response::ServingStatus;
use crate::health_proto::health_server::Health;
use crate::health_proto::{HealthCheckRequest, HealthCheckResponse};
use crate::http::Shared;

/// The echo service's name; the empty one stands for the whole server.
const SERVICE: &str = "weft.echo.v1.Echo";
/// Where calls of this service go.
pub(crate) const PREFIX: &str = "/grpc.health.v1.Health/";

/// The service.
#[derive(Debug)]
pub(crate) struct HealthService(pub(crate) Arc<Shared>);

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !matches!(service.as_str(), "" | SERVICE) {
            return Err(Status::not_found(format!("there is no service {service}")));
        }
        let ready = self.0.ready.load(Ordering::Relaxed) && !self.0.draining.is_cancelled();
        let status = if ready {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        Ok(Response::new(HealthCheckResponse {
            status: status.into(),
        }))
    }
}
